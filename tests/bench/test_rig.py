"""The bench itself: it sees a loss where there is one, and the load server's messages all arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror.batch import Batch, Kind
from mirror.tags import Tag
from tests.bench import ingest
from tests.bench.rig import Gateway, LoadServer, audit

NODES = 3


def journal_of(folder: Path, batches: Sequence[Sequence[tuple[int, float]]]) -> Path:
    """Return a journal with (node, value) rows; the tags stand in it in reverse order of the nodes."""
    path = folder / "data" / "mirror.db"
    journal = Journal.open(path, replica="a")
    with journal.transaction():
        journal.add_tags([Tag("urn:load", "urn:bench", f"s=m0000.v{n:06d}") for n in reversed(range(NODES))])
    for k, rows in enumerate(batches):
        batch = Batch.zeros(len(rows))
        batch.handle[:] = [NODES - 1 - node for node, _ in rows]
        batch.kind[:] = Kind.DOUBLE
        batch.bits[:] = np.array([value for _, value in rows], np.float64).view(np.uint64)
        with journal.transaction():
            journal.append("s", "1-0", k, k + 1, "a", batch)
    journal.close()
    return path


def test_audit_finds_nothing_where_every_count_is_there_whatever_the_noise(tmp_path: Path) -> None:
    path = journal_of(tmp_path, [[(0, 1.9), (1, 1.0), (2, 1.5), (0, 2.99)], [(1, 2.01)]])
    held = audit(path, 5, NODES)
    assert (held.rows, held.lost, held.repeated) == (5, 0, 0)


@pytest.mark.parametrize(
    ("batches", "lost", "repeated"),
    [
        ([[(0, 1), (1, 1), (2, 1)], [(0, 3), (1, 2), (2, 2)], [(1, 3), (2, 3)]], 1, 0),
        ([[(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (0, 3), (1, 3)]], 1, 0),
        ([[(0, 1), (1, 1), (2, 1)], [(0, 1)], [(0, 2), (1, 2), (2, 2), (0, 3), (1, 3), (2, 3)]], 0, 1),
    ],
)
def test_audit_counts_what_is_missing_within_or_at_the_end_and_what_came_twice(
    tmp_path: Path, batches: list[list[tuple[int, float]]], lost: int, repeated: int
) -> None:
    held = audit(journal_of(tmp_path, batches), 9, NODES)
    assert (held.lost, held.repeated) == (lost, repeated)


@pytest.mark.live
@pytest.mark.parametrize("mode", ["doubles", "mixed"])
def test_a_measured_gateway_has_every_sample(tmp_path: Path, mode: str) -> None:
    with LoadServer(tmp_path / "server", nodes=500, mode=mode) as server:
        found = ingest.measure(ingest.Cell(mode, 20_000.0), server, tmp_path / "a", 1.0)
    assert (found["lost"], found["repeated"], found["dropped"]) == (0, 0, 0)
    assert found["rate_per_s"] > 10_000
    assert found["us_per_change"] > 0 and found["rss_mib"] > 10


@pytest.mark.live
@pytest.mark.parametrize("keepalive", ["empty", "null"])
def test_a_pause_bridged_by_keep_alives_is_neither_a_loss_nor_a_gap(tmp_path: Path, keepalive: str) -> None:
    server = LoadServer(tmp_path / "server", nodes=100, keepalive=keepalive)
    with server, Gateway(tmp_path / "a", server, publishing_ms=50.0) as gateway:
        gateway.mirrored(100)
        server.ask("run", rate=2_000)
        gateway.mirrored(1_500)
        written = server.ask("pause")["written"]
        time.sleep(2.5)  # a keep-alive comes every two seconds, and carries the next number
        server.ask("run", rate=2_000)
        gateway.mirrored(written + 500)
        written = server.ask("pause")["written"]
        gateway.mirrored(written)
        reader = JournalReader.open(gateway.journal)
        gaps = reader.gaps()
        reader.close()
    assert server.process is not None
    held = audit(gateway.journal, written, 100)
    assert (held.lost, held.repeated) == (0, 0)
    assert gaps == []
