"""`floor.json`: only what somebody trusted has signed counts, and every other way has its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.coverage import Coverage
from mirror.floor import Floor, Known, examine_floor, sign_floor
from mirror.header import FLOOR, Finding, Flaw, canonical, public_hex
from mirror.prefix import Prefix, Saved
from tests.mirror.logs import KEY, OTHER, reseal

KEYS = {"a": public_hex(KEY)}
GENESIS = "22" * 32
CLAIM = {"stream": "s", "timeline": "1-1", "start": 0, "end": 9, "origin": "a", "grade": "covered"}
BELOW = Saved(
    "g", 7, "11" * 32, epoch=3, holder="a", incarnation="i", arbiter="solo", keys=KEYS, facts="ff",
    told={"00": "closed"}, claims=[Coverage("s", "1-1", 0, 9, "a")], genesis=GENESIS,
)  # fmt: skip
SIGNED = sign_floor(Prefix(BELOW), "a", KEY)
SIGNATURE = (
    "e52779a6001d3c09be68a53472b1f9499817888e58ae6ada3be248f07ff1d4a8"
    "3651496998cf35c169b7e04e84d5b5aec36048451575ef8acdd9e5e43a21f70a"
)


def flaw(data: bytes, group: str = "g", keys: dict[str, str] = KEYS, genesis: str = GENESIS) -> Flaw | None:
    found = examine_floor(data, group, keys, genesis)
    if isinstance(found, Finding):
        assert found.seq == FLOOR
        assert found.detail
        return found.flaw
    return None


def test_a_signed_floor_comes_back_as_the_prefix_that_it_was():
    found = examine_floor(SIGNED, "g", KEYS, GENESIS)
    assert found == Floor(BELOW, "a")


def test_the_bytes_of_a_floor_are_a_contract():
    assert SIGNED.decode() == (
        '{"arbiter":"solo","claims":[{"end":9,"grade":"covered","origin":"a","start":0,"stream":"s","timeline":"1-1"}],'
        '"epoch":3,"facts":"ff","genesis":"' + GENESIS + '","group":"g","hash":"' + "11" * 32 + '","holder":"a",'
        '"incarnation":"i","keys":{"a":"' + KEYS["a"] + '"},"seq":7,"signature":"' + SIGNATURE + '","signer":"a",'
        '"told":{"00":"closed"}}'
    )


@given(st.integers(0, len(SIGNED) * 8 - 1))
def test_no_flipped_bit_passes(bit: int):
    damaged = bytearray(SIGNED)
    damaged[bit // 8] ^= 1 << bit % 8
    assert flaw(bytes(damaged)) is not None


@given(st.binary(max_size=80))
def test_noise_is_unreadable_and_never_an_exception(data: bytes):
    assert flaw(data) is Flaw.UNREADABLE


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (canonical({k: v for k, v in msgspec.json.decode(SIGNED).items() if k != "signature"}), Flaw.UNSIGNED),
        (canonical({**msgspec.json.decode(SIGNED), "seq": 8}), Flaw.MIS_SIGNED),
        (canonical({**msgspec.json.decode(SIGNED), "weather": "foul"}), Flaw.MIS_SIGNED),
        (reseal(SIGNED, OTHER), Flaw.MIS_SIGNED),
        (reseal(SIGNED, OTHER, signer="b", keys={**KEYS, "b": public_hex(OTHER)}), Flaw.FOREIGN),
        (reseal(SIGNED, signer=None), Flaw.FOREIGN),
        (reseal(SIGNED, group="h"), Flaw.FOREIGN),
        (reseal(SIGNED, genesis="33" * 32), Flaw.FOREIGN),
        (reseal(SIGNED, keys={"a": public_hex(OTHER)}), Flaw.REKEYED),
        (reseal(SIGNED, format=2, seq="seven"), Flaw.NEWER),
        (msgspec.json.format(SIGNED, indent=1), Flaw.UNREADABLE),
        (reseal(SIGNED, weather="fine"), None),
        (reseal(SIGNED, seq=2**63 - 1), None),
    ],
)
def test_each_way_of_not_counting_has_its_name(data: bytes, named: Flaw | None):
    assert flaw(data) is named


@pytest.mark.parametrize(
    "change",
    [{"seq": 0}, {"seq": -1}, {"seq": 2**63}, {"seq": "x"}, {"epoch": -1}, {"epoch": 2**80}, {"hash": ""},
     {"genesis": None}, {"keys": {"a": "zz"}}, {"keys": {"b": KEYS["a"].upper()}}, {"keys": {"b": "00"}},
     {"claims": [{**CLAIM, "end": 0}]}, {"claims": [{**CLAIM, "end": 2**63}]}, {"weather": 2**64}],
)  # fmt: skip
def test_a_floor_of_the_wrong_form_is_unreadable_under_any_signature(change: dict[str, Any]):
    assert flaw(reseal(SIGNED, **change)) is Flaw.UNREADABLE


def test_a_floor_larger_than_any_is_not_looked_into(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.floor.FLOOR_BYTES_MAX", len(SIGNED) - 1)
    assert flaw(SIGNED) is Flaw.UNREADABLE


def test_who_trusts_nobody_yet_believes_the_floors_own_keys_and_only_them():
    assert flaw(SIGNED, keys={}, genesis="") is None
    assert flaw(reseal(SIGNED, OTHER), keys={}, genesis="") is Flaw.MIS_SIGNED
    assert flaw(reseal(SIGNED, OTHER, signer="b"), keys={}, genesis="") is Flaw.FOREIGN


def test_a_signer_that_was_enrolled_above_the_floor_counts():
    assert flaw(reseal(SIGNED, OTHER, signer="b"), keys={**KEYS, "b": public_hex(OTHER)}) is None


@pytest.mark.parametrize("below", [Saved("g"), msgspec.structs.replace(BELOW, hash="")])
def test_a_floor_that_nobody_could_accept_is_not_written(below: Saved):
    with pytest.raises(AssertionError, match="nobody could accept"):
        sign_floor(Prefix(below), "a", KEY)
    with pytest.raises(AssertionError, match="nobody could accept"):
        sign_floor(Prefix(BELOW), "a", OTHER)


def test_a_floor_never_goes_back_and_its_flaw_is_news_once():
    known, at = Known(), Saved("g", keys=KEYS, genesis=GENESIS)
    assert (known.seq, known.learn(None, at), known.seq) == (0, None, 0)
    assert (known.learn(SIGNED, at), known.seq) == (None, 7)
    assert (known.learn(reseal(SIGNED, seq=6), at), known.seq) == (None, 7), "an older one, played again"
    flawed = known.learn(b"noise", at)
    assert flawed is not None
    assert (known.learn(b"noise", at), known.flaw, known.seq) == (None, flawed, 7)
    assert (known.learn(None, at), known.flaw, known.seq) == (None, None, 7)
    assert (known.learn(reseal(SIGNED, seq=9), at), known.seq) == (None, 9)


def test_a_floor_counts_as_soon_as_its_signer_does():
    known, floor = Known(), reseal(SIGNED, OTHER, signer="b")
    flawed = known.learn(floor, Saved("g", keys=KEYS))
    assert flawed is not None
    assert flawed.flaw is Flaw.FOREIGN
    assert known.learn(floor, Saved("g", keys={**KEYS, "b": public_hex(OTHER)})) is None
    assert (known.seq, known.flaw) == (7, None)
