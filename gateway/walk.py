"""Find the items in a row of DataValues on the wire, and take their columns.

An item's size is told by two bytes, the DataValue's mask and the Variant's encoding byte, and for values
of variable size by one length. So bytes are read in two steps. The *walk* finds where each item begins:
a run of items of one shape is found by comparing its shape bytes at one stride, everything else is
stepped over item by item through a table of sizes. The *gather* then takes each column from all items at
once, in the order of the items, so that two values of one tag in one message keep their order.

The rule that makes it safe: item k+1 begins where the size of item k says; no offset is guessed. Every
count and length is checked against the bytes that are left, and memory is bounded by a small multiple
of the bytes.

What it does not do: build Python objects for values, or know what a handle means.

Source: OPC UA Part 4, 7.25.2; Part 6, 5.2.2.16 and 5.2.2.17.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirror.batch import (
    ARRAY,
    FIXED_WIDTH,
    IN_HEAP,
    NO_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
)
from mirror.errors import Corrupt
from mirror.wire import body_size

_I32 = struct.Struct("<i")

# ---- shapes ---------------------------------------------------------------------------------------------

_VALUE, _STATUS, _SOURCE, _SERVER, _SOURCE_PS, _SERVER_PS, _RESERVED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0xC0

#: What may follow the value, in the order of the wire, which is not the order of the bits.
_TAIL_FIELDS = ((_STATUS, 4), (_SOURCE, 8), (_SOURCE_PS, 2), (_SERVER, 8), (_SERVER_PS, 2))
_TAIL_SIZE = np.array([sum(w for bit, w in _TAIL_FIELDS if mask & bit) for mask in range(256)], np.int64)


RESERVED_IDS = range(26, 32)  # built-in ids of the future: to be taken for ByteStrings (Part 6, 5.2.2.16)


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
    for kind in (Kind.STRING, Kind.BYTESTRING, Kind.XMLELEMENT, *RESERVED_IDS):
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

# ---- the walk -------------------------------------------------------------------------------------------

RUN_MIN = 24  # shorter runs are stepped over: setting up the columns of a run costs about as much
_PROBE_EVERY = 64
_PAD = bytes(16)  # lets the last item be read as if all fields followed
_SHAPE = struct.Struct("<H")


class Walk:
    """Where the items begin, and the columns taken from there.

    Args:
        body: The bytes in which the items lie.
        bare: The items are DataValues alone, without a ClientHandle before each; the handles stay 0.
    """

    def __init__(self, body: bytes, *, bare: bool = False) -> None:
        self.data = body + _PAD
        self.bare = bare
        # An item is reckoned from where its handle stands; without handles that is 4 bytes early, inside
        # the item before, or in the count before the first one.
        self._trim = 4 if bare else 0
        self.rows = 0
        self.slow = 0
        self.runs: list[tuple[int, int, int, int, int]] = []  # first row, rows, offset, stride, shape
        self.starts: list[int] = []  # offsets of the items that are in no run
        self.stretches: list[tuple[int, int, int]] = []  # first row, entries of `starts` so far, end offset

    def items(self, pos: int, end: int, count_max: int = 2**31) -> int:
        """Walk the array of items at `pos`, its int32 count first; return where it ends, at most at `end`."""
        if end - pos < 4:
            raise Corrupt(f"{end - pos} bytes where an array of items should be")
        (count,) = _I32.unpack_from(self.data, pos)
        pos += 4
        if count > min(count_max, (end - pos) // (5 - self._trim)):
            raise Corrupt(f"{count} items in {end - pos} bytes, where at most {count_max} may come")
        left = max(count, 0)
        pos -= self._trim
        while left:
            taken, next_pos = self._run(pos, end, left)
            if not taken:
                taken, next_pos = self._step(pos, end, min(left, _PROBE_EVERY))
            self.rows += taken
            left -= taken
            pos = next_pos
        return pos + self._trim

    def _run(self, pos: int, end: int, left: int) -> tuple[int, int]:
        """Record the run of items of one fixed shape at pos; (0, pos) if it is not worth it."""
        data = self.data
        (shape,) = _SHAPE.unpack_from(data, pos + 4)
        stride = _BASE[shape] - self._trim
        if stride <= 0 or _UNIT[shape] or (shape & _VALUE and _HEAP_KINDS[shape >> 8]):
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
        data, base, unit, read, trim = self.data, _BASE, _UNIT, _SHAPE.unpack_from, self._trim
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
                    size = self._slow_size(pos, shape)
                pos += size - trim
        except struct.error as error:
            raise Corrupt(f"an item reaches past the message: {error}") from error
        if pos + trim > end:
            raise Corrupt(f"an item ends at {pos + trim}, the bytes that hold it at {end}")
        self.stretches.append((self.rows, len(self.starts), pos))
        return count, pos

    def _slow_size(self, pos: int, shape: int) -> int:
        """Return the size of an item whose value has to be followed by its own lengths."""
        mask, encoding = shape & 0xFF, shape >> 8
        if mask & _RESERVED:
            raise Corrupt(f"DataValue mask {mask:#04x} has reserved bits")
        self.slow += 1
        return 6 + body_size(self.data, pos + 6, encoding) + int(_TAIL_SIZE[mask])

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
        if self.bare:
            batch.handle[:] = 0
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
        ends += self._trim
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
