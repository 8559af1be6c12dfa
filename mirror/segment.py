"""A segment: samples as a Parquet file that anybody's tools can read, and that gives the same bits back.

One file serves two readers. An analyst opens it with DuckDB, Polars, pyarrow or Spark and finds plain
columns: tag, time, and the value in the column of its type. edgemirror opens the same file and gets every
sample back bit for bit. So each fact stands in one place: what can be worked out from other columns is not
stored a second time, which is also what keeps a change below ten bytes.

The rules that make it safe: only types and encodings that all of those engines read by default; `decode`
believes nothing before it is checked, and whatever is odd is Corrupt; a table of tags is touched only when
the whole file has proved good.

What it does not do: check who wrote a segment and whether its content is the signed one. That is the
header's work (`mirror.chain`), which stands here as opaque bytes. `docs/segment-format.md` is the full text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mirror.batch import (
    AHEAD,
    CONTENT_FLAGS,
    IN_HEAP,
    NO_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
    canonical_order,
    concat,
)
from mirror.errors import Corrupt
from mirror.facts import decode_facts, encode_facts
from mirror.footer import (
    ARROW_ERRORS,
    FACTS_KEY,
    FOOTER_BYTES_MAX,
    FORMAT_KEY,
    HEADER_KEY,
    footer_size,
    read_facts,
    read_format,
    read_header,
)
from mirror.tags import Tag, TagTable
from mirror.ticks import UNIX_EPOCH_TICKS
from mirror.variant import Structure, Texts, body_size

__all__ = [
    "FOOTER_BYTES_MAX", "decode", "decode_facts", "encode", "encode_facts", "footer_size", "read_facts", "read_format",
    "read_header", "read_intervals",
]  # fmt: skip

FORMAT = "1"
ROW_GROUP_ROWS = 32_768
ROWS_MAX = 4 * 1024 * 1024
RAW_BYTES_MAX = 2 * 1024**3  # of all columns, uncompressed, as the footer claims
HEAP_BYTES_MAX = 256 * 1024**2  # as text it may be some times larger, and Arrow's strings have 32-bit offsets

#: `time` holds the years 1900 to 9999: Spark before 4.0 refuses older stamps, and no calendar here has later ones.
TIME_FIRST_TICKS = 94_354_848_000_000_000
TIME_END_TICKS = 2_650_467_744_000_000_000

_WORD = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("source", _WORD, nullable=False),
        pa.field("tag", _WORD, nullable=False),
        pa.field("time", pa.timestamp("us", "UTC")),
        pa.field("time_100ns", pa.int8()),
        pa.field("source_ticks", pa.int64()),
        pa.field("lag", pa.int64()),
        pa.field("server_ticks", pa.int64()),
        pa.field("source_ps", pa.int32(), nullable=False),
        pa.field("server_ps", pa.int32(), nullable=False),
        pa.field("status", pa.int64(), nullable=False),
        pa.field("flags", pa.int16(), nullable=False),
        pa.field("kind", pa.int16(), nullable=False),
        pa.field("interval", pa.int32()),
        pa.field("f64", pa.float64()),
        pa.field("f32", pa.float32()),
        pa.field("i64", pa.int64()),
        pa.field("u64", pa.decimal128(20, 0)),
        pa.field("bool", pa.bool_()),
        pa.field("text", pa.string()),
        pa.field("bytes", pa.binary()),
    ]
)
#: Columns that zstd shrinks best as they are; the others have few distinct values and a dictionary.
_PLAIN = ("time", "source_ticks", "lag", "server_ticks", "f64", "f32", "i64", "u64", "bool", "bytes")

#: Columns by whose bounds a query may skip row groups; bounds of the others would only cost bytes.
_PRUNED = ("source", "tag", "time", "status", "kind", "f64", "f32", "i64")

#: Column of a fixed-width value, by kind; heap kinds and NULL have none.
_COLUMN = {Kind.DOUBLE: "f64", Kind.FLOAT: "f32", Kind.UINT64: "u64", Kind.BOOLEAN: "bool"}
#: Bounds of the kinds that share the column `i64`.
_BOUNDS = {
    Kind.SBYTE: (-(2**7), 2**7 - 1), Kind.BYTE: (0, 2**8 - 1), Kind.INT16: (-(2**15), 2**15 - 1),
    Kind.UINT16: (0, 2**16 - 1), Kind.INT32: (-(2**31), 2**31 - 1), Kind.UINT32: (0, 2**32 - 1),
    Kind.INT64: (-(2**63), 2**63 - 1), Kind.DATETIME: (-(2**63), 2**63 - 1), Kind.STATUSCODE: (0, 2**32 - 1),
}  # fmt: skip
_FLAGS = np.uint8(CONTENT_FLAGS | AHEAD)
#: Kinds of records that are not data changes (`mirror.batch.Kind`): carried, and not looked into.
_RESERVED = ((np.arange(256) & 0x3F) >= Kind.RESERVED_EVENT).tolist()
_IS_I64 = np.zeros(256, np.bool_)
_LOW, _HIGH = np.zeros(256, np.int64), np.zeros(256, np.int64)
for _kind, (_low, _high) in _BOUNDS.items():
    _IS_I64[_kind], _LOW[_kind], _HIGH[_kind] = True, _low, _high

_NULL_STRING = b"\xff\xff\xff\xff"
_END = 2**31 - 1  # of a byte string, for Arrow's slice


# --- Batch to Parquet ---------------------------------------------------------------------------------


def encode(
    batch: Batch,
    tags: TagTable,
    header: bytes,
    *,
    facts: bytes = b"",
    structures: Mapping[str, Mapping[str, Structure]] = {},
    intervals: NDArray[np.int32] | None = None,
    ordered: bool = False,
) -> bytes:
    """Return a segment file.

    Args:
        batch: Rows in any order; they are stored in canonical order. At most ROWS_MAX rows and
            HEAP_BYTES_MAX bytes of heap.
        tags: Knows every handle of the batch.
        header: UTF-8 text for the footer, the signed chain header.
        facts: As made by `encode_facts`, or empty.
        structures: Definitions for the readable text of structures, by ApplicationUri, then encoding id.
        intervals: int32[n], for each row of `batch` the place, in the header's list, of the interval that it was
            published in; None where no row has one.
        ordered: The rows stand in canonical order already.
    """
    assert len(batch) <= ROWS_MAX, f"{len(batch)} rows; cut segments at {ROWS_MAX}"
    assert len(batch.heap.data) <= HEAP_BYTES_MAX, f"{len(batch.heap.data)} bytes; cut segments at {HEAP_BYTES_MAX}"
    assert not (batch.flags & ~_FLAGS).any(), "a flag that format 1 does not have"
    assert not ordered or (np.diff(tags.rank[batch.handle].astype(np.int64)) >= 0).all(), "rows are not in order"
    footer_bytes = len(header) + len(facts) * 4 // 3
    assert footer_bytes < FOOTER_BYTES_MAX // 2, f"{footer_bytes} bytes of header and facts; tell less at a time"
    header.decode()  # the footer's key-value store is text; readers written in Rust insist
    assert intervals is None or len(intervals) == len(batch)
    rows = batch
    if not ordered:
        order = canonical_order(batch, tags.rank)
        rows, intervals = _reorder(batch, order), None if intervals is None else intervals[order]
    bodies, texts = _binary(batch.heap), Texts(structures)
    out = pa.BufferOutputStream()
    writer = _writer(out)
    for start in range(0, len(rows), ROW_GROUP_ROWS):
        part = _reorder(rows, slice(start, start + ROW_GROUP_ROWS))
        columns = _tag_columns(part, tags) | _time_columns(part) | _value_columns(part)
        columns |= _heap_columns(part, bodies, texts, tags)
        columns["interval"] = _interval_column(intervals, start, len(part))
        writer.write_table(pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA))
    keys = {FORMAT_KEY: FORMAT.encode(), HEADER_KEY: header}
    writer.add_key_value_metadata(keys | ({FACTS_KEY: base64.b64encode(facts)} if facts else {}))
    writer.close()
    data: bytes = out.getvalue().to_pybytes()
    return data


def _writer(out: pa.BufferOutputStream) -> Any:
    return pq.ParquetWriter(
        out,
        SCHEMA,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in SCHEMA.names if name not in _PLAIN],
        dictionary_pagesize_limit=1024**2,
        write_statistics=list(_PRUNED),
        store_schema=False,
        write_page_checksum=True,
    )


def _reorder(batch: Batch, order: Any) -> Batch:
    """Return rows by index or slice; the heap stays as it is, so nothing of it is copied."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "heap"}
    return Batch(**{name: column[order] for name, column in columns.items()}, heap=batch.heap)


def _tag_columns(rows: Batch, tags: TagTable) -> dict[str, pa.Array]:
    """Rows of a tag stand together, so a dictionary is the list of runs."""
    first = np.flatnonzero(np.diff(rows.handle, prepend=rows.handle[0] ^ np.uint32(1)))
    runs = np.diff(first, append=len(rows))
    handles = rows.handle[first].tolist()
    sources = [tags.tags[h].source for h in handles]
    nodes = [tags.identities[h].partition("\n")[2] for h in handles]
    if sources.count(sources[0]) == len(sources):  # then no node comes twice
        return {"source": _words(sources[:1], np.array([len(rows)])), "tag": _words(nodes, runs)}
    return {"source": _words(sources, runs), "tag": _words(nodes, runs)}


def _words(words: list[str], runs: NDArray[np.int64]) -> pa.DictionaryArray:
    """Return each word as often as its run is long."""
    strings = pa.array(words, pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(np.repeat(strings.indices.to_numpy(), runs), strings.dictionary)


def _time_columns(rows: Batch) -> dict[str, pa.Array]:
    has_source, has_server = (rows.flags & SOURCE_NULL) == 0, (rows.flags & SERVER_NULL) == 0
    near = has_source & (rows.source_ticks >= TIME_FIRST_TICKS) & (rows.source_ticks < TIME_END_TICKS)
    micros = (rows.source_ticks - UNIX_EPOCH_TICKS) // 10
    rest = (rows.source_ticks - (micros * 10 + UNIX_EPOCH_TICKS)).astype(np.int8)
    return {
        "time": _nullable(micros, near, pa.int64()).cast(pa.timestamp("us", "UTC")),
        "time_100ns": _nullable(rest, near, pa.int8()),
        "source_ticks": _nullable(rows.source_ticks, has_source & ~near, pa.int64()),
        "lag": _nullable(rows.server_ticks - rows.source_ticks, has_source & has_server, pa.int64()),
        "server_ticks": _nullable(rows.server_ticks, has_server & ~has_source, pa.int64()),
        "source_ps": pa.array(rows.source_ps.astype(np.int32)),
        "server_ps": pa.array(rows.server_ps.astype(np.int32)),
        "status": pa.array(rows.status.astype(np.int64)),
        "flags": pa.array(rows.flags.astype(np.int16)),
        "kind": pa.array(rows.kind.astype(np.int16)),
    }


def _value_columns(rows: Batch) -> dict[str, pa.Array]:
    f32 = rows.bits.astype(np.uint32).view(np.float32)
    return {
        "f64": _nullable(rows.bits.view(np.float64), rows.kind == Kind.DOUBLE, pa.float64()),
        "f32": _nullable(f32, rows.kind == Kind.FLOAT, pa.float32()),
        "i64": _nullable(rows.bits.view(np.int64), _IS_I64[rows.kind], pa.int64()),
        "u64": _decimals(rows.bits, rows.kind == Kind.UINT64),
        "bool": _nullable(rows.bits != 0, rows.kind == Kind.BOOLEAN, pa.bool_()),
    }


def _nullable(values: NDArray[Any], present: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    if not present.any():
        return pa.nulls(len(values), kind)
    return pa.array(values, kind, mask=None if present.all() else ~present, from_pandas=False)


def _decimals(bits: NDArray[np.uint64], present: NDArray[np.bool_]) -> pa.Array:
    """A 128-bit decimal is the number itself in 16 bytes, little endian."""
    if not present.any():
        return pa.nulls(len(bits), pa.decimal128(20, 0))
    wide = np.zeros((len(bits), 2), np.uint64)
    wide[:, 0] = bits
    valid = pa.py_buffer(np.packbits(present, bitorder="little").tobytes())
    return pa.Array.from_buffers(pa.decimal128(20, 0), len(bits), [valid, pa.py_buffer(wide.tobytes())])


def _interval_column(intervals: NDArray[np.int32] | None, start: int, count: int) -> pa.Array:
    return pa.nulls(count, pa.int32()) if intervals is None else pa.array(intervals[start : start + count], pa.int32())


def _heap_columns(rows: Batch, bodies: pa.Array, texts: Texts, tags: TagTable) -> dict[str, pa.Array]:
    """Return `text` and `bytes`; a regular String stands in `text` alone, a null String in neither."""
    n, where = len(rows), np.flatnonzero(IN_HEAP[rows.kind])
    if len(where) == 0:
        return {"text": pa.nulls(n, pa.string()), "bytes": pa.nulls(n, pa.binary())}
    body, kind = bodies.take(pa.array(rows.bits[where].view(np.int64))).cast(pa.binary()), rows.kind[where]
    size = np.diff(_offsets(body))
    claim = np.where(kind == Kind.STRING, _prefixes(body), -2)
    null = (claim == -1) & (size == 4)
    plain = (claim >= 0) & (claim == size - 4)
    strings, good = _utf8(pc.binary_slice(body.filter(pa.array(plain)), 4, _END))
    plain[np.flatnonzero(plain)[~good]] = False
    other = ~(plain | null)
    exact = body.filter(pa.array(other))
    sources = [tags.tags[h].source for h in rows.handle[where[other]].tolist()]
    told = [texts.of(k, b, s) for k, b, s in zip(kind[other].tolist(), exact.to_pylist(), sources, strict=True)]
    return {
        "text": _scatter(pa.concat_arrays([strings, pa.array(told, pa.string())]), [where[plain], where[other]], n),
        "bytes": _scatter(exact, [where[other]], n),
    }


def _scatter(values: pa.Array, rows: list[NDArray[np.int64]], n: int) -> pa.Array:
    """Lay values, in order, at the rows given, among n rows that are null elsewhere."""
    index, empty = np.zeros(n, np.int64), np.ones(n, np.bool_)
    at = np.concatenate(rows)
    index[at], empty[at] = np.arange(len(at)), False
    return values.take(pa.array(index, mask=empty))


def _binary(heap: Heap) -> pa.Array:
    """Return the heap as an Arrow array over the same bytes."""
    ends = pa.py_buffer(np.concatenate((np.zeros(1, np.int64), heap.ends)))
    return pa.Array.from_buffers(pa.large_binary(), len(heap), [None, ends, pa.py_buffer(heap.data)])


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    """Return int64[n+1], where each entry of a binary or string array starts and the last one ends."""
    _, ends, _ = array.buffers()
    return np.frombuffer(ends, np.int32, len(array) + 1, array.offset * 4).astype(np.int64)


def _prefixes(body: pa.Array) -> NDArray[np.int64]:
    """Return the first four bytes of each entry as an int32; -2 where there are fewer."""
    start = _offsets(body)
    long = np.diff(start) >= 4
    data = np.frombuffer(body.buffers()[2] or b"", np.uint8)
    first = np.full(len(body), -2, np.int64)
    first[long] = data[start[:-1][long][:, None] + np.arange(4)].view("<i4")[:, 0]
    return first


def _utf8(raw: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Return the entries that are UTF-8 as strings, and which of all they are."""
    try:
        return raw.cast(pa.string()), np.ones(len(raw), np.bool_)
    except pa.ArrowInvalid:
        loose = raw.cast(pa.string(), safe=False)
        good = pc.string_is_ascii(loose).to_numpy(zero_copy_only=False).copy()
        for i in np.flatnonzero(~good).tolist():
            good[i] = _is_utf8(raw[i].as_py())
        return raw.filter(pa.array(good)).cast(pa.string()), good


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- Parquet to Batch ---------------------------------------------------------------------------------


def decode(data: bytes, tags: TagTable | None = None) -> tuple[Batch, TagTable]:
    """Return a segment's rows, in the order of the file, and the table that knows their handles.

    Args:
        data: The whole file.
        tags: Gets the tags that it does not know, with the facts of this segment where it has them;
            tags that it knows stay as they are. Without it a new table is made.

    Raises:
        Corrupt: Not a segment, or not the one it was written as; `tags` is as it was.
    """
    if (known := read_format(data)) != FORMAT:
        raise Corrupt(f"a segment of format {known[:20]}; this program reads format {FORMAT}", hint="update edgemirror")
    table = TagTable() if tags is None else tags
    seen = _Seen(table)
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data),
            read_dictionary=["source", "tag"],
            page_checksum_verification=True,
            pre_buffer=False,
            thrift_string_size_limit=FOOTER_BYTES_MAX,
            thrift_container_size_limit=1_000_000,
        )
        _check_claims(file.metadata, file.schema_arrow)
        parts = [_rows(_read(file, i), seen) for i in range(file.metadata.num_row_groups)]
        batch = concat([part for part in parts if len(part)])
    except ARROW_ERRORS as error:
        raise Corrupt(f"a segment of {len(data)} bytes cannot be read: {str(error)[:200]}") from error
    facts = read_facts(data) if seen.new else b""
    place = seen.settle(decode_facts(facts)[0] if facts else ())
    return replace(batch, handle=place[batch.handle]), table


def read_intervals(data: bytes, count: int) -> NDArray[np.int32]:
    """Return the column `interval` of a segment that `decode` has read.

    Args:
        data: The whole file.
        count: Number of intervals in its header.

    Returns:
        int32[n], in the order of the file.

    Raises:
        Corrupt: A row names no interval of the header.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), columns=["interval"], use_threads=False)
        places = table.column("interval").fill_null(-1).to_numpy()
    except ARROW_ERRORS as error:
        raise Corrupt(f"the intervals of a segment cannot be read: {str(error)[:200]}") from error
    if ((places < 0) | (places >= count)).any():
        raise Corrupt(f"rows name intervals {places.min()} to {places.max()}; the header has {count}")
    found: NDArray[np.int32] = places.astype(np.int32)
    return found


def _check_claims(metadata: Any, schema: pa.Schema) -> None:
    """Check what the footer says before anything is allocated on its word.

    Metadata of single column chunks is not touched: asked for a broken one, pyarrow ends the process.
    """
    if not schema.equals(SCHEMA):
        raise Corrupt(f"the columns are not those of a segment: {str(schema)[:500]}")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows, raw = [g.num_rows for g in groups], sum(abs(g.total_byte_size) for g in groups)
    if metadata.num_rows != sum(rows) or metadata.num_rows > ROWS_MAX or any(not 0 < n <= ROWS_MAX for n in rows):
        raise Corrupt(f"the footer claims {metadata.num_rows} rows in groups of {rows[:9]}; {ROWS_MAX} is the most")
    if raw > RAW_BYTES_MAX:
        raise Corrupt(f"the footer claims {raw} bytes; {RAW_BYTES_MAX} is the most")


def _read(file: Any, group: int) -> dict[str, pa.Array]:
    table = file.read_row_group(group, use_threads=False)
    if table.num_rows != file.metadata.row_group(group).num_rows:
        raise Corrupt(f"row group {group} has {table.num_rows} rows, not those that the footer claims")
    table = table.unify_dictionaries().combine_chunks()
    columns = {name: table.column(name).chunk(0) for name in SCHEMA.names}
    for name in ("source", "tag", "text"):
        columns[name].validate(full=True)
    for field in SCHEMA:
        if not field.nullable and columns[field.name].null_count:
            raise Corrupt(f"column {field.name} has nulls")
    return columns


def _rows(columns: Mapping[str, pa.Array], seen: _Seen) -> Batch:
    kind, flags = _bounded(columns["kind"], 2**8, np.uint8), _bounded(columns["flags"], 2**8, np.uint8)
    _same(flags & ~_FLAGS, np.zeros(1, np.uint8), "flags are those of format 1")
    _same((flags & NO_VALUE != 0) & (kind != Kind.NULL), np.zeros(1, np.bool_), "without a value kind is 0")
    source_ticks, server_ticks = _times(columns, flags)
    bits = _bits(columns, kind)
    heap = _heap(columns["text"], columns["bytes"], kind)
    bits[IN_HEAP[kind]] = np.arange(len(heap), dtype=np.uint64)
    return Batch(
        _handles(columns["source"], columns["tag"], seen), source_ticks, server_ticks,
        _bounded(columns["source_ps"], 2**16, np.uint16), _bounded(columns["server_ps"], 2**16, np.uint16),
        _bounded(columns["status"], 2**32, np.uint32), flags, kind, bits, heap,
    )  # fmt: skip


def _bounded(column: pa.Array, end: int, dtype: Any) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if ((values < 0) | (values >= end)).any():
        raise Corrupt(f"a column has {values.min()} to {values.max()}; 0 to {end - 1} are legal")
    return values.astype(dtype)


def _filled(column: pa.Array) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return values, 0 where null, and where there is one."""
    if column.null_count == 0:
        return column.to_numpy(zero_copy_only=False), np.ones(len(column), np.bool_)
    filled = column.fill_null(pa.scalar(0, column.type))
    return filled.to_numpy(zero_copy_only=False), column.is_valid().to_numpy(zero_copy_only=False)


def _times(columns: Mapping[str, pa.Array], flags: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    micros, near = _filled(columns["time"].cast(pa.int64()))
    rest, rest_near = _filled(columns["time_100ns"])
    far_ticks, far = _filled(columns["source_ticks"])
    lag, lagged = _filled(columns["lag"])
    alone_ticks, alone = _filled(columns["server_ticks"])
    has_source, has_server = (flags & SOURCE_NULL) == 0, (flags & SERVER_NULL) == 0
    _same(rest_near, near, "time_100ns stands where time does")
    _same(near ^ far, has_source, "a source time stands in time or in source_ticks")
    _same(near & far, np.zeros(1, np.bool_), "a source time stands in time or in source_ticks")
    _same(lagged, has_source & has_server, "lag stands where both times do")
    _same(alone, has_server & ~has_source, "server_ticks stands where there is no source time")
    ticks = np.where(near, micros * 10 + UNIX_EPOCH_TICKS + rest, far_ticks)
    inside = (ticks >= TIME_FIRST_TICKS) & (ticks < TIME_END_TICKS) & has_source
    _same((rest >= 0) & (rest <= 9), np.ones(1, np.bool_), "time_100ns is 0 to 9")
    # Microseconds far out of range wrap when multiplied and might come back inside.
    bounds = (np.array([TIME_FIRST_TICKS, TIME_END_TICKS]) - UNIX_EPOCH_TICKS) // 10
    _same(near & ((micros < bounds[0]) | (micros >= bounds[1])), np.zeros(1, np.bool_), "time is 1900 to 9999")
    _same(inside, near, "time holds what it can hold")
    return ticks, np.where(lagged, ticks + lag, alone_ticks)


def _same(found: NDArray[Any], wanted: NDArray[Any], rule: str) -> None:
    if (found != wanted).any():
        raise Corrupt(f"{int((found != wanted).sum())} rows break the rule: {rule}")


def _bits(columns: Mapping[str, pa.Array], kind: NDArray[np.uint8]) -> NDArray[np.uint64]:
    i64, present = _filled(columns["i64"])
    _same(present, _IS_I64[kind], "i64 stands where the kind says")
    _same((i64 >= _LOW[kind]) & (i64 <= _HIGH[kind]), np.ones(1, np.bool_), "i64 is within its kind")
    bits = i64.view(np.uint64).copy()
    for of, name in _COLUMN.items():
        column, here = columns[name], kind == of
        _same(column.is_valid().to_numpy(zero_copy_only=False), here, f"{name} stands where the kind says")
        if not here.any():
            continue
        if name == "u64":
            wide = np.frombuffer(column.buffers()[1], np.uint64, 2 * len(column), 16 * column.offset).reshape(-1, 2)
            _same(wide[here, 1] == 0, np.ones(1, np.bool_), "u64 is 0 to 2^64-1")
            bits[here] = wide[here, 0]
        else:
            values = column.drop_null().to_numpy(zero_copy_only=False)
            bits[here] = values.view(f"u{values.dtype.itemsize}")
    return bits


def _heap(text: pa.Array, body: pa.Array, kind: NDArray[np.uint8]) -> Heap:
    """Return the bodies of the rows whose value lies in the heap, in the order of the rows."""
    in_heap = IN_HEAP[kind]
    has_text, has_body = (c.is_valid().to_numpy(zero_copy_only=False) for c in (text, body))
    _same((has_text | has_body) & ~in_heap, np.zeros(1, np.bool_), "text and bytes stand where the kind says")
    _same(in_heap & (kind != Kind.STRING) & ~has_body, np.zeros(1, np.bool_), "bytes stand where the kind says")
    _same(has_body & ~has_text, np.zeros(1, np.bool_), "text stands wherever bytes do")
    if not in_heap.any():
        return NO_HEAP
    for k, entry in zip(kind[has_body].tolist(), body.drop_null().to_pylist(), strict=True):
        if not _RESERVED[k] and body_size(entry, 0, k) != len(entry):
            raise Corrupt(f"{len(entry)} bytes are not one value of kind 0x{k:02x}")
    plain = has_text & ~has_body
    null = in_heap & ~has_text
    strings = text.filter(pa.array(plain)).cast(pa.binary())
    size = np.diff(_offsets(strings)).astype(np.int32)
    four = pa.py_buffer(np.arange(0, 4 * len(size) + 1, 4, dtype=np.int32))
    prefix = pa.Array.from_buffers(pa.binary(), len(size), [None, four, pa.py_buffer(size)])
    bodies = [
        pc.binary_join_element_wise(prefix, strings, b""), pa.array([_NULL_STRING], pa.binary()),
        body.filter(pa.array(has_body)),
    ]  # fmt: skip
    index = np.zeros(len(kind), np.int64)
    index[plain] = np.arange(len(size))
    index[null] = len(size)
    index[has_body] = len(size) + 1 + np.arange(int(has_body.sum()))
    laid = pa.concat_arrays(bodies).take(pa.array(index[in_heap]))
    ends = _offsets(laid)[1:]
    return Heap(ends, (laid.buffers()[2] or pa.py_buffer(b"")).to_pybytes()[: int(ends[-1])])


def _handles(source: pa.Array, tag: pa.Array, seen: _Seen) -> NDArray[np.uint32]:
    """Look up one tag per run of rows; in a file in canonical order there is one run per tag."""
    sources, nodes = source.dictionary.to_pylist(), tag.dictionary.to_pylist()
    s, t = source.indices.to_numpy().astype(np.int64), tag.indices.to_numpy().astype(np.int64)
    first = np.flatnonzero(np.diff(s, prepend=-1) | np.diff(t, prepend=-1))
    handles = [seen.handle(sources[i], nodes[k]) for i, k in zip(s[first].tolist(), t[first].tolist(), strict=True)]
    return np.repeat(np.array(handles, np.uint32), np.diff(first, append=len(s)))


class _Seen:
    """The tags of one file: which the table knows, and those that it will get when all else is read."""

    def __init__(self, table: TagTable) -> None:
        self.table = table
        self.prefix: dict[str, str] = {}
        self.number: dict[tuple[str, str], int] = {}
        self.known: list[int] = []
        self.new: dict[int, Tag] = {}

    def handle(self, source: str, node: str) -> int:
        """Return the number of a tag within the file; see `settle`."""
        number = self.number.get((source, node))
        if number is None:
            number = self.number[source, node] = len(self.known)
            if source not in self.prefix:  # all identities of a source begin alike
                self.prefix[source] = Tag(source, "", "").identity.partition("\n")[0]
            known = self.table.find(f"{self.prefix[source]}\n{node}")
            self.known.append(0 if known is None else known)
            if known is None:
                self.new[number] = _tag(source, node)
        return number

    def settle(self, facts: Iterable[Tag]) -> NDArray[np.uint32]:
        """Add the new tags, with facts where there are any; return handles of the table by number."""
        told = {tag.identity: tag for tag in facts}
        for number, tag in self.new.items():
            self.known[number] = self.table.add(told.get(tag.identity, tag))
        return np.array(self.known, np.uint32)


def _tag(source: str, node: str) -> Tag:
    """Take an ExpandedNodeId string apart."""
    uri, _, identifier = node.removeprefix("nsu=").partition(";")
    tag = Tag(source, uri.replace("%3B", ";").replace("%25", "%"), identifier)
    if tag.node != node or identifier[:2] not in ("i=", "s=", "g=", "b="):
        raise Corrupt(f"{node[:200]!r} of {source[:200]!r} is not a tag; nsu=<namespace URI>;<identifier> is")
    return tag
