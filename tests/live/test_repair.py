"""A journal that is damaged beside a real server and a real store: refused, repaired, and nothing silently gone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from demo.servers import NotReady, Weed
from mirror.coverage import Reason
from tests.live.gateways import ROOT, Rig
from tests.live.proxy import Proxy
from tests.live.servers import NodeServer


def test_a_damaged_journal_is_refused_repaired_and_what_it_alone_had_is_told(tmp_path: Path) -> None:
    with (
        Weed(tmp_path / "store") as store,
        NodeServer(tmp_path / "server", nodes=5) as server,
        Proxy(store.port) as way,
        Rig(tmp_path / "rig", server, store=store, store_port=way.port) as rig,
    ):
        rig.live()
        server.run(10.0)
        rig.grown(5)
        rig.drained()
        way.cut()
        rig.grown(20)
        rig.kill()
        with sqlite3.connect(rig.path) as db:
            last = db.execute("SELECT max(seq) FROM chunk").fetchone()[0]
            db.execute("UPDATE chunk SET body = zeroblob(size) WHERE seq > ? AND seq % 5 = 0", (last - 15,))
            db.execute("DELETE FROM session")  # so that what is broken cannot be fetched again either
        db.close()
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "repair", "--config", str(rig.config)], capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "gap rows for what may be lost" in done.stdout, done.stdout + done.stderr
        rig.on_another_box()
        way.heal()
        rig.start()
        rig.grown(5)
        rig.settle()
        verdict = rig.verdict()
        assert verdict.lost > 0 and verdict.undeclared == []
        assert Reason.DAMAGED in {gap.reason for gap in verdict.gaps}
        rig.drained()
        report, _ = rig.bucket()
        assert report.verified, report.findings


def test_a_gateway_does_not_run_on_a_damaged_file_and_names_the_next_command(tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=2) as server, Rig(tmp_path / "rig", server) as rig:
        rig.until(lambda: bool(rig.events("source.connected")), "the server's tags in the journal")
        assert rig.stop() == 0
        data = bytearray(rig.path.read_bytes())
        for at in range(4 * 4096, 12 * 4096, 4096):
            data[at : at + 64] = b"\xff" * 64
        rig.path.write_bytes(data)
        try:
            rig.start()
        except NotReady as error:
            assert "edgemirror repair" in str(error)
        else:
            raise AssertionError("it runs on a damaged file")
