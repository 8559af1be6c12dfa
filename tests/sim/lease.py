"""Several replicas, one register and a supervisor beside each, in simulated time: who may act, and when.

Clocks run at different rates, boxes freeze and die, ways to the register lose and delay what is sent in either
direction, and what nobody waits for any more may still arrive. The machines are those of the gateway. After every
step: at most one may act; an epoch belongs to one process; the record's epoch never falls. At the end, without
faults, somebody acts soon, and goes on acting.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway import failover
from gateway.failover import Failover, Timing
from mirror.lease import Record

TIMEOUT_SHARE = 0.25  # of the lease: how long an answer is waited for
QUIET_S = 12.0  # without faults at the end
SETTLED_S = 6.0  # of them, until somebody has to act for good


class Violation(AssertionError):
    """Something happened that must never happen, or something that must happen did not."""


@dataclass
class Register:
    """A record with compare-and-swap; its versions are numbers, or made of the content."""

    record: Record | None = None
    version: str = "none"
    swaps: int = 0
    by_content: bool = False

    def swap(self, record: Record, version: str) -> str | None:
        if version != self.version:
            return None
        if self.record is not None and record.epoch < self.record.epoch:
            raise Violation(f"the record's epoch falls from {self.record.epoch} to {record.epoch}")
        self.swaps += 1
        self.record = record
        self.version = record.encode().decode() if self.by_content else str(self.swaps)
        return self.version


@dataclass
class Box:
    """A replica's box: what survives its process, and the process."""

    name: str
    rate: float
    offset: float
    make: Callable[..., Failover]
    saved: int = 0
    life: int = 0
    machine: Failover | None = None
    frozen_until: float = 0.0
    cut_out_until: float = 0.0  # requests do not arrive
    cut_in_until: float = 0.0  # answers do not
    announced: Record | None = None
    calls: int = 0
    stopping: bool = False
    backlog: list[tuple[int, failover.Event]] = field(default_factory=list)

    def now(self, t: float) -> float:
        return self.offset + t * self.rate


class World:
    """One schedule.

    Args:
        seed: Decides everything.
        replicas: How many.
        timing: Of all of them.
        drifts: As in `Failover`.
        make: Makes a machine; a mutant makes another one.
        faults: Whether there are any.
        faulty_s: How long.
    """

    def __init__(
        self, seed: int, *, replicas: int = 3, timing: Timing | None = None, drifts: bool = False,
        make: Callable[..., Failover] = Failover, faults: bool = True, faulty_s: float = 12.0, exact: bool = True,
    ) -> None:  # fmt: skip
        self.timing = timing or Timing(hold_s=2.0)
        self.random = random.Random(seed)
        self.register = Register(by_content=seed % 3 == 0)
        self.drifts, self.faults, self.exact = drifts, faults, exact
        self.end_faults = faulty_s if faults else 0.0
        self.end = self.end_faults + QUIET_S
        self.t = 0.0
        self.trace: list[str] = []
        self.owner: dict[int, str] = {}
        self.promotions: list[tuple[float, str, int]] = []
        self.demotions: list[tuple[float, str]] = []
        self.alarms: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        # Rates differ by as much as the protocol allows, and no more.
        drift = self.timing.drift if faults else 0.001
        self.boxes = [
            Box(chr(97 + i), self._rate(drift), self.random.uniform(0, 1000), make) for i in range(replicas)
        ]  # fmt: skip

    def _rate(self, drift: float) -> float:
        return 1 + drift * self.random.choice((-1, -0.5, 0, 0.5, 1)) * 0.999

    # The loop

    def at(self, t: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(t, self.t), self._count, act))

    def run(self) -> World:
        for box in self.boxes:
            self.at(self.random.uniform(0, 0.2), lambda box=box: self.start(box))  # type: ignore[misc]
        if self.faults:
            self.at(self.random.uniform(0.5, 2.0), self.befall)
        while self._queue and self._queue[0][0] <= self.end:
            self.t, _, act = heapq.heappop(self._queue)
            act()
            self.check()
        self.t = self.end
        self.finish()
        return self

    def say(self, text: str) -> None:
        self.trace.append(f"{self.t:9.4f} {text}")

    def start(self, box: Box) -> None:
        if box.machine is not None:
            return
        box.life += 1
        box.stopping, box.announced, box.backlog = False, None, []
        box.machine = box.make(
            box.name, f"{box.name}{box.life}", box.saved, self.timing, drifts=self.drifts, jitter=self.random.random
        )
        self.say(f"{box.name} starts as {box.name}{box.life}")
        self.feed(box, box.life, failover.Wake())
        self.later(box, self.random.uniform(0.0, 0.5), failover.Ready(True))

    def later(self, box: Box, pause: float, event: failover.Event) -> None:
        life = box.life
        self.at(self.t + pause, lambda: self.feed(box, life, event))

    def feed(self, box: Box, life: int, event: failover.Event) -> None:
        machine = box.machine
        if machine is None or box.life != life:
            return
        if self.t < box.frozen_until:
            if not isinstance(event, failover.Wake):
                box.backlog.append((life, event))
            return
        effects = machine.step(event, box.now(self.t))
        for effect in effects:
            self.carry_out(box, effect)
        self.set_alarm(box)

    def set_alarm(self, box: Box) -> None:
        if box.machine is None:  # it has ended by what it was told
            return
        due = box.machine.wake_at
        if math.isfinite(due) or due == -math.inf:
            t = self.t if due == -math.inf else (due - box.offset) / box.rate
            life = box.life
            self.at(max(t, self.t + 1e-4), lambda: self.wake(box, life, due))

    def wake(self, box: Box, life: int, due: float) -> None:
        if box.machine is not None and box.life == life and box.machine.wake_at == due:
            self.feed(box, life, failover.Wake())

    # Effects

    def carry_out(self, box: Box, effect: failover.Effect) -> None:
        match effect:
            case failover.Save(epoch):
                self.save(box, epoch)
            case failover.Observe() | failover.Swap():
                self.ask(box, effect)
            case failover.Promoted(epoch):
                assert box.machine is not None
                self.say(f"{box.name} acts under {epoch} for {box.machine.deadline - box.now(self.t):.3f} s")
                self.promotions.append((self.t, box.name, epoch))
                life = f"{box.name}{box.life}"
                if self.owner.setdefault(epoch, life) != life:
                    raise Violation(f"epoch {epoch} belongs to {self.owner[epoch]} and {life}")
                if box.saved < epoch:
                    raise Violation(f"{life} acts under epoch {epoch}, which is not durable")
            case failover.Demoted(reason):
                self.say(f"{box.name} acts no more: {reason}")
                self.demotions.append((self.t, box.name))
            case failover.Drifting():
                self.say(f"{box.name} drifts")
            case failover.Released():
                self.say(f"{box.name} has let go")
                if box.stopping:
                    self.die(box)
            case failover.Alarm(text):
                self.alarms.append(text)

    def save(self, box: Box, epoch: int) -> None:
        life = box.life

        def done() -> None:
            if box.machine is None or box.life != life:
                return
            fails = self.faults and self.t < self.end_faults and self.random.random() < 0.02
            if not fails:
                box.saved = max(box.saved, epoch)
            self.feed(box, life, failover.Saved(not fails))

        self.at(self.t + self.random.uniform(0.001, 0.02), done)

    def ask(self, box: Box, request: failover.Request) -> None:
        """Send a request; it may be lost, late, and so may its answer."""
        life, name = box.life, box.calls + 1
        box.calls = name
        if isinstance(request, failover.Swap):
            box.announced = request.record
        bad = self.faults and self.t < self.end_faults
        there, back = self._way(box, bad), self._way(box, bad)
        timeout_s = self.timing.lease_s * TIMEOUT_SHARE / box.rate
        answered = [False]

        def answer(event: failover.Event) -> None:
            if not answered[0] and box.life == life:
                answered[0] = True
                self.feed(box, life, event)

        def arrive() -> None:
            if self.t < box.cut_out_until:
                return
            reply: failover.Event
            if isinstance(request, failover.Swap):
                version = self.register.swap(request.record, request.version)
                if version is not None:
                    self.say(
                        f"register: {request.record.holder or 'free'} {request.record.epoch}.{request.record.beat}"
                    )
                    reply = failover.Swapped(version)
                else:
                    reply = failover.Observed(self.register.record, self.register.version)
            else:
                reply = failover.Observed(self.register.record, self.register.version)
            self.at(self.t + back, lambda: None if self.t < box.cut_in_until else answer(reply))

        if there < math.inf:
            self.at(self.t + there, arrive)
        self.at(self.t + timeout_s, lambda: answer(failover.NoAnswer()))

    def _way(self, box: Box, bad: bool) -> float:
        if not bad:
            return self.random.uniform(0.0005, 0.004)
        luck = self.random.random()
        if luck < 0.03:
            return math.inf
        if luck < 0.10:
            return self.random.uniform(0.05, 1.5)  # nobody waits for it any more, and it comes
        return self.random.uniform(0.0005, 0.02)

    # Faults

    def befall(self) -> None:
        if self.t >= self.end_faults:
            return
        box = self.random.choice(self.boxes)
        match self.random.choice(("kill", "kill", "freeze", "freeze", "out", "in", "stop", "yield", "wish")):
            case "kill":
                self.kill(box)
            case "freeze":
                self.freeze(box, self.random.choice((0.05, 0.3, 0.7, 2.0)))
            case "out":
                box.cut_out_until = self.t + self.random.uniform(0.1, 2.0)
            case "in":
                box.cut_in_until = self.t + self.random.uniform(0.1, 2.0)
            case "stop" if box.machine is not None and not box.stopping:
                box.stopping = True
                self.feed(box, box.life, failover.Stop())
                self.at(self.t + self.random.uniform(0.5, 1.5), lambda: self.die(box) if box.stopping else None)
            case "yield":
                self.feed(box, box.life, failover.Yield())
            case "wish":
                self.feed(box, box.life, failover.Wish())
        self.at(self.t + self.random.uniform(0.05, 1.5), self.befall)

    def freeze(self, box: Box, seconds: float) -> None:
        if box.machine is None:
            return
        self.say(f"{box.name} stands still for {seconds} s")
        box.frozen_until = max(box.frozen_until, self.t + seconds)
        self.at(box.frozen_until, lambda: self.thaw(box))

    def thaw(self, box: Box) -> None:
        if box.machine is None or self.t < box.frozen_until:
            return
        backlog, box.backlog = box.backlog, []
        for life, event in backlog:
            self.feed(box, life, event)
        self.feed(box, box.life, failover.Wake())

    def kill(self, box: Box) -> None:
        """End a process; its supervisor, if that lives, frees what the process had announced last."""
        if box.machine is None:
            return
        self.say(f"{box.name} is killed")
        announced, life = box.announced, f"{box.name}{box.life}"
        self.die(box)
        if announced is not None and self.random.random() < 0.6:
            self.at(self.t + self.random.uniform(0.005, 1.0), lambda: self.certify(box, life, announced))

    def die(self, box: Box) -> None:
        box.machine, box.frozen_until, box.stopping = None, 0.0, False
        self.at(self.t + self.random.uniform(0.05, 2.0), lambda: self.start(box))

    def certify(self, box: Box, life: str, announced: Record) -> None:
        """The supervisor frees the record of (holder, epoch), and no other."""
        found = self.register.record
        if found is None or found.holder != box.name or (self.exact and found.epoch != announced.epoch):
            return
        if self.exact and found.incarnation != announced.incarnation:
            return
        self.say(f"the supervisor of {box.name} certifies the death of {life}")
        self.register.swap(found.released(), self.register.version)

    # What has to hold

    def check(self) -> None:
        acting = [
            box.name for box in self.boxes if box.machine is not None and box.machine.may_act(box.now(self.t))
        ]  # fmt: skip
        if len(acting) > 1:
            raise Violation(f"{' and '.join(acting)} may both act at {self.t:.4f}")

    def finish(self) -> None:
        acting = [box for box in self.boxes if box.machine is not None and box.machine.may_act(box.now(self.t))]
        if len(acting) != 1:
            raise Violation(f"{len(acting)} replicas act at the end")
        settled = self.end_faults + SETTLED_S
        late: list[Any] = [p for p in self.promotions if p[0] > settled] + [d for d in self.demotions if d[0] > settled]
        if late:
            raise Violation(f"it does not settle: {late}")
