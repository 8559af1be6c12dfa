"""What the retained topics should say now: the state of each device, and the last value of each chosen tag.

A retained message outlives the moment that it speaks of, so each of them is this module's debt: when a
source is lost its tags are said to be Bad and its devices stale, later offline; when it comes back they are
said again, from what was kept where nothing was missed and otherwise only as new values arrive; after a
new connection to the broker, which may have forgotten everything, all of it is said again; and a topic that
nothing is published to any more is emptied.

A source that has not been heard of since the start counts as stale. Its tags are left as an earlier run
left them for as long as a lost source is stale, so that a quick restart does not make every value flicker,
and are said to be Bad when it is declared offline.

What it does not do: know the time (`now` is an argument) or send anything (`take` hands out what is due).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gateway.formats.coalesce import Latest, bad_rows
from gateway.formats.json_uns import Message
from gateway.formats.names import Names
from mirror.batch import Batch, concat, take

BAD_NO_COMMUNICATION = 0x80310000


class SourceState(IntEnum):
    """How a source stands; a device with several sources stands as the worst of them."""

    LIVE = 0
    STALE = 1
    OFFLINE = 2


@dataclass(slots=True)
class _Source:
    state: SourceState
    since: float
    ticks: int  # when it was lost, on the clock of the samples
    seen: bool  # whether it has ever been live


class Retained:
    """The retained topics and which of them are due to be published."""

    def __init__(self, names: Names, *, offline_after_s: float, now: float, ticks: int) -> None:
        """Start with every source stale and nothing known.

        Args:
            names: Topics by handle.
            offline_after_s: How long a lost source is stale before it is offline.
            now: Monotonic time in seconds.
            ticks: The same moment as 100 ns since 1601, for the stamps of Bad tags.
        """
        self._offline_after_s = offline_after_s
        self._start = (now, ticks)
        self._latest = Latest()
        self._sources: dict[str, _Source] = {}
        self._topics: set[str] = set()
        self._gone: set[str] = set()
        self.use(names)

    def use(self, names: Names) -> None:
        """Take a new table of names; all of it is due, and topics that it does not have are to be emptied."""
        self._names = names
        before, self._topics = self._topics, names.retained()
        self._gone = (self._gone | before) - self._topics
        self._tagged: dict[str, NDArray[np.uint32]] = {}
        for source in sorted(set(names.source_of) - {""}):
            self._tagged[source] = names.tagged_of(source)
            self._sources.setdefault(source, self._unknown())
        self.everything()

    def _unknown(self) -> _Source:
        now, ticks = self._start
        return _Source(SourceState.STALE, now, ticks, seen=False)

    def everything(self) -> None:
        """Mark all as due: the broker may have forgotten it."""
        self._due = self._names.tagged.copy()
        self._due_devices = set(range(len(self._names.devices)))

    def live(self, source: str, *, resumed: bool) -> None:
        """Note that a source delivers again.

        Args:
            source: ApplicationUri.
            resumed: Nothing was missed, so that the values known before still hold. Otherwise each tag
                stays Bad until a new value arrives.
        """
        found = self._sources.setdefault(source, self._unknown())
        if found.seen and not resumed:
            self._latest.add(bad_rows(self._tagged_of(source), BAD_NO_COMMUNICATION, found.ticks))
        found.state, found.seen = SourceState.LIVE, True
        if resumed:
            self._due[self._tagged_of(source)] = True
        self._mark_devices(source)

    def lost(self, source: str, *, now: float, ticks: int) -> None:
        """Note that a source no longer delivers; its tags are Bad from here on."""
        found = self._sources.setdefault(source, self._unknown())
        if found.state is SourceState.LIVE:
            found.state, found.since, found.ticks = SourceState.STALE, now, ticks
            self._due[self._tagged_of(source)] = True
            self._mark_devices(source)

    def tick(self, now: float) -> None:
        """Declare sources offline that have been stale for long enough."""
        for source, found in self._sources.items():
            if found.state is SourceState.STALE and now - found.since >= self._offline_after_s:
                found.state = SourceState.OFFLINE
                self._mark_devices(source)
                if not found.seen:
                    self._due[self._tagged_of(source)] = True

    @property
    def wake_at(self) -> float | None:
        """When `tick` next has something to do."""
        since = [s.since for s in self._sources.values() if s.state is SourceState.STALE]
        return min(since) + self._offline_after_s if since else None

    def note(self, batch: Batch) -> None:
        """Remember the values that are being published.

        Values of a source that is not live were on their way when it was lost: its tags are due again,
        so that Bad is the last word.
        """
        handles = batch.handle
        if not self._names.tagged.any():
            return
        inside = handles < len(self._names)
        chosen = np.flatnonzero(inside & self._names.tagged[np.where(inside, handles, 0)])
        self._latest.add(batch if len(chosen) == len(batch) else take(batch, chosen))
        for source, found in self._sources.items():
            if found.state is not SourceState.LIVE and found.seen:
                mine = np.isin(self._tagged_of(source), handles)
                self._due[self._tagged_of(source)[mine]] = True

    def take_back(self, topics: Iterable[str]) -> None:
        """Note topics to be emptied, but for those in use."""
        self._gone |= set(topics) - self._topics

    def gone(self, limit: int) -> list[str]:
        """Return at most `limit` topics to be emptied, which then no longer are."""
        topics = list(islice(self._gone, limit))
        self._gone.difference_update(topics)
        return topics

    def states(self) -> Iterator[Message]:
        """Yield the `_state` messages that are due."""
        while self._due_devices:
            device = self._names.devices[self._due_devices.pop()]
            state = max(self._sources[s].state for s in device.sources)
            yield Message(device.state_topic, state.name.lower().encode(), 1, True)

    def farewell(self) -> list[Message]:
        """Return the `_state` messages of a gateway that stops."""
        return [Message(d.state_topic, b"offline", 1, True) for d in self._names.devices]

    def take(self, limit: int) -> Batch:
        """Return rows for at most `limit` tags that are due, which then no longer are.

        Tags of which nothing is known yet have no row.
        """
        handles = np.flatnonzero(self._due)[:limit].astype(np.uint32)
        self._due[handles] = False
        parts: list[Batch] = []
        known = np.ones(len(handles), np.bool_)
        for source, found in self._sources.items():
            mine = np.isin(handles, self._tagged_of(source))
            if found.state is not SourceState.LIVE:
                known &= ~mine
                if found.seen or found.state is SourceState.OFFLINE:
                    parts.append(bad_rows(handles[mine], BAD_NO_COMMUNICATION, found.ticks))
        whole = self._latest.batch()
        return concat([take(whole, np.flatnonzero(np.isin(whole.handle, handles[known]))), *parts])

    @property
    def due(self) -> bool:
        """Whether `take` has tags to go through."""
        return bool(self._due.any())

    def _tagged_of(self, source: str) -> NDArray[np.uint32]:
        return self._tagged.get(source, np.zeros(0, np.uint32))

    def _mark_devices(self, source: str) -> None:
        self._due_devices |= {i for i, d in enumerate(self._names.devices) if source in d.sources}
