"""When a segment is sealed, and what the log still lacks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.sync import (
    DAY_S,
    GAPS_MAX,
    Accepted,
    Closed,
    Dropped,
    Measure,
    Measured,
    Opened,
    Part,
    Policy,
    Seal,
    Spent,
    Sync,
    Tick,
    unpushed,
    untold,
)
from mirror.coverage import Closure, Coverage, Gap, Grade, IntervalSet, Promise, Reason, Settled, Stream
from mirror.header import Closing

POLICY = Policy(rows_max=1000, bytes_max=10_000)


class Run:
    """A machine with a backlog that fills at a rate, and a store that takes a while."""

    def __init__(self, policy: Policy = POLICY, *, rows_per_s: float = 0.0, took_s: float = 0.05, requests: int = 2):
        self.sync = Sync(policy, 0.0)
        self.now, self.rows, self.rows_per_s, self.took_s, self.requests = 0.0, 0.0, rows_per_s, took_s, requests
        self.sealed: list[tuple[float, int]] = []
        self.spent = 0

    def carry_out(self, effects: list) -> None:
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, Measure):
                effects += self.sync.step(Measured(int(self.rows), int(self.rows * 10)), self.now)
            elif isinstance(effect, Seal):
                rows = min(int(self.rows), self.sync.policy.rows_max)
                self.sealed.append((self.now, rows))
                self.advance(self.took_s)
                self.rows -= rows
                self.spent += self.requests
                self.sync.step(Spent(self.requests), self.now)
                effects += self.sync.step(Accepted(self.took_s), self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.rows += seconds * self.rows_per_s

    def until(self, end: float) -> None:
        while self.sync.wake_at < end:
            self.advance(max(0.0, self.sync.wake_at - self.now))
            self.carry_out(self.sync.step(Tick(), self.now))
        self.advance(end - self.now)

    def open(self) -> None:
        self.carry_out(self.sync.step(Opened(), self.now))


def gaps_between(sealed: list[tuple[float, int]]) -> list[float]:
    return [b[0] - a[0] for a, b in pairwise(sealed)]


def test_nothing_is_sealed_before_the_fence_stands_and_the_backlog_is_still_measured():
    run = Run(rows_per_s=500)
    run.until(100)
    assert run.sealed == []
    assert run.sync.backlog.rows > 40_000


def test_a_full_segment_is_sealed_at_once_and_a_backlog_drains_one_after_the_other():
    run = Run()
    run.rows = 10_500
    run.open()
    assert [rows for _, rows in run.sealed] == [1000] * 10
    assert run.now < 10 * run.took_s + 0.01, "no pause between full segments"
    run.until(30)
    assert run.rows == 0


def test_a_trickle_is_sealed_by_age_at_the_shortest_interval_while_requests_are_to_spare():
    run = Run(rows_per_s=10)
    run.open()
    run.until(20)
    assert max(gaps_between(run.sealed)) < 2 * POLICY.interval_min_s + run.took_s


def test_silence_is_told_at_the_longest_interval():
    run = Run()
    run.open()
    run.until(600)
    pauses = gaps_between(run.sealed)
    assert pauses
    assert min(pauses) >= POLICY.interval_max_s


def test_small_segments_keep_the_days_budget():
    run = Run(rows_per_s=10)
    run.open()
    run.until(DAY_S)
    assert run.spent <= POLICY.requests_per_day * 1.05
    assert run.spent >= POLICY.requests_per_day * 0.7, "and use it"


def test_a_dear_store_makes_the_interval_longer():
    cheap, dear = Run(rows_per_s=10, requests=2), Run(rows_per_s=10, requests=6)
    for run in (cheap, dear):
        run.open()
        run.until(DAY_S / 4)
    assert dear.sync.interval_s > 2 * cheap.sync.interval_s
    assert dear.spent <= POLICY.requests_per_day / 4 + POLICY.requests_per_day / 24 * 1.1


def test_full_segments_are_sent_even_when_the_budget_is_spent():
    run = Run(Policy(rows_max=1000, bytes_max=10**9, requests_per_day=100), rows_per_s=500)
    run.open()
    run.until(3600)
    assert run.rows < 2000
    assert run.spent > 100


def test_a_slow_store_is_left_alone_between_small_segments():
    run = Run(rows_per_s=10, took_s=5.0)
    run.open()
    run.until(600)
    assert min(gaps_between(run.sealed)[10:]) >= 5.0 + 4.0


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(0, 50_000), st.integers(1, 50))
def test_the_interval_always_stays_in_its_bounds(times: list[float], spent: int, took: int):
    sync = Sync(POLICY, 0.0)
    sync.step(Spent(spent), 0.0)
    now = 0.0
    for step in times:
        now += step
        sync._busy = True
        sync.step(Accepted(float(took)), now)
        assert POLICY.interval_min_s <= sync.interval_s <= POLICY.interval_max_s


def test_what_was_returned_is_sealed_again_at_once_and_an_empty_seal_waits():
    sync = Sync(POLICY, 0.0)
    assert sync.step(Opened(), 0.0) == [Measure()]
    assert sync.step(Measured(5, 5), 0.0) == [Seal()]
    assert sync.step(Dropped(nothing=False), 1.0) == [Measure()]
    assert sync.step(Measured(5, 5), 1.0) == [Seal()]
    assert sync.step(Dropped(nothing=True), 1.0) == []
    assert sync.wake_at == 2.0


def test_the_backlog_is_measured_while_a_segment_is_in_flight_and_no_second_one_is_sealed():
    sync = Sync(POLICY, 0.0)
    sync.step(Opened(), 0.0)
    assert sync.step(Measured(5, 5), 0.0) == [Seal()]
    for now in (10.0, 20.0, 30.0):
        assert sync.step(Tick(), now) == [Measure()]
        assert sync.step(Measured(10**6, 10**6), now) == []
        assert sync.backlog.rows == 10**6


def test_closing_while_sealed_ends_sealing():
    sync = Sync(POLICY, 0.0)
    sync.step(Opened(), 0.0)
    sync.step(Measured(5, 5), 0.0)
    assert sync.step(Closed(), 0.0) == []
    assert sync.step(Tick(), 100.0) == [Measure()]
    assert sync.step(Measured(10**9, 10**9), 100.0) == []


# What the log lacks

TIMES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=6)


def claims(pairs: list[tuple[int, int]], grade: Grade) -> list[Coverage]:
    return [Coverage("s", "1-1", a, b, "a", grade) for a, b in IntervalSet([(x, x + n) for x, n in pairs])]


def times(found: list[Coverage]) -> set[int]:
    return {t for c in found for t in range(c.start + 1, c.end + 1)}


@given(TIMES, TIMES, TIMES, TIMES)
def test_after_pushing_what_is_missing_nothing_is_missing(a: list, b: list, c: list, d: list):
    journal = claims(a, Grade.COVERED) + claims(b, Grade.HELD)
    promise = Promise(claims(c, Grade.COVERED) + claims(d, Grade.HELD))
    before = times(promise.claims())
    parts = unpushed(journal, Settled(promise, []))
    rows = times([p.claim for p in parts if p.rows])
    assert rows == times(journal) - before, "rows go where the log has none, and only there"
    assert [p.claim.start for p in parts] == sorted(p.claim.start for p in parts)
    for part in parts:
        promise.add(part.claim)
    assert times(claims(a, Grade.COVERED)) <= {t for t in range(40) if t in promise.complete("s", "1-1")}
    again = unpushed(journal, Settled(promise, []))
    assert not [p for p in again if p.rows]
    assert not [p for p in again if p.claim.grade is Grade.COVERED]


def test_rows_held_before_are_not_sent_again_when_they_turn_out_complete():
    promise = Promise(claims([(0, 10)], Grade.HELD))
    complete = claims([(0, 12)], Grade.COVERED)
    assert unpushed(complete, Settled(promise, [])) == [
        Part(Coverage("s", "1-1", 0, 10, "a"), False),
        Part(Coverage("s", "1-1", 10, 12, "a"), True),
    ]


def test_other_origins_are_other_rows():
    promise = Promise(claims([(0, 10)], Grade.COVERED))
    other = Coverage("s", "1-1", 0, 10, "a/history", Grade.HISTORY)
    assert unpushed([other], Settled(promise, [])) == [Part(other, True)]


def test_what_another_replica_has_claimed_is_left_out_but_for_a_guard_at_its_ends():
    second = 10_000_000
    stream = Stream("s", "urn:x", revised_publishing_ms=100.0, revised_sampling_ms=50.0)
    promise = Promise([Coverage("s", "1-1", 0, 60 * second, "b")])
    ours = [Coverage("s", "1-1", -second, 90 * second, "a")]
    guard = stream.guard_ticks
    assert guard == 1_500_000
    assert unpushed(ours, Settled(promise, [stream])) == [
        Part(Coverage("s", "1-1", -second, guard, "a"), True),
        Part(Coverage("s", "1-1", 60 * second - guard, 90 * second, "a"), True),
    ]
    held = Promise([Coverage("s", "1-1", 0, 60 * second, "b", Grade.HELD)])
    assert [p.claim for p in unpushed(ours, Settled(held, [stream]))] == ours, "held is not complete"
    later = Promise([Coverage("s", "1-2", 0, 60 * second, "b"), Coverage("t", "1-1", 0, 60 * second, "b")])
    assert [p.claim for p in unpushed(ours, Settled(later, [stream]))] == ours, (
        "another timeline or stream is another axis"
    )


def test_a_gap_is_told_when_found_when_ended_and_when_closed_and_then_no_more():
    gap = Gap.opened("s", "1-1", 5, Reason.MISSED)
    assert untold([gap], {}) == ([gap], [])
    assert untold([gap], {gap.id: "open"}) == ([], [])
    ended = Gap.opened("s", "1-1", 5, Reason.MISSED, end=9)
    assert untold([ended], {gap.id: "open"}) == ([ended], [])
    assert untold([ended], {gap.id: ended.extent}) == ([], [])
    closed = Gap(gap.id, "s", "1-1", 5, Reason.MISSED, 9, None, Closure.HISTORY, "as asked")
    closing = Closing(gap.id, Closure.HISTORY, "as asked", 9)
    assert untold([closed], {gap.id: ended.extent}) == ([], [closing])
    assert untold([closed], {}) == ([ended], [closing]), "found, ended and closed between two segments"
    assert untold([closed], {gap.id: "closed"}) == ([], [])


def test_a_gap_that_became_longer_or_wider_is_told_again():
    gap = Gap.opened("s", "1-1", 5, Reason.OVERFLOW, end=9, tags=["x"])
    for later in (replace(gap, end=12), replace(gap, tags=["x", "y"])):
        assert untold([later], {gap.id: gap.extent}) == ([later], [])
        assert untold([later], {gap.id: later.extent}) == ([], [])


def test_gaps_are_told_in_portions():
    many = [Gap.opened("s", "1-1", t, Reason.MISSED) for t in range(GAPS_MAX + 5)]
    told, _ = untold(many, {})
    assert len(told) == GAPS_MAX
    rest, _ = untold(many, {g.id: "open" for g in told})
    assert [*told, *rest] == many
