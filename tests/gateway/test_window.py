"""Where in source time a gap lies, tag by tag, and what a historian's answers prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.window import Question, newest
from mirror.batch import SERVER_NULL, SOURCE_NULL, Batch
from mirror.coverage import Gap, Reason
from mirror.state import State

S = 10_000_000
T = 133_800_000_000_000_000
GAP = Gap.opened("s", "1-1", T, Reason.DISCONNECTED, end=T + 60 * S)
WIDEN = 13 * S // 10


def question(*tags: tuple[float | None, float | None, float], gap: Gap = GAP) -> Question:
    """Return the question about tags of whom is known: (time before, time after, published), in seconds from T."""

    def ticks(at: float | None) -> int:
        return 0 if at is None else T + int(at * S)

    columns = [np.array([ticks(tag[i]) for tag in tags], np.int64) for i in range(3)]
    return Question(gap, WIDEN, np.arange(len(tags), dtype=np.uint32), *columns)


def rows(*samples: tuple[int, float]) -> Batch:
    """Return rows of (handle, source time in seconds from T)."""
    batch = Batch.zeros(len(samples))
    batch.handle[:] = [handle for handle, _ in samples]
    batch.source_ticks[:] = [T + int(at * S) for _, at in samples]
    return batch


def kept(asked: Question, *samples: tuple[int, float]) -> list[float]:
    return ((asked.take(rows(*samples)).source_ticks - T) / S).tolist()


def spans(asked: Question) -> list[tuple[list[int], float, float]]:
    return [(c.handles, (c.start - T) / S, (c.end - T) / S) for c in asked.calls(asked.asked.tolist())]


@pytest.mark.parametrize("behind", [0.0, 300.0, 86_400.0, -3600.0])
def test_the_window_follows_the_source_s_clock_wherever_it_is(behind: float) -> None:
    """Samples of the gap's whole minute, and what is known on both sides, by that clock."""
    asked = question((-0.1 - behind, 60.1 - behind, 60.2))
    [(handles, start, end)] = spans(asked)
    assert handles == [0] and start <= -0.1 - behind and end >= 60.1 - behind
    assert end - start < 60 + 8 * 1.3, "and not what lies far around"
    answer = [(0, at - behind) for at in (-0.1, 0.1, 30.0, 59.9, 60.1)]
    assert kept(asked, *answer) == [at for _, at in answer] and asked.unproved == 0


def test_a_tag_that_has_the_same_time_as_before_has_not_changed_and_is_not_asked_for() -> None:
    asked = question((-5_000.0, -5_000.0, 60.2), (-0.1, 60.0, 60.2))
    assert asked.asked.tolist() == [1]
    overflow = Gap.opened("s", "1-1", T, Reason.OVERFLOW, end=T + S, tags=["a", "b"])
    assert question((-5.0, -5.0, 1.0), (-5.0, 0.5, 1.0), gap=overflow).asked.tolist() == [0, 1], "the server says so"


def test_a_tag_that_did_not_change_for_days_is_asked_for_around_the_gap_and_at_its_last_value_alone() -> None:
    asked = question((-200_000.0, 30.0, 60.2), (-0.1, 60.1, 60.2))
    calls = spans(asked)
    assert sorted(h for handles, *_ in calls for h in handles) == [0, 0, 1]
    assert all(end - start < 150 for _, start, end in calls)
    assert kept(asked, (0, 20.0), (0, 30.0), (1, -0.1), (1, 60.1)) and asked.unproved == 1
    assert kept(asked, (0, -200_000.0)) == [], "it is known already"
    assert asked.unproved == 0


def test_tags_of_other_clocks_are_asked_for_apart() -> None:
    asked = question(*[(-0.1, 60.1, 60.2)] * 3, *[(-3600.1, -3539.9, 60.2)] * 2)
    assert [handles for handles, *_ in spans(asked)] == [[3, 4], [0, 1, 2]]


def test_a_tag_of_which_nothing_came_since_is_asked_for_from_what_was_last_known_to_the_gap_s_end() -> None:
    asked = question((-90.0, None, 0.0))
    [(_, start, end)] = spans(asked)
    assert start <= -90.0 and end >= 60.0
    asked.take(rows((0, -90.0), (0, 10.0)))
    assert asked.unproved == 0
    ahead = question((-0.1, 59.9 + 1000, 60.2), (10.0, None, 0.0))
    assert max(end for _, _, end in spans(ahead)) >= 1060.0, "its clock may be ahead as another's is"


@pytest.mark.parametrize(
    ("answer", "is_early"),
    [
        ([], False),
        ([(0, 0.5), (0, 60.1)], False),  # what was known before is forgotten already
        ([(0, -0.1), (0, 30.0)], True),  # and here the end is not written yet
        ([(0, 30.0)], False),
        ([(1, -0.1), (1, 60.1)], False),  # another tag's
    ],
)
def test_an_answer_that_does_not_reach_both_ends_proves_nothing(answer: list[Any], is_early: bool) -> None:
    asked = question((-0.1, 60.1, 60.2), (-0.1, 60.1, 60.2))
    asked.take(rows((1, -0.1), (1, 60.1)))
    asked.take(rows(*answer))
    assert asked.unproved == 1 and asked.is_early is is_early


def test_a_historian_that_samples_by_itself_may_tell_of_what_lies_beyond_the_ends() -> None:
    asked = question((-0.1, 60.1, 60.2))
    asked.take(rows((0, -1.0), (0, 0.0), (0, 60.0), (0, 61.0)))
    assert asked.unproved == 0


def test_what_is_not_known_cannot_be_reached() -> None:
    for before, after in ((None, None), (None, 60.1)):
        asked = question((before, after, 60.2))
        asked.take(rows((0, -0.1), (0, 60.1)))
        assert asked.unproved == 1


@pytest.mark.parametrize("odd", [-(2**63), -1, 0, 2**63 - 1])
def test_times_outside_the_calendar_are_no_ends(odd: int) -> None:
    state = State()
    batch = Batch.zeros(3)
    batch.handle[:], batch.source_ticks[:], batch.server_ticks[:] = range(3), (odd, T, 0), (0, 0, T + 5)
    batch.flags[:] = (SERVER_NULL, SERVER_NULL, SOURCE_NULL)
    state.apply(batch)
    assert newest(state, [], np.arange(5, dtype=np.uint32)).tolist() == [0, T, T + 5, 0, 0]
    nowhere = rows((0, 0.0))
    nowhere.source_ticks[:] = odd
    asked = question((-0.1, 60.1, 60.2))
    assert len(asked.take(nowhere)) == 1 and asked.unproved == 1, "kept, and no proof of anything"


def test_what_is_stored_along_with_the_gap_is_known_before_it() -> None:
    state = State()
    state.apply(rows((0, 1.0), (2, 5.0)))
    found = newest(state, [rows((0, 2.0), (1, 1.0), (9, 1.0)), rows((0, 1.5), (2, 4.0))], np.arange(3, dtype=np.uint32))
    assert ((found - T) / S).tolist() == [2.0, 1.0, 5.0]
