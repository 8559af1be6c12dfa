"""The one-command demo: a plant, a gateway, a store and a broker on this machine, and the proof that they agree.

    python -m demo --seconds 30

Everything runs as a process of its own on loopback; nothing is installed, nothing phones home, and all that
was written is removed at the end (`--keep` keeps it). While it runs, a table shows what the gateway's
journal holds. Then the plant stops, and what it wrote is compared with journal and bucket, sample by sample
and bit by bit. The last line is one JSON object; the exit code is 0 only if nothing was lost, nothing was
invented, and the whole log verified.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from demo import ledger
from demo.servers import PORT_TAKEN, STARTS, Broker, NotReady, Process, Weed, stay_on_loopback, until
from demo.show import Screen
from gateway.io.reader import JournalReader
from mirror import chunk
from mirror.batch import Batch, concat
from mirror.io.s3 import S3Settings, S3Store
from mirror.layout import Layout
from mirror.tags import TagTable
from mirror.verify import Report, verify_store

SETTLE_S = 30.0
LOOK_S = 0.5

GATEWAY = """\
[group]
name = "demo"
enterprise = "acme"
site = "demo"

[replica]
name = "a"
data_dir = "{folder}/data"

[[source]]
name = "plant"
endpoint = "{plant}"
security = "none"

{devices}
[sync]
bucket = "s3://{bucket}/plantA"
endpoint = "{store}"
access_key_file = "{folder}/access.key"
secret_key_file = "{folder}/secret.key"
interval_s = {{ min = 0.5, max = 2 }}
requests_per_day = 1000000

[mqtt]
url = "{broker}"

[http]
listen = "127.0.0.1:0"
"""

DEVICE = """\
[[source.device]]
name = "{name}"
area = "hall1"
line = "line1"
browse = ["nsu={namespace};s={root}/**"]
tag_topics = ["**"]

"""


class Plant(Process):
    """The simulated plant, steered through its standard streams."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.ledger = folder / "plant.log"
        command = [sys.executable, "-m", "demo.plant", "--seed", str(seed), "--log", str(self.ledger), "--paused"]
        super().__init__(command, folder, "plant", {"PYTHONPATH": str(Path(__file__).parents[1])}, pipes=True)
        try:
            self.facts: dict[str, Any] = self._read()
        except BaseException:
            self.kill()
            raise

    @classmethod
    def start(cls, folder: Path, seed: int) -> Plant:
        """Start one; again if somebody was faster to take its port."""
        for _ in range(STARTS - 1):
            try:
                return cls(folder, seed)
            except NotReady as error:
                if not any(words in str(error) for words in PORT_TAKEN):
                    raise
        return cls(folder, seed)

    def tell(self, what: str) -> dict[str, Any]:
        """Send a command and return the answer."""
        self.stdin.write(json.dumps({"do": what}).encode() + b"\n")
        self.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self.stdout.readline()
        if not line:
            raise NotReady(f"the plant ended:\n{self.log()}")
        facts: dict[str, Any] = json.loads(line)
        return facts


class Gateway(Process):
    """`edgemirror run` on a configuration in a folder."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "gateway.toml"
        command = [sys.executable, "-m", "gateway", "run", "--config", str(self.config)]
        super().__init__(command, folder, "gateway", {"PYTHONPATH": str(Path(__file__).parents[1])}, pipes=True)
        try:
            line = self.stdout.readline()
        except BaseException:  # interrupted: nobody else knows of it yet
            self.kill()
            raise
        if not line:
            raise NotReady(f"the gateway ended:\n{self.log()}")
        facts = json.loads(line)
        self.http, self.journal = facts["http"], Path(facts["journal"])

    def metrics(self) -> dict[str, float]:
        """Return the sum of each metric over its labels; empty if the gateway does not answer."""
        try:
            with urllib.request.urlopen(f"{self.http}/metrics", timeout=2.0) as answer:
                lines = answer.read().decode().splitlines()
        except (OSError, urllib.error.URLError):
            return {}
        found: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found


class Subscriber:
    """Somebody who looks at the dashboard: counts what the broker delivers."""

    def __init__(self, port: int) -> None:
        self.messages = self.values = 0
        self.retained: set[str] = set()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="demo-subscriber")
        self._client.on_connect = lambda client, *_: client.subscribe("uns/v1/#", qos=1)
        self._client.on_message = self._message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.messages += 1
        levels = message.topic.split("/")
        if len(levels) == 7 and levels[4] != "_gateway" and not levels[-1].startswith("_"):
            body = json.loads(message.payload)
            self.values += len(body.get("values", ())) + len(body.get("errors", ()))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Demo:
    """One run of it.

    Args:
        folder: Where everything is written.
        seconds: How long the plant runs.
        seed: What the plant says follows from it.
    """

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.folder, self.seconds, self.seed = folder, seconds, seed

    def run(self) -> dict[str, Any]:
        """Mirror, then compare; return the figures of the last line."""
        screen = Screen()
        screen.say("starting a store, a broker and a plant on loopback ...")
        with Weed(self.folder / "store") as store, Broker(self.folder / "broker") as broker:
            subscriber = Subscriber(broker.port)
            plant = Plant.start(self.folder, self.seed)
            try:
                self._configure(plant, store, broker)
                gateway = Gateway(self.folder)
                try:
                    self._mirror(screen, plant, gateway, subscriber)
                    return self._prove(screen, plant, gateway, store, subscriber)
                finally:
                    gateway.stop()
            finally:
                plant.stop()
                subscriber.close()

    def _configure(self, plant: Plant, store: Weed, broker: Broker) -> None:
        for name, secret in (("access.key", store.access_key), ("secret.key", store.secret_key)):
            (self.folder / name).touch(mode=0o600)
            (self.folder / name).write_text(secret)
        namespace = plant.facts["namespace"]
        devices = "".join(
            DEVICE.format(name=root.lower(), namespace=namespace, root=root) for root in plant.facts["machines"]
        )
        (self.folder / "gateway.toml").write_text(GATEWAY.format(
            folder=self.folder, plant=plant.facts["endpoint"], devices=devices, bucket=store.bucket,
            store=store.endpoint, broker=broker.url,
        ))  # fmt: skip

    def _mirror(self, screen: Screen, plant: Plant, gateway: Gateway, subscriber: Subscriber) -> None:
        """Let the plant run and show what arrives."""
        gateway.ready(lambda: gateway.metrics().get("edgemirror_opcua_connected") == 1.0)
        program, config = _short(Path(sys.executable).with_name("edgemirror")), gateway.config
        screen.hints([
            f"{program} status --config {config}",
            f"{program} tail --config {config} Press7",
            f"{program} sql --config {config} 'SELECT tag, count(*) FROM samples GROUP BY tag LIMIT 5'",
            f"{program} verify --config {config}",
            f"curl {gateway.http}/metrics",
        ])  # fmt: skip
        plant.tell("run")
        reader = JournalReader.open(gateway.journal)
        with screen:
            until_s = time.monotonic() + self.seconds
            while (left := until_s - time.monotonic()) > 0:
                if not gateway.alive:
                    raise NotReady(f"the gateway ended:\n{gateway.log()}")
                screen.show(reader, gateway.metrics(), subscriber.messages, subscriber.values, left)
                time.sleep(min(LOOK_S, left))
        reader.close()

    def _prove(
        self, screen: Screen, plant: Plant, gateway: Gateway, store: Weed, subscriber: Subscriber
    ) -> dict[str, Any]:
        """Stop the plant, let everything drain, and compare."""
        produced = plant.tell("pause")["written"]
        screen.say("the plant has stopped; waiting until the bucket has everything ...")

        def drained() -> bool:
            now = gateway.metrics()
            return now.get("edgemirror_samples_total", 0) >= produced and now.get("edgemirror_backlog_samples", 1) == 0

        try:
            until(drained, "everything mirrored and pushed", SETTLE_S)
        except NotReady as error:
            screen.say(f"{error}; comparing what is there")
        seen = gateway.metrics()
        code = gateway.stop()
        tags = TagTable()
        written = ledger.read(plant.ledger, plant.facts["uri"], tags)
        reader = JournalReader.open(gateway.journal)
        journaled = _with_handles(concat([chunk.decode(row.body) for row in _chunks(reader)]), reader.tags(), tags)
        gaps = reader.gaps()
        reader.close()
        report, pushed = self._bucket(store, tags)
        here, there = ledger.compare(written, [journaled]), ledger.compare(written, pushed)
        return {
            "produced": here.produced, "journaled": len(journaled), "pushed": sum(len(b) for b in pushed),
            "published": int(seen.get("edgemirror_mqtt_acknowledged_total", 0)), "received": subscriber.messages,
            "lost": len(here.missing | there.missing), "duplicates": here.duplicates + there.duplicates,
            "foreign": here.foreign + there.foreign, "gaps": len(gaps), "segments": report.segments,
            "findings": len(report.findings), "verified": report.verified and here.clean and there.clean,
            "gateway_exit": code,
        }  # fmt: skip

    def _bucket(self, store: Weed, tags: TagTable) -> tuple[Report, list[Batch]]:
        """Verify the log and return what it holds, with the handles of `tags`."""
        settings = S3Settings(
            bucket=store.bucket, endpoint=store.endpoint, access_key=store.access_key, secret_key=store.secret_key
        )
        found: list[Batch] = []

        def visit(_header: Any, batch: Batch, table: TagTable) -> None:
            found.append(_with_handles(batch, table, tags))

        return verify_store(S3Store.open(settings), Layout("plantA", "demo"), visit=visit), found


def _short(path: Path) -> Path:
    """Return a path as it is typed in the present folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _chunks(reader: JournalReader) -> list[Any]:
    """Return all chunks, oldest first."""
    rows: list[Any] = []
    while page := reader.chunks_since(rows[-1].seq if rows else 0, limit=1000):
        rows += page
    return rows


def _with_handles(batch: Batch, table: TagTable, tags: TagTable) -> Batch:
    """Return a copy whose handles are those of another table; new tags are added to that."""
    handles = [tags.add(tag) if (known := tags.find(tag.identity)) is None else known for tag in table.tags]
    return replace(batch, handle=np.array(handles, np.uint32)[batch.handle]) if len(batch) else batch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to mirror; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="what the plant says follows from it")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything that was written")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-demo-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends it, what it wrote is removed
    stay_on_loopback(os.environ)
    try:
        figures = Demo(folder, options.seconds, options.seed).run()
    except NotReady as error:
        print(f"demo: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("demo: interrupted; nothing was compared", file=sys.stderr)
        return 130
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["verified"] and not figures["lost"] and figures["gateway_exit"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
