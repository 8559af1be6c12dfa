"""Read a historian page by page, several tags in a call.

Continuation points are followed until the server has no more, and given back when the reader stops
early. Some servers cut a long answer off without one: after a full page without a continuation point the
rest is asked for again from the last time on. A tag that fails ends alone; the others go on.

What it does not do: remove rows that came live as well (`mirror.batch`), or choose what to ask for.

Source: OPC UA Part 4, 5.11.3; Part 11, 6.5.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np

from gateway.decode import read_history
from mirror.batch import Batch, take
from mirror.errors import Corrupt, Unavailable

PAGE_ROWS = 10_000
NODES_PER_CALL = 50
EMPTY_PAGES_MAX = 100  # a historian that promises more and sends nothing so often is given up
BAD_NODE_ID_UNKNOWN = 0x80340000
BAD_CONTINUATION_POINT = 0x804A0000
BAD_TOO_MANY_OPERATIONS = 0x80100000
_BAD = 0x80000000
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


Key = tuple[int, int, int, int, bytes]  # source time and picoseconds, status, kind, value


def time_of(ticks: int) -> datetime:
    """Return the microsecond that a time in ticks lies in, within what a datetime can hold."""
    return _EPOCH + timedelta(microseconds=min(max(ticks, 0) // 10, 2**58 // 10))


class Historian(Protocol):
    """What of a connection reading history needs."""

    async def history_page(
        self, points: Mapping[str, bytes], start_ticks: int, end_ticks: int, *, release: bool
    ) -> bytes:
        """Send one HistoryRead for nodes with their continuation points and return the response."""


async def pages(
    historian: Historian, nodes: Mapping[int, str], start_ticks: int, end_ticks: int, failed: dict[int, int]
) -> AsyncGenerator[Batch, None]:
    """Yield the rows of some tags between two source times, a page of one tag at a time, oldest first.

    Args:
        historian: An open connection.
        nodes: By handle, the node; at most as many as one call may carry.
        start_ticks, end_ticks: Bounds; rows a microsecond outside may come too.
        failed: Gets the StatusCode of each handle whose history could not be read to its end.
    """
    todo: list[tuple[Mapping[int, str], int, set[Key]]] = [(nodes, start_ticks, set())]
    while todo:
        part, begin, seen = todo.pop()
        cut_off: dict[int, Batch] = {}
        found = _follow(historian, part, begin, end_ticks, failed, cut_off)
        async with contextlib.aclosing(found):
            async for batch in found:
                fresh = [row for row, key in enumerate(_keys(batch)) if key not in seen] if seen else None
                yield batch if fresh is None else take(batch, np.array(fresh, np.int64))
        for handle, last in cut_off.items():
            last_ticks = int(last.source_ticks.max())
            if last_ticks > begin:
                # The server is asked to the microsecond: what it sends twice lies within the last one.
                again = take(last, last.source_ticks >= last_ticks - last_ticks % 10)
                todo.append(({handle: nodes[handle]}, last_ticks, set(_keys(again))))
            else:
                failed[handle] = BAD_TOO_MANY_OPERATIONS  # more samples of one time than a page holds


def _keys(batch: Batch) -> Iterator[Key]:
    """Yield what tells one row of a tag from another."""
    columns = (batch.source_ticks, batch.source_ps, batch.status, batch.kind)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for row, (ticks, ps, status, kind) in enumerate(rows):
        yield ticks, ps, status, kind, batch.value_bytes(row)


async def _follow(
    historian: Historian, nodes: Mapping[int, str], start_ticks: int, end_ticks: int,
    failed: dict[int, int], cut_off: dict[int, Batch],
) -> AsyncGenerator[Batch, None]:  # fmt: skip
    """Yield pages as long as there are continuation points; `cut_off` gets full pages that came last."""
    points = dict.fromkeys(nodes, b"")
    empty = dict.fromkeys(nodes, 0)
    given_up: dict[str, bytes] = {}
    try:
        while points:
            asked = list(points)
            body = await historian.history_page(
                {nodes[h]: points[h] for h in asked}, start_ticks, end_ticks, release=False
            )
            found = []
            for handle, result in zip(asked, read_history(body, len(asked), 4 * PAGE_ROWS), strict=True):
                rows = len(result.batch)
                empty[handle] = 0 if rows else empty[handle] + 1
                points[handle] = result.continuation
                if rows:
                    found.append(replace(result.batch, handle=np.full(rows, handle, np.uint32)))
                if result.status & _BAD:
                    failed[handle] = result.status
                elif result.continuation and empty[handle] > EMPTY_PAGES_MAX:
                    failed[handle] = BAD_CONTINUATION_POINT
                    given_up[nodes[handle]] = result.continuation
                elif rows >= PAGE_ROWS and not result.continuation:
                    cut_off[handle] = result.batch
                if handle in failed or not result.continuation:
                    del points[handle]
            for batch in found:
                yield batch
    finally:
        left = given_up | {nodes[handle]: point for handle, point in points.items() if point}
        if left:
            with contextlib.suppress(Unavailable, Corrupt):
                await historian.history_page(left, start_ticks, end_ticks, release=True)
