"""What is known complete, and what is missing: intervals of the server's publish time.

A server's samples for one subscription lie on one axis, the publish time of its messages. Coverage
states an interval of that axis for which a replica holds everything that was published; the rest of
the axis, between the first thing covered and the newest thing known, is a gap. Completeness is thus a
claim with a beginning and an end, never a guess from the newest sample.

Every interval is half-open, `(start, end]`: the message published at `end` is in, the one at `start`
belongs to the interval before. Two intervals that touch are one; intervals of two streams or of two
timelines never meet, because they are kept under different keys.

What this module does not do: decide when an interval may grow (`gateway.sampler`), or store it.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple, Protocol, Self

import msgspec


class Interval(NamedTuple):
    """Publish times `t` with `start < t <= end`, in ticks; empty when `end <= start`."""

    start: int
    end: int


class IntervalSet:
    """An immutable set of publish times as disjoint intervals, in order, with a hole between any two.

    Sets are equal when they hold the same times, however they were put together.
    """

    __slots__ = ("intervals",)

    intervals: tuple[Interval, ...]

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[Interval] = []
        for start, end in sorted(intervals):
            if end <= start:
                continue
            if merged and start <= merged[-1].end:
                if end > merged[-1].end:
                    merged[-1] = Interval(merged[-1].start, end)
            else:
                merged.append(Interval(start, end))
        self.intervals = tuple(merged)

    def __iter__(self) -> Iterator[Interval]:
        return iter(self.intervals)

    def __len__(self) -> int:
        return len(self.intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self.intervals == other.intervals

    def __hash__(self) -> int:
        return hash(self.intervals)

    def __repr__(self) -> str:
        return f"IntervalSet([{', '.join(f'({i.start}, {i.end}]' for i in self.intervals)}])"

    def __or__(self, other: IntervalSet) -> IntervalSet:
        """Return the times in either set."""
        if not other.intervals:
            return self
        return IntervalSet((*self.intervals, *other.intervals))

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        """Return the times in this set and not in the other."""
        left: list[Interval] = []
        holes = other.intervals
        for start, end in self.intervals:
            done = start
            at = bisect_left(holes, start, key=lambda hole: hole.end)
            while at < len(holes) and holes[at].start < end:
                left.append(Interval(done, holes[at].start))
                done = holes[at].end
                at += 1
            left.append(Interval(done, end))
        return IntervalSet(left)

    def __and__(self, other: IntervalSet) -> IntervalSet:
        """Return the times in both sets."""
        return self - (self - other)

    def __contains__(self, time: int) -> bool:
        return self.covers(time - 1, time)

    def add(self, start: int, end: int) -> IntervalSet:
        """Return the set with `(start, end]` in it; cheap when it lengthens the last interval."""
        if end <= start:
            return self
        last = self.intervals[-1] if self.intervals else None
        if last is not None and start < last.start:
            return IntervalSet((*self.intervals, Interval(start, end)))
        grown = IntervalSet()
        if last is None or start > last.end:
            grown.intervals = (*self.intervals, Interval(start, end))
        else:
            grown.intervals = (*self.intervals[:-1], Interval(last.start, max(last.end, end)))
        return grown

    def inner(self, margin: int) -> IntervalSet:
        """Return the times that are further than `margin` from the ends of their interval."""
        return IntervalSet((start + margin, end - margin) for start, end in self.intervals)

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of `(start, end]` is in the set; True for an empty interval."""
        if end <= start:
            return True
        at = bisect_left(self.intervals, end, key=lambda interval: interval.end)
        return at < len(self.intervals) and self.intervals[at].start <= start

    def gaps(self, up_to: int | None = None) -> IntervalSet:
        """Return the holes from the first time in the set to its last one, or to `up_to` if that is later."""
        if not self.intervals:
            return IntervalSet()
        end = self.intervals[-1].end if up_to is None else max(up_to, self.intervals[-1].end)
        return IntervalSet([(self.intervals[0].start, end)]) - self


GUARD_MS_MIN, GUARD_MS_MAX = 100.0, 3_600_000.0


class _Word(StrEnum):
    """Words for people: one that a later program added is carried as it stands, never refused."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word


class Reason(_Word):
    """Why an interval is not covered."""

    OVERFLOW = "overflow"  # the server's queue for a tag ran over and it said so
    MISSED = "missed"  # a sequence number never came and could not be republished
    DISCONNECTED = "disconnected"
    SERVER_RESTART = "server_restart"
    GATEWAY_DOWN = "gateway_down"
    CLOCK_BACK = "clock_back"  # the server's publish time went back
    DISK_FULL = "disk_full"
    SLOW_STORE = "slow_store"
    UNDECODABLE = "undecodable"
    NODE_GONE = "node_gone"
    MISMATCH = "mismatch"  # a device, when it was read, said something else than the mirror held
    MUTE = "mute"  # keep-alives came, and the server's own clock, which is monitored too, no longer did
    DAMAGED = "damaged"  # the local file was damaged before the bucket had it
    QUEUE_UNKNOWN = "queue_unknown"  # the server cannot tell whether its queue ran over


class Closure(_Word):
    """How a gap ended."""

    REPUBLISH = "republish"
    REPLICA = "replica"
    HISTORY = "history"
    LOST = "lost"


class Axis(_Word):
    """Which time stamp of a server's messages carries the publish time."""

    PUBLISH = "publish"  # NotificationMessage.PublishTime
    RESPONSE = "response"  # the response header's Timestamp, where PublishTime is null
    NONE = "none"  # both null: the stream has no coverage


class Grade(StrEnum):
    """What an interval in a segment claims. Others are refused: nobody may count as complete what he cannot read."""

    COVERED = "covered"  # everything that the server published
    HELD = "held"  # these rows are in the log, but there may be more: pushed, not complete
    HISTORY = "history"  # as complete as the server's historian


class StreamItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One monitored item as configured: the tag's identity and what decides which samples it yields."""

    tag: str
    sampling_ms: float
    queue_size: int
    filter: str = ""


class StreamSpec(msgspec.Struct, frozen=True):
    """A subscription's configuration; a change of any part makes another stream."""

    source: str
    publishing_ms: float
    items: tuple[StreamItem, ...]

    @property
    def id(self) -> str:
        """16 hex digits, the same for the same configuration on every replica, whatever the order of items."""
        spec = [self.source, float(self.publishing_ms), [_item_key(i) for i in sorted(self.items, key=lambda i: i.tag)]]
        return hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:16]


class Stream(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the server made of a `StreamSpec`, and what its coverage can therefore promise.

    Attributes:
        id: `StreamSpec.id`.
        source: ApplicationUri of the server.
        axis: Where the publish time is read.
        revised_publishing_ms: As answered by CreateSubscription.
        revised_queue_size: The smallest of the monitored items.
        overflow_detectable: False where the server never says that a queue ran over: coverage then
            promises every notification, not every sample.
        revised_sampling_ms: The longest of the monitored items.
    """

    id: str
    source: str
    axis: Axis = Axis.PUBLISH
    revised_publishing_ms: float = 0.0
    revised_queue_size: int = 0
    overflow_detectable: bool = True
    revised_sampling_ms: float = 0.0

    def __post_init__(self) -> None:
        # A server may answer with any Double, and JSON knows no NaN: a header with one could not be read again.
        for name in ("revised_publishing_ms", "revised_sampling_ms"):
            if not math.isfinite(getattr(self, name)):
                msgspec.structs.force_setattr(self, name, 0.0)

    @property
    def guard_ticks(self) -> int:
        """How far from the ends of another replica's coverage ours may be trusted to be the same.

        Two subscriptions of one server are out of phase: what one sampled and published by a time, the other may
        have published later, by a publishing and a sampling interval at the most. An answer that is no time is
        bounded by what a subscription can usefully have.
        """
        ms = max(0.0, self.revised_publishing_ms) + max(0.0, self.revised_sampling_ms)
        return int(min(max(ms, GUARD_MS_MIN), GUARD_MS_MAX) * 10_000)


class Coverage(msgspec.Struct, frozen=True, order=True):
    """A claim over `(start, end]` of one stream and timeline.

    Attributes:
        stream: `Stream.id`.
        timeline: `<StartTime ticks>-<break ticks>`: the server's start, and the publish time at which
            this timeline began; see `timeline_name`.
        start: Ticks.
        end: Ticks, more than `start`.
        origin: Name of the replica whose subscription yielded the rows; `<name>/history/<gap id>` for
            rows that were read back from the server's historian.
        grade: What is claimed.
    """

    stream: str
    timeline: str
    start: int
    end: int
    origin: str
    grade: Grade = Grade.COVERED

    @property
    def key(self) -> Key:
        """Stream, timeline and origin: intervals under different keys never merge."""
        return Key(self.stream, self.timeline, self.origin)


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """A hole in what is known, from its discovery to its closing.

    Attributes:
        id: See `Gap.opened`; the same whenever the same hole is found again.
        stream: `Stream.id`.
        timeline: As in `Coverage`.
        start: Last publish time before the hole.
        reason: Why.
        end: First publish time from which all is well again; None while the hole lasts.
        tags: Identities of the tags concerned; None for all tags of the stream.
        closed_by: None while it is open.
        closed_reason: More about the closure, such as `retention` beside LOST.
    """

    id: str
    stream: str
    timeline: str
    start: int
    reason: Reason
    end: int | None = None
    tags: list[str] | None = None
    closed_by: Closure | None = None
    closed_reason: str = ""

    @property
    def extent(self) -> str:
        """Return what differs when the same gap has become longer or concerns more tags."""
        return "open" if self.end is None else f"{self.end} {'all' if self.tags is None else len(self.tags)}"

    @staticmethod
    def opened(
        stream: str,
        timeline: str,
        start: int,
        reason: Reason,
        *,
        end: int | None = None,
        tags: list[str] | None = None,
        found: int | None = None,
    ) -> Gap:
        """Return an open gap with its deterministic id: 16 hex digits over stream, timeline, start, reason, tags.

        Args:
            stream, timeline, start, reason, end, tags: As in the gap.
            found: A publish time that tells it from an earlier, closed one that began alike; part of the id.
        """
        tags = None if tags is None else sorted(tags)
        name = msgspec.json.encode([stream, timeline, start, reason, tags] + ([] if found is None else [found]))
        return Gap(hashlib.sha256(name).hexdigest()[:16], stream, timeline, start, reason, end, tags)


class Key(NamedTuple):
    """Where an interval belongs."""

    stream: str
    timeline: str
    origin: str


class Promise:
    """What the verified log holds, by stream, timeline and origin.

    Two questions are answered: whether rows were pushed (any grade, by origin), and what is complete
    (grades COVERED and HISTORY, whoever pushed it).
    """

    def __init__(self, claims: Iterable[Coverage] = ()) -> None:
        self._by_grade: dict[tuple[Key, Grade], IntervalSet] = {}
        for claim in claims:
            self.add(claim)

    def __getitem__(self, key: tuple[str, str, str]) -> IntervalSet:
        """Return the pushed publish times of a stream, timeline and origin; empty if there are none."""
        pushed = _EMPTY
        for grade in Grade:
            pushed = pushed | self._by_grade.get((Key(*key), grade), _EMPTY)
        return pushed

    def elsewhere(self, key: tuple[str, str, str]) -> IntervalSet:
        """Return the publish times that other replicas than the origin's have claimed as complete."""
        found, replica = _EMPTY, key[2].partition("/")[0]
        for (of, grade), intervals in self._by_grade.items():
            is_other = of[:2] == tuple(key[:2]) and of.origin.partition("/")[0] != replica
            if is_other and grade is not Grade.HELD:
                found = found | intervals
        return found

    def claimed(self, key: tuple[str, str, str], grade: Grade) -> IntervalSet:
        """Return the publish times that were claimed under one grade."""
        return self._by_grade.get((Key(*key), grade), _EMPTY)

    def keys(self) -> set[Key]:
        """Return every stream, timeline and origin of which something was pushed."""
        return {key for key, _ in self._by_grade}

    def add(self, claim: Coverage) -> None:
        """Take a segment's claim in."""
        at = (claim.key, claim.grade)
        self._by_grade[at] = self._by_grade.get(at, _EMPTY).add(claim.start, claim.end)

    def subtract(self, claim: Coverage) -> None:
        """Take a claim out, because the segment that made it was found rotten."""
        for grade in Grade:
            at = (claim.key, grade)
            if at in self._by_grade:
                left = self._by_grade[at] - IntervalSet([(claim.start, claim.end)])
                if len(left):
                    self._by_grade[at] = left
                else:
                    del self._by_grade[at]

    def complete(self, stream: str, timeline: str) -> IntervalSet:
        """Return the publish times of which the log holds everything."""
        known = _EMPTY
        for (key, grade), intervals in self._by_grade.items():
            if key.stream == stream and key.timeline == timeline and grade is not Grade.HELD:
                known = known | intervals
        return known

    def timelines(self, stream: str) -> list[str]:
        """Return a stream's timelines, oldest first."""
        return sorted({key.timeline for key in self.keys() if key.stream == stream}, key=timeline_order)

    def claims(self) -> list[Coverage]:
        """Return the fewest claims that say the same, in a fixed order."""
        return sorted(
            Coverage(key.stream, key.timeline, interval.start, interval.end, key.origin, grade)
            for (key, grade), intervals in self._by_grade.items()
            for interval in intervals
        )


class Pushed(Protocol):
    """Says which publish times need not be pushed any more."""

    def __getitem__(self, key: tuple[str, str, str]) -> IntervalSet:
        """Return those of a stream, timeline and origin."""
        ...


class Settled:
    """What need not be pushed any more: what was pushed, and what others hold, but for a guard at the ends.

    Args:
        promise: Of the verified log.
        streams: Their guards; a stream that is not among them has the longest.
    """

    def __init__(self, promise: Promise, streams: Iterable[Stream]) -> None:
        self.promise = promise
        self._guards = {stream.id: stream.guard_ticks for stream in streams}

    def __getitem__(self, key: tuple[str, str, str]) -> IntervalSet:
        """Return the publish times of a stream, timeline and origin."""
        return self.promise[key] | self.elsewhere(key)

    def elsewhere(self, key: tuple[str, str, str]) -> IntervalSet:
        """Return those that others hold."""
        found = self.promise.elsewhere(key)
        return found.inner(self._guards.get(key[0], int(GUARD_MS_MAX * 10_000))) if found.intervals else found


def timeline_name(start_ticks: int, break_ticks: int) -> str:
    """Name a timeline by the server's StartTime and the publish time at which it began."""
    return f"{start_ticks}-{break_ticks}"


def timeline_order(timeline: str) -> tuple[int, int, str]:
    """Return a sort key: by the server's start, then by the break; names of another form come first."""
    start, _, at = timeline.partition("-")
    if start.isdecimal() and at.isdecimal():
        return int(start), int(at), timeline
    return -1, -1, timeline


def _item_key(item: StreamItem) -> list[object]:
    return [item.tag, float(item.sampling_ms), item.queue_size, item.filter]


_EMPTY = IntervalSet()
