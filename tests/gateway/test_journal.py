"""The journal: what is committed, what is merged, what a reader sees, what is trimmed, what is refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.io import journal as journal_module
from gateway.io.journal import ChainRow, Journal, JournalReader
from mirror import chunk
from mirror.batch import Batch, equal
from mirror.coverage import Axis, Closure, Coverage, Gap, Grade, IntervalSet, Promise, Reason, Stream
from mirror.errors import ConfigError, Corrupt, Unavailable
from mirror.tags import Tag
from tests.gateway.disk import Recorder
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fold, fresh, inside, killed, same
from tests.mirror.batches import batches, table

DAY_S = 86_400


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = fresh(tmp_path / "data")
    yield journal
    journal.close()


def claim(
    start: int, end: int, grade: Grade = Grade.COVERED, origin: str = ORIGIN, timeline: str = TIMELINE
) -> Coverage:
    return Coverage(STREAM, timeline, start, end, origin, grade)


def store(journal: Journal, start: int, end: int, batch: Batch | None = None, origin: str = ORIGIN) -> int:
    batch = doubles(end) if batch is None else batch
    return inside(journal, lambda: journal.append(STREAM, TIMELINE, start, end, origin, batch))


def reader_of(journal: Journal) -> JournalReader:
    return JournalReader.open(journal.path)


# Chunks, coverage and the rest of what is stored


def test_a_chunk_comes_back_bit_for_bit_with_its_interval(journal: Journal) -> None:
    batch = doubles(1)
    seq = store(journal, 10, 20, batch)
    (row,) = reader_of(journal).chunks(STREAM, TIMELINE, ORIGIN, 0, 100)
    assert row[:7] == (seq, STREAM, TIMELINE, 10, 20, ORIGIN, len(batch))
    assert equal(chunk.decode(row.body), batch)


def test_a_body_that_was_encoded_elsewhere_is_stored_as_it_is(journal: Journal) -> None:
    body = chunk.encode(doubles(1))
    inside(journal, lambda: journal.append(STREAM, TIMELINE, 0, 1, ORIGIN, doubles(1), body))
    assert reader_of(journal).chunks_since(0)[0].body == body


def test_nothing_of_a_failed_transaction_is_kept(journal: Journal) -> None:
    store(journal, 0, 1)
    before = killed_state(journal)
    with pytest.raises(ZeroDivisionError), journal.transaction():
        journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, doubles(2))
        journal.append("another", TIMELINE, 1, 2, ORIGIN, doubles(3))
        journal.extend(claim(1, 2))
        journal.add_tags(table(9).tags)
        journal.flush_state()
        raise ZeroDivisionError
    reader = reader_of(journal)
    assert (reader.newest(), reader.coverage(), len(reader.tags()), len(journal.tags)) == (1, [], 6, 6)
    assert same(journal.state, before)
    assert store(journal, 1, 2) == 2
    assert inside(journal, lambda: journal.append("another", TIMELINE, 1, 2, ORIGIN, doubles(3))) == 3
    assert [row.stream for row in reader.chunks_since(0)] == [STREAM, STREAM, "another"]


def killed_state(journal: Journal) -> object:
    return fold([journal.state.batch(journal.state.handles)])


def test_a_tag_is_stored_before_its_samples(journal: Journal) -> None:
    with pytest.raises(AssertionError, match="before its samples"):
        store(journal, 0, 1, doubles(1, [6]))
    with journal.transaction():
        assert journal.add_tags(table(7).tags[-1:]) == [6]
        journal.append(STREAM, TIMELINE, 0, 1, ORIGIN, doubles(1, [6]))


def test_tags_keep_their_handles_and_take_new_facts(journal: Journal) -> None:
    tags, first = table(8).tags, table(6).tags[0]
    renamed = Tag(first.source, first.namespace, first.identifier, unit="bar")
    assert inside(journal, lambda: journal.add_tags([tags[7], renamed, tags[6], tags[7]])) == [6, 0, 7, 6]
    assert journal.tags[0].unit == "bar"
    assert reader_of(journal).tags().tags == journal.tags.tags


CLAIMS = st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from("ab"), st.booleans())


@given(st.lists(CLAIMS, max_size=15))
@example([(20, 5, "a", False), (0, 5, "a", False), (5, 17, "a", False)])
@example([(0, 5, "a", False), (5, 5, "a", True), (5, 2, "a", False), (8, 2, "a", False)])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_coverage_is_the_union_of_what_was_claimed(tmp_path: Path, claims: list[tuple[int, int, str, bool]]) -> None:
    """Whatever the order of the claims, and whichever of their transactions fail."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        journal = fresh(Path(directory))
        wanted = {"a": IntervalSet(), "b": IntervalSet()}
        for start, length, timeline, fails in claims:
            try:
                with journal.transaction():
                    journal.extend(claim(start, start + length, timeline=timeline))
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                continue
            wanted[timeline] = wanted[timeline].add(start, start + length)
        found = reader_of(journal).coverage()
        for timeline, intervals in wanted.items():
            assert [(c.start, c.end) for c in found if c.timeline == timeline] == list(intervals)
        journal.close()


def test_grades_and_origins_of_coverage_do_not_merge(journal: Journal) -> None:
    with journal.transaction():
        for part in (claim(0, 5), claim(5, 9, Grade.HELD), claim(9, 12), claim(12, 15, origin="b"), claim(5, 7)):
            journal.extend(part)
    found = reader_of(journal).coverage(STREAM)
    assert found == sorted([claim(0, 7), claim(5, 9, Grade.HELD), claim(9, 12), claim(12, 15, origin="b")])
    assert reader_of(journal).coverage("another") == []


def test_a_gap_is_opened_once_and_closed_once(journal: Journal) -> None:
    gap = Gap.opened(STREAM, TIMELINE, 5, Reason.MISSED, tags=["x", "a"])
    reader = reader_of(journal)
    for _ in range(2):
        inside(journal, lambda: journal.open_gap(gap))
    assert reader.gaps() == reader.gaps(open_only=True) == [gap]
    inside(journal, lambda: journal.open_gap(Gap.opened(STREAM, TIMELINE, 5, Reason.MISSED, tags=["x", "a"], end=9)))
    inside(journal, lambda: journal.close_gap(gap.id, Closure.LOST, "retention"))
    inside(journal, lambda: journal.close_gap(gap.id, Closure.REPUBLISH, end=50))
    (closed,) = reader.gaps()
    assert (closed.end, closed.closed_by, closed.closed_reason) == (9, Closure.LOST, "retention")
    assert reader.gaps(open_only=True) == []
    inside(journal, lambda: journal.open_gap(gap))
    assert reader.gaps() == [closed]
    with pytest.raises(AssertionError), journal.transaction():
        journal.close_gap("no such gap", Closure.LOST)


def test_streams_facts_epoch_and_chain_come_back(journal: Journal) -> None:
    reader = reader_of(journal)
    assert (reader.epoch(), journal.epoch(), reader.chain_tip(), reader.fact("x")) == ((0, ""), (0, ""), None, None)
    first = Stream(STREAM, "urn:a", Axis.RESPONSE, 100.0, 10, False)
    second = Stream(STREAM, "urn:a", Axis.PUBLISH, 250.0, 1, True)
    rows = [ChainRow(i, 1, "a", "inc", f"{i:064x}") for i in range(3)]
    for stream in (first, second):
        inside(journal, lambda stream=stream: journal.save_stream(stream))
        assert reader.streams() == [stream]
    with journal.transaction():
        journal.save_epoch(7, "inc")
        journal.set_fact("x", b"1")
        for i, row in enumerate(rows):
            journal.add_chain(row, [claim(i * 10, i * 10 + 10)])
        journal.add_chain(rows[1], [claim(10, 20)])
    assert (reader.epoch(), reader.fact("x"), reader.chain(0), reader.chain_tip()) == (
        (7, "inc"), b"1", rows[1:], rows[2],
    )  # fmt: skip
    assert reader.promise().claims() == [claim(0, 30)]
    with pytest.raises(AssertionError), journal.transaction():
        journal.save_epoch(7, "other")
    with pytest.raises(AssertionError), journal.transaction():
        journal.add_chain(rows[1]._replace(hash="f" * 64))
    inside(journal, lambda: journal.retract(claim(8, 12)))
    inside(journal, lambda: journal.retract(claim(29, 99)))
    assert reader.promise().claims() == [claim(0, 8), claim(12, 29)]
    inside(journal, lambda: journal.add_chain(rows[2], [claim(29, 31)]))
    assert reader.promise().claims() == [claim(0, 8), claim(12, 31)]


def test_another_log_makes_the_one_before_forgotten(journal: Journal) -> None:
    reader = reader_of(journal)
    row = ChainRow(0, 1, "a", "inc", "0" * 64)
    with journal.transaction():
        journal.follow_log("bucket/a")
        journal.add_chain(row, [claim(0, 10)])
    for name, chain, claims in (("bucket/a", [row], [claim(0, 10)]), ("bucket/b", [], [claim(3, 5)])):
        inside(journal, lambda name=name: journal.follow_log(name, [claim(3, 5)]))
        assert (reader.chain(), reader.promise().claims()) == (chain, claims)


# State


@given(
    st.lists(st.tuples(batches(8, min_size=1), st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=12),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_state_is_the_fold_of_all_chunks_whenever_the_process_is_killed(
    tmp_path: Path, steps: list[tuple[Batch, int, int]], every: int
) -> None:
    """Rows are flushed a few at a time; after some steps the files as they are replace the journal."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        journal = fresh(Path(directory) / "0", state_period_s=3600)
        done: list[Batch] = []
        for i, (batch, limit, deaths) in enumerate(steps, 1):
            with journal.transaction():
                journal.append(STREAM, TIMELINE, i - 1, i, ORIGIN, batch)
                if i % every == 0:
                    journal.flush_state(limit if limit < 7 else None)
            done.append(batch)
            reader = reader_of(journal)
            assert same(reader.state(), fold(done))
            assert same(journal.state, fold(done))
            reader.close()
            if deaths == 0:
                path = killed(journal, Path(directory) / str(i))
                journal.close()
                journal = Journal.open(path, replica="a", state_period_s=3600)
                assert same(journal.state, fold(done))
        journal.close()
        journal = Journal.open(journal.path, replica="a")
        assert journal.dirty == 0, "a clean end leaves nothing to replay"
        assert same(journal.state, fold(done))
        journal.close()


def test_a_flush_is_bounded_and_moves_the_mark_when_all_is_written(journal: Journal) -> None:
    mark = apsw.Connection(str(journal.path), apsw.SQLITE_OPEN_READONLY)

    def written() -> tuple[int, int]:
        return mark.execute("SELECT chunk, (SELECT count(*) FROM state) FROM state_mark").get

    def stored_and_flushed(end: int, limit: int | None) -> int:
        journal.append(STREAM, TIMELINE, end - 1, end, ORIGIN, doubles(end))
        return journal.flush_state(limit)

    store(journal, 0, 1)
    assert [inside(journal, lambda: stored_and_flushed(2, 4)), written()] == [2, (0, 4)]
    assert [inside(journal, lambda: journal.flush_state(4)), written()] == [0, (1, 6)]
    assert journal.dirty == 4, "the last two were written as of the second chunk"
    assert [inside(journal, journal.flush_state), written()] == [0, (2, 6)]
    assert journal.dirty == 0


def test_state_rows_are_written_along_within_bounds_and_period(tmp_path: Path) -> None:
    tags = 3 * journal_module.STATE_ROWS_MIN
    journal = fresh(tmp_path / "data", tags=tags, state_period_s=0.2)
    dirty = []
    for i in range(400):
        store(journal, i, i + 1, doubles(i, range(tags)) if i == 0 else doubles(i, [0]))
        dirty.append(journal.dirty)
        if dirty[-1] <= 1:
            break
        threading.Event().wait(0.005)
    assert dirty[0] == tags
    assert dirty[-1] <= 1, "all rows but the newest were written along"
    steps = -np.diff(dirty)
    assert 0 < steps.max() <= journal_module.STATE_ROWS_MAX
    assert np.count_nonzero(steps > 1) >= 2, "not all at once"
    journal.close()


def test_state_reads_as_plain_sql(journal: Journal) -> None:
    store(journal, 0, 1)
    inside(journal, journal.flush_state)
    with sqlite3.connect(f"file:{killed(journal, journal.path.parent / 'copy')}?mode=ro", uri=True) as plain:
        rows = plain.execute(
            "SELECT name, value, kind, status FROM state JOIN tag ON tag.handle = state.tag ORDER BY handle"
        ).fetchall()
    assert rows == [(f"tag{h}", 1 + h / 1000, 11, 0) for h in range(6)]


# Readers


def test_chunks_are_never_cut_within_a_publish_time(journal: Journal) -> None:
    for pub_to in (1, 1, 1, 2, 2, 3):
        store(journal, pub_to - 1, pub_to)
    reader = reader_of(journal)

    def taken(**limits: int) -> list[int]:
        return [row.pub_to for row in reader.chunks(STREAM, TIMELINE, ORIGIN, 0, 9, **limits)]

    assert taken() == [1, 1, 1, 2, 2, 3]
    assert taken(limit=1) == [1, 1, 1]
    assert taken(limit=4) == [1, 1, 1]
    assert taken(limit=5) == [1, 1, 1, 2, 2]
    assert taken(rows_max=5 * 6) == [1, 1, 1, 2, 2]
    assert taken(rows_max=1) == [1, 1, 1]
    assert [row.seq for row in reader.chunks(STREAM, TIMELINE, ORIGIN, 1, 2)] == [4, 5]
    assert reader.chunks(STREAM, TIMELINE, "b", 0, 9) == []
    assert [row.seq for row in reader.chunks_since(4)] == [5, 6]
    assert reader.keys() == [(STREAM, TIMELINE, ORIGIN)]


def test_the_backlog_is_what_the_promise_lacks(journal: Journal) -> None:
    for i in range(10):
        store(journal, i, i + 1)
    store(journal, 0, 1, origin="a/history")
    reader = reader_of(journal)
    size = sum(len(row.body) for row in reader.chunks_since(0))
    assert reader.backlog(Promise())[:3] == (11, 66, size)
    promise = Promise([claim(0, 3), claim(5, 10, Grade.HELD), claim(0, 1, origin="a/history")])
    left = [row for row in reader.chunks_since(0) if row.pub_to in (4, 5) and row.origin == ORIGIN]
    assert reader.backlog(promise)[:3] == (2, 12, sum(len(row.body) for row in left))
    assert reader.backlog(Promise([claim(0, 10), claim(0, 1, origin="a/history")])) == (0, 0, 0, None)


def test_a_reader_that_does_not_end_blocks_no_writer_and_shows_in_the_wal(journal: Journal) -> None:
    store(journal, 0, 1)
    stuck = apsw.Connection(str(journal.path), apsw.SQLITE_OPEN_READONLY)
    stuck.execute("BEGIN")
    assert stuck.execute("SELECT count(*) FROM chunk").get == 1
    big = doubles(1, np.arange(6).repeat(4000))
    pages = []
    for i in range(1, 40):
        noise = np.random.default_rng(i).integers(0, 1 << 63, len(big)).astype(np.uint64)
        big.bits[:] = noise
        store(journal, i, i + 1, big)
        pages.append(journal.maintain())
    assert pages[-1] > journal_module.WAL_PAGES
    assert stuck.execute("SELECT count(*) FROM chunk").get == 1
    stuck.execute("COMMIT")
    assert journal.maintain() == 0
    size = journal.path.with_name("mirror.db-wal").stat().st_size
    store(journal, 40, 41)
    assert journal.path.with_name("mirror.db-wal").stat().st_size == size, "the log begins anew"


def test_readers_and_a_writer_run_beside_each_other(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    stop, failures, reads = threading.Event(), [], []

    def read() -> None:
        reader = JournalReader.open(journal.path)
        try:
            while not stop.is_set():
                count = len(reader.chunks_since(0, limit=50))
                assert len(reader.state()) == 6 * bool(reader.newest() and count)
                covered = reader.coverage()
                assert [c.start for c in covered] == [0]
                reads.append(covered[0].end)
        except Exception as error:
            failures.append(error)
        finally:
            reader.close()

    inside(journal, lambda: (journal.append(STREAM, TIMELINE, 0, 1, ORIGIN, doubles(1)), journal.extend(claim(0, 1))))
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1, 150):
        with journal.transaction():
            journal.append(STREAM, TIMELINE, i, i + 1, ORIGIN, doubles(i))
            journal.extend(claim(i, i + 1))
        journal.maintain()
    stop.set()
    for thread in threads:
        thread.join()
    journal.close()
    assert failures == []
    assert len(set(reads)) > 1, "the readers saw the writer's progress"


def test_a_read_that_takes_too_long_is_interrupted(journal: Journal) -> None:
    for i in range(300):
        store(journal, i, i + 1)
    with pytest.raises(Unavailable):
        JournalReader.open(journal.path, seconds_max=0.0).backlog(Promise([claim(i, i + 1) for i in range(0, 300, 2)]))


def test_a_reader_of_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no journal"):
        JournalReader.open(tmp_path / "mirror.db")


# Trimming


def test_a_chunk_is_trimmed_only_when_promised_and_old_and_folded_into_the_state(tmp_path: Path) -> None:
    now = [1_000_000.0]
    journal = fresh(tmp_path / "data", clock=lambda: now[0], state_period_s=3600)
    for i in range(6):
        store(journal, i, i + 1)
        now[0] += DAY_S
    store(journal, 0, 1, origin="a/history")
    promised = Promise([claim(0, 2), claim(3, 6, Grade.HISTORY)])

    def trimmed(keep_days: float, promise: Promise = promised) -> list[int]:
        inside(journal, lambda: journal.trim(promise, keep_s=keep_days * DAY_S))
        return [row.seq for row in reader_of(journal).chunks_since(0)]

    assert trimmed(0) == [1, 2, 3, 4, 5, 6, 7], "the state rows still need them"
    inside(journal, journal.flush_state)
    assert trimmed(7) == [1, 2, 3, 4, 5, 6, 7], "none is old enough"
    assert trimmed(0, Promise()) == [1, 2, 3, 4, 5, 6, 7], "none is promised"
    assert trimmed(4.5) == [3, 4, 5, 6, 7] or trimmed(4.5) == [2, 3, 4, 5, 6, 7]
    assert trimmed(0) == [3, 7], "not promised, and of another origin"
    state = journal.state
    assert store(journal, 6, 7) == 8
    journal.close()
    journal = Journal.open(journal.path, replica="a")
    assert same(journal.state, state)
    journal.close()


def test_a_partly_promised_chunk_is_not_trimmed(tmp_path: Path) -> None:
    now = [1_000_000.0]
    journal = fresh(tmp_path / "data", clock=lambda: now[0])
    store(journal, 10, 20)
    store(journal, 30, 30)
    inside(journal, journal.flush_state)
    now[0] += DAY_S
    for part in ([claim(0, 19)], [claim(11, 20)], [claim(0, 15), claim(16, 29)]):
        assert inside(journal, lambda part=part: journal.trim(Promise(part), keep_s=0)) == 0
    assert inside(journal, lambda: journal.trim(Promise([claim(10, 20)]), keep_s=0)) == 1
    journal.close()


def test_trimming_walks_on_from_where_it_stopped(tmp_path: Path) -> None:
    now = [1_000_000.0]
    journal = fresh(tmp_path / "data", clock=lambda: now[0])
    for i in range(20):
        store(journal, i, i + 1)
    inside(journal, journal.flush_state)
    now[0] += 2 * DAY_S
    promise = Promise([claim(15, 20)])
    counts = [inside(journal, lambda: journal.trim(promise, keep_s=DAY_S, limit=6)) for _ in range(5)]
    assert counts == [0, 0, 3, 2, 0]
    journal.close()


def test_a_clock_that_is_set_back_trims_nothing_early(tmp_path: Path) -> None:
    now = [10.0 * DAY_S]
    journal = fresh(tmp_path / "data", clock=lambda: now[0])
    store(journal, 0, 1)
    now[0] = 0.0  # a box without a battery starts in 1970
    store(journal, 1, 2)
    now[0] = 10.5 * DAY_S
    store(journal, 2, 3)
    inside(journal, journal.flush_state)
    assert inside(journal, lambda: journal.trim(Promise([claim(0, 3)]), keep_s=DAY_S)) in (0, 1)
    assert reader_of(journal).newest() == 3
    journal.close()


# What is refused, and what fails


def test_a_second_writer_on_the_directory_is_refused(journal: Journal) -> None:
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        Journal.open(journal.path, replica="a")
    code = (
        "from pathlib import Path\nfrom gateway.io.journal import Journal\n"
        f"Journal.open(Path({str(journal.path)!r}), replica='a')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError" in other.stderr
    journal.close()
    Journal.open(journal.path, replica="a").close()


def test_a_full_disk_is_unavailable_and_passes(tmp_path: Path) -> None:
    disk = Recorder("full-disk")
    journal = fresh(tmp_path / "data", vfs=disk.name)
    store(journal, 0, 1)
    before = killed_state(journal)
    disk.full = True
    for _ in range(3):
        with pytest.raises(Unavailable, match="full") as caught, journal.transaction():
            journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, doubles(2))
            journal.extend(claim(1, 2))
            journal.flush_state()
        assert "free space" in caught.value.hint
        assert same(journal.state, before)
    disk.full = False
    assert store(journal, 1, 2) == 2
    assert [row.seq for row in reader_of(journal).chunks_since(0)] == [1, 2]
    assert reader_of(journal).coverage() == []
    journal.close()
    disk.close()


def test_a_full_file_is_unavailable_and_passes(journal: Journal) -> None:
    """SQLITE_FULL from within a statement, not from the commit."""
    journal._db.execute(f"PRAGMA max_page_count = {journal._db.pragma('page_count')}")
    big = doubles(1, np.arange(6).repeat(5000))
    big.bits[:] = np.random.default_rng(1).integers(0, 1 << 63, len(big)).astype(np.uint64)
    for swallow in (False, True):
        with pytest.raises(Unavailable), journal.transaction():
            journal.extend(claim(0, 1))
            try:
                journal.append(STREAM, TIMELINE, 0, 1, ORIGIN, big)
            except Unavailable:
                if not swallow:
                    raise
    journal._db.execute("PRAGMA max_page_count = 1000000")
    assert reader_of(journal).coverage() == []
    assert store(journal, 0, 1, big) == 1


def test_a_journal_on_a_full_disk_closes(tmp_path: Path) -> None:
    disk = Recorder("full-at-end")
    journal = fresh(tmp_path / "data", vfs=disk.name)
    store(journal, 0, 1)
    disk.full = True
    with pytest.raises(Unavailable), journal.transaction():
        journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, doubles(2))
    journal.close()
    disk.full = False
    journal = Journal.open(journal.path, replica="a", vfs=disk.name)
    assert same(journal.state, fold([doubles(1)]))
    journal.close()
    disk.close()


def test_a_damaged_file_is_found_when_it_is_opened(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    for i in range(50):
        store(journal, i, i + 1)
    journal.close()
    whole = journal.path.read_bytes()
    page = whole.index(b"urn:plant:b") // 4096
    torn = whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :]
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 3000 + whole[3100:], torn, b"not SQLite" * 500):
        journal.path.write_bytes(damaged)
        with pytest.raises(Corrupt) as caught:
            Journal.open(journal.path, replica="a")
        assert "edgemirror repair" in caught.value.hint
    journal.path.write_bytes(whole)
    Journal.open(journal.path, replica="a").close()


def test_an_io_error_of_the_disk_is_unavailable(journal: Journal) -> None:
    assert isinstance(journal_module.reaction(apsw.IOError("disk I/O error"), journal.path), Unavailable)
    assert isinstance(journal_module.reaction(apsw.CantOpenError("no"), journal.path), ConfigError)
    mistake = apsw.SQLError("no such table")
    assert journal_module.reaction(mistake, journal.path) is mistake


# Sessions


def test_a_session_is_stored_encrypted_and_only_for_its_source(journal: Journal) -> None:
    secret = b"authentication token of press 7"
    assert journal.load_session("urn:a") is None
    inside(journal, lambda: journal.save_session("urn:a", b"old"))
    inside(journal, lambda: journal.save_session("urn:a", secret))
    assert journal.load_session("urn:a") == secret
    key = journal.path.parent / "session.key"
    assert key.stat().st_mode & 0o777 == 0o600
    stored = b"".join(f.read_bytes() for f in journal.path.parent.iterdir() if f.is_file())
    assert secret not in stored
    journal._db.execute("INSERT INTO session SELECT 'urn:b', nonce, body FROM session")
    with pytest.raises(Corrupt):
        journal.load_session("urn:b")
    inside(journal, lambda: journal.drop_session("urn:a"))
    assert journal.load_session("urn:a") is None


def test_a_session_key_that_others_can_read_or_that_is_another_is_refused(journal: Journal) -> None:
    inside(journal, lambda: journal.save_session("urn:a", b"x"))
    key = journal.path.parent / "session.key"
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="read by others"):
        journal.load_session("urn:a")
    key.chmod(0o600)
    key.write_bytes(bytes(32))
    with pytest.raises(Corrupt):
        journal.load_session("urn:a")
    key.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        journal.load_session("urn:a")
    key.unlink()
    with pytest.raises(Corrupt):
        journal.load_session("urn:a")
