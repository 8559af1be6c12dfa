"""Two or three replicas under random faults: `python -m tests.chaos.pairs --rounds 20 --seed 7`. The last line is JSON.

Each replica reaches the server, the bucket, the broker and each member of etcd by ways of its own. A round draws a
fault from the seed: a process is killed, frozen or stopped, a way is cut or stalled, the broker or a member of etcd
dies, the bucket goes away. It lasts a random while; then a replica has to act again. At the end every value that the
server wrote is in the bucket, or a gap of the log tells of it; epochs never fall; the log verifies.

The exit code is 1 if a loss is undeclared or the log does not verify.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from demo.servers import Weed, until
from mirror.io.s3 import S3Settings, S3Store
from mirror.layout import Layout
from mirror.verify import Report, verify_store
from tests.live.etcd import Etcd
from tests.live.gateways import Row, _declares, numbers, rows
from tests.live.pairs import Pair, Replica, pair
from tests.live.proxy import Proxy
from tests.live.servers import Mosquitto, NodeServer

RATE_HZ = 10.0
AGAIN_S = 60.0  # until somebody acts again


class Ways:
    """A replica's own ways."""

    def __init__(self, stack: ExitStack, server: NodeServer, store: Weed, broker: Mosquitto, etcd: Etcd | None) -> None:
        self.server = stack.enter_context(Proxy(server.port))
        self.store = stack.enter_context(Proxy(store.port))
        self.broker = stack.enter_context(Proxy(broker.port))
        self.register = [stack.enter_context(Proxy(member.port)) for member in etcd.members] if etcd else [self.store]

    @property
    def settings(self) -> dict[str, object]:
        return {"server_port": self.server.port, "store_port": self.store.port, "broker_port": self.broker.port}


class Chaos:
    """The faults, by name; each leaves everything running again."""

    def __init__(
        self, made: Pair, ways: dict[str, Ways], broker: Mosquitto, etcd: Etcd | None, chance: random.Random
    ) -> None:
        self.made, self.ways, self.broker, self.etcd, self.chance = made, ways, broker, etcd, chance
        self.faults: dict[str, Callable[[], None]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }
        if etcd is None:
            del self.faults["member"]

    def one(self) -> Replica:
        """Draw a replica; more often the one that acts."""
        acting = [r for r in self.made.primaries() if self.chance.random() < 0.6]
        return acting[0] if acting else self.chance.choice(self.made.replicas)

    def pause(self, low_s: float, high_s: float) -> None:
        time.sleep(self.chance.uniform(low_s, high_s))

    def do_kill(self) -> None:
        os.kill(self.one().pid, signal.SIGKILL)  # its supervisor starts it again
        self.pause(0.0, 2.0)

    def do_box(self) -> None:
        replica = self.one()
        replica.kill()
        self.pause(0.2, 3.0)
        replica.start()

    def do_stop(self) -> None:
        replica = self.one()
        replica.stop()
        self.pause(0.0, 2.0)
        replica.start()

    def do_freeze(self) -> None:
        replica = self.one()
        os.kill(replica.pid, signal.SIGSTOP)
        self.pause(0.2, 5.0)
        os.kill(replica.pid, signal.SIGCONT)

    def do_register(self) -> None:
        for way in (ways := self.ways[self.one().name].register):
            way.cut()
        self.pause(0.2, 4.0)
        for way in ways:
            way.heal()

    def do_register_stalled(self) -> None:
        for way in (ways := self.ways[self.one().name].register):
            way.stall()
        self.pause(0.2, 4.0)
        for way in ways:
            way.flow()

    def do_uplink(self) -> None:
        ways = self.made.replicas if self.chance.random() < 0.3 else [self.one()]
        for replica in ways:
            self.ways[replica.name].store.cut()
        self.pause(0.2, 4.0)
        for replica in ways:
            self.ways[replica.name].store.heal()

    def do_cable(self) -> None:
        way = self.ways[self.one().name].server
        way.cut()
        self.pause(0.2, 4.0)
        way.heal()

    def do_broker_cut(self) -> None:
        way = self.ways[self.one().name].broker
        way.cut()
        self.pause(0.2, 3.0)
        way.heal()

    def do_broker(self) -> None:
        self.broker.kill()
        self.pause(0.0, 1.0)
        self.broker.start()

    def do_member(self) -> None:
        assert self.etcd is not None
        member = self.chance.choice(self.etcd.members)
        member.kill()
        self.pause(0.2, 3.0)
        member.start()


@contextmanager
def group(
    folder: Path, kind: str, replicas: int, nodes: int
) -> Iterator[tuple[Pair, dict[str, Ways], NodeServer, Weed, Mosquitto, Etcd | None]]:
    """Run a group with everything that it needs."""
    names = [chr(97 + i) for i in range(replicas)]
    with ExitStack() as stack:
        store = stack.enter_context(Weed(folder / "store"))
        broker = stack.enter_context(Mosquitto(folder / "broker"))
        server = stack.enter_context(NodeServer(folder / "server", nodes=nodes))
        etcd = stack.enter_context(Etcd(folder / "etcd")) if kind == "etcd" else None
        ways = {name: Ways(stack, server, store, broker, etcd) for name in names}
        arbiter = {
            name: 'kind = "s3"' if etcd is None
            else f'kind = "etcd"\nendpoints = {json.dumps([f"http://127.0.0.1:{w.port}" for w in ways[name].register])}'
            for name in names
        }  # fmt: skip
        own = {name: ways[name].settings for name in names}
        made = stack.enter_context(
            pair(
                folder / "group",
                server,
                store=store,
                broker=broker,
                arbiter=arbiter,
                verb="supervise",
                names=names,
                own=own,
            )
        )
        yield made, ways, server, store, broker, etcd


def held(made: Pair, store: Weed) -> tuple[Report, Counter[Row]]:
    """Verify the log and return what it holds."""
    settings = S3Settings(
        bucket=store.bucket, endpoint=store.endpoint, access_key=store.access_key, secret_key=store.secret_key
    )
    found: Counter[Row] = Counter()

    def visit(_header: object, batch: Any, table: Any) -> None:
        found.update(key for _, key in rows(batch, numbers(table)))

    layout = Layout("live", made.replicas[0].group)
    return verify_store(S3Store.open(settings), layout, visit=visit), found


def judge(made: Pair, server: NodeServer, store: Weed, first: dict[int, int]) -> dict[str, Any]:
    """Compare what the server wrote with the bucket."""
    report, found = held(made, store)
    have: dict[int, set[int]] = {}
    for node, value, *_ in found:
        if isinstance(node, int) and isinstance(value, int):
            have.setdefault(node, set()).add(value)
    tags = {number: identity for identity, number in _identities(made)}
    writes, produced = server.writes(), 0
    lost: list[tuple[int, int]] = []
    undeclared: list[tuple[int, int]] = []
    for node in range(server.nodes):
        for value in range(first[node], server.last(node) + 1):
            produced += 1
            if value in have.get(node, set()):
                continue
            lost.append((node, value))
            when = made.replicas[0]._written(writes, node, value)
            if not any(_declares(gap, tags.get(node, ""), when) for gap in report.gaps):
                undeclared.append((node, value))
    return {
        "produced": produced, "lost": len(lost), "undeclared": len(undeclared), "verified": report.verified,
        "copies": round(sum(found.values()) / max(1, len(found)), 3), "epochs": len(report.epochs),
        "segments": report.segments, "which": undeclared[:10], "findings": [str(f) for f in report.findings[:5]],
    }  # fmt: skip


def _identities(made: Pair) -> list[tuple[str, int]]:
    table = made.replicas[0].reader.tags()
    return [(table.identities[handle], number) for handle, number in numbers(table).items()]


def run(kind: str, replicas: int, rounds: int, seed: int, folder: Path, minutes: float, nodes: int) -> dict[str, Any]:
    """Go through the rounds and return the figures."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    with group(folder, kind, replicas, nodes) as (made, ways, server, store, broker, etcd):
        chaos = Chaos(made, ways, broker, etcd, chance)
        for replica in made.replicas:
            replica.live()
        first = {
            node: min(r.look().newest[node] for r in made.replicas) + 1 for node in range(server.nodes)
        }  # fmt: skip
        server.run(RATE_HZ)
        end = time.monotonic() + minutes * 60
        while (time.monotonic() < end) if minutes else sum(done.values()) < rounds:
            name = chance.choice(sorted(chaos.faults))
            done[name] += 1
            chaos.faults[name]()
            until(lambda: len(made.primaries()) == 1, "one replica that acts", AGAIN_S)
            acting = made.primary()
            acting.grown(2, AGAIN_S)
            print(f"round {sum(done.values())}: {name}; {acting.name} acts under {acting.epoch()}", flush=True)
            chaos.pause(0.0, 2.0)
        server.pause()
        for replica in made.replicas:
            replica.until(lambda replica=replica: bool(replica.ready()["ready"]), f"{replica.name} ready", AGAIN_S)  # type: ignore[misc]
            replica.live()
        made.drained()
        promoted = sum(len(r.events("lease.promoted")) for r in made.replicas)
        alarms = sum(len(r.events("lease.alarm")) for r in made.replicas)
        return {
            "arbiter": kind, "replicas": replicas, "rounds": sum(done.values()), "seed": seed, "faults": dict(done),
            "promotions": promoted, "alarms": alarms, **judge(made, server, store, first),
        }  # fmt: skip


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.pairs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=0.0, help="for so long, instead of so many rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arbiter", default="etcd", choices=["etcd", "s3"])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=20)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-chaos-"))
    result = run(args.arbiter, args.replicas, args.rounds, args.seed, folder, args.minutes, args.nodes)
    good = not result["undeclared"] and result["verified"]
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"kept: {folder}")
    print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
