"""The verified prefix: a fold of headers, and of nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror.coverage import Closure, Coverage, Gap, Reason
from mirror.errors import Corrupt
from mirror.header import Closing, Finding, Flaw, Header, chain_hash, public_hex, sign
from mirror.prefix import Prefix, Saved

A = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
B = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
GENESIS = Header(group="g", epoch=1, holder="a", incarnation="i", arbiter="solo", keys={"a": public_hex(A)})


def grow(prefix: Prefix, header: Header, key: Ed25519PrivateKey = A, file: str = "") -> bytes:
    data = sign(header, key)
    found = prefix.judge(data)
    assert isinstance(found, Header), found
    prefix.absorb(found, chain_hash(data), file)
    return data


def after(prefix: Prefix, **fields: object) -> Header:
    at = prefix.at
    start = {"group": "g", "seq": at.seq, "epoch": at.epoch, "holder": "a", "incarnation": "i", "prev": at.hash}
    return Header(**{**start, **fields})  # type: ignore[arg-type]


@pytest.fixture
def prefix() -> Prefix:
    prefix = Prefix(Saved("g"))
    grow(prefix, GENESIS, file="f0")
    return prefix


def flaw(prefix: Prefix, header: Header, key: Ed25519PrivateKey = A) -> Flaw | None:
    found = prefix.judge(sign(header, key))
    return found.flaw if isinstance(found, Finding) else None


def test_a_saved_prefix_comes_back_whole_and_goes_on(prefix: Prefix):
    gap = Gap.opened("s", "1-1", 5, Reason.MISSED, end=6)
    claim = Coverage("s", "1-1", 0, 9, "a")
    grow(prefix, after(prefix, intervals=(claim,), gaps=(gap,), facts_sha256="ff"))
    again = Prefix.load(prefix.save())
    assert again.at == prefix.at
    assert again.promise.claims() == [claim]
    assert (again.at.seq, again.at.facts, again.at.told) == (2, "ff", {gap.id: gap.extent})
    grow(again, after(again, closures=(Closing(gap.id, Closure.HISTORY),)))
    assert again.at.told == {gap.id: "closed"}
    assert prefix.at.told == {gap.id: gap.extent}, "two prefixes share nothing"


def test_a_prefix_saved_without_its_promise_takes_the_one_kept_elsewhere(prefix: Prefix):
    grow(prefix, after(prefix, intervals=(Coverage("s", "1-1", 0, 9, "a"),)))
    assert Prefix.load(prefix.save(claims=False)).promise.claims() == []
    again = Prefix.load(prefix.save(claims=False), prefix.promise)
    assert again.promise.claims() == prefix.promise.claims()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"group":"g","seq":"x"}', b"\xff"])
def test_noise_is_no_prefix(data: bytes):
    with pytest.raises(Corrupt):
        Prefix.load(data)


def test_what_does_not_continue_the_prefix_is_named(prefix: Prefix):
    assert flaw(prefix, after(prefix)) is None
    assert flaw(prefix, after(prefix, prev="00")) is Flaw.FORK
    assert flaw(prefix, after(prefix, epoch=0)) is Flaw.EPOCH
    assert flaw(prefix, after(prefix, incarnation="j")) is Flaw.EPOCH
    assert flaw(prefix, after(prefix, epoch=2, incarnation="j")) is None
    assert flaw(prefix, after(prefix, seq=5)) is Flaw.MISPLACED
    assert flaw(prefix, after(prefix, holder="b"), B) is Flaw.FOREIGN


def test_a_replica_may_write_once_an_enrolled_one_has_enrolled_it(prefix: Prefix):
    assert flaw(prefix, after(prefix, epoch=2, holder="b", keys={"b": public_hex(B)}), B) is Flaw.FOREIGN
    grow(prefix, after(prefix, keys={"b": public_hex(B)}))
    grow(prefix, after(prefix, epoch=2, holder="b"), B)
    assert prefix.at.holder == "b"


def test_an_enrolled_replica_cannot_take_anothers_name(prefix: Prefix):
    grow(prefix, after(prefix, keys={"b": public_hex(B)}))
    assert flaw(prefix, after(prefix, epoch=2, holder="b", keys={"a": public_hex(B)}), B) is Flaw.REKEYED
    grow(prefix, after(prefix, epoch=2, holder="b", keys={"a": public_hex(A)}), B)
    assert prefix.at.keys == {"a": public_hex(A), "b": public_hex(B)}


def test_stepping_over_an_unreadable_segment_takes_its_hash_from_its_successor(prefix: Prefix):
    lost = sign(after(prefix), A)
    successor = after(prefix, seq=2, prev=chain_hash(lost), prev_file="f1")
    prefix.skip(successor)
    assert (prefix.at.seq, prefix.at.hash, prefix.at.file) == (2, chain_hash(lost), "f1")
    grow(prefix, successor)


def test_a_prefix_names_its_log_by_the_hash_of_segment_0_also_where_that_was_stepped_over(prefix: Prefix):
    genesis = prefix.at.hash
    assert prefix.at.genesis == genesis
    grow(prefix, after(prefix))
    assert prefix.at.genesis == genesis
    blind = Prefix(Saved("g", keys={"a": public_hex(A)}))
    blind.skip(Header(group="g", seq=1, prev=genesis))
    assert blind.at.genesis == genesis


def test_gaps_told_in_a_segment_that_is_stepped_over_count_as_untold(prefix: Prefix):
    known, lost = Gap.opened("s", "1-1", 5, Reason.MISSED), Gap.opened("s", "1-1", 7, Reason.MISSED, end=8)
    grow(prefix, after(prefix, gaps=(known,)))
    gone = sign(after(prefix, gaps=(lost,), closures=(Closing(known.id, Closure.LOST),)), A)
    prefix.skip(after(prefix, seq=3, prev=chain_hash(gone)))
    assert prefix.at.told == {known.id: known.extent}, "the journal's ledger differs from this, so it tells both"
