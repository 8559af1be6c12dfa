"""A program that reads the journal never holds up the one that writes it, and what it costs is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.health import JournalFigures
from gateway.io import journal as journal_module
from gateway.io.doctor import examine
from gateway.io.journal import Journal
from gateway.io.reader import wal_bytes
from gateway.room import WAL_BYTES_MAX
from mirror.io.sqlite import BUSY_MS
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh
from tests.gateway.test_doctor import configuration

ROOT = Path(__file__).parents[2]
COMMITS = 40
#: Whoever waits for a lock waits so long before it gives up; a commit that waits for none takes an fsync.
COMMIT_S_MAX = BUSY_MS / 1000 / 2
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, chunk"
HOLDS = """
import sys, apsw
db = apsw.Connection(sys.argv[1], apsw.SQLITE_OPEN_READONLY)
db.execute("BEGIN")
print(db.execute("SELECT count(*) FROM chunk").get, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def reading(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a reader as another process; it is ended with the block, whatever it does then."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def commit(journal: Journal, size_bytes: int = 1_000) -> float:
    """Commit a chunk and checkpoint; return how long that took."""
    n, began = journal.committed, time.monotonic()
    with journal.transaction():
        journal.append(STREAM, TIMELINE, n, n + 1, ORIGIN, doubles(n), body=os.urandom(size_bytes))
    journal.wal_pages = max(journal.wal_pages, journal_module.WAL_PAGES)  # as after much more writing
    journal.maintain()
    return time.monotonic() - began


def is_held(journal: Journal) -> bool:
    """Tell whether somebody reads: then what was written since cannot leave the write-ahead log."""
    commit(journal)
    return journal.wal_pages > 0


def test_a_query_without_end_delays_no_commit(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    assert not is_held(journal)
    with reading("-m", "gateway", "sql", "--journal", journal.path, ENDLESS) as query:
        while not is_held(journal):
            assert query.poll() is None, query.communicate()
        slowest = max(commit(journal) for _ in range(COMMITS))
        assert query.poll() is None and journal.wal_pages > 0, "it reads to the end of this"
    assert slowest < COMMIT_S_MAX
    assert not is_held(journal)
    journal.close()


def test_a_reader_that_was_stopped_delays_no_commit_and_the_log_that_it_lets_grow_is_told(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    commit(journal)
    piece = 2 << 20
    with reading("-c", HOLDS, journal.path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        reader.send_signal(signal.SIGSTOP)
        slowest = max(commit(journal, piece) for _ in range(WAL_BYTES_MAX // piece + 1))
        (found,) = [f for f in examine(configuration(tmp_path)) if f.part == "readers"]
        assert found.level == "warn" and str(journal.path) in found.hint
        grown = wal_bytes(journal.path)
        assert grown > WAL_BYTES_MAX and JournalFigures(wal_bytes=grown).unread
    assert slowest < COMMIT_S_MAX
    assert not is_held(journal)
    commit(journal)  # the log begins anew
    assert wal_bytes(journal.path) <= journal_module.WAL_BYTES_KEPT
    (found,) = [f for f in examine(configuration(tmp_path)) if f.part == "readers"]
    assert found.level == "ok"
    journal.close()
