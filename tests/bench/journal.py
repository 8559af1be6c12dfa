"""What the journal costs on disk and in time: the reference mix at 10,000 tags, appended at a steady pace.

Bytes per change are the growth of the closed file, free pages included, divided by the changes, after the tags
and a first value of each are in it; the WAL beside it (`wal_mib`) does not grow with the changes. `written` is
what the process gave the disk, the wear: chunks go through the WAL into the file, so it is at least twice the
size. Latency is that of a transaction from its first statement to the return of the commit, state rows that are
due included.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror.batch import Batch, take
from mirror.coverage import Coverage, Grade, Promise
from tests.bench import mix
from tests.bench.rig import table, usage

INTERVAL_TICKS = 1_000_000
SMALL_COMMITS = 200


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tags", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100_000.0, help="changes a second")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return sizes, times and the cost of the state's rows."""
    period_s = chosen.tags / chosen.rate
    batches = list(mix.mix(chosen.tags, int(chosen.seconds / period_s) + 1))
    with tempfile.TemporaryDirectory(prefix="edgemirror-bench-") as name:
        path = Path(name) / "data" / "mirror.db"
        journal = Journal.open(path, replica="a")
        with journal.transaction():
            journal.add_tags(mix.tags(chosen.tags))
        with journal.transaction():
            _append(journal, batches[0], 0)
        journal.close()
        size = path.stat().st_size
        journal = Journal.open(path, replica="a")
        try:
            figures = _measure(journal, batches[1:], period_s)
        finally:
            journal.close()
        figures["bytes_per_change"] = round((path.stat().st_size - size) / figures["changes"], 2)
        figures["lost"] = sum(map(len, batches)) + SMALL_COMMITS - _held(path)
    print(table(list(figures.items())))
    return figures


def _held(path: Path) -> int:
    """Return the changes that the file has."""
    reader = JournalReader.open(path)
    try:
        return reader.backlog(Promise()).rows
    finally:
        reader.close()


def _measure(journal: Journal, batches: list[Batch], period_s: float) -> dict[str, Any]:
    written, cpu_s, began = _written(), time.process_time(), time.monotonic()
    taken = []
    for k, batch in enumerate(batches, 1):
        time.sleep(max(0.0, began + k * period_s - time.monotonic()))
        start = time.perf_counter()
        with journal.transaction():
            _append(journal, batch, k)
        taken.append((time.perf_counter() - start) * 1e3)
        journal.maintain()
    wal = journal.size_bytes - journal.path.stat().st_size
    changes = sum(map(len, batches))
    cpu_s, seconds = time.process_time() - cpu_s, time.monotonic() - began
    written, due = _written() - written, journal.dirty
    start = time.perf_counter()
    with journal.transaction():
        journal.flush_state()
    flush_ms = (time.perf_counter() - start) * 1e3
    p50, p99 = np.percentile(taken, (50, 99))
    return {
        "name": "journal", "us_per_change": round(cpu_s / changes * 1e6, 3), "rate_per_s": round(changes / seconds),
        "bytes_per_change": None, "written_bytes_per_change": round(written / changes, 2),
        "wal_mib": round(wal / 2**20, 1), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2),
        "state_rows_flushed": due, "state_flush_ms": round(flush_ms, 1), "changes": changes,
        "small_commit_cpu_ms": _small_commit_ms(journal, batches[0], len(batches) + 1),
        "rss_mib": round(usage(os.getpid()).pss_mib, 1),
    }  # fmt: skip


def _small_commit_ms(journal: Journal, batch: Batch, k: int) -> float:
    """Return the CPU time of a transaction with one change, its state row included: what a commit costs by itself."""
    one = take(batch, np.arange(1))
    start = time.process_time()
    for more in range(SMALL_COMMITS):
        with journal.transaction():
            _append(journal, one, k + more)
    return round((time.process_time() - start) / SMALL_COMMITS * 1e3, 2)


def _append(journal: Journal, batch: Batch, k: int) -> None:
    start = mix.START_TICKS + k * INTERVAL_TICKS
    journal.append("0" * 16, "1-0", start, start + INTERVAL_TICKS, "a", batch)
    journal.extend(Coverage("0" * 16, "1-0", start, start + INTERVAL_TICKS, "a", Grade.COVERED))


def _written() -> int:
    """Return the bytes that this process has given to disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["write_bytes"])
