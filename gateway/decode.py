"""Turn the bytes of a Publish or Republish response into columns of samples.

A notification is a row of items whose size is told by two bytes, the DataValue's mask and the Variant's
encoding byte, and for values of variable size by one length. So a message is read in two steps. The
*walk* finds where each item begins: a run of items of one shape is found by comparing its shape bytes
at one stride, everything else is stepped over item by item through a table of sizes. The *gather* then
takes each column from all items at once, in the order of the items, so that two values of one tag in
one message keep their order.

The rule that makes it safe: item k+1 begins where the size of item k says; no offset is guessed. Every
count and length is checked against the bytes that are left, and a message that does not end exactly
where its lengths say is Corrupt as a whole. Memory is bounded by a small multiple of the message.

What it does not do: build Python objects for values, judge sequence numbers, or know what a handle
means. The ClientHandle of a monitored item is the tag's handle.

Source: OPC UA Part 4, 5.14.5 and 7.25; Part 6, 5.2 (encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirror.batch import (
    ARRAY,
    DIMENSIONS,
    FIXED_WIDTH,
    IN_HEAP,
    NO_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
    take,
)
from mirror.errors import Corrupt
from mirror.variant import body_size

DATA_CHANGE = 811  # encoding ids of the three kinds of notification, namespace 0
STATUS_CHANGE = 820
EVENT_LIST = 916

OVERFLOW = 0x0480  # InfoType DataValue and the Overflow bit: values before this one were discarded

#: Tells where an item ends that the walk cannot size: (bytes, start of the item, limit) -> end, or Corrupt.
Fallback = Callable[[bytes, int, int], int]


@dataclass(frozen=True, slots=True)
class Message:
    """One response as the server sent it, with its samples still encoded.

    Attributes:
        subscription: SubscriptionId; 0 in the answer to a Republish, which does not carry it.
        available: AvailableSequenceNumbers; empty after a Republish.
        more: MoreNotifications: ask again at once.
        sequence: Number of the message, or of the next one in a keep-alive.
        publish_ticks: PublishTime; 0 where the server leaves it null.
        response_ticks: Timestamp of the response header.
        service_result: ServiceResult of the response header; when it is bad, nothing else is told.
        ack_results: One StatusCode for each acknowledgement of the request.
        notifications: (encoding id, start, end) in `body`; -1 as id for types outside namespace 0.
        status_change: StatusCode of a StatusChangeNotification, the last one if there are several.
        body: The whole response.
    """

    subscription: int
    available: tuple[int, ...]
    more: bool
    sequence: int
    publish_ticks: int
    response_ticks: int
    service_result: int
    ack_results: tuple[int, ...]
    notifications: tuple[tuple[int, int, int], ...]
    status_change: int | None
    body: bytes

    @property
    def keepalive(self) -> bool:
        """Whether the message only says that the subscription lives; its number is not used up."""
        return not self.notifications and not self.service_result & 0x80000000


@dataclass(frozen=True, slots=True)
class Decoded:
    """The samples of one message.

    Attributes:
        batch: Rows in the order of the wire.
        overflow: uint32[], ascending: handles with a value before which the server discarded others.
        refused: Items left out because their handle is not one of ours.
        slow: Items whose size was found one by one, in Python.
    """

    batch: Batch
    overflow: NDArray[np.uint32]
    refused: int
    slow: int


def read_publish(body: bytes) -> Message:
    """Read everything but the samples of a PublishResponse (or of a ServiceFault in its place).

    Args:
        body: The response from its TypeId on, after reassembly and decryption.

    Raises:
        Corrupt: The bytes are not such a response.
    """
    try:
        return _read_publish(body)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"PublishResponse of {len(body)} bytes ends early: {error}") from error


def read_republish(body: bytes) -> Message:
    """Read everything but the samples of a RepublishResponse; see `read_publish`."""
    try:
        type_id, pos = _type_id(body, 0)
        ticks, result, pos = _response_header(body, pos)
        if type_id == _SERVICE_FAULT:
            return Message(0, (), False, 0, 0, ticks, result, (), (), None, body)
        if type_id != _REPUBLISH_RESPONSE:
            raise Corrupt(f"response has encoding id {type_id}; a RepublishResponse has {_REPUBLISH_RESPONSE}")
        sequence, publish_ticks, notifications, pos = _notification_message(body, pos)
        status = _status_change(body, notifications)
    except (struct.error, IndexError) as error:
        raise Corrupt(f"RepublishResponse of {len(body)} bytes ends early: {error}") from error
    return Message(0, (), False, sequence, publish_ticks, ticks, result, (), notifications, status, body)


def decode(message: Message, *, handle_limit: int, fallback: Fallback | None = None) -> Decoded:
    """Decode the data changes of a message into one batch.

    Nothing of the batch refers to the message's bytes. A timestamp that is absent and one that is 0,
    which is how a null DateTime is encoded, are both flagged null.

    Args:
        message: From `read_publish` or `read_republish`.
        handle_limit: Handles from here on are not ours; their items are counted and left out.
        fallback: Asked for the end of an item when its own lengths cannot be followed.

    Raises:
        Corrupt: The notifications are not what their lengths claim; no sample of the message is used.
    """
    walk = _Walk(message.body, fallback)
    for type_id, start, end in message.notifications:
        if type_id == DATA_CHANGE:
            walk.notification(start, end)
    batch = walk.gather()
    foreign = batch.handle >= handle_limit
    refused = int(np.count_nonzero(foreign))
    if refused:
        batch = take(batch, np.flatnonzero(~foreign))
    lost = (batch.status & np.uint32(OVERFLOW)) == OVERFLOW
    overflow = np.unique(batch.handle[lost]) if lost.any() else _NO_HANDLES
    return Decoded(batch, overflow, refused, walk.slow)


# ---- the envelope ---------------------------------------------------------------------------------------

_SERVICE_FAULT = 397
_PUBLISH_RESPONSE = 829
_REPUBLISH_RESPONSE = 835

_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_RESPONSE_HEADER = struct.Struct("<qII")
_SEQUENCE_AND_TIME = struct.Struct("<Iq")


def _read_publish(body: bytes) -> Message:
    type_id, pos = _type_id(body, 0)
    ticks, result, pos = _response_header(body, pos)
    if type_id == _SERVICE_FAULT:
        return Message(0, (), False, 0, 0, ticks, result, (), (), None, body)
    if type_id != _PUBLISH_RESPONSE:
        raise Corrupt(f"response has encoding id {type_id}; a PublishResponse has {_PUBLISH_RESPONSE}")
    (subscription,) = _U32.unpack_from(body, pos)
    available, pos = _numbers(body, pos + 4)
    more = body[pos] != 0
    sequence, publish_ticks, notifications, pos = _notification_message(body, pos + 1)
    acks, pos = _numbers(body, pos)
    status = _status_change(body, notifications)
    return Message(
        subscription, available, more, sequence, publish_ticks, ticks, result, acks, notifications, status, body
    )


def _type_id(body: bytes, pos: int) -> tuple[int, int]:
    """Return the numeric id in namespace 0 (else -1) of the NodeId at pos, and where it ends."""
    form = body[pos]
    if form == 0:
        return body[pos + 1], pos + 2
    if form == 1:
        return (-1 if body[pos + 1] else _U16.unpack_from(body, pos + 2)[0]), pos + 4
    if form == 2:
        return (-1 if body[pos + 1] or body[pos + 2] else _U32.unpack_from(body, pos + 3)[0]), pos + 7
    return -1, pos + body_size(body, pos, Kind.NODEID)


def _response_header(body: bytes, pos: int) -> tuple[int, int, int]:
    """Return timestamp, ServiceResult and the end of the ResponseHeader at pos."""
    ticks, _, result = _RESPONSE_HEADER.unpack_from(body, pos)
    pos += _RESPONSE_HEADER.size
    pos += body_size(body, pos, Kind.DIAGNOSTICINFO)
    pos += body_size(body, pos, Kind.STRING | ARRAY)
    pos += body_size(body, pos, Kind.EXTENSIONOBJECT)
    return ticks, result, pos


def _numbers(body: bytes, pos: int) -> tuple[tuple[int, ...], int]:
    """Return the array of UInt32 at pos, null read as empty, and where it ends."""
    (n,) = _I32.unpack_from(body, pos)
    pos += 4
    if n <= 0:
        return (), pos
    if n > (len(body) - pos) // 4:
        raise Corrupt(f"array of {n} numbers in the {len(body) - pos} bytes that are left")
    return struct.unpack_from(f"<{n}I", body, pos), pos + 4 * n


def _notification_message(body: bytes, pos: int) -> tuple[int, int, tuple[tuple[int, int, int], ...], int]:
    """Return sequence number, publish time, notifications and the end of the NotificationMessage at pos."""
    sequence, publish_ticks = _SEQUENCE_AND_TIME.unpack_from(body, pos)
    (n,) = _I32.unpack_from(body, pos + 12)
    pos += 16
    notifications = []
    for _ in range(n):
        type_id, pos = _type_id(body, pos)
        encoding, pos = body[pos], pos + 1
        start = end = pos
        if encoding:
            (size,) = _I32.unpack_from(body, pos)
            start, end = pos + 4, pos + 4 + size
            if encoding > 2 or size < 0 or end > len(body):
                raise Corrupt(f"notification of encoding {encoding} and {size} bytes, {len(body) - pos} left")
        elif type_id == DATA_CHANGE:
            raise Corrupt("data change notification without a body")
        notifications.append((type_id if encoding < 2 else -1, start, end))
        pos = end
    return sequence, publish_ticks, tuple(notifications), pos


def _status_change(body: bytes, notifications: tuple[tuple[int, int, int], ...]) -> int | None:
    """Return the StatusCode of the last StatusChangeNotification, if there is one."""
    status: int | None = None
    for type_id, start, end in notifications:
        if type_id == STATUS_CHANGE:
            if end - start < 4:
                raise Corrupt(f"status change notification of {end - start} bytes")
            (status,) = _U32.unpack_from(body, start)
    return status


# ---- shapes ---------------------------------------------------------------------------------------------

_VALUE, _STATUS, _SOURCE, _SERVER, _SOURCE_PS, _SERVER_PS, _RESERVED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0xC0

#: What may follow the value, in the order of the wire, which is not the order of the bits.
_TAIL_FIELDS = ((_STATUS, 4), (_SOURCE, 8), (_SOURCE_PS, 2), (_SERVER, 8), (_SERVER_PS, 2))
_TAIL_SIZE = np.array([sum(w for bit, w in _TAIL_FIELDS if mask & bit) for mask in range(256)], np.int64)


def _sizes() -> tuple[list[int], list[int]]:
    """Return by shape (mask | encoding byte << 8) the fixed part of an item and the bytes per unit of the
    int32 length at its value; a fixed part of 0 means that the item must be stepped over by its own lengths.
    """
    base, unit = np.zeros((256, 256), np.int64), np.zeros((256, 256), np.int64)  # [encoding, mask]
    tail = np.where(np.arange(256) & _RESERVED, 0, _TAIL_SIZE)
    usable, valued = (np.arange(256) & _RESERVED) == 0, (np.arange(256) & _VALUE) != 0
    base[:, usable & ~valued] = 5 + tail[usable & ~valued]  # the byte after the mask is not an encoding byte
    with_value = np.flatnonzero(usable & valued)
    scalars = {kind: int(FIXED_WIDTH[kind]) for kind in range(64) if FIXED_WIDTH[kind]} | {Kind.GUID: 16}
    for kind, width in scalars.items():
        base[kind, with_value] = 6 + width + tail[with_value]
        base[kind | ARRAY, with_value] = 10 + tail[with_value]
        unit[kind | ARRAY, with_value] = width
    base[Kind.NULL, with_value] = 6 + tail[with_value]
    for kind in (Kind.STRING, Kind.BYTESTRING, Kind.XMLELEMENT):
        base[kind, with_value] = 10 + tail[with_value]
        unit[kind, with_value] = 1
    return base.reshape(-1).tolist(), unit.reshape(-1).tolist()


_BASE, _UNIT = _sizes()
_SIGNED = (Kind.SBYTE, Kind.INT16, Kind.INT32)
_KEEP = np.array([(1 << 8 * int(w)) - 1 for w in FIXED_WIDTH], np.uint64)  # which bits are the value's own
_SIGN = np.zeros(256, np.uint64)
for _kind in _SIGNED:
    _SIGN[_kind] = 1 << (8 * int(FIXED_WIDTH[_kind]) - 1)
_HEAP_KINDS: list[bool] = IN_HEAP.tolist()
_NO_HANDLES = np.zeros(0, np.uint32)

# ---- the walk -------------------------------------------------------------------------------------------

RUN_MIN = 24  # shorter runs are stepped over: setting up the columns of a run costs about as much
_PROBE_EVERY = 64
_PAD = bytes(16)  # lets the last item be read as if all fields followed
_SHAPE = struct.Struct("<H")


class _Walk:
    """Where the items of a message begin, and the columns taken from there."""

    def __init__(self, body: bytes, fallback: Fallback | None) -> None:
        self.data = body + _PAD
        self.fallback = fallback
        self.rows = 0
        self.slow = 0
        self.runs: list[tuple[int, int, int, int, int]] = []  # first row, rows, offset, stride, shape
        self.starts: list[int] = []  # offsets of the items that are in no run
        self.stretches: list[tuple[int, int, int]] = []  # first row, entries of `starts` so far, end offset

    def notification(self, pos: int, end: int) -> None:
        """Walk the items of one DataChangeNotification."""
        if end - pos < 4:
            raise Corrupt(f"data change notification of {end - pos} bytes")
        (count,) = _I32.unpack_from(self.data, pos)
        pos += 4
        if count > (end - pos) // 5:
            raise Corrupt(f"{count} items in {end - pos} bytes")
        left = max(count, 0)
        while left:
            taken, next_pos = self._run(pos, end, left)
            if not taken:
                taken, next_pos = self._step(pos, end, min(left, _PROBE_EVERY))
            self.rows += taken
            left -= taken
            pos = next_pos
        self._diagnostics(pos, end)

    def _diagnostics(self, pos: int, end: int) -> None:
        """Check that the array of DiagnosticInfos at pos ends the notification."""
        if end - pos < 4:
            raise Corrupt("data change notification ends inside its items")
        (n,) = _I32.unpack_from(self.data, pos)
        pos += 4
        if n > end - pos:
            raise Corrupt(f"{n} diagnostics in {end - pos} bytes")
        for _ in range(n):
            pos += body_size(self.data, pos, Kind.DIAGNOSTICINFO)
        if pos != end:
            raise Corrupt(f"items and diagnostics end at {pos}, the notification at {end}")

    def _run(self, pos: int, end: int, left: int) -> tuple[int, int]:
        """Record the run of items of one fixed shape at pos; (0, pos) if it is not worth it."""
        data = self.data
        (shape,) = _SHAPE.unpack_from(data, pos + 4)
        stride = _BASE[shape]
        if not stride or _UNIT[shape] or (shape & _VALUE and _HEAP_KINDS[shape >> 8]):
            return 0, pos
        most = min(left, (end - pos) // stride)
        few = min(most, RUN_MIN)
        mask = shape & 0xFF
        if few < min(left, RUN_MIN) or data[pos + 4 : pos + few * stride : stride] != bytes((mask,)) * few:
            return 0, pos
        # Correct by induction: each item begins where the size of the one before says.
        kind = shape >> 8 if mask & _VALUE else -1
        n = 0
        while n < most:
            window = min(most - n, max(4 * n, 256))
            at = pos + n * stride
            same = np.ndarray(window, np.uint8, data, at + 4, stride) == mask
            if kind >= 0:
                same &= np.ndarray(window, np.uint8, data, at + 5, stride) == kind
            first = int(same.argmin())
            if not same[first]:
                n += first
                break
            n += window
        if n < min(left, RUN_MIN):
            return 0, pos
        self.runs.append((self.rows, n, pos, stride, shape))
        return n, pos + n * stride

    def _step(self, pos: int, end: int, count: int) -> tuple[int, int]:
        """Step over `count` items of any shape."""
        data, base, unit, read = self.data, _BASE, _UNIT, _SHAPE.unpack_from
        note = self.starts.append
        try:
            for _ in range(count):
                note(pos)
                (shape,) = read(data, pos + 4)
                size = base[shape]
                if unit[shape]:
                    (length,) = _I32.unpack_from(data, pos + 6)
                    if length > 0:
                        size += unit[shape] * length
                    elif length < -1:
                        raise Corrupt(f"length {length} in a data change")
                elif not size:
                    size = self._slow_size(pos, end, shape)
                pos += size
        except struct.error as error:
            raise Corrupt(f"an item reaches past the message: {error}") from error
        if pos > end:
            raise Corrupt(f"an item ends at {pos}, its notification at {end}")
        self.stretches.append((self.rows, len(self.starts), pos))
        return count, pos

    def _slow_size(self, pos: int, end: int, shape: int) -> int:
        """Return the size of an item whose value has to be followed by its own lengths."""
        mask, encoding = shape & 0xFF, shape >> 8
        if mask & _RESERVED:
            raise Corrupt(f"DataValue mask {mask:#04x} has reserved bits")
        if encoding & 0x3F > Kind.DIAGNOSTICINFO or (encoding & DIMENSIONS and not encoding & ARRAY):
            raise Corrupt(f"Variant encoding byte {encoding:#04x} is none")
        self.slow += 1
        try:
            return 6 + body_size(self.data, pos + 6, encoding) + int(_TAIL_SIZE[mask])
        except Corrupt:
            if self.fallback is None:
                raise
        size = self.fallback(self.data, pos, end) - pos
        if size < 6 + int(_TAIL_SIZE[mask]) or size > end - pos:
            raise Corrupt(f"item of {size} bytes where {end - pos} are left")
        return size

    # ---- the gather -------------------------------------------------------------------------------------

    def gather(self) -> Batch:
        """Return all items as columns, in the order of the wire."""
        batch = Batch.zeros(self.rows)
        heap = NO_HEAP
        if self.starts:
            starts, ends, rows = self._stepped()
            heap = self._gather_stepped(batch, starts, ends, rows)
        for run in self.runs:
            self._gather_run(batch, *run)
        np.copyto(batch.flags, batch.flags | SOURCE_NULL, where=batch.source_ticks == 0)
        np.copyto(batch.flags, batch.flags | SERVER_NULL, where=batch.server_ticks == 0)
        return replace(batch, heap=heap)

    def _gather_run(self, batch: Batch, row: int, n: int, pos: int, stride: int, shape: int) -> None:
        mask, kind = shape & 0xFF, shape >> 8

        def column(dtype: str, at: int) -> NDArray[Any]:
            return np.ndarray(n, dtype, self.data, at, stride)

        rows = slice(row, row + n)
        batch.handle[rows] = column("<u4", pos)
        pos += 5
        if not mask & _VALUE:
            batch.flags[rows] = NO_VALUE
        else:
            pos += 1
            batch.kind[rows] = kind
            if kind == Kind.BOOLEAN:
                batch.bits[rows] = column("u1", pos) != 0
            elif FIXED_WIDTH[kind]:
                dtype = f"<{'i' if kind in _SIGNED else 'u'}{FIXED_WIDTH[kind]}"
                batch.bits[rows] = column(dtype, pos).astype(np.int64 if kind in _SIGNED else np.uint64).view(np.uint64)
            pos += int(FIXED_WIDTH[kind])
        for (bit, width), target, dtype in zip(_TAIL_FIELDS, _tail_columns(batch), _TAIL_DTYPES, strict=True):
            if mask & bit:
                target[rows] = column(dtype, pos)
                pos += width

    def _stepped(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
        """Return start, end and row of each item that is in no run; None as rows when that is all of them."""
        starts = np.fromiter(self.starts, np.int64, len(self.starts))
        ends = np.empty_like(starts)
        ends[:-1] = starts[1:]
        marks = np.array(self.stretches, np.int64)
        ends[marks[:, 1] - 1] = marks[:, 2]
        if not self.runs:
            return starts, ends, None
        sizes = np.diff(marks[:, 1], prepend=0)
        rows = np.arange(len(starts)) + np.repeat(marks[:, 0] - (marks[:, 1] - sizes), sizes)
        return starts, ends, rows

    def _gather_stepped(
        self, batch: Batch, starts: NDArray[np.int64], ends: NDArray[np.int64], rows: NDArray[np.int64] | None
    ) -> Heap:
        place = slice(None) if rows is None else rows

        def column(dtype: str, at: NDArray[np.int64]) -> NDArray[Any]:
            width = np.dtype(dtype).itemsize
            taken: NDArray[Any] = np.ndarray(len(self.data) - width + 1, dtype, self.data, 0, 1)[at]
            return taken

        batch.handle[place] = column("<u4", starts)
        mask = column("u1", starts + 4)
        valued = (mask & _VALUE) != 0
        kind = column("u1", starts + 5)
        if not valued.all():
            kind = np.where(valued, kind, 0)
            batch.flags[place] = np.where(valued, 0, NO_VALUE)
        batch.kind[place] = kind
        bits = column("<u8", starts + 6) & _KEEP[kind]
        sign = _SIGN[kind]
        bits = (bits ^ sign) - sign
        np.copyto(bits, bits != 0, where=kind == Kind.BOOLEAN)
        pos = ends - _TAIL_SIZE[mask]
        heap = NO_HEAP
        in_heap = IN_HEAP[kind]
        if in_heap.any():
            heap = _cut(self.data, starts[in_heap] + 6, pos[in_heap])
            bits[in_heap] = np.arange(len(heap), dtype=np.uint64)
        batch.bits[place] = bits
        for (bit, width), target, dtype in zip(_TAIL_FIELDS, _tail_columns(batch), _TAIL_DTYPES, strict=True):
            present = (mask & bit) != 0
            if present.all():
                target[place] = column(dtype, pos)
                pos += width
            elif present.any():
                target[place] = np.where(present, column(dtype, pos), 0)
                pos += width * present
        return heap


_TAIL_DTYPES = ("<u4", "<i8", "<u2", "<i8", "<u2")


def _tail_columns(batch: Batch) -> tuple[NDArray[Any], ...]:
    """Return the columns of `_TAIL_FIELDS`, in that order."""
    return batch.status, batch.source_ticks, batch.source_ps, batch.server_ticks, batch.server_ps


def _cut(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Heap:
    """Return the slices data[starts[k]:ends[k]] as a heap."""
    sizes = ends - starts
    until = np.cumsum(sizes)
    if int(until[-1]) > 64 * len(sizes):  # few and long: slices are cheaper, and an index per byte would not be
        pieces = [data[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        return Heap(until, b"".join(pieces))
    where = np.arange(int(until[-1])) + np.repeat(starts - (until - sizes), sizes)
    return Heap(until, np.frombuffer(data, np.uint8)[where].tobytes())
