"""Whether this replica acts: the lease on one side, and what needs it, the log and the broker, on the other.

Promoted, it pushes under the epoch and speaks to the broker under the group's one client identifier; the broker
itself ends the session of a predecessor. Demoted, it leaves the broker without a word, since a successor speaks,
and follows the log. Adrift, it keeps the session that it has, and begins nothing.

What this module does not do: decide (`gateway.failover`), or mirror, which every replica does at all times.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gateway import failover
from gateway.config import Config
from gateway.failover import Role
from gateway.io.leading import Leading, boottime, machine, timing
from gateway.io.publisher import Publisher
from mirror.errors import ConfigError, Fenced, MirrorError
from mirror.lease import Record, Register

if TYPE_CHECKING:
    from gateway.io.push import Pusher

TAKEN_OVER = "mqtt.taken_over"
ENDED = ("mqtt.disconnected", TAKEN_OVER)
STANDBY = "another replica of the group publishes"
FENCED_HINT = "stop the other gateway (`edgemirror status` says who holds the log), then restart this one"


class Acting:
    """Joins lease, log and broker; the methods may be called from any thread.

    Args:
        config: The gateway's.
        register: Where the lease's record stands.
        incarnation: Random name of this process.
        epoch: Highest that was ever durable here.
        save: Makes an epoch durable.
        announce: See `Leading`.

    Attributes:
        epoch: Under which this replica acts, or acted last.
    """

    def __init__(
        self, config: Config, register: Register, incarnation: str, epoch: int, save: Callable[[int], Future[Any]],
        announce: Callable[[Record], None] = lambda record: None,
    ) -> None:  # fmt: skip
        kind = config.arbiter.kind
        self.epoch = epoch
        self.register = register
        self.leading = Leading(
            machine(config.replica.name, incarnation, epoch, timing(kind, config.arbiter.seconds), kind),
            register, save=save, told=self, announce=announce,
        )  # fmt: skip
        self.fenced: MirrorError | None = None  # why it will never act again
        self._is_solo, self._ending = kind == "solo", False
        self._name = config.replica.name
        self._pusher: Pusher | None = None
        self._publisher: Publisher | None = None
        self._lock = threading.Lock()  # so that whoever is attached meanwhile is told too

    @property
    def role(self) -> Role:
        """What this replica does for the group."""
        return self.leading.machine.role

    @property
    def trouble(self) -> MirrorError | None:
        """Why the group may be without a leader, as far as this replica knows."""
        return self.fenced or (self.leading.error if self.role is not Role.LEADER else None)

    def attach(self, *, pusher: Pusher | None = None, publisher: Publisher | None = None) -> None:
        """Tell these of the role, now and whenever it changes."""
        with self._lock:
            self._pusher, self._publisher = pusher or self._pusher, publisher or self._publisher
            if self.role is not Role.LEADER:
                return
            if pusher is not None:
                pusher.lead(self.epoch)
            if publisher is not None:
                self._speak(publisher)

    def fit(self, *, ready: bool, reason: str = "") -> None:
        """Say whether this replica may compete for the lease."""
        self.leading.post(failover.Ready(ready, reason))

    def ask(self, do: str) -> dict[str, Any]:
        """Do what a command on this box asks for, and tell the role as it is now.

        Raises:
            ConfigError: Nobody knows such a command, or it cannot be done now.
        """
        machine = self.leading.machine
        match do:
            case "role":
                pass
            case "promote" if self._is_solo or not machine.ready:
                why = "it is alone" if self._is_solo else machine.reason
                raise ConfigError(f"this replica cannot be promoted: {why}", hint="edgemirror status")
            case "demote" if self._is_solo:
                raise ConfigError("this replica is alone: nobody else could act", hint="stop the gateway instead")
            case "promote":
                self.leading.post(failover.Wish())
            case "demote":
                self.leading.post(failover.Yield())
            case _:
                raise ConfigError(f"this gateway knows no command {do!r}", hint="use the same version on both sides")
        record, now = machine.record, boottime()
        return {
            "replica": self._name, "role": machine.role.value, "epoch": self.epoch, "reason": machine.reason,
            "arbiter": self.register.arbiter, "fit": machine.ready,
            "holder": record.holder if record is not None else "",
            "lease_age_s": round(now - machine.seen_at, 3) if math.isfinite(machine.seen_at) else None,
            "trouble": str(self.trouble) if self.trouble is not None else "",
        }  # fmt: skip

    def stop(self) -> None:
        """Let go of the lease; what is said to the broker at the end is the publisher's."""
        self._ending = True
        self.leading.stop()

    # What the log and the broker say

    def known(self, epoch: int) -> None:
        """The log knows this epoch: ours has to be above it."""
        self.leading.post(failover.Known(epoch))

    def overruled(self, epoch: int, reason: str) -> None:
        """The log is led by somebody else."""
        if self._is_solo:
            self.fenced = Fenced(reason, hint=FENCED_HINT)
        self.leading.post(failover.Overruled(epoch, reason))

    def heard(self, event: str) -> None:
        """Take note of what happened at the broker."""
        if event in ENDED:
            self.leading.post(failover.Parted())

    # What the lease says: `gateway.io.leading.Told`

    def promoted(self, epoch: int) -> None:
        """See `Told`."""
        with self._lock:
            self.epoch = epoch
            if self._pusher is not None:
                self._pusher.lead(epoch)
            if self._publisher is not None:
                self._speak(self._publisher)

    def drifting(self) -> None:
        """See `Told`."""
        with self._lock:
            if self._pusher is not None:
                self._pusher.follow()
            if self._publisher is not None:
                self._publisher.stay()

    def demoted(self, reason: str) -> None:
        """See `Told`."""
        with self._lock:
            if self._pusher is not None and self.fenced is None:
                self._pusher.follow()
            if self._publisher is not None and not self._ending:
                self._publisher.pause(STANDBY, quietly=self._has_successor())

    def _has_successor(self) -> bool:
        """Whether another replica acts or is about to: otherwise the broker has to say that nobody speaks."""
        record = self.leading.machine.record
        return self.fenced is not None or (
            record is not None and {record.holder, record.wish} - {"", self._name} != set()
        )

    def _speak(self, publisher: Publisher) -> None:
        publisher.tell("role", b'{"role":"PRIMARY","epoch":%d}' % self.epoch)
        publisher.resume(self.epoch)
