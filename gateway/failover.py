"""The lease machine: whether this replica may act, and under which epoch.

The record in the register (`mirror.lease`) is changed by compare-and-swap alone, and both sides count by
their own clocks, which may differ in rate by a stated drift: the holder's right ends `lease * (1 - drift)`
after it *sent* the renewal that succeeded, a rival waits `lease * (1 + drift)` from when it *first received*
the version that has not changed since. So there is no time in which two may act, however late any
answer comes. An epoch is durable here before it is asked for, and belongs to one process alone.

An answer that was lost is settled by reading back; a renewal that is answered after the right has ended
gives nothing back. Nothing here is the safety of the log, which fences by itself (`mirror.chain`); the lease
says who should try.

`step(event, now)` returns effects; `now` is a clock that goes on while the box sleeps. Each request is
answered by exactly one event, and at most one is with the register. What this module does not do: talk to
a register, keep the epoch, or act (`gateway.io.leading`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import msgspec

from mirror.lease import Record


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things last, in seconds.

    Attributes:
        lease_s: How long a record counts without a change.
        beat_s: Between two renewals, and between two looks of who does not hold it.
        drift: By how much of its rate a clock may err.
        retry_s: Longest pause before a request that got no answer is made again.
        hold_s: How long who handed over by command leaves it to others.
    """

    lease_s: float = 0.5
    beat_s: float = 0.1
    drift: float = 0.1
    retry_s: float = 0.09
    hold_s: float = 10.0

    @property
    def right_s(self) -> float:
        """How long the holder may act on a renewal, from its sending."""
        return self.lease_s * (1 - self.drift)

    @property
    def wait_s(self) -> float:
        """How long a rival waits for a change, from first receiving a version."""
        return self.lease_s * (1 + self.drift)


class Role(Enum):
    """What this replica does for the group."""

    STANDBY = "STANDBY"
    LEADER = "PRIMARY"
    #: The right has run out and the register does not answer: nobody can have taken over, so what the broker
    #: alone fences goes on as long as its session stands.
    ADRIFT = "ADRIFT"


# Events


@dataclass(frozen=True, slots=True)
class Wake:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stirred:
    """The register says that the record has changed; it is read to know how."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Answer to Observe, or to a Swap that was refused: what stands there."""

    record: Record | None
    version: str


@dataclass(frozen=True, slots=True)
class Swapped:
    """Answer to Swap: the record stands under this version."""

    version: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Answer to Observe or Swap: nobody knows."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Answer to Save."""

    done: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether this replica is fit to act: it mirrors, and knows the log as far as that can be read."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """The log, read before anything was written into it, knows this epoch: ours has to be higher."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Overruled:
    """Another one acts under a higher epoch, or under ours: the log or the broker has said so."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Parted:
    """The broker's session has ended."""


@dataclass(frozen=True, slots=True)
class Yield:
    """An operator wants another replica to act."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An operator wants this replica to act."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The process ends: let go of the lease."""


Event = (
    Wake | Stirred | Observed | Swapped | NoAnswer | Saved | Ready | Known | Overruled | Parted | Yield | Wish | Stop
)


# Effects


@dataclass(frozen=True, slots=True)
class Observe:
    """Read the register."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Write the record where this version stands."""

    record: Record
    version: str


@dataclass(frozen=True, slots=True)
class Save:
    """Make an epoch of this process durable."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Promoted:
    """Act, under this epoch; said again where a leader's epoch has risen."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Drifting:
    """The right has run out and nobody can take over: keep what the broker fences, begin nothing."""


@dataclass(frozen=True, slots=True)
class Demoted:
    """Stop acting."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The record is free, or not ours: the process may end."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Tell a person."""

    text: str


Effect = Observe | Swap | Save | Promoted | Drifting | Demoted | Released | Alarm
Request = Observe | Swap


class Failover:
    """One replica's view of the lease.

    Args:
        replica: Its name.
        incarnation: Random name of this process, which holds the lock of its data directory.
        epoch: Highest that was ever durable here.
        timing: See `Timing`.
        drifts: Whether nobody can take over while the register does not answer (arbiter `s3`).
        returns: Whether it competes again after another one has overruled it (not with arbiter `solo`).
        jitter: Returns a number from 0 to 1, so that rivals do not move in step.

    Attributes:
        role: Present one.
        epoch: Under which it acts, or acted last.
        deadline: When its right ends; -inf if it has none.
        record: What the register held when it was heard of last.
        seen_at: Since when it has not been seen to change; -inf before it was seen.
        reason: Why the role is what it is, in words.
        ready: Whether it may compete.
    """

    def __init__(
        self, replica: str, incarnation: str, epoch: int, timing: Timing, *, drifts: bool = False, returns: bool = True,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:  # fmt: skip
        self.role = Role.STANDBY
        self.epoch = 0
        self.deadline = -math.inf
        self.record: Record | None = None
        self.seen_at = -math.inf
        self.reason = "starting"
        self.ready = False
        self._replica, self._incarnation, self._timing = replica, incarnation, timing
        self._drifts, self._returns, self._jitter = drifts, returns, jitter
        self._floor = epoch  # what the next epoch has to exceed
        self._version: str | None = None
        self._asked: Request | None = None
        self._sent_at = 0.0
        self._is_unsure = False  # whether what was sent last may have taken effect
        self._sends: dict[tuple[int, int], float] = {}  # (epoch, beat): when it was sent, of those that may stand there
        self._beat = 0  # the highest that was sent or seen: no two records of ours are alike
        self._next_at = -math.inf
        self._saving = 0  # the epoch that is being made durable
        self._saved = 0  # the highest that is
        self._away_until = -math.inf  # for so long the lease is left to others
        self._is_cloned = self._is_overruled = False
        self._freeing = self._stopping = self._wishing = False

    @property
    def wake_at(self) -> float:
        """When to send `Wake`."""
        due = math.inf if self._asked is not None or self._saving else self._next_at
        return min(due, self.deadline) if self.role is Role.LEADER else due

    def may_act(self, now: float) -> bool:
        """Tell whether what needs the lease may be done at this moment."""
        return self.role is Role.LEADER and now < self.deadline

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        effects = self._expire(now)
        match event:
            case Observed(record, version):
                effects += self._answer(record, version, now)
            case Swapped(version):
                effects += self._swapped(version, now)
            case NoAnswer():
                assert self._asked is not None
                self._is_unsure |= isinstance(self._asked, Swap)
                self._asked, self._next_at = None, now + self._pause_s()
            case Saved(done):
                effects += self._kept(now, done=done)
            case Ready(ready, reason):
                effects += self._fit(now, ready=ready, reason=reason)
            case Known(epoch):
                self._floor, self._next_at = max(self._floor, epoch), now
            case Overruled(epoch, reason):
                self._floor = max(self._floor, epoch)
                self._is_overruled = True
                effects += self._step_down(reason)
            case Parted() if self.role is Role.ADRIFT:
                effects += self._step_down("the broker's session has ended, and the register does not answer")
            case Yield():
                effects += self._hand_over("an operator has asked for it", now, self._timing.hold_s)
            case Wish():
                self._wishing = self.role is Role.STANDBY
                self._away_until = -math.inf
                self._next_at = now
            case Stop():
                self._stopping = True
                effects += self._hand_over("the process ends", now, math.inf)
            case Stirred() if self.role is Role.STANDBY:
                self._next_at = now
            case _:
                pass
        return effects + self._act(now)

    # What ends the right

    def _expire(self, now: float) -> list[Effect]:
        if self.role is not Role.LEADER or now < self.deadline:
            return []
        if self._drifts:
            self.role, self.reason = Role.ADRIFT, "the register does not answer"
            return [Drifting()]
        return self._step_down("the lease was not renewed in time")

    def _step_down(self, reason: str) -> list[Effect]:
        self.reason = reason
        if self.role is Role.STANDBY:
            return []
        self.role, self.deadline = Role.STANDBY, -math.inf
        return [Demoted(reason)]

    def _hand_over(self, reason: str, now: float, away_s: float) -> list[Effect]:
        """Stop acting, free the record if it is ours, and leave it to others for a while."""
        self._away_until = now + away_s
        self._freeing = True
        return self._step_down(reason)

    def _fit(self, now: float, *, ready: bool, reason: str) -> list[Effect]:
        self.ready = ready
        if ready:
            self._next_at = now
            return []
        if self.role is Role.STANDBY:
            self.reason = reason or self.reason
            return []
        self._freeing, self._next_at = True, now
        return self._step_down(reason)

    # What is asked next

    def _act(self, now: float) -> list[Effect]:
        """Make the next request if it is due and none is under way."""
        if self._asked is not None or self._saving:
            return []
        if self._freeing and not self._is_unsure:
            return self._free(now)
        if now < self._next_at:
            return []
        if self._is_unsure or self._version is None:
            return self._observe(now)
        if self.role is Role.LEADER:
            return self._renew(now)
        if self._wishing and self.record is not None and self.record.holder not in ("", self._replica):
            return self._ask_for_it(now)
        if self._may_take(now):
            return self._take(now)
        return self._observe(now)

    def _observe(self, now: float) -> list[Effect]:
        self._asked, self._next_at = Observe(), now + self._timing.beat_s
        return [self._asked]

    def _swap(self, record: Record, now: float) -> list[Effect]:
        """Send a record, with a beat that no other record of ours has."""
        assert self._version is not None
        self._beat = max(self._beat, 0 if self.record is None else self.record.beat) + 1
        record = msgspec.structs.replace(record, beat=self._beat)
        self._asked, self._sent_at, self._next_at = Swap(record, self._version), now, now + self._timing.beat_s
        if self._is_mine(record):
            self._sends[record.epoch, record.beat] = now
        return [self._asked]

    def _own(self, epoch: int) -> Record:
        return Record(epoch, self._replica, self._incarnation, 0)

    def _renew(self, now: float) -> list[Effect]:
        if self._floor >= max(
            self.epoch, self._saved
        ):  # the log knows a higher one: the lease is kept, and the epoch rises
            return self._save(self._floor + 1)
        return self._swap(self._own(max(self.epoch, self._saved)), now)

    def _free(self, now: float) -> list[Effect]:
        """Give the record up, if it is ours."""
        if self.record is None or not self._is_mine(self.record):
            self._freeing = False
            return [Released()]
        return self._swap(self.record.released(), now)

    def _ask_for_it(self, now: float) -> list[Effect]:
        assert self.record is not None
        self._wishing = False
        return self._swap(msgspec.structs.replace(self.record, wish=self._replica), now)

    def _may_take(self, now: float) -> bool:
        """Tell whether this replica may ask for the lease now."""
        if not self.ready or self._stopping or (self._is_overruled and not self._returns):
            return False
        record, waited = self.record, now - self.seen_at >= self._timing.wait_s
        is_own = record is not None and record.holder == self._replica and not self._is_cloned
        if record is not None and record.holder and not is_own:
            return waited
        if now < self._away_until:
            return False
        return waited or record is None or record.wish in ("", self._replica)

    def _take(self, now: float) -> list[Effect]:
        """Ask for the lease under an epoch above all that are known, once it is durable here."""
        known = max(self._floor, self.epoch, 0 if self.record is None else self.record.epoch)
        return self._save(known + 1) if self._saved <= known else self._swap(self._own(self._saved), now)

    def _save(self, epoch: int) -> list[Effect]:
        self._saving = epoch
        return [Save(epoch)]

    def _kept(self, now: float, *, done: bool) -> list[Effect]:
        assert self._saving
        epoch, self._saving = self._saving, 0
        if done:
            self._saved = epoch
            self._next_at = min(self._next_at, now)
            return []
        self._next_at = now + self._timing.lease_s
        if self.role is Role.STANDBY:
            return []
        self._freeing = True  # whoever cannot write down his epoch cannot lead
        return self._step_down("the journal cannot keep the epoch")

    # What the register says

    def _answer(self, record: Record | None, version: str, now: float) -> list[Effect]:
        assert self._asked is not None
        self._asked, self._is_unsure = None, False
        if version != self._version:
            self.record, self._version, self.seen_at = record, version, now
        effects = self._stands(record, now) if record is not None and self._is_mine(record) else self._lost(record)
        if self.role is not Role.LEADER and self._may_take(now):
            self._next_at = now
        return effects

    def _lost(self, record: Record | None) -> list[Effect]:
        """Somebody else's record, or none, stands there: nothing of ours can come to stand there any more."""
        self._sends.clear()
        if record is not None and record.holder == self._replica and self.epoch and not self._is_cloned:
            self._is_cloned = True  # our predecessor's it cannot be, since one of ours stood there after it
            copied = f"another process acts as replica {self._replica!r}: is one disk a copy of the other?"
            return [*self._step_down(copied), Alarm(copied)]
        if record is None:
            return self._step_down("the record has vanished from the register")
        if record.holder:
            return self._step_down(f"replica {record.holder!r} acts under epoch {record.epoch}")
        return self._step_down("the lease was released in this replica's name")

    def _stands(self, record: Record, now: float) -> list[Effect]:
        """Our own record stands there: it counts from when it was sent."""
        at = (record.epoch, record.beat)
        sent = self._sends.get(at)
        self._sends = {key: when for key, when in self._sends.items() if key > at}
        effects = [] if sent is None else self._granted(record.epoch, sent, now)
        if record.wish and record.wish != self._replica and self.role is not Role.STANDBY:
            away_s = 4 * self._timing.wait_s
            return effects + self._hand_over(f"replica {record.wish!r} has asked for it", now, away_s)
        if self.role is Role.LEADER and self._sends:  # the newest has not come to stand: time presses
            self._next_at = now
        return effects

    def _swapped(self, version: str, now: float) -> list[Effect]:
        asked = self._asked
        assert isinstance(asked, Swap)
        self._asked, self._is_unsure = None, False
        record = asked.record
        self.record, self._version, self.seen_at = record, version, now
        if not self._is_mine(record):
            return []
        self._sends.clear()
        return self._granted(record.epoch, self._sent_at, now)

    def _granted(self, epoch: int, sent: float, now: float) -> list[Effect]:
        """A record of ours that was sent at `sent` is known to stand: it gives a right, unless that is over."""
        deadline = sent + self._timing.right_s
        if self._freeing or now >= deadline:
            return []
        if self.role is Role.LEADER and epoch == self.epoch:
            self.deadline = max(self.deadline, deadline)
            return []
        if epoch <= self.epoch:
            return []  # a renewal that was answered after the right had ended gives nothing back
        self.role, self.epoch, self.deadline, self.reason = Role.LEADER, epoch, deadline, "it holds the lease"
        self._is_overruled = self._wishing = False
        return [Promoted(epoch)]

    def _is_mine(self, record: Record) -> bool:
        return record.holder == self._replica and record.incarnation == self._incarnation

    def _pause_s(self) -> float:
        return self._timing.retry_s * (1 / 3 + 2 / 3 * self._jitter())
