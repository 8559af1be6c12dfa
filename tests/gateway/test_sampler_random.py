"""The sampler against a server that misbehaves at random; `tests/sim` is the same with everything around it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import sampler
from gateway.sampler import (
    WRAP,
    Acknowledge,
    Delivered,
    NotAvailable,
    Republish,
    Sampler,
    Stalled,
    Subscribed,
    distance,
)
from mirror.coverage import Axis, Grade, IntervalSet, Reason
from tests.gateway.ledgers import MS, START, Ledger, fresh, subscribed


class Server:
    """A server of one subscription that keeps what is not acknowledged, up to a bound."""

    def __init__(self, keeps: int, axis: Axis, first: int) -> None:
        self.keeps, self.axis = keeps, axis
        self.sequence, self.now = first, START
        self.sent: dict[int, int] = {}  # by number of use, not by sequence: the truth
        self.kept: dict[int, int] = {}  # sequence -> publish time
        self.log: list[tuple[int, int]] = []  # (publish time, sequence) of every message ever made

    def publish(self, *, more: bool) -> Delivered:
        self.now += 100 * MS if not more else 0
        n = self.sequence
        self.kept[n] = self.now
        self.log.append((self.now, n))
        while len(self.kept) > self.keeps:
            del self.kept[next(iter(self.kept))]
        self.sequence = sampler.after(n)
        return self._delivered(n, self.now, more=more)

    def keepalive(self) -> Delivered:
        self.now += 100 * MS
        return self._delivered(self.sequence, self.now, keepalive=True)

    def republish(self, n: int) -> sampler.Event:
        if n not in self.kept:
            return NotAvailable(n)
        response = self.now + 5 * MS
        return Delivered(
            n, self.kept[n] if self.axis is Axis.PUBLISH else 0, response, republished=True, ref=(self.kept[n], n)
        )

    def _delivered(self, n: int, ticks: int, **more: Any) -> Delivered:
        publish = ticks if self.axis is Axis.PUBLISH else 0
        return Delivered(n, publish, ticks, available=tuple(self.kept), ref=(ticks, n), **more)


STEPS = st.lists(
    st.sampled_from(
        [
            "send",
            "send",
            "send",
            "more",
            "lose",
            "alive",
            "lose_alive",
            "late",
            "arrive",
            "twice",
            "crash",
            "new",
            "anew",
            "stall",
        ]
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(STEPS, st.integers(1, 8), st.sampled_from([Axis.PUBLISH, Axis.RESPONSE]), st.sampled_from([1, WRAP - 5]))
def test_nothing_missing_is_ever_claimed_and_nothing_stored_twice(
    steps: list[str], keeps: int, axis: Axis, first: int
) -> None:
    server = Server(keeps, axis, first)
    ledger = fresh()
    subscribed(ledger)
    if first != 1:  # a subscription that has lived for long
        ledger.machine.expected = first
    late: list[Delivered] = []
    subscription = 1

    def deliver(event: sampler.Event) -> None:
        for effect in ledger(event):
            match effect:
                case Republish():
                    deliver(server.republish(effect.sequence))
                case Acknowledge():
                    server.kept.pop(effect.sequence, None)

    for step in steps:
        match step:
            case "send" | "more":
                deliver(server.publish(more=step == "more"))
            case "lose":
                server.publish(more=False)
            case "late":
                late.append(server.publish(more=False))
            case "arrive" if late:
                deliver(late.pop())
            case "alive":
                deliver(server.keepalive())
            case "lose_alive":
                server.keepalive()
            case "crash":
                late.clear()
                machine = Sampler("s1", "a", ledger.machine.position, lambda h: f"tag{h}")
                position = machine.position
                ledger.machine = machine
                resumable = position is not None and position.subscription == subscription and position.sequence
                deliver(Subscribed(subscription, 7, resumed=bool(resumable), reason=Reason.GATEWAY_DOWN))
                if not resumable:
                    ledger.machine.expected = first
            case "twice":
                event = server.publish(more=False)
                deliver(event)
                late.append(event)
            case "anew" if distance(ledger.machine.expected, 1) >= WRAP // 2:
                late.clear()
                server.kept.clear()
                server.sequence = 1
                deliver(server.publish(more=False))
            case "stall":
                ledger(Stalled())
            case "new":
                late.clear()
                subscription += 1
                server.kept.clear()
                server.now += 1000 * MS
                first = server.sequence = 1
                deliver(Subscribed(subscription, 7, resumed=False, reason=Reason.DISCONNECTED))
            case _:
                pass
    deliver(server.publish(more=False))
    deliver(server.publish(more=False))
    check(server, ledger)


def check(server: Server, ledger: Ledger) -> None:
    """What is stored is stored once and pushed some day; what is claimed is there."""
    stored = [s.ref for s in ledger.stored]
    assert len(stored) == len(set(stored)), "a message was stored twice"
    ends = [s.pub_to for s in ledger.stored]
    assert ends == sorted(set(ends)), "chunks of one timeline end one after the other"
    gaps = IntervalSet((g.start, ledger.ended.get(g.id) or g.end or 0) for g in ledger.gaps.values())
    covered = ledger.covered()
    held = IntervalSet((c.start, c.end) for c in ledger.coverage.values() if c.grade == Grade.HELD)
    assert not (covered & gaps), "an interval is claimed and missing"
    for s in ledger.stored:
        assert covered.covers(s.pub_to - 1, s.pub_to) or held.covers(s.pub_to - 1, s.pub_to), "stored, never pushed"
    for made in server.log:
        if made not in stored and made[0] <= (covered.intervals[-1].end if covered else 0):
            assert made[0] not in covered, f"{made} is missing inside a claim"
    if covered:
        first_claim, last_claim = (covered | gaps).intervals[0].start, covered.intervals[-1].end
        assert IntervalSet([(first_claim, last_claim)]) == covered | gaps, "neither covered nor a gap"
