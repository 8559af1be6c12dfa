"""What the tests of the journal share: journals, batches of plain doubles, and the fold to compare with."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gateway.io.journal import Journal
from mirror.batch import Batch, Kind, equal
from mirror.state import State
from tests.mirror.batches import NOW_TICKS, table

T = TypeVar("T")
STREAM, TIMELINE, ORIGIN = "0123456789abcdef", "1-1", "a"


@functools.cache
def _template() -> Path:
    """A journal with its tables made; copying it is faster than making it."""
    path = Path(tempfile.mkdtemp(prefix="edgemirror-test-")) / "data" / "mirror.db"
    Journal.open(path, replica="a").close()
    return path


def fresh(directory: Path, *, tags: int = 6, **how: Any) -> Journal:
    """Return an open journal in a directory, with the tags of `tests.mirror.batches.table`."""
    path = directory / "mirror.db"
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), path)
    journal = Journal.open(path, replica="a", **how)
    with journal.transaction():
        journal.add_tags(table(tags).tags)
    return journal


def doubles(step: int, handles: Iterable[int] = range(6)) -> Batch:
    """Return one double for each handle, its time and value saying which step it is of."""
    handle = np.fromiter(handles, np.int64)
    batch = Batch.zeros(len(handle))
    batch.handle[:] = handle
    batch.source_ticks[:] = NOW_TICKS + step * 1_000_000 + handle
    batch.server_ticks[:] = batch.source_ticks + 5_000
    batch.kind[:] = Kind.DOUBLE
    batch.bits[:] = (step + handle / 1000).view(np.uint64)
    return batch


def fold(batches: Iterable[Batch]) -> State:
    """Return the state that results from all batches, one after the other."""
    state = State()
    for batch in batches:
        state.apply(batch)
    return state


def same(a: State, b: State) -> bool:
    """Tell whether two states hold the same values, bit for bit."""
    return bool((a.handles == b.handles).all()) and equal(a.batch(a.handles), b.batch(b.handles))


def killed(journal: Journal, to: Path) -> Path:
    """Return the path of a copy of the files as they are now: what a kill would leave."""
    to.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal"):
        source = journal.path.with_name(journal.path.name + suffix)
        if source.exists():
            shutil.copy(source, to / source.name)
    return to / journal.path.name


def inside(journal: Journal, act: Callable[[], T]) -> T:
    """Do something in a transaction of its own."""
    with journal.transaction():
        return act()
