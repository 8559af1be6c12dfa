"""Always one at the most may act, over random schedules; and each rule's removal is found by some seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gateway import failover
from gateway.failover import Effect, Failover, Timing
from mirror.lease import Record
from tests.sim.lease import Violation, World

SEEDS = 400
MUTANT_SEEDS = 1500


def world(seed: int, **how: Any) -> World:
    """Return one schedule; the seed decides how many replicas there are, and whether they drift."""
    return World(seed, replicas=2 + seed % 2, **{"drifts": seed % 4 == 1, **how})


def test_always_one_replica_at_the_most_may_act_and_one_does_once_the_faults_are_over() -> None:
    promotions = demotions = 0
    for seed in range(SEEDS):
        one = world(seed)
        try:
            one.run()
        except Violation as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(one.trace[-60:])) from error
        promotions += len(one.promotions)
        demotions += len(one.demotions)
    assert promotions > 5 * SEEDS < 2 * demotions, "the schedules must be worth something"


def test_without_faults_never_does_the_lease_change_hands() -> None:
    for seed in range(20):
        one = world(seed, faults=False).run()
        assert len(one.promotions) == 1
        assert not one.demotions


def test_one_seed_is_one_schedule() -> None:
    assert world(11).run().trace == world(11).run().trace


# One rule removed


class CountedFromTheAnswer(Failover):
    """The right counts from when the answer came."""

    def _granted(self, epoch: int, sent: float, now: float) -> list[Effect]:
        return super()._granted(epoch, now, now)


class LastSendCounts(Failover):
    """Whatever record of ours stands there, it counts from the last sending."""

    def _stands(self, record: Record, now: float) -> list[Effect]:
        self._sends = dict.fromkeys(self._sends, self._sent_at)
        return super()._stands(record, now)


class EpochNotDurable(Failover):
    """The epoch is asked for before it is on disk."""

    def _save(self, epoch: int) -> list[Effect]:
        effects = super()._save(epoch)
        return [*effects, *self._kept(self._sent_at, done=True)]


class LateSuccessCounts(Failover):
    """An answer that comes too late promotes all the same."""

    def _granted(self, epoch: int, sent: float, now: float) -> list[Effect]:
        if self.role is failover.Role.STANDBY and not self._freeing:
            self.role, self.epoch, self.deadline = failover.Role.LEADER, epoch, now + self._timing.right_s
            return [failover.Promoted(epoch)]
        return super()._granted(epoch, sent, now)


class SameBeat(Failover):
    """A renewal writes the bytes that stand there."""

    def _swap(self, record: Record, now: float) -> list[Effect]:
        effects = super()._swap(record, now)
        old, asked = self.record, self._asked
        assert isinstance(asked, failover.Swap)
        if old is None or old.holder != record.holder or old.epoch != record.epoch:
            return effects
        self._asked = failover.Swap(old, asked.version)
        return [self._asked]


class FirstSightCounts(Failover):
    """A rival counts from the first version it saw of an epoch, not from the newest."""

    def _answer(self, record: Record | None, version: str, now: float) -> list[Effect]:
        before, seen = self.record, self.seen_at
        effects = super()._answer(record, version, now)
        if before is not None and record is not None and before.epoch == record.epoch and record.holder:
            self.seen_at = seen
        return effects


class EpochOfOurOwn(Failover):
    """The next epoch is above our own only."""

    def _take(self, now: float) -> list[Effect]:
        epoch = max(self._floor, self.epoch) + 1
        return self._save(epoch) if self._saved < epoch else self._swap(self._own(self._saved), now)


class ActsAfterTheEnd(Failover):
    """The end of the right is not looked at."""

    def _expire(self, now: float) -> list[Effect]:
        return []

    def may_act(self, now: float) -> bool:
        return self.role is failover.Role.LEADER


def without_margin(*args: Any, **how: Any) -> Failover:
    """Count as if all clocks went alike."""
    replica, incarnation, epoch, _ = args
    return Failover(replica, incarnation, epoch, Timing(drift=0.0, hold_s=2.0), **how)


MUTANTS: dict[str, Callable[..., Failover]] = {
    "counted from the answer": CountedFromTheAnswer,
    "an epoch that is not durable": EpochNotDurable, "late success": LateSuccessCounts, "the same beat": SameBeat,
    "first sight counts": FirstSightCounts, "an epoch of our own": EpochOfOurOwn,
    "acting after the end": ActsAfterTheEnd, "no margin for clocks": without_margin,
}  # fmt: skip


def killer(**how: Any) -> int | None:
    """Return the first seed that finds a violation."""
    for seed in range(MUTANT_SEEDS):
        try:
            world(seed, **how).run()
        except (Violation, AssertionError):
            return seed
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_never_holds_without_a_rule(name: str) -> None:
    assert killer(make=MUTANTS[name]) is not None, f"nothing finds that a rule is missing: {name}"


def test_a_certificate_for_whatever_stands_there_is_found() -> None:
    assert killer(exact=False) is not None


# Single steps


TIMING = Timing()


def started(name: str = "a", make: Callable[..., Failover] = Failover, **how: Any) -> Failover:
    """Return a machine that is fit and has seen an empty register."""
    machine = make(name, f"{name}1", 0, TIMING, **how)
    assert machine.step(failover.Ready(True), 0.0) == [failover.Observe()]
    assert machine.step(failover.Observed(None, "none"), 0.0) == [failover.Save(1)]
    return machine


def leading(**how: Any) -> Failover:
    """Return a machine that acts from 0.0 on."""
    machine = started(**how)
    [swap] = machine.step(failover.Saved(), 0.0)
    assert isinstance(swap, failover.Swap)
    assert machine.step(failover.Swapped("1"), 0.01) == [failover.Promoted(1)]
    return machine


def test_the_right_ends_a_lease_after_the_sending_less_the_drift() -> None:
    machine = leading()
    assert machine.deadline == TIMING.right_s < TIMING.lease_s
    assert machine.may_act(machine.deadline - 0.001)
    assert not machine.may_act(machine.deadline)


def renewed_late(make: Callable[..., Failover]) -> Failover:
    """Return a machine whose first renewal came to stand after its answer was given up, and before the second one."""
    machine = leading(make=make)
    before = machine.record
    [first] = machine.step(failover.Wake(), 0.1)
    machine.step(failover.NoAnswer(), 0.2)
    assert machine.step(failover.Wake(), 0.27) == [failover.Observe()]
    [second] = machine.step(failover.Observed(before, "1"), 0.271)
    assert isinstance(first, failover.Swap) and isinstance(second, failover.Swap)
    assert first.record != second.record, "each can be told from the other"
    machine.step(failover.Observed(first.record, "2"), 0.28)
    return machine


def test_a_renewal_that_was_late_counts_from_its_own_sending() -> None:
    assert renewed_late(Failover).deadline == 0.1 + TIMING.right_s
    assert renewed_late(LastSendCounts).deadline == 0.271 + TIMING.right_s, "the rule's removal is seen"


def test_a_rival_waits_a_lease_and_the_drift_from_the_last_change() -> None:
    rival = Failover("b", "b1", 0, TIMING)
    rival.step(failover.Ready(True), 0.0)
    held = Record(4, "a", "a1", 7)
    rival.step(failover.Observed(held, "7"), 0.0)
    assert rival.step(failover.Wake(), TIMING.wait_s - 0.001) == [failover.Observe()]
    assert rival.step(failover.Observed(held, "7"), TIMING.wait_s - 0.001) == []
    assert rival.step(failover.Wake(), TIMING.wait_s + TIMING.beat_s) == [failover.Save(5)]


def test_a_log_that_knows_a_higher_epoch_raises_ours_without_a_pause() -> None:
    machine = leading()
    assert machine.step(failover.Known(9), 0.02) == [failover.Save(10)]
    [swap] = machine.step(failover.Saved(), 0.03)
    assert isinstance(swap, failover.Swap)
    assert swap.record.epoch == 10
    assert machine.step(failover.Swapped("2"), 0.04) == [failover.Promoted(10)]


def test_whoever_cannot_write_down_an_epoch_does_not_lead() -> None:
    machine = started()
    assert machine.step(failover.Saved(False), 0.0) == []
    assert machine.wake_at == TIMING.lease_s


def test_a_register_that_does_not_answer_ends_acting_with_etcd_and_not_what_the_broker_fences_with_s3() -> None:
    strict, drifting = leading(), leading(drifts=True)
    for machine in (strict, drifting):
        machine.step(failover.Wake(), 0.1)
        machine.step(failover.NoAnswer(), 0.2)
    assert failover.Demoted("the lease was not renewed in time") in strict.step(failover.Wake(), 0.46)
    assert failover.Drifting() in drifting.step(failover.Wake(), 0.46)
    assert not drifting.may_act(0.46)
    gone = drifting.step(failover.Parted(), 60.0)
    assert [type(effect) for effect in gone if not isinstance(effect, failover.Observe)] == [failover.Demoted]


def test_who_drifted_and_finds_its_own_record_goes_on_under_a_higher_epoch_without_having_stopped() -> None:
    machine = leading(drifts=True)
    machine.step(failover.Wake(), 0.1)
    own = machine.record
    machine.step(failover.NoAnswer(), 0.2)
    effects = machine.step(failover.Wake(), 3600.0)
    assert effects == [failover.Drifting(), failover.Observe()]
    assert machine.step(failover.Observed(own, "1"), 3600.0) == [failover.Save(2)]
    machine.step(failover.Saved(), 3600.0)
    assert machine.step(failover.Swapped("2"), 3600.01) == [failover.Promoted(2)]


def test_with_solo_who_was_overruled_never_acts_again() -> None:
    timing = Timing(lease_s=math.inf, beat_s=math.inf)
    machine = Failover("a", "a1", 3, timing, returns=False)
    machine.step(failover.Ready(True), 0.0)
    assert machine.step(failover.Observed(None, "none"), 0.0) == [failover.Save(4)]
    machine.step(failover.Saved(), 0.0)
    assert machine.step(failover.Swapped("1"), 0.0) == [failover.Promoted(4)]
    assert machine.may_act(1e9)
    assert machine.step(failover.Overruled(5, "the log has a higher epoch"), 1.0) == [
        failover.Demoted("the log has a higher epoch")
    ]
    assert machine.step(failover.Wake(), 1e9) == []


def test_a_copy_of_the_disk_is_told_and_does_not_get_the_lease_back_at_once() -> None:
    machine = leading()
    machine.step(failover.Wake(), 0.1)
    effects = machine.step(failover.Observed(Record(2, "a", "a9", 8), "8"), 0.11)
    assert [type(effect) for effect in effects] == [failover.Demoted, failover.Alarm]
    assert machine.step(failover.Wake(), 0.3) == [failover.Observe()]


def test_a_wish_makes_the_holder_let_go_and_the_wisher_take_it() -> None:
    holder, wisher = leading(), Failover("b", "b1", 0, TIMING)
    wisher.step(failover.Ready(True), 0.0)
    held = holder.record
    wisher.step(failover.Observed(held, "1"), 0.02)
    [asking] = wisher.step(failover.Wish(), 0.03)
    assert isinstance(asking, failover.Swap)
    assert (asking.record.holder, asking.record.wish) == ("a", "b")
    wisher.step(failover.Swapped("2"), 0.03)
    holder.step(failover.Wake(), 0.1)
    told, freed = holder.step(failover.Observed(asking.record, "2"), 0.11)
    assert told == failover.Demoted("replica 'b' has asked for it")
    assert isinstance(freed, failover.Swap)
    assert holder.step(failover.Swapped("3"), 0.12) == [failover.Released()]
    wisher.step(failover.Stirred(), 0.13)
    assert wisher.step(failover.Observed(freed.record, "3"), 0.13) == [failover.Save(2)]
    third = Failover("c", "c1", 0, TIMING)
    third.step(failover.Ready(True), 0.0)
    assert third.step(failover.Observed(freed.record, "3"), 0.13) == [failover.Observe()], "it waits"
