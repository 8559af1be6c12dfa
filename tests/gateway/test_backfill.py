"""Filling gaps: what a historian sends becomes rows and a closing, within limits, by whatever clock."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from gateway.io import backfill
from gateway.io.backfill import Backfiller
from gateway.io.opcua import Connection
from gateway.io.reader import JournalReader
from gateway.plan import Item, Plan
from gateway.sampler import Subscribed
from mirror.batch import Batch, Heap, Kind
from mirror.coverage import Closure, Coverage, Gap, Grade, Reason, Stream, StreamSpec
from mirror.tags import Tag
from tests.gateway.publish_bytes import double, item
from tests.gateway.test_ingest import STREAM, WAIT_S, Rig, T
from tests.gateway.test_ingest_faults import Refusing

TAGS = [Tag("urn:plc", "urn:ns", f"s={n}", path=f"P/{n}", device="d", name=str(n)) for n in range(2)]
S = 10_000_000
OUTAGE = [T + n * S // 10 for n in range(-2, 603)]  # when samples are taken, ten a second, for a minute and a bit


class Plant(Plan):
    """A plan under the name of the rig's stream."""

    @property
    def id(self) -> str:
        return STREAM


PLAN = Plant(100.0, tuple(Item(tag, 100.0, 10) for tag in TAGS), StreamSpec("urn:plc", 100.0, ()))


class Historian:
    """Keeps samples of both tags; stands where the connection to a server stands.

    Args:
        times: Source times of each tag's samples.
        text: Bytes of a String as their value; Doubles otherwise.
    """

    def __init__(self, times: Sequence[int], text: int = 0) -> None:
        self.times, self.text, self.calls, self.pages = np.array(times, np.int64), text, 0, 0

    async def has_history(self, tags: Sequence[tuple[int, Tag]]) -> list[int]:
        return [handle for handle, _ in tags]

    async def history(self, tags: Any, start: int, end: int, failed: dict[int, int]) -> AsyncIterator[Batch]:
        self.calls += 1
        inside = self.times[(self.times >= start) & (self.times <= end)]
        for handle, _ in tags:
            for at in range(0, len(inside), 10):
                self.pages += 1
                yield self.page(handle, inside[at : at + 10])

    def page(self, handle: int, times: Any) -> Batch:
        batch = Batch.zeros(len(times))
        batch.handle[:], batch.source_ticks[:] = handle, times
        if not self.text:
            batch.kind[:] = Kind.DOUBLE
            batch.bits[:] = times.astype(np.float64).view(np.uint64)
            return batch
        batch.kind[:], batch.bits[:] = Kind.STRING, np.arange(len(times))
        return replace(batch, heap=Heap.of([struct.pack("<i", self.text) + b"x" * self.text] * len(times)))


def outage(rig: Rig, *, behind: int = 0, is_static: bool = False) -> Gap:
    """Lose the subscription for a minute: of each tag the sample before is known, and the first one after."""
    before, after = (t - behind for t in (T - S // 10, T + 60 * S))
    rig.send(1, *(item(h, double(float(before)), source=before) for h in range(2)), ticks=T)
    rig.ingest.event(STREAM, Subscribed(8, 1, resumed=False, reason=Reason.DISCONNECTED))
    last = before if is_static else after
    rig.send(1, *(item(h, double(float(last)), source=last) for h in range(2)), ticks=T + 60 * S + 5)
    rig.acknowledged(2)
    [gap] = rig.gaps()
    return gap


def filler_of(rig: Rig) -> Backfiller:
    return Backfiller(rig.ingest, rig.path, enabled=True, on_rows=lambda rows: None)


def fill(rig: Rig, historian: Historian, gap: Gap) -> Gap:
    asyncio.run(filler_of(rig)._fill(cast(Connection, historian), PLAN, gap, is_last=True))
    [closed] = rig.gaps()
    return closed


def claimed(rig: Rig, gap: Gap) -> list[Grade]:
    reader = JournalReader.open(rig.path)
    try:
        return [claim.grade for claim in reader.coverage() if claim.origin == f"a/history/{gap.id}"]
    finally:
        reader.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.mark.parametrize("behind_s", [0, 300, 86_400, -20])
def test_a_gap_is_filled_whatever_the_source_s_clock_shows(rig: Rig, behind_s: int) -> None:
    gap = outage(rig, behind=behind_s * S)
    times = [t - behind_s * S for t in OUTAGE]
    closed = fill(rig, Historian(times), gap)
    assert closed.closed_by is Closure.HISTORY, closed.closed_reason
    assert claimed(rig, gap) == [Grade.HISTORY]
    rows = rig.rows()
    for handle in range(2):
        found = rows.source_ticks[rows.handle == handle]
        assert set(times[1:-2]) <= set(found.tolist()) and len(set(found.tolist())) == len(found)


@pytest.mark.parametrize(
    ("times", "rows"),
    [([], 0), ([t - 300 * S for t in OUTAGE], 0), (OUTAGE[300:], 301), (OUTAGE[:300], 298)],
    ids=["empty", "of another clock", "forgets", "behind"],
)
def test_a_historian_that_does_not_reach_what_is_known_on_both_sides_has_not_told_all(
    rig: Rig, times: list[int], rows: int
) -> None:
    gap = outage(rig)
    closed = fill(rig, Historian(times), gap)
    assert closed.closed_by is Closure.LOST and "2 where it does not reach" in closed.closed_reason
    assert claimed(rig, gap) == [Grade.HELD] * (rows > 0), "what it has told is kept"
    kept = rig.rows().handle.tolist().count(0) - 2
    assert rows <= kept <= rows + 3


def test_what_has_not_changed_is_not_asked_for(rig: Rig) -> None:
    gap, historian = outage(rig, is_static=True), Historian([])
    assert fill(rig, historian, gap).closed_by is Closure.HISTORY
    assert historian.calls == 0


def test_a_historian_that_is_behind_is_asked_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "RETRY_S", 0.0)
    gap = outage(rig)

    class Slow(Historian):
        async def has_history(self, tags: Sequence[tuple[int, Tag]]) -> list[int]:
            self.times = np.array(OUTAGE[: 200 * (self.calls + 1)] if self.calls < 2 else OUTAGE, np.int64)
            return await super().has_history(tags)

    async def run() -> None:
        filler = Backfiller(rig.ingest, rig.path, enabled=True, on_rows=lambda rows: closed.set())
        filler.add(STREAM, gap)
        running = asyncio.create_task(filler.run(cast(Connection, slow), {STREAM: PLAN}))
        await asyncio.wait_for(closed.wait(), WAIT_S)
        running.cancel()

    closed, slow = asyncio.Event(), Slow([])
    asyncio.run(run())
    assert rig.gaps()[0].closed_by is Closure.HISTORY and slow.calls == 3


def test_rows_that_only_history_knows_prove_nothing_about_the_next_gap(rig: Rig) -> None:
    """The newest time known before a gap counts if it came live: what history told may have holes before it."""
    gap = outage(rig)
    told = T + 61 * S  # of the first gap's historian, and never live
    assert fill(rig, Historian([*OUTAGE[300:], told]), gap).closed_by is Closure.LOST
    rig.ingest.event(STREAM, Subscribed(9, 1, resumed=False, reason=Reason.DISCONNECTED))
    rig.send(1, *(item(h, double(1.0), source=T + 120 * S) for h in range(2)), ticks=T + 120 * S)
    rig.acknowledged(1)
    asked = filler_of(rig).question(PLAN, rig.gaps()[1])
    for handle in range(2):
        asked.take(Historian([]).page(handle, np.array([told, T + 120 * S])))
    assert asked.unproved == 2


@pytest.mark.parametrize("limit", ["ROWS_MAX", "HEAP_BYTES_MAX"])
def test_a_history_beyond_any_segment_is_kept_in_part_and_never_called_complete(
    rig: Rig, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a gap shares one publish time, so all of it stands in one segment."""
    monkeypatch.setattr(backfill, limit, {"ROWS_MAX": 25, "HEAP_BYTES_MAX": 2_500}[limit])
    gap, historian = outage(rig), Historian(OUTAGE, text=100)
    assert fill(rig, historian, gap).closed_by is Closure.LOST
    assert historian.pages == 3 and len(rig.rows()) == 4 + 30


def test_what_is_recovered_is_counted_once_however_often_it_is_tried(tmp_path: Path) -> None:
    rig = Rig(tmp_path, journal=Refusing, is_stepped=True)
    assert isinstance(rig.journal, Refusing)
    gap = Gap.opened(STREAM, "1-1", T, Reason.DISCONNECTED, end=T + S)
    rig.do(lambda journal: journal.open_gap(gap))
    filler = filler_of(rig)
    outcome = backfill.verdict(gap, filler.question(PLAN, gap), 3, without=0, failed=0, is_all=True)
    stored = filler.store(STREAM, outcome, Historian([]).page(0, np.array([T, T + 1, T + 2])))
    rig.journal.refuses = True
    for _ in range(5):
        assert not rig.ingest.turn()
    rig.journal.refuses = False
    assert rig.ingest.turn() and stored.done() and rig.ingest.counters.recovered_rows == 3
    rig.close()


def run(rig: Rig, historian: Historian, gap: Gap, **how: Any) -> Gap:
    """Let a filler of a group with peers deal with a gap to its end."""
    filler = Backfiller(rig.ingest, rig.path, enabled=True, on_rows=lambda rows: None, peers=True)

    async def work() -> Gap:
        filler.add(STREAM, gap)
        running = asyncio.create_task(filler.run(cast(Connection, historian), {STREAM: PLAN}))
        while (found := rig.gaps()[0]).closed_by is None:
            await asyncio.sleep(0.01)
        running.cancel()
        return found

    return asyncio.run(asyncio.wait_for(work(), 20))


def pushed_by(rig: Rig, replica: str, gap: Gap, *, short: int = 0) -> None:
    assert gap.end is not None
    around = Coverage(STREAM, gap.timeline, gap.start - 60 * S, gap.end + 60 * S - short, replica)
    rig.do(lambda journal: journal.save_stream(Stream(STREAM, "urn:plc", revised_publishing_ms=100.0)))
    rig.do(lambda journal: journal.follow_log("log", [around]))


def test_what_another_replica_has_pushed_is_not_asked_of_the_server(rig: Rig) -> None:
    gap = outage(rig)
    pushed_by(rig, "b", gap)
    historian = Historian([T + S * n for n in range(61)])
    closed = run(rig, historian, gap)
    assert (closed.closed_by, historian.calls) == (Closure.REPLICA, 0)


@pytest.mark.parametrize(("replica", "short"), [("b", 61 * S), ("a", 0)])
def test_what_no_other_replica_holds_to_its_end_is_asked_of_the_server(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, replica: str, short: int
) -> None:
    monkeypatch.setattr(backfill, "PEER_LOOK_S", 0.01)
    gap = outage(rig)
    pushed_by(rig, replica, gap, short=short)
    historian = Historian([T + S * n for n in range(-1, 62)])
    closed = run(rig, historian, gap)
    assert closed.closed_by is Closure.HISTORY
    assert historian.calls
