"""A damaged journal is rebuilt: what can be read is saved as it was, and whatever is not is told."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest

from gateway.__main__ import main
from gateway.cli.gaps import STORIES
from gateway.io.ingest import position_name
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from gateway.io.repair import repair
from gateway.sampler import Position
from mirror import chunk
from mirror.coverage import Axis, Coverage, Grade, IntervalSet, Reason, Stream
from mirror.errors import ConfigError, Corrupt
from mirror.io.sqlite import connect
from tests.gateway.journals import doubles, fresh

LANES = (("s1", "1-0", "a"), ("s2", "1-0", "a"), ("s1", "1-0", "a/history"))
CHUNKS = 90
NOW_S = 1_800_000_000.0
PAGE = 4096

Chunks = dict[int, tuple[tuple[str, str, str], int, int, bytes]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chunks]:
    """A journal of ninety chunks on three lanes, closed; and its chunks by number."""
    journal = fresh(tmp_path_factory.mktemp("whole"), tags=6)
    chance = random.Random(1)
    with journal.transaction():
        for stream in ("s1", "s2"):
            journal.save_stream(Stream(stream, "urn:x"))
            position = Position("1-0", 10, 10, 10, 1, 1, Axis.PUBLISH)
            journal.set_fact(position_name(stream), msgspec.json.encode(position))
    for step in range(1, CHUNKS + 1):
        stream, timeline, origin = LANES[step % 3]
        with journal.transaction():
            batch = doubles(step, range(chance.randint(1, 6)))
            journal.append(stream, timeline, step * 10, step * 10 + 10, origin, batch)
            # keep-alives: a claim goes on where nothing changes
            journal.extend(Coverage(stream, timeline, step * 10, step * 10 + 30, origin, Grade.COVERED))
    path = journal.path
    journal.close()
    return path, chunks(path)


def chunks(path: Path) -> Chunks:
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT seq, stream, timeline, origin, pub_from, pub_to, body FROM chunk JOIN lane ON lane.id = lane"
        ).fetchall()
    db.close()
    return {seq: ((s, t, o), a, b, body) for seq, s, t, o, a, b, body in rows}


def copied(whole: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    return Path(shutil.copy2(whole, to / "mirror.db"))


def nothing_is_silently_gone(path: Path, before: Chunks) -> int:
    """Check a repaired journal against what was there; return the number of chunks that it lacks."""
    after = chunks(path)
    reader = JournalReader.open(path)
    gaps = reader.gaps()
    claims: dict[tuple[str, str, str], IntervalSet] = {}
    for claim in reader.coverage():
        key = claim.key
        claims[key] = claims.get(key, IntervalSet()) | IntervalSet([(claim.start, claim.end)])
    reader.close()
    for seq, (lane, start, end, body) in before.items():
        told = any(gap.stream == lane[0] and gap.start <= start and (gap.end is None or gap.end >= end) for gap in gaps)
        claimed = claims.get(lane, IntervalSet())
        if seq in after:
            assert after[seq] == (lane, start, end, body)
            assert claimed.covers(start, end), f"chunk {seq} would never reach the bucket"
        else:
            assert told, f"chunk {seq} is gone and no gap tells of it"
            assert not claimed & IntervalSet([(start, end)]), f"chunk {seq} is gone and claimed"
    assert set(after) <= set(before)
    journal = Journal.open(path, replica="a")  # it is a journal, and goes on
    with journal.transaction():
        journal.append("s1", "1-0", 10**6, 10**6 + 10, "a", doubles(7))
    journal.close()
    return len(before) - len(after)


def test_a_whole_journal_is_left_alone(whole: tuple[Path, Chunks], tmp_path: Path) -> None:
    path = copied(whole[0], tmp_path)
    before = path.read_bytes()
    report = repair(path)
    assert report.damaged == "" and path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "damaged" in p.name] == []


def schema_pages(path: Path) -> set[int]:
    """Return the numbers of the pages that hold the list of tables."""
    db = connect(path)
    try:
        return {page for (page,) in db.execute("SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'")}
    finally:
        db.close()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_page_is_broken_what_is_gone_is_told_and_what_is_there_is_as_it_was(
    whole: tuple[Path, Chunks], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    path = copied(whole[0], tmp_path)
    data = bytearray(path.read_bytes())
    hit = [chance.randrange(1, len(data) // PAGE) for _ in range(chance.choice((1, 1, 2, 5)))]  # the head: see below
    for page in hit:
        match chance.randrange(4):
            case 0:
                data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
            case 1:
                data[page * PAGE : (page + 1) * PAGE] = chance.randbytes(PAGE)
            case 2:
                at = page * PAGE + chance.randrange(PAGE)
                data[at] ^= 1 << chance.randrange(8)
            case 3:
                data[page * PAGE : page * PAGE + 16] = chance.randbytes(16)
    path.write_bytes(data)
    report = repair(path, clock=lambda: NOW_S)
    if report.damaged and not report.tags:  # the list of tables was hit: of the whole file nothing can be read
        assert {p + 1 for p in hit} & schema_pages(whole[0]) and report.chunks == 0
        return
    lost = nothing_is_silently_gone(path, whole[1])
    if report.damaged:
        assert Path(report.aside).read_bytes() == data
        assert report.chunks == CHUNKS - lost
    else:
        assert lost == 0


@pytest.mark.parametrize("what", ["empty", "noise", "torn", "head"])
def test_a_file_of_which_nothing_can_be_read_is_put_aside_for_an_empty_journal(
    whole: tuple[Path, Chunks], tmp_path: Path, what: str
) -> None:
    path = copied(whole[0], tmp_path)
    data = path.read_bytes()
    bad = {"noise": random.Random(1).randbytes(9000), "torn": data[: PAGE // 2], "head": bytes(PAGE) + data[PAGE:]}
    path.write_bytes(bad.get(what, b"\0" * PAGE))
    report = repair(path)
    assert report.damaged and (report.chunks, report.tags) == (0, 0)
    Journal.open(path, replica="a").close()


def test_a_torn_file_gives_what_its_pages_hold(whole: tuple[Path, Chunks], tmp_path: Path) -> None:
    path = copied(whole[0], tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 3 * PAGE])
    report = repair(path, clock=lambda: NOW_S)
    assert report.damaged and report.tags
    nothing_is_silently_gone(path, whole[1])


def test_what_stood_in_the_write_ahead_log_is_saved_too(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "running", tags=6)
    for step in range(1, 31):
        with journal.transaction():
            if step == 1:
                journal.save_stream(Stream("s1", "urn:x"))
            journal.append("s1", "1-0", step * 10, step * 10 + 10, "a", doubles(step))
    killed = tmp_path / "killed"
    shutil.copytree(journal.path.parent, killed)
    journal.close()
    before = chunks(journal.path)
    (killed / "mirror.db-shm").unlink(missing_ok=True)
    wal = bytearray((killed / "mirror.db-wal").read_bytes())
    assert len(wal) > 30 * PAGE
    with sqlite3.connect(killed / "mirror.db") as db:  # a chunk is damaged in the log itself, by who knows what
        db.execute("UPDATE chunk SET body = zeroblob(size) WHERE seq = 7")
        db.commit()
        shutil.copytree(killed, tmp_path / "bent")
    db.close()
    report = repair(tmp_path / "bent" / "mirror.db", clock=lambda: NOW_S)
    assert report.damaged.startswith("chunk 7")
    assert nothing_is_silently_gone(tmp_path / "bent" / "mirror.db", before) == 1


def test_a_repair_that_was_killed_is_begun_anew(whole: tuple[Path, Chunks], tmp_path: Path) -> None:
    path = copied(whole[0], tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE chunk SET body = x'00' WHERE seq IN (3, 4)")
    db.close()
    stop: list[str] = []

    def clock() -> float:
        if len(stop) < 1:
            stop.append("")
            return NOW_S
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(path, clock=clock)
    with pytest.raises(Corrupt):
        Journal.open(path, replica="a").close() or chunk.decode(chunks(path)[3][3])
    report = repair(path, clock=lambda: NOW_S)
    assert report.chunks == CHUNKS - 2
    assert len([p for p in tmp_path.iterdir() if ".damaged-" in p.name and p.name.endswith("Z")]) == 1
    assert nothing_is_silently_gone(path, whole[1]) == 2


def test_a_running_gateway_is_not_repaired(tmp_path: Path) -> None:
    journal = fresh(tmp_path, tags=1)
    with pytest.raises(ConfigError, match="in use"):
        repair(journal.path)
    journal.close()


def test_where_there_is_no_journal_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no journal"):
        repair(tmp_path / "nowhere" / "mirror.db")
    assert list(tmp_path.iterdir()) == []


def test_what_the_bucket_has_is_no_gap(whole: tuple[Path, Chunks], tmp_path: Path) -> None:
    path = copied(whole[0], tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE chunk SET body = x'00' WHERE seq IN (10, 50)")
        lane, start, end, _ = whole[1][10]
        db.execute("INSERT INTO promise VALUES (?, ?, ?, 'covered', ?, ?)", (*lane, start - 1, end + 1))
    db.close()
    repair(path, clock=lambda: NOW_S)
    reader = JournalReader.open(path)
    gaps = [(gap.stream, gap.start, gap.end) for gap in reader.gaps() if gap.reason == Reason.DAMAGED]
    reader.close()
    assert gaps == [(whole[1][50][0][0], *whole[1][50][1:3])]


def test_the_command_tells_what_it_saved_and_what_the_ledger_says(
    whole: tuple[Path, Chunks], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(whole[0], tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE chunk SET body = x'00' WHERE seq = 10")
    db.close()
    assert main(["repair", "--journal", str(path)]) == 0
    out = capsys.readouterr().out
    assert "chunk 10" in out and f"in {CHUNKS - 1} chunks" in out and "edgemirror gaps list" in out
    assert main(["repair", "--journal", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == ""


def test_every_reason_of_a_gap_has_a_story() -> None:
    assert set(STORIES) == set(Reason)
