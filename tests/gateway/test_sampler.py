"""The sampler by script: sequence, claims and gaps."""

from __future__ import annotations

import msgspec
import pytest

from gateway import sampler
from gateway.sampler import WRAP, Delivered, NotAvailable, Noted, Progress, Stalled, Stopped, Subscribed
from mirror.coverage import Axis, Closure, Grade, IntervalSet, Reason
from tests.gateway.ledgers import MS, START, Ledger, alive, fresh, live, message, subscribed


def test_messages_in_order_are_stored_acknowledged_and_covered() -> None:
    ledger = live()
    assert ledger.sequences() == ledger.acked == [1, 2, 3]
    assert ledger.covered() == IntervalSet([(START + 100 * MS - 1, START + 300 * MS)])
    assert not ledger.gaps


def test_a_new_subscription_covers_nothing_backward() -> None:
    ledger = subscribed(fresh())
    ledger(message(1, 100))
    assert ledger.covered() == IntervalSet([(START + 100 * MS - 1, START + 100 * MS)])


def test_more_notifications_claims_nothing_until_the_queue_is_empty() -> None:
    ledger = live(count=1)
    ledger(message(2, 200, more=True))
    assert ledger.covered().intervals[-1].end == START + 100 * MS
    assert ledger.sequences() == [1, 2], "its rows are stored all the same"
    ledger(message(3, 200))
    assert ledger.covered().intervals[-1].end >= START + 200 * MS
    assert ledger.stored[2].pub_to > ledger.stored[1].pub_to, "or the second would be taken for pushed"


def test_a_keep_alive_with_the_next_number_extends_the_claim() -> None:
    ledger = live()
    ledger(alive(4, 900))
    assert ledger.covered().intervals[-1].end == START + 900 * MS
    ledger(message(4, 1000))
    assert ledger.sequences() == [1, 2, 3, 4], "a keep-alive does not use its number up"


def test_a_keep_alive_with_a_later_number_claims_nothing_and_asks_at_once() -> None:
    ledger = live()
    ledger(alive(6, 900))
    assert ledger.asked == [4, 5]
    assert ledger.covered().intervals[-1].end == START + 300 * MS
    ledger(message(5, 500, republished=True))
    ledger(message(4, 400, republished=True))
    assert ledger.sequences() == [1, 2, 3, 4, 5]
    assert ledger.covered().intervals[-1].end == START + 900 * MS
    assert not ledger.gaps


def test_a_keep_alive_that_messages_overtake_is_forgotten() -> None:
    ledger = live()
    ledger(alive(5, 500))
    for n in (5, 6, 4, 7):
        ledger(message(n, n * 100))
    ledger(message(9, 900))
    ledger(message(10, 1000))
    assert ledger.asked == [4, 8], "only what is missing"
    ledger(message(8, 800))
    assert ledger.sequences() == list(range(1, 11)) and not ledger.gaps


def test_a_keep_alive_is_never_acknowledged() -> None:
    ledger = live(count=1)
    ledger(alive(2, 500))
    assert ledger.acked == [1]


def test_a_missing_number_is_asked_for_after_one_further_response() -> None:
    ledger = live()
    ledger(message(5, 500))
    assert ledger.asked == [], "the answers of several requests may overtake each other"
    ledger(message(6, 600))
    assert ledger.asked == [4]
    ledger(message(4, 400, republished=True))
    assert ledger.sequences() == [1, 2, 3, 4, 5, 6]
    assert not ledger.gaps and len(ledger.covered()) == 1


def test_messages_that_overtake_each_other_are_put_in_order_without_asking() -> None:
    ledger = live()
    ledger(message(5, 500))
    ledger(message(4, 400))
    assert ledger.sequences() == [1, 2, 3, 4, 5] and not ledger.asked and not ledger.gaps


def test_a_message_the_server_no_longer_has_becomes_a_gap_and_what_follows_is_held() -> None:
    ledger = live()
    ledger(message(5, 500))
    ledger(message(6, 600))
    ledger(NotAvailable(4))
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.MISSED, START + 300 * MS, START + 500 * MS)
    assert ledger.covered().intervals[1:] == IntervalSet([(START + 500 * MS, START + 600 * MS)]).intervals
    held = [c for c in ledger.coverage.values() if c.grade == Grade.HELD]
    assert [(c.start, c.end) for c in held] == [(gap.start, gap.end)], "the rows of 5 are pushed, but claim nothing"
    assert ledger.backfills == [gap]


def test_a_number_missing_from_the_available_list_is_not_asked_for() -> None:
    ledger = live()
    ledger(message(5, 500, available=(5,)))
    ledger(message(6, 600, available=(5, 6)))
    assert not ledger.asked
    assert [g.reason for g in ledger.gaps.values()] == [Reason.MISSED]


def test_what_the_server_sent_after_a_list_was_made_is_not_missing_from_it() -> None:
    ledger = live()
    ledger(message(6, 600, available=(4, 5, 6)))
    ledger(message(4, 400, available=(3, 4)))
    assert ledger.asked == [5] and not ledger.gaps
    ledger(message(5, 500, available=(4, 5)))
    assert ledger.sequences() == [1, 2, 3, 4, 5, 6] and not ledger.gaps


def test_a_message_given_up_too_early_is_kept_when_it_comes_after_all() -> None:
    ledger = live()
    ledger(message(5, 500))
    ledger(message(6, 600, available=(5, 6)))
    (gap,) = ledger.gaps.values()
    ledger(message(4, 400))
    assert ledger.sequences() == [1, 2, 3, 5, 6, 4] and ledger.acked[-1] == 4
    ends = [s.pub_to for s in ledger.stored]
    assert ends == sorted(set(ends)), "or it would be taken for pushed"
    ledger(message(4, 400))
    assert ledger.sequences().count(4) == 1
    ledger(message(7, 700))
    assert ledger.covered().covers(ends[-1] - 1, ends[-1]), "its rows are pushed with what follows"
    assert ledger.gaps == {gap.id: gap}, "what was declared stays declared"


def test_a_message_that_arrives_after_its_number_was_given_up_for_good_asks_for_nothing() -> None:
    ledger = live()
    ledger(alive(5, 500))
    assert ledger.asked == [4]
    ledger(NotAvailable(4))
    ledger(message(4, 400))
    ledger(message(5, 600))
    ledger(message(6, 700))
    assert ledger.asked == [4] and sorted(ledger.sequences()) == [1, 2, 3, 4, 5, 6]


def test_a_republished_message_claims_nothing_by_itself() -> None:
    again = fresh(live().machine.position)
    again(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
    again(message(4, 400, republished=True))
    assert again.sequences() == [4] and not again.covered(), "the server may have had more to send then"
    again(NotAvailable(5))
    again(alive(5, 500))
    assert again.covered().intervals[-1].end == START + 500 * MS


def test_a_message_that_comes_twice_is_stored_once_and_acknowledged_again() -> None:
    ledger = live()
    ledger(message(2, 200))
    assert ledger.sequences() == [1, 2, 3] and ledger.acked == [1, 2, 3, 2]


def test_a_repeat_that_a_clock_set_back_has_left_behind_is_still_a_repeat() -> None:
    ledger = live()
    ledger(message(4, 50))  # an hour later by any other clock
    ledger(message(3, 300))
    assert ledger.sequences() == [1, 2, 3, 4] and not ledger.gaps


def test_a_number_used_anew_with_a_later_time_is_a_break_and_nothing_of_it_is_dropped() -> None:
    ledger = live()
    for n, ms in ((1, 400), (2, 500), (3, 600), (4, 700)):
        ledger(message(n, ms))
    assert ledger.sequences() == [1, 2, 3, 1, 2, 3, 4]
    assert ledger.acked == [1, 2, 3, 1, 2, 3, 4]
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.MISSED, START + 300 * MS, START + 400 * MS - 1)
    assert not ledger.covered() & IntervalSet([(gap.start, gap.end)]) and ledger.backfills == [gap]
    assert ledger.covered().intervals[-1].end == START + 700 * MS
    assert ledger.machine.position is not None and ledger.machine.position.sequence == 4


def test_a_message_of_a_new_numbering_that_was_overtaken_is_kept_too() -> None:
    ledger = live(count=9)
    ledger(message(2, 1100))
    ledger(message(1, 1000))
    ledger(message(3, 1200))
    assert ledger.sequences()[9:] == [2, 1, 3] and ledger.acked[9:] == [2, 1, 3] and not ledger.asked


def test_a_message_that_overtook_the_first_of_a_new_numbering_keeps_its_place_in_it() -> None:
    ledger = live()
    ledger(message(5, 1200))  # may still be one of the former numbers
    for n in (1, 2, 3, 4):
        ledger(message(n, 700 + n * 100))
    ledger(message(6, 1300))
    assert ledger.sequences() == [1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert len(ledger.gaps) == 1 and len(ledger.covered()) == 2


def test_what_is_held_when_the_numbers_begin_anew_is_stored() -> None:
    ledger = live()
    ledger(message(5, 500))
    ledger(message(1, 600))
    assert ledger.sequences() == [1, 2, 3, 5, 1]
    assert [g.end for g in ledger.gaps.values()] == [START + 500 * MS, START + 600 * MS - 1]


def test_a_number_used_anew_while_its_former_message_is_held_drops_neither() -> None:
    ledger = live()
    ledger(message(5, 500))
    ledger(message(5, 500))
    assert ledger.sequences() == [1, 2, 3]
    ledger(message(5, 900))
    assert ledger.sequences() == [1, 2, 3, 5, 5] and len(ledger.gaps) == 2


def test_a_subscription_may_begin_with_any_number() -> None:
    ledger = subscribed(fresh())
    for n, ms in ((WRAP - 1, 100), (WRAP, 200), (1, 300)):
        ledger(message(n, ms))
    assert ledger.sequences() == [WRAP - 1, WRAP, 1] and not ledger.gaps


def test_where_a_server_puts_no_time_anywhere_only_what_was_asked_for_can_be_a_repeat() -> None:
    ledger = subscribed(fresh())
    for n in (1, 3, 4):
        ledger(Delivered(n, 0, 0, ref=n))
    assert ledger.asked == [2]
    ledger(Delivered(2, 0, 0, ref=2, republished=True))
    ledger(Delivered(2, 0, 0, ref=2))
    assert ledger.sequences() == [1, 2, 3, 4] and not ledger.gaps
    ledger(Delivered(1, 0, 0, ref="another"))
    assert ledger.sequences() == [1, 2, 3, 4, 1] and len(ledger.gaps) == 1


@pytest.mark.parametrize("odd", [-(2**63), -1, 2**63 - 1, 2_650_467_744_000_000_000])
def test_a_time_outside_the_calendar_is_null_and_the_response_s_time_stands_in(odd: int) -> None:
    ledger = subscribed(fresh())
    for n in (1, 2):
        ledger(Delivered(n, odd, START + n * 100 * MS, ref=n))
    assert ledger.machine.axis is Axis.RESPONSE
    assert ledger.covered() == IntervalSet([(START + 100 * MS - 1, START + 200 * MS)])
    nowhere = subscribed(fresh(), server_start=odd)
    for n in (1, 2):
        nowhere(Delivered(n, odd, odd, ref=n))
    assert nowhere.machine.axis is Axis.NONE and nowhere.sequences() == [1, 2] and not nowhere.covered()


@pytest.mark.parametrize("odd", [-(2**63), 2**63 - 1])
def test_one_message_without_a_usable_time_is_put_right_behind_the_one_before(odd: int) -> None:
    ledger = live()
    ledger(Delivered(4, odd, START + 5000 * MS, ref=4))
    ledger(message(5, 500))
    assert ledger.stored[3].pub_to == START + 300 * MS + 1
    assert len(ledger.covered()) == 1 and ledger.covered().intervals[-1].end == START + 500 * MS and not ledger.gaps


def test_the_clock_of_a_server_whose_start_is_no_time_may_go_back() -> None:
    ledger = subscribed(fresh(), server_start=-(2**63))
    ledger(message(1, 500))
    ledger(message(2, 100))
    assert ledger.sequences() == [1, 2] and len({s.timeline for s in ledger.stored}) == 2


def test_while_the_disk_refuses_a_gap_is_opened_once_and_ends_with_the_first_message_of_the_next_subscription() -> None:
    ledger = live()
    ledger(Stalled())
    assert not ledger(Stalled())
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.DISK_FULL, START + 300 * MS, None) and not ledger.backfills
    again = fresh(ledger.machine.position)  # and the process may end meanwhile
    for restarted in (ledger, again):
        restarted(Subscribed(2, 7, resumed=False, reason=Reason.GATEWAY_DOWN))
        restarted(message(1, 9000))
        (ended,) = restarted.gaps.values()
        assert ended == msgspec.structs.replace(gap, end=START + 9000 * MS - 1)
        assert restarted.backfills == [ended]


def test_where_the_subscription_outlives_a_full_disk_the_gap_is_closed_without_length() -> None:
    ledger = live()
    ledger(Stalled())
    (gap,) = ledger.gaps.values()
    ledger(message(4, 400, more=True))
    assert not ledger.closed, "nothing is claimed yet, so nothing is settled"
    ledger(message(5, 500))
    assert ledger.closed[gap.id][0] is Closure.REPUBLISH and ledger.ended[gap.id] == gap.start
    assert ledger.covered().intervals[-1].end == START + 500 * MS and len(ledger.covered()) == 1
    ledger(Stalled())
    assert len(ledger.gaps) == 2, "the next time is another gap"


@pytest.mark.parametrize("then", [message(5, 500, available=(5,)), message(4, 10)])
def test_whatever_comes_after_a_full_disk_settles_its_gap(then: Delivered) -> None:
    ledger = live()
    ledger(Stalled())
    (gap,) = ledger.gaps.values()
    ledger(then)
    ledger(message(6, 600, available=(5, 6)))
    assert ledger.closed[gap.id][0] is Closure.REPUBLISH


def test_the_number_after_the_largest_is_one() -> None:
    assert sampler.after(WRAP) == 1
    position = sampler.Position("7-1", START, START, START, WRAP - 2, 1, Axis.PUBLISH)
    ledger = fresh(position)
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
    assert ledger.asked == [WRAP - 1]
    ledger(NotAvailable(WRAP - 1))
    for n, ms in ((WRAP - 1, 100), (WRAP, 200), (1, 300), (3, 500), (4, 600)):
        ledger(message(n, ms))
    assert ledger.sequences() == [WRAP - 1, WRAP, 1] and ledger.asked[1:] == [2]
    ledger(message(2, 400, republished=True))
    assert ledger.sequences()[3:] == [2, 3, 4] and not ledger.gaps


def test_after_a_resume_the_server_is_asked_until_it_has_no_more() -> None:
    first = live()
    position = first.machine.position
    assert position is not None and position.sequence == 3
    ledger = fresh(position)
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
    ledger(message(4, 400, republished=True))
    ledger(message(5, 500, republished=True))
    assert ledger.asked == [4, 5, 6] and not ledger.resumed
    ledger(NotAvailable(6))
    assert ledger.resumed == 1
    ledger(message(6, 600))
    assert ledger.sequences() == [4, 5, 6] and not ledger.gaps
    assert ledger.covered().intervals[-1].end == START + 600 * MS
    assert ledger.stored[0].pub_from == START + 300 * MS, "nothing between the two lives"


def test_a_subscription_of_which_nothing_was_stored_is_taken_up_from_its_first_message() -> None:
    for former in (None, live().machine.position):
        ledger = fresh(former)
        ledger(Subscribed(2, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
        assert ledger.asked == [1]
        ledger(message(1, 500, republished=True))
        ledger(NotAvailable(2))
        ledger(message(2, 600))
        assert ledger.resumed == 1 and ledger.sequences() == [1, 2]
        assert [(g.start, g.end) for g in ledger.gaps.values()] == (
            [(START + 300 * MS, START + 500 * MS - 1)] if former else []
        )


def test_what_is_held_of_a_subscription_that_is_taken_up_again_is_not_stored_before_it_comes_again() -> None:
    ledger = subscribed(fresh())
    ledger(message(2, 200))
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.DISCONNECTED))
    ledger(message(1, 100, republished=True))
    ledger(message(2, 200, republished=True))
    assert ledger.sequences() == [1, 2] and not ledger.gaps


def test_messages_that_arrive_while_their_session_is_taken_up_are_not_taken_twice() -> None:
    ledger = subscribed(fresh())
    ledger(message(1, 100))  # was in the inbox when the connection broke
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.DISCONNECTED))
    assert ledger.asked == [2]


def test_after_a_transfer_exactly_what_is_available_is_fetched_before_publishing() -> None:
    ledger = fresh(live().machine.position)
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN, available=(2, 3, 4, 5)))
    assert ledger.asked == [4, 5]
    ledger(message(4, 400, republished=True))
    assert not ledger.resumed
    ledger(message(5, 500, republished=True))
    assert ledger.resumed == 1 and ledger.sequences() == [4, 5]
    ledger(message(6, 600))
    assert ledger.resumed == 1 and not ledger.gaps


def test_a_republished_message_without_a_time_of_its_own_waits_for_the_next_live_one() -> None:
    ledger = subscribed(fresh())
    for n in (1, 2):
        ledger(Delivered(n, 0, START + n * 100 * MS, ref=n))
    assert ledger.machine.axis is Axis.RESPONSE
    again = fresh(ledger.machine.position)
    again(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
    again(Delivered(3, 0, START + 9000 * MS, ref=3, republished=True))
    again(NotAvailable(4))
    assert not again.stored, "when it was published is not known yet"
    again(Delivered(4, 0, START + 400 * MS, ref=4))
    assert again.sequences() == [3, 4]
    assert again.covered().intervals[-1].end <= START + 400 * MS + 1


def test_a_keep_alive_also_tells_when_a_republished_message_was_published() -> None:
    ledger = subscribed(fresh())
    ledger(Delivered(1, 0, START + 100 * MS, ref=1))
    again = fresh(ledger.machine.position)
    again(Subscribed(1, 7, resumed=True, reason=Reason.GATEWAY_DOWN))
    again(Delivered(2, 0, START + 9000 * MS, ref=2, republished=True))
    again(NotAvailable(3))
    again(Delivered(3, 0, START + 300 * MS, keepalive=True))
    assert again.sequences() == [2] and again.covered().intervals[-1].end == START + 300 * MS


def test_a_stream_without_any_time_claims_nothing() -> None:
    ledger = subscribed(fresh())
    for n in (1, 2, 3):
        ledger(Delivered(n, 0, 0, ref=n))
    assert ledger.machine.axis is Axis.NONE
    assert ledger.sequences() == [1, 2, 3] and not len(ledger.covered())
    assert {c.grade for c in ledger.coverage.values()} == {Grade.HELD}
    assert len(ledger.coverage) == 1, "one row that grows"


def test_a_new_subscription_after_a_break_opens_a_gap_from_the_last_claim_to_its_first_message() -> None:
    ledger = live()
    ledger(Subscribed(2, 7, resumed=False, reason=Reason.DISCONNECTED))
    assert not ledger.gaps, "its end is not known yet"
    ledger(message(1, 5000))
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.DISCONNECTED, START + 300 * MS, START + 5000 * MS - 1)
    assert ledger.stored[-1].timeline == ledger.stored[0].timeline
    assert not (ledger.covered() & IntervalSet([(gap.start, gap.end or 0)]))


def test_a_restarted_server_begins_a_new_timeline() -> None:
    ledger = live()
    ledger(Subscribed(2, 8, resumed=False, reason=Reason.DISCONNECTED))
    ledger(message(1, 5000))
    (gap,) = ledger.gaps.values()
    assert gap.reason is Reason.SERVER_RESTART and gap.timeline == ledger.stored[0].timeline
    assert ledger.stored[-1].timeline.startswith("8-")


def test_a_restarted_server_whose_clock_is_behind_still_leaves_a_gap() -> None:
    ledger = live()
    ledger(Subscribed(2, 8, resumed=False, reason=Reason.DISCONNECTED))
    ledger(message(1, 10))
    (gap,) = ledger.gaps.values()
    assert gap.end is not None and gap.end > gap.start


def test_publish_time_going_back_begins_a_new_timeline_and_loses_nothing() -> None:
    ledger = live()
    ledger(message(4, 50))
    ledger(message(5, 150))
    names = [s.timeline for s in ledger.stored]
    assert len(set(names)) == 2 and names[:3] == [names[0]] * 3
    assert not ledger.gaps and len(ledger.covered(names[3])) == 1


def test_a_new_subscription_within_one_tick_of_the_server_s_clock_goes_on_behind_what_is_stored() -> None:
    ledger = live(count=1)
    ledger(message(2, 100))
    ledger(Subscribed(2, 7, resumed=False, reason=Reason.DISCONNECTED))
    ledger(message(1, 100))
    assert len({s.timeline for s in ledger.stored}) == 1
    ends = [s.pub_to for s in ledger.stored]
    assert ends == sorted(set(ends))
    (gap,) = ledger.gaps.values()
    assert gap.end is not None and gap.end > gap.start and not ledger.covered() & IntervalSet([(gap.start, gap.end)])


def test_no_name_of_a_timeline_is_used_twice() -> None:
    """A server without a clock of its own starts at the same time whenever it has been off."""
    used: set[str] = set()
    ledger = fresh()
    ledger.machine.is_used = used.__contains__
    for server_start in (7, 8, 7, 8):
        ledger(Subscribed(1, server_start, resumed=False, reason=Reason.DISCONNECTED))
        ledger(message(1, 100))
        assert ledger.stored[-1].timeline not in used
        ledger(message(2, 50))  # and its clock is set back
        used |= {s.timeline for s in ledger.stored}
    assert len(used) == 8


def test_a_keep_alive_at_a_standing_clock_still_gives_a_gap_its_length() -> None:
    ledger = live()
    ledger(alive(5, 300))
    ledger(NotAvailable(4))
    (gap,) = ledger.gaps.values()
    assert gap.end is not None and gap.end > gap.start


def test_two_messages_of_one_publish_time_get_intervals_that_differ() -> None:
    ledger = live(count=1)
    ledger(message(2, 100))
    ledger(message(3, 100))
    ends = [s.pub_to for s in ledger.stored]
    assert len(set(ends)) == 3 and ends == sorted(ends)


def test_an_overflow_is_a_gap_of_its_tags_only_and_a_run_of_them_one_row() -> None:
    ledger = live()
    ledger(message(4, 400, overflow=(1,)))
    ledger(message(5, 500, overflow=(2,)))
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.OVERFLOW, START + 300 * MS, START + 500 * MS)
    assert gap.tags == ["tag1", "tag2"] and not ledger.backfills
    ledger(message(6, 600))
    assert ledger.backfills == [gap]
    assert ledger.covered().intervals[-1].end == START + 600 * MS, "the other tags are complete"


def test_a_keep_alive_ends_a_run_of_overflows() -> None:
    ledger = live()
    ledger(message(4, 400, overflow=(1,)))
    ledger(alive(5, 500))
    assert ledger.backfills == list(ledger.gaps.values())


def test_a_run_of_overflows_ends_with_the_session_and_the_next_one_is_another_gap() -> None:
    """The ledger is handed out to be filled at that moment; what is closed later must not grow meanwhile."""
    ledger = live(count=1)
    ledger(message(2, 200, overflow=(1,), more=True))
    ledger(Subscribed(1, 7, resumed=True, reason=Reason.DISCONNECTED))
    (first,) = ledger.backfills
    ledger(NotAvailable(3))
    ledger(sampler.Backfilled(first, complete=False))
    ledger(message(3, 300, overflow=(1,)))
    second = next(gap for gap in ledger.gaps.values() if gap.id != first.id)
    assert (second.start, second.end) == (first.start, START + 300 * MS)


def test_a_message_that_cannot_be_decoded_is_a_gap_and_the_stream_goes_on() -> None:
    ledger = live()
    ledger(message(4, 400, undecodable=True, ref=None))
    ledger(message(5, 500))
    (gap,) = ledger.gaps.values()
    assert (gap.reason, gap.start, gap.end) == (Reason.UNDECODABLE, START + 300 * MS, START + 400 * MS)
    assert ledger.sequences() == [1, 2, 3, 5] and ledger.acked == [1, 2, 3, 4, 5]


def test_a_gap_ends_only_with_a_closure() -> None:
    ledger = live()
    ledger(Subscribed(2, 7, resumed=False, reason=Reason.DISCONNECTED))
    ledger(message(1, 5000))
    (gap,) = ledger.backfills
    ledger(sampler.Backfilled(gap, complete=False, why="no history"))
    assert ledger.closed == {gap.id: (Closure.LOST, "no history")}


def test_going_back_to_a_snapshot_forgets_what_was_not_made_durable() -> None:
    ledger = live()
    saved = ledger.machine.snapshot()
    for twin in (ledger.machine, saved):
        other = Ledger(twin)
        other(message(5, 500))
        other(message(4, 400))
        assert other.sequences() == [4, 5]


def test_a_hole_is_not_waited_for_without_end() -> None:
    ledger = live()
    for n in range(5, 5 + sampler.HELD_MAX + 2):
        ledger(message(n, n * 100))
    assert [g.reason for g in ledger.gaps.values()] == [Reason.MISSED]
    assert ledger.sequences()[3:5] == [5, 6]


def test_every_progress_names_only_messages_that_are_stored() -> None:
    ledger = live()
    for effect in ledger(message(5, 500)):
        assert not isinstance(effect, Progress)
    assert ledger.machine.position is not None and ledger.machine.position.sequence == 3


def test_rows_of_no_message_are_stored_behind_everything_and_claimed_with_what_follows() -> None:
    ledger = subscribed(fresh())
    assert ledger(Noted("rows")) == [], "there is no time yet to store them under"
    ledger(message(1, 100))
    before = ledger.stored[-1]
    ledger(Noted("rows"))
    noted = ledger.stored[-1]
    assert (noted.ref, noted.pub_from, noted.pub_to) == ("rows", before.pub_to, before.pub_to + 1)
    ledger(message(2, 200))
    assert ledger.stored[-1].pub_from == noted.pub_to and ledger.gaps == {}
    assert ledger.covered().covers(before.pub_from, START + 200 * MS)


def test_what_a_stream_that_has_ended_stored_and_could_not_claim_is_held() -> None:
    ledger = live(count=2)
    end = ledger.stored[-1].pub_to
    ledger(Noted("rows"))
    ledger(Stopped())
    assert [(c.start, c.end) for c in ledger.coverage.values() if c.grade == Grade.HELD] == [(end, end + 1)]
