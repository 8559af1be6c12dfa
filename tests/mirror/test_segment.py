"""Segments: what goes in comes out bit for bit, people's tools read it, and odd files are refused."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror import chunk, segment, variant
from mirror.batch import (
    AHEAD,
    ARRAY,
    IN_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Kind,
    canonical_order,
    concat,
    digest,
    equal,
    ordered_digest,
    take,
)
from mirror.errors import Corrupt
from mirror.tags import Tag, TagTable
from mirror.variant import Structure, StructureField, encode, readable
from tests.bench import mix
from tests.mirror.batches import DAY, MAX_DATETIME_TICKS, NOW_TICKS, SECOND, batches, from_rows, table

GOLDEN = Path(__file__).parent.parent / "golden"
GOOD = 0
TAGS = table()
HEADER = '{"note":"a header is text, also beyond ASCII: µ"}'.encode()
SPARK_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "DELTA_BINARY_PACKED"}
Rows = list[tuple[Any, ...]]


def bits(number: float, code: str) -> int:
    return int.from_bytes(struct.pack(code, number), "little")


def every_kind() -> Batch:
    """One row of each kind and each oddity, by hand, so that the expected columns can be written down."""
    t = NOW_TICKS
    value: Rows = [
        (Kind.DOUBLE, bits(1.5, "<d")), (Kind.DOUBLE, 0x7FF0000000000001), (Kind.DOUBLE, 1 << 63),
        (Kind.FLOAT, bits(0.25, "<f")), (Kind.FLOAT, 0xFFA00001), (Kind.BOOLEAN, 1), (Kind.BOOLEAN, 0),
        (Kind.SBYTE, 2**64 - 128), (Kind.BYTE, 255), (Kind.INT16, 2**64 - 32768), (Kind.UINT16, 65535),
        (Kind.INT32, 2**64 - 2**31), (Kind.UINT32, 2**32 - 1), (Kind.INT64, 1 << 63), (Kind.UINT64, 2**64 - 1),
        (Kind.DATETIME, t), (Kind.STATUSCODE, 0x80310000), (Kind.NULL, 0),
        (Kind.STRING, encode(Kind.STRING, "läuft")), (Kind.STRING, encode(Kind.STRING, "")),
        (Kind.STRING, encode(Kind.STRING, None)), (Kind.STRING, b"\x02\0\0\0\xff\xfe"),
        (Kind.BYTESTRING, encode(Kind.BYTESTRING, b"\0\1")), (Kind.DOUBLE | ARRAY, encode(0x8B, [1.5, -2.0, 1e300])),
        (Kind.STRING | ARRAY, encode(0x8C, ["a", None])),
        (Kind.EXTENSIONOBJECT, encode(Kind.EXTENSIONOBJECT, {"type": "ns=2;i=5001", "body": b"\x07\0\0\0"})),
    ]  # fmt: skip
    rows = [(i % 6, t + i * SECOND, t + i * SECOND + 3, 0, 0, GOOD, 0, *v) for i, v in enumerate(value)]
    stamps = [
        (0, t, SOURCE_NULL), (t, 0, SERVER_NULL), (0, 0, SOURCE_NULL | SERVER_NULL), (t, t - 5 * DAY, AHEAD),
        (0, t, 0), (-1, 1, 0), (MAX_DATETIME_TICKS, t, 0), (MAX_DATETIME_TICKS + 1, t, 0), (-(2**63), 2**63 - 1, 0),
        (segment.TIME_FIRST_TICKS, t, 0), (segment.TIME_FIRST_TICKS - 1, t, 0), (t + 7, t, NO_VALUE),
    ]  # fmt: skip
    rows += [(i % 6, s, v, 9999, 65535, 0x80050000, f, Kind.NULL, 0) for i, (s, v, f) in enumerate(stamps)]
    return from_rows(rows)


def plant(rows: int, tags: int = 1000) -> tuple[Batch, TagTable]:
    parts = list(mix.mix(tags, -(-rows // tags)))
    return take(concat(parts), np.arange(rows)), TagTable(mix.tags(tags))


def ordered(batch: Batch, tags: TagTable) -> Batch:
    return take(batch, canonical_order(batch, tags.rank))


def columns(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


# --- full fidelity ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=40))
def test_any_batch_comes_back_bit_for_bit_in_canonical_order(batch: Batch) -> None:
    data = segment.encode(batch, TAGS, HEADER)
    rows, tags = segment.decode(data, TAGS)
    assert tags is TAGS
    assert equal(rows, ordered(batch, TAGS))
    assert segment.read_header(data) == HEADER


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=40))
def test_the_digest_outlives_the_handles(batch: Batch) -> None:
    rows, tags = segment.decode(segment.encode(batch, TAGS, HEADER))
    assert ordered_digest(rows, tags.identities) == digest(batch, TAGS.identities, TAGS.rank)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=30))
def test_text_is_the_readable_form_of_every_heap_value(batch: Batch) -> None:
    text = columns(segment.encode(batch, TAGS, HEADER))["text"].to_pylist()
    rows = ordered(batch, TAGS)
    for i in range(len(rows)):
        kind, body = int(rows.kind[i]), rows.value_bytes(i)
        if not IN_HEAP[kind] or (kind == Kind.STRING and body == b"\xff" * 4):
            assert text[i] is None
        else:
            assert text[i] == readable(kind, body)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=30), st.randoms(use_true_random=False))
def test_the_same_content_is_the_same_file_whatever_its_order(batch: Batch, shuffle: random.Random) -> None:
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    other = take(batch, np.array(order, np.int64))
    assert segment.encode(batch, TAGS, HEADER) == segment.encode(other, TAGS, HEADER)


def test_more_names_and_texts_than_a_dictionary_holds_survive() -> None:
    n = 30_000
    tags = TagTable(Tag("urn:s" * 20, "urn:n", f"s={'x' * 120}{i}") for i in range(n))
    texts = [encode(Kind.STRING, f"{'y' * 120}{i}" if i % 3 else None) for i in range(n)]
    batch = from_rows([(i, NOW_TICKS, NOW_TICKS, 0, 0, 0, 0, Kind.STRING, texts[i]) for i in range(n)])
    data = segment.encode(batch, tags, HEADER)
    names = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(1)
    assert names.total_uncompressed_size > 2 * 1024**2, "the limit of a dictionary is 1 MiB"
    assert equal(segment.decode(data, tags)[0], ordered(batch, tags))
    assert segment.decode(data)[1].tags == [tags[h] for h in np.argsort(tags.rank).tolist()]


def test_rows_survive_across_row_groups_with_heap_and_stale_stamps() -> None:
    batch, tags = plant(2 * segment.ROW_GROUP_ROWS + 17)
    data = segment.encode(batch, tags, HEADER)
    assert pq.read_metadata(pa.BufferReader(data)).num_row_groups == 3
    rows, _ = segment.decode(data, tags)
    assert equal(rows, ordered(batch, tags))


def test_a_segment_without_rows_still_has_header_and_columns() -> None:
    data = segment.encode(Batch.zeros(0), TagTable(), HEADER, facts=segment.encode_facts(TAGS.tags, {}))
    rows, tags = segment.decode(data)
    assert (len(rows), len(tags), segment.read_header(data)) == (0, 0, HEADER)
    assert columns(data).num_rows == 0
    assert len(columns(data).column_names) == len(segment.SCHEMA.names)


def test_a_string_that_splits_a_character_with_its_neighbour_is_not_taken_for_text() -> None:
    halves: Rows = [
        (0, NOW_TICKS, 0, 0, 0, 0, SERVER_NULL, Kind.STRING, b"\1\0\0\0\xc3"),
        (0, NOW_TICKS + 1, 0, 0, 0, 0, SERVER_NULL, Kind.STRING, b"\1\0\0\0\xa4"),
    ]
    batch = from_rows(halves)
    data = segment.encode(batch, TAGS, HEADER)
    assert columns(data)["bytes"].null_count == 0
    assert equal(segment.decode(data, TAGS)[0], batch)


def test_structures_are_told_by_their_definition() -> None:
    point = Structure("Point", fields=(StructureField("x", int(Kind.INT32)),))
    structures = {source: {"ns=2;i=5001": point} for source in {tag.source for tag in TAGS.tags}}
    data = segment.encode(every_kind(), TAGS, HEADER, structures=structures)
    assert '{"x":7}' in columns(data)["text"].to_pylist()
    assert equal(segment.decode(data, TAGS)[0], ordered(every_kind(), TAGS))


# --- tags ---------------------------------------------------------------------------------------------


def test_unknown_tags_are_added_and_known_ones_keep_handle_and_facts() -> None:
    known = Tag(TAGS[3].source, TAGS[3].namespace, TAGS[3].identifier, unit="bar")
    mine = TagTable([Tag("urn:other", "urn:x", "i=1"), known])
    batch = every_kind()
    rows, same = segment.decode(segment.encode(batch, TAGS, HEADER, facts=segment.encode_facts(TAGS.tags, {})), mine)
    assert same is mine
    assert len(mine) == 7
    assert mine[1] == known
    assert [mine.identities[h] for h in rows.handle] == [TAGS.identities[h] for h in ordered(batch, TAGS).handle]
    assert mine[mine.find(TAGS.identities[5]) or 0].name == "tag5", "facts of the segment came along"


@pytest.mark.parametrize("uri", ["urn:a;b%c", "http://x/y z", "%3B", "", "%253B;"])
@pytest.mark.parametrize(
    "identifier", ["i=85", "s=a;b%3B\n\t'\"", "g=09087e75-8e5e-499b-954f-f2a9603db28a", "b=AAE=", "s="]
)
def test_tags_survive_whatever_their_names_hold(uri: str, identifier: str) -> None:
    tags = TagTable([Tag("urn:s;%\n", uri, identifier)])
    batch = from_rows([(0, NOW_TICKS, NOW_TICKS, 0, 0, 0, 0, Kind.BOOLEAN, 1)])
    _, found = segment.decode(segment.encode(batch, tags, HEADER))
    assert found.tags == tags.tags


def test_same_node_of_two_sources_is_two_tags() -> None:
    tags = TagTable([Tag("urn:b", "urn:m", "i=1"), Tag("urn:a", "urn:m", "i=1"), Tag("urn:a", "urn:m", "i=2")])
    batch = from_rows([(h, NOW_TICKS, NOW_TICKS, 0, 0, 0, 0, Kind.BYTE, h) for h in (0, 1, 2)])
    rows, found = segment.decode(segment.encode(batch, tags, HEADER))
    assert [(found[h].source, found[h].identifier, int(v)) for h, v in zip(rows.handle, rows.bits, strict=True)] == [
        ("urn:a", "i=1", 1), ("urn:a", "i=2", 2), ("urn:b", "i=1", 0),
    ]  # fmt: skip


def test_facts_travel_in_the_footer() -> None:
    facts = segment.encode_facts(TAGS.tags, {})
    data = segment.encode(every_kind(), TAGS, HEADER, facts=facts)
    assert segment.read_facts(data) == facts
    assert segment.read_facts(segment.encode(every_kind(), TAGS, HEADER)) == b""
    with pytest.raises(Corrupt, match="base64"):
        segment.read_facts(rewritten(one(), {}, {b"edgemirror.facts": b"~~~"}))


def test_header_and_facts_are_read_from_the_end_of_the_file_alone() -> None:
    facts = segment.encode_facts(TAGS.tags, {})
    data = segment.encode(every_kind(), TAGS, HEADER, facts=facts)
    tail = data[-segment.footer_size(data[-8:]) :]
    assert len(tail) < len(data)
    assert (segment.read_header(tail), segment.read_facts(tail)) == (HEADER, facts)
    with pytest.raises(Corrupt, match="does not fit"):
        segment.read_header(tail[1:])


# --- people's tools -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Batch, TagTable]:
    batch, tags = plant(40_000)
    path = tmp_path_factory.mktemp("segments") / "0.parquet"
    path.write_bytes(segment.encode(batch, tags, HEADER))
    return path, ordered(batch, tags), tags


def sums(rows: Batch) -> dict[str, float]:
    """What every engine has to find, from the batch itself."""
    double, single = rows.kind == Kind.DOUBLE, rows.kind == Kind.FLOAT
    whole = np.isin(rows.kind, [Kind.UINT16, Kind.INT32, Kind.UINT32, Kind.INT64])
    return {
        "n": len(rows),
        "tags": len(np.unique(rows.handle)),
        "lag": int((rows.server_ticks - rows.source_ticks).sum()),
        "f64": float(rows.bits[double].view(np.float64).sum()),
        "f32": float(rows.bits[single].astype(np.uint32).view(np.float32).astype(np.float64).sum()),
        "i64": int(rows.bits[whole].view(np.int64).sum()),
        "bool": int(rows.bits[rows.kind == Kind.BOOLEAN].sum()),
        "text": int(IN_HEAP[rows.kind].sum()),
        "bytes": sum(len(rows.value_bytes(i)) for i in np.flatnonzero(rows.kind == Kind.DOUBLE | ARRAY)),
        "bad": int((rows.status >= 0x80000000).sum()),
        "first": int(rows.source_ticks.min() - segment.UNIX_EPOCH_TICKS) // 10,
        "last": int(rows.source_ticks.max() - segment.UNIX_EPOCH_TICKS) // 10,
        "rest": int((rows.source_ticks % 10).sum()),
    }


QUERY = """
    SELECT count(*), count(DISTINCT tag), sum(lag), sum(f64), sum(f32::DOUBLE), sum(i64), sum(bool::INT), count(text),
        sum(octet_length(bytes)), count_if(status >= 2147483648), epoch_us(min(time)), epoch_us(max(time)),
        sum(time_100ns)
    FROM read_parquet(?)"""


def test_duckdb_reads_every_column_and_adds_up_right(plant_file: tuple[Path, Batch, TagTable]) -> None:
    path, rows, tags = plant_file
    db = duckdb.connect()
    found = db.execute(QUERY, [str(path)]).fetchone()
    assert found == pytest.approx(tuple(sums(rows).values()), rel=1e-9)
    assert sums(rows)["lag"] > 2**40, "a sum that 32 bits would not hold"
    node = tags[7].node
    one = db.execute("SELECT count(*), max(f64) FROM read_parquet(?) WHERE tag = ?", [str(path), node]).fetchone()
    mine = rows.bits[rows.handle == 7].view(np.float64)
    assert one == (len(mine), mine.max())


def test_polars_reads_every_column_and_adds_up_right(plant_file: tuple[Path, Batch, TagTable]) -> None:
    path, rows, _ = plant_file
    found = pl.scan_parquet(path).select(
        pl.len().alias("n"), pl.col("tag").n_unique().alias("tags"), pl.col("lag", "f64").sum(),
        pl.col("f32").cast(pl.Float64).sum(), pl.col("i64", "bool").sum(), pl.col("text").count(),
        pl.col("bytes").bin.size().cast(pl.Int64).sum(), (pl.col("status") >= 0x80000000).sum().alias("bad"),
        pl.col("time").min().dt.epoch("us").alias("first"), pl.col("time").max().dt.epoch("us").alias("last"),
        pl.col("time_100ns").sum().alias("rest"),
    )  # fmt: skip
    assert found.collect().row(0, named=True) == pytest.approx(sums(rows), rel=1e-9)


@pytest.mark.parametrize("read", [pq.read_table, lambda path: ds.dataset(path).to_table()], ids=["table", "dataset"])
def test_pyarrow_reads_every_column_and_adds_up_right(plant_file: tuple[Path, Batch, TagTable], read: Any) -> None:
    path, rows, tags = plant_file
    t, want = read(path), sums(rows)
    assert t["tag"].to_pylist() == [tags[h].node for h in rows.handle.tolist()]
    assert t["source"].unique().to_pylist() == [tags[0].source]
    for name in ("lag", "f64", "i64", "bool"):
        assert t[name].drop_null().to_numpy().sum() == pytest.approx(want[name], rel=1e-9)
    micros = (rows.source_ticks - segment.UNIX_EPOCH_TICKS) // 10
    assert (t["time"].to_numpy().astype("M8[us]").astype(np.int64) == micros).all()
    assert (t["status"].to_numpy() == rows.status).all()


def test_spark_reads_every_column_with_its_default_reader(plant_file: tuple[Path, Batch, TagTable]) -> None:
    """Needs `pip install pyspark` and Java 17; too large to be a dependency of the tests. Run with 3.5.9 and 4.0.5."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    path, rows, _ = plant_file
    settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"}
    spark = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    try:
        spark.read.parquet(str(path)).createOrReplaceTempView("t")
        query = QUERY.replace("f32::DOUBLE", "double(f32)").replace("bool::INT", "int(bool)")
        query = query.replace("epoch_us(", "unix_micros(").replace("read_parquet(?)", "t")
        found = spark.sql(query).first()
        assert tuple(found) == pytest.approx(tuple(sums(rows).values()), rel=1e-9)
        odd = spark.read.parquet(str(GOLDEN / "segment-1-every-kind.parquet"))
        assert odd.count() == len(odd.collect()) == len(every_kind())
        assert odd.selectExpr("max(u64)", "min(i64)", "min(source_ticks)").first() == (2**64 - 1, -(2**63), -(2**63))
    finally:
        spark.stop()


def test_all_engines_agree_on_the_odd_values(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    path.write_bytes(segment.encode(every_kind(), TAGS, HEADER))
    wanted = {
        "max(u64)": 2**64 - 1, "min(i64)": -(2**63), "count(f64)": 3, "count(f32)": 2, "count(text)": 7,
        "count(bytes)": 5, "count(source_ticks)": 5, "count(server_ticks)": 1, "count(time)": len(every_kind()) - 7,
        "max(server_ps)": 65535, "max(status)": 0x80050000, "max(flags)": 128, "max(kind)": 0x8C,
        "count(lag)": len(every_kind()) - 3, "max(length(text))": 40,
    }  # fmt: skip
    sql = f"SELECT {', '.join(wanted)} FROM "
    assert duckdb.execute(sql + f"'{path}'").fetchone() == tuple(wanted.values())
    frame = pl.SQLContext(t=pl.scan_parquet(path)).execute(sql.replace("length", "char_length") + "t").collect()
    found = frame.row(0)
    assert tuple(int(v) for v in found) == tuple(wanted.values())


def test_segments_of_every_content_have_the_same_columns_so_that_a_folder_reads_as_one_table(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(segment.encode(every_kind(), TAGS, HEADER))
    (tmp_path / "1.parquet").write_bytes(segment.encode(take(every_kind(), np.arange(1)), TAGS, HEADER))
    (tmp_path / "2.parquet").write_bytes(segment.encode(Batch.zeros(0), TAGS, HEADER))
    n = len(every_kind()) + 1
    assert duckdb.execute(f"SELECT count(*), count(u64) FROM '{tmp_path}/*.parquet'").fetchone() == (n, 1)
    assert pl.read_parquet(f"{tmp_path}/*.parquet").height == n
    assert ds.dataset(tmp_path).to_table().num_rows == n


def test_only_types_and_encodings_that_spark_reads_by_default_occur() -> None:
    batch, tags = plant(5000)
    for data in (segment.encode(batch, tags, HEADER), segment.encode(every_kind(), TAGS, HEADER)):
        metadata = pq.read_metadata(pa.BufferReader(data))
        for i, column in enumerate(metadata.schema):
            logical = str(column.logical_type)
            assert column.physical_type != "INT96"
            assert "nanoseconds" not in logical, "Spark refuses files with TIMESTAMP(NANOS)"
            assert "isSigned=false" not in logical, "table formats have no unsigned integers"
            chunk = metadata.row_group(0).column(i)
            assert set(chunk.encodings) <= SPARK_ENCODINGS, f"{column.name}: Spark's vectorised reader has no other"
            assert chunk.compression == "ZSTD"
        assert metadata.schema.column(segment.SCHEMA.names.index("lag")).physical_type == "INT64"
        assert b"ARROW:schema" not in metadata.metadata


def test_time_is_null_where_spark_would_refuse_it_and_the_ticks_stand_beside_it() -> None:
    first, end = segment.TIME_FIRST_TICKS, segment.TIME_END_TICKS
    ticks = [first - 1, first, first + 9, end - 1, end]
    batch = from_rows([(0, t, 0, 0, 0, 0, SERVER_NULL, Kind.NULL, 0) for t in ticks])
    t = columns(segment.encode(batch, TAGS, HEADER))
    assert [None if v is None else v.isoformat() for v in t["time"].to_pylist()] == [
        None, "1900-01-01T00:00:00+00:00", "1900-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00", None,
    ]  # fmt: skip
    assert t["time_100ns"].to_pylist() == [None, 0, 9, 9, None]
    assert t["source_ticks"].to_pylist() == [first - 1, None, None, None, end]


# --- hostile files ------------------------------------------------------------------------------------


def rewritten(data: bytes, change: dict[str, Any], keys: dict[bytes, bytes | None] | None = None) -> bytes:
    """Return the same file with columns replaced (by name; an array or a list) and footer keys changed."""
    t = columns(data)
    for name, column in change.items():
        place = t.column_names.index(name)
        array = column if isinstance(column, pa.Array) else pa.array(column, t.schema.field(name).type)
        t = t.set_column(place, pa.field(name, array.type, segment.SCHEMA.field(name).nullable), array)
    out = io.BytesIO()
    metadata = pq.read_metadata(pa.BufferReader(data)).metadata | (keys or {})
    with pq.ParquetWriter(out, t.schema, store_schema=False) as writer:
        writer.write_table(t)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if v is not None})
    return out.getvalue()


def one(**row: Any) -> bytes:
    """Return a segment of one row, a Boolean unless `row` says otherwise."""
    drawn = {"source": NOW_TICKS, "server": NOW_TICKS, "flags": 0, "kind": Kind.BOOLEAN, "bits": 1} | row
    values = (0, drawn["source"], drawn["server"], 0, 0, 0, drawn["flags"], drawn["kind"], drawn["bits"])
    return segment.encode(from_rows([values]), TAGS, HEADER)


def refused(data: bytes, match: str | None = None) -> None:
    tags = table()
    with pytest.raises(Corrupt, match=match):
        segment.decode(data, tags)
    assert len(tags) == len(TAGS), "a refused file leaves the table alone"


def test_a_rewritten_file_that_changes_nothing_is_still_read() -> None:
    data = segment.encode(every_kind(), TAGS, HEADER)
    assert equal(segment.decode(rewritten(data, {}), TAGS)[0], ordered(every_kind(), TAGS))


LIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a kind that is no byte": ({}, {"kind": [256]}),
    "a kind below zero": ({}, {"kind": [-1]}),
    "a status of 33 bits": ({}, {"status": [2**32]}),
    "negative picoseconds": ({}, {"source_ps": [-1]}),
    "flags that are no byte": ({}, {"flags": [-1]}),
    "a flag that nothing signs": ({}, {"flags": [0x10]}),
    "no value beside a value": ({}, {"flags": [NO_VALUE]}),
    "a kind without its value": ({}, {"kind": [Kind.DOUBLE]}),
    "a value beside the kind's": ({}, {"f64": [1.0]}),
    "a null value with a number": ({"kind": Kind.NULL, "bits": 0}, {"i64": [0]}),
    "a Byte of 256": ({"kind": Kind.BYTE, "bits": 5}, {"i64": [256]}),
    "an SByte of -129": ({"kind": Kind.SBYTE, "bits": 5}, {"i64": [-129]}),
    "a UInt64 of 2^64": ({"kind": Kind.UINT64, "bits": 5}, {"u64": [2**64]}),
    "a UInt64 below zero": ({"kind": Kind.UINT64, "bits": 5}, {"u64": [-1]}),
    "text for a number": ({}, {"text": ["1"]}),
    "bytes for a number": ({}, {"bytes": [b"\1"], "text": ["1"]}),
    "an array without bytes": ({"kind": Kind.INT32 | ARRAY, "bits": encode(0x86, [1])}, {"bytes": [None]}),
    "an array without text": ({"kind": Kind.INT32 | ARRAY, "bits": encode(0x86, [1])}, {"text": [None]}),
    "an array of wrong size": ({"kind": Kind.INT32 | ARRAY, "bits": encode(0x86, [1])}, {"bytes": [b"\xff\0\0\0"]}),
    "bytes after an array": ({"kind": Kind.INT32 | ARRAY, "bits": encode(0x86, [1])}, {"bytes": [b"\0\0\0\0\0"]}),
    "a source time in two columns": ({}, {"source_ticks": [1]}),
    "a source time in no column": ({}, {"time": [None], "time_100ns": [None]}),
    "ticks that time could hold": ({}, {"time": [None], "time_100ns": [None], "source_ticks": [NOW_TICKS]}),
    "a time before 1900": ({}, {"time": pa.array([-(2**62)], pa.timestamp("us", "UTC"))}),
    "a time that wraps": ({}, {"time": pa.array([2**60], pa.timestamp("us", "UTC"))}),
    "ten ticks in a microsecond": ({}, {"time_100ns": [10]}),
    "ticks without their time": ({"flags": SOURCE_NULL, "source": 0}, {"time_100ns": [1]}),
    "a flag against a time": ({}, {"flags": [SOURCE_NULL]}),
    "a flag against a lag": ({}, {"flags": [SERVER_NULL]}),
    "no lag": ({}, {"lag": [None]}),
    "two server times": ({}, {"server_ticks": [1]}),
    "no server time": ({"flags": SOURCE_NULL, "source": 0}, {"server_ticks": [None]}),
    "a tag that is none": ({}, {"tag": ["nsu=urn:x"]}),
    "a tag with an index": ({}, {"tag": ["ns=2;i=1"]}),
    "a tag of unknown kind": ({}, {"tag": ["nsu=urn:x;x=1"]}),
    "a tag spelt another way": ({}, {"tag": ["nsu=urn%3Ax;i=1"]}),
    "text that is not UTF-8": (
        {"kind": Kind.STRING, "bits": encode(Kind.STRING, "a")},
        {"text": pa.array([b"\xff"]).cast(pa.string(), safe=False)},
    ),
    "a tag that is not UTF-8": ({}, {"tag": pa.array([b"nsu=\xff;i=1"]).cast(pa.string(), safe=False)}),
    "lag as int32": ({}, {"lag": pa.array([1], pa.int32())}),
    "time in milliseconds": ({}, {"time": pa.array([1], pa.timestamp("ms", "UTC"))}),
    "time without a zone": ({}, {"time": pa.array([1], pa.timestamp("us"))}),
    "text as binary": ({}, {"text": pa.array([b"a"])}),
    "f64 as float": ({}, {"f64": pa.array([1.0], pa.float32())}),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_whose_columns_contradict_each_other_is_corrupt(lie: str) -> None:
    row, change = LIES[lie]
    honest = one(**row)
    segment.decode(honest)
    refused(rewritten(honest, change))


def test_missing_extra_and_renamed_columns_are_corrupt() -> None:
    t = columns(one())
    keys = pq.read_metadata(pa.BufferReader(one())).metadata
    for wrong in (t.drop_columns("lag"), t.append_column("more", pa.array([1])), t.rename_columns({"lag": "gap"})):
        out = io.BytesIO()
        with pq.ParquetWriter(out, wrong.schema, store_schema=False) as writer:
            writer.write_table(wrong)
            writer.add_key_value_metadata(keys)
        refused(out.getvalue())


@pytest.mark.parametrize("key", [b"edgemirror.header", b"edgemirror.format"])
def test_a_file_without_our_footer_keys_is_corrupt(key: bytes) -> None:
    broken = rewritten(one(), {}, {key: None})
    refused(broken, "footer with the keys")
    with pytest.raises(Corrupt):
        segment.read_header(broken)


def test_of_a_later_format_the_header_is_read_and_the_columns_are_refused() -> None:
    later = rewritten(one(), {}, {b"edgemirror.format": b"2"})
    refused(later, "format 2")
    assert (segment.read_format(later), segment.read_header(later)) == ("2", HEADER)


@pytest.mark.parametrize("kind", [Kind.RESERVED_EVENT, Kind.RESERVED_ALARM, 63, Kind.RESERVED_EVENT | ARRAY])
def test_records_of_reserved_kinds_are_carried(kind: int) -> None:
    batch = from_rows([(1, NOW_TICKS, NOW_TICKS, 0, 0, 0, 0, kind, b"\2of no Variant\xff")])
    assert equal(segment.decode(segment.encode(batch, TAGS, HEADER), TAGS)[0], batch)
    assert equal(chunk.decode(chunk.encode(batch)), batch)


def test_values_that_would_read_as_too_much_text_are_told_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant, "TOLD_BODY_BYTES_MAX", 100)
    monkeypatch.setattr(variant, "TOLD_MAX", 1000)
    words, many, short = encode(0x8C, ["x"] * 50), encode(0x83, [7] * 1000), encode(0x83, [1] * 300)
    stamps = [(words, 0x8C), (many, 0x83), *[(short, 0x83)] * 4]
    batch = from_rows([(1, NOW_TICKS + i, NOW_TICKS, 0, 0, 0, 0, k, b) for i, (b, k) in enumerate(stamps)])
    data = segment.encode(batch, TAGS, HEADER)
    text = columns(data)["text"].to_pylist()
    assert text == ['{"kind":140,"size":254}', str([7] * 1000).replace(" ", ""), *['{"kind":131,"size":304}'] * 4]
    assert equal(segment.decode(data, TAGS)[0], batch), "and lose nothing"


def test_a_truncated_file_is_corrupt_wherever_it_ends() -> None:
    data = segment.encode(every_kind(), TAGS, HEADER)
    for size in range(0, len(data), 7):
        refused(data[:size])
    refused(data + b"\0")
    refused(b"")


def test_a_footer_longer_than_the_file_is_corrupt() -> None:
    data = one()
    for claim in (len(data), 2**31, 2**32 - 1, 0):
        refused(data[:-8] + claim.to_bytes(4, "little") + b"PAR1")


def test_claims_over_the_limits_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = segment.encode(every_kind(), TAGS, HEADER)
    with monkeypatch.context() as limits:
        limits.setattr(segment, "ROWS_MAX", len(every_kind()) - 1)
        refused(data, "claims")
    with monkeypatch.context() as limits:
        limits.setattr(segment, "RAW_BYTES_MAX", 1000)
        refused(data, "claims")


def test_a_flipped_byte_is_corrupt_or_changes_nothing_that_counts() -> None:
    """Page checksums guard the data, the digest in the header the rest; no flip may end in another error."""
    batch = every_kind()
    data = segment.encode(batch, TAGS, HEADER, facts=segment.encode_facts(TAGS.tags, {}))
    good, found = digest(batch, TAGS.identities, TAGS.rank), {True: 0, False: 0}
    draw = random.Random(1)
    for _ in range(1500):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        try:
            rows, tags = segment.decode(bytes(flipped))
        except Corrupt:
            found[True] += 1
        else:
            found[False] += 1
            assert ordered_digest(ordered(rows, tags), tags.identities) == good
    assert found[True] > 900, found


# --- promises -----------------------------------------------------------------------------------------


def test_a_change_of_the_mix_takes_less_than_nine_and_a_half_bytes() -> None:
    batch, tags = plant(100_000, tags=10_000)
    data = segment.encode(batch, tags, b"{" + b" " * 1000 + b"}")
    assert len(data) / len(batch) <= 9.5


def test_the_golden_segment_stays_readable() -> None:
    """Written once by format 1; `every_kind` is its content. A new format needs a new file beside it."""
    data = (GOLDEN / "segment-1-every-kind.parquet").read_bytes()
    rows, tags = segment.decode(data)
    assert ordered_digest(rows, tags.identities) == digest(every_kind(), TAGS.identities, TAGS.rank)
    assert ordered_digest(rows, tags.identities).hex() == (
        "9f1943c6526347ca148776b8be951771f0ffeb6e45e0091036d978348d7d66b9"
    )
    assert equal(segment.decode(data, table())[0], ordered(every_kind(), TAGS))
    assert (segment.read_header(data), [t.name for t in segment.decode_facts(segment.read_facts(data))[0]]) == (
        HEADER, ["tag3", "tag1", "tag5", "tag0", "tag4", "tag2"],
    )  # fmt: skip
