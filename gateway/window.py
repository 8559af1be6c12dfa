"""Which source times hold what a gap is missing, tag by tag, and whether a historian has told all of it.

A gap lies between two publish times, which are the server's. A historian is asked by source time, and the
clocks of sources may be wherever they like. But of each tag something is known on both sides: the newest time
before the gap, and the first row that was published after it. What is missing lies between the two. That first
row also bounds where the gap begins: a source's clock is behind the server's by no more than the row's publish
time is ahead of its source time.

The rule that makes it safe: a historian has told all of a tag when it also tells of the known ends, or of what
lies beyond them. One that is empty, begins too late, ends too early or lives by another clock proves nothing.

What it does not do: read the journal or ask anybody (`gateway.io.backfill`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.stream import CALENDAR_END
from mirror.batch import SOURCE_NULL, Batch, take
from mirror.coverage import Gap
from mirror.state import State

Ticks = NDArray[np.int64]
Handles = NDArray[np.uint32]


class Call(NamedTuple):
    """Tags that are asked for together, between two source times."""

    handles: list[int]
    start: int
    end: int


def times(rows: Batch | State) -> Ticks:
    """Return each row's source time, or the server's where it has none; 0 where that is no time."""
    ticks = np.where(rows.flags & SOURCE_NULL, rows.server_ticks, rows.source_ticks)
    return np.where((ticks > 0) & (ticks < CALENDAR_END), ticks, 0)


def newest(state: State, later: Iterable[Batch], handles: Handles) -> Ticks:
    """Return the newest time known of each tag, 0 where there is none.

    Args:
        state: Current rows.
        later: Rows that are not in it yet.
        handles: The tags, ascending.
    """
    current = np.append(times(state), np.int64(0))
    found: Ticks = current[np.minimum(handles, len(current) - 1)]
    for batch in later if len(handles) else ():
        at = np.minimum(np.searchsorted(handles, batch.handle), len(handles) - 1)
        known = handles[at] == batch.handle
        np.maximum.at(found, at[known], times(batch)[known])
    return found


class Question:
    """What a historian is asked to fill one gap, and what its answers prove.

    Args:
        gap: Its end is known.
        widen: Ticks by which two clocks, or a historian's sampling, may differ without a word.
        handles: uint32[n], ascending: the tags concerned.
        before: int64[n], the newest time known before the gap, 0 where there is none.
        after: int64[n], the time of the first row that was published after it, likewise.
        published: int64[n], when that was.

    Attributes:
        asked: Handles whose history is needed: a tag that still has the same time has not changed, unless the
            server says that it has.
        until: Publish time up to which rows of the answers may have come live.
    """

    def __init__(self, gap: Gap, widen: int, handles: Handles, before: Ticks, after: Ticks, published: Ticks) -> None:
        assert gap.end is not None, "a gap is filled once its end is known"
        self._handles, self._widen, self._before = handles, widen, before
        is_before, is_after = before > 0, after > 0
        lag = np.where(is_after, published - after, 0)  # the source's clock is behind by no more than this
        start = gap.start - widen - np.where(lag < -widen, lag, np.maximum(lag, 0))
        # What was known last is asked for too, with what a historian that samples by itself may have instead. For a
        # tag that had not changed for long that is another call.
        is_near = is_before & (~is_after | (before >= start))
        self._start = np.where(is_near, np.minimum(before - widen, start), start)
        # A clock that was set back may have shown later times in the gap than after it.
        is_far = after < gap.start - widen
        ahead = max(0, -int(lag.min(initial=0)), int((before - gap.start).max(initial=0)))
        end = np.where(is_after, np.where(is_far, after, np.maximum(after, gap.end)), gap.end + ahead) + widen
        self._end = np.maximum(end, self._start)
        self._last = np.where(is_after, after, before)  # what has to be told at the end, 0: nobody knows
        self._is_asked = ~(is_before & is_after & (before == after)) | (gap.tags is not None)
        self._begins, self._ends = (np.zeros(len(handles), np.bool_) for _ in range(2))
        self.asked = handles[self._is_asked]
        self.until = max(gap.end, int(published.max(initial=0)))

    def calls(self, handles: Collection[int]) -> Iterator[Call]:
        """Yield the calls for these of the tags asked for; tags of about the same window share one."""
        at = np.flatnonzero(np.isin(self._handles, np.fromiter(handles, np.uint32)))
        at = at[np.argsort(self._start[at], kind="stable")]
        group: list[int] = []
        end = longest = 0
        for i, start, until in zip(at.tolist(), self._start[at].tolist(), self._end[at].tolist(), strict=True):
            first = int(self._start[group[0]]) if group else start
            if group and max(end, until) - first > 2 * max(longest, until - start):
                yield self._call(group, end)
                group, end, longest = [], 0, 0
            group.append(i)
            end, longest = max(end, until), max(longest, until - start)
        if group:
            yield self._call(group, end)
        # A tag that had not changed for long: whether its history reaches that far back is asked by itself.
        for i in at[(self._before[at] > 0) & (self._before[at] < self._start[at])].tolist():
            yield Call([int(self._handles[i])], int(self._before[i]) - self._widen, int(self._before[i]))

    def _call(self, group: list[int], end: int) -> Call:
        return Call(self._handles[group].tolist(), int(self._start[group[0]]), end)

    def take(self, rows: Batch) -> Batch:
        """Return the rows of an answer that lie in their tags' windows, and note what they prove."""
        at, when = np.searchsorted(self._handles, rows.handle), times(rows)
        # A tag may have many rows: what one of them proves is proved.
        self._begins[at[(when > 0) & (when <= self._before[at])]] = True
        self._ends[at[(when > 0) & (when >= self._last[at])]] = True
        inside = (when == 0) | ((when >= self._start[at]) & (when <= self._end[at]))
        return rows if inside.all() else take(rows, np.flatnonzero(inside))

    @property
    def unproved(self) -> int:
        """Number of tags of which the answers do not reach what is known at both ends."""
        told = self._begins & self._ends & (self._last > 0)
        return int(np.count_nonzero(self._is_asked & ~told))

    @property
    def is_early(self) -> bool:
        """Whether that is so because the historian has not come to the end yet."""
        return self.unproved > 0 and not (self._is_asked & ~self._begins).any()
