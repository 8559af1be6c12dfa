"""The peers of the bench run, count what they get, and see a loss."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.bench import peers
from tests.live.servers import NodeServer, Weed, needs

SECONDS = 5.0
NODES = 20


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_keeps_every_count_and_prints_its_figures(name: str, tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=NODES) as server:
        server.run(10)
        figures = peers.run(name, server.endpoint, SECONDS, tmp_path / name)
    assert figures["peer"] == name
    assert figures["nodes"] == NODES
    assert figures["lost"] == 0
    assert figures["changes"] > 2 * NODES
    assert figures["us_per_change"] > 0 and figures["rss_mib"] > 10


def test_the_script_peer_uploads_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("weed")
    with NodeServer(tmp_path / "server", nodes=NODES) as server, Weed(tmp_path / "store") as store:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
        monkeypatch.setenv("AWS_DEFAULT_REGION", store.region)
        server.run(10)
        peers.run("script", server.endpoint, SECONDS, tmp_path / "peer", (store.endpoint, store.bucket))
        assert store.client().list_objects_v2(Bucket=store.bucket, Prefix="script/")["KeyCount"] >= 1


def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="peer script ended with 1"):
        peers.run("script", "no-url", 2.0, tmp_path)


def test_missing_counts_are_losses_and_other_values_are_not() -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE samples (node TEXT, ts REAL, value)")
    db.executemany("INSERT INTO samples VALUES (?, 0, ?)", [("a", v) for v in (1, 2, 5, 5)] + [("b", 7)])
    assert peers.losses(db) == (2, 2)
    db.execute("INSERT INTO samples VALUES ('c', 0, 1.5)")
    assert peers.losses(db) == (3, None)
