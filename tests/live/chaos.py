"""Faults at random, one after the other and several at once, and the count of what they cost.

    python -m tests.live.chaos --rounds 50 --seed 7 --server node

Each round draws a fault of the gateway, its connection, its store or its server from the seed, lets it last a
random while, and waits until live samples arrive again. At the end the journal is compared with what the
server wrote, and the bucket with the journal. The last line is one JSON object; the exit code is 0 only if
every lost sample is declared, the bucket holds what the journal holds and its log verifies.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo.servers import Weed
from tests.live.gateways import Rig
from tests.live.proxy import Proxy
from tests.live.servers import AsyncuaServer, Counters, NodeServer

SERVERS: dict[str, type[Counters]] = {"node": NodeServer, "asyncua": AsyncuaServer}
NODES = 20
RATE_HZ = 10.0


class Chaos:
    """The faults, by name; each leaves everything running again.

    Args:
        rig: The gateway under test, behind both proxies.
        way: To the server.
        uplink: To the store.
        chance: All that is random.
    """

    def __init__(self, rig: Rig, way: Proxy, uplink: Proxy, chance: random.Random) -> None:
        self.rig, self.way, self.uplink, self.chance = rig, way, uplink, chance
        self.server = rig.server
        self.faults: dict[str, Callable[[], None]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    def pause(self, low_s: float, high_s: float) -> None:
        """Let a fault last a random while."""
        time.sleep(self.chance.uniform(low_s, high_s))

    def do_kill(self) -> None:
        self.rig.kill()
        self.pause(0.0, 1.0)
        self.rig.start()

    def do_kill_early(self) -> None:
        """Kill it while it is taking its subscriptions up again, perhaps more than once."""
        for _ in range(self.chance.randint(1, 3)):
            self.rig.kill()
            self.rig.start()
            self.pause(0.0, 0.4)
        self.do_kill()

    def do_terminate(self) -> None:
        self.rig.stop()
        self.pause(0.0, 1.0)
        self.rig.start()

    def do_freeze(self) -> None:
        assert self.rig.process is not None
        self.rig.process.freeze()
        self.pause(0.2, 6.0)
        self.rig.process.thaw()

    def do_reset(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            self.way.reset()
            self.pause(0.0, 0.5)

    def do_cut(self) -> None:
        self.way.cut()
        self.pause(0.1, 4.0)
        self.way.heal()

    def do_stall(self) -> None:
        self.way.stall()
        self.pause(0.5, 8.0)
        self.way.flow()

    def do_strand(self) -> None:
        self.way.strand()

    def do_cut_and_kill(self) -> None:
        self.way.cut()
        self.pause(0.0, 1.0)
        self.do_kill()
        self.pause(0.0, 1.0)
        self.way.heal()

    def do_store_away(self) -> None:
        self.uplink.cut()
        self.pause(0.5, 3.0)
        if self.chance.random() < 0.5:
            self.do_kill()
        self.uplink.heal()

    def do_store_stalled(self) -> None:
        self.uplink.stall()
        self.pause(0.5, 3.0)
        if self.chance.random() < 0.5:
            self.do_kill()
        self.uplink.flow()

    def do_server_crash(self) -> None:
        self.server.crash()
        self.pause(0.0, 1.0)
        if self.chance.random() < 0.3:
            self.do_kill()
        self.server.restart()
        self.server.run(RATE_HZ)

    def do_forget(self) -> None:
        """As if the server had given the session up while the gateway was away."""
        self.rig.kill()
        self.rig.forget_session()
        self.rig.start()


def run(kind: type[Counters], rounds: int, seed: int, folder: Path, only: Sequence[str]) -> dict[str, Any]:
    """Go through the rounds and return the figures."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    slowest = 0.0
    with (
        Weed(folder / "store") as store,
        kind(folder / "server", nodes=NODES) as server,
        Proxy(server.port) as way,
        Proxy(store.port) as uplink,
        Rig(folder / "rig", server, store=store, server_port=way.port, store_port=uplink.port) as rig,
    ):
        chaos = Chaos(rig, way, uplink, chance)
        rig.live()
        server.run(RATE_HZ)
        names = sorted(only or chaos.faults)
        for number in range(rounds):
            name = chance.choice(names)
            done[name] += 1
            chaos.faults[name]()
            began = time.monotonic()
            rig.grown(1)
            slowest = max(slowest, time.monotonic() - began)
            print(
                f"{number} {name}: live after {time.monotonic() - began:.2f} s, {len(rig.gaps())} gaps", file=sys.stderr
            )
            chaos.pause(0.0, 1.0)
        rig.settle()
        verdict = rig.verdict()
        for node, value, when in verdict.undeclared[:20]:
            print(f"undeclared: node {node}, value {value}, written {when:.3f}", file=sys.stderr)
        rig.drained()
        report, pushed = rig.bucket()
        missing = rig.look().rows - pushed
        return {
            "server": kind.__name__, "seed": seed, "rounds": rounds, **verdict.figures(), "faults": dict(done),
            "slowest_s": round(slowest, 3), "bucket_lacks": missing.total(), "verified": report.verified,
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, printed")
    parser.add_argument("--server", choices=SERVERS, default="node")
    parser.add_argument("--only", nargs="*", default=[], help="names of the faults to draw from")
    parser.add_argument("--keep", action="store_true", help="keep the folder with journal and logs")
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-chaos-"))
    try:
        figures = run(SERVERS[options.server], options.rounds, seed, folder, options.only)
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    whole = not (figures["undeclared"] or figures["overlaps"] or figures["foreign"] or figures["bucket_lacks"])
    return 0 if whole and figures["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
