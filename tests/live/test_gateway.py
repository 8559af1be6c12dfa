"""The real gateway between real servers: what it mirrors, and what faults cost.

Each counter of the server counts 1, 2, 3, ...; after every fault each missing integer has to lie in a row
of the gap ledger, and where a fault is shorter than the server's memory nothing may be missing at all.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from demo.servers import Weed
from mirror.coverage import Closure, Reason
from tests.live.gateways import Rig, Verdict
from tests.live.proxy import Proxy
from tests.live.servers import AsyncuaServer, Counters, Mosquitto, NodeServer
from tests.live.subscriber import Heard, Subscriber

NODES = 20
RATE_HZ = 10.0
ROUNDS = int(os.environ.get("EDGEMIRROR_TEST_KILLS", "3"))
OUTAGE_S = float(os.environ.get("EDGEMIRROR_TEST_OUTAGE_S", "30"))
# Bounds for a machine whose two cores are busy; what is usual is printed.
RESUME_S_MAX = 2.0  # the aim is 0.9
DELAY_S_MAX = 3.0
SLOW_BYTES_PER_S = 20_000.0
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


def spread(delays: list[float]) -> dict[str, float]:
    """Return median and maximum of the time from the server's write to the journal, in sorted delays."""
    return {"delay_s_p50": round(delays[len(delays) // 2], 3), "delay_s_max": round(delays[-1], 3)}


def nothing_lost(verdict: Verdict, *, repeats: int = 0) -> None:
    """Check that all is there; node-opcua may send its current values again when a session is taken up."""
    assert verdict.undeclared == []
    assert (verdict.lost, verdict.overlaps, verdict.foreign) == (0, 0, 0), verdict
    assert verdict.duplicates <= repeats * NODES


def all_in_the_bucket(rig: Rig) -> None:
    """Check that the log verifies and holds the journal's rows, each as often as the journal has it."""
    rig.drained()
    report, rows = rig.bucket()
    assert report.verified, (report.findings, report.strangers)
    assert rows == rig.look().rows


def arrived(heard: Subscriber, values: dict[int, int]) -> None:
    """Wait until a subscriber has been told a value of each counter."""

    def tells(heard: Heard, node: int, value: int) -> bool:
        return heard.topic.endswith(f"/c{node}") and heard.value["value"] == value

    for node, value in values.items():
        heard.wait(partial(tells, node=node, value=value))


def test_everything_produced_arrives_in_journal_bucket_and_broker(
    tmp_path: Path, store: Weed, broker: Mosquitto
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Subscriber(broker.port, "uns/v1/acme/live/area/line/#") as heard,
        Rig(tmp_path / "rig", server, store=store, broker=broker) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.grown(20)
        rig.settle()
        verdict = rig.verdict()
        show("clean", verdict)
        nothing_lost(verdict)
        assert verdict.gaps == []
        all_in_the_bucket(rig)
        arrived(heard, rig.now())


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
        for _ in range(ROUNDS):
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
        nothing_lost(verdict, repeats=ROUNDS)
        assert verdict.gaps == []
        assert len(rig.events("stream.resumed")) == ROUNDS
        all_in_the_bucket(rig)


@BOTH
def test_a_server_that_crashes_costs_only_what_no_subscription_saw(kind: type[Counters], tmp_path: Path) -> None:
    with kind(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server) as rig:
        rig.live()
        server.run(RATE_HZ)
        rig.grown(5)
        server.crash()
        rig.until(lambda: bool(rig.events("source.lost")), "the loss noticed")
        time.sleep(1.5)  # the fault's length
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
        assert resume_s < RESUME_S_MAX
        assert (verdict.overlaps, verdict.foreign) == (0, 0)


def test_a_store_that_is_away_delays_nothing_and_gets_everything_later_even_across_a_kill(
    tmp_path: Path, store: Weed
) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Proxy(store.port) as way,
        Rig(tmp_path / "rig", server, store=store, store_port=way.port) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.drained()
        way.cut()
        before = way.forwarded_bytes
        delays = rig.delays(OUTAGE_S / 2)
        rig.kill()
        rig.start()
        rig.grown(1)
        delays = sorted(delays + rig.delays(OUTAGE_S / 2))
        waiting = rig.backlog()
        way.bytes_per_s = SLOW_BYTES_PER_S
        way.heal()
        rig.until(lambda: way.forwarded_bytes > before + 2 * 1024, "the backlog on its way")
        draining = rig.delays(1.0)
        assert rig.backlog() > 0, "the way is narrow enough for the drain to take longer than the look at it"
        way.bytes_per_s = math.inf
        back = time.monotonic()
        rig.until(lambda: rig.backlog() < waiting / 4, "the backlog pushed")
        drain_s = round(time.monotonic() - back, 3)
        rig.settle()
        verdict = rig.verdict()
        figures = {"backlog": waiting, "drain_s": drain_s, "while_draining": spread(draining), **spread(delays)}
        show("store away, killed meanwhile", verdict, **figures)
        nothing_lost(verdict, repeats=1)
        assert verdict.gaps == []
        assert waiting > NODES * RATE_HZ * OUTAGE_S / 2
        assert max(delays + draining) < DELAY_S_MAX
        all_in_the_bucket(rig)


def test_a_broker_that_forgot_everything_is_told_everything_again(tmp_path: Path) -> None:
    topic = "uns/v1/acme/live/#"
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Mosquitto(tmp_path / "broker") as broker,
        Rig(tmp_path / "rig", server, broker=broker) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        with Subscriber(broker.port, topic) as heard:
            heard.on("/online", b"online")
            before = heard.latest()
        broker.kill()
        for kept in (tmp_path / "broker").glob("*.db"):
            kept.unlink()
        delays = rig.delays(2.0)
        rig.settle()
        broker.start()
        back = time.monotonic()
        with Subscriber(broker.port, topic) as heard:
            arrived(heard, rig.now())
            again_s = round(time.monotonic() - back, 3)
            assert set(before) <= set(heard.latest())
        verdict = rig.verdict()
        show("broker restart", verdict, again_s=again_s, **spread(delays))
        nothing_lost(verdict)
        assert max(delays) < DELAY_S_MAX


def test_a_broker_that_answers_nothing_stalls_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Proxy(broker.port) as way,
        Rig(tmp_path / "rig", server, broker=broker, broker_port=way.port) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.until(lambda: bool(rig.events("mqtt.connected")), "the broker connected")
        way.stall()
        delays = rig.delays(2.0)
        rig.settle()
        way.flow()
        with Subscriber(broker.port, "uns/v1/acme/live/#") as heard:
            arrived(heard, rig.now())
        verdict = rig.verdict()
        show("broker stalled", verdict, **spread(delays))
        nothing_lost(verdict)
        assert max(delays) < DELAY_S_MAX


@BOTH
def test_a_connection_that_breaks_for_less_than_the_session_lives_costs_nothing(
    kind: type[Counters], tmp_path: Path
) -> None:
    with (
        kind(tmp_path / "server", nodes=NODES) as server,
        Proxy(server.port) as way,
        Rig(tmp_path / "rig", server, server_port=way.port) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.grown(2)
        resumed: dict[str, float] = {}

        def after(fault: str) -> None:
            back = time.monotonic()
            rig.live()
            resumed[fault] = round(time.monotonic() - back, 3)
            rig.grown(3)

        way.reset()
        after("reset")
        if kind is NodeServer:
            way.cut()
            time.sleep(1.5)  # the length of the fault, here and below
            way.heal()
            after("cut 1.5 s")
            way.stall()
            time.sleep(2.0)
            way.flow()
            after("stalled 2 s")
            way.stall()
        else:
            way.strand()
        lost = len(rig.events("source.lost"))
        rig.until(lambda: len(rig.events("source.lost")) > lost, "the silence noticed")
        way.flow()
        after("stalled until noticed" if kind is NodeServer else "stranded, since noticed")
        rig.settle()
        verdict = rig.verdict()
        show(f"connection, {kind.__name__}", verdict, resume_s=resumed)
        nothing_lost(verdict, repeats=len(resumed))
        assert verdict.gaps == []
        assert len(rig.events("stream.subscribed")) == 1


def test_a_connection_away_for_longer_than_the_session_lives_costs_what_the_ledger_says(tmp_path: Path) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Proxy(server.port) as way,
        Rig(tmp_path / "rig", server, server_port=way.port, session_timeout_s=10) as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.grown(2)
        way.cut()
        rig.until(lambda: server.facts()["subscriptions"] == 0, "the server gave up the subscription")
        way.heal()
        back = time.monotonic()
        rig.live()
        resume_s = round(time.monotonic() - back, 3)
        rig.settle()
        verdict = rig.verdict()
        show("connection away for longer", verdict, resume_s=resume_s)
        assert verdict.undeclared == []
        assert verdict.lost > 0
        assert [gap.reason for gap in verdict.gaps] == [Reason.DISCONNECTED]
        assert resume_s < RESUME_S_MAX
        assert verdict.gaps[0].closed_by is Closure.LOST


def test_a_gap_is_filled_from_the_servers_history(tmp_path: Path, store: Weed) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=NODES, history=5000) as server,
        Rig(tmp_path / "rig", server, store=store, history="true") as rig,
    ):
        rig.live()
        server.run(RATE_HZ)
        rig.grown(3)
        rig.kill()
        rig.forget_session()
        rig.start()
        rig.grown(1)
        rig.until(lambda: bool(rig.gaps()) and all(g.closed_by for g in rig.gaps()), "the gap closed")
        rig.settle()
        verdict = rig.verdict()
        show("history", verdict)
        assert [(g.reason, g.closed_by) for g in verdict.gaps] == [(Reason.GATEWAY_DOWN, Closure.HISTORY)]
        assert (verdict.lost, verdict.overlaps, verdict.foreign) == (0, 0, 0)
        all_in_the_bucket(rig)


def test_a_node_that_is_gone_goes_bad_and_the_others_live_on(tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server) as rig:
        rig.live()
        server.run(RATE_HZ)
        rig.grown(2)
        rig.kill()
        rig.forget_session()
        server.delete(3)
        rig.start()
        rig.until(lambda: bool(rig.events("stream.items_refused")), "the node refused")
        rig.until(lambda: 3 in rig.look().bad, "the node bad")
        assert rig.seen.bad[3] == 0x80340000
        least = {node: value + 5 for node, value in rig.seen.newest.items() if node != 3}
        rig.until(lambda: rig.has(least), "the others alive")
        server.pause()
        least = rig.now()
        del least[3]
        rig.until(lambda: rig.has(least), "the others up to date")
        verdict = rig.verdict(without=[3])
        show("node gone", verdict)
        assert verdict.undeclared == []
        assert (verdict.overlaps, verdict.foreign) == (0, 0)


def test_stopped_in_order_or_frozen_it_loses_nothing(tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server) as rig:
        rig.live()
        server.run(RATE_HZ)
        rig.grown(2)
        assert rig.stop() == 0
        rig.start()
        rig.grown(2)
        assert rig.process is not None
        rig.process.freeze()
        time.sleep(3.0)  # the length of the fault
        rig.process.thaw()
        back = time.monotonic()
        rig.live()
        assert 2.5 < rig.metric("sample_gap_seconds_max") < 30
        thawed_s = round(time.monotonic() - back, 3)
        rig.settle()
        verdict = rig.verdict()
        show("stopped and frozen", verdict, thawed_to_fresh_s=thawed_s)
        nothing_lost(verdict, repeats=1)
        assert verdict.gaps == []


def test_a_queue_that_runs_over_is_declared_tag_by_tag(tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=NODES) as server, Rig(tmp_path / "rig", server, queue_size=10) as rig:
        rig.live()
        server.run(RATE_HZ)
        rig.grown(2)
        assert rig.process is not None
        rig.process.freeze()
        time.sleep(3.0)  # the length of the fault: three messages wait at the gateway, ten values in each queue
        rig.process.thaw()
        rig.live()
        rig.settle()
        verdict = rig.verdict()
        show("overflow", verdict)
        assert verdict.undeclared == []
        assert verdict.lost > 0
        assert {gap.reason for gap in verdict.gaps} == {Reason.OVERFLOW}
        assert (verdict.duplicates, verdict.overlaps, verdict.foreign) == (0, 0, 0)
