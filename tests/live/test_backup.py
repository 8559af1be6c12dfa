"""A box dies; another one with its backup goes on with its log, by the same key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.servers import Weed
from gateway.__main__ import main
from tests.live.gateways import Rig
from tests.live.servers import NodeServer


def test_a_new_box_with_the_backup_of_a_dead_one_goes_on_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=5) as server, Weed(tmp_path / "store") as store,
    ):  # fmt: skip
        server.run(10.0)
        rig = Rig(tmp_path / "box", server, store=store)
        with rig:
            rig.live()
            rig.drained()
            assert main(["backup", "--json", "--config", str(rig.config), str(tmp_path / "a.backup")]) == 0
            kept = json.loads(capsys.readouterr().out)
            rig.kill()
            before, _ = rig.bucket()
        rig.folder.rename(tmp_path / "dead")
        assert main(["restore-config", "--json", str(tmp_path / "a.backup")]) == 0
        restored = json.loads(capsys.readouterr().out)
        assert restored["next"] == f"edgemirror run --config {rig.config}"
        rig.on_another_box()
        with rig:
            rig.live()
            rig.settle()
            rig.drained()
            assert main(["verify", "--json", "--config", str(rig.config)]) == 0  # by the key that came back
            after, rows = rig.bucket()
            assert after.verified and after.next > before.next and after.epochs[-1][0] > kept["epoch"]
            assert all(rows[row] >= n for row, n in rig.look().rows.items())
