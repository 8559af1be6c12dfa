"""Acknowledgements: only what is durable here and still held there."""

from __future__ import annotations

from gateway.acks import Acks


def test_what_is_durable_is_taken_once() -> None:
    acks = Acks()
    acks.available(1, (3, 4))
    acks.durable([(1, 3), (1, 4)])
    assert acks.take() == [(1, 3), (1, 4)]
    assert acks.take() == []


def test_a_number_that_the_newest_list_does_not_hold_is_never_acknowledged() -> None:
    acks = Acks()
    acks.available(1, (3, 4))
    acks.durable([(1, 3), (1, 4)])
    acks.available(1, (4, 5))
    assert acks.take() == [(1, 4)]
    acks.available(1, (3, 4, 5))
    assert acks.take() == [], "what was stale once is forgotten"


def test_an_empty_list_holds_nothing_and_of_a_server_that_never_tells_all_is_acknowledged() -> None:
    acks = Acks()
    acks.durable([(1, 3)])
    acks.available(1, ())
    assert acks.take() == []
    acks.durable([(2, 3)])
    acks.available(2, None)
    assert acks.take() == [(2, 3)]


def test_a_null_list_of_a_server_that_has_told_one_holds_nothing() -> None:
    acks = Acks()
    acks.available(1, (3,))
    acks.durable([(1, 3)])
    acks.available(1, None)
    assert acks.take() == [], "as in a keep-alive of a server whose empty lists are null"
    acks.forget(1)
    acks.durable([(1, 3)])
    acks.available(1, None)
    assert acks.take() == [(1, 3)], "another run of the server may be one that never tells"


def test_a_new_session_sends_nothing_before_the_server_has_told_what_it_holds() -> None:
    acks = Acks()
    acks.available(1, (3, 4))
    acks.durable([(1, 3), (1, 4)])
    acks.reconnected()
    assert acks.take() == []
    acks.available(1, (4,))
    assert acks.take() == [(1, 4)]


def test_what_a_failed_request_carried_goes_through_the_same_filter_again() -> None:
    acks = Acks()
    acks.available(1, (3, 4))
    acks.durable([(1, 3), (1, 4)])
    taken = acks.take()
    acks.available(1, (4,))
    acks.put_back(taken)
    assert acks.take() == [(1, 4)]


def test_a_request_carries_no_more_than_its_limit_and_the_rest_follows() -> None:
    acks = Acks()
    acks.available(1, tuple(range(1, 11)))
    acks.durable([(1, n) for n in range(1, 11)])
    assert acks.take(4) == [(1, n) for n in (1, 2, 3, 4)]
    assert acks.take(100) == [(1, n) for n in range(5, 11)]


def test_a_subscription_that_is_gone_takes_its_acknowledgements_with_it() -> None:
    acks = Acks()
    acks.available(1, (3,))
    acks.available(2, (3,))
    acks.durable([(1, 3), (2, 3)])
    acks.forget(1)
    assert acks.take() == [(2, 3)]
