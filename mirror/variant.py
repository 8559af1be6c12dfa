"""What a value means to a reader: its plain Python value, its text, and the names of its parts.

The front door to values: `body_size`, `decode` and `encode` from `mirror.wire`, status names from
`mirror.status`, and here the definitions of structures and `readable`, the text of any value.

The rule: `readable` never raises and never works longer than a value's bytes warrant, since one odd value
from one device must not stop a segment or the journal; what it cannot read, or only with too much work, it
shows as base64, and where even that would be long, as a size.

What it does not do: keep definitions. They are facts of a source and come as an argument.

Source: OPC UA Part 6, 5.2 and 5.4.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from mirror.batch import ARRAY, FIXED_WIDTH, Kind
from mirror.errors import Corrupt
from mirror.status import status_name
from mirror.tags import legible
from mirror.wire import NESTING_MAX, Parts, Reader, Wire, body_size, check_whole, decode, encode, nest

__all__ = [
    "Structure", "StructureField", "Texts", "body_size", "check_whole", "decode", "encode", "iso", "numbers",
    "readable", "status_name",
]  # fmt: skip


#: A longer body is not read but told by its size: 16 times as much where its text is made at once (an array of
#: numbers, a ByteString, XML), any length for a String, which is its own text.
TOLD_BODY_BYTES_MAX = 256 * 1024
#: Characters in a segment, after which all are told by their size: one byte of a hostile value may read as thirty.
TOLD_MAX = 256 * 1024**2


class StructureField(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field of a Structure, or one member of an enumeration.

    Attributes:
        name: Name of the field or member.
        type: Id of a built-in type, or the definition of a nested structure or enumeration.
        value_rank: -1 scalar, 1 one dimension, n > 1 that many dimensions.
        optional: Present only where its bit of the encoding mask is set (kind `with-optional-fields`).
        value: Number of an enumeration's member.
    """

    name: str
    type: int | Structure = 0
    value_rank: int = -1
    optional: bool = False
    value: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "name", legible(self.name))


class Structure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Definition of a structured data type or an enumeration, as the server described it.

    Where structures are given by name, the name is the text of the binary encoding's NodeId as it stands
    in an ExtensionObject of that source, such as `ns=2;i=5001`.
    """

    name: str
    kind: Literal["structure", "with-optional-fields", "union", "enum"] = "structure"
    fields: tuple[StructureField, ...] = ()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "name", legible(self.name))


#: Arrays whose text is that of a Python list. Float is not among them: its digits are those of 32 bits.
_NUMBERS = {
    kind | ARRAY: np.dtype(code)
    for kind, code in {
        Kind.SBYTE: "i1", Kind.BYTE: "u1", Kind.INT16: "<i2", Kind.UINT16: "<u2", Kind.INT32: "<i4",
        Kind.UINT32: "<u4", Kind.INT64: "<i8", Kind.UINT64: "<u8", Kind.DOUBLE: "<f8",
    }.items()
}  # fmt: skip
_SWIFT = {*_NUMBERS, Kind.BYTESTRING, Kind.XMLELEMENT}

#: Fields that are passed over, and letters of a name, for the work of one part.
_AT_ONCE = 32

_EPOCH = datetime(1601, 1, 1)


def readable(kind: int, bits_or_body: int | Wire, structures: Mapping[str, Structure] = {}) -> str:
    """Return a value as text for people: a String as itself, everything else as JSON.

    JSON numbers carry the shortest digits that give the value back (a Float those of a Float); NaN and
    the infinities are the strings "NaN", "Infinity" and "-Infinity". A DateTime is ISO 8601 with seven
    digits, or its ticks outside the years 1 to 9999; a StatusCode its name; a ByteString base64; an
    ExtensionObject an object by its definition, else {"type", "body"} with the body in base64. A null
    String is the empty text, every other null is `null`. Bytes that do not decode, or that have more parts or
    lists than their number warrants (`mirror.wire`), appear as {"kind", "body"}; a value longer than
    TOLD_BODY_BYTES_MAX (see there) as {"kind", "size"}. This function never raises.

    Args:
        kind: The encoding byte.
        bits_or_body: A row's `bits`, or its bytes in the heap (`mirror.batch`).
        structures: Definitions by the ExtensionObject's type, such as `ns=2;i=5001`.
    """
    if isinstance(bits_or_body, int):
        bits_or_body = bits_or_body.to_bytes(8, "little")[: int(FIXED_WIDTH[kind])]
    if len(bits_or_body) > TOLD_BODY_BYTES_MAX * (16 if kind in _SWIFT else 1) and kind != Kind.STRING:
        return _unread(kind, bits_or_body)
    if (text := numbers(kind, bits_or_body)) is not None:
        return text
    try:
        check_whole(kind, bits_or_body)
        reader = Reader(bytes(bits_or_body))
        value = reader.body(kind)
        if kind == Kind.STRING:
            return _text(value or "")
        return _json(_plain(kind, value, _Means(structures, reader.parts), 0))
    except (Corrupt, RecursionError):
        return _unread(kind, bits_or_body)


def _unread(kind: int, body: Wire) -> str:
    """Return what stands for a value that is not read: its bytes, or how many they are."""
    if len(body) > TOLD_BODY_BYTES_MAX:
        return _json({"kind": kind, "size": len(body)})
    return _json({"kind": kind, "body": base64.b64encode(body).decode()})


def numbers(kind: int, body: Wire) -> str | None:
    """Return what `readable` returns for an array of finite numbers, much sooner; None for other values."""
    dtype = _NUMBERS.get(kind)
    if dtype is None or not 5 <= len(body) <= 16 * TOLD_BODY_BYTES_MAX:
        return None
    if int.from_bytes(body[:4], "little") * dtype.itemsize != len(body) - 4:
        return None
    items = np.frombuffer(body, dtype, offset=4)
    return str(items.tolist()).replace(" ", "") if np.isfinite(items).all() else None


class Texts:
    """Readable text of heap values, each distinct body worked out once per segment.

    Args:
        structures: Definitions by ApplicationUri, then by the ExtensionObject's type.
    """

    def __init__(self, structures: Mapping[str, Mapping[str, Structure]]) -> None:
        self.structures = structures
        self.known: dict[tuple[int, bytes, str], str] = {}
        self.left = TOLD_MAX

    def of(self, kind: int, body: bytes, source: str) -> str:
        """Return `readable` of a body of a source, or its size alone where nothing is left of the segment's share."""
        if self.left <= 0:
            return _json({"kind": kind, "size": len(body)})
        text = numbers(kind, body) or self.known.get((kind, body, source))
        if text is None:
            text = readable(kind, body, self.structures.get(source, {})).encode("utf-8", "replace").decode()
            self.known[kind, body, source] = text
        self.left -= len(text)
        return text


class _Means(NamedTuple):
    """What a value is read with: definitions by encoding, and how many parts it may still have."""

    structures: Mapping[str, Structure]
    parts: Parts


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _text(value: str) -> str:
    """Return text that UTF-8 can carry: bytes that were not UTF-8 become replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _plain(kind: int, value: Any, means: _Means, depth: int) -> Any:
    """Return a decoded value in JSON's types."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_plain(kind & 0x3F, item, means, depth) for item in value]
    builtin = kind & 0x3F
    if builtin in (Kind.FLOAT, Kind.DOUBLE):
        return _number(builtin, value)
    if builtin == Kind.DATETIME:
        return iso(value)
    if builtin == Kind.STATUSCODE:
        return status_name(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, dict):
        return value
    if builtin == Kind.VARIANT:
        return _plain(value["kind"], value["value"], means, depth)
    if builtin == Kind.EXTENSIONOBJECT:
        return _extension_plain(value, means, depth)
    return {name: _field_plain(name, item, means, depth) for name, item in value.items()}


def _field_plain(name: str, item: Any, means: _Means, depth: int) -> Any:
    """Return one part of a DataValue, DiagnosticInfo, QualifiedName or LocalizedText in JSON's types."""
    if name == "value":
        return _plain(Kind.VARIANT, item, means, depth)
    if name in ("source_ticks", "server_ticks"):
        return iso(item)
    if name in ("status", "inner_status"):
        return status_name(item)
    return _plain(Kind.DIAGNOSTICINFO, item, means, depth)


def _number(builtin: int, value: float) -> float | str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return float(str(np.float32(value))) if builtin == Kind.FLOAT else value


def iso(ticks: int) -> int | str:
    """Return ticks as ISO 8601 in UTC with 100 ns digits, or the ticks where a calendar has no such day."""
    try:
        whole = _EPOCH + timedelta(seconds=ticks // 10_000_000)
    except OverflowError:
        return ticks
    return f"{whole.isoformat()}.{ticks % 10_000_000:07d}Z"


def _extension_plain(value: Mapping[str, Any], means: _Means, depth: int) -> Any:
    definition, body = means.structures.get(value["type"]), value["body"]
    if definition is not None and body is not None and "xml" not in value and depth < NESTING_MAX:
        reader = Reader(body, means.parts)
        try:
            plain = _structure(reader, definition, means, depth + 1)
            if reader.pos == len(body):
                return plain
        except Corrupt:
            if means.parts.left < 0:
                raise  # it is the whole value that is too much
    return {"type": value["type"], "body": None if body is None else base64.b64encode(body).decode()}


def _structure(reader: Reader, definition: Structure, means: _Means, depth: int) -> Any:
    """Read one structure, union or enumeration by its definition (Part 6, 5.2.4, 5.2.6 to 5.2.8)."""
    if depth > NESTING_MAX:
        raise Corrupt(f"the structure {definition.name} is nested deeper than {NESTING_MAX} levels")
    means.parts.take(1 + len(definition.fields) // _AT_ONCE)
    if definition.kind == "enum":
        number = reader.number(Kind.INT32)
        name = next((f.name for f in definition.fields if f.value == number), "")
        means.parts.take(len(name) // _AT_ONCE)
        return f"{name}_{number}" if name else number
    if definition.kind == "union":
        switch = reader.number(Kind.UINT32)
        if switch == 0:
            return None
        if switch > len(definition.fields):
            raise Corrupt(f"the union {definition.name} has {len(definition.fields)} fields; its switch is {switch}")
        field = definition.fields[switch - 1]
        return {field.name: _field(reader, field, means, depth)}
    mask = reader.number(Kind.UINT32) if definition.kind == "with-optional-fields" else 0
    plain, bit = {}, 1
    for field in definition.fields:
        if field.optional and definition.kind == "with-optional-fields":
            present, bit = mask & bit, bit << 1
            if not present:
                continue
        plain[field.name] = _field(reader, field, means, depth)
    return plain


def _field(reader: Reader, field: StructureField, means: _Means, depth: int) -> Any:
    means.parts.take(1 + len(field.name) // _AT_ONCE)
    if field.value_rank < 1:
        return _element(reader, field.type, means, depth)
    if field.value_rank == 1:
        count = reader.count(Kind.BYTESTRING)
        return None if count < 0 else _elements(reader, field.type, count, means, depth)
    dimensions = reader.dimensions()
    count = math.prod(max(size, 0) for size in dimensions)
    return nest(_elements(reader, field.type, count, means, depth), dimensions)


def _elements(reader: Reader, kind: int | Structure, count: int, means: _Means, depth: int) -> list[Any]:
    means.parts.take(count)
    if count > len(reader.data) - reader.pos:
        raise Corrupt(f"{count} elements are claimed, and {len(reader.data) - reader.pos} bytes are left")
    return [_element(reader, kind, means, depth) for _ in range(count)]


def _element(reader: Reader, kind: int | Structure, means: _Means, depth: int) -> Any:
    if isinstance(kind, Structure):
        return _structure(reader, kind, means, depth + 1)
    size = body_size(reader.data, reader.pos, kind)  # checks masks and nesting before anything is built
    value = Reader(reader.raw(size), means.parts).body(kind)
    return _plain(kind, value, means, depth)
