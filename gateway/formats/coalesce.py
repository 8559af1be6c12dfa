"""The last row of each tag: what a consumer needs who was away, or who is slower than the plant.

A `Latest` takes batches as they come and gives back one batch in which every tag stands at most once,
with the row that arrived last. It never holds more than about two rows a tag, and for values in the heap
never more than twice their last bytes plus a fixed allowance, however long nobody asks.

"Last" is by arrival. The mirror's own fold, which compares time stamps, is `mirror.state`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mirror.batch import NO_VALUE, SOURCE_NULL, Batch, Kind, concat, take

ROWS_FREE = 4096  # rows that may pile up before anything is folded
HEAP_BYTES_FREE = 4 << 20


def last_rows(handle: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the index of the last row of each handle, in the order of the rows; int64[k], k <= n."""
    n = len(handle)
    if n == 0:
        return np.zeros(0, np.int64)
    top = int(handle.max())
    if top > 64 * n + (1 << 20):  # few rows of far handles: sorting costs less than the table
        _, first = np.unique(handle[::-1], return_index=True)
        return np.sort(n - 1 - first)
    rows = np.arange(n)
    last = np.empty(top + 1, np.int64)  # only the places written next are read
    last[handle] = rows  # of equal indices the last one stays
    return np.flatnonzero(last[handle] == rows)


class Latest:
    """Batches folded to the last row of each tag."""

    def __init__(self) -> None:
        self._parts: list[Batch] = []
        self._rows = 0
        self._heap_bytes = 0
        self._rows_max = ROWS_FREE
        self._heap_bytes_max = HEAP_BYTES_FREE

    def __len__(self) -> int:
        """Rows held, of which some may already be out of date."""
        return self._rows

    def add(self, batch: Batch) -> None:
        """Take a batch; folds when twice as much is held as after the last fold."""
        self._parts.append(batch)
        self._rows += len(batch)
        self._heap_bytes += len(batch.heap.data)
        if self._rows > self._rows_max or self._heap_bytes > self._heap_bytes_max:
            self.batch()

    def add_before(self, batch: Batch) -> None:
        """Take a batch that is older than everything held."""
        self._parts.insert(0, batch)
        self._rows += len(batch)
        self._heap_bytes += len(batch.heap.data)

    def batch(self) -> Batch:
        """Return the last row of each tag and keep it."""
        whole = concat(self._parts)
        index = last_rows(whole.handle)
        if len(index) < len(whole):
            whole = take(whole, index)
        self._keep([whole])
        self._rows_max = 2 * len(whole) + ROWS_FREE
        self._heap_bytes_max = 2 * len(whole.heap.data) + HEAP_BYTES_FREE
        return whole

    def pop(self) -> Batch:
        """Return the last row of each tag and hold nothing."""
        whole = self.batch()
        self._keep([])
        return whole

    def _keep(self, parts: Sequence[Batch]) -> None:
        self._parts = list(parts)
        self._rows = sum(map(len, parts))
        self._heap_bytes = sum(len(p.heap.data) for p in parts)


def bad_rows(handles: NDArray[np.uint32], status: int, ticks: int) -> Batch:
    """Return one row without a value for each handle: what is left to say of a tag whose source is gone.

    Args:
        handles: uint32[n].
        status: The status code to give all of them.
        ticks: Server time to give all of them, 100 ns since 1601.
    """
    batch = Batch.zeros(len(handles))
    batch.handle[:] = handles
    batch.server_ticks[:] = ticks
    batch.status[:] = status
    batch.flags[:] = SOURCE_NULL | NO_VALUE
    batch.kind[:] = Kind.NULL
    return batch
