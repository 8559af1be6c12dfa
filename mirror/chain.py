"""The log of a group: a chain of numbered segments, appended by one leader at a time.

The log needs no trust in who leads. Segments have numbers for names, a name can be created once, and
each header carries the hash of the one before. A new leader first appends an empty segment of its own,
higher epoch, the fence: from then on a predecessor's late write finds its name taken. One write is in
flight at a time. Every answer but a plain success means "unknown", and is settled by reading back what
stands under that name. After a success the floor is read again, since a name below it may have been
freed by clean-up, and a late write may then "win" a name that no longer means anything.

`Chain` is the machine that lengthens the verified prefix (`mirror.prefix`): `step(event, now)` returns
effects, each request is answered by exactly one event, and `wake_at` says when to send a `Wake`. Bodies
are opaque here.

What this module does not do: talk to a store (`gateway.io.push`), choose what to push (`gateway.sync`),
or read the samples of a segment (`mirror.verify`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror.floor import Known
from mirror.header import Finding, Flaw, Header, chain_hash, examine, public_hex, sign
from mirror.prefix import Prefix, Saved

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 30.0

_HINTS = {
    Flaw.FOREIGN: "somebody else's log stands there: set another group.name or prefix, or enrol this replica's key",
    Flaw.NEWER: "update edgemirror on this replica",
}


# Events. Each request among the effects is answered by exactly one of them, or by `Away`.


@dataclass(frozen=True, slots=True)
class Start:
    """Read the log to its end."""


@dataclass(frozen=True, slots=True)
class Wake:
    """`wake_at` has come, or, `early`, a sign that what was away answers again."""

    early: bool = False


@dataclass(frozen=True, slots=True)
class Lead:
    """Begin to lead under an epoch that is durable here. `fence` is an empty draft."""

    epoch: int
    incarnation: str
    fence: Header


@dataclass(frozen=True, slots=True)
class Offer:
    """Append a segment. The draft lacks only what the chain knows; the body is handed through."""

    draft: Header
    body: Any


@dataclass(frozen=True, slots=True)
class FloorRead:
    """Answer to ReadFloor: what stands in `floor.json`; None if there is no such object."""

    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class SegmentRead:
    """Answer to ReadSegment. `header` is None if there is no such object; `file` as in `Prefix.absorb`."""

    seq: int
    header: bytes | None
    file: str = ""


@dataclass(frozen=True, slots=True)
class SegmentBroken:
    """Answer to ReadSegment: the object is there, but has no readable header."""

    seq: int
    detail: str


@dataclass(frozen=True, slots=True)
class Listed:
    """Answer to ListFrom: the lowest sequence found, None if there is none."""

    seq: int | None


@dataclass(frozen=True, slots=True)
class Written:
    """Answer to Put. `known` is True only for a plain success. `file` is the SHA-256 of the bytes sent."""

    seq: int
    known: bool
    file: str


@dataclass(frozen=True, slots=True)
class Away:
    """Answer to any reading request: none came."""


Event = Start | Wake | Lead | Offer | FloorRead | SegmentRead | SegmentBroken | Listed | Written | Away


# Effects. The first four are requests.


@dataclass(frozen=True, slots=True)
class ReadFloor:
    """Read `floor.json`."""


@dataclass(frozen=True, slots=True)
class ReadSegment:
    """Read the header of a segment."""

    seq: int


@dataclass(frozen=True, slots=True)
class ListFrom:
    """Find the lowest segment whose number is at least `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class Put:
    """Create the segment if its name is free; the same bytes whenever this effect comes again."""

    seq: int
    header: bytes
    body: Any


@dataclass(frozen=True, slots=True)
class Absorbed:
    """The prefix has grown by this segment: record it."""

    header: Header
    hash: str


@dataclass(frozen=True, slots=True)
class AtEnd:
    """All that the log holds is read; `epoch` is the newest in it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Placed:
    """The fence stands: offers are welcome."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was offered is in the log."""

    seq: int
    body: Any


@dataclass(frozen=True, slots=True)
class Returned:
    """What was offered is not in the log and never will be under that number: choose again."""

    body: Any


@dataclass(frozen=True, slots=True)
class FencedOut:
    """A higher epoch exists, or the log was cleaned up under us: stop leading."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """This log cannot be appended to until somebody mends something."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Believed:
    """This replica knew nothing of the log and took the keys in `floor.json` at its word."""

    seq: int
    signer: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is wrong that does not stop us."""

    finding: Finding


Effect = (
    ReadFloor | ReadSegment | ListFrom | Put
    | Absorbed | AtEnd | Placed | Accepted | Returned | FencedOut | Refused | Believed | Alarm
)  # fmt: skip
Request = ReadFloor | ReadSegment | ListFrom | Put


class Phase(Enum):
    """What the machine waits for."""

    STOPPED = "stopped"
    FLOOR = "floor"  # at the start, and when the log seems broken
    LAST = "last"  # is the last segment that we know still there?
    FOLLOW = "follow"  # reading forward
    OVER = "over"  # reading the successor of an unreadable segment
    ABOVE = "above"  # is there anything above the end?
    IDLE = "idle"
    SENT = "sent"
    UNKNOWN = "unknown"  # reading back
    SETTLE = "settle"  # reading the floor after a success
    FENCED = "fenced"
    REFUSED = "refused"


@dataclass(slots=True)
class _Outstanding:
    """The one segment in flight: the same bytes until it is settled."""

    seq: int
    header: Header
    data: bytes
    hash: str
    body: Any
    fence: bool
    file: str = ""


class Chain:
    """The machine of one replica at one log.

    Args:
        prefix: What is already verified.
        replica: Own name.
        key: Own signing key.
        arbiter: Who decides who leads; must be that of the newest segment.

    Attributes:
        prefix: Grows with every segment absorbed.
        phase: What it waits for.
        leads: Whether it was told to lead, whatever came of it.
        placed: Whether the fence of the present leadership stands.
        wake_at: When to send `Wake`; None while a request is in flight or nothing is to be done.
    """

    def __init__(self, prefix: Prefix, replica: str, key: Ed25519PrivateKey, arbiter: str) -> None:
        self.prefix = prefix
        self.replica = replica
        self.arbiter, self.replaces = arbiter, ""
        self.phase = Phase.STOPPED
        self.placed = self.leads = False
        self.wake_at: float | None = None
        self._key = key
        self._epoch = 0
        self._incarnation = ""
        self._out: _Outstanding | None = None
        self._request: Request | None = None
        self._fence = Header()
        self._broken: SegmentBroken | None = None
        self._suspect: Finding | None = None
        self._failures = 0
        self._denied = 0  # how often a name was listed and could not be read
        self._floor = Known()

    @property
    def ready(self) -> bool:
        """Whether an `Offer` may come: the fence stands and nothing is in flight."""
        return self.phase is Phase.IDLE and self.placed

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        match event:
            case Start():
                assert self.phase in (Phase.STOPPED, Phase.IDLE)
                self.phase = Phase.FLOOR
                return self._ask(ReadFloor())
            case Wake(early):
                return self._wake(now, early=early)
            case Lead():
                return self._lead(event)
            case Offer():
                assert self.ready
                return self._send(event.draft, event.body, fence=False)
            case Away():
                return self._later(now)
            case _:
                self._request = None
                return self._answered(event, now)

    def _answered(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Written():
                return self._written(event, now)
            case FloorRead() if self.phase is Phase.SETTLE:
                return self._settle(event)
            case FloorRead():
                assert self.phase is Phase.FLOOR
                return self._from_floor(event)
            case SegmentRead() if self.phase is Phase.UNKNOWN:
                return self._read_back(event)
            case SegmentRead() if self.phase is Phase.LAST:
                return self._last(event)
            case SegmentRead() if self.phase is Phase.OVER:
                return self._over(event)
            case SegmentRead():
                assert self.phase is Phase.FOLLOW
                return self._follow(event)
            case SegmentBroken():
                return self._broke(event)
            case Listed():
                assert self.phase is Phase.ABOVE
                return self._above(event, now)
        raise AssertionError(f"{event} in phase {self.phase}")

    # Requests and time

    def _ask(self, request: Request) -> list[Effect]:
        assert self._request is None
        self._request, self.wake_at = request, None
        return [request]

    def _later(self, now: float) -> list[Effect]:
        """Ask the same again after a while."""
        assert self._request is not None
        self.wake_at = now + self._pause_s()
        return []

    def _pause_s(self) -> float:
        self._failures += 1
        return float(min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._failures - 1, 20)))

    def _wake(self, now: float, *, early: bool) -> list[Effect]:
        if self.wake_at is None or (now < self.wake_at and not early):
            return []
        assert self._request is not None
        self.wake_at = None
        return [self._request]

    # Reading to the end

    def _learn_floor(self, event: FloorRead) -> list[Effect]:
        flaw = self._floor.learn(event.data, self.prefix.at)
        return [] if flaw is None else [Alarm(flaw)]

    def _from_floor(self, event: FloorRead) -> list[Effect]:
        self._failures = 0
        suspect, self._suspect = self._suspect, None
        told, at = self._learn_floor(event), self.prefix.at
        floor, kept = self._floor.floor, self._floor.seq
        if floor is not None and (at.seq < kept or self._is_astray(floor.below)):
            below, self.prefix = floor.below, Prefix(floor.below)
            if not at.keys:
                told.append(Believed(below.seq, floor.signer))
            if self._overtaken(below):
                return [*told, *self._fenced(f"epoch {below.epoch} of {below.holder!r} stands below segment {kept}")]
            return [*told, *self._forward()]
        if suspect is not None and suspect.seq >= kept:
            return [*told, *self._bad(suspect)]
        if at.seq > kept:
            self.phase = Phase.LAST
            return [*told, *self._ask(ReadSegment(at.seq - 1))]
        return [*told, *self._forward()]

    def _is_astray(self, below: Saved) -> bool:
        """A name below the floor means nothing: what we read there may be a late write that found it free."""
        return below.seq == self.prefix.at.seq and below.hash != self.prefix.at.hash

    def _last(self, event: SegmentRead) -> list[Effect]:
        if event.header is None:
            return self._doubt(Finding(event.seq, Flaw.MISSING, "it is the last that this replica knows"))
        if chain_hash(event.header) != self.prefix.at.hash:
            return self._doubt(Finding(event.seq, Flaw.FORK, "this replica knows another one: this is another log"))
        self.prefix.at.file = self.prefix.at.file or event.file
        return self._forward()

    def _forward(self) -> list[Effect]:
        self.phase = Phase.FOLLOW
        return self._ask(ReadSegment(self.prefix.at.seq))

    def _follow(self, event: SegmentRead) -> list[Effect]:
        assert event.seq == self.prefix.at.seq
        if event.header is None:
            self.phase = Phase.ABOVE
            return self._ask(ListFrom(event.seq))
        self._failures = self._denied = 0
        found = self.prefix.judge(event.header)
        if isinstance(found, Finding):
            return self._doubt(found) if found.flaw is Flaw.FORK else self._bad(found)
        absorbed = self._absorb(found, chain_hash(event.header), event.file)
        if self._overtaken(found):
            return [*absorbed, *self._fenced(f"epoch {found.epoch} of {found.holder!r} stands in segment {found.seq}")]
        return [*absorbed, *self._forward()]

    def _above(self, event: Listed, now: float) -> list[Effect]:
        """Nothing under the next name: is it the end, or a hole?"""
        end = self.prefix.at.seq
        if event.seq == end:  # it has just come, or the store contradicts itself
            self.phase, self._request, self._denied = Phase.FOLLOW, ReadSegment(end), self._denied + 1
            absent = Finding(end, Flaw.MISSING, "it is listed and cannot be read")
            return [*([Alarm(absent)] if self._denied == 2 else []), *self._later(now)]
        if event.seq is not None:
            assert event.seq > end
            return self._doubt(Finding(end, Flaw.MISSING, f"segment {event.seq} stands above it"))
        if self._floor.seq == end > 0:
            return self._doubt(Finding(end, Flaw.MISSING, "floor.json says that it is kept"))
        self.phase, self._failures, self._denied = Phase.IDLE, 0, 0
        if self._epoch and not self.placed:
            return self._begin(self._fence)
        return [AtEnd(self.prefix.at.epoch)]

    def _doubt(self, finding: Finding) -> list[Effect]:
        """The log seems broken: so it also looks from below the floor, which may have moved."""
        self.phase, self._suspect = Phase.FLOOR, finding
        return self._ask(ReadFloor())

    def _broke(self, event: SegmentBroken) -> list[Effect]:
        """A segment that is there and cannot be read: only its successor can say what it was."""
        if self.phase is Phase.LAST:
            self.prefix.at.told.clear()  # some of it may stand nowhere else: then all gaps are told again
            return [Alarm(Finding(event.seq, Flaw.UNREADABLE, event.detail)), *self._forward()]
        if self.phase is Phase.OVER:
            return self._bad(Finding(event.seq, Flaw.UNREADABLE, event.detail))
        returned = self._give_back()
        self.phase, self._broken = Phase.OVER, event
        return [*returned, *self._ask(ReadSegment(event.seq + 1))]

    def _over(self, event: SegmentRead) -> list[Effect]:
        broken, at = self._broken, self.prefix.at
        assert broken is not None
        hole = Finding(broken.seq, Flaw.UNREADABLE, broken.detail)
        if event.header is None:
            return self._bad(hole)
        found = examine(event.header, at.group, at.keys, event.seq)
        if isinstance(found, Finding) or not self._may_follow(found):
            return self._bad(hole)
        self._broken = None
        self.prefix.skip(found)
        self.phase = Phase.FOLLOW
        return [Alarm(hole), *self._follow(event)]

    def _may_follow(self, header: Header) -> bool:
        """Only what could stand behind a hole proves what was in it."""
        return header.epoch >= self.prefix.at.epoch

    def _absorb(self, header: Header, digest: str, file: str) -> list[Effect]:
        altered = self.prefix.altered(header)
        self.prefix.absorb(header, digest, file)
        return [*([] if altered is None else [Alarm(altered)]), Absorbed(header, digest)]

    def _bad(self, finding: Finding) -> list[Effect]:
        hint = _HINTS.get(
            finding.flaw,
            "run `edgemirror verify`; restore the bucket, or begin a new log by another group.name or prefix",
        )
        return self._refuse(str(finding) + (f"; {self._floor.flaw}" if self._floor.flaw else ""), hint)

    # Leading

    def _lead(self, event: Lead) -> list[Effect]:
        assert self.phase is Phase.IDLE
        assert not self.leads, "a chain leads once; then it is read anew"
        at = self.prefix.at
        if event.epoch <= at.epoch:
            return self._fenced(f"epoch {at.epoch} of {at.holder!r} is not below ours, {event.epoch}")
        self.leads, self._epoch, self._incarnation, self._fence = True, event.epoch, event.incarnation, event.fence
        return self._begin(event.fence)

    def _begin(self, fence: Header) -> list[Effect]:
        assert fence.rows == 0
        assert not fence.intervals
        if (bar := self._barred(fence)) is not None:
            return self._refuse(*bar)
        if self._must_fence():
            return self._send(fence, None, fence=True)
        self.placed = True
        return [Placed(self._epoch)]

    def _barred(self, fence: Header) -> tuple[str, str] | None:
        """Whoever began or led this log while we were reading may not be one of ours."""
        return self.prefix.barred(self.replica, public_hex(self._key), self.arbiter, fence.keys, self.replaces)

    def _must_fence(self) -> bool:
        """A leader's first segment is empty: nothing may rest on a log that may still be appended to by another."""
        return True

    def _send(self, draft: Header, body: Any, *, fence: bool) -> list[Effect]:
        at = self.prefix.at
        assert self._out is None, "one segment in flight"
        header = msgspec.structs.replace(
            draft, group=at.group, seq=at.seq, epoch=self._epoch, holder=self.replica, incarnation=self._incarnation,
            arbiter=self.arbiter, prev=at.hash, prev_file=at.file,
            keys=draft.keys if at.seq else {**draft.keys, self.replica: public_hex(self._key)},
        )  # fmt: skip
        data = sign(header, self._key)
        self._out = _Outstanding(at.seq, header, data, chain_hash(data), body, fence)
        self.phase = Phase.SENT
        return self._ask(Put(at.seq, data, body))

    def _written(self, event: Written, now: float) -> list[Effect]:
        out = self._out
        assert self.phase is Phase.SENT
        assert out is not None
        assert out.seq == event.seq
        out.file = event.file
        if event.known:
            return self._success()
        self.phase, self._request = Phase.UNKNOWN, ReadSegment(out.seq)
        self.wake_at = now + self._pause_s()
        return []

    def _read_back(self, event: SegmentRead) -> list[Effect]:
        """What stands under the name of the segment that we sent?"""
        out = self._out
        assert out is not None
        if event.header is None:
            self.phase = Phase.SENT
            return self._ask(Put(out.seq, out.data, out.body))
        if self._is_ours(event.header, out.hash):
            return self._success()
        return [*self._give_back(), *self._overtaken_at(event)]

    def _is_ours(self, header: bytes, hash: str) -> bool:
        return chain_hash(header) == hash

    def _give_back(self) -> list[Effect]:
        out, self._out = self._out, None
        return [] if out is None or out.fence else [Returned(out.body)]

    def _overtaken_at(self, event: SegmentRead) -> list[Effect]:
        """Another segment has our name: take it in; a higher epoch ends ours, a lower one was merely late."""
        self.phase = Phase.FOLLOW
        return self._follow(event)

    def _overtaken(self, by: Header | Saved) -> bool:
        mine = (self.replica, self._incarnation)
        return bool(self._epoch) and (
            by.epoch > self._epoch or (by.epoch == self._epoch and (by.holder, by.incarnation) != mine)
        )

    def _success(self) -> list[Effect]:
        self._failures = 0
        self.phase = Phase.SETTLE
        return self._ask(ReadFloor())

    def _settle(self, event: FloorRead) -> list[Effect]:
        out, told = self._out, self._learn_floor(event)
        assert out is not None
        kept = self._floor.seq
        if self._is_below(out.seq, kept):
            reason = f"segment {out.seq} was written below the floor, {kept}: its number had been used and freed"
            return [*told, *self._fenced(reason)]
        self.phase, self._out = Phase.IDLE, None
        absorbed = [*told, *self._absorb(out.header, out.hash, out.file)]
        if not self.placed:
            self.placed = True
            absorbed.append(Placed(self._epoch))
        return absorbed if out.fence else [*absorbed, Accepted(out.seq, out.body)]

    def _is_below(self, seq: int, floor: int) -> bool:
        return seq < floor

    def _fenced(self, reason: str) -> list[Effect]:
        self.phase, self.placed, self.wake_at, self._request = Phase.FENCED, False, None, None
        return [*self._give_back(), FencedOut(reason)]

    def _refuse(self, what: str, hint: str) -> list[Effect]:
        self.phase, self.placed, self.wake_at, self._request = Phase.REFUSED, False, None, None
        return [*self._give_back(), Refused(what, hint)]


#: Builds a chain; tests put one with a rule removed in its place.
ChainFactory = Callable[[Prefix, str, Ed25519PrivateKey, str], Chain]
