"""Fill gaps from a server's historian, one after the other, without hurting what is live.

Each gap is closed either way: as `history` when the server kept everything for all tags concerned, and its
answers say so themselves by reaching what is known before and after (`gateway.window`); as `lost` with the
reason otherwise. What was found is stored in both cases. Samples that the journal already holds are left out,
so that nothing is there twice.

A historian that answers badly or not at all never breaks the session: it is asked again a few times, and
what is left when the session ends is tried in the next one.

What it does not do: find gaps (`gateway.sampler`), or page through history (`gateway.io.history`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gateway import sampler
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.io.reader import JournalReader
from gateway.plan import Plan
from gateway.server import Refused
from gateway.window import Handles, Question, Ticks, times
from mirror import chunk
from mirror.batch import Batch, concat, subtract, take
from mirror.coverage import Closure, Coverage, Gap, Grade
from mirror.errors import Corrupt, Unavailable

ROWS_MAX = 2_000_000  # of one gap
HEAP_BYTES_MAX = 64 << 20  # of its Strings, arrays and structures: all of one gap goes into one segment
CHUNK_ROWS = 100_000
TRIES = 3
RETRY_S = 30.0
COVERED = "another replica has pushed it"
PEER_LOOKS, PEER_LOOK_S = 30, 2.0  # how often, and how far apart, it is looked whether another replica has pushed
SKEW_MS = 1000.0  # between two clocks that agree
HELD_TICKS = 5 * 10_000_000  # around a gap, rows that history may tell again are looked for
NEVER = np.int64(2**63 - 1)
LOOK_CHUNKS, LOOK_STEP = 400, 50  # how far behind a gap the first row of each tag is looked for


class Backfiller:
    """Fills the gaps of one source.

    Args:
        ingest: Stores rows and takes the outcome.
        journal_path: For reading what is held beside a gap.
        enabled: Whether history may be asked for at all.
        on_rows: Called in the event loop with new rows, once they are durable.
        peers: Whether other replicas may hold what this one missed: they are waited for before anything else.
    """

    def __init__(
        self,
        ingest: Ingest,
        journal_path: Path,
        *,
        enabled: bool,
        on_rows: Callable[[Batch], None],
        peers: bool = False,
    ) -> None:
        self._peers = peers
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
            if self._peers and gap.tags is None and await self._covered_by_peer(gap):
                continue
            if plan is None or not self._enabled:
                self._close(stream, gap, complete=False, why="history is not asked for")
                continue
            for attempt in range(TRIES):
                try:
                    await self._fill(connection, plan, gap, is_last=attempt == TRIES - 1)
                    break
                except (Refused, Corrupt) as error:
                    self._close(stream, gap, complete=False, why=f"no history: {error}")
                    break
                except Unavailable as error:
                    if attempt == TRIES - 1:
                        self._close(stream, gap, complete=False, why=f"no history: {error}")
                    else:
                        await asyncio.sleep(RETRY_S)

    async def _covered_by_peer(self, gap: Gap) -> bool:
        """Close a gap that another replica has pushed; wait a while for it to do so."""
        for _ in range(PEER_LOOKS):
            if await asyncio.to_thread(self._is_elsewhere, gap):
                done = self._ingest.call(lambda journal: journal.close_gap(gap.id, Closure.REPLICA, COVERED))
                await asyncio.wrap_future(done)
                self._ingest.before.pop(gap.id, None)
                log("gap.covered", stream=gap.stream, gap=gap.id)
                return True
            await asyncio.sleep(PEER_LOOK_S)
        return False

    def _is_elsewhere(self, gap: Gap) -> bool:
        assert gap.end is not None
        reader = JournalReader.open(self._path)
        try:
            found = reader.settled().elsewhere((gap.stream, gap.timeline, self._ingest.replica))
        finally:
            reader.close()
        return found.covers(gap.start, gap.end)

    def _close(self, stream: str, gap: Gap, *, complete: bool, why: str) -> None:
        self._ingest.event(stream, sampler.Backfilled(gap, complete, why))

    async def _fill(self, connection: Connection, plan: Plan, gap: Gap, *, is_last: bool) -> None:
        """Read history for a gap, store what is new of it, and close the gap.

        Raises:
            Unavailable: The server did not answer, or, unless this `is_last`, its historian is behind.
        """
        asked = await asyncio.to_thread(self.question, plan, gap)
        known = self._ingest.journal.tags
        tags = [(handle, known[handle]) for handle in asked.asked.tolist()]
        readable = await connection.has_history(tags) if tags else []
        failed: dict[int, int] = {}
        batches: list[Batch] = []
        rows = size_bytes = 0
        for call in asked.calls(readable):
            tags = [(handle, known[handle]) for handle in call.handles]
            async for page in connection.history(tags, call.start, call.end, failed):
                batches.append(asked.take(page))
                rows, size_bytes = rows + len(batches[-1]), size_bytes + len(batches[-1].heap.data)
                if rows > ROWS_MAX or size_bytes > HEAP_BYTES_MAX:
                    break
            if rows > ROWS_MAX or size_bytes > HEAP_BYTES_MAX:
                break
        if asked.is_early and not is_last:
            raise Unavailable("the historian has not come to the gap's end yet")
        without = len(asked.asked) - len(readable)
        is_all = rows <= ROWS_MAX and size_bytes <= HEAP_BYTES_MAX
        outcome = verdict(gap, asked, rows, without=without, failed=len(failed), is_all=is_all)
        new = await asyncio.to_thread(self.new, plan.id, gap, asked, batches)
        await asyncio.wrap_future(self.store(plan.id, outcome, new))
        self._ingest.event(plan.id, outcome)
        if len(new):
            self._on_rows(new)

    def question(self, plan: Plan, gap: Gap) -> Question:
        """Return what a historian has to be asked about a gap."""
        handles = self._concerned(plan, gap)
        before, known = np.zeros(len(handles), np.int64), self._ingest.before.get(gap.id)
        if known is not None and len(known.handles):
            at = np.minimum(np.searchsorted(known.handles, handles), len(known.handles) - 1)
            before = np.where(known.handles[at] == handles, known.ticks[at], 0)
        widen = int((max(i.sampling_ms for i in plan.items) + plan.publishing_ms + SKEW_MS) * 10_000)
        before = self._live(plan.id, handles, before)
        return Question(gap, widen, handles, before, *self._after(plan.id, gap, handles))

    def _live(self, stream: str, handles: Handles, before: Ticks) -> Ticks:
        """Return the times without those of rows that are known from a historian alone: what came before is not."""
        known = before[before > 0]
        if not len(known):
            return before
        before = before.copy()
        reader = JournalReader.open(self._path)
        try:
            for row in reader.history(stream, int(known.min()), int(known.max())):
                batch = chunk.decode(row.body)
                at = np.minimum(np.searchsorted(handles, batch.handle), len(handles) - 1)
                same = (handles[at] == batch.handle) & (times(batch) == before[at])
                before[at[same]] = 0
        finally:
            reader.close()
        return before

    def _after(self, stream: str, gap: Gap, handles: Handles) -> tuple[Ticks, Ticks]:
        """Return the time of each tag's first row that was published after a gap, and when that was; 0 if unknown."""
        assert gap.end is not None
        first, published = np.full(len(handles), NEVER), np.zeros(len(handles), np.int64)
        if not len(handles):
            return first, published
        met = {gap.timeline}
        reader = JournalReader.open(self._path)
        try:
            last = reader.last_before(stream, gap.timeline, self._ingest.replica, gap.end)
            for _ in range(LOOK_CHUNKS // LOOK_STEP):
                rows = reader.chunks_since(last, LOOK_STEP)
                for row in rows:
                    last = row.seq
                    if row.stream != stream or row.origin != self._ingest.replica:
                        continue
                    begins = row.pub_from == gap.end or row.timeline not in met
                    met.add(row.timeline)
                    if row.pub_to - row.pub_from == 1 and not begins:
                        continue  # a message that came late, and may be older than the gap
                    here = _earliest(chunk.decode(row.body), handles)
                    new = (published == 0) & (here < NEVER)
                    first[new], published[new] = here[new], row.pub_to
                if len(rows) < LOOK_STEP or published.all():
                    break
        finally:
            reader.close()
        return np.where(published > 0, first, 0), published

    def _concerned(self, plan: Plan, gap: Gap) -> Handles:
        """Return the handles that a gap concerns, ascending."""
        wanted = set(gap.tags) if gap.tags is not None else None
        find = self._ingest.journal.tags.find
        found = (find(i.tag.identity) for i in plan.items if wanted is None or i.tag.identity in wanted)
        return np.unique(np.array([handle for handle in found if handle is not None], np.uint32))

    def new(self, stream: str, gap: Gap, asked: Question, batches: list[Batch]) -> Batch:
        """Return the rows of answers that the journal does not hold yet; empties `batches`."""
        if not batches:
            return Batch.zeros(0)
        found = concat(batches)
        batches.clear()
        return subtract(found, self._held(stream, gap.start - HELD_TICKS, asked.until + HELD_TICKS, times(found)))

    def _held(self, stream: str, start: int, end: int, when: Ticks) -> Batch:
        """Return what the journal holds of a stretch of publish time, in any timeline, of about the times given."""
        found: list[Batch] = []
        low, high = int(when.min(initial=NEVER)), int(when.max(initial=0))
        reader = JournalReader.open(self._path)
        try:
            for lane in reader.keys():  # noqa: SIM118 (not a mapping)
                if lane[0] != stream:
                    continue
                after = start
                while rows := reader.chunks(*lane, after=after, up_to=end, limit=200):
                    for row in rows:
                        batch = chunk.decode(row.body)
                        here = times(batch)
                        found.append(take(batch, np.flatnonzero((here >= low) & (here <= high))))
                    after = rows[-1].pub_to
        finally:
            reader.close()
        return concat(found)

    def store(self, stream: str, outcome: sampler.Backfilled, new: Batch) -> Future[Any]:
        """Store rows that were found for a gap and close it, as one."""
        counters = self._ingest.counters

        def count(stored: Future[Any]) -> None:  # in the ingest thread, and once
            if stored.exception() is None:
                counters.recovered_rows += len(new)
                self._ingest.before.pop(outcome.gap.id, None)

        answer = self._ingest.call(partial(self._store, stream, outcome, new))
        answer.add_done_callback(count)
        return answer

    def _store(self, stream: str, outcome: sampler.Backfilled, new: Batch, journal: Journal) -> None:
        """Store rows as chunks that share the gap's interval and close it; runs in the ingest thread.

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

    def _open_gaps(self, stream: str) -> list[Gap]:
        """Return gaps that nobody has tried to fill, or not to the end; runs in a thread."""
        reader = JournalReader.open(self._path)
        try:
            return [g for g in reader.gaps(open_only=True) if g.stream == stream and g.end is not None]
        finally:
            reader.close()


def _earliest(rows: Batch, handles: Handles) -> Ticks:
    """Return the earliest time that rows have of each tag, NEVER where they have none."""
    at, when = np.searchsorted(handles, rows.handle), times(rows)
    usable = (when > 0) & (handles[np.minimum(at, len(handles) - 1)] == rows.handle)
    found = np.full(len(handles), NEVER)
    np.minimum.at(found, at[usable], when[usable])
    return found


def verdict(gap: Gap, asked: Question, rows: int, *, without: int, failed: int, is_all: bool) -> sampler.Backfilled:
    """Return how a gap ends.

    Args:
        gap: The gap.
        asked: With what its answers have proved.
        rows: In the answers.
        without: Tags that keep no history, or not for us.
        failed: Tags whose history could not be read to its end.
        is_all: No limit cut it off.
    """
    complete = is_all and not without and not failed and not asked.unproved
    why = f"{rows} samples in the server's history; {without} tags without, {failed} failed"
    if asked.unproved > without + failed:
        why += f", {asked.unproved - without - failed} where it does not reach what is known around the gap"
    return sampler.Backfilled(gap, complete, why)
