"""A journal that is too large: what the cloud has goes before its time, what it lacks stays, pages go back."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.config import parse
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal, JournalReader
from gateway.io.upkeep import Upkeep
from mirror.coverage import Coverage, Promise
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh, inside
from tests.gateway.test_config import MINIMAL

BUCKET = '[sync]\nbucket = "s3://b/p"\n'


def crowded(folder: Path, chunks: int = 1_200, body: int = 4_000) -> Journal:
    """Return a journal of some MiB, all of it just received, all of it in the state rows."""
    journal = fresh(folder / "data", tags=1)
    with journal.transaction():
        for n in range(chunks):
            journal.append(STREAM, TIMELINE, n, n + 1, ORIGIN, doubles(n, [0]), body=b"x" * body)
    inside(journal, journal.flush_state)
    return journal


def checkpoint(journal: Journal) -> int:
    """Move the WAL into the file, as after much more writing; return what remains of it."""
    journal.wal_pages = 1_000
    return journal.maintain()


def seqs(journal: Journal) -> list[int]:
    reader = JournalReader.open(journal.path)
    try:
        return [row.seq for row in reader.chunks_since(0, 99_999)]
    finally:
        reader.close()


def test_what_the_cloud_has_goes_by_size_the_oldest_first_and_no_more_than_is_needed(tmp_path: Path) -> None:
    journal = crowded(tmp_path)
    size = journal.used_bytes
    promise = Promise([Coverage(STREAM, TIMELINE, 0, 1_000, ORIGIN)])
    assert inside(journal, lambda: journal.trim(promise, keep_s=3_600)) == 0, "nothing of it is old"
    assert inside(journal, lambda: journal.trim_to(size, promise)) == 0
    trimmed = inside(journal, lambda: journal.trim_to(size // 2, promise))
    while more := inside(journal, lambda: journal.trim_to(size // 2, promise)):
        trimmed += more
    assert seqs(journal) == list(range(trimmed + 1, 1_201))
    assert 0.45 * size < journal.used_bytes <= size // 2
    journal.close()


def test_what_the_cloud_lacks_never_goes_however_large_it_is(tmp_path: Path) -> None:
    journal = crowded(tmp_path)
    parts = [Coverage(STREAM, TIMELINE, 0, 10, ORIGIN), Coverage(STREAM, TIMELINE, 500, 600, ORIGIN),
             Coverage(STREAM, TIMELINE, 700, 800, "b"), Coverage(STREAM, "2-1", 0, 2_000, ORIGIN)]  # fmt: skip
    while inside(journal, lambda: journal.trim_to(0, Promise(parts), limit=7)):
        pass
    assert seqs(journal) == [n + 1 for n in range(1_200) if not (n < 10 or 500 <= n < 600)]
    assert inside(journal, lambda: journal.trim_to(0, Promise([]))) == 0
    journal.close()


def test_a_chunk_that_the_state_rows_need_does_not_go_by_size(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data", tags=1, state_period_s=3_600.0)
    for n in range(3):
        inside(journal, partial(journal.append, STREAM, TIMELINE, n, n + 1, ORIGIN, doubles(n, [0])))
    promise = Promise([Coverage(STREAM, TIMELINE, 0, 3, ORIGIN)])
    mark = journal._mark
    while inside(journal, lambda: journal.trim_to(0, promise)):
        pass
    assert seqs(journal) == [n for n in (1, 2, 3) if n > mark] != []
    journal.close()


def test_freed_pages_are_used_again_and_those_above_a_size_go_back_to_the_disk(tmp_path: Path) -> None:
    journal = crowded(tmp_path)
    reader = JournalReader.open(journal.path)
    promise = Promise([Coverage(STREAM, TIMELINE, 0, 1_000, ORIGIN)])
    inside(journal, lambda: journal.trim_to(0, promise, limit=99_999))
    assert checkpoint(journal) == 0
    full = journal.path.stat().st_size
    with journal.transaction():
        for n in range(300):
            journal.append(STREAM, TIMELINE, 2_000 + n, 2_001 + n, ORIGIN, doubles(n, [0]), body=b"y" * 4_000)
    assert checkpoint(journal) == 0 and journal.path.stat().st_size == full, "free pages come first"
    goal = 3 << 20
    while inside(journal, lambda: journal.give_back(goal, limit=100)):
        pass
    assert checkpoint(journal) == 0
    assert journal.used_bytes < journal.path.stat().st_size <= goal < full
    assert inside(journal, lambda: journal.give_back(0)) > 0
    assert inside(journal, lambda: journal.give_back(0)) == 0
    assert len(reader.chunks_since(0, 9_999)) == 500 and reader.chunks_since(1_200, 1)[0].body == b"y" * 4_000
    reader.close()
    journal.close()


def upkeep(journal: Journal, max_bytes: float, pushed: int, bucket: str = "") -> list[dict[str, Any]]:
    """Take two turns over a journal that nothing is too old in; return the events."""
    text = MINIMAL + f"[journal]\nmax_gib = {max_bytes / 2**30:.12f}\n{bucket}"
    ingest = Ingest(
        journal, replica="a", commit_s=0.0, inbox_bytes_max=1 << 20, on_durable=lambda _: None, on_room=lambda: None
    )
    looking = Upkeep(
        parse(text), journal.path, ingest, lambda: Promise([Coverage(STREAM, TIMELINE, 0, pushed, ORIGIN)])
    )
    told = io.StringIO()
    ingest.start()

    async def turns() -> None:
        await looking.turn()
        await looking.turn()

    with contextlib.redirect_stderr(told):
        asyncio.run(asyncio.wait_for(turns(), 30))
    ingest.stop()
    return [json.loads(line) for line in told.getvalue().splitlines()]


def test_a_journal_above_its_size_loses_what_the_cloud_has_and_fits_again(tmp_path: Path) -> None:
    journal = crowded(tmp_path)
    checkpoint(journal)
    size = journal.path.stat().st_size
    (event,) = upkeep(journal, size / 2, 1_000, BUCKET)
    assert event["event"] == "journal.trimmed" and event["chunks"] == event["early"] == 1_200 - len(seqs(journal))
    checkpoint(journal)
    assert size * 0.4 < journal.path.stat().st_size <= size / 2
    journal.close()


@pytest.mark.parametrize(("bucket", "reason"), [(BUCKET, "the bucket lacks"), ("", "without a bucket nothing")])
def test_a_journal_that_may_not_be_trimmed_to_its_size_is_told_once_and_kept(
    tmp_path: Path, bucket: str, reason: str
) -> None:
    journal = crowded(tmp_path)
    outgrown = upkeep(journal, journal.used_bytes / 2, 0, bucket)
    assert [e["event"] for e in outgrown] == ["journal.outgrown"] and reason in outgrown[0]["reason"]
    assert len(seqs(journal)) == 1_200
    journal.close()
