"""The virtual table `samples`: chunks seen as rows, for people who ask in SQL.

    SELECT time, value FROM samples WHERE name = 'press7/Temp' AND time > datetime('now', '-5 minutes')

A query is answered chunk by chunk. What its WHERE says of a tag, a time or a sequence number decides
which chunks are opened at all; within a chunk rows are chosen by masks, and only the columns that are
asked for become Python objects. SQLite checks every condition again on the rows it gets, so choosing
too many is slow and never wrong; the rule here is not to choose too few.

What this module does not do: import a SQLite (it talks to the connection that it is given), or write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mirror import chunk
from mirror.batch import SERVER_NULL, SOURCE_NULL, Batch, take
from mirror.errors import Corrupt
from mirror.schema import SqlValue, sql_times, sql_values
from mirror.tags import Tag, TagTable
from mirror.ticks import UNIX_EPOCH_TICKS
from mirror.variant import Structure

#: Columns of `samples`; the export writes the same ones.
COLUMNS = (
    "tag", "time", "source_ticks", "server_ticks", "status", "quality", "kind", "value", "origin", "seq", "name",
    "source",
)  # fmt: skip
DECLARATION = (
    "CREATE TABLE samples (tag TEXT, time TEXT, source_ticks INTEGER, server_ticks INTEGER, status INTEGER,"
    " quality TEXT, kind INTEGER, value, origin TEXT, seq INTEGER, name TEXT, source TEXT, handle INTEGER HIDDEN)"
)
QUALITY = ("Good", "Uncertain", "Bad", "Bad")  # by the two highest bits of a status

_TAG, _TIME, _SOURCE_TICKS, _SEQ, _NAME, _HANDLE = (
    COLUMNS.index("tag"), COLUMNS.index("time"), COLUMNS.index("source_ticks"), COLUMNS.index("seq"),
    COLUMNS.index("name"), len(COLUMNS),
)  # fmt: skip
_EQ, _GT, _LE, _LT, _GE = 2, 4, 8, 16, 32  # SQLITE_INDEX_CONSTRAINT_*
_RANGED = (_TIME, _SOURCE_TICKS, _SEQ)
_NAMED = (_TAG, _NAME, _HANDLE)
_TICKS_MIN, _TICKS_MAX = -(1 << 63), (1 << 63) - 1
_ROWS_MAX = 1 << 24  # of one chunk: makes a row id of sequence number and place


class Connection(Protocol):
    """What is needed of an open database."""

    def execute(self, sql: str, values: Any = ..., /) -> Any:
        """Run a statement and return an iterator over its rows."""
        ...


@dataclass
class Bounds:
    """What a query leaves of the samples; everything at first. All bounds are inclusive.

    Attributes:
        handles: The tags, None for all.
        ticks: Least and greatest source ticks; None lets rows without a source time pass too.
        seq: Least and greatest sequence number.
    """

    handles: set[int] | None = None
    ticks: tuple[int, int] | None = None
    seq: tuple[int, int] = (0, _TICKS_MAX)

    def within(self, handles: Iterable[int]) -> None:
        """Leave only these tags."""
        self.handles = set(handles) if self.handles is None else self.handles & set(handles)

    def between(self, column: int, low: int, high: int) -> None:
        """Leave only what lies between `low` and `high` on a ranged column."""
        if column == _SEQ:
            self.seq = max(self.seq[0], low), min(self.seq[1], high)
        else:
            first, last = self.ticks or (_TICKS_MIN, _TICKS_MAX)
            self.ticks = max(first, low), min(last, high)


@dataclass
class Rows:
    """Rows of one chunk with what all of them have in common, and their columns for SQL on demand."""

    seq: int
    origin: str
    place: NDArray[np.int64]
    batch: Batch
    tags: TagTable
    structures: Mapping[str, Mapping[str, Structure]] = field(default_factory=dict)

    def column(self, number: int) -> Sequence[SqlValue]:
        """Return a column by its place in COLUMNS (or the handle, after them)."""
        batch, flags = self.batch, self.batch.flags
        match "handle" if number == _HANDLE else COLUMNS[number]:
            case "tag":
                return self._of_tag(lambda tag: tag.node)
            case "name":
                return self._of_tag(label)
            case "source":
                return self._of_tag(lambda tag: tag.source)
            case "time":
                return sql_times(batch.source_ticks, flags & np.uint8(SOURCE_NULL) != 0)
            case "source_ticks":
                return _nullable(batch.source_ticks, flags & np.uint8(SOURCE_NULL) != 0)
            case "server_ticks":
                return _nullable(batch.server_ticks, flags & np.uint8(SERVER_NULL) != 0)
            case "quality":
                return [QUALITY[q] for q in (batch.status >> 30).tolist()]
            case "value":
                return sql_values(batch, lambda handle: self.structures.get(self.tags[handle].source, {}))
            case "origin":
                return [self.origin] * len(batch)
            case "seq":
                return [self.seq] * len(batch)
            case "status" | "kind" | "handle" as name:
                plain: list[SqlValue] = getattr(batch, name).tolist()
                return plain
            case name:
                raise AssertionError(name)

    def _of_tag(self, text: Callable[[Tag], str]) -> list[SqlValue]:
        handles, inverse = np.unique(self.batch.handle, return_inverse=True)
        texts = [text(self.tags[handle]) for handle in handles.tolist()]
        return [texts[i] for i in inverse.tolist()]


def label(tag: Tag) -> str:
    """Return a tag's name for people: `<device>/<name>`."""
    return f"{tag.device}/{tag.name}"


def select(
    db: Connection, bounds: Bounds, tags: TagTable, structures: Mapping[str, Mapping[str, Structure]]
) -> Iterator[Rows]:
    """Yield the rows within bounds, chunk by chunk; in order of sequence number unless a time is bound."""
    if bounds.handles is not None and not bounds.handles:
        return
    where, values = ["seq BETWEEN ? AND ?"], [*bounds.seq]
    if bounds.ticks is not None:
        where.append("t1 >= ? AND t0 <= ?")
        values += bounds.ticks
    if bounds.handles is not None:
        where.append("h1 >= ? AND h0 <= ?")
        values += min(bounds.handles), max(bounds.handles)
    lanes = _lanes(db, bounds, tags)
    by = "INDEXED BY chunk_time" if bounds.ticks is not None else "NOT INDEXED"
    order = "" if bounds.ticks is not None else " ORDER BY seq"
    sql = f"SELECT seq, lane, body FROM chunk {by} WHERE {' AND '.join(where)}{order}"
    wanted = None if bounds.handles is None else np.array(sorted(bounds.handles), np.uint32)
    for seq, lane, body in db.execute(sql, values):
        if lane not in lanes:
            continue
        batch = decode_chunk(seq, body)
        keep = np.ones(len(batch), np.bool_)
        if wanted is not None:
            keep &= np.isin(batch.handle, wanted)
        if bounds.ticks is not None:
            keep &= (batch.flags & SOURCE_NULL == 0) & (batch.source_ticks >= bounds.ticks[0])
            keep &= batch.source_ticks <= bounds.ticks[1]
        place = np.flatnonzero(keep)
        if len(place):
            rows = batch if len(place) == len(batch) else take(batch, place)
            yield Rows(seq, lanes[lane], place, rows, tags, structures)


def decode_chunk(seq: int, body: bytes) -> Batch:
    """Return a chunk's rows; Corrupt names the chunk."""
    try:
        return chunk.decode(body)
    except Corrupt as error:
        raise Corrupt(f"chunk {seq} does not decode: {error}", hint=error.hint) from error


def _lanes(db: Connection, bounds: Bounds, tags: TagTable) -> dict[int, str]:
    """Return the origin of each lane that may hold rows of the tags wanted."""
    rows = db.execute(
        "SELECT lane.id, lane.origin, stream.source FROM lane LEFT JOIN stream ON stream.id = lane.stream"
    )
    sources = None if bounds.handles is None else {tags[h].source for h in bounds.handles}
    return {id: origin for id, origin, source in rows if sources is None or source is None or source in sources}


class Samples:
    """The module that a connection registers under the name `samples`.

    Args:
        tags: Returns the tags as they are now.
        structures: Returns the structure definitions of each source as they are now.
    """

    def __init__(
        self, tags: Callable[[], TagTable], structures: Callable[[], Mapping[str, Mapping[str, Structure]]]
    ) -> None:
        self.tags = tags
        self.structures = structures

    def Connect(self, connection: Connection, *_names: SqlValue) -> tuple[str, _Table]:
        """Declare the table."""
        return DECLARATION, _Table(connection, self)


class _Table:
    """One connection's `samples`."""

    def __init__(self, db: Connection, module: Samples) -> None:
        self.db = db
        self.module = module

    def BestIndexObject(self, index: Any) -> bool:
        """Take the conditions that choose chunks, and tell SQLite how good the choice is."""
        plan: list[str] = []
        cost = 1e9
        for which in range(index.nConstraint):
            column, op = index.get_aConstraint_iColumn(which), index.get_aConstraint_op(which)
            plain = index.get_aConstraint_collation(which) == "BINARY"
            named = column in _NAMED and op == _EQ and plain
            ranged = column in _RANGED and op in (_EQ, _GT, _LE, _LT, _GE) and plain
            if index.get_aConstraint_usable(which) and (named or ranged):
                plan.append(f"{column}:{op}")
                index.set_aConstraintUsage_argvIndex(which, len(plan))
                cost /= 1000 if op == _EQ else 10
        index.idxStr = " ".join(plan)
        index.estimatedCost = cost
        index.estimatedRows = max(1, int(cost / 100))
        return True

    def Open(self) -> _Cursor:
        """Start a walk."""
        return _Cursor(self)

    def Disconnect(self) -> None:
        """Nothing is held."""


class _Cursor:
    """A walk over the rows that a query needs."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        self._rest: Iterator[Rows] = iter(())
        self._rows: Rows | None = None
        self._columns: dict[int, Sequence[SqlValue]] = {}
        self._at = 0
        self._n = 0

    def Filter(self, _number: int, plan: str, values: Sequence[SqlValue] | None) -> None:
        """Begin again with the values of the conditions that BestIndexObject took."""
        module, bounds = self._table.module, Bounds()
        tags = module.tags()
        for condition, value in zip(plan.split(), values or (), strict=True):
            column, op = map(int, condition.split(":"))
            if column in _NAMED:
                bounds.within(_handles(tags, column, value))
            else:
                _narrow(bounds, column, op, value)
        self._rest = select(self._table.db, bounds, tags, module.structures())
        self._next_chunk()

    def Next(self) -> None:
        """Step to the next row."""
        self._at += 1
        if self._at == self._n:
            self._next_chunk()

    def Eof(self) -> bool:
        """Tell whether the walk is over."""
        return self._rows is None

    def Column(self, number: int) -> SqlValue:
        """Return one field of the row, or the row id for -1."""
        if number < 0:
            return self.Rowid()
        try:
            return self._columns[number][self._at]
        except KeyError:
            assert self._rows is not None
            column = self._columns[number] = self._rows.column(number)
            return column[self._at]

    def Rowid(self) -> int:
        """Return a number that no other row has."""
        assert self._rows is not None
        return self._rows.seq * _ROWS_MAX + int(self._rows.place[self._at])

    def Close(self) -> None:
        """End the walk."""
        self._rest, self._rows = iter(()), None

    def _next_chunk(self) -> None:
        self._rows = next(self._rest, None)
        self._columns = {}
        self._at = 0
        self._n = 0 if self._rows is None else len(self._rows.batch)


def _handles(tags: TagTable, column: int, value: SqlValue) -> list[int]:
    """Return the tags of which a naming column equals a value."""
    if column == _HANDLE:
        # SQLite compares numbers and texts of numbers alike; anything else equals no handle.
        return [value] if isinstance(value, int) and 0 <= value < len(tags) else _all_if_text(tags, value)
    if column == _TAG:
        return [handle for handle, tag in enumerate(tags.tags) if tag.node == value]
    return [handle for handle, tag in enumerate(tags.tags) if label(tag) == value]


def _all_if_text(tags: TagTable, value: SqlValue) -> list[int]:
    return list(range(len(tags))) if isinstance(value, str | float) else []


def _narrow(bounds: Bounds, column: int, op: int, value: SqlValue) -> None:
    """Take one condition on a ranged column into the bounds; what is not understood is left to SQLite."""
    if column == _TIME:
        first = _ticks_of_time(value)
        if first is None:
            return
        # The text has cut off what is below a microsecond, so that even `<` may need a bit more.
        low, high = first, first + 9
    elif isinstance(value, int):
        low, high = value + (op == _GT), value - (op == _LT)
    else:
        return
    low = _TICKS_MIN if op in (_LT, _LE) else min(low, _TICKS_MAX)
    high = _TICKS_MAX if op in (_GT, _GE) else max(high, _TICKS_MIN)
    bounds.between(column, low, high)


_TIME_TEXT = re.compile(r"\d{4}(-\d\d(-\d\d( \d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?)?)?)?")
_TIME_REST = "0001-01-01 00:00:00.000000"


def _ticks_of_time(value: SqlValue) -> int | None:
    """Return the ticks of a time as text, or of its beginning; None for any other text.

    Texts are compared as texts: what sorts at or after a beginning such as `2026-01` is at or after the
    first moment that begins so, and what sorts before it is before that moment.
    """
    if not isinstance(value, str) or not _TIME_TEXT.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value + _TIME_REST[len(value) :]).replace(tzinfo=UTC)
    except ValueError:
        return None
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return UNIX_EPOCH_TICKS + micros * 10


def _nullable(ticks: NDArray[np.int64], null: NDArray[np.bool_]) -> list[SqlValue]:
    out: list[SqlValue] = ticks.tolist()
    for row in np.flatnonzero(null).tolist():
        out[row] = None
    return out
