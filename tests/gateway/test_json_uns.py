"""What a subscriber reads is what the device said, or says that it could not be said in JSON."""

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.json_uns import BAD_ENCODING, BAD_TOO_LARGE, Message, encode, history, shortest, tag_messages
from gateway.formats.names import Names, Options, Place
from mirror.batch import AHEAD, ARRAY, FIXED_WIDTH, IN_HEAP, NO_VALUE, SERVER_NULL, SOURCE_NULL, Batch, Heap, Kind
from mirror.tags import Tag
from mirror.variant import Structure, StructureField
from mirror.variant import encode as body

T0 = 134_082_720_000_000_000  # a ticks value on a whole millisecond
MS0 = T0 // 10_000 - 11_644_473_600_000
BAD = 0x80310000
UNCERTAIN = 0x408F0000


def names(*tags: str, devices: tuple[str, ...] = ("press7",), **options: Any) -> Names:
    table = [Tag("urn:s", "urn:n", f"s={d}.{t}", device=d, name=t) for d in devices for t in tags]
    places = {d: Place("stamping", "line1") for d in devices}
    return Names(enumerate(table), Options(enterprise="acme", site="plantA", **options), places, STRUCTURES)


STRUCTURES = {
    "urn:s": {
        "ns=2;i=5001": Structure(
            "Recipe", fields=(StructureField("speed", Kind.DOUBLE), StructureField("steps", Kind.INT32, 1))
        )
    }
}


def batch(*rows: tuple[int, int, Any], ticks: int = T0, status: int = 0) -> Batch:
    """Build a batch from (handle, kind, value)."""
    b = Batch.zeros(len(rows))
    heap: list[bytes] = []
    bits = b.bits
    for i, (handle, kind, value) in enumerate(rows):
        b.handle[i], b.kind[i] = handle, kind
        if kind == Kind.NULL:
            continue
        raw = body(kind, value)
        if FIXED_WIDTH[kind]:
            signed = kind in (Kind.SBYTE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.DATETIME)
            bits[i] = int.from_bytes(raw, "little", signed=signed) % 2**64
        else:
            bits[i] = len(heap)
            heap.append(raw)
    b.source_ticks[:] = b.server_ticks[:] = ticks
    b.status[:] = status
    return Batch(
        b.handle, b.source_ticks, b.server_ticks, b.source_ps, b.server_ps, b.status, b.flags, b.kind, bits,
        Heap.of(heap),
    )  # fmt: skip


def published(b: Batch, n: Names, **options: Any) -> list[tuple[Message, Any]]:
    found = encode(b, n, epoch=41, seqs=options.pop("seqs", {}), node="edge01", **options)
    return [(m, json.loads(m.payload, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))) for m in found]


def one(b: Batch, n: Names) -> Any:
    [(_, value)] = published(b, n)
    return value


def shown(kind: int, value: Any) -> Any:
    return one(batch((0, kind, value)), names("T"))["values"]["T"]


def test_a_device_object_has_the_documented_form() -> None:
    b = batch((0, Kind.DOUBLE, 21.57), (1, Kind.BOOLEAN, True), (2, Kind.INT32, 5))
    b.source_ticks[0] -= 50 * 10_000
    b.status[2] = BAD
    [(message, value)] = published(b, names("Temperature", "Running", "Count"), seqs={
        "uns/v1/acme/plantA/stamping/line1/press7": 8811
    })  # fmt: skip
    assert message.topic == "uns/v1/acme/plantA/stamping/line1/press7"
    assert (message.qos, message.retain) == (1, False)
    assert value == {
        "timestamp": MS0, "epoch": 41, "seq": 8812, "node": "edge01", "device": "press7",
        "values": {"Temperature": 21.57, "Running": True},
        "timestamps": {"Temperature": MS0 - 50},
        "errors": {"Count": 2150694912},
    }  # fmt: skip


def test_a_tag_message_is_retained_and_names_its_quality() -> None:
    n = names("Temperature", tag_topics="all", device_objects=False)
    [(message, value)] = published(batch((0, Kind.DOUBLE, 21.57)), n)
    assert message.topic == "uns/v1/acme/plantA/stamping/line1/press7/Temperature"
    assert (message.qos, message.retain) == (1, True)
    assert value == {"value": 21.57, "quality": "Good", "timestamp": MS0, "epoch": 41, "seq": 1}
    [(_, value)] = published(batch((0, Kind.DOUBLE, 21.57), status=BAD), n)
    assert value == {
        "value": None, "quality": "BadNoCommunication", "code": 2150694912, "timestamp": MS0, "epoch": 41, "seq": 1
    }  # fmt: skip


def test_an_uncertain_value_is_shown_with_its_code() -> None:
    value = one(batch((0, Kind.DOUBLE, 1.5), status=UNCERTAIN), names("T"))
    assert value["values"] == {"T": 1.5}
    assert value["quality"] == {"T": UNCERTAIN}
    assert "errors" not in value


def test_good_with_flags_is_good() -> None:
    value = one(batch((0, Kind.DOUBLE, 1.5), status=0x0480), names("T"))
    assert value["values"] == {"T": 1.5}
    assert "quality" not in value
    assert "errors" not in value


@pytest.mark.parametrize("kind", [Kind.FLOAT, Kind.DOUBLE])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_is_null_and_an_error(kind: int, value: float) -> None:
    found = one(batch((0, kind, value), (1, Kind.DOUBLE, 1.0)), names("T", "U"))
    assert found["values"] == {"T": None, "U": 1.0}
    assert found["errors"] == {"T": BAD_ENCODING}


def test_a_bad_nan_keeps_the_devices_code() -> None:
    found = one(batch((0, Kind.DOUBLE, math.nan), status=BAD), names("T"))
    assert found["values"] == {}
    assert found["errors"] == {"T": BAD}


@pytest.mark.parametrize(
    ("kind", "value", "want"),
    [
        (Kind.INT64, 2**53, 2**53),
        (Kind.INT64, 2**53 + 1, "9007199254740993"),
        (Kind.INT64, -(2**53), -(2**53)),
        (Kind.INT64, -(2**63), "-9223372036854775808"),
        (Kind.UINT64, 2**64 - 1, "18446744073709551615"),
        (Kind.UINT64, 7, 7),
        (Kind.INT64 | ARRAY, [1, 2**60], [1, "1152921504606846976"]),
        (Kind.SBYTE, -5, -5),
        (Kind.INT16, -32768, -32768),
        (Kind.UINT32, 2**32 - 1, 2**32 - 1),
        (Kind.BOOLEAN, False, False),
        (Kind.DOUBLE, -0.0, -0.0),
        (Kind.STRING, "grün", "grün"),
        (Kind.STRING, "", ""),
        (Kind.STRING, None, None),
        (Kind.NULL, None, None),
        (Kind.DATETIME, T0, "2025-11-22T08:00:00.0000000Z"),
        (Kind.DATETIME, 2**63 - 1, "9223372036854775807"),
        (Kind.STATUSCODE, BAD, "BadNoCommunication"),
        (Kind.LOCALIZEDTEXT, {"locale": "de", "text": "läuft"}, "läuft"),
        (Kind.BYTESTRING, b"\x01\x02", "AQI="),
        (Kind.GUID, "6f1c2a3e-0000-4000-8000-000000000001", "6f1c2a3e-0000-4000-8000-000000000001"),
        (Kind.DOUBLE | ARRAY, [1.5, 2.0], [1.5, 2.0]),
        (Kind.DOUBLE | ARRAY, [math.nan], ["NaN"]),
        (Kind.STRING | ARRAY, ["a", None, 'q"'], ["a", None, 'q"']),
        (Kind.INT32 | ARRAY | 0x40, [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        (
            Kind.EXTENSIONOBJECT,
            {"type": "ns=2;i=5001", "body": struct.pack("<diii", 2.5, 2, 7, 8)},
            {"speed": 2.5, "steps": [7, 8]},
        ),
        (Kind.EXTENSIONOBJECT, {"type": "ns=2;i=1", "body": b"\x01"}, {"type": "ns=2;i=1", "body": "AQ=="}),
    ],
)
def test_each_type_has_a_json_form(kind: int, value: Any, want: Any) -> None:
    assert shown(kind, value) == want


def test_text_that_is_not_utf8_still_gives_a_legal_object() -> None:
    assert shown(Kind.STRING, "ok\udcff") == "ok\ufffd"
    assert shown(Kind.LOCALIZEDTEXT, {"locale": None, "text": "ok\udcff"}) in ("ok?", "ok\ufffd")


def test_mixed_types_of_one_device_stand_in_one_object() -> None:
    rows = [(0, Kind.DOUBLE, 1.5), (1, Kind.STRING, "x"), (2, Kind.UINT64, 2**60), (3, Kind.FLOAT, 0.1)]
    assert one(batch(*rows), names("A", "B", "C", "D"))["values"] == {"A": 1.5, "B": "x", "C": str(2**60), "D": 0.1}


def test_only_the_last_value_of_a_tag_is_published() -> None:
    b = batch((0, Kind.INT32, 1), (1, Kind.INT32, 5), (0, Kind.INT32, 2), (0, Kind.INT32, 3))
    assert one(b, names("A", "B"))["values"] == {"A": 3, "B": 5}


def test_devices_count_their_objects_apart() -> None:
    n = names("T", devices=("a", "b"))
    seqs: dict[str, int] = {}
    first = published(batch((1, Kind.INT32, 1), (0, Kind.INT32, 2)), n, seqs=seqs)
    second = published(batch((1, Kind.INT32, 3)), n, seqs=seqs)
    assert [(v["device"], v["seq"], v["values"]["T"]) for _, v in first] == [("a", 1, 2), ("b", 1, 1)]
    assert [(v["device"], v["seq"]) for _, v in second] == [("b", 2)]


def test_flat_objects_have_values_at_the_top() -> None:
    value = one(batch((0, Kind.DOUBLE, 1.5), (1, Kind.INT32, 7)), names("Speed", "timestamp", shape="flat"))
    assert value == {
        "timestamp": MS0, "epoch": 41, "seq": 1, "node": "edge01", "device": "press7", "Speed": 1.5, "timestamp_": 7
    }  # fmt: skip


def test_raw_tag_topics_carry_the_bare_value() -> None:
    n = names("A", "B", "C", "D", "E", tag_topics="all", payload="raw", device_objects=False)
    b = batch(
        (0, Kind.DOUBLE, 21.5), (1, Kind.STRING, "on"), (2, Kind.BOOLEAN, True), (3, Kind.INT32, 4),
        (4, Kind.UINT64, 2**60),
    )  # fmt: skip
    b.status[3] = BAD
    found = encode(b, n, epoch=1, seqs={}, node="e")
    assert [m.payload for m in found] == [b"21.5", b"on", b"true", b"null", str(2**60).encode()]


def test_a_missing_source_time_is_replaced_by_the_servers() -> None:
    b = batch((0, Kind.INT32, 1))
    b.source_ticks[0], b.flags[0], b.server_ticks[0] = 0, SOURCE_NULL, T0 + 70_000
    assert one(b, names("T"))["timestamp"] == MS0 + 7


def test_a_time_too_far_ahead_does_not_stamp_the_object() -> None:
    b = batch((0, Kind.INT32, 1), (1, Kind.INT32, 2))
    b.source_ticks[0], b.flags[0] = T0 + 10**15, AHEAD
    value = one(b, names("T", "U"))
    assert value["timestamp"] == MS0
    assert "timestamps" not in value


def test_a_sample_without_any_time_says_so() -> None:
    b = batch((0, Kind.INT32, 1), (1, Kind.INT32, 2))
    b.flags[0] = SOURCE_NULL | SERVER_NULL
    value = one(b, names("T", "U"))
    assert (value["timestamp"], value["timestamps"]) == (MS0, {"T": None})
    b.flags[:] = SOURCE_NULL | SERVER_NULL
    assert one(b, names("T", "U"))["timestamp"] is None


def test_extreme_times_do_not_wrap() -> None:
    for ticks in (-(2**63), 2**63 - 1):
        value = one(batch((0, Kind.INT32, 1), ticks=ticks), names("T"))
        assert value["timestamp"] == ticks // 10_000 - 11_644_473_600_000


def test_a_status_without_a_value_is_an_error_entry() -> None:
    b = batch((0, Kind.NULL, None), status=BAD)
    b.flags[0] = NO_VALUE
    value = one(b, names("T"))
    assert (value["values"], value["errors"]) == ({}, {"T": BAD})


def test_tags_without_a_name_are_left_out() -> None:
    b = batch((0, Kind.INT32, 1), (9, Kind.INT32, 2), (2**32 - 1, Kind.INT32, 3))
    assert one(b, names("T"))["values"] == {"T": 1}
    assert published(batch((5, Kind.INT32, 1)), names("T")) == []
    assert published(Batch.zeros(0), names("T")) == []


def test_an_object_that_would_be_too_large_is_split() -> None:
    n = names(*(f"T{i}" for i in range(100)))
    b = batch(*((i, Kind.STRING, f"{i:01000d}") for i in range(100)))
    found = published(b, n, payload_bytes_max=10_000)
    assert all(len(m.payload) <= 10_000 for m, _ in found)
    assert [v["seq"] for _, v in found] == list(range(1, len(found) + 1))
    values = {k: v for _, found_one in found for k, v in found_one["values"].items()}
    assert values == {f"T{i}": f"{i:01000d}" for i in range(100)}


def test_a_value_that_is_too_large_alone_becomes_an_error() -> None:
    n = names("A", "B", tag_topics="all")
    found = published(batch((0, Kind.STRING, "x" * 5000), (1, Kind.INT32, 7)), n, payload_bytes_max=1000)
    assert [v.get("errors") for m, v in found if not m.retain] == [{"A": BAD_TOO_LARGE}, None]
    assert [v["value"] for m, v in found if m.retain] == [None, 7]
    assert [v.get("code") for m, v in found if m.retain] == [BAD_TOO_LARGE, None]


def test_published_again_a_tag_keeps_its_devices_number() -> None:
    n = names("T", tag_topics="all")
    seqs = {n.devices[0].topic: 12}
    [message] = tag_messages(batch((0, Kind.INT32, 1)), n, epoch=3, seqs=seqs)
    assert json.loads(message.payload)["seq"] == 12
    assert seqs == {n.devices[0].topic: 12}


def test_history_publishes_every_row_and_retains_nothing() -> None:
    n = names("A", "B", tag_topics="all")
    b = batch(*((i % 2, Kind.INT32, i) for i in range(8)))
    b.source_ticks[:] = T0 + np.array([0, 0, 1, 1, 1, 1, 20_000, 20_000]) * 10_000 // 10_000 * 10_000
    seqs: dict[str, int] = {}
    found = list(history(b, n, epoch=2, seqs=seqs, node="edge01"))
    assert {m.topic for m in found} == {"uns/v1/acme/plantA/stamping/line1/press7/_history"}
    assert not any(m.retain for m in found)
    values = [json.loads(m.payload) for m in found]
    assert all(v["historical"] is True for v in values)
    assert [v["seq"] for v in values] == [1, 2, 3, 4]
    assert [(v["timestamp"] - MS0, v["values"]) for v in values] == [
        (0, {"A": 0, "B": 1}), (1, {"A": 2, "B": 3}), (1, {"A": 4, "B": 5}), (20_000, {"A": 6, "B": 7}),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_history_loses_no_row(rows: list[tuple[int, int]]) -> None:
    n = names("A", "B", devices=("x", "y"))
    b = batch(*((h, Kind.INT32, i) for i, (h, _) in enumerate(rows)))
    b.source_ticks[:] = [T0 + ms * 10_000 for _, ms in rows]
    seen = []
    for message in history(b, n, epoch=1, seqs={}, node="e"):
        value = json.loads(message.payload)
        for key, number in value["values"].items():
            handle = 2 * "xy".index(value["device"]) + "AB".index(key)
            seen.append((number, handle, value["timestamp"] - MS0))
    assert sorted(seen) == [(i, h, ms) for i, (h, ms) in enumerate(rows)]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_shortest_doubles_round_to_the_single_they_stand_for(values: list[float]) -> None:
    singles = np.array(values, np.float32)
    assert (shortest(singles).astype(np.float32).view(np.uint32) == singles.view(np.uint32)).all()


@given(st.integers(-999_999, 999_999), st.integers(-5, 5))
def test_a_single_of_six_digits_prints_them(digits: int, exponent: int) -> None:
    text = f"{digits}e{exponent}"
    assert shortest(np.array([text], np.float32))[0] == float(text)


def test_a_batch_of_doubles_and_its_objects_agree_value_by_value() -> None:
    n = names(*(f"T{i}" for i in range(100)), devices=tuple(f"d{i}" for i in range(20)))
    rng = np.random.default_rng(7)
    order, values = rng.permutation(2000), rng.random(2000)
    b = Batch.zeros(2000)
    b.handle[:], b.kind[:], b.bits[:] = order, Kind.DOUBLE, values.view(np.uint64)
    b.source_ticks[:] = T0
    got = {}
    for _, value in published(b, n):
        for key, number in value["values"].items():
            got[int(value["device"][1:]) * 100 + int(key[1:])] = number
    assert got == dict(zip(order.tolist(), values.tolist(), strict=True))


@st.composite
def anything(draw: st.DrawFn) -> Batch:
    """Draw rows of any kind, defined or not, with any bits, bytes, times and flags."""
    kinds = draw(st.lists(st.one_of(st.sampled_from(Kind), st.integers(0, 255)), min_size=1, max_size=12))
    b = Batch.zeros(len(kinds))
    heap: list[bytes] = []
    b.handle[:] = range(len(kinds))
    b.kind[:] = kinds
    for i, kind in enumerate(kinds):
        if IN_HEAP[kind]:
            b.bits[i] = len(heap)
            heap.append(draw(st.binary(max_size=40)))
        elif kind != Kind.NULL:
            b.bits[i] = draw(st.integers(0, 2**64 - 1)) & (2 ** (8 * int(FIXED_WIDTH[kind])) - 1)
        b.source_ticks[i] = draw(st.integers(-(2**63), 2**63 - 1))
        b.server_ticks[i] = draw(st.integers(-(2**63), 2**63 - 1))
        b.status[i] = draw(st.integers(0, 2**32 - 1))
        b.flags[i] = draw(st.integers(0, 255))
    return replace(b, heap=Heap.of(heap))


@given(anything(), st.sampled_from(["object", "raw"]), st.sampled_from(["nested", "flat"]))
def test_whatever_a_device_sends_the_objects_are_json(b: Batch, payload: str, shape: str) -> None:
    n = names(*(f"T{i}" for i in range(12)), tag_topics="all", payload=payload, shape=shape)
    seen = set()
    for message in encode(b, n, epoch=1, seqs={}, node="e", payload_bytes_max=200):
        message.payload.decode()
        if message.retain and payload == "raw":
            continue
        value = json.loads(message.payload, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
        if not message.retain:
            values = value.get("values", {}) if shape == "nested" else value
            seen |= {k for k in values if k.startswith("T")} | set(value.get("errors", {}))
    assert seen == {f"T{i}" for i in range(len(b))}
    list(history(b, n, epoch=1, seqs={}, node="e"))
