"""Rows that no message carries, and what is left at the end of a stream: stored, and pushed in the end."""

from __future__ import annotations

from gateway.sampler import Noted, Stopped
from mirror.coverage import Grade
from tests.gateway.ledgers import MS, START, fresh, live, message, subscribed


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


def test_rows_of_no_message_that_come_in_a_break_are_stored_before_it_and_held() -> None:
    ledger = live(count=2)
    end = ledger.stored[-1].pub_to
    subscribed(ledger, subscription=2)
    ledger(Noted("rows"))
    assert (ledger.stored[-1].pub_from, ledger.stored[-1].pub_to) == (end, end + 1)
    ledger(message(1, 900))
    assert [(c.start, c.end) for c in ledger.coverage.values() if c.grade == Grade.HELD] == [(end, end + 1)]
    (gap,) = ledger.gaps.values()
    assert gap.start == end and gap.end is not None and gap.end >= START + 900 * MS - 1
    assert not ledger.covered().covers(end, end + 1)


def test_what_a_stream_that_has_ended_stored_and_could_not_claim_is_held() -> None:
    ledger = live(count=2)
    end = ledger.stored[-1].pub_to
    ledger(Noted("rows"))
    ledger(Stopped())
    assert [(c.start, c.end) for c in ledger.coverage.values() if c.grade == Grade.HELD] == [(end, end + 1)]
