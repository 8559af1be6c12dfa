"""Two gateways mirror one server: one acts, and when it dies the other one does, without a lost sample."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.servers import Weed
from tests.live.etcd import Etcd
from tests.live.gateways import ROOT
from tests.live.pairs import Pair, pair
from tests.live.servers import Mosquitto, NodeServer
from tests.live.subscriber import Subscriber

NODES, RATE_HZ = 10, 10.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with Weed(tmp_path_factory.mktemp("store")) as weed:
        yield weed


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as mosquitto:
        yield mosquitto


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["etcd", "s3"])
def arbiter(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return 'kind = "s3"'
    return f'kind = "etcd"\nendpoints = {json.dumps(request.getfixturevalue("etcd").endpoints)}'


def nothing_lost(made: Pair, server: NodeServer, first: dict[int, int]) -> dict[str, object]:
    """Check that every value from `first` on is in the bucket; return figures."""
    found, epochs = made.bucket()
    values: dict[int, set[int]] = {}
    for (node, value, *_), _copies in found.items():
        if isinstance(node, int) and isinstance(value, int):
            values.setdefault(node, set()).add(value)
    lost = {
        (node, value) for node in range(server.nodes) for value in range(first[node], server.last(node) + 1)
        if value not in values.get(node, set())
    }  # fmt: skip
    assert not lost, sorted(lost)[:20]
    held = [epoch for epoch, _, _ in epochs]
    assert held == sorted(held)
    copies = sum(found.values()) / max(1, len(found))
    return {"rows": len(found), "copies": round(copies, 3), "epochs": epochs}


@pytest.mark.parametrize(
    ("arbiter", "how"), [("etcd", "kill"), ("etcd", "freeze"), ("s3", "freeze")], indirect=["arbiter"]
)
def test_when_the_primary_goes_the_other_one_acts_and_nothing_is_lost(
    tmp_path: Path, store: Weed, broker: Mosquitto, arbiter: str, how: str
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Subscriber(broker.port, "uns/v1/acme/live/#") as heard,
        pair(tmp_path / "pair", server, store=store, broker=broker, arbiter=arbiter) as made,
    ):
        primary = made.primary()
        other = next(r for r in made.replicas if r is not primary)
        for replica in made.replicas:
            replica.live()
        first = {node: value + 1 for node, value in other.look().newest.items()}
        server.run(RATE_HZ)
        other.grown(10)
        mark = len(heard.heard)
        began = time.monotonic()
        assert primary.process is not None
        match how:
            case "kill":
                primary.process.kill()
            case "freeze":
                primary.process.freeze()
            case "stop":
                primary.process.stop()
        other.until(lambda: other.role() == "PRIMARY", "the other one acts", 15)
        acts_s = time.monotonic() - began
        other.until(lambda: any(h.topic.endswith("/role") for h in heard.heard[mark:]), "it speaks", 15)
        other.until(lambda: bool(other.events("push.pushed")), "it pushes", 15)
        pushed_s = time.monotonic() - began
        other.grown(10)
        if how == "freeze":
            primary.process.thaw()
            primary.until(lambda: primary.role() == "STANDBY", "the first one stands by", 15)
            assert other.role() == "PRIMARY"
            primary.grown(5)
        server.pause()
        other.settle()
        made.drained()
        figures = nothing_lost(made, server, first)
        print(json.dumps({"how": how, "acts_s": round(acts_s, 3), "pushed_s": round(pushed_s, 3), **figures}))


@pytest.mark.parametrize("arbiter", ["etcd"], indirect=True)
def test_a_process_that_dies_under_supervision_is_followed_at_once_and_comes_back(
    tmp_path: Path, store: Weed, broker: Mosquitto, arbiter: str
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        pair(tmp_path / "pair", server, store=store, broker=broker, arbiter=arbiter, verb="supervise") as made,
    ):
        primary = made.primary()
        other = next(r for r in made.replicas if r is not primary)
        for replica in made.replicas:
            replica.live()
        first = {node: value + 1 for node, value in other.look().newest.items()}
        server.run(RATE_HZ)
        other.grown(10)
        began = time.monotonic()
        os.kill(primary.pid, signal.SIGKILL)
        other.until(lambda: bool(other.events("lease.promoted")), "the other one acts", 15)
        acts_s = time.monotonic() - began
        assert [e["epoch"] for e in primary.events("supervisor.certified")] == [1]
        primary.until(lambda: len(primary.events("gateway.started")) == 2, "the first one is back", 15)
        other.grown(10)
        server.pause()
        other.settle()
        other.drained()
        figures = nothing_lost(made, server, first)
        print(json.dumps({"how": "certificate", "acts_s": round(acts_s, 3), **figures}))


@pytest.mark.parametrize("arbiter", ["etcd"], indirect=True)
def test_an_operator_hands_the_acting_over_and_nothing_is_lost(
    tmp_path: Path, store: Weed, broker: Mosquitto, arbiter: str
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        pair(tmp_path / "pair", server, store=store, broker=broker, arbiter=arbiter) as made,
    ):
        first_one = made.primary()
        other = next(r for r in made.replicas if r is not first_one)
        first = {node: value + 1 for node, value in other.look().newest.items()}
        server.run(RATE_HZ)
        other.grown(5)
        for verb, of, acts in (("promote", other, other), ("demote", other, first_one)):
            done = subprocess.run(
                [sys.executable, "-m", "gateway", verb, "--json", "--config", of.config], cwd=ROOT, text=True,
                capture_output=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["role"] == ("PRIMARY" if verb == "promote" else "STANDBY")
            assert made.primary() is acts
            other.grown(3)
        told = subprocess.run(
            [sys.executable, "-m", "gateway", "status", "--config", other.config], cwd=ROOT, text=True,
            capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert told.startswith("STANDBY under epoch 2: ")
        server.pause()
        other.settle()
        made.drained()
        print(json.dumps(nothing_lost(made, server, first)))


def test_without_a_majority_nobody_acts_the_broker_says_so_and_all_is_pushed_afterwards(
    tmp_path: Path, store: Weed, broker: Mosquitto
) -> None:
    with (
        Etcd(tmp_path / "etcd") as cluster,
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Subscriber(broker.port, "uns/v1/acme/live/#") as heard,
    ):
        arbiter = f'kind = "etcd"\nendpoints = {json.dumps(cluster.endpoints)}'
        with pair(tmp_path / "pair", server, store=store, broker=broker, arbiter=arbiter) as made:
            one = made.primary()
            first = {node: value + 1 for node, value in one.look().newest.items()}
            server.run(RATE_HZ)
            one.grown(3)
            for member in cluster.members[:2]:
                member.kill()
            mark, began = len(heard.heard), time.monotonic()
            one.until(lambda: one.role() == "STANDBY", "it lets go", 10)
            one.until(
                lambda: any(h.topic.endswith("/online") and h.payload == b"offline" for h in heard.heard[mark:]),
                "the broker says that nobody speaks", 10,
            )  # fmt: skip
            said_s = time.monotonic() - began
            for replica in made.replicas:
                replica.grown(5)
                assert replica.role() == "STANDBY"
            for member in cluster.members[:2]:
                member.start()
            made.primary()
            one.until(
                lambda: heard.latest()[f"uns/v1/acme/live/_gateway/{one.group}/online"] == b"online", "one speaks", 10
            )
            server.pause()
            one.settle()
            made.drained()
            print(json.dumps({"how": "no majority", "said_s": round(said_s, 3), **nothing_lost(made, server, first)}))
