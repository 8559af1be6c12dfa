"""The real gateway between real servers: what it mirrors, and what faults cost.

Each counter of the server counts 1, 2, 3, ...; after every fault each missing integer has to lie in a row
of the gap ledger, and where a fault is shorter than the server's memory nothing may be missing at all.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.servers import Weed
from mirror.coverage import Closure, Reason
from tests.live.gateways import Rig, Verdict
from tests.live.servers import AsyncuaServer, Counters, Mosquitto, NodeServer
from tests.live.subscriber import Subscriber

NODES = 20
RATE_HZ = 10.0
BOTH = pytest.mark.parametrize("kind", [NodeServer, AsyncuaServer])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with Weed(tmp_path_factory.mktemp("store")) as weed:
        yield weed


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as mosquitto:
        yield mosquitto


def show(what: str, verdict: Verdict, **more: object) -> None:
    """Print one line of figures, for the person who reads `pytest -s` or a failed run."""
    print(json.dumps({"test": what, **verdict.figures(), **more}))


def nothing_lost(verdict: Verdict) -> None:
    assert verdict.undeclared == []
    assert (verdict.lost, verdict.duplicates, verdict.overlaps, verdict.foreign) == (0, 0, 0, 0), verdict


def all_in_the_bucket(rig: Rig) -> None:
    """Check that the log verifies and holds the journal's rows, each as often as the journal has it."""
    rig.drained()
    report, rows = rig.bucket()
    assert report.verified, (report.findings, report.strangers)
    assert rows == rig.look().rows


@BOTH
def test_everything_produced_arrives_in_journal_bucket_and_broker(
    kind: type[Counters], tmp_path: Path, store: Weed, broker: Mosquitto
) -> None:
    with (
        kind(tmp_path / "server", nodes=NODES) as server,
        Subscriber(broker.port, f"uns/v1/acme/live/area/line/#") as heard,
        Rig(tmp_path / "rig", server, store=store, broker=broker) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.grown(20)
        rig.settle()
        verdict = rig.verdict()
        show(f"clean, {kind.__name__}", verdict)
        nothing_lost(verdict)
        assert verdict.gaps == []
        all_in_the_bucket(rig)
        for node, value in rig.now().items():
            heard.wait(lambda h: h.topic.endswith(f"/c{node}") and h.value["value"] == value)


@BOTH
def test_killed_at_any_moment_and_started_again_it_loses_nothing(
    kind: type[Counters], tmp_path: Path, store: Weed
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    resumed: list[float] = []
    with kind(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server, store=store) as rig:
        rig.live()
        server.run(RATE_HZ)
        for _ in range(3):
            rig.grown(1)
            time.sleep(chance.uniform(0.0, 0.5))  # not to wait for something: the fault's random moment
            rig.kill()
            began = time.monotonic()
            rig.start()
            rig.grown(1)
            resumed.append(round(time.monotonic() - began, 3))
        rig.settle()
        verdict = rig.verdict()
        show(f"kill -9, {kind.__name__}", verdict, seed=seed, start_to_fresh_s=resumed)
        nothing_lost(verdict)
        assert verdict.gaps == []
        assert [e["event"] for e in rig.events("source.connected")] and len(rig.events("stream.resumed")) == 3
        all_in_the_bucket(rig)


@BOTH
def test_a_server_that_crashes_costs_only_what_no_subscription_saw(kind: type[Counters], tmp_path: Path) -> None:
    with kind(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server) as rig:
        rig.live()
        server.run(RATE_HZ)
        rig.grown(5)
        server.crash()
        rig.until(lambda: bool(rig.events("source.lost")), "the loss noticed")
        time.sleep(3.0)  # the fault's length
        server.restart()
        back = time.monotonic()
        fresh = {node: value + 1 for node, value in rig.now().items()}
        server.run(RATE_HZ)
        rig.until(lambda: rig.has(fresh), "every counter fresh again")
        resume_s = round(time.monotonic() - back, 3)
        rig.grown(3)
        rig.settle()
        verdict = rig.verdict()
        show(f"server restart, {kind.__name__}", verdict, resume_s=resume_s, per_node=verdict.lost / NODES)
        assert verdict.undeclared == []
        assert [gap.reason for gap in verdict.gaps] == [Reason.SERVER_RESTART]
        assert (verdict.overlaps, verdict.foreign) == (0, 0)
