"""What a change costs from the socket to the fsynced journal, and how many a second come through clean.

The gateway runs as its own process against the load server; CPU time is that of its process tree between
two looks, divided by the samples that its journal gained. After each run every sample is accounted for:
the journal must hold each node's counter without a hole. "All on" means a bucket to push to and a broker to
publish device objects to; "push on" and "MQTT on" alone tell what each of them costs. The peers
(`tests.bench.peers`) run on the same server, at a rate that they can bear, and with the publishing interval of
200 ms that they ask for; beside them stands the gateway with the same of both. The peers' tables are not fsynced.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.servers import NotReady, Weed, until
from tests.bench import peers
from tests.bench.rig import Gateway, LoadServer, audit, broker, table

SETTLE_S = 2.0
DRAIN_S = 60.0
LOOK_S = 0.5
SATURATING = 0.0
TAGS = 10_000
PUBLISHING_MS, PEER_PUBLISHING_MS = 50.0, 200.0
CLEAN_RATE = 200_000.0
PEER_RATES = {"script": 10_000.0, "node": 50_000.0}


@dataclass(frozen=True)
class Cell:
    """One run of the gateway: signals, changes a second (0: saturating), whether push and MQTT are on."""

    mode: str
    rate: float
    push: bool = False
    mqtt: bool = False
    publishing_ms: float = PUBLISHING_MS

    @property
    def name(self) -> str:
        rate = "saturating" if self.rate == SATURATING else f"{self.rate / 1000:g}k/s"
        interval = "" if self.publishing_ms == PUBLISHING_MS else f", every {self.publishing_ms:g} ms"
        on = {(True, True): "all on", (True, False): "push on", (False, True): "MQTT on"}
        return f"{self.mode}, {rate}{interval}, {on.get((self.push, self.mqtt), 'journal only')}"


HEADLINE, CLEAN = Cell("doubles", SATURATING), Cell("doubles", CLEAN_RATE, push=True, mqtt=True)
BESIDE = {name: Cell("doubles", rate, publishing_ms=PEER_PUBLISHING_MS) for name, rate in PEER_RATES.items()}
CELLS = (
    HEADLINE, Cell("doubles", CLEAN_RATE), *BESIDE.values(), CLEAN,
    Cell("doubles", SATURATING, push=True, mqtt=True), Cell("mixed", SATURATING), Cell("mixed", CLEAN_RATE),
    Cell("mixed", CLEAN_RATE, push=True), Cell("mixed", CLEAN_RATE, mqtt=True),
    Cell("mixed", CLEAN_RATE, push=True, mqtt=True),
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of each run")
    parser.add_argument("--tags", type=int, default=TAGS)
    parser.add_argument("--only", default="", help="runs whose name holds this text, such as `mixed` or `peer`")
    parser.add_argument("--no-peers", action="store_true")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return all runs and the figures that stand for them."""
    cells: dict[Cell, dict[str, Any]] = {c: {} for c in CELLS if chosen.only in c.name}
    names = [] if chosen.no_peers else [n for n in peers.NAMES if chosen.only in f"peer {n}"]
    rivals: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgemirror-bench-") as name:
        folder = Path(name)
        for mode in dict.fromkeys([c.mode for c in cells] + ["doubles"] * bool(names)):
            with LoadServer(folder / mode, nodes=chosen.tags, mode=mode) as server:
                for i, cell in enumerate(cells):
                    if cell.mode == mode:
                        cells[cell] = measure(cell, server, folder / f"{mode}{i}", chosen.seconds)
                        print(f"{cell.name:40} {cells[cell]}")
                if mode == "doubles":
                    for rival in names:
                        rivals[rival] = peer(rival, server, folder / rival, chosen.seconds)
                        print(f"{'peer ' + rival:40} {rivals[rival]}")
    print(_table(cells, rivals))
    return _summary(cells, rivals)


def measure(cell: Cell, server: LoadServer, folder: Path, seconds: float) -> dict[str, Any]:
    """Run the gateway once, in a folder of its own."""
    with ExitStack() as stack:
        store = stack.enter_context(Weed(folder / "store")) if cell.push else None
        mqtt = stack.enter_context(broker(folder / "broker")) if cell.mqtt else None
        gateway = Gateway(folder, server, publishing_ms=cell.publishing_ms, store=store, broker=mqtt)
        stack.enter_context(gateway)
        gateway.mirrored(server.nodes)
        server.ask("run", rate=cell.rate)
        time.sleep(SETTLE_S)
        before, rows_before = gateway.usage(), gateway.rows()
        pss, end_s = before.pss_mib, before.at_s + seconds
        while time.monotonic() < end_s:
            time.sleep(LOOK_S)
            pss = max(pss, gateway.usage().pss_mib)
        after, rows_after = gateway.usage(), gateway.rows()
        facts = server.ask("pause")
        until(lambda: server.ask("facts")["waiting"] == 0, "everything sent", DRAIN_S)
        facts = server.ask("facts")
        paused_s = time.monotonic()
        try:
            gateway.mirrored(facts["sent"], DRAIN_S)
        except NotReady as error:
            print(error)
        drain_s = time.monotonic() - paused_s
        gateway.stop()
        held = audit(gateway.journal, facts["written"], server.nodes)
    changes, cpu_s = rows_after - rows_before, after.cpu_s - before.cpu_s
    return {
        "us_per_change": round(cpu_s / max(changes, 1) * 1e6, 3),
        "rate_per_s": round(changes / (after.at_s - before.at_s)),
        "cores": round(cpu_s / (after.at_s - before.at_s), 2),
        "lost": held.lost, "repeated": held.repeated, "late": facts["late"], "dropped": facts["dropped"],
        "rss_mib": round(pss, 1), "bytes_per_change": round(held.chunk_bytes / held.rows, 2),
        "drain_s": round(drain_s, 2),
    }  # fmt: skip


def peer(name: str, server: LoadServer, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a peer on the server; its figures, or why there are none."""
    if reason := peers.available(name):
        return {"missing": reason}
    server.ask("run", rate=PEER_RATES[name], noise=False)  # a peer's table tells losses by whole numbers
    found = peers.run(name, server.endpoint, SETTLE_S + 6 + seconds, folder)
    facts = server.ask("pause")
    figures = {k: found[k] for k in ("us_per_change", "rate_per_s", "lost", "rss_mib")}
    return figures | {"late": facts["late"], "dropped": facts["dropped"]}


def _table(cells: dict[Cell, dict[str, Any]], rivals: dict[str, dict[str, Any]]) -> str:
    columns = ("us_per_change", "rate_per_s", "cores", "lost", "late", "dropped", "rss_mib", "bytes_per_change")
    named = {c.name: f for c, f in cells.items()}
    named |= {f"peer {n}, {PEER_RATES[n] / 1000:g}k/s": f for n, f in rivals.items()}
    return table([("run", *columns), *((n, *(f.get(c) for c in columns)) for n, f in named.items())])


def _summary(cells: dict[Cell, dict[str, Any]], rivals: dict[str, dict[str, Any]]) -> dict[str, Any]:
    head, clean = cells.get(HEADLINE, {}), cells.get(CLEAN, {})
    figures: dict[str, Any] = {
        "name": "ingest", "us_per_change": head.get("us_per_change"), "rate_per_s": clean.get("rate_per_s"),
        "bytes_per_change": head.get("bytes_per_change"), "rss_mib": clean.get("rss_mib"),
        "lost": sum(f["lost"] for f in cells.values()), "runs": {c.name: f for c, f in cells.items()},
    }  # fmt: skip
    for name, found in rivals.items():
        figures[f"peer_{name}"] = found
        same = cells.get(BESIDE[name], {}).get("us_per_change")
        theirs, ours = found.get("us_per_change"), head.get("us_per_change")
        if theirs and ours:
            figures[f"ratio_{name}"] = round(theirs / ours, 1)
        if theirs and same:
            figures[f"ratio_{name}_same_rate"] = round(theirs / same, 1)
    return figures
