"""A journal of an older program is brought up to date with all it holds; one of a newer program is left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror import chunk, schema
from mirror.io import sqlite
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh, inside

LATER = (*schema.MIGRATIONS, schema.Migration("0002_test", ("ALTER TABLE stream ADD COLUMN later INTEGER",)))
CONFIG = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "{folder}"
[[source]]
name = "s"
endpoint = "opc.tcp://127.0.0.1:1"
security = "none"
[[source.device]]
name = "d"
browse = ["i=85"]
[http]
listen = ""
"""


@contextmanager
def newer() -> Iterator[None]:
    """Be the next version of this program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", LATER)
        yield


def samples(path: Path) -> list[bytes]:
    reader = JournalReader.open(path)
    try:
        return [row.body for row in reader.chunks_since(0)]
    finally:
        reader.close()


def test_an_upgrade_of_the_schema_keeps_samples_state_and_epoch(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    rows = doubles(3)
    inside(journal, lambda: journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, rows))
    inside(journal, lambda: journal.save_epoch(7, "x"))
    path, state = journal.path, chunk.encode(journal.state.batch(journal.state.handles))
    journal.close()
    before = samples(path)
    with newer():
        journal = Journal.open(path, replica="a")
        assert journal.epoch()[0] == 7 and chunk.encode(journal.state.batch(journal.state.handles)) == state
        inside(journal, lambda: journal.append(STREAM, TIMELINE, 2, 3, ORIGIN, rows))
        journal.close()
        assert samples(path) == [*before, before[0]]


@pytest.mark.parametrize(
    "arguments", [["run"], ["status"], ["tail"], ["sql", "SELECT 1"], ["export", "out.db"]], ids=lambda a: a[0]
)
def test_an_older_program_refuses_a_newer_journal_with_the_next_command_and_changes_nothing(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gateway.toml").write_text(CONFIG.format(folder=tmp_path))
    with newer():
        journal = fresh(tmp_path)
        inside(journal, lambda: journal.append(STREAM, TIMELINE, 1, 2, ORIGIN, doubles(3)))
        journal.close()
    path = tmp_path / "mirror.db"
    before = hashlib.sha256(path.read_bytes()).digest()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "newer edgemirror (schema 2, known up to 1)" in err
    assert "install.sh rollback" in err and f"move {path} away" in err
    assert hashlib.sha256(path.read_bytes()).digest() == before and not Path("out.db").exists()
    with newer():
        assert len(samples(path)) == 1
