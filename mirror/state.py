"""The current value of every tag: the fold of all samples, last writer wins on the sample's own fields.

A row wins over the current one if its time is later (source, or server where the source has none) or, at
the same time, if it stands later in canonical order (`mirror.batch`): picoseconds, status, kind, value, then
the rest of its content. Nothing of that comes from this box, so two replicas that saw the same rows hold
the same state, whatever the order of arrival. Rows are compared before anything is written.

In two cases the key cannot decide and the row that arrives later wins: where either of the two rows has no
time at all, and where either is flagged AHEAD, since a clock that once jumped ahead would freeze the tag
until its time comes. Both end by themselves with the next ordinary row.

What this module does not do: store anything (the journal keeps rows of it), or tell whether a value is
good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirror.batch import (
    AHEAD,
    FIXED_WIDTH,
    IN_HEAP,
    NO_HEAP,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
    canonical_order,
    concat,
    take,
)

Handles = NDArray[np.uint32]
SqlValue = float | int | str | bytes | None

HANDLES_MAX = 1 << 24
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_COLUMNS = {
    "source_ticks": np.int64, "server_ticks": np.int64, "source_ps": np.uint16, "server_ps": np.uint16,
    "status": np.uint32, "flags": np.uint8, "kind": np.uint8, "bits": np.uint64,
}  # fmt: skip
_NO_TIME = SOURCE_NULL | SERVER_NULL


class State:
    """Columns by handle; they grow with the largest handle seen.

    Attributes:
        source_ticks, server_ticks, source_ps, server_ps, status, flags, kind, bits: As in `Batch`, one slot
            a handle; `bits` is 0 for kinds in the heap. Read them, do not write.
        known: bool, whether the tag has a value yet; the other columns are 0 where not.
        heap: Bodies of the values that are not of fixed width, by handle.
    """

    source_ticks: NDArray[np.int64]
    server_ticks: NDArray[np.int64]
    source_ps: NDArray[np.uint16]
    server_ps: NDArray[np.uint16]
    status: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    bits: NDArray[np.uint64]

    def __init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))
        self.known = np.zeros(0, np.bool_)
        self.heap: dict[int, bytes] = {}
        self._time = np.zeros(0, np.int64)  # what the current row is compared by
        self._loose = np.zeros(0, np.bool_)  # whether any row replaces the current one
        self._rank = np.zeros(0, np.uint32)  # handles in their own order, for canonical_order

    def __len__(self) -> int:
        """Return how many tags have a value."""
        return int(np.count_nonzero(self.known))

    @property
    def handles(self) -> Handles:
        """The handles that have a value, ascending."""
        return np.flatnonzero(self.known).astype(np.uint32)

    def apply(self, batch: Batch) -> Handles:
        """Take in the rows of a batch and return the handles whose current row changed, each once.

        A row that is current already changes nothing, unless it has no time or is AHEAD. Records of reserved
        kinds (alarms and events to come) are not values and are passed over.
        """
        reserved = batch.kind & np.uint8(0x3F) >= Kind.RESERVED_EVENT
        if reserved.any():
            batch = take(batch, np.flatnonzero(~reserved))
        if len(batch) == 0:
            return np.zeros(0, np.uint32)
        size = int(batch.handle.max()) + 1
        assert size <= HANDLES_MAX, f"handle {size - 1} is beyond {HANDLES_MAX}: handles are dense from 0"
        self._grow(size)
        time, loose = batch.source_ticks, np.zeros(len(batch), np.bool_)
        if batch.flags.any():
            time = np.where(batch.flags & SOURCE_NULL, batch.server_ticks, time)
            loose = (batch.flags & AHEAD != 0) | (batch.flags & _NO_TIME == _NO_TIME)
        rows, forced = None, loose
        if not (_ascending(batch.handle) or _unique(batch.handle.astype(np.intp), len(self.known))):
            rows, forced = self._last_of_each(batch, time, loose)
        handle = (batch.handle if rows is None else batch.handle[rows]).astype(np.intp)
        now = time if rows is None else time[rows]
        before = self._time[handle]
        wins = (now > before) | forced | self._loose[handle]
        tied = np.flatnonzero((now == before) & ~wins)
        if len(tied):
            at = tied if rows is None else rows[tied]
            wins[tied[self._beats_current(take(batch, at))]] = True
        if not wins.all():
            rows = np.flatnonzero(wins) if rows is None else rows[wins]
            handle = handle[wins]
        self._write(batch, rows, handle, time, loose)
        return handle.astype(np.uint32)

    def _grow(self, size: int) -> None:
        have = len(self.known)
        if size <= have:
            return
        more = max(size, have + have // 2) - have
        for name, dtype in {**_COLUMNS, "known": np.bool_, "_time": np.int64}.items():
            setattr(self, name, np.concatenate((getattr(self, name), np.zeros(more, dtype))))
        self._loose = np.concatenate((self._loose, np.ones(more, np.bool_)))
        self._rank = np.arange(have + more, dtype=np.uint32)

    def _last_of_each(
        self, batch: Batch, time: NDArray[np.int64], loose: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return one row for each handle of the batch, and whether it wins whatever the current row is.

        Rows before the last loose one of their handle are out: the loose one replaced them. It is out itself
        if a row follows it, for any row replaces a loose one.
        """
        handle = batch.handle.astype(np.intp)
        place = np.arange(len(handle))
        rows, forced = place, loose
        if loose.any():
            last, last_loose = (np.full(len(self.known), -1, np.int64) for _ in range(2))
            np.maximum.at(last, handle, place)
            np.maximum.at(last_loose, handle[loose], place[loose])
            rows = np.flatnonzero((place > last_loose[handle]) | (place == last[handle]))
            forced = last_loose[handle] >= 0
        latest = np.full(len(self.known), INT64_MIN, np.int64)
        np.maximum.at(latest, handle[rows], time[rows])
        rows = rows[time[rows] == latest[handle[rows]]]
        if not _unique(handle[rows], len(self.known)):
            order = canonical_order(take(batch, rows), self._rank)
            rows = rows[order[_ends(handle[rows][order])]]
        return rows, forced[rows]

    def _beats_current(self, rows: Batch) -> NDArray[np.int64]:
        """Return which of the rows, one a handle and each at its current row's time, come after that row."""
        current = self.batch(rows.handle)
        same = ~IN_HEAP[rows.kind] & (rows.bits == current.bits)
        for name in _COLUMNS:
            if name != "bits":
                same &= getattr(rows, name) == getattr(current, name)
        differ = np.flatnonzero(~same)
        if not len(differ):
            return differ
        # The current rows stand last, so that they also win against equal ones: the order is stable.
        both = concat([take(rows, differ), take(current, differ)])
        order = canonical_order(both, self._rank)
        winners = order[_ends(both.handle[order])]
        return differ[np.sort(winners[winners < len(differ)])]

    def _write(
        self,
        batch: Batch,
        rows: NDArray[np.int64] | None,
        handle: NDArray[np.intp],
        time: NDArray[np.int64],
        loose: NDArray[np.bool_],
    ) -> None:
        """Make rows of the batch (None: all) the current ones of their handles."""
        if len(handle) == 0:
            return
        span = int(handle[-1] - handle[0]) + 1 == len(handle) and _ascending(handle)
        at = slice(int(handle[0]), int(handle[-1]) + 1) if span else handle
        new: dict[str, NDArray[Any]] = {name: getattr(batch, name) for name in _COLUMNS}
        new |= {"_time": time, "_loose": loose}
        if rows is not None:
            new = {name: column[rows] for name, column in new.items()}
        heaped = np.flatnonzero(IN_HEAP[new["kind"]])
        if self.heap:
            for gone in handle[IN_HEAP[self.kind[at]] & ~IN_HEAP[new["kind"]]].tolist():
                del self.heap[gone]
        if len(heaped):
            entries = new["bits"][heaped].tolist()
            self.heap.update(zip(handle[heaped].tolist(), map(batch.heap.__getitem__, entries), strict=True))
            new["bits"] = np.where(IN_HEAP[new["kind"]], np.uint64(0), new["bits"])
        for name, column in new.items():
            getattr(self, name)[at] = column
        self.known[at] = True

    def batch(self, handles: Handles) -> Batch:
        """Return the current rows of the handles that have a value, in the order given."""
        at = self._known(handles)
        columns = {name: getattr(self, name)[at] for name in _COLUMNS}
        heaped = IN_HEAP[columns["kind"]]
        heap = NO_HEAP
        if heaped.any():
            heap = Heap.of([self.heap[h] for h in at[heaped].tolist()])
            columns["bits"][heaped] = np.arange(len(heap), dtype=np.uint64)
        return Batch(handle=at.astype(np.uint32), heap=heap, **columns)

    def rows(self, handles: Handles) -> Iterator[tuple[int, int | None, int | None, int, int, SqlValue]]:
        """Yield (handle, source ticks, server ticks, status, kind, value) as SQL can bind them.

        Null times are None. A value is a float, an int (Boolean 0 or 1, DateTime ticks), for a UInt64 above
        2**63 - 1 its decimal text, for a String its text or None, and for every other kind, and a String that
        is not UTF-8, the body's bytes. NaN stays NaN, which SQLite stores as NULL: the kind tells. For a copy
        that is exact use `batch`. Handles without a value are left out.
        """
        at = self._known(handles)
        flags = self.flags[at]
        source, server = self.source_ticks[at].astype(object), self.server_ticks[at].astype(object)
        source[flags & SOURCE_NULL != 0] = None
        server[flags & SERVER_NULL != 0] = None
        columns = (at, source, server, self.status[at], self.kind[at], self._sql_values(at))
        return zip(*(c.tolist() for c in columns), strict=True)

    def row(self, handle: int) -> tuple[int, int | None, int | None, int, int, SqlValue] | None:
        """Return one row of `rows`, or None where the tag has no value yet."""
        return next(self.rows(np.array([handle], np.uint32)), None)

    def _known(self, handles: Handles) -> NDArray[np.intp]:
        at = np.asarray(handles).astype(np.intp)
        at = at[at < len(self.known)]
        return at[self.known[at]]

    def _sql_values(self, at: NDArray[np.intp]) -> NDArray[np.object_]:
        kind, bits = self.kind[at], self.bits[at]
        values = bits.view(np.int64).astype(object)
        floats = kind == Kind.FLOAT
        values[floats] = bits[floats].astype(np.uint32).view(np.float32).astype(np.float64)
        doubles = kind == Kind.DOUBLE
        values[doubles] = bits[doubles].view(np.float64)
        large = (kind == Kind.UINT64) & (bits > INT64_MAX)
        values[large] = [str(v) for v in bits[large].tolist()]
        values[FIXED_WIDTH[kind] == 0] = None
        heaped = np.flatnonzero(IN_HEAP[kind])
        for i, handle, k in zip(heaped.tolist(), at[heaped].tolist(), kind[heaped].tolist(), strict=True):
            values[i] = _sql_body(k, self.heap[handle])
        return values


def _sql_body(kind: int, body: bytes) -> str | bytes | None:
    if kind != Kind.STRING:
        return body
    if body[:4] == b"\xff\xff\xff\xff":
        return None
    try:
        return body[4:].decode()
    except UnicodeDecodeError:
        return body


def _ascending(handle: NDArray[Any]) -> bool:
    return bool((handle[1:] > handle[:-1]).all())


def _unique(handle: NDArray[np.intp], size: int) -> bool:
    seen = np.zeros(size, np.bool_)
    seen[handle] = True
    return int(np.count_nonzero(seen)) == len(handle)


def _ends(ordered: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of the last of each run of equal numbers."""
    return np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
