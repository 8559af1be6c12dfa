"""How large a message may be, learnt from a broker that does not say.

A broker that takes no messages beyond some size ends the connection when it meets one, and before MQTT 5
it has no way to say why; the same message would come first over the next connection. So messages are made
smaller where connections end again and again just after large ones.

A line that breaks often looks the same. What was learnt is therefore doubted: while a connection stands, the
limit is doubled from time to time until it is where it began. A broker that really takes no more then hangs
up once: the limit falls back at once and is doubted more and more seldom, at last once a day.

What this module does not do: know the time (`now` is an argument) or split anything.
"""

from __future__ import annotations

PAYLOAD_BYTES_MIN = 4096  # messages are not made smaller than this
STRIKES = 3  # connections that end early with a large message under way before messages are made smaller
RAISE_S = 10.0  # how long a connection stands before larger messages are tried again
RAISE_S_MAX = 86_400.0
RAISE_S_FACTOR = 4
SLACK_BYTES = 512  # twice the half of a message is enough for it although its numbers have grown


class PayloadLimit:
    """The longest payload that the broker is believed to take.

    Attributes:
        size_bytes: The limit now.
    """

    def __init__(self, size_bytes_max: int) -> None:
        """Believe that payloads of `size_bytes_max` are taken."""
        self.size_bytes = self._size_bytes_max = size_bytes_max
        self._strikes = 0
        self._raised = False  # since the limit last fell
        self._taken_bytes = 0  # the longest that the broker took since then
        self._pause_s = RAISE_S
        self._raise_at: float | None = None

    def connected(self, now: float) -> None:
        """Note that a connection stands."""
        self._raise_at = now + self._pause_s if self.size_bytes < self._size_bytes_max else None

    def tick(self, now: float) -> bool:
        """Raise the limit where that is due; tell whether it was."""
        if self._raise_at is None or now < self._raise_at:
            return False
        self.size_bytes = min(self._size_bytes_max, 2 * self.size_bytes + SLACK_BYTES)
        self._raised = True
        self.connected(now)
        return True

    def ended(self, largest_bytes: int, taken_bytes: int, *, steady: bool) -> bool:
        """Note that a connection ended; tell whether the limit is lower now.

        Args:
            largest_bytes: Longest payload that the broker had not acknowledged.
            taken_bytes: Longest payload that it had.
            steady: Whether the connection had stood for a while.
        """
        self._raise_at = None
        self._taken_bytes = max(self._taken_bytes, taken_bytes)
        if self._raised and largest_bytes > max(self._taken_bytes, PAYLOAD_BYTES_MIN):
            self._pause_s = min(RAISE_S_MAX, RAISE_S_FACTOR * self._pause_s)
            self._lower(max(self._taken_bytes, largest_bytes // 2))
            return True
        self._strikes = 0 if steady or largest_bytes <= PAYLOAD_BYTES_MIN else self._strikes + 1
        if self._strikes < STRIKES:
            return False
        self._lower(largest_bytes // 2)
        return True

    def _lower(self, size_bytes: int) -> None:
        self.size_bytes = max(PAYLOAD_BYTES_MIN, size_bytes)
        self._strikes, self._raised, self._taken_bytes = 0, False, 0
