"""Object keys: their spelling is a contract with every bucket already written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.layout import Layout, table


def test_keys_are_spelled_as_documented():
    keys = Layout("plantA", "press-shop")
    assert keys.segment(7) == "plantA/press-shop/log/00000000000000000007.parquet"
    assert keys.floor == "plantA/press-shop/floor.json"
    assert keys.lease == "plantA/press-shop/lease.json"
    assert keys.checkpoint(7, "json") == "plantA/press-shop/checkpoints/00000000000000000007.json"
    assert keys.desired(1) == "plantA/press-shop/desired/00000000000000000001.json"
    assert Layout("", "g").segment(0) == "g/log/00000000000000000000.parquet"
    assert table("plantA", "samples") == "plantA/tables/samples/"


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_byte_order_of_names_is_the_order_of_sequence_numbers(a: int, b: int):
    keys = Layout("p", "g")
    assert (keys.segment(a) < keys.segment(b)) == (a < b)
    assert keys.sequence(keys.segment(a)) == a


@pytest.mark.parametrize(
    "key",
    [
        "p/g/log/7.parquet",
        "p/g/log/00000000000000000007.json",
        "p/h/log/00000000000000000007.parquet",
        "p/g/00000000000000000007.parquet",
        "p/g/log/00000000000000000007.parquet.old",
        "p/g/log/" + "\u0660" * 19 + "\u0667.parquet",
    ],
)
def test_a_foreign_key_has_no_sequence_number(key: str):
    assert Layout("p", "g").sequence(key) is None


@pytest.mark.parametrize(
    ("prefix", "group"), [("p", "a/b"), ("p", ""), ("p", "."), ("/p", "g"), ("p/", "g"), ("p//q", "g")]
)
def test_names_that_would_break_the_layout_are_refused(prefix: str, group: str):
    with pytest.raises(ConfigError):
        Layout(prefix, group)
