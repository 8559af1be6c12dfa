"""A gateway that finds its disk full when it starts says so, waits, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw

from tests.tools import ROOT

#: Fills the write-ahead log and dies, so that the next process goes on where it ends.
FILL = """
import os, sys
from pathlib import Path
from gateway.io.journal import Journal
journal = Journal.open(Path(sys.argv[1]), replica="a")
for i in range(30):
    with journal.transaction():
        journal.set_fact(f"filler{i}", os.urandom(3000))
os._exit(0)
"""
CONFIG = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "{folder}/data"
[http]
listen = "127.0.0.1:0"
[[source]]
name = "s"
endpoint = "opc.tcp://127.0.0.1:1"
security = "none"
[[source.device]]
name = "d"
browse = ["i=85"]
"""


def test_a_full_disk_at_the_start_is_told_and_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    path = tmp_path / "data" / "mirror.db"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FILL, str(path)], env=env, check=True)
    (tmp_path / "gateway.toml").write_text(CONFIG.format(folder=tmp_path))
    reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM fact").get >= 30  # while it reads, the log is not begun anew
    kib = path.with_name("mirror.db-wal").stat().st_size // 1024
    command = f"ulimit -f {kib}; exec {sys.executable} -m gateway run -c {tmp_path}/gateway.toml"
    with subprocess.Popen(
        ["bash", "-c", command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "journal.stalled"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    reader.close()
    assert process.returncode == 0 and out == "", "it has never said that it runs"
