"""The read-audit of one source: reads a rotating share of its tags and compares them with the state.

It asks what nothing else asks: whether the server still tells what its device holds. What differs is looked at
again after a time of grace, then read a second time; what still differs is a mismatch: a gap row for those
tags from the last time they were found good, an event, and a new subscription. A tag whose mismatch survives
that is mended ever more seldom, so that one odd node does not cost the others their subscription again and
again.

What this module does not do: judge (`gateway.audit`), or subscribe (`gateway.io.source`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway import audit
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.io.sessions import Gone
from gateway.plan import Plan
from gateway.server import Refused
from mirror.batch import Batch, take
from mirror.coverage import Gap, Reason

GRACE_S = 2.0  # beside three publishing intervals: what changed when it was read has to be here by then
MEND_S, MEND_S_MAX = 10.0, 3600.0  # between two new subscriptions for the same tag: doubles while it differs
HISTORY_MAX = 100_000  # tags whose last good audit is remembered by its publish time

Handles = NDArray[np.uint32]


@dataclass(slots=True)
class Counts:
    """What the audit has done; read by anyone, written in the event loop.

    Attributes:
        tags: Tags read and compared.
        mismatches: Tags found to differ.
        refused: Reads that the server refused.
        turns: Times that every tag has had its turn.
        full_turn_s: How long the last turn over all tags took; 0 before the first.
    """

    tags: int = 0
    mismatches: int = 0
    refused: int = 0
    turns: int = 0
    full_turn_s: float = 0.0


class Auditor:
    """Audits one source for as long as a session lasts.

    Args:
        name: Of the source.
        period_s: Each tag is read once in so long; 0 audits nothing.
        ingest: Its thread holds the state.
    """

    def __init__(self, name: str, period_s: float, ingest: Ingest) -> None:
        self.counts = Counts()
        self._name, self._period_s, self._ingest = name, period_s, ingest
        self._good: dict[int, int] = {}  # by handle, the stream's publish time when it was last found good
        self._mended: dict[int, tuple[float, float]] = {}  # by handle: when it may be tried again, and the pause then
        self._refusal = ""

    async def run(
        self, connection: Connection, streams: Mapping[str, Plan], handles: Callable[[str], Collection[int]]
    ) -> None:
        """Audit until cancelled, or until a mismatch asks for a new subscription.

        Args:
            connection: A live session.
            streams: What is subscribed on it.
            handles: The monitored tags of a stream; tags that the server refused are not audited.

        Raises:
            Gone: The streams whose tags differ; subscribe anew.
            Unavailable: The connection is lost.
        """
        of_stream = {handle: stream for stream in streams for handle in handles(stream)}
        if not self._period_s or not of_stream:
            await asyncio.Event().wait()
        rotation = audit.Rotation(sorted(of_stream), self._period_s, time.monotonic())
        began = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, rotation.wake_at - time.monotonic()))
            part = rotation.take(time.monotonic())
            grace_s = GRACE_S + 3 * max(p.publishing_ms for p in streams.values()) / 1000
            try:
                found = await self._look(connection, np.array(part, np.uint32), grace_s)
                if len(found):  # where one is left out others may be: look at all before a new subscription hides it
                    hit = {of_stream[h] for h in found.tolist()}
                    rest = [h for h, stream in of_stream.items() if stream in hit and h not in part]
                    more = await self._look(connection, np.array(rest, np.uint32), grace_s) if rest else found[:0]
                    found = np.concatenate((found, more))
            except Refused as refused:
                self._refused(refused)
                continue
            if self.counts.turns != rotation.turns:
                now = time.monotonic()
                self.counts.turns, self.counts.full_turn_s, began = rotation.turns, now - began, now
            await self._noted(part, found, of_stream)
            if len(found):
                await self._mismatch(found.tolist(), of_stream)

    async def _look(self, connection: Connection, handles: Handles, grace_s: float) -> Handles:
        """Return those of the tags whose device says something else than the mirror."""
        read = await self._read(connection, handles)
        self.counts.tags += len(handles)
        doubt, before = await self._call(lambda journal: _doubtful(read, journal))
        if not len(doubt):
            return np.asarray(doubt, np.uint32)
        await asyncio.sleep(grace_s)
        doubt = await self._call(lambda journal: _still(doubt, before, read, journal))
        if len(doubt):
            again = await self._read(connection, doubt)
            doubt = await self._call(lambda journal: _still(doubt, before, again, journal))
        return np.asarray(doubt, np.uint32)

    async def _read(self, connection: Connection, handles: Handles) -> Batch:
        tags = self._ingest.journal.tags
        return await connection.read([(h, tags[h]) for h in handles.tolist()])

    async def _noted(self, part: Collection[int], found: Handles, of_stream: Mapping[int, str]) -> None:
        """Remember when tags were found good, as the publish time that their streams had reached."""
        if len(self._good) > HISTORY_MAX:
            return
        bad = set(found.tolist())
        reached: dict[str, int] = {}
        for stream in {of_stream[h] for h in part}:
            machine = self._ingest.sampler(stream)
            if machine is not None and machine.position is not None:
                reached[stream] = machine.position.covered
        self._good |= {h: reached[of_stream[h]] for h in part if h not in bad and of_stream[h] in reached}

    async def _mismatch(self, handles: list[int], of_stream: Mapping[int, str]) -> None:
        """Declare what differs, and ask for a new subscription unless that was tried lately."""
        tags, now = self._ingest.journal.tags, time.monotonic()
        self.counts.mismatches += len(handles)
        streams = {of_stream[h] for h in handles}
        for stream in streams:
            mine = [h for h in handles if of_stream[h] == stream]
            await self._call(partial(self._declare, stream, mine))
        fresh = [h for h in handles if now >= self._mended.get(h, (0.0, 0.0))[0]]
        first = tags[handles[0]].path or tags[handles[0]].node
        log("audit.mismatch", source=self._name, tags=len(handles), first=first, subscribes_anew=bool(fresh))
        if fresh:
            for handle in fresh:
                pause_s = self._mended.get(handle, (0.0, MEND_S))[1]
                self._mended[handle] = (now + pause_s, min(2 * pause_s, MEND_S_MAX))
            what = f"{len(handles)} tags differ from the device, {first} among them; subscribing anew"
            raise Gone(what, {of_stream[h] for h in fresh})

    def _declare(self, stream: str, handles: list[int], journal: Journal) -> None:
        """Open the gap row; runs in the ingest thread."""
        machine = self._ingest.sampler(stream)
        position = None if machine is None else machine.position
        if position is None:
            return
        known = [self._good[h] for h in handles if h in self._good]
        start = min([*known, position.covered]) if len(known) == len(handles) else position.start
        end = max(position.covered, start + 1)
        identities = [journal.tags.identities[h] for h in handles]
        gap = Gap.opened(stream, position.timeline, start, Reason.MISMATCH, end=end, tags=identities, found=end)
        journal.open_gap(gap)
        self._ingest.note_before(stream, gap)

    def _refused(self, refused: Refused) -> None:
        self.counts.refused += 1
        if str(refused) != self._refusal:
            self._refusal = str(refused)
            log("audit.refused", source=self._name, error=self._refusal)

    async def _call(self, work: Callable[[Journal], Any]) -> Any:
        return await asyncio.wrap_future(self._ingest.call(work))


def _doubtful(read: Batch, journal: Journal) -> tuple[Handles, Batch]:
    """Return the tags that are suspect, and what the state holds of those that have a value."""
    handles = read.handle[audit.suspects(read, journal.state)]
    return handles, journal.state.batch(handles)


def _still(doubt: Handles, before: Batch, read: Batch, journal: Journal) -> Handles:
    """Return the tags in doubt that are suspect still and for which nothing has come since."""
    moved = np.setdiff1d(before.handle, before.handle[audit.unmoved(before, journal.state)])
    rows = np.flatnonzero(np.isin(read.handle, doubt) & ~np.isin(read.handle, moved))
    part = take(read, rows)
    handles: Handles = part.handle[audit.suspects(part, journal.state)]
    return handles
