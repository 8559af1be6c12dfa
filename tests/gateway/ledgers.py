"""What the tests of the sampler share: a ledger of its effects, and short names for its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway import sampler
from gateway.sampler import (
    Acknowledge,
    Backfill,
    CloseGap,
    Delivered,
    Extend,
    OpenGap,
    Republish,
    Resumed,
    Sampler,
    Store,
    Subscribed,
)
from mirror.coverage import Closure, Coverage, Gap, Grade, IntervalSet, Reason

START = 1_000_000_000
MS = 10_000


@dataclass
class Ledger:
    """What a journal would hold: the machine's effects, carried out."""

    machine: Sampler
    stored: list[Store] = field(default_factory=list)
    coverage: dict[tuple[str, int, str], Coverage] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)
    closed: dict[str, tuple[Closure, str]] = field(default_factory=dict)
    ended: dict[str, int | None] = field(default_factory=dict)
    acked: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    backfills: list[Gap] = field(default_factory=list)
    resumed: int = 0

    def __call__(self, event: sampler.Event) -> list[sampler.Effect]:
        effects = self.machine.step(event)
        for effect in effects:
            match effect:
                case Store():
                    self.stored.append(effect)
                case Extend(c):
                    self.coverage[c.timeline, c.start, c.grade] = c
                case OpenGap(gap):
                    self.gaps[gap.id] = gap
                case CloseGap():
                    self.closed[effect.gap.id] = (effect.closure, effect.why)
                    self.ended[effect.gap.id] = effect.gap.end
                case Acknowledge():
                    self.acked.append(effect.sequence)
                case Republish():
                    self.asked.append(effect.sequence)
                case Backfill(gap):
                    self.backfills.append(gap)
                case Resumed():
                    self.resumed += 1
        return effects

    def covered(self, timeline: str | None = None) -> IntervalSet:
        return IntervalSet(
            (c.start, c.end)
            for c in self.coverage.values()
            if c.grade == Grade.COVERED and timeline in (None, c.timeline)
        )

    def sequences(self) -> list[int]:
        return [s.sequence for s in self.stored]


def fresh(position: sampler.Position | None = None) -> Ledger:
    return Ledger(Sampler("s1", "a", position, lambda handle: f"tag{handle}"))


def subscribed(ledger: Ledger, *, server_start: int = 7, subscription: int = 1) -> Ledger:
    ledger(Subscribed(subscription, server_start, resumed=False, reason=Reason.GATEWAY_DOWN))
    return ledger


def message(sequence: int, ms: int, **more: Any) -> Delivered:
    return Delivered(sequence, START + ms * MS, START + ms * MS, **{"ref": sequence, **more})


def alive(next_sequence: int, ms: int) -> Delivered:
    return message(next_sequence, ms, keepalive=True)


def live(*, ms: int = 100, count: int = 3, **more: Any) -> Ledger:
    """A new subscription that has delivered `count` messages, `ms` apart."""
    ledger = subscribed(fresh(), **more)
    for n in range(1, count + 1):
        ledger(message(n, n * ms))
    return ledger
