"""A table of claimed intervals: disjoint, never touching, by stream, timeline, origin and grade.

Coverage grows by one interval with each commit, nearly always at its end. So the last interval of a key
is remembered and lengthened by one UPDATE; everything else is looked up. The memory is only a shortcut
to rows that are there: whoever rolls a transaction back calls `forget`.

What this module does not do: begin or end a transaction (`gateway.io.journal`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirror.coverage import Coverage

_OF_KEY = "stream = ? AND timeline = ? AND origin = ? AND grade = ?"

_Key = tuple[str, str, str, str]


class IntervalTable:
    """One such table, `coverage` or `promise`.

    Args:
        run: Executes a statement with its values and returns a cursor.
        name: The table's name.
    """

    def __init__(self, run: Callable[[str, tuple[Any, ...]], Any], name: str) -> None:
        self._run = run
        self._name = name
        self._last: dict[_Key, tuple[int, int]] = {}

    def forget(self) -> None:
        """Trust no memory of rows: a transaction was rolled back, or somebody else wrote."""
        self._last.clear()

    def add(self, claim: Coverage) -> None:
        """Add an interval; it joins what it touches of the same key."""
        assert claim.start < claim.end
        key, start, end = (*claim.key, str(claim.grade)), claim.start, claim.end
        last = self._last.get(key)
        if last is not None and last[0] <= start <= last[1]:
            if end > last[1]:
                self._run(f'UPDATE {self._name} SET "end" = ? WHERE {_OF_KEY} AND start = ?', (end, *key, last[0]))
                self._last[key] = (last[0], end)
            return
        self._last.pop(key, None)
        touched = f'FROM {self._name} WHERE {_OF_KEY} AND start <= ? AND "end" >= ?'
        low, high = self._run(f'SELECT min(start), max("end") {touched}', (*key, end, start)).get
        if low is not None:
            self._run(f"DELETE {touched}", (*key, end, start))
            start, end = min(low, start), max(high, end)
        self._run(f"INSERT INTO {self._name} VALUES (?, ?, ?, ?, ?, ?)", (*key, start, end))
        later = f"SELECT EXISTS (SELECT 1 FROM {self._name} WHERE {_OF_KEY} AND start > ?)"
        if not self._run(later, (*key, start)).get:
            self._last[key] = (start, end)

    def subtract(self, claim: Coverage) -> None:
        """Take an interval out, whatever its grade."""
        self.forget()
        rows = self._run(
            f'SELECT grade, start, "end" FROM {self._name} WHERE stream = ? AND timeline = ? AND origin = ?'
            ' AND start < ? AND "end" > ?',
            (*claim.key, claim.end, claim.start),
        ).fetchall()
        for grade, start, end in rows:
            key = (*claim.key, grade)
            self._run(f"DELETE FROM {self._name} WHERE {_OF_KEY} AND start = ?", (*key, start))
            for left in ((start, claim.start), (claim.end, end)):
                if left[0] < left[1]:
                    self._run(f"INSERT INTO {self._name} VALUES (?, ?, ?, ?, ?, ?)", (*key, *left))

    def clear(self) -> None:
        """Remove everything."""
        self.forget()
        self._run(f"DELETE FROM {self._name}", ())
