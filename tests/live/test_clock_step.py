"""This box's clock is set by an hour, forwards and backwards, while a gateway runs: it decides nothing."""

from __future__ import annotations

from pathlib import Path

from demo.servers import Weed
from tests.live.gateways import ROOT, Rig
from tests.live.servers import Mosquitto, NodeServer, until
from tests.live.subscriber import Subscriber
from tests.live.test_gateway import NODES, RATE_HZ, all_in_the_bucket, nothing_lost, show

HOUR_S = 3600
STEPS_S = (HOUR_S, -HOUR_S, 0)


def test_the_clock_steps_an_hour_both_ways_and_nothing_is_lost_declared_or_disturbed(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    with (
        Weed(tmp_path / "store") as store,
        Mosquitto(tmp_path / "broker") as broker,
        NodeServer(tmp_path / "server", nodes=NODES) as server,
        Subscriber(broker.port, "uns/v1/acme/live/#") as heard,
    ):
        rig = Rig(tmp_path / "rig", server, store=store, broker=broker, audit_s=10)
        shim = Path(__file__).parent / "stepped"
        rig.before = ["env", f"PYTHONPATH={shim}:{ROOT}", f"EDGEMIRROR_TEST_CLOCK={clock}"]
        with rig:
            rig.live()
            server.run(RATE_HZ)
            rig.grown(5)
            before = len(heard.heard)
            for step_s in STEPS_S:
                clock.write_text(str(step_s))
                rig.grown(6)  # by what the server's clock says
                assert rig.metric('opcua_connected{source="counters"}') == 1
                assert 0 < rig.metric("uptime_seconds") < HOUR_S
            until(lambda: len(rig.events("push.pushed")) > 3, "segments that are pushed all the while")
            rig.settle()
            verdict = rig.verdict()
            show("clock stepped", verdict)
            nothing_lost(verdict)
            assert verdict.gaps == []
            assert not rig.events("source.lost") and not rig.events("mqtt.disconnected")
            assert not rig.events("audit.mismatch") and not rig.events("journal.trimmed")
            all_in_the_bucket(rig)
            states = {h.payload for h in heard.heard[before:] if h.topic.endswith("/_state")}
            assert states <= {b"live"}, "nobody is told that a device is away"
