"""The real gateway as its own process beside counter servers, and the count of what it lost.

A `Rig` is one gateway with its configuration: it can be killed, stopped, frozen and started again on the
same folder. The test reads the gateway's journal as any other process would. `verdict` compares it with
what the server wrote: every missing integer is a lost sample, and a lost sample is *declared* when a row
of the gap ledger, not closed as filled, names its tag and the time at which it was written.

What this module does not do: make faults happen; `Proxy`, `Counters` and the servers do.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import queue
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from demo.servers import NotReady, Process, Weed, until
from gateway.io.reader import JournalReader
from mirror import chunk
from mirror.batch import Batch
from mirror.coverage import Closure, Gap
from mirror.io.s3 import S3Settings, S3Store
from mirror.layout import Layout
from mirror.tags import TagTable
from mirror.verify import Report, verify_store
from tests.live.servers import Counters, Mosquitto

UNIX_EPOCH_TICKS = 116_444_736_000_000_000
DOUBLE = 11
ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
PUBLISHING_MS = 100
# A sample is published up to one publishing interval and one slice of writes after it was written, and
# both servers' clocks count in whole milliseconds.
BEFORE_S = PUBLISHING_MS / 1000 + 0.1
AFTER_S = 0.002

Row = tuple[object, ...]

CONFIG = """\
[group]
name = "{group}"
enterprise = "acme"
site = "live"

[replica]
name = "a"
data_dir = "{folder}/data"

[[source]]
name = "counters"
endpoint = "{endpoint}"
security = "none"
history = {history}
session_timeout_s = {session_timeout_s}
request_timeout_s = {request_timeout_s}
audit_s = {audit_s}

[[source.device]]
name = "counters"
browse = ["nsu=urn:edgemirror:test:counters;s=Counters/**"]
publishing_ms = {publishing_ms}
queue_size = {queue_size}
tag_topics = ["**"]

[http]
listen = "127.0.0.1:0"
"""

SYNC = """
[sync]
bucket = "s3://{bucket}/live"
endpoint = "{store}"
access_key_file = "{folder}/access.key"
secret_key_file = "{folder}/secret.key"
interval_s = {{ min = 0.25, max = 1 }}
requests_per_day = 10000000
"""

MQTT = """
[mqtt]
url = "{broker}"
keepalive_s = 1
"""


@dataclass
class Seen:
    """What the journal holds: read as it grows.

    Attributes:
        values: By node number, each counter value with the number of its copies.
        newest: By node number, the highest value.
        rows: Every row as (node, value, source ticks, server ticks, status) with its number of copies.
        spans: (stream, timeline, origin, from, to) of each chunk.
        at: By node number and value, when this observer first saw it (Unix seconds).
        strange: Good rows of another type than the counters have.
    """

    values: dict[int, Counter[int]] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)
    rows: Counter[Row] = field(default_factory=Counter)
    bad: dict[int, int] = field(default_factory=dict)
    spans: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    at: dict[tuple[int, int], float] = field(default_factory=dict)
    chunks: int = 0
    strange: int = 0

    def add(self, batch: Batch, node: dict[int, int]) -> None:
        now = time.time()
        for row, key in rows(batch, node):
            self.rows[key] += 1
            number, value = key[0], key[1]
            assert isinstance(number, int)
            if isinstance(value, int):
                self.values.setdefault(number, Counter())[value] += 1
                self.newest[number] = max(self.newest.get(number, 0), value)
                self.at.setdefault((number, value), now)
            else:
                self.bad[number] = int(batch.status[row])
                self.strange += bool(batch.status[row] < 0x40000000 and batch.kind[row] != 0)


def rows(batch: Batch, node: dict[int, int]) -> Iterable[tuple[int, Row]]:
    """Yield row numbers and (node, value or None, source ticks, server ticks, status)."""
    doubles = batch.bits.view(np.float64)
    for row in range(len(batch)):
        if int(batch.handle[row]) not in node:
            continue
        value = int(doubles[row]) if batch.kind[row] == DOUBLE and batch.status[row] < 0x80000000 else None
        yield row, (
            node[int(batch.handle[row])], value, int(batch.source_ticks[row]), int(batch.server_ticks[row]),
            int(batch.status[row]),
        )  # fmt: skip


def numbers(tags: TagTable) -> dict[int, int]:
    """Return the counter's number by handle; other variables are left out."""
    return {handle: int(tag.identifier[3:]) for handle, tag in enumerate(tags.tags) if tag.identifier.startswith("s=c")}


@dataclass(frozen=True)
class Verdict:
    """How the journal compares with what the server wrote.

    Attributes:
        produced: Samples written from the first mirrored one of each node on.
        lost: Of these, those that the journal lacks.
        undeclared: Lost ones that no gap row tells of, as (node, value, unix time).
        duplicates: Further copies of rows, equal in time, status and value.
        overlaps: Pairs of chunks of one origin whose intervals overlap.
        foreign: Values that the server never wrote, rows of another type included.
        gaps: Rows of the ledger.
    """

    produced: int
    lost: int
    undeclared: list[tuple[int, int, float]]
    duplicates: int
    overlaps: int
    foreign: int
    gaps: list[Gap]

    def figures(self) -> dict[str, int]:
        """Return the numbers for a line of JSON."""
        return {
            "produced": self.produced, "lost": self.lost, "undeclared": len(self.undeclared),
            "duplicates": self.duplicates, "overlaps": self.overlaps, "foreign": self.foreign, "gaps": len(self.gaps),
        }  # fmt: skip


class Rig:
    """One gateway, what it mirrors and where to; a context manager that ends with the gateway stopped.

    Args:
        folder: Configuration, journal and log go here.
        server: What is mirrored.
        store, broker: Where it is pushed and published to, if anywhere.
        store_port, broker_port, server_port: Of proxies in between.
        settings: Further values for CONFIG.

    Attributes:
        before: What stands in front of the gateway's command, if anything.
        verb: With which the gateway is started.
        pid: Of the gateway that started last.
    """

    def __init__(
        self, folder: Path, server: Counters, *, store: Weed | None = None, broker: Mosquitto | None = None,
        store_port: int = 0, broker_port: int = 0, server_port: int = 0, **settings: object,
    ) -> None:  # fmt: skip
        self.folder, self.server, self.store = folder, server, store
        self.group = f"{folder.parent.name}-{folder.name}"[-60:].strip("-_.")
        self.path = folder / "data" / "mirror.db"
        self.config = folder / "gateway.toml"
        self.process: Process | None = None
        self.before: list[str] = []
        self.verb = "run"
        self.pid = 0
        self.http = ""
        self.seen = Seen()
        self._reader: JournalReader | None = None
        folder.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(
            group=self.group, folder=folder, endpoint=f"opc.tcp://127.0.0.1:{server_port or server.port}",
            **{
                "history": "false", "session_timeout_s": 600, "request_timeout_s": 2, "queue_size": 0,
                "audit_s": 600, "publishing_ms": PUBLISHING_MS, **settings,
            },
        )  # fmt: skip
        if store is not None:
            for name, secret in (("access.key", store.access_key), ("secret.key", store.secret_key)):
                (folder / name).write_text(secret)
            endpoint = f"http://127.0.0.1:{store_port or store.port}"
            text += SYNC.format(bucket=store.bucket, store=endpoint, folder=folder)
        if broker is not None:
            text += MQTT.format(broker=f"mqtt://127.0.0.1:{broker_port or broker.port}")
        self.config.write_text(text)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()
        if self.process is not None:
            self.process.thaw()
            self.process.kill()

    # The process

    def start(self) -> None:
        """Start the gateway and wait until it says that it runs."""
        command: list[str | Path] = [*self.before, sys.executable, "-m", "gateway", self.verb, "--config", self.config]
        self.process = Process(command, self.folder, "gateway", {"PYTHONPATH": str(ROOT)}, pipes=True)
        told: queue.Queue[bytes] = queue.Queue()
        stdout = self.process.stdout
        threading.Thread(target=lambda: told.put(stdout.readline()), daemon=True).start()
        try:
            line = told.get(timeout=WAIT_S)
        except queue.Empty:
            line = b""
        if not line:
            raise NotReady(f"the gateway did not start:\n{self.process.log()}")
        facts = json.loads(line)
        self.http, self.pid = facts["http"], int(facts["pid"])

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> int:
        """End it with SIGTERM; return the exit code."""
        assert self.process is not None
        return self.process.stop()

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    def metric(self, series: str, timeout_s: float = WAIT_S) -> float:
        """Return the value of a series that the gateway tells."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=timeout_s) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
        [value] = [value for name, _, value in lines if name == f"edgemirror_{series}"]
        return float(value)

    def ready(self) -> dict[str, Any]:
        """Return what `/readyz` says."""
        try:
            with urllib.request.urlopen(f"{self.http}/readyz", timeout=WAIT_S) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name that the gateway has logged so far, over all its lives."""
        lines = (line for line in self.log().splitlines() if line.startswith("{"))
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition; fails with the gateway's log."""
        try:
            until(condition, what, timeout_s)
        except NotReady as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None

    def on_another_box(self) -> None:
        """Forget what was read of the journal: the folder is another one now; the gateway is down."""
        self._reader, self.seen = None, Seen()

    # What it holds

    @property
    def reader(self) -> JournalReader:
        if self._reader is None:
            self._reader = JournalReader.open(self.path)
        return self._reader

    def look(self) -> Seen:
        """Read what the journal has got since the last look."""
        while page := self.reader.chunks_since(self.seen.chunks, limit=1000):
            node = numbers(self.reader.tags())
            for row in page:
                self.seen.add(chunk.decode(row.body), node)
                self.seen.spans.append((row.stream, row.timeline, row.origin, row.pub_from, row.pub_to))
            self.seen.chunks = page[-1].seq
        return self.seen

    def has(self, least: dict[int, int]) -> bool:
        """Tell whether every node has reached a value."""
        newest = self.look().newest
        return all(newest.get(node, -1) >= value for node, value in least.items())

    def live(self) -> None:
        """Wait until every node has a value at least as new as now."""
        now = self.now()
        self.until(lambda: self.has(now), "every counter in the journal")

    def now(self) -> dict[int, int]:
        """Return the value that each node of the server has now."""
        writes = self.server.writes()
        written = writes[-1][0] if writes else 0
        n = self.server.nodes
        return {i: (written - i + n - 1) // n for i in range(n)}

    def grown(self, by: int = 3, timeout_s: float = WAIT_S) -> None:
        """Wait until every node has got so many further values."""
        least = {node: value + by for node, value in self.look().newest.items()}
        self.until(lambda: self.has(least), f"{by} further values of each node", timeout_s)

    def delays(self, seconds: float) -> list[float]:
        """Watch for a while; return how long each value written meanwhile took to be seen here, in order of size.

        A value that is not there yet at the end counts with its age.
        """
        began = time.time()
        while time.time() < began + seconds:
            self.look()
            time.sleep(0.01)
        seen, end = self.look(), time.time()
        writes, n = self.server.writes(), self.server.nodes
        taken = []
        for number in range(bisect.bisect_right(writes, began, key=lambda w: w[1]), len(writes)):
            written, when = writes[number]
            for w in range(writes[number - 1][0] if number else 0, written):
                taken.append(seen.at.get((w % n, w // n + 1), end) - when)
        return sorted(taken)

    def forget_session(self) -> None:
        """Drop what the journal knows of sessions, as if the server had forgotten them; the gateway is down."""
        if self._reader is not None:  # another SQLite closing the file would end the locks of this process
            self._reader.close()
            self._reader = None
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            db.execute("DELETE FROM session")

    def settle(self) -> None:
        """Let the server stop writing and wait until the newest value of each node is in the journal."""
        self.server.pause()
        self.live()

    def backlog(self) -> int:
        """Return the number of journaled rows that the bucket lacks."""
        return self.reader.backlog(self.reader.settled()).rows

    def drained(self, timeout_s: float = WAIT_S) -> None:
        """Wait until the bucket has all that the journal has."""
        self.until(lambda: self.backlog() == 0, "everything in the bucket", timeout_s)

    def gaps(self) -> list[Gap]:
        return self.reader.gaps()

    def verdict(self, without: Iterable[int] = ()) -> Verdict:
        """Compare the journal with what the server wrote; call it when nothing moves any more."""
        seen, last = self.look(), self.now()
        writes, gaps = self.server.writes(), self.gaps()
        tags = {node: self.reader.tags()[handle].identity for handle, node in numbers(self.reader.tags()).items()}
        produced, lost, foreign = 0, 0, seen.strange
        undeclared = []
        for node in sorted(set(range(self.server.nodes)) - set(without)):
            found = seen.values.get(node, Counter())
            first = min(found, default=1)
            produced += last[node] - first + 1
            foreign += sum(value > last[node] or value < 0 for value in found)
            for value in range(first, last[node] + 1):
                if value not in found:
                    lost += 1
                    when = self._written(writes, node, value)
                    if not any(_declares(gap, tags.get(node, ""), when) for gap in gaps):
                        undeclared.append((node, value, when))
        duplicates = sum(copies - 1 for copies in seen.rows.values())
        return Verdict(produced, lost, undeclared, duplicates, _overlaps(seen.spans), foreign, gaps)

    def _written(self, writes: list[tuple[int, float]], node: int, value: int) -> float:
        """Return the unix time at which a value had been written."""
        number = (value - 1) * self.server.nodes + node
        return writes[bisect.bisect_right(writes, number, key=lambda w: w[0])][1]

    def bucket(self) -> tuple[Report, Counter[Row]]:
        """Verify the log and return what it holds."""
        assert self.store is not None
        settings = S3Settings(
            bucket=self.store.bucket, endpoint=self.store.endpoint, access_key=self.store.access_key,
            secret_key=self.store.secret_key,
        )  # fmt: skip
        found: Counter[Row] = Counter()

        def visit(_header: object, batch: Batch, table: TagTable) -> None:
            found.update(key for _, key in rows(batch, numbers(table)))

        return verify_store(S3Store.open(settings), Layout("live", self.group), visit=visit), found


def _declares(gap: Gap, tag: str, when: float) -> bool:
    """Tell whether a gap, as it stands, admits the loss of a sample of a tag written at a unix time."""
    if gap.closed_by not in (None, Closure.LOST) or (gap.tags is not None and tag not in gap.tags):
        return False
    start, end = _unix(gap.start), math.inf if gap.end is None else _unix(gap.end)
    return start - BEFORE_S <= when <= end + AFTER_S


def _unix(ticks: int) -> float:
    return (ticks - UNIX_EPOCH_TICKS) / 1e7


def _overlaps(spans: list[tuple[str, str, str, int, int]]) -> int:
    """Count chunks that begin before an earlier one of the same key ends; history may."""
    count = 0
    ends: dict[tuple[str, str, str], int] = {}
    for stream, timeline, origin, start, end in spans:
        if "/history/" in origin:
            continue
        count += start < ends.get((stream, timeline, origin), start)
        ends[stream, timeline, origin] = end
    return count
