"""What passes is counted and nothing else is changed; the suite of all stores is in tests/conformance."""

from __future__ import annotations

import pytest

from gateway.io.traffic import Counted, Traffic
from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from tests.gateway.boxes import FaultyStore


def test_bodies_are_counted_both_ways_and_conditions_that_did_not_hold_are_no_errors() -> None:
    traffic = Traffic()
    store = Counted(FaultyStore(), traffic, "probe/")
    assert store.name == "memory"
    store.put("k", b"12345", if_none_match=True)
    with pytest.raises(Conflict):
        store.put("k", b"123", if_none_match=True)
    assert store.get("none") is None
    found = store.get("k", (-2, None))
    assert found is not None and found.body == b"45"
    assert store.head("k") is not None
    assert [o.key for o in store.list("")] == ["k"]
    store.delete("k")
    assert (traffic.sent_bytes, traffic.received_bytes, traffic.errors) == (8, 2, 0)


def test_each_call_that_failed_counts_as_one_error() -> None:
    traffic, inside = Traffic(), FaultyStore()
    store = Counted(inside, traffic, "probe/")
    for error in (Unavailable("away"), ConfigError("403"), Corrupt("checksum")):

        def fail(point: str, key: str, error: Exception = error) -> None:
            raise error

        inside.fault = fail
        with pytest.raises(type(error)):
            store.get("k")
        with pytest.raises(type(error)):
            store.put("k", b"1")
        with pytest.raises(type(error)):
            list(store.list(""))
    assert traffic.errors == 9


def test_the_damaged_upload_that_tries_a_store_is_no_error_and_any_other_is() -> None:
    traffic = Traffic()
    store = Counted(FaultyStore(), traffic, "probe/")
    for key, errors in (("probe/x", 0), ("log/x", 1)):
        with pytest.raises(Corrupt):
            store.put(key, b"x", sha256=bytes(32))
        assert traffic.errors == errors
