"""What must hold in the end: the server's samples, the journal and the bucket compared with each other.

The truth is the server's: every sample it took, with the publish time at which it was due. Times are
compared as the gateway can know them: messages of one publish time are told apart by their order, and
what is missing between two messages lies between their intervals, whatever a clock that was set back
unnoticed says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.batch import Batch, concat
from mirror.coverage import Closure, Gap, Grade, IntervalSet, Reason
from mirror.header import Header, public_hex
from mirror.state import State
from mirror.tags import TagTable
from mirror.verify import Report, verify_store
from tests.gateway.boxes import KEY, LAYOUT
from tests.gateway.journals import same
from tests.sim.gateway import Violation, numbers_of

if TYPE_CHECKING:
    from tests.sim.server import Sample
    from tests.sim.world import World


@dataclass(frozen=True)
class Landmark:
    """A message whose samples were stored live: when it was made, and where it stands on its timeline."""

    order: int
    timeline: str
    pub_to: int
    first: bool  # of its subscription


@dataclass(frozen=True)
class Place:
    """Where a missing sample belongs: at a publish time, between two messages that were stored."""

    timeline: str
    at: int
    low: int
    high: int

    def overlaps(self, gap: Gap) -> bool:
        assert gap.end is not None
        return gap.start < self.high and gap.end > self.low


def check(world: World) -> None:
    """Raise Violation unless all is as promised."""
    process = world.process
    assert process is not None
    world.observe()
    batches: list[Batch] = []
    tags = TagTable()

    def visit(_header: Header, batch: Batch, table: TagTable) -> None:
        nonlocal tags
        batches.append(batch)
        tags = table

    counters, gaps = process.ingest.counters, process.reader.gaps()
    world.counted = {
        "gaps": len(gaps), "closed by history": sum(g.closed_by is Closure.HISTORY for g in gaps),
        "disk refusals": world.refusals, "recovered": counters.recovered_rows,
        "gaps of a full disk": sum(g.reason is Reason.DISK_FULL for g in gaps),
        "outlived": sum(g.reason is Reason.DISK_FULL and g.closed_by is Closure.REPUBLISH for g in gaps),
    }  # fmt: skip
    known = {row.seq: row.hash for row in process.reader.chain()}
    report = verify_store(world.store, LAYOUT, keys={"a": public_hex(KEY)}, known=known, visit=visit)
    if not report.verified:
        raise Violation(f"I5 verify finds {report.findings}")
    rows = concat(batches)
    pushed = Counter(numbers_of(rows))
    check_once(world, pushed)
    check_ledger(report, gaps)
    check_filled(report)
    check_claims(world, report, pushed)
    fold = State()
    for batch in batches:
        fold.apply(_as_local(batch, tags, process.journal.tags))
    if not same(fold, world.state):
        raise Violation("I4 the bucket's fold is not the journal's")
    if not same(process.journal.state, world.state):
        raise Violation("I4 the state is not the fold of the journal")


def check_once(world: World, pushed: Counter[int]) -> None:
    """What is in the journal is in the bucket just as often; what came live is there once."""
    stored = Counter(n for s in world.stored for n in s.numbers)
    if stored != pushed:
        lost, more = stored - pushed, pushed - stored
        raise Violation(f"I1 journaled and not in the bucket: {dict(lost)}; more often there: {dict(more)}")
    live = Counter(n for s in world.stored if s.origin == "a" for n in s.numbers)
    twice = [n for n, times in live.items() if times > 1]
    if twice:
        raise Violation(f"I1 stored twice: {twice}")


def check_ledger(report: Report, gaps: list[Gap]) -> None:
    """The bucket tells the same gaps as the journal; here, where all is filled or given up, none is open."""
    ours, theirs = {g.id: g for g in gaps}, {g.id: g for g in report.gaps}
    if ours != theirs:
        differ = [(ours.get(i), theirs.get(i)) for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i)]
        raise Violation(f"I9 the ledgers differ (journal, bucket): {differ}")
    silent = [g for g in gaps if g.closed_by is None or (g.closed_by is Closure.LOST and not g.closed_reason)]
    if silent:
        raise Violation(f"I9 gaps without a closure: {silent}")


def check_filled(report: Report) -> None:
    """On each timeline, what is covered and the gaps are disjoint, and nothing lies between them."""
    for stream in {(c.stream, c.timeline) for c in report.claims}:
        covered = IntervalSet(
            (c.start, c.end) for c in report.claims if (c.stream, c.timeline) == stream and c.grade is Grade.COVERED
        )
        gaps = IntervalSet(
            (g.start, g.end or 0) for g in report.gaps if (g.stream, g.timeline) == stream and g.tags is None
        )
        if covered & gaps:
            raise Violation(f"I9 covered and missing: {covered & gaps} on {stream[1]}")
        if covered and len((covered | gaps).gaps()):
            raise Violation(f"I9 neither covered nor a gap: {(covered | gaps).gaps()} on {stream[1]}")


def check_claims(world: World, report: Report, pushed: Counter[int]) -> None:
    """No sample that is missing lies in what is claimed; each one that is missing lies in a gap."""
    landmarks = _landmarks(world)
    covered: dict[str, IntervalSet] = {}
    for claim in report.claims:
        if claim.grade is Grade.COVERED:
            covered[claim.timeline] = covered.get(claim.timeline, IntervalSet()).add(claim.start, claim.end)
    process = world.process
    assert process is not None
    names = process.journal.tags.identities
    for sample in world.server.samples:
        if sample.number in pushed or sample.silent:
            continue
        place = where(sample, landmarks, world.server.steps)
        if place is None:
            continue
        low, high = sorted((sample.server, place.at))
        concerned = [g for g in report.gaps if g.tags is None or names[sample.tag] in g.tags]
        within = [g for g in concerned if g.timeline == place.timeline and g.start < low and high <= (g.end or 0)]
        filled = [g for g in within if g.closed_by is Closure.HISTORY]
        if filled and len(filled) == len(within):  # queues run over again and again: their gaps overlap
            raise Violation(f"I1 {sample} is missing although history filled {filled[0]}")
        around = [g for g in report.gaps if g.timeline == place.timeline and place.overlaps(g)]
        told = sample.dropped and any(g.tags is None or names[sample.tag] in g.tags for g in around)
        if place.at in covered.get(place.timeline, IntervalSet()) and not told:
            raise Violation(f"I9 {sample} is missing at {place}, which is covered; gaps {around}")


def where(sample: Sample, landmarks: list[Landmark], steps: list[int]) -> Place | None:
    """Return where a missing sample belongs; None where nobody can know."""
    at = bisect_left(landmarks, sample.order, key=lambda mark: mark.order)
    before = landmarks[at - 1] if at else None
    after = landmarks[at] if at < len(landmarks) else None
    due = sample.server if sample.due is None else sample.due
    stepped = before is not None and any(before.order < step < sample.order for step in steps)
    if before is not None and after is not None and before.timeline == after.timeline:
        last = after.pub_to - 1 if after.first else after.pub_to
        at = max(min(due, last), before.pub_to + 1)
        return None if stepped else Place(before.timeline, at, before.pub_to, after.pub_to)
    if before is not None and not stepped:
        at = max(due, before.pub_to + 1)
        return Place(before.timeline, at, before.pub_to, at)
    if after is not None and not any(sample.order < step < after.order for step in steps):
        at = min(due, after.pub_to - 1 if after.first else after.pub_to)
        return Place(after.timeline, at, at - 1, after.pub_to)
    return None


def _landmarks(world: World) -> list[Landmark]:
    samples = world.server.samples
    found = []
    for stored in world.stored:
        sent = samples[stored.numbers[0] - 1].sent
        # One of a number that was given up before is stored right behind what is there, whatever its time.
        is_late = sent is not None and sent.is_anew and stored.pub_to - stored.pub_from == 1
        if stored.origin == "a" and sent is not None and not is_late:
            found.append(Landmark(sent.order, stored.timeline, stored.pub_to, sent.first))
    kept: list[Landmark] = []
    for mark in sorted(found, key=lambda mark: mark.order):
        while kept and kept[-1].timeline == mark.timeline and kept[-1].pub_to > mark.pub_to:
            kept.pop()  # it came late, and stands behind messages that were made after it
        kept.append(mark)
    return kept


def _as_local(batch: Batch, theirs: TagTable, ours: TagTable) -> Batch:
    """Return rows under the journal's handles."""
    handles = [ours.find(identity) for identity in theirs.identities]
    columns = {name: getattr(batch, name) for name in Batch.__slots__}
    columns["handle"] = batch.handle.copy()
    columns["handle"][:] = [handles[h] for h in batch.handle.tolist()]
    return Batch(**columns)
