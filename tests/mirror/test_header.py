"""The signed header: genuine ones pass, and every way of not being genuine has its name."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mirror.coverage import Closure, Coverage, Gap, Reason, Stream
from mirror.errors import Corrupt
from mirror.header import (
    Clock,
    Finding,
    Flaw,
    Header,
    canonical,
    chain_hash,
    check,
    examine,
    key_id,
    public_hex,
    sign,
)
from tests.mirror.logs import resign

A = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
B = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEYS = {"a": public_hex(A)}
HEADER = Header(
    group="g", seq=3, epoch=2, holder="a", incarnation="0a", arbiter="solo", prev="11", prev_file="22",
    body_digest="33", rows=5, intervals=(Coverage("s", "1-1", 0, 9, "a"),), streams=(Stream("s", "urn:x"),),
    gaps=(Gap.opened("s", "1-1", 4, Reason.OVERFLOW, end=5, tags=["urn:x\nnsu=u;s=Ä"]),),
    sources={"urn:x": ("http://opcfoundation.org/UA/", "u")}, clock=Clock(10, 500, True),
)  # fmt: skip
SIGNED = sign(HEADER, A)


def flaw(data: bytes, group: str = "g", keys: dict[str, str] = KEYS, seq: int = 3) -> Flaw | None:
    found = examine(data, group, keys, seq)
    return found.flaw if isinstance(found, Finding) else None


def resigned(header: Header, key: Ed25519PrivateKey = A) -> bytes:
    return sign(header, key)


def test_a_signed_header_comes_back_as_it_was():
    found = examine(SIGNED, "g", KEYS, 3)
    assert isinstance(found, Header)
    assert msgspec.structs.replace(found, key_id="", signature="") == HEADER
    assert found.key_id == key_id(KEYS["a"])


def test_the_chain_hash_is_sha3_of_the_signed_bytes():
    assert chain_hash(SIGNED) == hashlib.sha3_256(SIGNED).hexdigest()


def test_signing_is_deterministic_so_that_a_repeated_write_has_the_same_bytes():
    assert sign(HEADER, A) == SIGNED


@given(st.integers(0, len(SIGNED) * 8 - 1))
def test_no_flipped_bit_passes(bit: int):
    damaged = bytearray(SIGNED)
    damaged[bit // 8] ^= 1 << bit % 8
    assert flaw(bytes(damaged)) in (Flaw.ALTERED, Flaw.MIS_SIGNED, Flaw.FOREIGN, Flaw.NEWER, Flaw.UNSIGNED)


@given(st.integers(0, len(SIGNED) - 1))
def test_no_cut_off_header_passes(size: int):
    assert flaw(SIGNED[:size]) is Flaw.ALTERED


@given(st.binary(max_size=200))
def test_noise_is_altered_and_never_an_exception(noise: bytes):
    assert flaw(noise) is Flaw.ALTERED


def test_each_way_of_not_being_genuine_has_its_name():
    bare = msgspec.json.decode(SIGNED)
    unsigned = canonical({k: v for k, v in bare.items() if k not in ("signature", "key_id")})
    rows_changed = canonical({**bare, "rows": 6})
    assert flaw(unsigned) is Flaw.UNSIGNED
    assert flaw(rows_changed) is Flaw.MIS_SIGNED
    assert flaw(sign(HEADER, B)) is Flaw.FOREIGN
    assert flaw(sign(msgspec.structs.replace(HEADER, holder="b"), B)) is Flaw.FOREIGN
    assert flaw(sign(msgspec.structs.replace(HEADER, group="h"), A)) is Flaw.FOREIGN
    assert flaw(SIGNED, seq=4) is Flaw.MISPLACED
    assert flaw(sign(msgspec.structs.replace(HEADER, format=2), A)) is Flaw.NEWER


def test_one_replica_cannot_sign_as_another():
    keys = {"a": public_hex(A), "b": public_hex(B)}
    assert flaw(sign(HEADER, B), keys=keys) is Flaw.FOREIGN  # holder a, key of b
    claimed = canonical({**msgspec.json.decode(sign(HEADER, B)), "key_id": key_id(keys["a"])})
    assert flaw(claimed, keys=keys) is Flaw.MIS_SIGNED


def test_text_that_means_the_same_in_other_bytes_is_altered():
    bare = msgspec.json.decode(SIGNED)
    assert flaw(msgspec.json.format(SIGNED, indent=1)) is Flaw.ALTERED
    assert flaw(msgspec.json.encode(dict(reversed(bare.items())))) is Flaw.ALTERED
    assert flaw(SIGNED[:-1] + b',"seq":3}') is Flaw.ALTERED


def test_a_field_of_a_later_program_is_under_the_signature():
    signed = resign(SIGNED, A, weather="fine")
    assert flaw(signed) is None
    assert flaw(canonical({**msgspec.json.decode(signed), "weather": "foul"})) is Flaw.MIS_SIGNED


def test_a_signature_in_another_spelling_is_another_header_and_does_not_pass():
    bare = msgspec.json.decode(SIGNED)
    for spelt in (bare["signature"].upper(), bare["signature"][:2] + " " + bare["signature"][2:]):
        assert flaw(canonical({**bare, "signature": spelt})) is Flaw.MIS_SIGNED


def test_a_later_format_is_newer_whatever_its_members_are():
    bare = msgspec.json.decode(SIGNED)
    assert flaw(canonical({**bare, "format": 2, "rows": {"each": 1}, "intervals": "elsewhere"})) is Flaw.NEWER
    assert flaw(canonical({**bare, "format": "two"})) is Flaw.ALTERED


def test_words_of_a_later_program_are_carried_and_its_grades_are_not():
    later = msgspec.structs.replace(
        HEADER, gaps=(msgspec.structs.replace(HEADER.gaps[0], reason=Reason("audit"), closed_by=Closure("aliens")),)
    )
    found = examine(sign(later, A), "g", KEYS, 3)
    assert isinstance(found, Header)
    assert (found.gaps[0].reason, found.gaps[0].closed_by) == ("audit", "aliens")
    bare = msgspec.json.decode(SIGNED)
    assert flaw(canonical({**bare, "intervals": [{**bare["intervals"][0], "grade": "guessed"}]})) is Flaw.ALTERED


def test_a_publishing_interval_that_is_no_number_does_not_spoil_the_log():
    for odd in (float("nan"), float("inf")):
        header = msgspec.structs.replace(HEADER, streams=(Stream("s", "urn:x", revised_publishing_ms=odd),))
        assert flaw(sign(header, A)) is None


def test_segment_0_enrols_its_own_writer_and_only_when_nobody_is_known():
    genesis = sign(Header(group="g", holder="b", keys={"b": public_hex(B)}), B)
    assert flaw(genesis, keys={}, seq=0) is None
    assert flaw(genesis, keys=KEYS, seq=0) is Flaw.FOREIGN
    assert flaw(sign(Header(group="g", holder="b", keys={"b": public_hex(A)}), B), keys={}, seq=0) is Flaw.FOREIGN
    assert flaw(sign(Header(group="g", holder="b"), B), keys={}, seq=0) is Flaw.FOREIGN
    assert flaw(SIGNED, keys={}) is Flaw.FOREIGN


@pytest.mark.parametrize(
    "change",
    [{"keys": {"c": "00"}}, {"keys": {"c": "zz"}}, {"rows": "five"}, {"intervals": [{"stream": "s"}]},
     {"intervals": [{"stream": "s", "timeline": "t", "start": 5, "end": 5, "origin": "a", "grade": "covered"}]}],
)  # fmt: skip
def test_a_header_of_the_wrong_form_is_altered(change: dict[str, object]):
    assert flaw(canonical({**msgspec.json.decode(SIGNED), **change})) is Flaw.ALTERED


CLAIM = {"stream": "s", "timeline": "1-1", "start": 0, "end": 9, "origin": "a", "grade": "covered"}


@pytest.mark.parametrize(
    "change",
    [{"seq": -1}, {"epoch": -1}, {"epoch": 2**63}, {"rows": 2**80}, {"weather": {"days": [2**63]}},
     {"intervals": [{**CLAIM, "end": 2**63}]}, {"intervals": [{**CLAIM, "start": -(2**63) - 1}]},
     {"closures": [{"gap": "00", "by": "lost", "end": 2**64}]}],
)  # fmt: skip
def test_a_number_that_no_int64_holds_does_not_pass_under_any_signature(change: dict[str, object]):
    """A database or a reader in another language could not keep it, and would judge the log otherwise."""
    assert flaw(resign(SIGNED, A, **change), seq=change.get("seq", 3)) is Flaw.ALTERED  # type: ignore[arg-type]


def test_the_ends_of_int64_pass():
    wide = [{**CLAIM, "start": -(2**63), "end": 2**63 - 1}]
    assert flaw(resign(SIGNED, A, epoch=2**63 - 1, intervals=wide)) is None


def test_an_enrolled_name_keeps_its_key():
    keys = {"a": public_hex(A), "b": public_hex(B)}
    stolen = msgspec.structs.replace(HEADER, holder="b", keys={"a": public_hex(B)})
    assert flaw(sign(stolen, B), keys=keys) is Flaw.REKEYED
    changed = msgspec.structs.replace(HEADER, keys={"a": public_hex(B)})
    assert flaw(sign(changed, A), keys=keys) is Flaw.REKEYED, "nor does it change its own"
    repeated = msgspec.structs.replace(HEADER, keys={**keys, "c": public_hex(B)})
    assert flaw(sign(repeated, A), keys=keys) is None
    assert flaw(resign(SIGNED, A, keys={"b": public_hex(B).upper()}), keys=keys) is Flaw.ALTERED, "one spelling"


def test_check_raises_corrupt_with_the_flaw_in_words():
    assert check(SIGNED, "g", KEYS, 3).rows == 5
    with pytest.raises(Corrupt, match="segment 4 is misplaced: it is segment 3"):
        check(SIGNED, "g", KEYS, 4)
