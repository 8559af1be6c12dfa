"""A gateway under changing load and random faults for as long as one likes: what it lost, and whether it grows.

    python -m tests.live.soak --minutes 60 --seed 7

The seed draws a schedule: the server restarts, freezes and writes twenty times as fast; the ways to it, to the
store and to the broker break and stall; the gateway is killed and stopped. All the while the observer reads the
journal, which keeps samples for less than a minute, and samples what the gateway's process holds. The last line
is one JSON object; the exit code is 0 only if every lost sample is declared and nothing grows (`tests.live.trend`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from demo.servers import NotReady, Weed
from mirror.errors import MirrorError
from tests.live.chaos import SERVERS, Chaos
from tests.live.gateways import Rig
from tests.live.proxy import Proxy
from tests.live.servers import Counters, Mosquitto
from tests.live.trend import Held, judge

NODES = 10
RATE_HZ = 2.0
BURST = 20  # so many times faster
KEEP_DAYS = 0.0005  # 43 s: the file must come to a standstill, and the observer looks every half second
SAMPLE_S = 0.5
LIFE_S_MIN, LIFE_S_MAX = 85.0, 3600.0
LIFE_SHARE = (0.1, 0.35)  # of the whole soak
CALM_S = (3.0, 12.0)  # between two faults
LAG_WAIT_S = 180.0
DRAIN_S = 120.0

LIVES = ("kill", "terminate")
OUTAGES = (
    "reset", "cut", "stall", "strand", "burst", "server_restart", "server_freeze", "store_cut", "store_stall",
    "broker_cut", "broker_stall",
)  # fmt: skip


def schedule(seconds: float, chance: random.Random) -> list[tuple[float, str]]:
    """Return what happens when, in order: outages all the time, and lives of the gateway that tell a trend."""

    def life_s() -> float:
        return min(max(LIFE_S_MIN, seconds * chance.uniform(*LIFE_SHARE)), LIFE_S_MAX)

    found, at_s, next_life_s = [], 0.0, life_s()
    while (at_s := at_s + chance.uniform(*CALM_S)) < seconds:
        if at_s >= next_life_s:
            next_life_s = at_s + life_s()
            found.append((at_s, chance.choice(LIVES)))
        else:
            found.append((at_s, chance.choice(OUTAGES)))
    return found


class Soak(Chaos):
    """Faults and load, with an observer that never looks away for long.

    Args:
        rig: The gateway under test, behind all three proxies.
        way, uplink, downlink: To the server, the store, the broker.
        chance: All that is random.
    """

    def __init__(self, rig: Rig, way: Proxy, uplink: Proxy, downlink: Proxy, chance: random.Random) -> None:
        super().__init__(rig, way, uplink, chance)
        self.downlink = downlink
        self.lives: list[list[Held]] = []
        self._pid = 0
        self._began = 0.0

    def watch(self, seconds: float) -> None:
        """Let time pass; read the journal and sample the process meanwhile."""
        end = time.monotonic() + seconds
        while True:
            with suppress(MirrorError):  # a gateway that was killed may leave nothing to read for a moment
                self.rig.look()
            self._sample()
            left_s = end - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(SAMPLE_S, left_s))

    def pause(self, low_s: float, high_s: float) -> None:
        self.watch(self.chance.uniform(low_s, high_s))

    def _sample(self) -> None:
        process = self.rig.process
        if process is None or not process.alive:
            return
        if process.pid != self._pid:
            self._pid, self._began = process.pid, time.monotonic()
            self.lives.append([])
        with suppress(OSError):  # it may end at any time
            self.lives[-1].append(held(process.pid, self.rig.path.parent, time.monotonic() - self._began))

    def do_burst(self) -> None:
        self.server.run(RATE_HZ * BURST)
        self.pause(2.0, 10.0)
        self.server.run(RATE_HZ)

    def do_server_restart(self) -> None:
        self.server.crash()
        self.pause(0.0, 2.0)
        self.server.restart()
        self.server.run(RATE_HZ)

    def do_server_freeze(self) -> None:
        assert self.server.process is not None
        self.server.process.freeze()
        self.pause(0.5, 8.0)
        self.server.process.thaw()

    def do_store_cut(self) -> None:
        self._cut(self.uplink)

    def do_store_stall(self) -> None:
        self._stall(self.uplink)

    def do_broker_cut(self) -> None:
        self._cut(self.downlink)

    def do_broker_stall(self) -> None:
        self._stall(self.downlink)

    def _cut(self, way: Proxy) -> None:
        way.cut()
        self.pause(0.5, 15.0)
        way.heal()

    def _stall(self, way: Proxy) -> None:
        way.stall()
        self.pause(0.5, 15.0)
        way.flow()

    def recovered(self) -> float:
        """Wait until every node has a value newer than now; return how long that took."""
        began, least = time.monotonic(), {node: value + 1 for node, value in self.rig.now().items()}
        while not self.rig.has(least):
            if time.monotonic() - began > LAG_WAIT_S:
                raise NotReady(f"no new samples within {LAG_WAIT_S:g} s after a fault:\n{self.rig.log()[-4000:]}")
            self.watch(0.1)
        return time.monotonic() - began


def held(pid: int, folder: Path, at_s: float) -> Held:
    """Return what a process holds at this moment; OSError if it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    handles = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    disk = sum(f.stat().st_blocks * 512 for f in folder.iterdir())
    return Held(at_s, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, handles, disk / 2**20)


def run(kind: type[Counters], minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Soak a gateway and return the figures."""
    chance = random.Random(seed)
    plan = schedule(minutes * 60, chance)
    done: Counter[str] = Counter()
    lag_max_s = 0.0
    with (
        Weed(folder / "store") as store,
        Mosquitto(folder / "broker") as broker,
        kind(folder / "server", nodes=NODES) as server,
        Proxy(server.port) as way,
        Proxy(store.port) as uplink,
        Proxy(broker.port) as downlink,
    ):
        rig = Rig(
            folder / "rig", server, store=store, broker=broker, server_port=way.port, store_port=uplink.port,
            broker_port=downlink.port,
        )  # fmt: skip
        rig.config.write_text(rig.config.read_text() + f"\n[journal]\nkeep_days = {KEEP_DAYS}\n")
        with rig:
            soak = Soak(rig, way, uplink, downlink, chance)
            rig.live()
            server.run(RATE_HZ)
            began = time.monotonic()
            for at_s, name in plan:  # a fault that takes longer moves what follows
                soak.watch(began + at_s - time.monotonic())
                if time.monotonic() - began > minutes * 60:
                    break
                soak.faults[name]()
                done[name] += 1
                lag_s = soak.recovered()
                lag_max_s = max(lag_max_s, lag_s)
                print(f"{time.monotonic() - began:.0f} s: {name}, live after {lag_s:.2f} s", file=sys.stderr)
            soak.watch(began + minutes * 60 - time.monotonic())
            rig.settle()
            verdict = rig.verdict()
            for node, value, when in verdict.undeclared[:20]:
                print(f"undeclared: node {node}, value {value}, written {when:.3f}", file=sys.stderr)
            rig.drained(DRAIN_S)
            report, pushed = rig.bucket()
            missing = (rig.look().rows - pushed).total()
            stopped = rig.stop()
            (folder / "held.json").write_text(json.dumps(soak.lives))
            journal_mib = rig.path.stat().st_size / 2**20
    slopes, reasons = judge(soak.lives, undeclared=len(verdict.undeclared), lag_max_s=lag_max_s)
    reasons += [f"{missing} samples of the journal are not in the bucket"] if missing else []
    reasons += [] if report.verified else ["the log in the bucket does not verify"]
    reasons += [f"the gateway ended with {stopped}"] if stopped else []
    return {
        "minutes": minutes, "seed": seed, "server": kind.__name__, "changes": verdict.produced, "lost": verdict.lost,
        "undeclared": len(verdict.undeclared), "duplicates": verdict.duplicates, "rss_slope": slopes["rss_mib"],
        "handles_slope": slopes["handles"], "disk_slope": slopes["disk_mib"], "journal_mib": round(journal_mib, 2),
        "rss_mib_max": round(max((h.rss_mib for life in soak.lives for h in life), default=0.0), 1),
        "lag_max_s": round(lag_max_s, 2), "restarts": sum(done[name] for name in LIVES),
        "outages": sum(done[name] for name in OUTAGES), "gaps": len(verdict.gaps), "reasons": reasons,
        "ok": not reasons,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, printed")
    parser.add_argument("--server", choices=SERVERS, default="node")
    parser.add_argument("--keep", action="store_true", help="keep the folder with journal, logs and held.json")
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-soak-"))
    figures: dict[str, Any] = {"minutes": options.minutes, "seed": seed, "ok": False}
    try:
        figures = run(SERVERS[options.server], options.minutes, seed, folder)
    except (NotReady, AssertionError) as error:  # it does not come back: that is a result
        figures["reasons"] = [str(error) or repr(error)]
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
