"""The gap ledger: its rows, and what of it the log may not know yet.

A gap never leaves the ledger, and one that is closed does not change any more. So those that the log knows as
closed are forgotten, and a look costs what is new, open or not told yet, however long the ledger has become.

What this module does not do: begin or end a transaction (`gateway.io.journal`), or decide what is told next
(`gateway.sync`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from mirror.coverage import Closure, Gap, Reason

GAPS = 'SELECT id, stream, timeline, start, reason, "end", tags, closed_by, closed_reason, rowid FROM gap'

#: Record a gap, or widen it to a later end and other tags while it is open.
OPEN_GAP = (
    'INSERT INTO gap (id, stream, timeline, start, reason, "end", tags, closed_by, closed_reason)'
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
    ' SET "end" = coalesce(excluded."end", "end"), tags = excluded.tags WHERE closed_by IS NULL'
)

#: By end, closure, reason and id.
CLOSE_GAP = (
    'UPDATE gap SET "end" = ifnull("end", ?), closed_by = ?, closed_reason = ? WHERE id = ? AND closed_by IS NULL'
)


def gap_values(gap: Gap) -> tuple[object, ...]:
    """Return what OPEN_GAP binds."""
    tags = None if gap.tags is None else msgspec.json.encode(gap.tags).decode()
    closed_by = None if gap.closed_by is None else str(gap.closed_by)
    return (gap.id, gap.stream, gap.timeline, gap.start, str(gap.reason), gap.end, tags, closed_by, gap.closed_reason)


def gap_of(row: Any) -> Gap:
    """Return the gap of a row of GAPS."""
    id, stream, timeline, start, reason, end, tags, closed_by, closed_reason, _ = row
    return Gap(
        id, stream, timeline, start, Reason(reason), end,
        None if tags is None else msgspec.json.decode(tags, type=list[str]),
        None if closed_by is None else Closure(closed_by), closed_reason,
    )  # fmt: skip


class Reader(Protocol):
    """What of a journal's reader is needed here; see `gateway.io.reader.JournalReader`."""

    def gaps(self, *, open_only: bool = False) -> list[Gap]: ...
    def gaps_since(self, row: int) -> list[tuple[int, Gap]]: ...
    def gap(self, id: str) -> Gap: ...


class Ledger:
    """One journal's gaps, for one log.

    Args:
        reader: Of the journal.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._forget()

    def _forget(self) -> None:
        self._row = self._told = 0
        self._known: dict[str, Gap] = {}  # by id, oldest first: not yet told as closed
        self._open: set[str] = set()
        self._damaged: list[Gap] = []

    def read(self, told: Mapping[str, str]) -> tuple[list[Gap], list[Gap]]:
        """Return the gaps that the log may not know in full, and those that say that a chunk is unreadable.

        Args:
            told: What the log knows (`mirror.prefix.Saved.told`); it only grows, or is another log's.
        """
        if len(told) < self._told:
            self._forget()
        self._told = len(told)
        for row, gap in self._reader.gaps_since(self._row):
            self._row = row
            if gap.reason is Reason.UNDECODABLE and gap.tags is None:
                self._damaged.append(gap)
            if told.get(gap.id) != "closed":
                self._known[gap.id] = gap
        still_open = {gap.id: gap for gap in self._reader.gaps(open_only=True) if gap.id in self._known}
        self._known |= still_open | {id: self._reader.gap(id) for id in self._open - still_open.keys()}
        self._open = set(still_open)
        for id in [id for id in self._known if told.get(id) == "closed"]:
            del self._known[id]
        return list(self._known.values()), self._damaged
