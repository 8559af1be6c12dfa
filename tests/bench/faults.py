"""What faults cost, and how long they last: the gateway's process beside real servers, each fault made for real.

Counters of node-opcua and asyncua are mirrored; afterwards each missing integer is a lost sample, and one that
no row of the gap ledger tells of is undeclared: both are counted over all parts.

- *server restart*: the server dies without closing anything, and is back after a while; time from its return to
  every node fresh, and what was not received live of each node at 5 Hz.
- *gateway killed*: kill -9; time from its start to the journal having what the server had at that start.
- *20 Hz*: signals at 20 Hz with default settings.
- *uplink*: the store is away; time from its return to everything in the bucket.
- *cable*: nothing moves on the way to the server any more; time to the retained quality that says so.
- *first hour*: the machine's part of it: `init` of one server, `run` to its first sample, and `init --from` of forty.
- *audit*: CPU of reading each of 10,000 tags once in a minute, told per core for once in ten minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from demo.servers import Process, Weed
from gateway.config import parse
from gateway.io.reader import JournalReader
from mirror.coverage import Promise
from mirror.errors import MirrorError
from tests.bench.rig import table, usage
from tests.live.gateways import Rig, Verdict
from tests.live.proxy import Proxy
from tests.live.servers import AsyncuaServer, Counters, Mosquitto, NodeServer
from tests.live.subscriber import Subscriber
from tests.tools import ROOT

AWAY_S = 1.5
REQUEST_TIMEOUT_S = 10  # the default: the live tests are less patient
AUDIT_TAGS, AUDIT_S = 10_000, 60.0
STALE = b"stale"
SERVERS = 40
EDGEMIRROR = [sys.executable, "-m", "gateway"]

Part = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=sorted(PARTS), help="this one alone")
    parser.add_argument("--uplink-away", type=float, default=30.0, metavar="SECONDS")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each part, and what was lost undeclared in all of them as `lost`."""
    found: dict[str, Part] = {}
    with tempfile.TemporaryDirectory(prefix="edgemirror-bench-") as name:
        for part in [chosen.part] if chosen.part else PARTS:
            folder = Path(name) / part
            folder.mkdir()
            found[part] = PARTS[part](folder, chosen)
            print(table([(part, ""), *found[part].items()]), end="\n\n", flush=True)
    return {"name": "faults", "lost": sum(part.get("undeclared", 0) for part in found.values()), **found}


def _counts(verdict: Verdict) -> Part:
    return {
        "produced": verdict.produced, "lost": verdict.lost, "undeclared": len(verdict.undeclared),
        "gap_rows": len(verdict.gaps), "repeated": verdict.duplicates,
    }  # fmt: skip


def _settled(rig: Rig) -> Verdict:
    rig.settle()
    return rig.verdict()


def server_restart(folder: Path, _chosen: argparse.Namespace) -> Part:
    """Of both servers the slower one's times, and all losses."""
    figures: Part = {"resume_s": 0.0, "lost_live_per_node": 0.0}
    kinds: tuple[type[Counters], ...] = (NodeServer, AsyncuaServer)
    for kind in kinds:
        with kind(folder / kind.__name__, nodes=100) as server, Rig(folder / f"{kind.__name__}-rig", server) as rig:
            rig.live()
            server.run(5.0)
            rig.grown(5)
            server.crash()
            time.sleep(AWAY_S)
            server.restart()
            back = time.monotonic()
            fresh = {node: value + 1 for node, value in rig.now().items()}
            server.run(5.0)
            rig.until(partial(rig.has, fresh), "every counter fresh again")
            resume_s = round(time.monotonic() - back, 2)
            rig.grown(5)
            verdict = _settled(rig)
            figures["resume_s"] = max(figures["resume_s"], resume_s)
            figures["lost_live_per_node"] = max(figures["lost_live_per_node"], round(verdict.lost / server.nodes, 2))
            for name, value in _counts(verdict).items():
                figures[name] = figures.get(name, 0) + value
    return figures


def gateway_killed(folder: Path, _chosen: argparse.Namespace) -> Part:
    """Three kills; the longest time."""
    longest = 0.0
    with (
        Weed(folder / "store") as store,
        NodeServer(folder / "server", nodes=1_000) as server,
        Rig(folder / "rig", server, store=store) as rig,
    ):
        rig.live()
        server.run(1.0)
        for _ in range(3):
            rig.grown(1)
            rig.kill()
            began, then = time.monotonic(), rig.now()
            starting = threading.Thread(target=rig.start)
            starting.start()
            rig.until(partial(rig.has, then), "what the server had when the gateway was started")
            longest = max(longest, time.monotonic() - began)
            starting.join()
        return {"tags": server.nodes, "resume_s": round(longest, 2), **_counts(_settled(rig))}


def fast_signals(folder: Path, _chosen: argparse.Namespace) -> Part:
    with NodeServer(folder / "server", nodes=50) as server, Rig(folder / "rig", server) as rig:
        rig.live()
        server.run(20.0)
        rig.grown(200)
        return _counts(_settled(rig))


def uplink(folder: Path, chosen: argparse.Namespace) -> Part:
    with (
        Weed(folder / "store") as store,
        NodeServer(folder / "server", nodes=30) as server,
        Proxy(store.port) as way,
        Rig(folder / "rig", server, store=store, store_port=way.port) as rig,
    ):
        rig.live()
        server.run(10.0)
        rig.drained()
        way.cut()
        time.sleep(chosen.uplink_away)
        waiting = rig.backlog()
        way.heal()
        back = time.monotonic()
        rig.until(lambda: rig.backlog() < waiting / 10, "the backlog in the bucket")
        drained_s = time.monotonic() - back
        return {"away_s": chosen.uplink_away, "backlog": waiting, "drained_s": round(drained_s, 2),
                **_counts(_settled(rig))}  # fmt: skip


def cable(folder: Path, _chosen: argparse.Namespace) -> Part:
    with (
        Mosquitto(folder / "broker") as broker,
        NodeServer(folder / "server", nodes=20) as server,
        Proxy(server.port) as way,
        Rig(folder / "rig", server, broker=broker, server_port=way.port, request_timeout_s=REQUEST_TIMEOUT_S) as rig,
        Subscriber(broker.port) as heard,
    ):
        rig.live()
        server.run(5.0)
        rig.grown(5)
        began = len(heard.heard)
        way.stall()
        at = time.monotonic()
        heard.wait(lambda h: h.topic.endswith("/_state") and h.payload == STALE and h in heard.heard[began:])
        stale_s = round(time.monotonic() - at, 2)
        way.heal()
        rig.live()
        return {"stale_s": stale_s, **_counts(_settled(rig))}


def first_hour(folder: Path, _chosen: argparse.Namespace) -> Part:
    """Forty servers are forty ways to one: what is asked of each is asked."""
    with NodeServer(folder / "server", nodes=50) as server, ExitStack() as stack:
        server.run(1.0)
        init_s = _edgemirror(folder, "init", server.endpoint)
        text = (folder / "gateway.toml").read_text().replace("127.0.0.1:8480", "127.0.0.1:0")
        (folder / "gateway.toml").write_text(text)
        began = time.monotonic()
        gateway = Process([*EDGEMIRROR, "run"], folder, "gateway", {"PYTHONPATH": str(ROOT)})
        stack.callback(gateway.stop)
        journal = folder / "edgemirror-data" / "mirror.db"
        gateway.ready(lambda: journal.exists() and _rows(journal) > 0)
        first_s = time.monotonic() - began
        ways = [stack.enter_context(Proxy(server.port)) for _ in range(SERVERS)]
        rows = [f"plc{i},opc.tcp://127.0.0.1:{way.port}" for i, way in enumerate(ways)]
        (folder / "servers.csv").write_text("\n".join(["name,endpoint", *rows]) + "\n")
        fleet_s = _edgemirror(folder, "init", "--from", "servers.csv", "--out", "fleet.toml")
        written = len(parse((folder / "fleet.toml").read_text()).source)
    return {"init_s": init_s, "first_sample_s": round(first_s, 2), "servers": written, "init_from_s": fleet_s}


def _edgemirror(folder: Path, *arguments: str) -> float:
    """Run a verb to its end; return the seconds that it took."""
    began = time.monotonic()
    subprocess.run([*EDGEMIRROR, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
                   stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)  # fmt: skip
    return round(time.monotonic() - began, 2)


def _rows(journal: Path) -> int:
    try:
        reader = JournalReader.open(journal)
    except MirrorError:  # it is being made
        return 0
    try:
        return reader.backlog(Promise()).rows
    finally:
        reader.close()


def audit(folder: Path, _chosen: argparse.Namespace) -> Part:
    """The same idle gateway with and without the audit, each for a turn over all tags."""
    used = {}
    with AsyncuaServer(folder / "server", nodes=AUDIT_TAGS) as server:
        for period_s in (0.0, AUDIT_S):
            with Rig(folder / f"rig-{period_s:g}", server, audit_s=period_s) as rig:
                rig.live()
                assert rig.process is not None
                before = usage(rig.process.pid)
                time.sleep(AUDIT_S)
                used[period_s] = usage(rig.process.pid).cpu_s - before.cpu_s
                read = rig.metric('audit_tags_total{source="counters"}') if period_s else 0
    cost_s = max(0.0, used[AUDIT_S] - used[0.0])
    return {
        "tags": AUDIT_TAGS, "read": int(read), "cpu_s": round(cost_s, 2), "cpu_s_without": round(used[0.0], 2),
        "share_of_a_core_at_600_s": round(cost_s / 600.0, 5),
    }  # fmt: skip


PARTS: dict[str, Callable[[Path, argparse.Namespace], Part]] = {
    "restart": server_restart, "kill": gateway_killed, "fast": fast_signals, "uplink": uplink, "cable": cable,
    "first": first_hour, "audit": audit,
}  # fmt: skip
