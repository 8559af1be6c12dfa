"""The interval algebra against plain sets of integers, and the identities built on it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mirror.coverage import (
    Coverage,
    Gap,
    Grade,
    IntervalSet,
    Promise,
    Reason,
    StreamItem,
    StreamSpec,
    timeline_name,
    timeline_order,
)

pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def times(intervals: list[tuple[int, int]] | IntervalSet) -> set[int]:
    return {t for start, end in intervals for t in range(start + 1, end + 1)}


@given(pairs, pairs)
def test_union_difference_and_intersection_are_those_of_the_times(a: list[tuple[int, int]], b: list[tuple[int, int]]):
    left, right = IntervalSet(a), IntervalSet(b)
    assert times(left) == times(a)
    assert times(left | right) == times(a) | times(b)
    assert times(left - right) == times(a) - times(b)
    assert times(left & right) == times(a) & times(b)


@given(pairs, pairs)
def test_equal_times_are_equal_sets_in_one_form(a: list[tuple[int, int]], b: list[tuple[int, int]]):
    left, right = IntervalSet(a), IntervalSet(b)
    assert (left == right) == (times(a) == times(b))
    for found in (left, left | right, left - right, left & right):
        ordered = list(found)
        assert all(i.start < i.end for i in ordered)
        assert all(x.end < y.start for x, y in pairwise(ordered))


@given(pairs, st.integers(0, 40), st.integers(0, 40))
def test_add_and_covers_agree_with_the_times(a: list[tuple[int, int]], start: int, end: int):
    known = IntervalSet(a)
    assert times(known.add(start, end)) == times(a) | times([(start, end)])
    assert known.covers(start, end) == (times([(start, end)]) <= times(a))
    assert (end in known) == (end in times(a))


@given(pairs, st.integers(0, 50))
def test_gaps_and_known_times_fill_the_axis_without_overlap(a: list[tuple[int, int]], newest: int):
    known = IntervalSet(a)
    gaps = known.gaps(newest)
    assert not times(gaps) & times(known)
    if known:
        first = min(times(known)) - 1
        assert times(gaps) | times(known) == times([(first, max(newest, *times(known)))])
    else:
        assert not gaps


claims = st.lists(
    st.builds(
        lambda s, t, o, g, start, size: Coverage(s, t, start, start + size, o, g),
        st.sampled_from("xy"), st.sampled_from(["1-1", "1-9"]), st.sampled_from(["a", "b", "a/history"]),
        st.sampled_from(list(Grade)), st.integers(0, 30), st.integers(1, 9),
    ),
    max_size=12,
)  # fmt: skip


@given(claims, st.randoms())
def test_a_promise_does_not_depend_on_the_order_of_claims_and_survives_its_own_listing(found: list[Coverage], r):
    shuffled = found.copy()
    r.shuffle(shuffled)
    promise = Promise(found)
    assert promise.claims() == Promise(shuffled).claims() == Promise(promise.claims()).claims()
    for claim in found:
        assert promise[claim.key].covers(claim.start, claim.end)


@given(claims, claims)
def test_subtracting_a_claim_takes_its_times_out_and_no_others(found: list[Coverage], rotten: list[Coverage]):
    promise = Promise(found)
    before = {key: times(promise[key]) for key in {c.key for c in found}}
    for claim in rotten:
        promise.subtract(claim)
    for key, held in before.items():
        gone = {t for c in rotten if c.key == key for t in range(c.start + 1, c.end + 1)}
        assert times(promise[key]) == held - gone


def test_held_rows_count_as_pushed_but_not_as_complete():
    promise = Promise([Coverage("x", "1-1", 0, 10, "a"), Coverage("x", "1-1", 10, 20, "a", Grade.HELD)])
    assert promise["x", "1-1", "a"].covers(0, 20)
    assert promise.complete("x", "1-1") == IntervalSet([(0, 10)])


def test_two_replicas_with_interleaved_gaps_complete_each_other():
    promise = Promise([Coverage("x", "1-1", 0, 10, "a"), Coverage("x", "1-1", 8, 20, "b")])
    assert promise.complete("x", "1-1") == IntervalSet([(0, 20)])
    assert promise["x", "1-1", "a"] == IntervalSet([(0, 10)])


def test_intervals_of_two_timelines_never_merge():
    promise = Promise([Coverage("x", "1-1", 0, 10, "a"), Coverage("x", "1-10", 10, 20, "a")])
    assert len(promise.claims()) == 2
    assert promise.timelines("x") == ["1-1", "1-10"]


def test_timelines_are_ordered_as_numbers_by_start_then_break():
    names = [timeline_name(9, 100), timeline_name(10, 5), timeline_name(10, 40), "odd"]
    assert sorted(reversed(names), key=timeline_order) == ["odd", *names[:3]]


def test_a_stream_id_ignores_the_order_of_items_and_nothing_else():
    a, b = StreamItem("t1", 100, 10), StreamItem("t2", 100, 10)
    spec = StreamSpec("urn:x", 100, (a, b))
    assert spec.id == StreamSpec("urn:x", 100.0, (b, a)).id
    others = [
        StreamSpec("urn:y", 100, (a, b)), StreamSpec("urn:x", 200, (a, b)), StreamSpec("urn:x", 100, (a,)),
        StreamSpec("urn:x", 100, (a, StreamItem("t2", 50, 10))),
        StreamSpec("urn:x", 100, (a, StreamItem("t2", 100, 9))),
        StreamSpec("urn:x", 100, (a, StreamItem("t2", 100, 10, "deadband"))),
    ]  # fmt: skip
    assert len({spec.id, *(s.id for s in others)}) == 7


def test_the_same_hole_found_twice_has_one_id_and_other_holes_have_others():
    gap = Gap.opened("x", "1-1", 5, Reason.OVERFLOW, tags=["b", "a"])
    assert gap.id == Gap.opened("x", "1-1", 5, Reason.OVERFLOW, tags=["a", "b"], end=9).id
    assert gap.id != Gap.opened("x", "1-1", 5, Reason.OVERFLOW).id
    assert gap.id != Gap.opened("x", "1-1", 6, Reason.OVERFLOW, tags=["a", "b"]).id
