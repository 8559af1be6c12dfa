"""The command line on a journal that a test has filled."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from demo.servers import free_ports
from gateway.__main__ import main
from gateway.io.journal import ChainRow, Journal
from gateway.io.push import log_fact
from mirror.batch import Batch
from mirror.coverage import Coverage, Gap, Reason, Stream
from mirror.floor import sign_floor
from mirror.header import public_hex
from mirror.io.s3 import S3Store
from mirror.tags import Tag
from tests.conformance.servers import moto
from tests.mirror.logs import KEY, LAYOUT, OTHER, below, clean_up, log

T = 134_000_000_000_000_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with three samples of two tags, one covered interval and one gap."""
    path = tmp_path / "mirror.db"
    with_journal = Journal.open(path, replica="a")
    rows = Batch.zeros(3)
    rows.handle[:] = [0, 1, 0]
    rows.kind[:] = 8
    rows.bits[:] = [7, 8, 9]
    rows.source_ticks[:] = [T, T, T + 10]
    rows.status[:] = [0, 0x80310000, 0]
    with with_journal.transaction():
        with_journal.add_tags([Tag("urn:s", "urn:n", f"s={n}", path=f"Press/{n}") for n in ("A", "B")])
        with_journal.save_stream(Stream("s1", "urn:s"))
        with_journal.append("s1", "1-1", T, T + 100, "a", rows)
        with_journal.extend(Coverage("s1", "1-1", T, T + 100, "a"))
        with_journal.open_gap(Gap.opened("s1", "1-1", T + 100, Reason.DISCONNECTED, end=T + 200))
    with_journal.close()
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_status_tells_what_is_covered_missing_and_not_pushed(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "status", "--journal", journal, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["tags"] == 2 and facts["gaps"] == {"open": 1, "closed": 0, "lost": 0}
    assert facts["streams"][0]["covered_to"] == T + 100 and facts["backlog"]["rows"] == 3
    code, out, _ = run(capsys, "status", "--journal", journal)
    assert code == 0 and "not pushed: 3 samples in 1 chunks" in out


def test_status_warns_of_a_journal_that_is_larger_than_configured(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = journal.parent / "gateway.toml"

    def configured(max_gib: float) -> Path:
        config.write_text(
            f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{journal.parent}"\n[journal]\nmax_gib={max_gib:.12f}\n'
            '[[source]]\nname="s"\nendpoint="opc.tcp://h:1"\nsecurity="none"\n[[source.device]]\nname="d"\n'
            'browse=["i=85"]\n'
        )
        return config

    code, out, _ = run(capsys, "status", "--config", configured(1e-6))
    assert code == 0 and out.startswith("WARNING: journal: ") and "1073 are allowed (journal.max_gib)" in out
    code, out, _ = run(capsys, "status", "--config", config, "--json")
    facts = json.loads(out)
    assert code == 0 and len(facts["warnings"]) == 1 and facts["size_bytes"] > 1073
    code, out, _ = run(capsys, "status", "--config", configured(1), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["warnings"] == [] and facts["room"]["limit"] in ("journal.max_gib", "the disk")
    code, told, _ = run(capsys, "status", "--config", config)
    assert code == 0 and "room: " in told and "GiB free, the journal has 0.00 of 1 GiB" in told
    code, out, _ = run(capsys, "status", "--journal", journal)
    assert code == 0 and "WARNING" not in out and "room" not in out


def test_tail_prints_samples_and_ends_after_as_many_as_asked(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "tail", "--journal", journal, "--from-start", "-n", "2", "--json", "Press/A")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(s["tag"], s["value"], s["status"]) for s in lines] == [
        ("Press/A", 7, "Good"),
        ("Press/A", 9, "Good"),
    ]


def test_sql_sees_every_sample_as_a_row(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT tag, count(*) AS n FROM samples GROUP BY tag ORDER BY tag"
    code, out, _ = run(capsys, "sql", "--journal", journal, "--json", query)
    assert code == 0 and [row["n"] for row in json.loads(out)] == [2, 1]
    code, out, _ = run(capsys, "sql", "--journal", journal, query)
    assert code == 0 and out.splitlines()[0] == "tag\tn"


def test_json_that_is_printed_is_json_whatever_the_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mirror.db"
    odd = Journal.open(path, replica="a")
    rows = Batch.zeros(4)
    rows.kind[:] = 11
    rows.bits[:] = np.array([np.nan, np.inf, -np.inf, 1.5]).view(np.uint64)
    rows.source_ticks[:] = T
    with odd.transaction():
        odd.add_tags([Tag("urn:s", "urn:n", "s=A", path="Press/A")])
        odd.append("s1", "1-1", T, T + 100, "a", rows)
    odd.close()

    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    _, out, _ = run(capsys, "tail", "--journal", path, "--from-start", "-n", "4", "--json")
    assert [strict(line)["value"] for line in out.splitlines()] == ["NaN", "Infinity", "-Infinity", 1.5]
    _, out, _ = run(capsys, "sql", "--journal", path, "--json", "SELECT value FROM samples")
    assert [row["value"] for row in strict(out)] == [None, "Infinity", "-Infinity", 1.5]  # SQL has no NaN


def test_a_configuration_that_is_not_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes('[group]\nname = "Fräse"'.encode("latin-1"))
    code, _, err = run(capsys, "status", "--config", path)
    assert code == 2 and "UTF-8" in err


def test_sql_that_is_wrong_says_so_and_writes_nothing(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for query in ("SELEC 1", "DELETE FROM chunk", "SELECT * FROM nothing"):
        code, out, err = run(capsys, "sql", "--journal", journal, query)
        assert code != 0 and out == "" and err.startswith("edgemirror: ")


def test_export_writes_a_plain_file_and_never_over_another(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_file = tmp_path / "out.db"
    code, out, _ = run(capsys, "export", "--journal", journal, "--json", out_file)
    assert code == 0 and json.loads(out)["file"] == str(out_file)
    db = sqlite3.connect(out_file)
    assert db.execute("SELECT count(*) FROM samples").fetchone() == (3,)
    db.close()
    code, _, err = run(capsys, "export", "--journal", journal, out_file)
    assert code == 2 and "exists" in err


def test_an_export_that_cannot_be_written_says_so(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "export", "--journal", journal, tmp_path / "nowhere" / "x.db")
    assert code == 3 and "cannot be written" in err and "try:" in err


def test_a_missing_file_is_named_with_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "status", "--config", tmp_path / "none.toml")
    assert code == 2 and "none.toml" in err and "try:" in err
    code, _, err = run(capsys, "status", "--journal", tmp_path / "none.db")
    assert code == 2 and "there is no journal" in err


def test_verify_without_a_bucket_says_what_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{tmp_path}"\n[[source]]\nname="s"\n'
        'endpoint="opc.tcp://h:1"\nsecurity="none"\n[[source.device]]\nname="d"\nbrowse=["i=85"]\n'
    )
    code, _, err = run(capsys, "verify", "--config", config)
    assert code == 2 and "sync.bucket" in err


def test_verify_believes_what_this_replica_knows_and_alone_what_the_floor_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The floor is signed by another replica, which the journal has seen enrolled."""
    writer = log(3)
    writer.write(6, keys={"b": public_hex(OTHER)})
    writer.write(6)
    whole = below(writer, 5)
    clean_up(writer, 4, sign_floor(below(writer, 4), "b", OTHER))
    key_file, data = tmp_path / "signing.pem", KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_file.write_bytes(data)
    key_file.chmod(0o600)
    with moto() as settings:
        store = S3Store.open(settings)
        for key, found in writer.store.objects.items():
            store.put(key, found.body, metadata=found.metadata)
        for name, secret in (("access", settings.access_key), ("secret", settings.secret_key)):
            (tmp_path / name).write_text(secret)
            (tmp_path / name).chmod(0o600)
        config = tmp_path / "gateway.toml"
        config.write_text(
            f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{tmp_path}"\n[[source]]\nname="s"\n'
            'endpoint="opc.tcp://h:1"\nsecurity="none"\n[[source.device]]\nname="d"\nbrowse=["i=85"]\n'
            f'[sync]\nbucket="s3://{settings.bucket}/plant"\nendpoint="{settings.endpoint}"\n'
            f'access_key_file="{tmp_path}/access"\nsecret_key_file="{tmp_path}/secret"\n'
        )
        code, out, _ = run(capsys, "verify", "--config", config)
        assert code == 1 and "WRONG: floor.json is foreign: its signer, 'b'" in out, "its own key is all it knows"
        code, out, _ = run(capsys, "verify", "--config", config, "--alone")
        assert code == 0 and "believed: the keys in floor.json" in out
        journal = Journal.open(tmp_path / "mirror.db", replica="a")
        with journal.transaction():
            journal.set_fact(log_fact(store, LAYOUT), whole.save())
            for seq, hash in writer.hashes.items():
                journal.add_chain(ChainRow(seq, 1, "a", "i1", hash))
        journal.close()
        code, out, _ = run(capsys, "verify", "--config", config, "--json")
        assert code == 0 and json.loads(out)["believed"] == "keys" and json.loads(out)["first"] == 4


def test_version_names_what_the_program_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "version", "--json")
    assert code == 0 and json.loads(out)["asyncua"] == "2.1.0"


def test_an_unknown_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["nonsense"])
    assert end.value.code == 2
    capsys.readouterr()


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """Give the writing end of a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


@contextlib.contextmanager
def started(arguments: list[str], **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that does not outlive the test."""
    with subprocess.Popen(arguments, cwd=ROOT, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gateway", *map(str, arguments)]


def test_run_goes_on_although_nobody_reads_what_it_says(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{tmp_path}/data"\n[[source]]\nname="s"\n'
        f'endpoint="opc.tcp://127.0.0.1:{free_ports(1)[0]}"\nsecurity="none"\n[[source.device]]\nname="d"\n'
        'browse=["i=85"]\n[http]\nlisten="127.0.0.1:0"\n'
    )
    with nobody() as gone, started(command("run", "-c", config), stdout=subprocess.PIPE, stderr=gone) as running:
        assert running.stdout is not None
        facts = json.loads(running.stdout.readline())
        assert httpx.get(f"{facts['http']}/livez", trust_env=False).status_code == 200
        running.terminate()
        assert running.wait(20) == 0
    with nobody() as gone, started(command("run", "-c", config), stdout=gone, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        events = (json.loads(line)["event"] for line in running.stderr)
        assert "source.refused" in events, "reads up to there"
        running.terminate()
        rest = set(events)
        assert "gateway.stopped" in rest and "gateway.failed" not in rest
        assert running.wait(20) == 0


def test_only_a_verb_that_shows_something_is_done_when_its_reader_leaves(journal: Path) -> None:
    with nobody() as gone:
        for verb in ("status", "tail"):
            arguments = command(verb, "--journal", journal, *(["--from-start", "-n", "1"] if verb == "tail" else []))
            done = subprocess.run(arguments, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
        done = subprocess.run(command("schema"), cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        check = "import gateway.cli.verify as v, gateway.__main__ as m; v.verify = lambda o: print(0) or 0; "
        call = [sys.executable, "-c", check + "raise SystemExit(m.main(['verify']))"]
        done = subprocess.run(call, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (3, b"")


def test_a_message_turns_no_terminal_whatever_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "status", "--config", tmp_path / "a\x1b[2J\u202eb.toml")
    assert code == 2 and "a\\u001B[2J\\u202Eb.toml" in err and "\x1b" not in err and "edgemirror init" in err
