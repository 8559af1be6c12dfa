"""Which messages may be acknowledged: those that are durable here and still held there.

An acknowledgement lets the server forget, so it may leave only after the fsync of the transaction that
stored the message. And it may name only what the server's newest list of available numbers holds: a
stale one is an error, for which some servers close the connection.
"""

from __future__ import annotations

from collections.abc import Iterable


class Acks:
    """The pool from which each Publish request takes its acknowledgements."""

    def __init__(self) -> None:
        self._done: set[tuple[int, int]] = set()
        self._available: dict[int, frozenset[int]] = {}

    def available(self, subscription: int, numbers: tuple[int, ...] | None) -> None:
        """Take the newest list; None where the server sent a null list."""
        if numbers is not None:
            self._available[subscription] = frozenset(numbers)

    def durable(self, acknowledged: Iterable[tuple[int, int]]) -> None:
        """Add (subscription, sequence number) pairs whose transaction is on disk."""
        self._done.update(acknowledged)

    def take(self, limit: int = 1000) -> list[tuple[int, int]]:
        """Return what to acknowledge now; what the server no longer holds is forgotten."""
        taken: list[tuple[int, int]] = []
        for pair in sorted(self._done):
            known = self._available.get(pair[0])
            if known is None or pair[1] in known:
                if len(taken) == limit:
                    break
                taken.append(pair)
            self._done.discard(pair)
        return taken

    def put_back(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Return pairs whose Publish request failed."""
        self._done.update(pairs)

    def forget(self, subscription: int) -> None:
        """Drop everything about a subscription that is gone."""
        self._done = {p for p in self._done if p[0] != subscription}
        self._available.pop(subscription, None)
