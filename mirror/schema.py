"""The tables of mirror.db, their migrations as data, and the form of one row of `state`.

The file is made for two kinds of readers. Programs read `chunk`, where samples are (see
`mirror.chunk`); people and their tools read the other tables with any SQLite tool. Nothing in it needs
an extension to be opened: the virtual table `samples` lives in the reader (`mirror.io.sqlite`).

A migration is applied once, in order, and is never changed after a release; `PRAGMA user_version` is
the number of those applied. What this module does not do: open a file (`mirror.io.sqlite`) or decide
what is written (`gateway.io.journal`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirror.batch import IN_HEAP, SERVER_NULL, SOURCE_NULL, Batch, Heap, Kind
from mirror.ticks import UNIX_EPOCH_TICKS
from mirror.variant import Structure, iso, readable

#: `PRAGMA application_id` of every mirror.db: "edgm".
APPLICATION_ID = 0x6564676D

_YEAR_1 = UNIX_EPOCH_TICKS - 62_135_596_800 * 10_000_000
_YEAR_10000 = UNIX_EPOCH_TICKS + 253_402_300_800 * 10_000_000

SqlValue = float | int | str | bytes | None


class Migration(NamedTuple):
    """One step of the schema."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        "0001_journal",
        (
            # Facts of each tag; the handle is the number by which chunks and `state` know it.
            """CREATE TABLE tag (
                handle INTEGER PRIMARY KEY, source TEXT NOT NULL, namespace TEXT NOT NULL,
                identifier TEXT NOT NULL, path TEXT NOT NULL, device TEXT NOT NULL, name TEXT NOT NULL,
                data_type TEXT NOT NULL, value_rank INTEGER NOT NULL, unit TEXT NOT NULL,
                range_low REAL, range_high REAL, description TEXT NOT NULL, stamping TEXT NOT NULL,
                UNIQUE (source, namespace, identifier))""",
            """CREATE TABLE stream (
                id TEXT PRIMARY KEY, source TEXT NOT NULL, axis TEXT NOT NULL,
                revised_publishing_ms REAL NOT NULL, revised_queue_size INTEGER NOT NULL,
                overflow_detectable INTEGER NOT NULL, revised_sampling_ms REAL NOT NULL)""",
            # A chunk's stream, timeline and origin, spelled once: a hundred bytes less a chunk.
            """CREATE TABLE lane (
                id INTEGER PRIMARY KEY, stream TEXT NOT NULL, timeline TEXT NOT NULL, origin TEXT NOT NULL,
                UNIQUE (stream, timeline, origin))""",
            # Samples. Publish times (pub_from, pub_to]; n rows; t0, t1 least and greatest source ticks
            # (null if no row has any); h0, h1 least and greatest handle; size of body in bytes. The
            # body stands last, so that reading the other columns does not touch its pages.
            """CREATE TABLE chunk (
                seq INTEGER PRIMARY KEY, lane INTEGER NOT NULL REFERENCES lane, pub_from INTEGER NOT NULL,
                pub_to INTEGER NOT NULL, received_s INTEGER NOT NULL, n INTEGER NOT NULL, t0 INTEGER,
                t1 INTEGER, h0 INTEGER NOT NULL, h1 INTEGER NOT NULL, size INTEGER NOT NULL,
                body BLOB NOT NULL)""",
            "CREATE INDEX chunk_published ON chunk (lane, pub_to, seq, n, size)",
            "CREATE INDEX chunk_time ON chunk (t1, t0, h0, h1, lane)",
            # Current value of each tag. `exact` holds the value's bytes on the wire where `value` alone does
            # not give them back. No type on `value`: a REAL column would turn -0.0 into 0.
            """CREATE TABLE state (
                tag INTEGER PRIMARY KEY REFERENCES tag (handle), source_ticks INTEGER,
                server_ticks INTEGER, source_ps INTEGER NOT NULL, server_ps INTEGER NOT NULL,
                status INTEGER NOT NULL, flags INTEGER NOT NULL, kind INTEGER NOT NULL, value, exact BLOB)""",
            # Every row of `state` is complete through this chunk; some may know later ones already.
            "CREATE TABLE state_mark (id INTEGER PRIMARY KEY CHECK (id = 0), chunk INTEGER NOT NULL)",
            "INSERT INTO state_mark VALUES (0, 0)",
            # Publish times (start, end] of which all was received and is on disk: disjoint, never touching.
            """CREATE TABLE coverage (
                stream TEXT NOT NULL, timeline TEXT NOT NULL, origin TEXT NOT NULL, grade TEXT NOT NULL,
                start INTEGER NOT NULL, "end" INTEGER NOT NULL CHECK ("end" > start),
                PRIMARY KEY (stream, timeline, origin, grade, start)) WITHOUT ROWID""",
            """CREATE TABLE gap (
                id TEXT PRIMARY KEY, stream TEXT NOT NULL, timeline TEXT NOT NULL, start INTEGER NOT NULL,
                "end" INTEGER, tags TEXT, reason TEXT NOT NULL, closed_by TEXT,
                closed_reason TEXT NOT NULL DEFAULT '')""",
            # A ledger only grows; what is still open is few.
            "CREATE INDEX gap_open ON gap (stream) WHERE closed_by IS NULL",
            # The verified prefix of the log, and what its segments promise together.
            """CREATE TABLE chain (
                seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, holder TEXT NOT NULL,
                incarnation TEXT NOT NULL, hash TEXT NOT NULL)""",
            """CREATE TABLE promise (
                stream TEXT NOT NULL, timeline TEXT NOT NULL, origin TEXT NOT NULL, grade TEXT NOT NULL,
                start INTEGER NOT NULL, "end" INTEGER NOT NULL CHECK ("end" > start),
                PRIMARY KEY (stream, timeline, origin, grade, start)) WITHOUT ROWID""",
            """CREATE TABLE epoch (
                id INTEGER PRIMARY KEY CHECK (id = 0), epoch INTEGER NOT NULL, incarnation TEXT NOT NULL)""",
            # What resumes a source's session, encrypted with the key file beside the database.
            "CREATE TABLE session (source TEXT PRIMARY KEY, nonce BLOB NOT NULL, body BLOB NOT NULL)",
            "CREATE TABLE fact (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
        ),
    ),
)

#: Columns of `state` in the order in which `state_parameters` gives them.
STATE_COLUMNS = (
    "tag", "source_ticks", "server_ticks", "source_ps", "server_ps", "status", "flags", "kind", "value",
    "exact",
)  # fmt: skip


#: Structure definitions by tag handle, for values that need them to be read.
Structures = Callable[[int], Mapping[str, Structure]]


def no_structures(_handle: int) -> Mapping[str, Structure]:
    """Return no definitions: structures then appear as their type and base64."""
    return {}


def sql_values(batch: Batch, structures: Structures = no_structures) -> list[SqlValue]:
    """Return each row's value as people read it in SQL.

    Numbers as they are (NaN becomes NULL in SQLite), Booleans as 0 and 1, a UInt64 beyond int64 as its
    digits, a DateTime as ISO 8601 (its ticks outside the years 1 to 9999), a String as itself, null and
    absent values as None, everything else as JSON (`mirror.variant.readable`).
    """
    kinds = np.unique(batch.kind).tolist()
    if len(kinds) == 1:
        return _values_of_kind(batch, kinds[0], batch.handle, batch.bits, structures)
    out: list[SqlValue] = [None] * len(batch)
    for kind in kinds:
        rows = np.flatnonzero(batch.kind == kind)
        values = _values_of_kind(batch, kind, batch.handle[rows], batch.bits[rows], structures)
        for row, value in zip(rows.tolist(), values, strict=True):
            out[row] = value
    return out


def sql_times(ticks: NDArray[np.int64], null: NDArray[np.bool_]) -> list[str | None]:
    """Return times as SQLite's own functions write them, `2026-01-31 23:59:59.123456`, in UTC.

    None where `null` says so and outside the years 1 to 9999. Digits below a microsecond are cut off.
    """
    known = ~null & (ticks >= _YEAR_1) & (ticks < _YEAR_10000)
    micros = (np.where(known, ticks, UNIX_EPOCH_TICKS) - UNIX_EPOCH_TICKS) // 10
    text = np.datetime_as_string(micros.view("M8[us]"), unit="us").astype("U26")
    text.view(np.uint32).reshape(-1, 26)[:, 10] = ord(" ")
    out: list[str | None] = text.tolist()
    for row in np.flatnonzero(~known).tolist():
        out[row] = None
    return out


def state_parameters(batch: Batch, structures: Structures = no_structures) -> list[SqlValue]:
    """Return the rows of `state` from current values, one row a tag: STATE_COLUMNS of each, one after the other.

    They are laid out as a statement takes them that writes many rows, since making a row of each costs as
    much as writing it.

    Args:
        batch: One row for each tag.
        structures: As for `sql_values`.
    """
    values = sql_values(batch, structures)
    exact = _exact(batch, values)
    source: list[int | None] = batch.source_ticks.tolist()
    server: list[int | None] = batch.server_ticks.tolist()
    for row in np.flatnonzero(batch.flags & SOURCE_NULL).tolist():
        source[row] = None
    for row in np.flatnonzero(batch.flags & SERVER_NULL).tolist():
        server[row] = None
    columns: tuple[list[Any], ...] = (
        batch.handle.tolist(), source, server, batch.source_ps.tolist(), batch.server_ps.tolist(),
        batch.status.tolist(), batch.flags.tolist(), batch.kind.tolist(), values, exact,
    )  # fmt: skip
    parameters: list[SqlValue] = [None] * (len(batch) * len(columns))
    for place, column in enumerate(columns):
        parameters[place :: len(columns)] = column
    return parameters


def state_batch(rows: Sequence[tuple[SqlValue, ...]]) -> Batch:
    """Return the batch that the rows of `state_parameters` were made from, bit for bit."""
    batch = Batch.zeros(len(rows))
    if not rows:
        return batch
    handle, source, server, source_ps, server_ps, status, flags, kind, value, exact = zip(*rows, strict=True)
    batch.handle[:] = handle
    batch.source_ticks[:] = [t or 0 for t in source]
    batch.server_ticks[:] = [t or 0 for t in server]
    batch.source_ps[:] = source_ps
    batch.server_ps[:] = server_ps
    batch.status[:] = status
    batch.flags[:] = flags
    batch.kind[:] = kind
    entries: list[bytes] = []
    batch.bits[:] = [_bits(k, v, e, entries) for k, v, e in zip(kind, value, exact, strict=True)]
    return replace(batch, heap=Heap.of(entries))


def _values_of_kind(
    batch: Batch, kind: int, handle: NDArray[np.uint32], bits: NDArray[np.uint64], structures: Structures
) -> list[SqlValue]:
    """Return the values of rows of one kind, whose handles and `bits` are given."""
    if kind == Kind.NULL:
        return [None] * len(bits)
    if kind == Kind.UINT64:
        return [b if b < 1 << 63 else str(b) for b in bits.tolist()]
    if kind == Kind.DATETIME:
        return [iso(ticks) for ticks in bits.view(np.int64).tolist()]
    if kind == Kind.STRING:
        return [_text(body) for body in (batch.heap[b] for b in bits.tolist())]
    if IN_HEAP[kind]:
        pairs = zip(handle.tolist(), bits.tolist(), strict=True)
        return [readable(kind, batch.heap[b], structures(h)) for h, b in pairs]
    plain: list[SqlValue]
    if kind == Kind.DOUBLE:
        plain = bits.view(np.float64).tolist()
    elif kind == Kind.FLOAT:
        with np.errstate(invalid="ignore"):  # a signalling NaN is no reason to complain
            plain = bits.astype(np.uint32).view(np.float32).astype(np.float64).tolist()
    else:
        plain = bits.view(np.int64).tolist()
    return plain


def _text(body: bytes) -> str | None:
    """Return a String's text, None for the null String (any negative length)."""
    return None if body[3:4] >= b"\x80" else readable(Kind.STRING, body)


def _exact(batch: Batch, values: Sequence[SqlValue]) -> list[bytes | None]:
    """Return the wire's bytes of each value that SQL does not give back by itself: NaNs, bytes in the heap."""
    magnitude, kind = batch.bits & np.uint64(0x7FFF_FFFF_FFFF_FFFF), batch.kind
    nan = (kind == Kind.DOUBLE) & (magnitude > 0x7FF0_0000_0000_0000)
    nan |= (kind == Kind.FLOAT) & (magnitude & np.uint64(0x7FFF_FFFF) > 0x7F80_0000)
    out: list[bytes | None] = [None] * len(values)
    for row in np.flatnonzero(nan | IN_HEAP[kind] | (kind == Kind.DATETIME)).tolist():
        body, value = batch.value_bytes(row), values[row]
        if not (kind[row] == Kind.STRING and isinstance(value, str) and _string(value) == body):
            out[row] = body
    return out


def _string(text: str) -> bytes:
    """Return a String's body on the wire."""
    data = text.encode("utf-8")
    return len(data).to_bytes(4, "little") + data


def _bits(kind: int, value: SqlValue, exact: SqlValue, entries: list[bytes]) -> int:
    """Return a row's `bits`, laying its bytes at the end of `entries` if its kind is in the heap."""
    if IN_HEAP[kind]:
        entries.append(exact if isinstance(exact, bytes) else _string(str(value)))
        return len(entries) - 1
    if isinstance(exact, bytes):
        return int.from_bytes(exact, "little", signed=False)
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f" if kind == Kind.FLOAT else "<d", value), "little")
    return int(value or 0) & 0xFFFF_FFFF_FFFF_FFFF
