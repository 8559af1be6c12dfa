"""A batch as the bytes of one chunk of the journal: header, then one zstd frame of its columns.

Every column is made small before it is compressed: times and handles become differences, the server's
time its lag behind the source's, floats and doubles stay apart, a status is stored where it is not Good,
and what is all zero or all alike is not stored at all. Each column is then split into byte planes (all
lowest bytes, all second bytes, ...), because the upper planes of almost any signal compress to nothing.

The rule that makes it safe: the width of a column is chosen from its minimum and maximum in int64, never
assumed. One sample that is a day old makes the column of its own chunk wider, and nothing else happens.
A CRC-32 covers the whole chunk, and sizes are checked before they are believed; damage raises Corrupt.

What this module does not do: sign, encrypt, or make two encoders agree byte for byte (what must be equal
is the decoded batch; `mirror.batch.digest` proves content).

Layout, all little endian. Header, 37 bytes: version (1), layout bits, widths (2 bytes: four codes of 4
bits for handle, time, lag, integers), CRC-32 of all other bytes, rows, bytes of the columns, first
handle, t0, t1 (int64), kind. Columns, in this order, those in brackets where a layout bit says so; widths
are 0, 1, 2, 4 or 8 bytes a row (codes 0 to 4), and a wider column than one byte stands as byte planes:

    handle     zigzag difference to the row before; the first row's difference is 0
    [flags]    1 byte
    [kind]     1 byte; without it all rows have the kind in the header
    time       zigzag difference of the axis (source or server time, a layout bit) to the row before, from t1
    lag        server time - source time
    [ps]       source and server picoseconds, 2 bytes each
    [status]   1 byte a row: whether it is not Good; then those that are not, 4 bytes
    float      32-bit patterns of the rows of kind FLOAT
    integers   bits of all other fixed-width rows but DOUBLE
    heap       4-byte sizes, then the bytes, of the rows whose value is in the heap
    double     64-bit patterns of the rows of kind DOUBLE

A null time is stored as the other one, or t1 where both are null, so that it costs nothing.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from mirror.batch import FIXED_WIDTH, IN_HEAP, NO_HEAP, SERVER_NULL, SOURCE_NULL, Batch, Heap, Kind
from mirror.errors import Corrupt

VERSION = 1
ROWS_MAX = 1 << 22
COLUMNS_BYTES_MAX = 1 << 30

_HEADER = struct.Struct("<BBHIIIIqqB")
_CRC_AT, _CRC_END = 4, 8

_SERVER_AXIS, _FLAGS, _KINDS, _PICOSECONDS, _STATUS, _NO_SOURCE = 1, 2, 4, 8, 16, 32
_LAYOUT_BITS = 0x3F

#: From here on every plane ends its zstd block, so that noise and order do not share one Huffman table.
_SPLIT_ROWS_MIN = 500

_INTEGERS = (np.int8, np.int8, np.int16, np.int32, np.int64)  # by width code; 0 takes no bytes

#: Value column by kind: 0 none, 1 float, 2 integers, 3 heap, 4 double.
_CLASS = np.where(IN_HEAP, 3, np.where(FIXED_WIDTH > 0, 2, 0)).astype(np.uint8)
_CLASS[Kind.FLOAT], _CLASS[Kind.DOUBLE] = 1, 4

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """What a chunk's header says.

    Attributes:
        n: Rows.
        t0: Lowest source ticks, or None where no row has a source time.
        t1: Highest, likewise.
    """

    n: int
    t0: int | None
    t1: int | None


def encode(batch: Batch) -> bytes:
    """Return the batch as one chunk, from which `decode` gives equal rows in the same order.

    The batch holds at most 2**22 rows; a null time or value is 0 in its column, as `Batch` states.
    """
    n = len(batch)
    assert n <= ROWS_MAX, f"{n} rows are too many for one chunk; cut at {ROWS_MAX}"
    if n == 0:
        return _seal(0, 0, 0, 0, 0, 0, 0, 0, b"")
    layout, t0, t1, axis, lag = _times(batch)
    columns, widths = _Columns(), []
    widths.append(columns.add(_differences(batch.handle.astype(np.int64), int(batch.handle[0]))))
    if batch.flags.any():
        layout |= _FLAGS
        columns.planes(batch.flags)
    kind = int(batch.kind[0])
    if (batch.kind != kind).any():
        layout |= _KINDS
        columns.planes(batch.kind)
    widths += [columns.add(axis), columns.add(lag)]
    if batch.source_ps.any() or batch.server_ps.any():
        layout |= _PICOSECONDS
        columns.planes(batch.source_ps)
        columns.planes(batch.server_ps)
    if batch.status.any():
        layout |= _STATUS
        odd = batch.status != 0
        columns.planes(odd.view(np.uint8))
        columns.planes(batch.status[odd])
    widths.append(_add_values(columns, batch, alike=not layout & _KINDS))
    code = sum(w << 4 * i for i, w in enumerate(widths))
    size, frame = columns.compressed(split=n >= _SPLIT_ROWS_MIN)
    assert size <= COLUMNS_BYTES_MAX, f"{size} bytes are too many for one chunk; cut at {COLUMNS_BYTES_MAX}"
    return _seal(layout, code, n, size, int(batch.handle[0]), t0, t1, kind, frame)


def _seal(layout: int, widths: int, n: int, size: int, handle: int, t0: int, t1: int, kind: int, frame: bytes) -> bytes:
    head = _HEADER.pack(VERSION, layout, widths, 0, n, size, handle, t0, t1, kind)
    crc = zlib.crc32(frame, zlib.crc32(head[_CRC_END:], zlib.crc32(head[:_CRC_AT])))
    return b"".join((head[:_CRC_AT], crc.to_bytes(4, "little"), head[_CRC_END:], frame))


def _times(batch: Batch) -> tuple[int, int, int, NDArray[np.int64], NDArray[np.int64]]:
    """Return layout bits, t0, t1, the zigzag differences of the steadier of the two times, and the lag."""
    source, server, null = batch.source_ticks, batch.server_ticks, batch.flags & (SOURCE_NULL | SERVER_NULL)
    layout = 0
    if null.any():
        no_source, no_server = null & SOURCE_NULL != 0, null & SERVER_NULL != 0
        assert not source[no_source].any() and not server[no_server].any(), "a null time is not 0 in its column"
        known = source[~no_source] if not no_source.all() else server
        layout = _NO_SOURCE if no_source.all() else 0
        t0, t1 = int(known.min()), int(known.max())
        filled = np.where(no_source, server, source)
        server = np.where(no_server, source, server)
        source = filled
        neither = no_source & no_server
        source[neither] = server[neither] = t1
    else:
        t0, t1 = int(source.min()), int(source.max())
    by_source, by_server = (_differences(t, t1) for t in (source, server))
    if _cost(by_server) < _cost(by_source):
        return layout | _SERVER_AXIS, t0, t1, by_server, server - source
    return layout, t0, t1, by_source, server - source


def _cost(column: NDArray[np.int64]) -> tuple[int, int]:
    return _width(column), int(np.count_nonzero(column))


def _differences(column: NDArray[np.int64], before: int) -> NDArray[np.int64]:
    """Return what each number adds to the one before it (modulo 2**64), in zigzag form.

    Zigzag: 0, -1, 1, -2 become 0, 1, 2, 3, so that a small number of either sign has few bits set.
    """
    step = np.empty_like(column)
    np.subtract(column[:1], before, out=step[:1])
    np.subtract(column[1:], column[:-1], out=step[1:])
    return (step << 1) ^ (step >> 63)


def _unzigzag(column: NDArray[np.int64]) -> NDArray[np.int64]:
    half = (column.view(np.uint64) >> np.uint64(1)).view(np.int64)
    return half ^ -(column & 1)


def _width(column: NDArray[np.int64]) -> int:
    """Return the code of the fewest bytes that hold every number of the column, by its true extremes."""
    if not len(column):
        return 0
    low, high = int(column.min()), int(column.max())
    if low == high == 0:
        return 0
    bits = 1 + max((~x if x < 0 else x).bit_length() for x in (low, high))
    return 1 if bits <= 8 else 2 if bits <= 16 else 3 if bits <= 32 else 4


class _Columns:
    """Byte planes on their way into the frame."""

    def __init__(self) -> None:
        self.parts: list[memoryview | bytes] = []

    def add(self, column: NDArray[np.int64]) -> int:
        """Add a column in its least width; return the width's code."""
        code = _width(column)
        if code:
            self.planes(column.astype(_INTEGERS[code], copy=False))
        return code

    def planes(self, column: NDArray[np.generic]) -> None:
        """Add a column of any fixed width, lowest bytes first."""
        rows = np.ascontiguousarray(column).view(np.uint8).reshape(-1, column.dtype.itemsize)
        self.parts.extend(plane.data for plane in np.ascontiguousarray(rows.T))

    def compressed(self, *, split: bool) -> tuple[int, bytes]:
        """Return the columns' size and their frame."""
        compressor = zstandard.ZstdCompressor(level=1).compressobj()
        out, size = [], 0
        for part in self.parts:
            out.append(compressor.compress(part))
            if split:
                out.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            size += len(part)
        out.append(compressor.flush())
        return size, b"".join(out)


def _add_values(columns: _Columns, batch: Batch, *, alike: bool) -> int:
    """Add the value columns and return the width code of the integers."""
    floats, integers, heaped, doubles = (batch.bits[rows] for rows in _classes(batch.kind, alike=alike))
    columns.planes(floats.astype("<u4"))
    code = columns.add(integers.view(np.int64))
    if len(heaped):
        heap = batch.heap.take(heaped.astype(np.int64))
        columns.planes(np.diff(heap.ends, prepend=0).astype("<u4"))
        columns.parts.append(heap.data)
    columns.planes(doubles)
    return code


def _classes(kind: NDArray[np.uint8], *, alike: bool) -> list[NDArray[np.bool_] | slice]:
    """Return where the rows of Floats, of integers, of the heap and of Doubles are; `alike`: all rows have one kind."""
    if alike:
        return [slice(None if _CLASS[kind[0]] == c else 0) for c in (1, 2, 3, 4)]
    row_class = _CLASS[kind]
    return [row_class == c for c in (1, 2, 3, 4)]


def peek(data: bytes) -> ChunkInfo:
    """Return what the header says, without a look at the rest.

    Raises:
        Corrupt: Too short, or not a chunk of this version.
    """
    layout, _, _, n, _, _, t0, t1, _ = _open(data)
    return ChunkInfo(n, None, None) if layout & _NO_SOURCE or n == 0 else ChunkInfo(n, t0, t1)


def decode(data: bytes) -> Batch:
    """Return the batch of a chunk.

    Raises:
        Corrupt: Not exactly what `encode` wrote.
    """
    layout, code, crc, n, size, first, _, t1, kind = _open(data)
    if zlib.crc32(data[_CRC_END:], zlib.crc32(data[:_CRC_AT])) != crc:
        raise Corrupt(f"a chunk of {len(data)} bytes does not match its checksum")
    if n == 0:
        return Batch.zeros(0)
    columns = _Planes(_decompressed(data[_HEADER.size :], size), n)
    widths = [code >> 4 * i & 15 for i in range(4)]
    handle = np.cumsum(_unzigzag(columns.number(widths[0]))) + first
    flags = columns.take(np.uint8) if layout & _FLAGS else np.zeros(n, np.uint8)
    kinds = columns.take(np.uint8) if layout & _KINDS else np.full(n, kind, np.uint8)
    axis = np.cumsum(_unzigzag(columns.number(widths[1]))) + np.int64(t1)
    lag = columns.number(widths[2])
    source, server = (axis - lag, axis) if layout & _SERVER_AXIS else (axis, axis + lag)
    if layout & _FLAGS:
        source, server = (np.where(flags & f, 0, t) for f, t in ((SOURCE_NULL, source), (SERVER_NULL, server)))
    has_ps = layout & _PICOSECONDS
    source_ps, server_ps = (columns.take(np.uint16) if has_ps else np.zeros(n, np.uint16) for _ in range(2))
    status = np.zeros(n, np.uint32)
    if layout & _STATUS:
        odd = columns.take(np.uint8) != 0
        status[odd] = columns.take(np.uint32, int(np.count_nonzero(odd)))
    bits, heap = _read_values(columns, kinds, widths[3], alike=not layout & _KINDS)
    handles = handle.astype(np.uint32)
    return Batch(handles, source, server, source_ps, server_ps, status, flags, kinds, bits, heap)


def _open(data: bytes) -> tuple[int, int, int, int, int, int, int, int, int]:
    """Return the header's fields after the version."""
    if len(data) < _HEADER.size:
        raise Corrupt(f"a chunk has {len(data)} bytes; its header alone has {_HEADER.size}")
    version, layout, code, crc, n, size, first, t0, t1, kind = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Corrupt(f"a chunk has version {version}; this program reads version {VERSION}")
    if layout & ~_LAYOUT_BITS:
        raise Corrupt(f"a chunk has the layout bits 0x{layout:02x}; this program knows 0x{_LAYOUT_BITS:02x}")
    if n > ROWS_MAX or size > COLUMNS_BYTES_MAX:
        raise Corrupt(f"a chunk claims {n} rows in {size} bytes; at most {ROWS_MAX} in {COLUMNS_BYTES_MAX}")
    return layout, code, crc, n, size, first, t0, t1, kind


def _decompressed(frame: bytes, size: int) -> bytes:
    if not size:
        raw = b""
    else:
        try:
            claimed = zstandard.frame_content_size(frame)
            if claimed not in (-1, size):
                raise Corrupt(f"a chunk's frame claims {claimed} bytes; its header says {size}")
            decompressor = zstandard.ZstdDecompressor()
            raw = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a chunk's columns do not decompress: {error}") from error
    if len(raw) != size:
        raise Corrupt(f"a chunk's columns have {len(raw)} bytes; its header says {size}")
    return raw


class _Planes:
    """Columns on their way out of the frame, each checked against the bytes that are left."""

    def __init__(self, raw: bytes, n: int) -> None:
        self.raw = np.frombuffer(raw, np.uint8)
        self.n = n
        self.pos = 0

    def bytes(self, size: int) -> NDArray[np.uint8]:
        start, self.pos = self.pos, self.pos + size
        if self.pos > len(self.raw):
            raise Corrupt(f"a column of {size} bytes starts at byte {start} of {len(self.raw)}")
        return self.raw[start : self.pos]

    def take(self, dtype: type[T], n: int | None = None) -> NDArray[T]:
        """Return a column of n numbers (as many as rows unless said) from its planes."""
        n, width = self.n if n is None else n, np.dtype(dtype).itemsize
        planes = self.bytes(n * width).reshape(width, n)
        out = np.empty((n, width), np.uint8)
        for i in range(width):
            out[:, i] = planes[i]
        return out.reshape(-1).view(dtype)

    def number(self, code: int, n: int | None = None) -> NDArray[np.int64]:
        """Return a column of n integers in the width of `code`."""
        if code >= len(_INTEGERS):
            raise Corrupt(f"a chunk has the width code {code}; codes are 0 to {len(_INTEGERS) - 1}")
        n = self.n if n is None else n
        return self.take(_INTEGERS[code], n).astype(np.int64, copy=False) if code else np.zeros(n, np.int64)


def _read_values(
    columns: _Planes, kind: NDArray[np.uint8], code: int, *, alike: bool
) -> tuple[NDArray[np.uint64], Heap]:
    """Return bits and heap; nothing may be left in the columns after them."""
    n, heap, bits = len(kind), NO_HEAP, np.zeros(len(kind), np.uint64)
    floats, integers, heaped, doubles = _classes(kind, alike=alike)

    def count(rows: NDArray[np.bool_] | slice) -> int:
        return len(range(n)[rows]) if isinstance(rows, slice) else int(np.count_nonzero(rows))

    bits[floats] = columns.take(np.uint32, count(floats))
    bits[integers] = columns.number(code, count(integers)).view(np.uint64)
    if entries := count(heaped):
        ends = np.cumsum(columns.take(np.uint32, entries), dtype=np.int64)
        heap = Heap(ends, columns.bytes(int(ends[-1])).tobytes())
        bits[heaped] = np.arange(entries, dtype=np.uint64)
    bits[doubles] = columns.take(np.uint64, count(doubles))
    if columns.pos != len(columns.raw):
        raise Corrupt(f"{len(columns.raw) - columns.pos} bytes are left after a chunk's columns")
    return bits, heap
