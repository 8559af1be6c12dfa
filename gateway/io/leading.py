"""The thread that holds the lease: it feeds the machine and carries out what it asks of the register.

Time is CLOCK_BOOTTIME, which goes on while the box sleeps. A request to the register runs beside this thread, so that
the end of the right is noticed on time whatever the register does; one is under way at a time. What the machine says
of the role is told at once, in this thread: whoever is told must not block.

What this module does not do: decide (`gateway.failover`), push or publish (`gateway.io.runtime` joins them).
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from gateway import failover
from gateway.failover import Failover, Role
from gateway.io.log import log
from mirror.errors import Conflict, MirrorError
from mirror.lease import Record, Register

RETRY_S = 5.0  # after an answer that only a person can mend
HUNG_S = 60.0


class Told(Protocol):
    """Who is told of the role; in the lease's thread."""

    def promoted(self, epoch: int) -> None:
        """Act under this epoch; told again where it rises."""
        ...

    def drifting(self) -> None:
        """Keep what the broker alone fences, begin nothing."""
        ...

    def demoted(self, reason: str) -> None:
        """Stop acting."""
        ...


def boottime() -> float:
    """Return seconds on a clock that no one sets and that goes on while the box sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leading:
    """Holds one group's lease for one process.

    Args:
        machine: Decides.
        register: Where the record stands.
        save: Makes an epoch durable; the answer may come in any thread.
        told: See `Told`.
        announce: Called with the record that is about to be asked for, before it is: whoever finds this process dead
            may free just that.
        clock: See the module.
        inline: Requests run in `turn` itself (simulations).

    Attributes:
        error: Why the register does not serve; None while it does.
    """

    def __init__(
        self, machine: Failover, register: Register, *, save: Callable[[int], Future[Any]], told: Told,
        announce: Callable[[Record], None] = lambda record: None, clock: Callable[[], float] = boottime,
        inline: bool = False,
    ) -> None:  # fmt: skip
        self.machine = machine
        self.error: MirrorError | None = None
        self._register, self._save, self._told, self._announce = register, save, told, announce
        self._clock, self._inline = clock, inline
        self._events: queue.SimpleQueue[failover.Event] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[failover.Request | None] = queue.SimpleQueue()
        self._released = threading.Event()
        self._ended = False
        self._beat = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, name="lease", daemon=True),
            threading.Thread(target=self._ask_on, name="register", daemon=True),
        ]
        watch = getattr(register, "watch", None)
        if watch is not None:
            stirred = lambda: self.post(failover.Stirred())  # noqa: E731 - one line, one use
            self._threads.append(threading.Thread(target=watch, args=(stirred,), name="watch", daemon=True))

    # Any thread

    def post(self, event: failover.Event) -> None:
        """Tell the machine something."""
        self._events.put(event)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 1.5) -> None:
        """Let go of the lease and end; waits for the register no longer than this."""
        if self._threads[0].ident is None:
            return
        self.post(failover.Stop())
        self._released.wait(timeout_s)
        self._ended = True
        self.post(failover.Wake())
        self._requests.put(None)
        self._register.close()
        self._threads[0].join(timeout_s)

    def may_act(self) -> bool:
        """Tell whether what needs the lease may be done at this moment; cheap, from any thread."""
        machine = self.machine
        return machine.role is Role.ADRIFT or machine.may_act(self._clock())

    @property
    def alive(self) -> bool:
        """Whether the thread has neither ended nor stood still; true before `start`."""
        thread = self._threads[0]
        return thread.ident is None or (thread.is_alive() and time.monotonic() - self._beat < HUNG_S)

    # The thread

    def _run(self) -> None:
        while not self._ended:
            self._beat = time.monotonic()
            pause = self.turn()
            try:
                event = self._events.get(timeout=min(max(pause, 0.0), HUNG_S / 4))
            except queue.Empty:
                event = failover.Wake()
            self._step(event)

    def turn(self) -> float:
        """Take what has come, and what is due; return for how long there is nothing more."""
        while not self._events.empty():
            self._step(self._events.get())
        now = self._clock()
        if self.machine.wake_at <= now:
            self._step(failover.Wake())
        return self.machine.wake_at - self._clock() if self._events.empty() else 0.0

    def _step(self, event: failover.Event) -> None:
        for effect in self.machine.step(event, self._clock()):
            self._carry_out(effect)

    def _carry_out(self, effect: failover.Effect) -> None:
        match effect:
            case failover.Observe():
                self._request(effect)
            case failover.Swap(record):
                if record.holder:
                    self._announce(record)
                self._request(effect)
            case failover.Save(epoch):
                self._save(epoch).add_done_callback(
                    lambda done: self.post(failover.Saved(not done.cancelled() and done.exception() is None))
                )
            case failover.Promoted(epoch):
                log("lease.promoted", epoch=epoch)
                self._told.promoted(epoch)
            case failover.Drifting():
                log("lease.drifting")
                self._told.drifting()
            case failover.Demoted(reason):
                log("lease.demoted", reason=reason)
                self._told.demoted(reason)
            case failover.Released():
                self._released.set()
            case failover.Alarm(text):
                log("lease.alarm", error=text)

    # The register

    def _request(self, request: failover.Request) -> None:
        if self._inline:
            self.post(self._answer(request))
        else:
            self._requests.put(request)

    def _ask_on(self) -> None:
        while (request := self._requests.get()) is not None:
            self.post(self._answer(request))

    def _answer(self, request: failover.Request) -> failover.Event:
        """Ask the register; every answer is an event."""
        try:
            if isinstance(request, failover.Swap):
                try:
                    answer: failover.Event = failover.Swapped(self._register.swap(request.record, request.version))
                except Conflict:
                    answer = failover.Observed(*self._register.read())
            else:
                answer = failover.Observed(*self._register.read())
        except MirrorError as error:
            self._complain(error)
            return failover.NoAnswer()
        except Exception as error:  # the top of this task: a register that fails grants nothing
            self._complain(MirrorError(f"the register failed: {error!r}"[:500], hint="report this error"))
            return failover.NoAnswer()
        if self.error is not None:
            self.error = None
            log("lease.register_back")
        return answer

    def _complain(self, error: MirrorError) -> None:
        if self.error is None or str(self.error) != str(error):
            log("lease.register_failed", error=str(error), hint=error.hint)
        self.error = error


def machine(
    replica: str, incarnation: str, epoch: int, timing: failover.Timing, kind: str,
) -> Failover:  # fmt: skip
    """Return the machine for an arbiter's kind."""
    return Failover(
        replica, incarnation, epoch, timing, drifts=kind == "s3", returns=kind != "solo", jitter=random.random
    )


def timing(kind: str, lease_s: float) -> failover.Timing:
    """Return how often an arbiter's record is renewed and looked at."""
    if kind == "solo":
        return failover.Timing(lease_s=math.inf, beat_s=math.inf, retry_s=0.1)
    share, retry = (1 / 5, 0.18) if kind == "etcd" else (1 / 4, 1 / 16)
    return failover.Timing(lease_s=lease_s, beat_s=lease_s * share, retry_s=lease_s * retry)
