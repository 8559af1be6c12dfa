"""Knocking at a port: told is the return of who was away, nothing else."""

from __future__ import annotations

import socket

from gateway.io.knock import KNOCK_S, Knock, listens


def test_told_is_a_return_once_and_never_that_somebody_is_still_there() -> None:
    answers = [True, False, False, True, True]
    knock = Knock(lambda: answers.pop(0))
    found = [knock.is_back(turn * KNOCK_S) for turn in range(5)]
    assert found == [False, False, False, True, False]


def test_it_knocks_no_oftener_than_it_says() -> None:
    knocks: list[int] = []
    knock = Knock(lambda: bool(knocks.append(1)))
    for turn in range(100):
        knock.is_back(turn * KNOCK_S / 10)
    assert len(knocks) == 10


def test_who_listens_is_found_and_who_does_not_or_has_no_address_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(f"http://127.0.0.1:{port}/bucket")
    assert not listens(f"https://127.0.0.1:{port}")
    assert not listens("http://no-such-host.invalid")
    assert not listens("nonsense")
