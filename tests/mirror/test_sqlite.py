"""Opening, migrating, asking in SQL and exporting a mirror.db."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.io.journal import Journal
from mirror import schema
from mirror.batch import SOURCE_NULL, Batch, Kind, concat
from mirror.coverage import Coverage, Gap, Reason, Stream
from mirror.errors import ConfigError, Corrupt, Unavailable
from mirror.io import samples, sqlite
from mirror.io.samples import COLUMNS
from mirror.io.sqlite import check_version, connect, export, migrate, open_sql, run_sql
from mirror.schema import sql_times, sql_values
from mirror.variant import Structure, StructureField, encode
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh, inside
from tests.mirror.batches import NOW_TICKS, SECOND, batches, from_rows, table


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = fresh(tmp_path / "data")
    yield journal
    journal.close()


def store(journal: Journal, end: int, batch: Batch, origin: str = ORIGIN) -> None:
    inside(journal, lambda: journal.append(STREAM, TIMELINE, end - 1, end, origin, batch))


def ask(journal: Journal, sql: str, **how: float) -> list[tuple[object, ...]]:
    db = open_sql(journal.path, **how)
    try:
        return list(run_sql(db, sql)[1])
    finally:
        db.close()


# Versions and migrations


@pytest.mark.parametrize("version", ["3.51.3", "3.51.4", "3.52.0", "4.0.0", "3.50.7", "3.50.12", "3.44.6", ""])
def test_a_mended_sqlite_is_accepted(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["3.51.2", "3.51.0", "3.50.6", "3.45.0", "3.49.9", "3.44.5", "3.40.1", "3.7.0"])
def test_an_sqlite_that_can_damage_its_log_is_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=version):
        check_version(version)


def test_migrations_are_applied_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mirror.db"
    migrate(path)
    migrate(path)
    later = schema.Migration(
        "0002_test", ("CREATE TABLE later (x)", "INSERT INTO later SELECT count(*) FROM state_mark")
    )
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*schema.MIGRATIONS, later))
    migrate(path)
    migrate(path)
    db = connect(path)
    assert db.execute("SELECT x FROM later").fetchall() == [(1,)]
    assert db.pragma("user_version") == 2
    names = [row[0] for row in db.execute("SELECT name FROM _sqlite_migrations ORDER BY id")]
    assert names == [migration.name for migration in (*schema.MIGRATIONS, later)]
    db.close()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="newer"):
        connect(path)
    with pytest.raises(ConfigError, match="newer"):
        migrate(path)


def test_a_migration_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mirror.db"
    broken = schema.Migration("0002_test", ("CREATE TABLE later (x)", "no SQL"))
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(sqlite3.OperationalError):
        migrate(path)
    monkeypatch.undo()
    db = connect(path)
    assert db.pragma("user_version") == 1
    assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'later'").get == 0
    db.close()


def test_a_making_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "mirror.db"
    with sqlite3.connect(path) as begun:
        begun.execute("CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set, name, applied_at)")
    begun.close()
    migrate(path)
    connect(path).close()
    (tmp_path / "empty.db").touch()
    migrate(tmp_path / "empty.db")
    connect(tmp_path / "empty.db").close()


def test_the_file_of_another_program_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mirror.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE x (y)")
    other.close()
    before = path.read_bytes()
    for act in (lambda: migrate(path), lambda: connect(path), lambda: Journal.open(path, replica="a")):
        with pytest.raises(ConfigError, match="not a journal"):
            act()
    assert path.read_bytes() == before


def test_a_file_beyond_the_limit_is_checked_but_for_its_chunks(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(journal, 1, doubles(1))
    journal.close()
    monkeypatch.setattr(sqlite, "CHECKED_BYTES_MAX", 0)
    Journal.open(journal.path, replica="a").close()
    data = journal.path.read_bytes()
    page = data.index(b"urn:plant:b") // 4096
    journal.path.write_bytes(data[: page * 4096] + bytes(4096) + data[(page + 1) * 4096 :])
    with pytest.raises(Corrupt, match=r"damaged|malformed"):
        Journal.open(journal.path, replica="a")


# Samples in SQL


def plain_copy(parts: list[Batch], tags: int = 6) -> sqlite3.Connection:
    """Return the same samples as rows of a plain table: what `samples` must be equal to."""
    names = table(tags)
    db = sqlite3.connect(":memory:")
    declared = samples.DECLARATION.replace(" HIDDEN", "")
    db.execute(declared)
    for seq, batch in enumerate(parts, 1):
        null = batch.flags & SOURCE_NULL != 0
        times, values = sql_times(batch.source_ticks, null), sql_values(batch)
        for i, handle in enumerate(batch.handle.tolist()):
            tag = names[handle]
            db.execute(
                f"INSERT INTO samples VALUES ({', '.join('?' * 13)})",
                (
                    tag.node, times[i], None if null[i] else int(batch.source_ticks[i]),
                    None if batch.flags[i] & 2 else int(batch.server_ticks[i]), int(batch.status[i]),
                    samples.QUALITY[int(batch.status[i]) >> 30], int(batch.kind[i]), values[i], ORIGIN, seq,
                    f"{tag.device}/{tag.name}", tag.source, handle,
                ),
            )  # fmt: skip
    return db


TIMES = ("2026", "2026-09", "2026-09-22 02:53:20", "2026-09-22 02:53:20.2", "2026-09-22T02:53", "x", "9999-12-31")
OPS = ("=", "<", "<=", ">", ">=", "!=")


@st.composite
def conditions(draw: st.DrawFn) -> str:
    ticks = st.one_of(st.integers(0, 5).map(lambda i: NOW_TICKS + i * SECOND // 10), st.integers(-(2**63), 2**63 - 1))
    op = draw(st.sampled_from(OPS))
    tag = draw(st.sampled_from(table(6).tags))
    return draw(
        st.sampled_from(
            [
                f"tag = '{tag.node}'",
                f"name = '{tag.device}/{tag.name}'",
                f"tag {op} 'nsu=urn:maker:1;s=Tag5'",
                f"name = '{tag.device.upper()}/{tag.name}' COLLATE NOCASE",
                "tag IS NULL",
                "tag = NULL",
                f"tag IN ('{tag.node}', 'none')",
                f"handle = {draw(st.integers(-1, 7))}",
                f"handle = '{draw(st.integers(0, 6))}'",
                f"seq {op} {draw(st.integers(0, 6))}",
                f"source_ticks {op} {draw(ticks)}",
                f"source_ticks {op} {draw(ticks) // 10**9}e9",
                f"server_ticks {op} {draw(ticks)}",
                "source_ticks IS NULL",
                f"time {op} '{draw(st.sampled_from(TIMES))}'",
                f"time {op} '{sql_times(np.array([draw(ticks)]), np.zeros(1, np.bool_))[0]}'",
                "quality = 'Bad'",
                f"status {op} 0",
                "value > 0",
            ]
        )
    )


@given(
    st.lists(batches(8, min_size=1), min_size=1, max_size=4),
    st.lists(conditions(), max_size=3),
    st.sampled_from((" AND ", " OR ")),
    st.sampled_from(("", " ORDER BY seq, handle", " ORDER BY time DESC, seq, handle LIMIT 3")),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_query_finds_what_a_plain_table_of_the_same_samples_gives(
    asked: Asked, parts: list[Batch], where: list[str], joined: str, tail: str
) -> None:
    columns = ", ".join((*COLUMNS, "handle"))
    sql = f"SELECT {columns} FROM samples" + (" WHERE " + joined.join(where) if where else "") + tail
    found, wanted = asked.of(parts, sql), plain_copy(parts).execute(sql).fetchall()
    if "LIMIT" not in tail:
        assert sorted(map(repr, found)) == sorted(map(repr, wanted))
    if tail:
        place = (1, 9, 12) if "time" in tail else (9, 12)
        assert [[row[p] for p in place] for row in found] == [[row[p] for p in place] for row in wanted]


class Asked:
    """One journal whose chunks are replaced for each question."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.db = open_sql(journal.path)

    def of(self, parts: list[Batch], sql: str) -> list[tuple[object, ...]]:
        self.journal._db.execute("DELETE FROM chunk; DELETE FROM state; UPDATE state_mark SET chunk = 0")
        self.journal.committed = 0
        for end, batch in enumerate(parts, 1):
            store(self.journal, end, batch)
        return list(run_sql(self.db, sql)[1])


@pytest.fixture
def asked(journal: Journal) -> Asked:
    inside(journal, lambda: journal.save_stream(Stream("another", "urn:plant:a")))
    return Asked(journal)


def test_only_the_chunks_that_may_hold_the_answer_are_decoded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal.transaction():
        journal.save_stream(Stream(STREAM, "urn:plant:b"))
        journal.save_stream(Stream("another", "urn:plant:a"))
        for i in range(10):
            journal.append(STREAM, TIMELINE, i, i + 1, ORIGIN, doubles(i, [0, 2] if i < 5 else [4]))
            journal.append("another", TIMELINE, i, i + 1, ORIGIN, doubles(i, [1, 3, 5]))
    decoded: list[int] = []
    decode = samples.decode_chunk

    def counted(seq: int, body: bytes) -> Batch:
        decoded.append(seq)
        return decode(seq, body)

    monkeypatch.setattr(samples, "decode_chunk", counted)

    def cost(where: str) -> tuple[int, int]:
        decoded.clear()
        return len(ask(journal, f"SELECT value FROM samples WHERE {where}")), len(decoded)

    tags = table(6).tags
    assert cost("1") == (5 * 2 + 5 + 10 * 3, 20)
    assert cost(f"tag = '{tags[0].node}'") == (5, 5)
    assert cost(f"name = '{tags[4].device}/{tags[4].name}'") == (5, 5)
    assert cost(f"tag = '{tags[3].node}'") == (10, 10)
    assert cost("tag = 'nobody'") == (0, 0)
    assert cost("seq > 18") == (4, 2)
    assert cost(f"source_ticks >= {NOW_TICKS + 9 * 1_000_000}") == (4, 2)
    since = sql_times(np.array([NOW_TICKS + 8 * 1_000_000]), np.zeros(1, np.bool_))[0]
    assert cost(f"time >= '{since}'") == (8, 4)
    assert cost(f"time >= '{since}' AND tag = '{tags[4].node}'") == (2, 2)


def test_arrays_structures_and_nulls_are_readable(journal: Journal) -> None:
    body = encode(Kind.EXTENSIONOBJECT, {"type": "ns=2;i=5001", "body": b"\x05\x00\x00\x00"})
    point = Structure(name="Point", fields=(StructureField(name="x", type=Kind.INT32),))
    array = encode(Kind.INT32 | 0x80, [1, 2])
    rows = [
        (0, NOW_TICKS, 0, 0, 0, 0, 0, int(Kind.EXTENSIONOBJECT), body),
        (1, NOW_TICKS, 0, 0, 0, 0, 0, int(Kind.EXTENSIONOBJECT), body),
        (2, NOW_TICKS, 0, 0, 0, 0x80310000, 0, int(Kind.INT32) | 0x80, array),
        (3, 0, 0, 0, 0, 0, SOURCE_NULL, 0, 0),
    ]
    inside(journal, lambda: journal.set_structures("urn:plant:b", {"ns=2;i=5001": point}))
    store(journal, 1, from_rows(rows))
    inside(journal, journal.flush_state)
    found = ask(journal, "SELECT value, quality, time FROM samples ORDER BY handle")
    assert found[0][0] == '{"x":5}'
    assert found[1][0] != found[0][0], "the other source has no such definition"
    assert found[2][:2] == ("[1,2]", "Bad")
    assert found[3] == (None, "Good", None)
    assert [row[0] for row in ask(journal, "SELECT value FROM state ORDER BY tag")] == [row[0] for row in found]


def test_gaps_coverage_and_tags_are_asked_beside_the_samples(journal: Journal) -> None:
    store(journal, 1, doubles(1))
    with journal.transaction():
        journal.extend(Coverage(STREAM, TIMELINE, 0, 1, ORIGIN))
        journal.open_gap(Gap.opened(STREAM, TIMELINE, 1, Reason.OVERFLOW))
    counts = "(SELECT count(*) FROM samples), (SELECT count(*) FROM tag)"
    sql = f'SELECT reason, (SELECT max("end") FROM coverage), {counts} FROM gap'
    assert ask(journal, sql) == [("overflow", 1, 6, 6)]


def test_new_tags_and_samples_are_seen_by_an_open_connection(journal: Journal) -> None:
    db = open_sql(journal.path)
    store(journal, 1, doubles(1))
    assert len(list(run_sql(db, "SELECT * FROM samples")[1])) == 6
    tag = table(7).tags[6]
    with journal.transaction():
        journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, doubles(2, journal.add_tags([tag])))
    assert [row[0] for row in run_sql(db, "SELECT tag FROM samples WHERE seq = 2")[1]] == [tag.node]
    db.close()


def test_a_person_cannot_write_and_is_told_of_mistakes(journal: Journal) -> None:
    store(journal, 1, doubles(1))
    for sql in (
        "DELETE FROM chunk",
        "DELETE FROM samples",
        "SELECT nothing FROM samples",
        "SELEC",
        "SELECT 1; SELECT 2",
    ):
        with pytest.raises(ConfigError):
            ask(journal, sql)
    columns, rows = run_sql(open_sql(journal.path), "SELECT * FROM samples WHERE 0")
    assert (tuple(columns), list(rows)) == (COLUMNS, [])
    assert len(ask(journal, "SELECT * FROM samples")) == 6


def test_a_query_that_takes_too_long_is_interrupted_and_the_next_one_is_not(journal: Journal) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    db = open_sql(journal.path, seconds_max=0.2)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(Unavailable):
            list(run_sql(db, endless)[1])
        assert list(run_sql(db, "SELECT 1")[1]) == [(1,)]
    assert time.monotonic() - began < 5
    db.close()


def test_a_damaged_chunk_is_named(journal: Journal) -> None:
    store(journal, 1, doubles(1))
    store(journal, 2, doubles(2))
    journal._db.execute("UPDATE chunk SET body = zeroblob(size) WHERE seq = 2")
    with pytest.raises(Corrupt, match="chunk 2"):
        ask(journal, "SELECT count(*) FROM samples WHERE value > 0")
    assert ask(journal, "SELECT count(*) FROM samples WHERE seq = 1") == [(6,)]


# Export


def test_an_export_is_a_plain_file_with_the_samples_that_sql_shows(journal: Journal, tmp_path: Path) -> None:
    status = (0, 0x80310000)
    rows = [
        (h, NOW_TICKS + i, NOW_TICKS, 0, 0, status[h % 2], 0, int(Kind.DOUBLE), i) for i in range(50) for h in range(6)
    ]
    for end in range(1, 8):
        store(journal, end, from_rows(rows) if end % 2 else doubles(end))
    with journal.transaction():
        journal.extend(Coverage(STREAM, TIMELINE, 0, 7, ORIGIN))
        journal.open_gap(Gap.opened(STREAM, TIMELINE, 7, Reason.OVERFLOW, tags=["x"]))
    told: list[tuple[int, int]] = []
    counts = export(journal.path, tmp_path / "out.db", progress=lambda done, total: told.append((done, total)))
    assert counts == {"samples": 4 * 300 + 3 * 6, "state": 6, "tags": 6, "gaps": 1, "coverage": 1}
    assert told[-1] == (counts["samples"], counts["samples"])
    names = ", ".join(COLUMNS)
    shown = ask(journal, f"SELECT {names} FROM samples ORDER BY seq, rowid")
    with sqlite3.connect(tmp_path / "out.db") as plain:
        assert plain.execute(f"SELECT {names} FROM samples ORDER BY seq, rowid").fetchall() == shown
        assert plain.execute("SELECT tags, reason FROM gaps").fetchall() == [('["x"]', "overflow")]
        assert plain.execute('SELECT start, "end", grade FROM coverage').fetchall() == [(0, 7, "covered")]
        assert plain.execute("SELECT tag, unit FROM tags").fetchall() == [(tag.node, "") for tag in table(6).tags]
        newest = {row[0]: row[1] for row in shown}
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        state = plain.execute("SELECT tag, name, time, value, quality FROM state").fetchall()
        assert {row[0] for row in state} == set(newest)
        assert state[0][3] == journal.state.row(0)[-1]
    plain.close()


def test_an_export_does_not_overwrite_and_leaves_nothing_when_it_fails(journal: Journal, tmp_path: Path) -> None:
    out = tmp_path / "out.db"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        export(journal.path, out)
    assert out.read_text() == "precious"
    store(journal, 1, doubles(1))
    journal._db.execute("UPDATE chunk SET body = zeroblob(size)")
    inside(journal, journal.flush_state)
    with pytest.raises(Corrupt):
        export(journal.path, tmp_path / "other.db")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out.db"]


def test_an_empty_journal_can_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "data" / "mirror.db"
    Journal.open(path, replica="a").close()
    assert set(export(path, tmp_path / "out.db").values()) == {0}
    with sqlite3.connect(tmp_path / "out.db") as plain:
        assert plain.execute("SELECT count(*) FROM samples").fetchone() == (0,)
    plain.close()


def test_an_export_reads_in_steps_beside_a_writer(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WAL is emptied while the export runs, because no step keeps it; chunks that come later are not in it."""
    monkeypatch.setattr(sqlite, "EXPORT_STEP_BYTES", 1)
    for end in range(1, 21):
        store(journal, end, doubles(end))
    grown, pages = threading.Event(), []

    def progress(done: int, _total: int) -> None:
        if not grown.is_set():
            store(journal, 100, concat([doubles(i) for i in range(100, 200)]))
            pages.append(journal._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE))
            grown.set()

    counts = export(journal.path, tmp_path / "out.db", progress=progress)
    assert counts["samples"] == 20 * 6
    assert pages == [(0, 0)]
