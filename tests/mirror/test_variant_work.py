"""Reading a value costs no more than its bytes warrant, whatever a server sends or defines.

Counted is memory, which is the same on every machine, as the work follows it.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mirror import segment, variant
from mirror.batch import ARRAY, DIMENSIONS, Kind, canonical_order, equal, take
from mirror.errors import Corrupt
from mirror.schema import STATE_COLUMNS, state_batch, state_parameters
from mirror.variant import Structure, StructureField, decode, encode, readable
from mirror.wire import PARTS_MAX
from tests.mirror.batches import NOW_TICKS, from_rows, table

MATRIX = Kind.BOOLEAN | ARRAY | DIMENSIONS


def matrix(elements: int, dimensions: list[int]) -> bytes:
    return (
        struct.pack("<i", elements)
        + bytes(elements)
        + struct.pack(f"<{1 + len(dimensions)}i", len(dimensions), *dimensions)
    )


def peak_bytes(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what work returns and the most memory that it held."""
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


DEEP = 60
FLAT = [[2500] + [1] * 899, [1] * 899 + [2500], [50] + [1] * 898 + [50], [2500] + [1] * 63, [2500, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("dimensions", FLAT, ids=lambda d: f"{len(d)} dimensions")
def test_a_matrix_of_hardly_more_than_dimensions_is_shown_as_its_bytes(dimensions: list[int]) -> None:
    body = matrix(2500, dimensions)
    text, most = peak_bytes(lambda: readable(MATRIX, body))
    assert set(json.loads(text)) == {"kind", "body"}
    assert most < 100 * len(body)
    with pytest.raises(Corrupt, match="dimensions"):
        decode(MATRIX, body)


def test_a_matrix_that_many_dimensions_do_not_stretch_is_read() -> None:
    deep: Any = 1
    for _ in range(DEEP):
        deep = [deep]
    body = struct.pack("<i", 1) + b"\1" + struct.pack(f"<{DEEP + 1}i", DEEP, *[1] * DEEP)
    assert json.loads(readable(MATRIX, body)) == json.loads(json.dumps(deep).replace("1", "true"))
    for dimensions in ([2500, 1, 1, 1], [50, 50], [1, 2500, 1], [4, 25, 25]):
        assert np.shape(json.loads(readable(MATRIX, matrix(2500, dimensions)))) == tuple(dimensions)


def test_more_dimensions_than_a_number_can_count_are_not_multiplied() -> None:
    body = matrix(4, [2**31 - 1] * 60_000)
    text, most = peak_bytes(lambda: readable(MATRIX, body))
    assert set(json.loads(text)) == {"kind", "body"}
    assert most < 40 * len(body)


def test_such_values_pass_through_state_and_segment_bit_for_bit() -> None:
    kinds = {
        MATRIX: matrix(24_000, [24_000] + [1] * 60),
        Kind.VARIANT | ARRAY: struct.pack("<i", 99_999) + bytes(99_999),
    }
    rows = [(h, NOW_TICKS, NOW_TICKS, 0, 0, 0, 0, *kind) for h, kind in enumerate(kinds.items())]
    batch, tags = from_rows(rows), table()
    stored, most = peak_bytes(lambda: state_parameters(batch))
    width = len(STATE_COLUMNS)
    assert equal(state_batch([tuple(stored[i : i + width]) for i in range(0, len(stored), width)]), batch)
    data, most_there = peak_bytes(lambda: segment.encode(batch, tags, b"{}"))
    assert equal(segment.decode(data, tags)[0], take(batch, canonical_order(batch, tags.rank)))
    assert max(most, most_there) < 32 << 20


@pytest.mark.parametrize(
    ("kind", "unit"),
    [(Kind.VARIANT, b"\0"), (Kind.DATAVALUE, b"\0"), (Kind.LOCALIZEDTEXT, b"\0"), (Kind.DIAGNOSTICINFO, b"\0"),
     (Kind.EXTENSIONOBJECT, b"\0\0\0"), (Kind.STRING, b"\xff" * 4), (Kind.FLOAT, b"\0\0\0\0")],
)  # fmt: skip
@pytest.mark.parametrize("count", [100, PARTS_MAX + 1, 4_000_000])
def test_an_array_of_the_smallest_values_is_read_only_where_they_are_few(kind: int, unit: bytes, count: int) -> None:
    body = struct.pack("<i", count) + unit * count
    text, most = peak_bytes(lambda: readable(kind | ARRAY, body))
    value = json.loads(text)
    if count == 100:
        assert len(value) == 100
    else:
        assert value == {"kind": kind | ARRAY, "size": len(body)} or set(value) == {"kind", "body"}
        assert len(text) < 2 * variant.TOLD_BODY_BYTES_MAX
        assert most < (8 << 20) + 2 * len(body)


def test_long_values_are_read_where_that_is_quick_and_told_by_their_size_where_not() -> None:
    limit = variant.TOLD_BODY_BYTES_MAX
    numbers = np.arange(2 * limit // 8, dtype="<f8")
    body = struct.pack("<i", len(numbers)) + numbers.tobytes()
    assert json.loads(readable(Kind.DOUBLE | ARRAY, body)) == numbers.tolist()
    many = struct.pack("<i", 16 * limit) + bytes(16 * limit)
    assert json.loads(readable(Kind.BYTE | ARRAY, many)) == {"kind": 0x83, "size": len(many)}
    words = encode(Kind.STRING | ARRAY, ["x" * 1000] * (limit // 1000))
    assert json.loads(readable(Kind.STRING | ARRAY, words)) == {"kind": 0x8C, "size": len(words)}
    long = "x" * 20 * limit
    assert readable(Kind.STRING, encode(Kind.STRING, long)) == long


def _extension(body: bytes) -> bytes:
    return encode(Kind.EXTENSIONOBJECT, {"type": "ns=2;i=1", "body": body})


def _doubling(levels: int) -> Structure:
    """A structure of two structures of two structures ... without a single byte in any of them."""
    inner = Structure("Empty")
    for level in range(levels):
        inner = Structure(f"L{level}", fields=(StructureField("a", inner), StructureField("b", inner)))
    return inner


HOSTILE: dict[str, tuple[Structure, bytes]] = {
    "structures that take no bytes": (_doubling(30), b""),
    "arrays that take no bytes": (
        Structure("Outer", fields=(StructureField("x", Structure("I", fields=(StructureField("n", 0, 1),)), 1),)),
        struct.pack("<i", 4000) + struct.pack("<i", 16) * 4000,
    ),
    "optional fields that are not there": (
        Structure("O", "with-optional-fields", tuple(StructureField(f"f{i}", 6, optional=True) for i in range(50_000))),
        bytes(4),
    ),
    "names longer than their values": (
        Structure("N", fields=(StructureField("x", Structure("I", fields=(StructureField("n" * 10_000, 1),)), 1),)),
        struct.pack("<i", 30_000) + bytes(30_000),
    ),
    "a matrix of nothing but dimensions": (
        Structure("M", fields=(StructureField("m", 1, 900),)),
        struct.pack("<901i", 900, 2500, *[1] * 899) + bytes(2500),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_definition_cannot_make_a_value_larger_than_its_bytes(what: str) -> None:
    definition, inside = HOSTILE[what]
    body = _extension(inside)
    text, most = peak_bytes(lambda: readable(Kind.EXTENSIONOBJECT, body, {"ns=2;i=1": definition}))
    assert set(json.loads(text)) in ({"kind", "body"}, {"type", "body"})
    assert most < (4 << 20) + 100 * len(body)


def test_ordinary_structures_stay_within_their_parts() -> None:
    mode = Structure("Mode", "enum", tuple(StructureField(f"Member{i}", value=i) for i in range(500)))
    flag = Structure("Flag", fields=(StructureField("on", Kind.BOOLEAN),))
    few = Structure("Few", "with-optional-fields", tuple(StructureField(f"f{i}", 6, optional=True) for i in range(32)))
    whole = Structure(
        "W", fields=(StructureField("m", mode, 1), StructureField("f", flag, 1), StructureField("o", few, 1))
    )
    inside = (
        struct.pack("<i20i", 20, *range(20)) + struct.pack("<i", 500) + b"\1" * 500 + struct.pack("<i", 50) + bytes(200)
    )
    value = json.loads(readable(Kind.EXTENSIONOBJECT, _extension(inside), {"ns=2;i=1": whole}))
    assert value["m"][19] == "Member19_19" and value["f"] == [{"on": True}] * 500 and value["o"] == [{}] * 50
