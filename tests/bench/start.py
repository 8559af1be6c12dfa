"""How long after its start the gateway has every tag subscribed and fresh, in three situations.

- *first*: nothing is known; it browses, subscribes, and gets each tag's value.
- *cached*: the model is known from before, but the server's session is gone: it subscribes anew. This is the
  figure of the last line.
- *resumed*: it comes back within the session's life and takes its subscription up again.

A start counts from the process's creation until its journal holds a value of each tag from after that start;
the server writes every tag four times a second. The server's part in it is told apart: it is asyncua, which
builds an object for each of the items that it is asked for.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.rig import Gateway, LoadServer, table

START_S = 120.0
PUBLISHING_MS = 100.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tags", type=int, default=40_000)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each situation."""
    with tempfile.TemporaryDirectory(prefix="edgemirror-bench-") as name:
        folder = Path(name)
        with LoadServer(folder / "server", nodes=chosen.tags) as server:
            gateway = Gateway(folder / "a", server, publishing_ms=PUBLISHING_MS)
            found = {"first": _start(gateway, server)}
            _forget_session(gateway.journal)
            found["cached"] = _start(gateway, server)
            found["resumed"] = _start(gateway, server)
    columns = ("seconds", "gateway_cpu_s", "server_cpu_s", "rss_mib", "how")
    print(table([("start", *columns), *((name, *(f[c] for c in columns)) for name, f in found.items())]))
    head = found["cached"]
    return {
        "name": "start", "tags": chosen.tags, "seconds": head["seconds"], "rss_mib": head["rss_mib"],
        "p50_ms": round(head["seconds"] * 1000), "starts": found,
    }  # fmt: skip


def _start(gateway: Gateway, server: LoadServer) -> dict[str, Any]:
    """Start the gateway, wait until all is fresh, and stop it again."""
    rows = gateway.rows()
    server_cpu = server.ask("run", rate=4 * server.nodes)["cpu_s"]
    began = time.monotonic()
    with gateway:
        gateway.mirrored(rows + server.nodes, START_S)
        seconds, used = time.monotonic() - began, gateway.usage()
        server_cpu = server.ask("pause")["cpu_s"] - server_cpu
        how = gateway.told("source.connected")["how"]
    return {
        "seconds": round(seconds, 2), "gateway_cpu_s": round(used.cpu_s, 2), "server_cpu_s": round(server_cpu, 2),
        "rss_mib": round(used.pss_mib, 1), "how": how,
    }  # fmt: skip


def _forget_session(journal: Path) -> None:
    """Make the gateway unable to resume, as after a restart of the server."""
    with sqlite3.connect(journal) as db:
        db.execute("DELETE FROM session")
    db.close()
