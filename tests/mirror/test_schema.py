"""A row of `state` gives back the exact value, and what people read of it is right."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping

import apsw
import numpy as np
import pytest
from hypothesis import given, settings

from mirror.batch import SOURCE_NULL, Batch, Heap, Kind, equal, take
from mirror.schema import (
    MIGRATIONS,
    STATE_COLUMNS,
    UNIX_EPOCH_TICKS,
    SqlValue,
    sql_times,
    sql_values,
    state_batch,
    state_parameters,
)
from mirror.variant import Structure, StructureField, encode
from tests.mirror.batches import batches

PLACES = ", ".join("?" * len(STATE_COLUMNS))


def database() -> apsw.Connection:
    db = apsw.Connection(":memory:")
    for migration in MIGRATIONS:
        for statement in migration.statements:
            db.execute(statement)
    return db


def rows_of(batch: Batch) -> list[list[SqlValue]]:
    parameters, width = state_parameters(batch), len(STATE_COLUMNS)
    return [parameters[i : i + width] for i in range(0, len(parameters), width)]


def one(kind: int, bits: int = 0, body: bytes | None = None) -> Batch:
    batch = Batch.zeros(1)
    batch.kind[:] = kind
    batch.bits[:] = bits
    return (
        batch if body is None else Batch(**{n: getattr(batch, n) for n in Batch.__slots__} | {"heap": Heap.of([body])})
    )


@given(batches(40, handles=1000))
@settings(max_examples=150, deadline=None)
def test_a_state_row_gives_back_every_value_bit_for_bit(batch: Batch) -> None:
    _, first = np.unique(batch.handle, return_index=True)
    batch = take(batch, first)
    db = database()
    db.executemany(f"INSERT INTO state VALUES ({PLACES})", rows_of(batch))
    assert equal(state_batch(db.execute("SELECT * FROM state ORDER BY tag").fetchall()), batch)


def double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


@pytest.mark.parametrize(
    ("batch", "value"),
    [
        (one(Kind.NULL), None),
        (one(Kind.BOOLEAN, 1), 1),
        (one(Kind.SBYTE, 2**64 - 5), -5),
        (one(Kind.INT64, 2**63), -(2**63)),
        (one(Kind.UINT32, 2**32 - 1), 2**32 - 1),
        (one(Kind.UINT64, 2**63 - 1), 2**63 - 1),
        (one(Kind.UINT64, 2**64 - 1), "18446744073709551615"),
        (one(Kind.FLOAT, 0x3F000000), 0.5),
        (one(Kind.DOUBLE, double(0.1)), 0.1),
        (one(Kind.DOUBLE, double(-0.0)), -0.0),
        (one(Kind.DOUBLE, double(float("nan"))), None),
        (one(Kind.DOUBLE, double(float("-inf"))), float("-inf")),
        (one(Kind.STATUSCODE, 0x80310000), 0x80310000),
        (one(Kind.DATETIME, UNIX_EPOCH_TICKS), "1970-01-01T00:00:00.0000000Z"),
        (one(Kind.STRING, 0, encode(Kind.STRING, "läuft")), "läuft"),
        (one(Kind.STRING, 0, encode(Kind.STRING, "")), ""),
        (one(Kind.STRING, 0, encode(Kind.STRING, None)), None),
        (one(Kind.INT32 | 0x80, 0, encode(Kind.INT32 | 0x80, [1, 2])), "[1,2]"),
    ],
)
def test_a_value_reads_in_sql_as_people_expect(batch: Batch, value: SqlValue) -> None:
    db = database()
    db.executemany(f"INSERT INTO state VALUES ({PLACES})", rows_of(batch))
    found = db.execute("SELECT value FROM state").get
    assert (found, type(found)) == (value, type(value))
    if value == 0:
        assert str(found) == str(value), "the sign of zero"


def test_a_structure_reads_by_its_definition() -> None:
    body = encode(Kind.EXTENSIONOBJECT, {"type": "ns=2;i=5001", "body": struct.pack("<d", 2.5)})
    point = Structure(name="Point", fields=(StructureField(name="x", type=Kind.DOUBLE),))
    batch = one(Kind.EXTENSIONOBJECT, 0, body)

    def known(handle: int) -> Mapping[str, Structure]:
        return {"ns=2;i=5001": point} if handle == 0 else {}

    assert sql_values(batch, known) == ['{"x":2.5}']
    assert "body" in str(sql_values(batch)[0])


def test_times_read_as_sqlite_writes_them() -> None:
    ticks = np.array([UNIX_EPOCH_TICKS, UNIX_EPOCH_TICKS + 12_345_678, 0, -(2**63), 2**63 - 1, 5], np.int64)
    null = np.array([0, 0, 0, 0, 0, 1], np.bool_)
    assert sql_times(ticks, null) == [
        "1970-01-01 00:00:00.000000", "1970-01-01 00:00:01.234567", "1601-01-01 00:00:00.000000", None, None, None,
    ]  # fmt: skip
    with sqlite3.connect(":memory:") as db:
        assert db.execute("SELECT datetime(?)", (sql_times(ticks, null)[1],)).fetchone() == ("1970-01-01 00:00:01",)
    assert sql_times(np.zeros(0, np.int64), np.zeros(0, np.bool_)) == []


def test_a_null_source_time_is_null_in_sql() -> None:
    batch = one(Kind.NULL)
    batch.flags[:] = SOURCE_NULL
    row = dict(zip(STATE_COLUMNS, rows_of(batch)[0], strict=True))
    assert (row["source_ticks"], row["server_ticks"]) == (None, 0)
