"""When to seal a segment, and what goes into it.

A segment is sealed as soon as a full one can be filled, and otherwise by age. The age adapts: fresh
data is worth a request while there are requests to spare, and the day's budget is a bucket of tokens
that fills evenly. A slow store is not given more small segments than it can take. Full segments are
always sent, one after the other: that is how a backlog drains, and it costs the fewest requests for
its rows. A stream that is silent still says so, at the longest interval.

What goes in is never remembered here: it is the journal's coverage minus the promise of the verified
log (`unpushed`). What this module does not do: read the journal, build or send anything
(`gateway.io.push`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from mirror.coverage import Closure, Coverage, Gap, Grade, IntervalSet, Reason, Settled
from mirror.errors import MirrorError
from mirror.header import Closing

DAY_S = 86_400.0
BURST_S = 3_600.0  # how long the budget may be saved up
IDLE_MEASURE_S = 10.0  # how often the backlog is measured while nothing can be sent
LINK_SHARE = 2.0  # small segments take at most 1 / LINK_SHARE of the time
SMOOTHING = 0.3
FIRST_COST = 2.0  # requests of a segment: the write, and the floor read after it
GAPS_MAX = 1_000  # told in one segment
GAPS_BYTES_MAX = 8 << 20  # of them, with their tags: half of what a header may have


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of sealing.

    Attributes:
        rows_max: Rows of a full segment.
        bytes_max: Journal bytes of a full segment.
        interval_min_s: No partial segment is sealed sooner after the one before.
        interval_max_s: And none later, if there is anything to say.
        requests_per_day: What small segments adapt to.
    """

    rows_max: int = 200_000
    bytes_max: int = 16 << 20
    interval_min_s: float = 1.0
    interval_max_s: float = 60.0
    requests_per_day: int = 20_000


@dataclass(frozen=True, slots=True)
class Status:
    """How pushing goes.

    Attributes:
        state: `starting`, `following`, `leading`, `fenced`, `refused` or `stopped`.
        epoch: Under which it leads, or would.
        seq: Next segment.
        backlog_rows, backlog_bytes: Journaled and not promised, as measured last.
        interval_s: Present age limit of a partial segment.
        segments, rows, size_bytes, requests: Since the start of the process.
        pushed_at: Clock reading of the last accepted segment; None before the first.
        error: What is wrong now; None if nothing is.
    """

    state: str = "starting"
    epoch: int = 0
    seq: int = 0
    backlog_rows: int = 0
    backlog_bytes: int = 0
    interval_s: float = 0.0
    segments: int = 0
    rows: int = 0
    size_bytes: int = 0
    requests: int = 0
    pushed_at: float | None = None
    error: MirrorError | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The fence stands: segments may be sent."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing may be sent."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Answer to Measure: what is journaled and not promised."""

    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Answer to Seal: it is in the log."""

    took_s: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """Answer to Seal: there was nothing to say, or what was sent is not in the log."""

    nothing: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests were made; answered by nothing."""

    requests: int


Event = Opened | Closed | Tick | Measured | Accepted | Dropped | Spent


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure the backlog."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Build a segment and offer it to the log."""


Effect = Measure | Seal


class Sync:
    """The machine that decides when to seal.

    Attributes:
        wake_at: When to send `Tick`.
        backlog: As measured last.
    """

    def __init__(self, policy: Policy, now: float) -> None:
        self.policy = policy
        self.wake_at: float = now
        self.backlog = Measured(0, 0)
        self._open = self._busy = self._asked = False
        self._sealed_at = -math.inf
        self._per_s = policy.requests_per_day / DAY_S
        self._tokens = self._tokens_max = BURST_S * self._per_s
        self._refilled_at = now
        self._since_seal = 0
        self._cost = FIRST_COST
        self._took_s = 0.0

    @property
    def interval_s(self) -> float:
        """How old what is unsent may become before a partial segment is sealed."""
        p = self.policy
        steady = self._cost / self._per_s
        wanted = p.interval_min_s
        if steady > wanted:
            wanted += (1.0 - self._tokens / self._tokens_max) * (steady - wanted)
        return min(max(wanted, p.interval_min_s, LINK_SHARE * self._took_s), p.interval_max_s)

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what is to be done."""
        self._refill(now)
        match event:
            case Opened():
                self._open, self._busy, self.wake_at = True, False, now
            case Closed():
                self._open, self._busy = False, False
            case Spent(requests):
                self._tokens -= requests
                self._since_seal += requests
                return []
            case Accepted(took_s):
                assert self._busy
                self._busy = False
                self._took_s += SMOOTHING * (took_s - self._took_s)
                self._cost += SMOOTHING * (self._since_seal - self._cost)
                self.wake_at = now if self._is_full() else now + self.policy.interval_min_s
            case Dropped(nothing):
                assert self._busy
                self._busy = False
                self.wake_at = now + self.policy.interval_min_s if nothing else now
            case Measured():
                return self._measured(event, now)
            case Tick():
                pass
        return self._ask(now)

    def _ask(self, now: float) -> list[Effect]:
        if self._asked or now < self.wake_at:
            return []
        self._asked, self.wake_at = True, math.inf
        return [Measure()]

    def _measured(self, event: Measured, now: float) -> list[Effect]:
        self.backlog, self._asked = event, False
        if self._busy or not self._open:
            self.wake_at = now + IDLE_MEASURE_S
            return []
        due = self._due()
        if self._is_full() or now >= due:
            self._busy, self._sealed_at, self._since_seal, self.wake_at = True, now, 0, now + IDLE_MEASURE_S
            return [Seal()]
        self.wake_at = min(due, now + self.policy.interval_min_s)
        return []

    def _is_full(self) -> bool:
        return self.backlog.rows >= self.policy.rows_max or self.backlog.size_bytes >= self.policy.bytes_max

    def _due(self) -> float:
        """When a partial segment is due; where no row waits there is only coverage to tell, at leisure."""
        return self._sealed_at + (self.interval_s if self.backlog.rows else self.policy.interval_max_s)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._tokens_max, self._tokens + (now - self._refilled_at) * self._per_s)
        self._refilled_at = now


class Part(NamedTuple):
    """A piece of coverage that the log lacks; without `rows` only the claim is missing."""

    claim: Coverage
    rows: bool


def unpushed(coverage: Iterable[Coverage], settled: Settled, gaps: Iterable[Gap] = ()) -> list[Part]:
    """Return what the journal claims and the log does not, oldest first.

    Rows that the log already holds under a weaker grade are not sent again: the claim alone is. What another replica
    has claimed as complete is left out, but for a guard at the ends.

    Args:
        coverage: The journal's.
        settled: By the verified log.
        gaps: Where one of them says that a chunk cannot be decoded any more, what is left counts as held.
    """
    damaged: dict[tuple[str, str], IntervalSet] = {}
    for gap in gaps:
        if gap.reason is Reason.UNDECODABLE and gap.tags is None and gap.end is not None:
            key = (gap.stream, gap.timeline)
            damaged[key] = damaged.get(key, IntervalSet()).add(gap.start, gap.end)
    parts: list[Part] = []
    for claim in coverage:
        promise = settled.promise
        pushed = promise[claim.key]
        whole = IntervalSet([(claim.start, claim.end)]) - settled.elsewhere(claim.key)
        bad = damaged.get((claim.stream, claim.timeline), IntervalSet()) & whole
        parts += [Part(_cut(claim, start, end, Grade.HELD), True) for start, end in bad - pushed]
        missing = whole - bad - promise.claimed(claim.key, claim.grade)
        parts += [Part(_cut(claim, start, end), True) for start, end in missing - pushed]
        if claim.grade is not Grade.HELD:
            parts += [Part(_cut(claim, start, end), False) for start, end in missing & pushed]
    return sorted(parts, key=lambda part: (part.claim.start, part.claim))


def untold(gaps: Iterable[Gap], told: Mapping[str, str]) -> tuple[list[Gap], list[Closing]]:
    """Return the gaps and closures that the log does not know, at most GAPS_MAX of each, oldest first.

    A gap that concerns too many tags for any header is told as one of all tags.

    Args:
        gaps: The journal's ledger.
        told: Gap id -> its extent as the log knows it, or `closed` (`mirror.prefix.Saved.told`).
    """
    new: list[Gap] = []
    closed: list[Closing] = []
    room = GAPS_BYTES_MAX
    for gap in gaps:
        known = told.get(gap.id)
        if known == "closed" or len(new) >= GAPS_MAX or len(closed) >= GAPS_MAX:
            continue
        if known != gap.extent:
            telling = msgspec.structs.replace(gap, closed_by=None, closed_reason="")
            size = len(msgspec.json.encode(telling))
            if size > GAPS_BYTES_MAX:
                telling, size = msgspec.structs.replace(telling, tags=None), 0
            if size > room:
                break
            if known != telling.extent:
                new.append(telling)
                room -= size
        if gap.closed_by is not None:
            closed.append(Closing(gap.id, Closure(gap.closed_by), gap.closed_reason, gap.end))
    return new, closed


def _cut(claim: Coverage, start: int, end: int, grade: Grade | None = None) -> Coverage:
    return Coverage(claim.stream, claim.timeline, start, end, claim.origin, grade or claim.grade)
