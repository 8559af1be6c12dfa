"""Fill gaps from a server's historian, one after the other, without hurting what is live.

Each gap is closed either way: as `history` when the server kept everything for all tags concerned, as `lost`
with the reason otherwise. What was found is stored in both cases. Samples that the journal already holds
are left out, so that nothing is there twice.

A historian that answers badly or not at all never breaks the session: it is asked again a few times, and
what is left when the session ends is tried in the next one.

What it does not do: find gaps (`gateway.sampler`), or page through history (`gateway.io.history`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from gateway import sampler
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.opcua import Connection
from gateway.io.reader import JournalReader
from gateway.plan import Plan
from gateway.server import Refused
from mirror import chunk
from mirror.batch import Batch, concat, subtract, take
from mirror.coverage import Closure, Coverage, Gap, Grade
from mirror.errors import Corrupt, Unavailable
from mirror.tags import Tag

ROWS_MAX = 2_000_000  # of one gap
HEAP_BYTES_MAX = 64 << 20  # of its Strings, arrays and structures: all of one gap goes into one segment
CHUNK_ROWS = 100_000
TRIES = 3
RETRY_S = 30.0
SKEW_MS = 1000.0  # between a server's publish times and its sources' stamps


class Backfiller:
    """Fills the gaps of one source.

    Args:
        ingest: Stores rows and takes the outcome.
        journal_path: For reading what is held beside a gap.
        enabled: Whether history may be asked for at all.
        on_rows: Called in the event loop with new rows, once they are durable.
    """

    def __init__(self, ingest: Ingest, journal_path: Path, *, enabled: bool, on_rows: Callable[[Batch], None]) -> None:
        self._ingest, self._path, self._enabled, self._on_rows = ingest, journal_path, enabled, on_rows
        self._gaps: asyncio.Queue[tuple[str, Gap]] = asyncio.Queue()
        self._taken: set[str] = set()  # ids: each gap is tried once in a session

    def add(self, stream: str, gap: Gap) -> None:
        """Take a gap of a stream, unless this session has it already; call it in the event loop."""
        if gap.id not in self._taken:
            self._taken.add(gap.id)
            self._gaps.put_nowait((stream, gap))

    async def begin(self, streams: Mapping[str, Plan]) -> None:
        """Forget what a former session left, and take the ledger's open gaps instead.

        Call it when the machines' `Subscribed` is durable: until then a gap may still get longer.
        """
        self._gaps, self._taken = asyncio.Queue(), set()
        for stream in streams:
            for gap in await asyncio.to_thread(self._open_gaps, stream):
                self.add(stream, gap)

    async def run(self, connection: Connection, streams: Mapping[str, Plan]) -> None:
        """Fill gaps until cancelled."""
        while True:
            stream, gap = await self._gaps.get()
            plan = streams.get(stream)
            if plan is None or not self._enabled:
                self._close(stream, gap, complete=False, why="history is not asked for")
                continue
            for attempt in range(TRIES):
                try:
                    await self._fill(connection, plan, gap)
                    break
                except (Refused, Corrupt) as error:
                    self._close(stream, gap, complete=False, why=f"no history: {error}")
                    break
                except Unavailable as error:
                    if attempt == TRIES - 1:
                        self._close(stream, gap, complete=False, why=f"no history: {error}")
                    else:
                        await asyncio.sleep(RETRY_S)

    def _close(self, stream: str, gap: Gap, *, complete: bool, why: str) -> None:
        self._ingest.event(stream, sampler.Backfilled(gap, complete, why))

    async def _fill(self, connection: Connection, plan: Plan, gap: Gap) -> None:
        """Read history for a gap, store what is new of it, and close the gap."""
        assert gap.end is not None, "a gap is filled once its end is known"
        widen = int((max(i.sampling_ms for i in plan.items) + plan.publishing_ms + SKEW_MS) * 10_000)
        concerned, known = self._concerned(plan, gap), self._ingest.journal.tags
        tags = [(handle, known[handle]) for handle in await connection.has_history(concerned)]
        failed: dict[int, int] = {}
        batches: list[Batch] = []
        rows = size_bytes = 0
        async for batch in connection.history(tags, gap.start - widen, gap.end + widen, failed):
            rows, size_bytes = rows + len(batch), size_bytes + len(batch.heap.data)
            batches.append(batch)
            if rows > ROWS_MAX or size_bytes > HEAP_BYTES_MAX:
                break
        new = await asyncio.to_thread(self._new, plan.id, gap, widen, batches)
        without = len(concerned) - len(tags)
        complete = not failed and not without and rows <= ROWS_MAX and size_bytes <= HEAP_BYTES_MAX
        why = f"{rows} samples in the server's history; {without} tags without, {len(failed)} failed"
        outcome = sampler.Backfilled(gap, complete, why)
        await asyncio.wrap_future(self._ingest.call(partial(self._store, plan.id, outcome, new)))
        self._ingest.event(plan.id, outcome)
        if len(new):
            self._on_rows(new)

    def _concerned(self, plan: Plan, gap: Gap) -> list[tuple[int, Tag]]:
        """Return handle and tag of what a gap concerns."""
        wanted = set(gap.tags) if gap.tags is not None else None
        find = self._ingest.journal.tags.find
        tags = [i.tag for i in plan.items if wanted is None or i.tag.identity in wanted]
        return [(handle, tag) for tag in tags if (handle := find(tag.identity)) is not None]

    def _new(self, stream: str, gap: Gap, widen: int, batches: list[Batch]) -> Batch:
        """Return the rows that the journal does not hold yet; runs in a thread."""
        if not batches:
            return Batch.zeros(0)
        found = concat(batches)
        batches.clear()
        return subtract(found, self._held(stream, gap, widen))

    def _held(self, stream: str, gap: Gap, widen: int) -> Batch:
        """Return what the journal holds from around a gap, in any timeline; runs in a thread."""
        assert gap.end is not None
        found: list[Batch] = []
        reader = JournalReader.open(self._path)
        try:
            for lane in reader.keys():  # noqa: SIM118 (not a mapping)
                if lane[0] != stream:
                    continue
                after = gap.start - widen
                while rows := reader.chunks(*lane, after=after, up_to=gap.end + widen, limit=200):
                    found += [chunk.decode(row.body) for row in rows]
                    after = rows[-1].pub_to
        finally:
            reader.close()
        return concat(found)

    def _store(self, stream: str, outcome: sampler.Backfilled, new: Batch, journal: Journal) -> None:
        """Store rows as chunks that share the gap's interval and close it, as one; runs in the ingest thread.

        What is complete for some tags only is held: it claims nothing for the stream.
        """
        gap = outcome.gap
        assert gap.end is not None
        # Intervals of gaps may overlap; the rows of one must not pass for the pushed rows of another.
        origin = f"{self._ingest.replica}/history/{gap.id}"
        for at in range(0, len(new), CHUNK_ROWS):
            part = take(new, np.arange(at, min(at + CHUNK_ROWS, len(new))))
            journal.append(stream, gap.timeline, gap.start, gap.end, origin, part)
        grade = Grade.HISTORY if outcome.complete and gap.tags is None else Grade.HELD
        if len(new) or grade is Grade.HISTORY:
            journal.extend(Coverage(stream, gap.timeline, gap.start, gap.end, origin, grade))
        # A second attempt would add rows to an interval that may be pushed by then.
        journal.close_gap(gap.id, Closure.HISTORY if outcome.complete else Closure.LOST, outcome.why)
        self._ingest.counters.recovered_rows += len(new)

    def _open_gaps(self, stream: str) -> list[Gap]:
        """Return gaps that nobody has tried to fill, or not to the end; runs in a thread."""
        reader = JournalReader.open(self._path)
        try:
            return [g for g in reader.gaps(open_only=True) if g.stream == stream and g.end is not None]
        finally:
            reader.close()
