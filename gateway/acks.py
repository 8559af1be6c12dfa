"""Which messages may be acknowledged: those that are durable here and still held there.

An acknowledgement lets the server forget, so it may leave only after the fsync of the transaction that
stored the message. And it may name only what the server's newest list of available numbers holds: a
stale one is an error, for which some servers close the connection.

A null list says either that the server holds nothing or that it does not tell. Which one is known from its other
responses: one that has ever told a list tells.
"""

from __future__ import annotations

from collections.abc import Iterable


class Acks:
    """The pool from which each Publish request takes its acknowledgements."""

    def __init__(self) -> None:
        self._done: set[tuple[int, int]] = set()
        self._available: dict[int, frozenset[int] | None] = {}
        self._tells: set[int] = set()  # subscriptions of which the server has told a list

    def reconnected(self) -> None:
        """Another session: what the server holds is not known any more, and nothing is sent before it tells."""
        self._available.clear()

    def available(self, subscription: int, numbers: tuple[int, ...] | None) -> None:
        """Take the newest list, None where it was null; of a server that never tells, all is acknowledged."""
        if numbers:
            self._tells.add(subscription)
        unknown = numbers is None and subscription not in self._tells
        self._available[subscription] = None if unknown else frozenset(numbers or ())

    def durable(self, acknowledged: Iterable[tuple[int, int]]) -> None:
        """Add (subscription, sequence number) pairs whose transaction is on disk."""
        self._done.update(acknowledged)

    def take(self, limit: int = 1000) -> list[tuple[int, int]]:
        """Return what to acknowledge now; what the server no longer holds is forgotten.

        Nothing is sent of a subscription of which the server has not told anything in this session.
        """
        taken: list[tuple[int, int]] = []
        for pair in sorted(pair for pair in self._done if pair[0] in self._available):
            known = self._available[pair[0]]
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
        self._tells.discard(subscription)
