"""Facts come back whole, are the same bytes whatever the order, and odd ones are refused."""

from __future__ import annotations

import pytest
import zstandard

from mirror.batch import Kind
from mirror.errors import Corrupt
from mirror.facts import FACTS_BYTES_MAX, decode_facts, encode_facts
from mirror.tags import Tag
from mirror.variant import Structure, StructureField
from tests.mirror.batches import table

TAGS = table()
POINT = Structure("Point", fields=(StructureField("x", int(Kind.DOUBLE)),))
LINE = Structure(
    "Line",
    "with-optional-fields",
    (StructureField("from", POINT), StructureField("names", int(Kind.STRING), 1, True)),
)
MODE = Structure("Mode", "enum", (StructureField("Idle", value=0), StructureField("Run", value=1)))
STRUCTURES = {"urn:s": {"ns=2;i=1": LINE, "ns=2;i=2": MODE}, "urn:t": {"ns=2;i=1": POINT}}


def test_tags_and_structures_come_back_whole() -> None:
    full = Tag("urn:s", "urn:n", "s=µ", "a/b", "d", "n", "Double", 1, "°C", -1.5, 1e300, "text", "U")
    tags, structures = decode_facts(encode_facts([full, *TAGS.tags], STRUCTURES))
    assert tags == sorted([full, *TAGS.tags], key=lambda tag: tag.identity)
    assert structures == STRUCTURES
    assert decode_facts(encode_facts([], {})) == ([], {})


def test_the_same_facts_are_the_same_bytes_in_any_order() -> None:
    turned = {source: dict(reversed(of.items())) for source, of in reversed(STRUCTURES.items())}
    assert encode_facts(TAGS.tags, STRUCTURES) == encode_facts(TAGS.tags[::-1], turned)


def test_ten_thousand_tags_take_few_bytes() -> None:
    tags = [Tag("urn:s", "urn:n", f"s=Press{i // 25}.Zone{i % 25}", unit="degC") for i in range(10_000)]
    assert len(encode_facts(tags, {})) < 10 * len(tags)


def test_facts_that_are_none_are_corrupt() -> None:
    cut = encode_facts(TAGS.tags, {})[:-5]
    nested = b'{"name":"a","fields":[{"name":"b","type":' * 9999
    deep = zstandard.compress(b'{"tags":[],"structures":{"s":{"a":' + nested)
    for facts in (b"", b"not zstd", cut, zstandard.compress(b"{}"), zstandard.compress(b"[" * 10_000), deep):
        with pytest.raises(Corrupt, match="cannot be read"):
            decode_facts(facts)


def test_facts_that_claim_to_unpack_to_too_much_are_refused_unread() -> None:
    magic, one_frame_of_known_size = b"\x28\xb5\x2f\xfd", b"\xe0"
    for size in (FACTS_BYTES_MAX + 1, 2**50):
        with pytest.raises(Corrupt, match="claim"):
            decode_facts(magic + one_frame_of_known_size + size.to_bytes(8, "little") + b"\1\0\0")
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}" * 100)
    with pytest.raises(Corrupt):
        decode_facts(stream)
