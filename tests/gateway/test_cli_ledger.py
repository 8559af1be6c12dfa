"""The verbs `history` and `gaps` on a journal that a test has filled."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from gateway.cli.history import moment
from gateway.io.journal import Journal
from mirror.batch import Batch
from mirror.coverage import Coverage, Gap, Reason, Stream
from mirror.errors import ConfigError
from mirror.tags import Tag
from mirror.ticks import clock_text
from tests.gateway.test_cli import run

S = 10_000_000
T = 134_000_000_000_000_000


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose journal has five samples of two tags and two gaps."""
    path = tmp_path / "data" / "mirror.db"
    journal = Journal.open(path, replica="a")
    rows = Batch.zeros(5)
    rows.handle[:] = [0, 1, 0, 0, 1]
    rows.kind[:] = 8
    rows.bits[:] = [7, 8, 9, 10, 11]
    rows.source_ticks[:] = [T, T, T + S, T + 2 * S, T + 3 * S]
    rows.status[:] = [0, 0x80310000, 0, 0, 0]
    with journal.transaction():
        tags = [Tag("urn:s", "urn:n", f"s={n}", path=f"Press/{n}", device="press", name=n) for n in ("A", "it's")]
        journal.add_tags(tags)
        journal.save_stream(Stream("s1", "urn:s"))
        journal.append("s1", "1-1", T, T + 100, "a", rows)
        journal.extend(Coverage("s1", "1-1", T, T + 100, "a"))
        journal.open_gap(Gap.opened("s1", "1-1", T + S, Reason.DISCONNECTED, end=T + 2 * S))
        journal.open_gap(Gap.opened("s1", "1-1", T + 2 * S, Reason.OVERFLOW, end=T + 3 * S, tags=[tags[1].identity]))
        journal.open_gap(Gap.opened("s1", "1-1", T + 9 * S, Reason.SERVER_RESTART))
    journal.close()
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'[group]\nname="g"\n[replica]\nname="a"\ndata_dir="{tmp_path}/data"\n[[source]]\nname="s"\n'
        'endpoint="opc.tcp://h:1"\nsecurity="none"\n[[source.device]]\nname="d"\nbrowse=["i=85"]\n'
    )
    return file


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", ["press/A", "Press/A", "nsu=urn:n;s=A"])
def test_history_prints_one_tag_in_order_and_the_gaps_that_concern_it(config: Path, capsys: Capture, name: str) -> None:
    code, out, err = run(capsys, "history", "--config", config, "--json", name)
    assert code == 0 and [json.loads(line)["value"] for line in out.splitlines()] == [7, 9, 10]
    assert "disconnected" in err and "overflow" not in err and "3 samples, 2 gaps" in err


def test_history_ends_before_its_end_and_takes_the_newest(config: Path, capsys: Capture) -> None:
    def values(*more: str) -> list[int]:
        code, out, _ = run(capsys, "history", "--config", config, "--csv", "Press/A", *more)
        assert code == 0
        return [int(row["value"]) for row in csv.DictReader(out.splitlines())]

    begin, end = (clock_text(T + n * S).removesuffix(" UTC").replace(" ", "T") for n in (1, 2))
    assert moment(begin, 0.0) == T + S
    assert values("--from", begin) == [9, 10]
    assert values("--from", begin, "--to", end) == [9]
    assert values("--lines", "2") == [9, 10]
    assert values("--from", "1m") == []


def test_history_of_no_tag_or_of_several_says_which(config: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "history", "--config", config, "nothing")
    assert code == 2 and "no tag contains" in err and "try:" in err
    code, _, err = run(capsys, "history", "--config", config, "Press/")
    assert code == 2 and "2 tags contain" in err and "Press/it's" in err
    code, out, _ = run(capsys, "history", "--config", config, "it's")
    assert code == 0 and len(out.splitlines()) == 2


@pytest.mark.parametrize("text", ["yesterday", "5 minutes", "2026-13-01", ""])
def test_what_is_no_time_is_named_with_a_legal_one(text: str) -> None:
    with pytest.raises(ConfigError, match="use 2026-01-31T12:00:00"):
        moment(text, 0.0)


def test_gaps_are_listed_oldest_first_and_filtered(config: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "gaps", "list", "--config", config, "--json")
    rows = json.loads(out)
    assert code == 0 and [row["reason"] for row in rows] == ["disconnected", "overflow", "server_restart"]
    assert [row["seconds"] for row in rows] == [1.0, 1.0, None] and [row["tags"] for row in rows] == [None, 1, None]
    code, out, err = run(capsys, "gaps", "list", "--config", config, "--source", "elsewhere")
    assert code == 0 and out == "" and "0 of 3 gaps" in err


def test_a_gap_is_explained_in_words_with_its_tags(config: Path, capsys: Capture) -> None:
    _, out, _ = run(capsys, "gaps", "list", "--config", config, "--json")
    overflow = json.loads(out)[1]["id"]
    code, out, _ = run(capsys, "gaps", "explain", "--config", config, overflow[:8])
    assert code == 0 and "queue for these tags ran over" in out and "Press/it's" in out and "open" in out
    code, _, err = run(capsys, "gaps", "explain", "--config", config, "")
    assert code == 2 and "3 gaps with an id" in err


def test_a_gap_is_declared_lost_once_and_only_when_it_is_over(config: Path, capsys: Capture) -> None:
    _, out, _ = run(capsys, "gaps", "list", "--config", config, "--json")
    first, _, lasting = (row["id"] for row in json.loads(out))
    declare = ("gaps", "declare-lost", "--config", config, "--why", "maintenance")
    code, out, _ = run(capsys, *declare, "--json", first)
    assert code == 0 and json.loads(out)["closed_by"] == "lost"
    code, out, _ = run(capsys, "gaps", "explain", "--config", config, first)
    assert "nobody has the samples" in out and "maintenance" in out
    code, _, err = run(capsys, *declare, first)
    assert code == 2 and "closed already" in err
    code, _, err = run(capsys, *declare, lasting)
    assert code == 2 and "not over yet" in err
    _, out, _ = run(capsys, "gaps", "list", "--open", "--config", config, "--json")
    assert len(json.loads(out)) == 2


def test_beside_a_running_gateway_nothing_is_declared(config: Path, capsys: Capture) -> None:
    _, out, _ = run(capsys, "gaps", "list", "--config", config, "--json")
    running = Journal.open(config.parent / "data" / "mirror.db", replica="a")
    try:
        code, _, err = run(capsys, "gaps", "declare-lost", "--config", config, "--why", "x", json.loads(out)[0]["id"])
        assert code != 0 and "another" in err
    finally:
        running.close()
