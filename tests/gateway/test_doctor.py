"""The doctor: every bound has two sides, and a real look at a box says what is there."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import doctor
from gateway.checkup import validity
from gateway.config import Config, parse
from gateway.io.doctor import examine
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from gateway.room import Room
from mirror.header import Clock
from tests.gateway.journals import doubles
from tests.gateway.test_cli import run
from tests.mirror.batches import table

GIB = 1 << 30


def clock(error_max_us: int, *, synchronized: bool = True) -> Clock:
    return Clock(error_us=1, error_max_us=error_max_us, synchronized=synchronized)


@pytest.mark.parametrize(
    ("told", "level"),
    [(clock(90_000), "ok"), (clock(200_000), "warn"), (clock(1_100_000), "fail"), (None, "warn"),
     (clock(10, synchronized=False), "warn")],
)  # fmt: skip
def test_a_clock_is_judged_by_the_kernels_own_estimate(told: Clock | None, level: str) -> None:
    found = doctor.judge_clock(told)
    assert found.level == level and (level == "ok") == (found.hint == "")


@pytest.mark.parametrize(
    ("times", "level"), [([1, 2, 900], "ok"), ([30, 31, 32], "warn"), ([101, 150, 200], "fail"), ([15, 15, 15], "ok")]
)
def test_a_disk_is_judged_by_its_median_sync(times: list[float], level: str) -> None:
    assert doctor.judge_fsync(times, commit_ms=20.0).level == level


def test_a_slow_disk_names_the_setting_and_a_legal_value() -> None:
    hint = doctor.judge_fsync([30.2], commit_ms=20.0).hint
    assert hint == "raise journal.commit_ms from 20 to 61"


@pytest.mark.parametrize(
    ("free", "held", "per_day", "level"),
    [
        (100 * GIB, GIB, GIB, "ok"), (100 * GIB, 10 * GIB, GIB, "warn"), (5 * GIB, GIB, GIB, "warn"),
        (100 * GIB, 21 * GIB, GIB, "fail"), (GIB // 8, GIB, 1.0, "fail"), (100 * GIB, GIB, None, "ok"),
        (100 * GIB, GIB, 0.0, "ok"),
    ],
)  # fmt: skip
def test_room_is_what_is_free_or_allowed_whichever_is_less(
    free: int, held: int, per_day: float | None, level: str
) -> None:
    assert doctor.judge_space(Room(20 * GIB, held, free, 0, per_day, bucket=False)).level == level


def test_a_log_that_is_not_emptied_names_the_way_to_the_reader() -> None:
    assert doctor.judge_wal(doctor.WAL_BYTES_MAX, "/d/mirror.db").level == "ok"
    found = doctor.judge_wal(doctor.WAL_BYTES_MAX + 1, "/d/mirror.db")
    assert found.level == "warn" and "64 MiB" in found.text and found.hint.endswith("lsof /d/mirror.db")


def test_a_certificate_warns_before_it_expires() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    spans = [(now - timedelta(days=9), now + timedelta(days=days)) for days in (31, 29, -1)]
    found = [doctor.judged(validity("certificate a", *span, now, "renew")) for span in spans]
    assert [(f.level, f.hint) for f in found] == [("ok", ""), ("warn", "renew"), ("fail", "renew")]


def test_a_store_that_lacks_what_is_needed_fails_and_one_that_lacks_the_rest_is_told() -> None:
    good = doctor.judge_store([5.0, 6.0], [], ["signatures: not checked"])
    assert [f.level for f in good] == ["ok", "ok", "warn"]
    assert doctor.worst(doctor.judge_store([5.0], ["creates once (no)"], [])) == "fail"
    assert doctor.worst(doctor.judge_store([5000.0], [], [])) == "warn"
    assert doctor.worst([]) == "ok"


def configuration(folder: Path, more: str = "") -> Config:
    return parse(
        f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{folder}/data"\n[[source]]\nname="s"\n'
        f'endpoint="opc.tcp://h:1"\nsecurity="none"\n{more}[[source.device]]\nname="d"\nbrowse=["i=85"]\n'
    )


def test_a_look_at_a_real_box_finds_each_part_and_leaves_nothing(tmp_path: Path) -> None:
    Journal.open(tmp_path / "data" / "mirror.db", replica="a").close()
    before = {p.name for p in (tmp_path / "data").iterdir()}
    found = list(examine(configuration(tmp_path)))
    assert [f.part for f in found] == ["clock", "disk", "space", "readers", "journal", "store"]
    assert found[1].text.startswith("fsync takes") and "no bucket" in found[-1].text
    after = {p.name for p in (tmp_path / "data").iterdir()}
    assert after - before <= {"mirror.db-wal", "mirror.db-shm"}, "SQLite's own, of any reader"


def test_what_cannot_be_examined_is_wrong_and_the_rest_is_examined(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mirror.db").write_bytes(b"not SQLite" * 500)
    found = {f.part: f for f in examine(configuration(tmp_path, 'certificate_file="/nowhere.der"\n'))}
    assert found["journal"].level == "fail" and "edgemirror repair" in found["journal"].hint
    assert found["certificate"].level == "fail" and "/nowhere.der" in found["certificate"].text
    assert found["disk"].level in ("ok", "warn", "fail") and found["store"].level == "warn"


def test_the_growth_is_that_of_the_time_asked_for(tmp_path: Path) -> None:
    now = [1000.0]
    journal = Journal.open(tmp_path / "data" / "mirror.db", replica="a", clock=lambda: now[0])
    sizes = []
    for step in range(5):
        now[0] = 1000.0 + 100 * step
        with journal.transaction():
            if step == 0:
                journal.add_tags(table(6).tags)
            journal.append("s", "1-0", step, step + 1, "a", doubles(step))
    reader = JournalReader.open(journal.path)
    for row in reader.chunks_since(0):
        sizes.append(len(row.body))
    assert reader.growth_per_s(1150.0) == pytest.approx(sum(sizes[2:]) / 200)
    assert reader.growth_per_s(2000.0) is None
    reader.close()
    journal.close()


def test_the_verb_prints_a_line_for_each_part_and_json_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{tmp_path}/data"\n[[source]]\nname="s"\n'
        'endpoint="opc.tcp://h:1"\nsecurity="none"\n[[source.device]]\nname="d"\nbrowse=["i=85"]\n'
    )
    code, out, _ = run(capsys, "doctor", "--config", file, "--json")
    facts = json.loads(out)
    assert code == (1 if facts["level"] == "fail" else 0) and {f["part"] for f in facts["found"]} >= {"clock", "disk"}
    _, out, _ = run(capsys, "doctor", "--config", file)
    assert "fsync takes" in out and "no bucket is configured" in out
