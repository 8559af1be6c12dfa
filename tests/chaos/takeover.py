"""How long it takes until another replica acts: `python -m tests.chaos.takeover --runs 20`. The last line is JSON.

Each run loses the acting replica in one way: its process is killed under supervision (a death certificate), killed
without, frozen, stopped in order, or killed together with the etcd member of its box. Measured are the time to the
successor's promotion, its first segment in the bucket, and the first message of it that a subscriber hears; and the
longest hole in what the subscriber hears of the devices. Nothing may be lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo.servers import Weed
from tests.live.etcd import Etcd
from tests.live.pairs import Pair, Replica, pair
from tests.live.servers import Mosquitto, NodeServer
from tests.live.subscriber import Heard, Subscriber

NODES, RATE_HZ = 50, 10.0
CALM_S = 1.0  # of changes before the fault
AFTER_S = 2.0  # and after the successor has been heard
WAIT_S = 20.0
WAYS = ("certificate", "kill", "freeze", "stop", "box")


class Lost(AssertionError):
    """A sample that was written is not in the bucket."""


def lose(way: str, primary: Replica, etcd: Etcd | None) -> Callable[[], None]:
    """Take the acting replica away; return what brings it back."""
    assert primary.process is not None
    match way:
        case "certificate":
            os.kill(primary.pid, signal.SIGKILL)
            return lambda: None
        case "kill":
            primary.process.kill()
        case "freeze":
            primary.process.freeze()
            return primary.process.thaw
        case "stop":
            primary.process.stop()
        case "box":
            assert etcd is not None
            member = etcd.members[0]
            member.kill()
            primary.process.kill()

            def back() -> None:
                member.start()
                primary.start()

            return back
    return primary.start


def once(way: str, arbiter: str, folder: Path, store: Weed, broker: Mosquitto, etcd: Etcd | None) -> dict[str, float]:
    """Measure one takeover."""
    verb = "supervise" if way == "certificate" else "run"
    with (
        NodeServer(folder / "server", nodes=NODES) as server,
        Subscriber(broker.port, "uns/v1/acme/live/#") as heard,
        pair(folder / "pair", server, store=store, broker=broker, arbiter=arbiter, verb=verb) as made,
    ):
        primary = made.primary()
        other = next(r for r in made.replicas if r is not primary)
        server.run(RATE_HZ)
        other.grown(int(CALM_S * RATE_HZ))
        first = dict(other.look().newest)
        pushed, before = len(other.events("push.pushed")), len(heard.heard)
        began = time.time()
        back = lose(way, primary, etcd)
        wait(lambda: len(other.events("push.pushed")) > pushed and any(map(is_of, heard.heard[before:])))
        at = {
            "acts": told(other.events("lease.promoted")[0]), "pushed": told(other.events("push.pushed")[pushed]),
            "spoken": next(h.at for h in heard.heard[before:] if is_of(h)),
        }  # fmt: skip
        time.sleep(AFTER_S)
        hole_s = hole(heard, began - CALM_S)
        if way in ("freeze", "certificate"):
            back()
        server.pause()
        other.settle()
        other.drained()
        check(made, server, first)
        return {f"{name}_s": round(when - began, 3) for name, when in at.items()} | {"hole_s": round(hole_s, 3)}


def wait(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.time() + WAIT_S
    while not condition():
        if time.time() > end:
            raise AssertionError("nobody takes over")
        time.sleep(0.01)


def told(event: dict[str, Any]) -> float:
    """Return when an event was logged, in Unix seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()


def is_of(message: Heard) -> bool:
    """Tell whether a device's object was sent under the successor's epoch."""
    if message.topic.rpartition("/")[2].startswith("_") or "_gateway" in message.topic:
        return False
    try:
        return bool(json.loads(message.payload).get("epoch", 0) >= 2)
    except (ValueError, AttributeError):
        return False


def hole(heard: Subscriber, since: float) -> float:
    """Return the longest time in which nothing was heard of the devices."""
    times = [h.at for h in heard.heard if h.at >= since and "_gateway" not in h.topic]
    return max((b - a for a, b in pairwise(times)), default=0.0)


def check(made: Pair, server: NodeServer, first: dict[int, int]) -> None:
    """Raise Lost unless every value from `first` on is in the bucket."""
    found, epochs = made.bucket()
    have: dict[int, set[int]] = {}
    for node, value, *_ in found:
        if isinstance(node, int) and isinstance(value, int):
            have.setdefault(node, set()).add(value)
    lost = [
        (node, value) for node in range(server.nodes) for value in range(first[node], server.last(node) + 1)
        if value not in have.get(node, set())
    ]  # fmt: skip
    if lost:
        raise Lost(f"{len(lost)} values are not in the bucket, such as {lost[:5]}")
    numbers = [epoch for epoch, _, _ in epochs]
    if numbers != sorted(numbers):
        raise Lost(f"epochs fall: {epochs}")


def measure(kind: str, way: str, runs: int, folder: Path) -> dict[str, Any]:
    """Return medians and maxima of some runs."""
    found: list[dict[str, float]] = []
    with Weed(folder / "store") as store, Mosquitto(folder / "broker") as broker:
        for run in range(runs):
            place = folder / f"{kind}-{way}-{run}"
            if kind == "etcd":
                with Etcd(place / "etcd") as etcd:
                    arbiter = f'kind = "etcd"\nendpoints = {json.dumps(etcd.endpoints)}'
                    found.append(once(way, arbiter, place, store, broker, etcd))
            else:
                found.append(once(way, 'kind = "s3"', place, store, broker, None))
            print(f"{kind} {way} {run}: {found[-1]}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    return {
        name: {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}
        for name in found[0]
        if (values := [one[name] for one in found])
    }


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.takeover", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--arbiter", nargs="*", default=["etcd", "s3"])
    parser.add_argument("--way", nargs="*", default=list(WAYS))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-takeover-"))
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores", "runs": args.runs
    }  # fmt: skip
    try:
        for kind in args.arbiter:
            for way in args.way:
                if (kind, way) != ("s3", "box"):
                    result[f"{kind} {way}"] = measure(kind, way, args.runs, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
