"""What a user could deploy today instead of this project, as processes to be measured beside it.

`run(name, endpoint, seconds, folder)` starts a peer against an OPC UA server whose variables count
1, 2, 3, ... and returns what it printed:

    {"peer", "changes", "rate_per_s", "us_per_change", "cpu_s", "rss_mib", "lost", "nodes"}

CPU and rate are counted from the first full flush after SETTLE_S to the end, so that connecting,
browsing and subscribing do not weigh on them; `lost` is the number of missing integers between the
smallest and the largest value of each node, None where values are no counters. `available(name)` tells
why a peer cannot run here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.tools import ROOT, find

NAMES = ("script", "node")
SETTLE_S = 1.0
GRACE_S = 60.0


def available(name: str) -> str:
    """Return why a peer cannot run here; empty if it can."""
    return find("node-opcua").reason if name == "node" else ""


def run(name: str, endpoint: str, seconds: float, folder: Path, store: tuple[str, str] | None = None) -> dict[str, Any]:
    """Run a peer for so many seconds and return its figures.

    Args:
        name: `script` or `node`.
        endpoint: `opc.tcp://...`
        seconds: From its start, connecting included.
        folder: Gets its database; should be fresh.
        store: S3 endpoint and bucket, credentials from the environment; `script` only.

    Raises:
        RuntimeError: The peer failed; the text is the end of what it wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if name == "node":
        tool = find("node-opcua")
        if tool.path is None:
            raise RuntimeError(tool.reason)
        env |= tool.env
        command = [str(tool.path), "--disable-warning=ExperimentalWarning", str(Path(__file__).parent / "node_peer.js")]
    else:
        command = [sys.executable, "-m", "tests.bench.peers.script"]
    command += [endpoint, str(seconds), str(folder), *(store or ())]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds + GRACE_S, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"peer {name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1]))


class Meter:
    """Counts changes and the CPU time of this process once things are steady."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.total = 0
        self.changes = 0
        self.first_s: float | None = None
        self.began: tuple[float, float] | None = None

    def count(self, changes: int) -> None:
        """Note the changes of one flush."""
        self.total += changes
        if not changes and self.first_s is None:
            return
        now = time.monotonic()
        self.first_s = now if self.first_s is None else self.first_s
        if self.began is not None:
            self.changes += changes
        elif now - self.first_s >= SETTLE_S:
            self.began = now, time.process_time()

    def result(self, seconds: float, db: sqlite3.Connection) -> dict[str, Any]:
        """Return the figures; `seconds` is the life of the process."""
        began, cpu = self.began or (time.monotonic(), time.process_time())
        cpu_s, steady_s = time.process_time() - cpu, time.monotonic() - began
        nodes, lost = losses(db)
        return {
            "peer": self.peer, "nodes": nodes, "changes": self.total, "seconds": round(seconds, 3), "lost": lost,
            "rate_per_s": round(self.changes / steady_s, 1) if self.changes else 0.0, "cpu_s": round(cpu_s, 3),
            "us_per_change": round(cpu_s / self.changes * 1e6, 3) if self.changes else None, "rss_mib": rss_mib(),
        }  # fmt: skip


def losses(db: sqlite3.Connection) -> tuple[int, int | None]:
    """Return the nodes of a peer's table and the integers missing in their counts."""
    odd = db.execute("SELECT count(*) FROM samples WHERE typeof(value) = 'text' OR value != round(value)").fetchone()[0]
    rows = db.execute("SELECT count(DISTINCT value), min(value), max(value) FROM samples GROUP BY node").fetchall()
    return len(rows), None if odd else sum(int(high) - int(low) + 1 - kinds for kinds, low, high in rows)


def rss_mib() -> float:
    """Return the largest resident set of this process so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["VmHWM"].split()[0]) / 1024, 1)


async def variables(client: Any) -> list[Any]:
    """Return the variables of a server's own namespaces, found by browsing from Objects."""
    from asyncua import ua

    found, folders, seen = [], [client.nodes.objects], set()
    while folders:
        node = folders.pop()
        for reference in await node.get_references(
            ua.ObjectIds.HierarchicalReferences, ua.BrowseDirection.Forward, ua.NodeClass.Object | ua.NodeClass.Variable
        ):
            if reference.NodeId in seen or reference.NodeId.NamespaceIndex < 2:
                continue
            seen.add(reference.NodeId)
            child = client.get_node(reference.NodeId)
            (found if reference.NodeClass == ua.NodeClass.Variable else folders).append(child)
    return found
