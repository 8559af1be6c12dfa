"""Values: their bytes are stepped over exactly, read back as they were, and always have a text.

asyncua's decoder, written by others from the same specification, is the second opinion on the wire.
"""

from __future__ import annotations

import base64
import json
import struct
import time
from contextlib import suppress
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import variant_from_binary
from hypothesis import given
from hypothesis import strategies as st

from mirror.batch import ARRAY, DIMENSIONS, FIXED_WIDTH, IN_HEAP, Kind
from mirror.errors import Corrupt
from mirror.variant import Structure, StructureField, body_size, encode, iso, numbers, readable, status_name
from mirror.wire import decode, nest
from tests.mirror.batches import DAY, INT64_MAX, INT64_MIN, MAX_DATETIME_TICKS, NOW_TICKS, heap_bodies, kinds_and_values

PLAIN = {*range(1, 13), Kind.BYTESTRING}


def wire(text: str) -> bytes:
    return bytes.fromhex(text)


@given(kinds_and_values())
def test_what_is_encoded_decodes_to_the_same_value(kind_value: tuple[int, Any]) -> None:
    kind, value = kind_value
    assert decode(kind, encode(kind, value)) == value


@given(kinds_and_values(), st.binary(max_size=3), st.binary(max_size=9))
def test_a_body_is_stepped_over_exactly_wherever_it_stands(
    kind_value: tuple[int, Any], before: bytes, after: bytes
) -> None:
    body = encode(*kind_value)
    for data in (before + body + after, memoryview(before + body + after)):
        assert body_size(data, len(before), kind_value[0]) == len(body)


@given(kinds_and_values(depth=0))
def test_another_decoder_reads_the_same_values(kind_value: tuple[int, Any]) -> None:
    kind, value = kind_value
    if "udc" in ascii(value) or "'xml'" in repr(value):
        return  # asyncua reads other text from bytes that are not UTF-8, and not the body of the XML form
    buffer = Buffer(bytes([kind]) + encode(kind, value))
    variant = variant_from_binary(buffer)
    assert len(buffer) == 0 and variant.VariantType.value == kind & 0x3F
    if kind & 0x3F in PLAIN and not kind & DIMENSIONS:
        assert variant.Value == value
    if kind & 0x3F == Kind.GUID and not kind & ARRAY:
        assert str(variant.Value) == value


@given(kinds_and_values(), st.data())
def test_a_body_cut_short_is_corrupt(kind_value: tuple[int, Any], data: st.DataObject) -> None:
    body = encode(*kind_value)
    if body:
        cut = body[: data.draw(st.integers(0, len(body) - 1))]
        for read in (lambda: body_size(cut, 0, kind_value[0]), lambda: decode(kind_value[0], cut)):
            with pytest.raises(Corrupt):
                read()


@given(st.integers(0, 255), st.binary(max_size=60))
def test_hostile_bytes_raise_corrupt_or_decode_and_always_have_a_text(kind: int, data: bytes) -> None:
    text = readable(kind, data)
    assert kind == Kind.STRING or json.loads(text) is not NotImplemented
    try:
        size = body_size(data, 0, kind)
    except Corrupt:
        with pytest.raises(Corrupt):
            decode(kind, data)
        return
    try:
        decode(kind, data[:size])
    except Corrupt:
        # Dimensions, the outer ones or those of a Variant inside, are compared with the array only when it is read.
        assert any(byte & (ARRAY | DIMENSIONS) == ARRAY | DIMENSIONS for byte in (kind, *data))


@given(heap_bodies(), st.data())
def test_a_body_with_a_changed_byte_raises_corrupt_or_decodes(
    kind_body: tuple[int, bytes], data: st.DataObject
) -> None:
    kind, body = kind_body
    altered = bytearray(body)
    altered[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Corrupt):
        decode(kind, bytes(altered))
    readable(kind, bytes(altered)).encode()


@pytest.mark.parametrize(
    ("kind", "body", "value"),
    [
        (Kind.STRING, "06000000e6b0b4426f79", "水Boy"),
        (Kind.STRING, "ffffffff", None),
        (Kind.STRING, "00000000", ""),
        (Kind.GUID, "912b967275fae64a8d28b404dc7daf63", "72962b91-fa75-4ae6-8d28-b404dc7daf63"),
        (Kind.NODEID, "0301000600000048 6f74e6b0b4", "ns=1;s=Hot水"),
        (Kind.NODEID, "0048", "i=72"),
        (Kind.NODEID, "01050104", "ns=5;i=1025"),
        (Kind.NODEID, "02000101000000", "ns=256;i=1"),
        (Kind.NODEID, "050300020000000aff", "ns=3;b=Cv8="),
        (Kind.EXPANDEDNODEID, "c0480300000061 3b2507000000", "svr=7;nsu=a%3B%25;i=72"),
        (Kind.QUALIFIEDNAME, "02000100000041", {"namespace": 2, "name": "A"}),
        (Kind.LOCALIZEDTEXT, "0300000000ffffffff", {"locale": "", "text": None}),
        (Kind.EXTENSIONOBJECT, "010289130102000000 0aff", {"type": "ns=2;i=5001", "body": b"\n\xff"}),
        (Kind.EXTENSIONOBJECT, "000000", {"type": "i=0", "body": None}),
        (Kind.DATAVALUE, "0f 0301 00003180 0100000000000000 0200000000000000",
         {"value": {"kind": 3, "value": 1}, "status": 0x80310000, "source_ticks": 1, "server_ticks": 2}),
        (Kind.DATAVALUE, "3c 0100000000000000 0300 0200000000000000 0400",
         {"source_ticks": 1, "source_ps": 3, "server_ticks": 2, "server_ps": 4}),
        (Kind.DIAGNOSTICINFO, "7f 01000000 02000000 04000000 03000000 0100000041 00000180 00",
         {"symbolic_id": 1, "namespace_uri": 2, "locale": 4, "localized_text": 3, "additional_info": "A",
          "inner_status": 0x80010000, "inner": {}}),
        (Kind.DIAGNOSTICINFO, "04 05000000", {"localized_text": 5}),
        (Kind.DIAGNOSTICINFO, "08 05000000", {"locale": 5}),
        (Kind.BOOLEAN | ARRAY, "03000000000102", [False, True, True]),
        (Kind.INT16 | ARRAY, "02000000ffff0100", [-1, 1]),
        (Kind.INT16 | ARRAY, "ffffffff", None),
        (Kind.BYTE | ARRAY | DIMENSIONS, "06000000010203040506 02000000 02000000 03000000", [[1, 2, 3], [4, 5, 6]]),
        (Kind.NULL | ARRAY, "00000000", []),
        (29, "0100000041", b"A"),
    ],
)  # fmt: skip
def test_bytes_as_the_specification_writes_them_are_read(kind: int, body: str, value: Any) -> None:
    assert body_size(wire(body), 0, kind) == len(wire(body))
    assert decode(kind, wire(body)) == value


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.STRING, "ffffff7f"),
        (Kind.DOUBLE | ARRAY, "ffffff7f"),
        (Kind.NULL | ARRAY, "ffffff7f"),
        (Kind.VARIANT | ARRAY, "ffffff0700"),
        (Kind.BYTE | ARRAY | DIMENSIONS, "0100000001ffffff7f"),
        (Kind.DOUBLE | DIMENSIONS, "0000000000000000"),
        (Kind.NODEID, "0600"),
        (Kind.NODEID, "8048"),
        (Kind.LOCALIZEDTEXT, "04"),
        (Kind.DATAVALUE, "40"),
        (Kind.DIAGNOSTICINFO, "80"),
        (Kind.EXTENSIONOBJECT, "000003"),
        (Kind.VARIANT, "20"),
        (32, "00000000"),
    ],
)
def test_hostile_lengths_masks_and_types_are_corrupt(kind: int, body: str) -> None:
    with pytest.raises(Corrupt):
        body_size(wire(body), 0, kind)


@pytest.mark.parametrize("unit", ["18", "1701", "9801000000"])
def test_nesting_ends_at_100_levels(unit: str) -> None:
    kind = {"18": Kind.VARIANT, "1701": Kind.DATAVALUE, "9801000000": Kind.VARIANT | ARRAY}[unit]
    levels = {"18": 99, "1701": 49, "9801000000": 99}[unit]
    head = wire(unit)[1:]  # the body of the outermost one starts after its own encoding byte
    deep = head + wire(unit) * levels + b"\0"
    size = body_size(deep, 0, kind)
    assert size == len(deep) and decode(kind, deep) is not None and readable(kind, deep)
    too_deep = head + wire(unit) * 100_000 + b"\0"
    with pytest.raises(Corrupt, match="nested"):
        body_size(too_deep, 0, kind)
    assert json.loads(readable(kind, too_deep))["kind"] == kind
    with pytest.raises(Corrupt, match="nested"):
        body_size(b"\x40" * 100_000 + b"\0", 0, Kind.DIAGNOSTICINFO)


def test_dimensions_that_do_not_fit_are_stepped_over_but_not_read() -> None:
    body = wire("0300000001020302000000 02000000 02000000")
    kind = Kind.BYTE | ARRAY | DIMENSIONS
    assert body_size(body, 0, kind) == len(body)
    with pytest.raises(Corrupt):
        decode(kind, body)
    assert json.loads(readable(kind, body)) == {"kind": kind, "body": base64.b64encode(body).decode()}


def test_bytes_left_over_are_corrupt() -> None:
    with pytest.raises(Corrupt, match="left"):
        decode(Kind.STRING, encode(Kind.STRING, "a") + b"\0")


def test_text_that_is_not_utf8_goes_through_a_value_and_back() -> None:
    body = struct.pack("<i", 3) + b"a\xff\x80"
    assert encode(Kind.STRING, decode(Kind.STRING, body)) == body
    assert readable(Kind.STRING, body) == "a��"


def _bits(kind: int, value: Any) -> int:
    return int.from_bytes(encode(kind, value), "little", signed=False)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Kind.BOOLEAN, True, "true"), (Kind.SBYTE, -5, "-5"), (Kind.UINT64, 2**64 - 1, "18446744073709551615"),
        (Kind.FLOAT, 0.1, "0.1"), (Kind.FLOAT, 1e20, "1e+20"), (Kind.DOUBLE, 0.1, "0.1"), (Kind.DOUBLE, -0.0, "-0.0"),
        (Kind.DOUBLE, float("nan"), '"NaN"'), (Kind.FLOAT, float("-inf"), '"-Infinity"'),
        (Kind.DOUBLE, float("inf"), '"Infinity"'), (Kind.STATUSCODE, 0x80310000, '"BadNoCommunication"'),
        (Kind.DATETIME, NOW_TICKS + 1, '"2026-09-21T14:13:20.0000001Z"'), (Kind.DATETIME, INT64_MAX, str(INT64_MAX)),
    ],
)  # fmt: skip
def test_numbers_read_as_json(kind: int, value: Any, text: str) -> None:
    assert readable(kind, _bits(kind, value)) == text


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Kind.STRING, "plain {text}", "plain {text}"), (Kind.STRING, None, ""),
        (Kind.STRING | ARRAY, ["ü", None], '["ü",null]'),
        (Kind.DOUBLE | ARRAY, [1.5, float("nan")], '[1.5,"NaN"]'), (Kind.FLOAT | ARRAY, [0.1], "[0.1]"),
        (Kind.INT32 | ARRAY | DIMENSIONS, [[1, 2], [3, 4]], "[[1,2],[3,4]]"), (Kind.BYTESTRING, b"\0\xff", '"AP8="'),
        (Kind.BYTESTRING, None, "null"), (Kind.NODEID, "ns=2;s=a", '"ns=2;s=a"'),
        (Kind.VARIANT | ARRAY, [{"kind": 6, "value": 1}, {"kind": 12, "value": "a"}], '[1,"a"]'),
        (Kind.DATAVALUE, {"value": {"kind": 6, "value": 1}, "status": 0, "source_ticks": 0},
         '{"value":1,"status":"Good","source_ticks":"1601-01-01T00:00:00.0000000Z"}'),
        (Kind.EXTENSIONOBJECT, {"type": "ns=2;i=9", "body": b"\1"}, '{"type":"ns=2;i=9","body":"AQ=="}'),
        (Kind.DATETIME | ARRAY, [0], '["1601-01-01T00:00:00.0000000Z"]'),
    ],
)  # fmt: skip
def test_heap_values_read_as_themselves_or_as_json(kind: int, value: Any, text: str) -> None:
    assert readable(kind, encode(kind, value)) == text


NUMBERS: dict[int, list[float]] = {
    Kind.SBYTE: [-128, 0, 127], Kind.BYTE: [0, 255], Kind.INT16: [-(2**15), 7], Kind.UINT16: [65_535],
    Kind.INT32: [-(2**31), 1], Kind.UINT32: [2**32 - 1], Kind.INT64: [-(2**63), 2**63 - 1], Kind.UINT64: [2**64 - 1, 0],
    Kind.DOUBLE: [-0.0, 5e-324, 0.1, 1e16, 123456.75, -1.7976931348623157e308],
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_arrays_of_numbers_read_the_same_by_the_short_road(kind: int) -> None:
    long = json.dumps(NUMBERS[kind], separators=(",", ":"))
    body = encode(kind | ARRAY, NUMBERS[kind])
    assert numbers(kind | ARRAY, body) == long
    assert readable(kind | ARRAY, body) == long


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.DOUBLE | ARRAY, encode(Kind.DOUBLE | ARRAY, [1.0, float("nan")])),
        (Kind.DOUBLE | ARRAY, encode(Kind.DOUBLE | ARRAY, [1.0])[:-1]), (Kind.STRING, b""),
        (Kind.FLOAT | ARRAY, encode(Kind.FLOAT | ARRAY, [0.1])), (Kind.INT32 | ARRAY, b"\xff\xff\xff\xff"),
        (Kind.INT32 | ARRAY, encode(Kind.INT32 | ARRAY, [])),
    ],
)  # fmt: skip
def test_other_values_do_not_take_the_short_road(kind: int, body: bytes) -> None:
    assert numbers(kind, body) is None


MODE = Structure("Mode", "enum", (StructureField("Idle", value=0), StructureField("Run", value=2)))
POINT = Structure("Point", fields=(StructureField("X", Kind.DOUBLE), StructureField("Y", Kind.FLOAT)))
PART = Structure(
    "Part",
    "with-optional-fields",
    (
        StructureField("Id", Kind.UINT32),
        StructureField("Label", Kind.STRING, optional=True),
        StructureField("Seen", Kind.DATETIME, optional=True),
        StructureField("Path", POINT, value_rank=1),
        StructureField("Mode", MODE),
        StructureField("Grid", Kind.BYTE, value_rank=2),
    ),
)
CHOICE = Structure("Choice", "union", (StructureField("A", Kind.INT32), StructureField("B", Kind.STRING)))
KNOWN = {"ns=2;i=1": POINT, "ns=2;i=2": PART, "ns=2;i=3": CHOICE}


def _extension(node: str, body: bytes) -> bytes:
    return encode(Kind.EXTENSIONOBJECT, {"type": node, "body": body})


PART_BODY = (
    struct.pack("<II q i", 2, 7, 0, 1) + struct.pack("<df", 1.5, 0.1) + struct.pack("<i", 2)
    + struct.pack("<3i", 2, 1, 2) + b"\x08\x09"
)  # fmt: skip


def test_structures_read_by_their_definition() -> None:
    def read(node: str, body: bytes) -> Any:
        return json.loads(readable(Kind.EXTENSIONOBJECT, _extension(node, body), KNOWN))

    assert read("ns=2;i=1", struct.pack("<df", 1.0, 0.1)) == {"X": 1.0, "Y": 0.1}
    assert read("ns=2;i=2", PART_BODY) == {
        "Id": 7, "Seen": "1601-01-01T00:00:00.0000000Z", "Path": [{"X": 1.5, "Y": 0.1}], "Mode": "Run_2",
        "Grid": [[8, 9]],
    }  # fmt: skip
    assert read("ns=2;i=3", struct.pack("<Ii", 1, -3)) == {"A": -3}
    assert read("ns=2;i=3", struct.pack("<I", 0)) is None


@pytest.mark.parametrize("body", [b"", b"\0" * 11, b"\0" * 13, PART_BODY])
def test_a_structure_that_its_definition_does_not_fit_shows_its_bytes(body: bytes) -> None:
    found = json.loads(readable(Kind.EXTENSIONOBJECT, _extension("ns=2;i=1", body), KNOWN))
    assert found == {"type": "ns=2;i=1", "body": base64.b64encode(body).decode()}


@given(st.sampled_from(sorted(KNOWN)), st.binary(max_size=60))
def test_any_bytes_under_a_definition_have_a_text(node: str, body: bytes) -> None:
    json.loads(readable(Kind.EXTENSIONOBJECT, _extension(node, body), KNOWN))


def test_structures_inside_structures_and_arrays_are_found() -> None:
    inner = {"type": "ns=2;i=1", "body": struct.pack("<df", 1.0, 2.0)}
    assert (
        readable(Kind.EXTENSIONOBJECT | ARRAY, encode(Kind.EXTENSIONOBJECT | ARRAY, [inner]), KNOWN)
        == '[{"X":1.0,"Y":2.0}]'
    )
    box = Structure("Box", fields=(StructureField("Any", Kind.VARIANT), StructureField("Obj", Kind.EXTENSIONOBJECT)))
    body = encode(Kind.VARIANT, {"kind": 3, "value": 4}) + encode(Kind.EXTENSIONOBJECT, inner)
    found = readable(Kind.EXTENSIONOBJECT, _extension("ns=2;i=4", body), {**KNOWN, "ns=2;i=4": box})
    assert found == '{"Any":4,"Obj":{"X":1.0,"Y":2.0}}'


def test_structures_that_contain_each_other_without_end_show_their_bytes() -> None:
    box = Structure("Box", fields=(StructureField("Obj", Kind.EXTENSIONOBJECT),))
    body = encode(Kind.EXTENSIONOBJECT, {"type": "ns=2;i=5", "body": None})
    for _ in range(200):
        body = _extension("ns=2;i=5", body)
    assert json.loads(readable(Kind.EXTENSIONOBJECT, body, {"ns=2;i=5": box}))


@given(kinds_and_values())
def test_every_value_has_a_text_that_utf8_can_carry(kind_value: tuple[int, Any]) -> None:
    kind, value = kind_value
    text = readable(kind, encode(kind, value) if IN_HEAP[kind] else _bits(kind, value) if FIXED_WIDTH[kind] else 0)
    text.encode()
    if kind != Kind.STRING:
        json.loads(text)


@given(st.integers(INT64_MIN, INT64_MAX))
def test_iso_text_has_all_seven_digits_or_is_the_ticks(ticks: int) -> None:
    text = iso(ticks)
    assert (text == ticks) == isinstance(text, int)
    if isinstance(text, str):
        assert text.endswith(f".{ticks % 10_000_000:07d}Z") and len(text) == 28


def test_iso_ends_where_the_calendar_ends() -> None:
    assert (
        iso(MAX_DATETIME_TICKS) == "9999-12-31T23:59:59.9999999Z"
        and iso(MAX_DATETIME_TICKS + 1) == MAX_DATETIME_TICKS + 1
    )
    assert iso(-1) == "1600-12-31T23:59:59.9999999Z" and iso(0 - 2000 * 366 * DAY) == 0 - 2000 * 366 * DAY


def test_status_names_are_those_of_the_specification() -> None:
    named = 0
    for name in dir(ua.StatusCodes):
        code = getattr(ua.StatusCodes, name)
        if isinstance(code, int) and not code & 0xFFFF and not name.startswith("_"):
            found = status_name(code)
            named += found == name
            assert found in (name, f"0x{code:08X}"), name
    assert named > 140
    assert status_name(0x8FAB0480) == "0x8FAB0480"


def test_flags_in_the_lower_half_do_not_change_a_status_name() -> None:
    assert status_name(0x00000480) == "Good" and status_name(0x80310480) == "BadNoCommunication"


@pytest.mark.parametrize("ones", [900, 60, 8])
def test_a_short_value_with_many_dimensions_is_told_by_its_bytes_and_costs_nothing(ones: int) -> None:
    count = 2500
    dimensions = struct.pack(f"<i{ones + 1}i", ones + 1, count, *[1] * ones)
    body = struct.pack("<i", count) + bytes(count) + dimensions
    kind = int(Kind.BOOLEAN) | ARRAY | DIMENSIONS
    began = time.process_time()
    text = readable(kind, body)
    assert time.process_time() - began < 1.0
    assert json.loads(text) == {"kind": kind, "body": base64.b64encode(body).decode()}
    with pytest.raises(Corrupt, match=r"more than anybody can use|is the most"):
        decode(kind, body)


def test_dimensions_that_people_use_are_nested_ones_among_them() -> None:
    assert nest(list(range(6)), [2, 3]) == [[0, 1, 2], [3, 4, 5]]
    assert nest([1, 2, 3], [3, 1]) == [[1], [2], [3]]
    assert nest([1, 2], [1, 1, 2, 1]) == [[[[1], [2]]]]
    assert len(nest(list(range(10_000)), [10_000, 1, 1, 1])) == 10_000
    assert nest([], [0, 3]) == []
