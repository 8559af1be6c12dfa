"""Publish and Republish responses built byte by byte, for tests and benches; knows nothing of the decoder.

Source: OPC UA Part 4, 5.14.5; Part 6, 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

T0 = 133_000_000_000_000_000  # a source time in 2022, in ticks


def item(
    handle: int,
    value: bytes | None = None,
    *,
    status: int | None = None,
    source: int | None = T0,
    source_ps: int | None = None,
    server: int | None = T0 + 7,
    server_ps: int | None = None,
    reserved: int = 0,
) -> bytes:
    """Return one MonitoredItemNotification; `value` is a Variant with its encoding byte, None is left out."""
    mask = reserved | (value is not None) | (status is not None) << 1 | (source is not None) << 2
    mask |= (server is not None) << 3 | (source_ps is not None) << 4 | (server_ps is not None) << 5
    parts = [struct.pack("<IB", handle, mask), value or b""]
    for form, field in (("<I", status), ("<q", source), ("<H", source_ps), ("<q", server), ("<H", server_ps)):
        if field is not None:
            parts.append(struct.pack(form, field))
    return b"".join(parts)


def double(value: float) -> bytes:
    """Return a Variant that holds a Double."""
    return struct.pack("<Bd", 11, value)


def datetime(ticks: int) -> bytes:
    """Return a DateTime Variant."""
    return b"\x0d" + ticks.to_bytes(8, "little")


def string(text: str | None) -> bytes:
    """Return a Variant that holds a String."""
    data = (text or "").encode()
    return struct.pack("<Bi", 12, -1 if text is None else len(data)) + data


def data_change(items: Sequence[bytes], *, count: int | None = None, diagnostics: bytes = b"\xff\xff\xff\xff") -> bytes:
    """Return a DataChangeNotification in its ExtensionObject; `count` overrides the honest number."""
    body = struct.pack("<i", len(items) if count is None else count) + b"".join(items) + diagnostics
    return notification(811, body)


def notification(type_id: int, body: bytes) -> bytes:
    """Return an ExtensionObject with a numeric type id in namespace 0."""
    return struct.pack("<BBHBi", 1, 0, type_id, 1, len(body)) + body


PLAIN_HEADER_END = b"\x00" + b"\xff\xff\xff\xff" + b"\x00\x00\x00"


def header(type_id: int, *, ticks: int = T0 + 99, result: int = 0, end: bytes = PLAIN_HEADER_END) -> bytes:
    """Return TypeId and ResponseHeader; `end` is diagnostics, string table and additional header."""
    return struct.pack("<BBH", 1, 0, type_id) + struct.pack("<qII", ticks, 42, result) + end


def numbers(values: Sequence[int] | None) -> bytes:
    """Return an array of UInt32, or the null array."""
    if values is None:
        return struct.pack("<i", -1)
    return struct.pack(f"<i{len(values)}I", len(values), *values)


def notification_message(
    notifications: Sequence[bytes] | None, *, sequence: int = 1, publish_ticks: int = T0 + 50
) -> bytes:
    """Return a NotificationMessage; None is the null array of notifications."""
    count = -1 if notifications is None else len(notifications)
    return struct.pack("<Iqi", sequence, publish_ticks, count) + b"".join(notifications or ())


def publish(
    notifications: Sequence[bytes] | None,
    *,
    subscription: int = 7,
    available: Sequence[int] | None = (1,),
    more: bool = False,
    sequence: int = 1,
    publish_ticks: int = T0 + 50,
    acks: Sequence[int] | None = None,
    head: bytes | None = None,
) -> bytes:
    """Return a PublishResponse."""
    return b"".join((
        header(829) if head is None else head, struct.pack("<I", subscription), numbers(available), bytes((more,)),
        notification_message(notifications, sequence=sequence, publish_ticks=publish_ticks),
        numbers(acks), numbers(None),
    ))  # fmt: skip


def republish(
    notifications: Sequence[bytes] | None, *, sequence: int = 1, publish_ticks: int = T0 + 50, head: bytes | None = None
) -> bytes:
    """Return a RepublishResponse."""
    told = notification_message(notifications, sequence=sequence, publish_ticks=publish_ticks)
    return (header(835) if head is None else head) + told


#: Scalars: encoding byte, body, and the pattern that a row keeps.
SCALARS: dict[str, tuple[int, bytes, int]] = {
    "false": (1, b"\x00", 0), "true": (1, b"\x01", 1), "two": (1, b"\x02", 1), "ff": (1, b"\xff", 1),
    "sbyte": (2, b"\x80", 2**64 - 128), "byte": (3, b"\x80", 128),
    "int16": (4, struct.pack("<h", -2), 2**64 - 2), "uint16": (5, struct.pack("<H", 65534), 65534),
    "int32": (6, struct.pack("<i", -3), 2**64 - 3), "uint32": (7, struct.pack("<I", 2**32 - 3), 2**32 - 3),
    "int64": (8, struct.pack("<q", -(2**63)), 2**63), "uint64": (9, struct.pack("<Q", 2**64 - 1), 2**64 - 1),
    "float": (10, struct.pack("<f", -0.0), 0x80000000), "signalling float": (10, b"\x01\x00\x80\x7f", 0x7F800001),
    "double": (11, struct.pack("<d", -0.0), 2**63),
    "signalling double": (11, b"\x01" + bytes(5) + b"\xf0\x7f", 0x7FF0000000000001),
    "datetime": (13, struct.pack("<q", -5), 2**64 - 5), "statuscode": (19, struct.pack("<I", 0x80010000), 0x80010000),
}  # fmt: skip

#: Values of variable size: encoding byte and body.
HEAP_BODIES: dict[str, tuple[int, bytes]] = {
    "string": (12, struct.pack("<i", 3) + b"abc"), "empty string": (12, struct.pack("<i", 0)),
    "null string": (12, struct.pack("<i", -1)), "not utf-8": (12, struct.pack("<i", 2) + b"\xff\xfe"),
    "guid": (14, bytes(range(16))), "bytes": (15, struct.pack("<i", 2) + b"\x00\x01"),
    "xml": (16, struct.pack("<i", 4) + b"<a/>"),
    "two-byte nodeid": (17, b"\x00\x55"), "four-byte nodeid": (17, b"\x01\x02\x34\x12"),
    "numeric nodeid": (17, b"\x02\x02\x00\x01\x02\x03\x04"),
    "string nodeid": (17, b"\x03\x02\x00" + struct.pack("<i", 1) + b"x"),
    "guid nodeid": (17, b"\x04\x02\x00" + bytes(16)),
    "opaque nodeid": (17, b"\x05\x02\x00" + struct.pack("<i", 2) + b"xy"),
    "expanded nodeid": (18, b"\xc0\x55" + struct.pack("<i", 3) + b"urn" + struct.pack("<I", 9)),
    "qualified name": (20, b"\x01\x00" + struct.pack("<i", 1) + b"q"), "localized nothing": (21, b"\x00"),
    "localized text": (21, b"\x03" + struct.pack("<i", 2) + b"en" + struct.pack("<i", 1) + b"t"),
    "structure": (22, b"\x01\x02\x34\x12\x01" + struct.pack("<i", 5) + b"12345"),
    "structure without body": (22, b"\x01\x02\x34\x12\x00"),
    "datavalue": (23, b"\x0d\x0b" + bytes(8) + bytes(16)), "diagnostics": (25, b"\x01" + bytes(4)),
    "doubles": (0x8B, struct.pack("<i2d", 2, 1, 2)), "no doubles": (0x8B, struct.pack("<i", 0)),
    "null doubles": (0x8B, struct.pack("<i", -1)),
    "booleans": (0x81, struct.pack("<i", 3) + b"\x00\x02\x01"), "guids": (0x8E, struct.pack("<i", 2) + bytes(32)),
    "strings": (0x8C, struct.pack("<ii", 2, 1) + b"a" + struct.pack("<i", -1)),
    "variants": (0x98, struct.pack("<i", 2) + b"\x01\x01" + b"\x06" + bytes(4)),
    "matrix": (0xCB, struct.pack("<i4d", 4, 1, 2, 3, 4) + struct.pack("<iii", 2, 2, 2)),
    "structures": (0x96, struct.pack("<i", 2) + b"\x00\x00\x00" * 2),
}  # fmt: skip
