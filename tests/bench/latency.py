"""How long a value takes from its write on the server to an MQTT client, the durable commit included.

The load server stamps a value when it is written, somewhere within the publish interval; the gateway, with
bucket and broker on, acknowledges and publishes only what is fsynced; a subscriber in this process notes
when the device object arrives. Latency is arrival less source time, to the millisecond of the payload. Each
tag carries a counter: integers that never arrive count as lost (publishing keeps the last value of a tag, so
a tag that changes faster than it is published would lose some by design; here it changes once a second).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from demo.servers import Weed
from tests.bench.rig import Gateway, LoadServer, broker, table

SETTLE_S = 2.0
TAIL_S = 2.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tags", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=1_000.0, help="changes a second")
    parser.add_argument("--publishing-ms", type=float, default=50.0)


class Observer:
    """A dashboard: every value with the time of its arrival."""

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[str, int, float]] = []  # tag, counter, latency in ms
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="observer")
        self._client.on_connect = lambda client, *_: client.subscribe("uns/v1/#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(10), "the broker does not answer"

    def _message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        now_ms = time.time() * 1000
        if message.retain or "/_" in message.topic:
            return
        body = json.loads(message.payload)
        times = body.get("timestamps", {})
        for key, value in body["values"].items():
            self.seen.append((key, int(value), now_ms - times.get(key, body["timestamp"])))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the percentiles and what never arrived."""
    with tempfile.TemporaryDirectory(prefix="edgemirror-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(LoadServer(folder / "server", nodes=chosen.tags))
        store = stack.enter_context(Weed(folder / "store"))
        plant = stack.enter_context(broker(folder / "broker"))
        observer = Observer(plant.port)
        stack.callback(observer.close)
        gateway = Gateway(folder / "a", server, publishing_ms=chosen.publishing_ms, store=store, broker=plant)
        stack.enter_context(gateway)
        gateway.mirrored(chosen.tags)
        server.ask("run", rate=chosen.rate)
        time.sleep(SETTLE_S)
        first, before = len(observer.seen), gateway.usage()
        time.sleep(chosen.seconds)
        last, after = len(observer.seen), gateway.usage()
        written = server.ask("pause")["written"]
        time.sleep(TAIL_S)
        arrived = {(key, value) for key, value, _ in observer.seen}
    p50, p99, top = np.percentile([ms for _, _, ms in observer.seen[first:last]], (50, 99, 100))
    figures = {
        "name": "latency", "rate_per_s": round((last - first) / (after.at_s - before.at_s)),
        "us_per_change": round((after.cpu_s - before.cpu_s) / (last - first) * 1e6, 1),
        "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": round(top, 1), "lost": written - len(arrived),
        "rss_mib": round(after.pss_mib, 1), "publishing_ms": chosen.publishing_ms,
    }  # fmt: skip
    print(table(list(figures.items())))
    return figures
