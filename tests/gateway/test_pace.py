"""The longest pause is seen by whoever looks within a minute of it."""

from gateway.pace import STEP_S, STEPS, Pace


def test_the_longest_pause_of_any_stream_counts_for_a_minute_after_it() -> None:
    pace = Pace()
    for now, stream in ((0.0, "a"), (0.1, "b"), (0.2, "a"), (4.1, "b"), (4.2, "a"), (4.3, "b")):
        pace.heard(stream, now)
    assert pace.longest_s((), 4.3) == 4.0
    now = 4.3
    while now < 55.0:
        now += 0.5
        pace.heard("a", now)
    assert pace.longest_s((), 60.0) == 4.0
    assert pace.longest_s((), 60.0 + STEP_S * (STEPS + 1)) == 0.0


def test_a_pause_that_has_not_ended_counts_as_it_stands_and_not_that_of_a_stream_given_up() -> None:
    pace = Pace()
    pace.heard("a", 0.0)
    pace.heard("b", 0.0)
    pace.heard("b", 1.0)
    assert pace.longest_s(["a", "b"], 600.0) == 600.0
    pace.heard("a", 600.0)
    assert pace.longest_s(["a"], 601.0) == 600.0
    assert pace.longest_s(["a"], 601.0 + 100) == 101.0
    assert pace.longest_s(["never heard of"], 1e6) == 0.0


def test_what_is_kept_is_bounded() -> None:
    pace = Pace()
    for i in range(100_000):
        pace.heard("a", i * 0.5)
    assert len(pace._longest) <= STEPS + 2


def test_a_pace_that_nothing_was_heard_of_has_no_pause() -> None:
    assert Pace().longest_s([], 0.0) == 0.0
