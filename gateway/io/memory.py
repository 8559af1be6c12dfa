"""Habits of memory: what a burst needed goes back to the system, and the collector looks seldom.

Columns live for milliseconds, in several threads. By default glibc gives each thread a heap of its own, raises
its threshold for separate mappings to the largest block it has seen, and Arrow keeps a third pool: each of them
then holds what its own largest burst needed, for good. Two heaps, a fixed threshold and one pool hold about a
quarter less in a gateway that pushes and publishes, at no measurable cost.

The collector of cycles looks through everything that lives whenever so many objects have been made; a start
makes a million that stay. Cycles are rare here (a failed task, a closed connection) and columns are none, so
that it may wait for more.

What it does not do: limit anything. Queues have limits; these are habits.
"""

from __future__ import annotations

import ctypes
import gc
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

HEAPS = 2
MAPPED_BYTES_MIN = 1 << 20  # a larger block is a mapping of its own, gone when it is freed
KEPT_BYTES_MAX = 4 << 20  # free memory at the end of a heap that is kept for the next burst
COLLECT_AFTER = (50_000, 20, 20)  # new objects, then rounds of the generation before


def settle() -> None:
    """Set the bounds; call before threads are started and before pyarrow is imported.

    An environment variable of glibc or Arrow that says otherwise wins; on another C library nothing happens.
    """
    gc.set_threshold(*COLLECT_AFTER)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, variable, value in (
        (_M_ARENA_MAX, "MALLOC_ARENA_MAX", HEAPS),
        (_M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", MAPPED_BYTES_MIN),
        (_M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", KEPT_BYTES_MAX),
    ):
        if variable not in os.environ:
            mallopt(parameter, value)
