"""Reading what can be read of a damaged SQLite file: rows behind a broken page are found by stepping over it.

The rule: nothing is guessed. A row is read as it stands or counts as unread, and between which keys rows could
not be read is told, so that whoever rebuilds knows where something may be missing.

What it does not do: judge rows (`gateway.io.repair`), or write anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirror.errors import Corrupt, MirrorError
from mirror.io.sqlite import Database, reactions

PAGE_ROWS = 200
KEY_MAX = 2**62  # no key is larger

Row = tuple[Any, ...]


@dataclass(slots=True)
class Found:
    """What could be read of a table.

    Attributes:
        rows: In ascending order of their keys, the key first.
        unread: (low, high): between these keys, both exclusive, rows could not be read.
    """

    rows: list[Row] = field(default_factory=list)
    unread: list[tuple[int, int]] = field(default_factory=list)


def by_key(db: Database, path: Path, table: str, columns: Sequence[str]) -> Found:
    """Read a table by its integer key, the first of the columns."""
    key, found, at, limit = columns[0], Found(), -1, PAGE_ROWS
    sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?"

    def page(after: int, limit: int) -> list[Row] | None:
        try:
            with reactions(path):
                return list(db.execute(sql, (after, limit)))
        except MirrorError:
            return None

    while True:
        rows = page(at, limit)
        if rows is None and limit > 1:
            limit = 1
        elif rows is None:
            step = _step(lambda step, at=at: page(at + step, 1) is not None)
            beyond = page(at + step, 1) if step else None
            high = beyond[0][0] if beyond else KEY_MAX
            found.unread.append((at, high))
            if not beyond:
                return found
            at, limit = high - 1, PAGE_ROWS
        elif rows:
            found.rows += rows
            at = rows[-1][0]
        elif limit == PAGE_ROWS:
            return found
        else:
            limit = PAGE_ROWS
            if page(at, limit) == []:
                return found


def _step(works: Any) -> int:
    """Return the smallest step behind which reading works again, as far as doubling and halving find it; 0: none."""
    high = 1
    while not works(high):
        high *= 2
        if high > KEY_MAX:
            return 0
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def scan(db: Database, path: Path, table: str, columns: Sequence[str], order: Sequence[str], index: str = "") -> Found:
    """Read a table or index from both its ends, each until reading fails; `unread` is one pair if it did.

    Args:
        order: Columns that give the order of the table or index, so that no sorting is needed.
        index: Read this index, which has all the columns, instead of the table.
    """
    source = f"{table} INDEXED BY {index}" if index else table
    rows: dict[Row, None] = {}
    complete = False
    for direction in ("ASC", "DESC"):
        terms = ", ".join(f"{name} {direction}" for name in order)
        try:
            with reactions(path):
                for row in db.execute(f"SELECT {', '.join(columns)} FROM {source} ORDER BY {terms}"):
                    rows[row] = None
            complete = True
            break
        except MirrorError:
            continue
    return Found(sorted(rows, key=repr), [] if complete else [(-1, KEY_MAX)])


def tables(db: Database, path: Path) -> set[str]:
    """Return the names of the tables and indexes; empty if even those cannot be read."""
    try:
        with reactions(path):
            return {str(row[0]) for row in db.execute("SELECT name FROM sqlite_schema")}
    except Corrupt:
        return set()
