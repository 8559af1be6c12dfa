"""The body of a Variant on the wire: its size, its plain Python value, and the way back.

A sample whose value is not a fixed-width scalar is kept as the bytes that the server sent. `body_size`
steps over such a body without building anything, `decode` gives plain Python values.

The rules that make it safe: every length on the wire is checked against the bytes that are left before it
is believed, nesting ends at 100 levels, and a value has no more parts than its bytes can hold (`Parts`); so
hostile bytes cost no more than their own size.

What it does not do: map namespace indices to URIs, or keep the several encodings of one value apart
(a NodeId has three forms on the wire and one text). The bytes are the truth; a value is a reading of them.

Source: OPC UA Part 6, 5.2.
"""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mirror.batch import ARRAY, DIMENSIONS, FIXED_WIDTH, Kind
from mirror.errors import Corrupt

NESTING_MAX = 100  # what a decoder has to bear at least (Part 6, 5.1.8)
PARTS_MAX = 65_536  # of a value that is decoded; stepping over one has no such limit

Wire = bytes | memoryview


# --- size ---------------------------------------------------------------------------------------------

_I32 = struct.Struct("<i")
_WIDTH: list[int] = FIXED_WIDTH.tolist()


def body_size(data: Wire, pos: int, kind: int) -> int:
    """Return how many bytes the body of a Variant takes.

    Args:
        data: A message or a bare body; what follows the body is not looked at.
        pos: Where the body starts, just after its encoding byte.
        kind: The encoding byte.

    Raises:
        Corrupt: The body does not fit into `data`, a type or mask is not defined, or nesting exceeds NESTING_MAX.
    """
    try:
        end = _skip_body(data, pos, kind, 0)
    except (struct.error, IndexError):
        end = len(data) + 1
    if end > len(data):
        raise Corrupt(f"a value of kind 0x{kind:02x} at byte {pos} is longer than the {len(data)} bytes it is in")
    return end - pos


def _skip_body(data: Wire, pos: int, kind: int, depth: int) -> int:
    builtin = kind & 0x3F
    if builtin >= len(_SKIP) or kind & (ARRAY | DIMENSIONS) == DIMENSIONS:
        raise Corrupt(f"kind 0x{kind:02x} is not defined; a Variant holds the built-in types 0 to 31")
    width = _WIDTH[builtin]
    if not kind & ARRAY:
        return pos + width if width else _SKIP[builtin](data, pos, depth)
    count, pos = _count(data, pos, builtin)
    if width:
        pos += count * width
    else:
        skip = _SKIP[builtin]
        for _ in range(count):
            pos = skip(data, pos, depth)
    if kind & DIMENSIONS:
        count, pos = _count(data, pos, Kind.INT32)
        pos += 4 * count
    return pos


def _count(data: Wire, pos: int, builtin: int) -> tuple[int, int]:
    """Read an array's length; a negative one is a null array, which holds no elements either."""
    count = _I32.unpack_from(data, pos)[0]
    pos += 4
    if count > 0 and (builtin == Kind.NULL or count * max(_WIDTH[builtin], 1) > len(data) - pos):
        raise Corrupt(f"an array claims {count} elements, and {len(data) - pos} bytes are left")
    return max(count, 0), pos


def _skip_null(data: Wire, pos: int, depth: int) -> int:
    return pos


def _skip_string(data: Wire, pos: int, depth: int = 0) -> int:
    size: int = _I32.unpack_from(data, pos)[0]
    return pos + 4 + size if size > 0 else pos + 4


def _skip_guid(data: Wire, pos: int, depth: int) -> int:
    return pos + 16


def _skip_nodeid(data: Wire, pos: int, depth: int = 0) -> int:
    return _skip_node(data, pos, data[pos])


def _skip_node(data: Wire, pos: int, form: int) -> int:
    if form in (3, 5):
        return _skip_string(data, pos + 3)
    if form in (0, 1, 2, 4):
        return pos + (2, 4, 7, 0, 19)[form]
    raise Corrupt(f"a NodeId has the form 0x{form:02x}; forms are 0 to 5")


def _skip_expanded(data: Wire, pos: int, depth: int) -> int:
    form = data[pos]
    pos = _skip_node(data, pos, form & 0x3F)
    if form & 0x80:
        pos = _skip_string(data, pos)
    return pos + 4 if form & 0x40 else pos


def _skip_qualified(data: Wire, pos: int, depth: int) -> int:
    return _skip_string(data, pos + 2)


def _skip_localized(data: Wire, pos: int, depth: int) -> int:
    mask = _mask(data, pos, 0x03, "LocalizedText")
    pos += 1
    for bit in (1, 2):
        if mask & bit:
            pos = _skip_string(data, pos)
    return pos


def _skip_extension(data: Wire, pos: int, depth: int) -> int:
    pos = _skip_nodeid(data, pos)
    encoding = data[pos]
    if encoding > 2:
        raise Corrupt(f"an ExtensionObject has the encoding {encoding}; encodings are 0, 1 and 2")
    return _skip_string(data, pos + 1) if encoding else pos + 1


def _skip_datavalue(data: Wire, pos: int, depth: int) -> int:
    mask = _mask(data, pos, 0x3F, "DataValue")
    pos += 1
    if mask & 1:
        pos = _skip_variant(data, pos, depth)
    return pos + sum(size for bit, size in ((2, 4), (4, 8), (16, 2), (8, 8), (32, 2)) if mask & bit)


def _skip_variant(data: Wire, pos: int, depth: int) -> int:
    return _skip_body(data, pos + 1, data[pos], _deeper(depth))


def _skip_diagnostic(data: Wire, pos: int, depth: int) -> int:
    mask = _mask(data, pos, 0x7F, "DiagnosticInfo")
    pos += 1 + 4 * (mask & 0x0F).bit_count()
    if mask & 0x10:
        pos = _skip_string(data, pos)
    if mask & 0x20:
        pos += 4
    return _skip_diagnostic(data, pos, _deeper(depth)) if mask & 0x40 else pos


def _mask(data: Wire, pos: int, allowed: int, what: str) -> int:
    mask = data[pos]
    if mask & ~allowed:
        raise Corrupt(f"a {what} has the mask 0x{mask:02x}; defined bits are 0x{allowed:02x}")
    return mask


def _deeper(depth: int) -> int:
    if depth >= NESTING_MAX:
        raise Corrupt(f"a value is nested deeper than {NESTING_MAX} levels")
    return depth + 1


#: By built-in id; 26 to 31 are reserved and read as ByteString (Part 6, 5.2.2.16). Fixed widths never get here.
_SKIP: tuple[Callable[[Wire, int, int], int], ...] = (
    *[_skip_null] * 12, _skip_string, _skip_null, _skip_guid, _skip_string, _skip_string, _skip_nodeid, _skip_expanded,
    _skip_null, _skip_qualified, _skip_localized, _skip_extension, _skip_datavalue, _skip_variant, _skip_diagnostic,
    *[_skip_string] * 6,
)  # fmt: skip


# --- wire to value ------------------------------------------------------------------------------------

_STRUCT = {
    Kind.SBYTE: struct.Struct("<b"), Kind.BYTE: struct.Struct("<B"), Kind.INT16: struct.Struct("<h"),
    Kind.UINT16: struct.Struct("<H"), Kind.INT32: _I32, Kind.UINT32: struct.Struct("<I"),
    Kind.INT64: struct.Struct("<q"), Kind.UINT64: struct.Struct("<Q"), Kind.FLOAT: struct.Struct("<f"),
    Kind.DOUBLE: struct.Struct("<d"), Kind.DATETIME: struct.Struct("<q"), Kind.STATUSCODE: struct.Struct("<I"),
}  # fmt: skip


def decode(kind: int, body: Wire) -> Any:
    """Return the plain Python value of a Variant's body.

    Numbers, DateTime (ticks) and StatusCode become int or float; a signalling NaN may come out quiet.
    String and XmlElement become str (bytes that are not UTF-8 as lone surrogates, so that `encode` gives
    them back) or None, ByteString bytes or None, Guid and the two NodeIds their usual text. Other
    built-in types become dicts, an array a list or None, a matrix nested lists.

    Args:
        kind: The encoding byte.
        body: All bytes after it, and nothing more.

    Raises:
        Corrupt: As for `body_size`; also for bytes left over, dimensions that do not fit the array, and more
            parts than `Parts` allows.
    """
    check_whole(kind, body)
    return Reader(bytes(body)).body(kind)


def check_whole(kind: int, body: Wire) -> None:
    """Raise Corrupt unless the bytes are one value of that kind, and nothing more."""
    size = body_size(body, 0, kind)
    if size != len(body):
        raise Corrupt(f"{len(body) - size} bytes are left after a value of kind 0x{kind:02x}")


class Parts:
    """How many parts a value may still have: elements of arrays, structures, fields.

    Some parts take no bytes at all (a Null, a structure without fields), and any number of them would fit
    into nothing: so a value has PARTS_MAX at most, and not many more than bytes.
    """

    __slots__ = ("left",)

    def __init__(self, size_bytes: int) -> None:
        self.left = min(4 * size_bytes + NESTING_MAX, PARTS_MAX)

    def take(self, parts: int) -> None:
        """Count parts that are about to be read; Corrupt if they are too many."""
        self.left -= parts
        if self.left < 0:
            raise Corrupt(f"a value has more parts than its bytes can hold, or more than {PARTS_MAX}")


class Reader:
    """Reads values one after another; sizes of whole Variants were checked before, those of structures not.

    Args:
        data: What to read.
        parts: Shared by the readers of one value.
    """

    def __init__(self, data: bytes, parts: Parts | None = None) -> None:
        self.data = data
        self.pos = 0
        self.parts = parts or Parts(len(data))

    def raw(self, size: int) -> bytes:
        start, self.pos = self.pos, self.pos + size
        if self.pos > len(self.data):
            raise Corrupt(f"a field of {size} bytes starts at byte {start} of {len(self.data)}")
        return self.data[start : self.pos]

    def number(self, builtin: int) -> Any:
        fmt = _STRUCT[Kind(builtin)]
        return fmt.unpack(self.raw(fmt.size))[0]

    def count(self, builtin: int) -> int:
        """Return an array's length, -1 for the null array, checked against the bytes that are left."""
        size: int = self.number(Kind.INT32)
        _count(self.data, self.pos - 4, builtin)
        return max(size, -1)

    def string(self) -> str | None:
        raw = self.bytestring()
        return None if raw is None else raw.decode("utf-8", "surrogateescape")

    def bytestring(self) -> bytes | None:
        size = self.number(Kind.INT32)
        return None if size < 0 else self.raw(size)

    def body(self, kind: int) -> Any:
        builtin = kind & 0x3F
        if not kind & ARRAY:
            return self.scalar(builtin)
        items = self.array(builtin)
        if not kind & DIMENSIONS:
            return items
        return nest(items or [], self.dimensions())

    def dimensions(self) -> list[int]:
        """Return the sizes of a matrix, NESTING_MAX of them at most."""
        count = self.count(Kind.INT32)
        if count > NESTING_MAX:
            raise Corrupt(f"a matrix has {count} dimensions; {NESTING_MAX} is the most")
        return [self.number(Kind.INT32) for _ in range(count)]

    def array(self, builtin: int) -> list[Any] | None:
        count = self.count(builtin)
        if count < 0:
            return None
        self.parts.take(count)
        if fmt := _STRUCT.get(builtin):  # type: ignore[call-overload]
            return list(struct.unpack(f"<{count}{fmt.format[-1]}", self.raw(count * fmt.size)))
        return [self.scalar(builtin) for _ in range(count)]

    def scalar(self, builtin: int) -> Any:
        if builtin in _STRUCT:
            return self.number(builtin)
        return _READ[builtin](self)

    def boolean(self) -> bool:
        return self.raw(1) != b"\0"

    def guid(self) -> str:
        return str(uuid.UUID(bytes_le=self.raw(16)))

    def nodeid(self) -> str:
        namespace, identifier = self.node(self.raw(1)[0])
        return f"ns={namespace};{identifier}" if namespace else identifier

    def node(self, form: int) -> tuple[int, str]:
        if form == 0:
            return 0, f"i={self.raw(1)[0]}"
        if form == 1:
            return self.raw(1)[0], f"i={self.number(Kind.UINT16)}"
        namespace = self.number(Kind.UINT16)
        if form == 2:
            return namespace, f"i={self.number(Kind.UINT32)}"
        if form == 3:
            return namespace, f"s={self.string() or ''}"
        if form == 4:
            return namespace, f"g={self.guid()}"
        if form == 5:
            return namespace, f"b={base64.b64encode(self.bytestring() or b'').decode()}"
        raise Corrupt(f"a NodeId has the form 0x{form:02x}; forms are 0 to 5")

    def expanded(self) -> str:
        form = self.raw(1)[0]
        namespace, text = self.node(form & 0x3F)
        if form & 0x80:
            uri = (self.string() or "").replace("%", "%25").replace(";", "%3B")
            text = f"nsu={uri};{text}"
        elif namespace:
            text = f"ns={namespace};{text}"
        return f"svr={self.number(Kind.UINT32)};{text}" if form & 0x40 else text

    def qualified(self) -> dict[str, Any]:
        return {"namespace": self.number(Kind.UINT16), "name": self.string()}

    def localized(self) -> dict[str, Any]:
        mask = self.raw(1)[0]
        return {"locale": self.string() if mask & 1 else None, "text": self.string() if mask & 2 else None}

    def extension(self) -> dict[str, Any]:
        name, encoding = self.nodeid(), self.raw(1)[0]
        if encoding > 2:
            raise Corrupt(f"an ExtensionObject has the encoding {encoding}; encodings are 0, 1 and 2")
        value: dict[str, Any] = {"type": name, "body": self.bytestring() if encoding else None}
        return value | {"xml": True} if encoding == 2 else value

    def variant(self) -> dict[str, Any]:
        kind = self.raw(1)[0]
        return {"kind": kind, "value": self.body(kind)}

    def datavalue(self) -> dict[str, Any]:
        mask = self.raw(1)[0]
        value: dict[str, Any] = {"value": self.variant()} if mask & 1 else {}
        for name, bit, kind in _DATAVALUE:
            if mask & bit:
                value[name] = self.number(kind)
        return value

    def diagnostic(self) -> dict[str, Any]:
        mask = self.raw(1)[0]
        value: dict[str, Any] = {name: self.number(Kind.INT32) for name, bit in _DIAGNOSTIC if mask & bit}
        if mask & 0x10:
            value["additional_info"] = self.string()
        if mask & 0x20:
            value["inner_status"] = self.number(Kind.STATUSCODE)
        if mask & 0x40:
            value["inner"] = self.diagnostic()
        return value


_READ: dict[int, Callable[[Reader], Any]] = {
    Kind.NULL: lambda r: None, Kind.BOOLEAN: Reader.boolean, Kind.STRING: Reader.string, Kind.GUID: Reader.guid,
    Kind.XMLELEMENT: Reader.string, Kind.NODEID: Reader.nodeid, Kind.EXPANDEDNODEID: Reader.expanded,
    Kind.QUALIFIEDNAME: Reader.qualified, Kind.LOCALIZEDTEXT: Reader.localized,
    Kind.EXTENSIONOBJECT: Reader.extension, Kind.DATAVALUE: Reader.datavalue, Kind.VARIANT: Reader.variant,
    Kind.DIAGNOSTICINFO: Reader.diagnostic, **dict.fromkeys((Kind.BYTESTRING, *range(26, 32)), Reader.bytestring),
}  # fmt: skip

#: Fields in the order of the wire, with their bit in the mask: the two orders differ.
_DATAVALUE = (
    ("status", 0x02, Kind.STATUSCODE), ("source_ticks", 0x04, Kind.DATETIME), ("source_ps", 0x10, Kind.UINT16),
    ("server_ticks", 0x08, Kind.DATETIME), ("server_ps", 0x20, Kind.UINT16),
)  # fmt: skip
_DIAGNOSTIC = (("symbolic_id", 0x01), ("namespace_uri", 0x02), ("locale", 0x08), ("localized_text", 0x04))

LISTS_MIN, LISTS_FACTOR = 64, 4  # of a nested matrix, beside and over its elements


def nest(items: Sequence[Any], dimensions: Sequence[int]) -> list[Any]:
    """Return the items of a matrix as nested lists, the last dimension innermost.

    Raises:
        Corrupt: The dimensions are none, negative or more than NESTING_MAX, their product is not the number of
            items, or they are mostly of size 1 and ask for far more lists than there are items.
    """
    assert len(dimensions) <= NESTING_MAX, "Reader.dimensions reads no more"
    product, lists = 1, 0
    for size in dimensions:
        lists += product
        product *= max(size, 0)
    if not dimensions or min(dimensions) < 0 or product != len(items):
        raise Corrupt(f"{len(items)} elements do not fill the dimensions {list(dimensions)}")
    if lists > LISTS_MIN + LISTS_FACTOR * len(items):
        raise Corrupt(f"{len(dimensions)} dimensions for {len(items)} elements are more than anybody can use")
    if not product:
        return []
    nested = list(items)
    for size in reversed(dimensions[1:]):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    return nested


# --- value to wire ------------------------------------------------------------------------------------


def encode(kind: int, value: Any) -> bytes:
    """Return a Variant's body for a value such as `decode` returns, in the shortest of the wire's forms.

    For tests, tools and simulators: the mirror itself never encodes a value that came from a device.
    """
    builtin = kind & 0x3F
    if not kind & ARRAY:
        return _scalar(builtin, value)
    if value is None:
        return _I32.pack(-1) + (_I32.pack(-1) if kind & DIMENSIONS else b"")
    dimensions = []
    items = value
    if kind & DIMENSIONS:
        dimensions.append(len(items))
        while items and isinstance(items[0], list):
            dimensions.append(len(items[0]))
            items = [x for row in items for x in row]
    body = _I32.pack(len(items)) + b"".join(_scalar(builtin, x) for x in items)
    return body + struct.pack(f"<{1 + len(dimensions)}i", len(dimensions), *dimensions) if dimensions else body


def _scalar(builtin: int, value: Any) -> bytes:
    if builtin in _STRUCT:
        return _STRUCT[Kind(builtin)].pack(value)
    return _WRITE[builtin](value)


def _bytestring(value: bytes | None) -> bytes:
    return _I32.pack(-1) if value is None else _I32.pack(len(value)) + value


def _string(value: str | None) -> bytes:
    return _bytestring(None if value is None else value.encode("utf-8", "surrogateescape"))


def _guid(value: str) -> bytes:
    return uuid.UUID(value).bytes_le


def _nodeid(value: str, flags: int = 0) -> bytes:
    namespace = 0
    if value.startswith("ns="):
        head, value = value.split(";", 1)
        namespace = int(head[3:])
    form, identifier = value[:2], value[2:]
    if form == "i=":
        number = int(identifier)
        if namespace == 0 and number < 256:
            return struct.pack("<BB", flags, number)
        if namespace < 256 and number < 65536:
            return struct.pack("<BBH", flags | 1, namespace, number)
        return struct.pack("<BHI", flags | 2, namespace, number)
    if form == "s=":
        return struct.pack("<BH", flags | 3, namespace) + _string(identifier)
    if form == "g=":
        return struct.pack("<BH", flags | 4, namespace) + _guid(identifier)
    return struct.pack("<BH", flags | 5, namespace) + _bytestring(base64.b64decode(identifier))


def _expanded(value: str) -> bytes:
    flags, tail = 0, b""
    if value.startswith("svr="):
        head, value = value.split(";", 1)
        flags, tail = 0x40, struct.pack("<I", int(head[4:]))
    if value.startswith("nsu="):
        uri, value = value[4:].split(";", 1)
        flags, tail = flags | 0x80, _string(uri.replace("%3B", ";").replace("%25", "%")) + tail
    return _nodeid(value, flags) + tail


def _localized(value: Mapping[str, Any]) -> bytes:
    parts = [value["locale"], value["text"]]
    mask = sum(1 << i for i, part in enumerate(parts) if part is not None)
    return bytes([mask]) + b"".join(_string(part) for part in parts if part is not None)


def _extension(value: Mapping[str, Any]) -> bytes:
    body = value["body"]
    if body is None and "xml" not in value:
        return _nodeid(value["type"]) + b"\0"
    return _nodeid(value["type"]) + (b"\2" if value.get("xml") else b"\1") + _bytestring(body)


def _variant(value: Mapping[str, Any]) -> bytes:
    return bytes([value["kind"]]) + encode(value["kind"], value["value"])


def _datavalue(value: Mapping[str, Any]) -> bytes:
    mask = sum(bit for name, bit, _ in _DATAVALUE if name in value) | ("value" in value)
    body = _variant(value["value"]) if "value" in value else b""
    return bytes([mask]) + body + b"".join(_scalar(k, value[name]) for name, _, k in _DATAVALUE if name in value)


def _diagnostic(value: Mapping[str, Any]) -> bytes:
    mask = sum(bit for name, bit in _DIAGNOSTIC if name in value)
    body = b"".join(_I32.pack(value[name]) for name, _ in _DIAGNOSTIC if name in value)
    if "additional_info" in value:
        mask, body = mask | 0x10, body + _string(value["additional_info"])
    if "inner_status" in value:
        mask, body = mask | 0x20, body + _scalar(Kind.STATUSCODE, value["inner_status"])
    if "inner" in value:
        mask, body = mask | 0x40, body + _diagnostic(value["inner"])
    return bytes([mask]) + body


_WRITE: dict[int, Callable[[Any], bytes]] = {
    Kind.NULL: lambda v: b"", Kind.BOOLEAN: lambda v: b"\1" if v else b"\0", Kind.STRING: _string, Kind.GUID: _guid,
    Kind.XMLELEMENT: _string, Kind.NODEID: _nodeid, Kind.EXPANDEDNODEID: _expanded,
    Kind.QUALIFIEDNAME: lambda v: struct.pack("<H", v["namespace"]) + _string(v["name"]),
    Kind.LOCALIZEDTEXT: _localized, Kind.EXTENSIONOBJECT: _extension, Kind.DATAVALUE: _datavalue,
    Kind.VARIANT: _variant, Kind.DIAGNOSTICINFO: _diagnostic,
    **dict.fromkeys((Kind.BYTESTRING, *range(26, 32)), _bytestring),
}  # fmt: skip
