"""How regularly the responses of each stream come: the longest time between two of them, lately.

A figure that is looked at every half a minute says nothing of what happened in between. So the longest pause is kept
for a minute after it has ended, and one that has not ended counts as it stands. What a stream is silent for while
its server is away counts too: that is the time for which nothing was known.

What this module does not do: judge. When silence means that a subscription is dead is decided where that is acted on.
"""

from __future__ import annotations

from collections.abc import Iterable

STEP_S = 10.0
STEPS = 6  # pauses are forgotten after so many steps


class Pace:
    """Pauses between responses, by stream."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._longest: dict[int, float] = {}  # by the step in which a pause ended

    def heard(self, stream: str, now: float) -> None:
        """Note a response of a stream."""
        before = self._heard.get(stream)
        self._heard[stream] = now
        if before is not None:
            step = self._forget(now)
            self._longest[step] = max(self._longest.get(step, 0.0), now - before)

    def longest_s(self, streams: Iterable[str], now: float) -> float:
        """Return the longest pause of the last minute, and of those that have not ended in these streams."""
        self._forget(now)
        open_s = [now - self._heard[stream] for stream in streams if stream in self._heard]
        return max([*self._longest.values(), *open_s], default=0.0)

    def _forget(self, now: float) -> int:
        """Forget what ended long ago; return the present step."""
        step = int(now // STEP_S)
        if step not in self._longest:
            self._longest = {s: pause_s for s, pause_s in self._longest.items() if s >= step - STEPS}
        return step
