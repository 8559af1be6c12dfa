"""Read a historian page by page, several tags in a call.

Continuation points are followed until the server has no more, and given back when the reader stops
early. Some servers cut a long answer off without one: after a full page without a continuation point the
rest is asked for again from the last time on. A tag that fails ends alone; the others go on.

What it does not do: remove rows that came live as well (`mirror.batch`), or choose what to ask for.

Source: OPC UA Part 4, 5.11.3; Part 11, 6.5.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from gateway.decode import read_history
from mirror.batch import Batch
from mirror.errors import Corrupt, Unavailable

PAGE_ROWS = 10_000
NODES_PER_CALL = 50
EMPTY_PAGES_MAX = 100  # a historian that promises more and sends nothing so often is given up
BAD_NODE_ID_UNKNOWN = 0x80340000
BAD_CONTINUATION_POINT = 0x804A0000
BAD_TOO_MANY_OPERATIONS = 0x80100000
_BAD = 0x80000000


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
        start_ticks, end_ticks: Bounds; rows a microsecond outside may come too, and a row twice.
        failed: Gets the StatusCode of each handle whose history could not be read to its end.
    """
    todo = [(dict(nodes), start_ticks)]
    while todo:
        part, begin = todo.pop()
        cut_off: dict[int, int] = {}
        found = _follow(historian, part, begin, end_ticks, failed, cut_off)
        async with contextlib.aclosing(found):
            async for batch in found:
                yield batch
        for handle, last_ticks in cut_off.items():
            if last_ticks > begin:
                todo.append(({handle: nodes[handle]}, last_ticks))
            else:
                failed[handle] = BAD_TOO_MANY_OPERATIONS  # more samples of one time than a page holds


async def _follow(
    historian: Historian, nodes: Mapping[int, str], start_ticks: int, end_ticks: int,
    failed: dict[int, int], cut_off: dict[int, int],
) -> AsyncGenerator[Batch, None]:  # fmt: skip
    """Yield pages as long as there are continuation points; `cut_off` gets the last time of full last pages."""
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
                    cut_off[handle] = int(result.batch.source_ticks.max())
                if handle in failed or not result.continuation:
                    del points[handle]
            for batch in found:
                yield batch
    finally:
        left = given_up | {nodes[handle]: point for handle, point in points.items() if point}
        if left:
            with contextlib.suppress(Unavailable, Corrupt):
                await historian.history_page(left, start_ticks, end_ticks, release=True)
