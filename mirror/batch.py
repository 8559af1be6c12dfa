"""A batch of samples as columns: the only form in which samples exist here.

One row is one change as the server sent it. Nothing is interpreted on the way: times are the wire's
100 ns ticks, a status is all of its 32 bits, and a value is either a fixed-width scalar, kept as its
bit pattern in `bits`, or exactly the bytes of the Variant's body on the wire, kept in the heap. No
value passes through a Python object or through a float of another width, so signalling NaNs, -0.0,
the null String beside the empty one and structures of unknown type survive by construction.

What this module does not do: look inside heap bytes (`mirror.variant`), know what a handle means
(`mirror.tags`), or keep a current value (`mirror.state`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """OPC UA built-in types by their id in a Variant's encoding byte (Part 6, 5.1.2).

    A row's `kind` is that encoding byte: the id, plus ARRAY, plus DIMENSIONS. Ids 32 to 63 never occur
    on the wire; they are reserved for records that are not data changes.
    """

    NULL = 0
    BOOLEAN = 1
    SBYTE = 2
    BYTE = 3
    INT16 = 4
    UINT16 = 5
    INT32 = 6
    UINT32 = 7
    INT64 = 8
    UINT64 = 9
    FLOAT = 10
    DOUBLE = 11
    STRING = 12
    DATETIME = 13
    GUID = 14
    BYTESTRING = 15
    XMLELEMENT = 16
    NODEID = 17
    EXPANDEDNODEID = 18
    STATUSCODE = 19
    QUALIFIEDNAME = 20
    LOCALIZEDTEXT = 21
    EXTENSIONOBJECT = 22
    DATAVALUE = 23
    VARIANT = 24
    DIAGNOSTICINFO = 25
    RESERVED_EVENT = 32
    RESERVED_ALARM = 33


ARRAY = 0x80
DIMENSIONS = 0x40

SOURCE_NULL = 0x01  # no source timestamp on the wire; source_ticks is 0
SERVER_NULL = 0x02  # no server timestamp on the wire; server_ticks is 0
NO_VALUE = 0x04  # the DataValue had no value at all (a null Variant has kind NULL and not this flag)
AHEAD = 0x80  # set here, not by the device: source time too far ahead of the gateway's clock

CONTENT_FLAGS = SOURCE_NULL | SERVER_NULL | NO_VALUE  # AHEAD is an observation, not content

#: Bytes of a fixed-width kind on the wire, by kind; 0 for kinds whose value lies in the heap.
FIXED_WIDTH = np.zeros(256, np.uint8)
for _kind, _width in {
    Kind.BOOLEAN: 1, Kind.SBYTE: 1, Kind.BYTE: 1, Kind.INT16: 2, Kind.UINT16: 2, Kind.INT32: 4,
    Kind.UINT32: 4, Kind.INT64: 8, Kind.UINT64: 8, Kind.FLOAT: 4, Kind.DOUBLE: 8, Kind.DATETIME: 8,
    Kind.STATUSCODE: 4,
}.items():  # fmt: skip
    FIXED_WIDTH[_kind] = _width

#: True where `bits` is an index into the heap.
IN_HEAP = (FIXED_WIDTH == 0) & (np.arange(256) != Kind.NULL)


@dataclass(frozen=True, slots=True)
class Heap:
    """Byte strings of any length, end to end.

    Attributes:
        ends: int64[m], cumulative ends; entry k is `data[ends[k-1]:ends[k]]` (from 0 for k = 0).
        data: The bytes, `len(data) == ends[-1]` (0 when m = 0).
    """

    ends: NDArray[np.int64]
    data: bytes

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])]

    @staticmethod
    def of(entries: Sequence[bytes]) -> Heap:
        """Lay byte strings end to end."""
        return Heap(np.cumsum([len(e) for e in entries], dtype=np.int64), b"".join(entries))

    def take(self, index: NDArray[np.int64]) -> Heap:
        """Return the entries at `index` (int64[k], repeats allowed), in that order."""
        if len(index) == 0:
            return NO_HEAP
        if len(index) == len(self.ends) and (index == np.arange(len(index))).all():
            return self
        starts = np.concatenate(([0], self.ends[:-1]))[index]
        sizes = self.ends[index] - starts
        ends = np.cumsum(sizes)
        if ends[-1] > 64 * len(index):  # long entries: copying each beats 16 bytes of index per byte
            parts = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
            return Heap(ends, b"".join([self.data[start:end] for start, end in parts]))
        # One gather for all bytes: position i of entry k comes from starts[k] + i.
        where = np.arange(int(ends[-1])) + np.repeat(starts - (ends - sizes), sizes)
        return Heap(ends, np.frombuffer(self.data, np.uint8)[where].tobytes())


NO_HEAP = Heap(np.zeros(0, np.int64), b"")


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns of n samples in the order in which the server sent them.

    Attributes:
        handle: uint32[n], local number of the tag (`mirror.tags.TagTable`); never leaves this box.
        source_ticks: int64[n], 100 ns since 1601-01-01 UTC; 0 where flagged SOURCE_NULL.
        server_ticks: int64[n], likewise; 0 where flagged SERVER_NULL.
        source_ps: uint16[n], picoseconds in units of 10 ps as on the wire; 0 where absent.
        server_ps: uint16[n], likewise.
        status: uint32[n], the OPC UA StatusCode; 0 is Good.
        flags: uint8[n], see SOURCE_NULL, SERVER_NULL, NO_VALUE, AHEAD.
        kind: uint8[n], the Variant's encoding byte; see Kind.
        bits: uint64[n]. FLOAT: the 32-bit pattern, zero-extended. DOUBLE: the 64-bit pattern. Signed
            integers and DATETIME: sign-extended. BOOLEAN: 0 or 1. NULL: 0. Kinds in the heap: index.
        heap: Bodies of all other kinds: the Variant's bytes after the encoding byte, as on the wire
            (for a String its int32 length, then UTF-8; for an array its int32 count, the elements and,
            with DIMENSIONS, the int32 dimension list).
    """

    handle: NDArray[np.uint32]
    source_ticks: NDArray[np.int64]
    server_ticks: NDArray[np.int64]
    source_ps: NDArray[np.uint16]
    server_ps: NDArray[np.uint16]
    status: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    bits: NDArray[np.uint64]
    heap: Heap

    def __len__(self) -> int:
        return len(self.handle)

    @staticmethod
    def zeros(n: int) -> Batch:
        """Return n rows of null values with zero columns, to be filled by a decoder."""
        return Batch(
            np.zeros(n, np.uint32), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.uint16),
            np.zeros(n, np.uint16), np.zeros(n, np.uint32), np.zeros(n, np.uint8), np.zeros(n, np.uint8),
            np.zeros(n, np.uint64), NO_HEAP,
        )  # fmt: skip

    def value_bytes(self, row: int) -> bytes:
        """Return one row's value as the Variant's body on the wire, without its encoding byte."""
        kind = int(self.kind[row])
        if IN_HEAP[kind]:
            return self.heap[int(self.bits[row])]
        return int(self.bits[row]).to_bytes(8, "little")[: int(FIXED_WIDTH[kind])]


def concat(batches: Sequence[Batch]) -> Batch:
    """Lay batches end to end; rows keep their order and heap indices move along."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return Batch.zeros(0)
    bits, ends, entries, size = [], [], 0, 0
    for b in batches:
        if len(b.heap):
            moved = b.bits.copy()
            moved[IN_HEAP[b.kind]] += np.uint64(entries)
            bits.append(moved)
            ends.append(b.heap.ends + size)
            entries, size = entries + len(b.heap), size + len(b.heap.data)
        else:
            bits.append(b.bits)
    columns = {name: np.concatenate([getattr(b, name) for b in batches]) for name in _PLAIN_COLUMNS}
    heap = Heap(np.concatenate(ends), b"".join(b.heap.data for b in batches)) if ends else NO_HEAP
    return Batch(**columns, bits=np.concatenate(bits), heap=heap)


def take(batch: Batch, index: NDArray[np.int64] | NDArray[np.bool_]) -> Batch:
    """Return the rows at `index` (int64[k] or bool[n]), in that order, with a heap of their own."""
    if index.dtype == np.bool_:
        index = np.flatnonzero(index)
    columns = {name: getattr(batch, name)[index] for name in _PLAIN_COLUMNS}
    bits, heap = batch.bits[index], NO_HEAP
    if len(batch.heap):
        in_heap = IN_HEAP[columns["kind"]]
        heap = batch.heap.take(bits[in_heap].astype(np.int64))
        bits[in_heap] = np.arange(len(heap), dtype=np.uint64)
    return Batch(**columns, bits=bits, heap=heap)


def canonical_order(batch: Batch, rank: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the row order in which equal content always stands in the same place.

    Rows are ordered by tag, source ticks, picoseconds, status, kind, value bytes (the pattern in `bits`
    as an unsigned number, or the heap bytes), flags, server ticks and picoseconds, and last by AHEAD.

    Args:
        batch: n rows.
        rank: uint32 by handle: the place of the handle's tag among all tags sorted by identity.

    Returns:
        int64[n], a permutation.
    """
    place = rank[batch.handle]
    order = np.lexsort((batch.source_ticks, place))
    tied = _tied(order, place, batch.source_ticks)
    if tied.any():  # few rows share a tag and a source time: only they need the other keys
        rows = order[tied]
        order[tied] = rows[_full_order(take(batch, rows), place[rows])]
    return order


def _tied(order: NDArray[np.int64], *keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Return bool[n]: whether the row at each place of the order has the keys of a neighbour."""
    tied = np.zeros(len(order), np.bool_)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in keys:
        ordered = key[order]
        same &= ordered[1:] == ordered[:-1]
    tied[1:] |= same
    tied[:-1] |= same
    return tied


def _full_order(batch: Batch, place: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the canonical order of rows whose tags stand at `place`, by all keys."""
    in_heap = IN_HEAP[batch.kind]
    content = batch.flags & CONTENT_FLAGS
    head = (batch.kind, batch.status, batch.source_ps, batch.source_ticks, place)
    tail = (batch.flags, batch.server_ps, batch.server_ticks, content)
    order = np.lexsort((*tail, np.where(in_heap, 0, batch.bits), *head))
    # Heap values are compared only where everything before the value is equal: rare, so a loop will do.
    tied = _tied(order, *head) & in_heap[order]
    groups = np.flatnonzero(tied)
    if not len(groups):
        return order
    keys = [key[order][groups].tolist() for key in reversed(head)]
    tails = [key[order][groups].tolist() for key in reversed(tail)]
    values = [batch.value_bytes(row) for row in order[groups].tolist()]
    by_value = sorted(range(len(groups)), key=list(zip(*keys, values, *tails, strict=True)).__getitem__)
    order[groups] = order[groups][by_value]
    return order


def digest(batch: Batch, identities: Sequence[str], rank: NDArray[np.uint32]) -> bytes:
    """Return the SHA-256 of the batch's content, the same whatever the order, handles or encoding.

    Rows are put in canonical order and hashed column by column, each with its length in bytes before it
    (8 bytes): sizes of the identities of the tags that occur (sorted, 8 bytes each), the identities in
    UTF-8 end to end, the place of each row's tag among them (4 bytes), then source ticks, server ticks,
    source and server picoseconds, status, flags without AHEAD, kind, fixed-width patterns (8 bytes each),
    sizes of the heap's entries (8 bytes each) and the entries end to end. All integers little endian.

    Args:
        batch: n rows, in any order.
        identities: Identity of the tag by handle (`mirror.tags.Tag.identity`), unique.
        rank: As for `canonical_order`.

    Returns:
        32 bytes.
    """
    return ordered_digest(take(batch, canonical_order(batch, rank)), identities)


def ordered_digest(batch: Batch, identities: Sequence[str]) -> bytes:
    """Return the digest of rows that already stand in canonical order; see `digest`."""
    used = np.unique(batch.handle)
    by_name = sorted(used.tolist(), key=identities.__getitem__)
    names = Heap.of([identities[h].encode() for h in by_name])
    index = np.zeros(int(used[-1]) + 1 if len(used) else 0, np.uint32)
    index[by_name] = np.arange(len(by_name), dtype=np.uint32)
    in_heap = IN_HEAP[batch.kind]
    heap = batch.heap.take(batch.bits[in_heap].astype(np.int64))
    sizes = np.diff(heap.ends, prepend=0)
    sha = hashlib.sha256(b"edgemirror batch 1")
    for column in (
        np.diff(names.ends, prepend=0), names.data, index[batch.handle], batch.source_ticks, batch.server_ticks,
        batch.source_ps, batch.server_ps, batch.status, batch.flags & CONTENT_FLAGS, batch.kind,
        batch.bits[~in_heap], sizes, heap.data,
    ):  # fmt: skip
        data = column if isinstance(column, bytes) else np.ascontiguousarray(column).tobytes()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.digest()


def equal(a: Batch, b: Batch) -> bool:
    """Tell whether two batches hold the same rows in the same order, bit for bit, AHEAD included."""
    if len(a) != len(b) or any((getattr(a, c) != getattr(b, c)).any() for c in _PLAIN_COLUMNS):
        return False
    in_heap = IN_HEAP[a.kind]
    if (a.bits[~in_heap] != b.bits[~in_heap]).any():
        return False
    left, right = (x.heap.take(x.bits[in_heap].astype(np.int64)) for x in (a, b))
    return left.data == right.data and bool((left.ends == right.ends).all())


_PLAIN_COLUMNS = (
    "handle", "source_ticks", "server_ticks", "source_ps", "server_ps", "status", "flags", "kind",
)  # fmt: skip


def subtract(batch: Batch, other: Batch) -> Batch:
    """Return the rows of `batch` whose sample (tag, source time, status, value) does not occur in `other`.

    Server times are not compared: a historian may keep the source's stamp only.
    """
    if not len(batch) or not len(other):
        return batch
    columns = [np.concatenate(pair) for pair in zip(*_sample_columns(batch, other), strict=True)]
    order = np.lexsort(columns)
    first = np.ones(len(order), np.bool_)  # of each run of equal samples
    first[1:] = False
    for column in columns:
        ordered = column[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    run = np.cumsum(first) - 1
    known = np.zeros(int(run[-1]) + 1, np.bool_)
    known[run[order >= len(batch)]] = True
    lost = np.zeros(len(order), np.bool_)
    lost[order] = known[run]
    return take(batch, ~lost[: len(batch)])


def _sample_columns(*batches: Batch) -> Iterator[list[NDArray[Any]]]:
    """Yield for each batch the columns that make a sample the same sample; values in the heap get a number each."""
    numbers: dict[bytes, int] = {}
    for batch in batches:
        values = batch.bits.copy()
        rows = np.flatnonzero(IN_HEAP[batch.kind])
        values[rows] = [numbers.setdefault(batch.heap[i], len(numbers)) for i in batch.bits[rows].tolist()]
        null = batch.flags & SOURCE_NULL
        yield [values, batch.source_ticks, batch.source_ps, batch.status, batch.kind, null, batch.handle]
