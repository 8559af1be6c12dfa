"""The canary: what of it is a sample (nothing), when its silence means something, and what is declared then."""

from __future__ import annotations

import numpy as np

from gateway import canary
from gateway.canary import Canary
from gateway.decode import decode, read_publish
from mirror.ticks import from_unix_s
from tests.gateway.publish_bytes import data_change, datetime, double, item, publish

NOW = from_unix_s(1_800_000_000.0)


def heard(*times_s: float, ticks: int = NOW) -> Canary:
    made = Canary()
    for at in times_s:
        made.hear(ticks, at=("1-0", int(at)), now_s=at, unix_s=1_800_000_000.0)
    return made


def test_its_rows_are_told_apart_and_never_are_samples() -> None:
    rows = [item(0, double(1.0)), item(canary.HANDLE, datetime(NOW - 5)), item(1, double(2.0)),
            item(canary.HANDLE, datetime(NOW))]  # fmt: skip
    found = decode(read_publish(publish([data_change(rows)])), handle_limit=2)
    assert found.batch.handle.tolist() == [0, 1]
    assert (found.canary, found.refused, len(found.overflow)) == (NOW, 0, 0)


def test_a_message_with_nothing_else_has_no_rows() -> None:
    found = decode(read_publish(publish([data_change([item(canary.HANDLE, datetime(NOW))])])), handle_limit=2)
    assert (len(found.batch), found.canary, found.refused) == (0, NOW, 0)


def test_a_message_without_it_says_so_and_foreign_rows_still_count() -> None:
    found = decode(read_publish(publish([data_change([item(0, double(1.0)), item(7, double(1.0))])])), handle_limit=2)
    assert (found.canary, found.refused) == (None, 1)


def test_one_that_cannot_be_read_is_heard_all_the_same() -> None:
    rows = [item(canary.HANDLE, double(1.0))]
    assert decode(read_publish(publish([data_change(rows)])), handle_limit=2).canary == 0
    rows = [item(canary.HANDLE, datetime(NOW), status=0x80310000)]
    assert decode(read_publish(publish([data_change(rows)])), handle_limit=2).canary == 0


def test_its_silence_means_something_once_it_has_been_heard_three_times() -> None:
    for times in ((), (0,), (0, 1)):
        assert not heard(*times).silent(100.0, since_s=0.0)
    assert heard(0, 1, 2).silent(7.1, since_s=0.0)
    assert not heard(0, 1, 2).silent(6.9, since_s=0.0)


def test_a_server_that_moves_its_clock_slowly_gets_three_of_its_own_pauses() -> None:
    slow = heard(0, 10, 20)
    assert not slow.silent(49.0, since_s=0.0)
    assert slow.silent(51.0, since_s=0.0)


def test_silence_counts_from_when_somebody_listens() -> None:
    assert not heard(0, 1, 2).silent(100.0, since_s=96.0)
    assert heard(0, 1, 2).silent(102.0, since_s=96.0)


def test_the_skew_is_of_the_last_clock_that_could_be_read() -> None:
    made = heard(0, ticks=NOW + 36_000_000_000)
    assert np.isclose(made.skew_s, 3600)
    made.hear(0, at=("1-0", 1), now_s=1, unix_s=1_800_000_001.0)
    assert np.isclose(made.skew_s, 3600) and made.heard == 2
