"""Soak: hours of a plant's changes and a year's worth of faults in minutes, and whether anything grows.

    make soak MINUTES=60            python -m tests.live.soak --minutes 5 --seed 7

The gateway runs beside a real server, store and broker, at twenty times the rate of a quiet plant. The first third
of the time it is killed and stopped now and then; the rest is one life, in which server, store, broker and the ways
to them fail instead. Memory, open files, disk and lag are looked at every second. At the end every sample that the
server wrote is in the journal and the bucket, or a row of the gap ledger tells of it.

The last line is one JSON object; the exit code is 1 if a loss is undeclared, the bucket lacks something, or memory or
open files grow beyond what noise explains.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from demo.servers import Weed
from tests.live.chaos import Chaos
from tests.live.gateways import Rig
from tests.live.proxy import Proxy
from tests.live.servers import Mosquitto, NodeServer

NODES = 25
RATE_HZ = 10.0  # a quiet plant changes twice a second
QUIET_S = (4.0, 12.0)
RESTLESS_SHARE = 1 / 3  # of the time, in which the gateway is killed and stopped
SEEN_SHARE = 0.5  # of the time, which one life has to be looked at, or nothing is known of growth
WARM_S = 30.0  # after a start, before which growth is no leak
HOUR_S = 3600.0
MIB = 1 << 20
#: Growth in one life that is noise: so much, and so much an hour.
RSS_MIB, RSS_MIB_PER_HOUR = 12.0, 4.0
HANDLES, HANDLES_PER_HOUR = 6.0, 1.0


class Look(NamedTuple):
    """What was seen at one moment."""

    at_s: float
    rss_mib: float
    handles: int
    disk_mib: float
    lag_s: float


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median slope between all pairs of points (Theil and Sen), 0 for fewer than two times."""
    step = max(1, len(points) // 400)
    few = points[::step]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(few) for b in few[i + 1 :] if b[0] > a[0]]
    return statistics.median(slopes) if slopes else 0.0


@dataclass(frozen=True)
class Growth:
    """How a figure moved in one life, by its slope.

    Attributes:
        per_hour: The slope.
        seconds: Of the life that was looked at.
    """

    per_hour: float
    seconds: float

    @staticmethod
    def of(life: Sequence[Look], figure: Callable[[Look], float]) -> Growth:
        """Return the growth of a figure after the warm-up."""
        if not life:
            return Growth(0.0, 0.0)
        warm = [(look.at_s, figure(look)) for look in life if look.at_s >= life[0].at_s + WARM_S]
        return Growth(slope(warm) * HOUR_S, warm[-1][0] - warm[0][0] if warm else 0.0)

    def is_within(self, noise: float, per_hour: float) -> bool:
        """Tell whether it is no more than noise explains."""
        hours = self.seconds / HOUR_S
        return self.per_hour * hours <= noise + per_hour * hours


class Observer:
    """Looks at a rig's gateway every second, in a thread; each process is a life of its own."""

    def __init__(self, rig: Rig) -> None:
        self.lives: list[list[Look]] = []
        self._rig, self._end, self._pid = rig, threading.Event(), 0
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(1.0):
            process = self._rig.process
            if process is None or not process.alive:
                continue
            try:
                look = _look(process.pid, self._rig)
            except (OSError, ValueError):
                continue  # it ended or stands still while one looked
            if process.pid != self._pid:
                self._pid = process.pid
                self.lives.append([])
            self.lives[-1].append(look)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    @property
    def longest(self) -> list[Look]:
        """The longest life."""
        return max(self.lives, key=len, default=[])


def _look(pid: int, rig: Rig) -> Look:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    if not rss:
        raise ValueError(f"process {pid} has ended")
    handles = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    disk = sum(file.stat().st_size for file in rig.path.parent.glob("mirror.db*"))
    lag_s = rig.metric(f'sync_lag_seconds{{shard="{rig.group}"}}', timeout_s=2.0)
    return Look(time.monotonic(), rss[0] / 1024, handles, disk / MIB, lag_s)


class Faults:
    """What befalls the gateway and those around it; each leaves everything running again."""

    def __init__(self, rig: Rig, ways: dict[str, Proxy], broker: Mosquitto, chance: random.Random) -> None:
        self.rig, self.ways, self.broker, self.chance = rig, ways, broker, chance
        self.chaos = Chaos(rig, ways["server"], ways["store"], chance)
        self.done: Counter[str] = Counter()

    def one(self, *, restless: bool) -> None:
        """Let one happen."""
        kinds: list[Callable[[], None]] = [self.reset, self.cut, self.stall, self.server, self.broker_restart]
        if restless:
            kinds = [self.chaos.do_kill, self.chaos.do_kill, self.chaos.do_terminate, self.chaos.do_freeze]
        chosen = self.chance.choice(kinds)
        self.done[chosen.__name__.removeprefix("do_")] += 1
        chosen()

    def _last(self, low_s: float, high_s: float) -> None:
        time.sleep(self.chance.uniform(low_s, high_s))

    def _way(self) -> Proxy:
        name = self.chance.choice(sorted(self.ways))
        self.done[f"at {name}"] += 1
        return self.ways[name]

    def reset(self) -> None:
        self._way().reset()

    def cut(self) -> None:
        way = self._way()
        way.cut()
        self._last(0.5, 6.0)
        way.heal()

    def stall(self) -> None:
        way = self._way()
        way.stall()
        self._last(1.0, 6.0)
        way.heal()

    def server(self) -> None:
        self.rig.server.crash()
        self._last(0.0, 1.5)
        self.rig.server.restart()
        self.rig.server.run(RATE_HZ)

    def broker_restart(self) -> None:
        self.broker.kill()
        self._last(0.0, 2.0)
        self.broker.start()


def run(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Soak and return the figures."""
    chance = random.Random(seed)
    with (
        Weed(folder / "store") as store,
        Mosquitto(folder / "broker") as broker,
        NodeServer(folder / "server", nodes=NODES) as server,
        Proxy(server.port) as to_server,
        Proxy(store.port) as to_store,
        Proxy(broker.port) as to_broker,
        Rig(folder / "rig", server, store=store, broker=broker, server_port=to_server.port,
            store_port=to_store.port, broker_port=to_broker.port) as rig,
    ):  # fmt: skip
        rig.live()
        server.run(RATE_HZ)
        observer = Observer(rig)
        faults = Faults(rig, {"server": to_server, "store": to_store, "broker": to_broker}, broker, chance)
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < minutes * 60:
            restless = elapsed < minutes * 60 * RESTLESS_SHARE
            faults.one(restless=restless)
            rig.grown(1)
            print(f"{elapsed:6.0f} s: {sum(faults.done.values())} faults, {len(rig.gaps())} gaps", file=sys.stderr)
            time.sleep(min(chance.uniform(*QUIET_S), max(0.0, minutes * 60 - elapsed)))
        observer.stop()
        rig.settle()
        verdict = rig.verdict()
        rig.drained()
        report, pushed = rig.bucket()
        lacks = (rig.look().rows - pushed).total()
        return judged(observer, {
            "minutes": minutes, "seed": seed, "changes": verdict.produced, "lost": verdict.lost,
            "undeclared": len(verdict.undeclared), "foreign": verdict.foreign, "overlaps": verdict.overlaps,
            "bucket_lacks": lacks, "verified": report.verified, "faults": dict(sorted(faults.done.items())),
        })  # fmt: skip


def judged(observer: Observer, figures: dict[str, Any]) -> dict[str, Any]:
    """Add how the longest life grew, and whether all is well."""
    life = observer.longest
    rss, handles = Growth.of(life, lambda look: look.rss_mib), Growth.of(life, lambda look: look.handles)
    disk = Growth.of(life, lambda look: look.disk_mib)
    seen = rss.seconds >= SEEN_SHARE * figures["minutes"] * 60 - WARM_S
    whole = not (figures["undeclared"] or figures["foreign"] or figures["overlaps"] or figures["bucket_lacks"])
    steady = rss.is_within(RSS_MIB, RSS_MIB_PER_HOUR) and handles.is_within(HANDLES, HANDLES_PER_HOUR)
    return {
        **figures, "lives": len(observer.lives), "longest_s": round(rss.seconds), "rss_slope": round(rss.per_hour, 1),
        "rss_mib": round(life[-1].rss_mib, 1) if life else 0.0, "handles_slope": round(handles.per_hour, 1),
        "handles": life[-1].handles if life else 0, "disk_slope": round(disk.per_hour, 1),
        "lag_max_s": round(max((look.lag_s for some in observer.lives for look in some), default=0.0), 1),
        "ok": bool(whole and figures["verified"] and seen and steady),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, printed")
    parser.add_argument("--keep", action="store_true", help="keep the folder with journal and logs")
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-soak-"))
    try:
        figures = run(options.minutes, seed, folder)
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
