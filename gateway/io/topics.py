"""The retained topics that the broker may hold for this gateway, remembered in the journal.

A retained message outlives the process and the configuration that made it: a tag that lost its topic would be
Good for ever. So the topics are noted when they come into use, and those that a later configuration does not use
are handed out to be emptied, once the tags of every source are known: a server that is away has lost nothing.
What was handed out is forgotten when the broker has taken it, and not before.

What it cannot do: empty topics at a broker that is no longer configured, or know that another gateway has begun to
publish to one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from gateway.io.journal import Journal

FACT = "mqtt.retained"


class Topics:
    """The topics of one gateway; used in one thread.

    Args:
        saved: The journal's fact, None before the first.
        call: Runs work on the journal, durably.
    """

    def __init__(self, saved: bytes | None, call: Callable[[Callable[[Journal], None]], Future[Any]]) -> None:
        self._kept = set(zlib.decompress(saved).decode().split("\n")) - {""} if saved else set()
        self._used: set[str] = set()
        self._call = call

    def use(self, used: set[str], *, complete: bool) -> set[str]:
        """Note the topics in use; return those that are in use no more.

        Args:
            used: All of them.
            complete: Whether they are all that the configuration will use; else nothing is returned.
        """
        self._used = used
        if not used <= self._kept:
            self._kept |= used
            self._save()
        return self._kept - used if complete else set()

    def emptied(self, topics: Iterable[str]) -> None:
        """Forget topics that the broker has emptied."""
        self._kept -= set(topics) - self._used
        if self._kept <= self._used:  # that was the last of them: until then, emptying some again does no harm
            self._save()

    def _save(self) -> None:
        self._call(partial(_keep, frozenset(self._kept)))


def _keep(topics: frozenset[str], journal: Journal) -> None:
    journal.set_fact(FACT, zlib.compress("\n".join(sorted(topics)).encode(), 1))
