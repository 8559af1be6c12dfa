"""What every bench is made of: the load server, the gateway as its own process, and a look at its cost.

Costs are read from outside: CPU time and memory of the gateway's process tree from /proc, rows from its
journal's file. Whatever is started here ends with the bench, and everything is on loopback.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from demo.servers import Broker, Process, Server, Weed
from gateway.io.reader import JournalReader
from mirror import chunk
from mirror.batch import Kind
from mirror.coverage import Promise
from tests.bench.load_server import FOLDER_NODES, NAMESPACE, folder_name
from tests.live.servers import Mosquitto
from tests.tools import ROOT, find

ANSWER_S = 30.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
KIB_PER_MIB = 1024

CONFIG = """\
[group]
name = "bench"
[replica]
name = "a"
data_dir = "{data}"
[http]
listen = "127.0.0.1:0"
[[source]]
name = "load"
endpoint = "{endpoint}"
security = "none"
"""
DEVICE = """\
[[source.device]]
name = "{name}"
browse = ["nsu={namespace};s={name}/**"]
publishing_ms = {publishing_ms}
"""
SYNC = """\
[sync]
bucket = "s3://{bucket}/bench"
endpoint = "{endpoint}"
access_key_file = "{folder}/access.key"
secret_key_file = "{folder}/secret.key"
"""
MQTT = """\
[mqtt]
url = "{url}"
"""


class LoadServer(Server):
    """`tests.bench.load_server` as a process.

    Args:
        folder: Gets its log.
        nodes: Number of nodes.
        mode: `doubles` or `mixed`.
        keepalive: What a keep-alive carries: `empty` or `null`.
    """

    pipes = True

    def __init__(self, folder: Path, *, nodes: int, mode: str = "doubles", keepalive: str = "empty") -> None:
        super().__init__(folder)
        self.nodes, self.mode = nodes, mode
        self._more = [f"--keepalive={keepalive}"]
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def endpoint(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}"

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        program: list[str | Path] = [sys.executable, "-m", "tests.bench.load_server"]
        options = [f"--port={self.port}", f"--nodes={self.nodes}", f"--mode={self.mode}"]
        return [*program, *options, *self._more], {"PYTHONPATH": str(ROOT)}

    def started(self, process: Process) -> None:
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers = answers

        def listen() -> None:
            for line in process.stdout:
                answers.put(json.loads(line))

        threading.Thread(target=listen, name=f"answers of {process.pid}", daemon=True).start()

    def is_ready(self) -> bool:
        return not self._answers.empty() and self._answers.get()["event"] == "ready"

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Give a command and return what the server says of its newest subscription."""
        assert self.process is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._answers.get(timeout=ANSWER_S)


class Gateway:
    """`edgemirror run` on the load server's nodes.

    Args:
        folder: Gets configuration, journal and log; what stands there is used again.
        server: To mirror.
        publishing_ms: Publishing interval asked for.
        store: Pushed to, if given.
        broker: Published to, if given.
    """

    def __init__(
        self, folder: Path, server: LoadServer, *, publishing_ms: float, store: Weed | None = None,
        broker: Broker | Mosquitto | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.journal = folder, folder / "data" / "mirror.db"
        self.config = folder / "gateway.toml"
        names = [folder_name(first) for first in range(0, server.nodes, FOLDER_NODES)]
        text = CONFIG.format(data=folder / "data", endpoint=server.endpoint)
        text += "".join(DEVICE.format(name=n, namespace=NAMESPACE, publishing_ms=publishing_ms) for n in names)
        if store is not None:
            for name, secret in (("access.key", store.access_key), ("secret.key", store.secret_key)):
                (folder / name).touch(mode=0o600)
                (folder / name).write_text(secret)
            text += SYNC.format(bucket=store.bucket, endpoint=store.endpoint, folder=folder)
        if broker is not None:
            text += MQTT.format(url=broker.url)
        self.config.write_text(text)
        self.process: Process | None = None
        self._reader: JournalReader | None = None

    def start(self) -> Self:
        """Start it; returns at once."""
        command = [sys.executable, "-m", "gateway", "run", "--config", self.config]
        self.process = Process(command, self.folder, "gateway", {"PYTHONPATH": str(ROOT)})
        return self

    def stop(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self.process is not None:
            self.process.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def told(self, event: str) -> dict[str, Any]:
        """Return the newest event of this name; KeyError if there was none."""
        lines = (self.folder / "gateway.log").read_text().splitlines()
        events = {facts.get("event"): facts for line in lines if line[:1] == "{" and (facts := json.loads(line))}
        return dict(events[event])

    def rows(self) -> int:
        """Return the samples in the journal; 0 while there is none."""
        try:
            if self._reader is None:
                self._reader = JournalReader.open(self.journal)
            return self._reader.backlog(Promise()).rows
        except Exception:  # not there yet, or being made at this moment
            return 0

    def mirrored(self, rows: int, timeout_s: float = 60.0) -> None:
        """Wait until the journal holds so many samples; NotReady if it never does."""
        assert self.process is not None
        self.process.ready(lambda: self.rows() >= rows, timeout_s)

    def usage(self) -> Usage:
        """Return the present cost of the process tree."""
        assert self.process is not None
        return usage(self.process.pid)


@dataclass(frozen=True)
class Usage:
    """What a process tree has used.

    Attributes:
        at_s: When, monotonic.
        cpu_s: User and system time, of ended children too.
        pss_mib: Memory now, shared pages by share.
    """

    at_s: float
    cpu_s: float
    pss_mib: float


def usage(pid: int) -> Usage:
    """Return what the tree below a process has used."""
    cpu = pss = 0.0
    waiting = [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            cpu += sum(map(int, fields[11:15])) * TICK_S
            rollup = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
            pss += int(rollup["Pss"].split()[0]) / KIB_PER_MIB
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Usage(time.monotonic(), cpu, pss)


@dataclass(frozen=True)
class Held:
    """What a journal holds.

    Attributes:
        rows: Samples.
        lost: Written samples that it lacks.
        repeated: Samples that it has more than once, or out of order.
        chunk_bytes: Bytes of all chunks.
    """

    rows: int
    lost: int
    repeated: int
    chunk_bytes: int


def audit(journal: Path, written: int, nodes: int) -> Held:
    """Compare a journal with what the load server wrote: each node's counter, or at least each node's count.

    Args:
        journal: The file.
        written: Writes of the server: node w mod nodes for w below `written`.
        nodes: Nodes of the server.
    """
    reader = JournalReader.open(journal)
    try:
        tags = reader.tags()
        node = np.array([int(tags[h].identifier.rpartition(".v")[2]) for h in range(len(tags))])
        count, last = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
        rows = size = lost = repeated = seq = 0
        while found := reader.chunks_since(seq, 200):
            for row in found:
                seq, rows, size = row.seq, rows + row.n, size + len(row.body)
                batch = chunk.decode(row.body)
                where = node[batch.handle]
                count += np.bincount(where, minlength=nodes)
                if (batch.kind == Kind.DOUBLE).all():
                    gaps, steps = _steps(where, batch.bits.view(np.float64).astype(np.int64), last)
                    lost, repeated = lost + gaps, repeated + steps
    finally:
        reader.close()
    wanted = (written - np.arange(nodes) + nodes - 1) // nodes
    lost = max(lost, int(np.maximum(wanted - count, 0).sum()))
    repeated = max(repeated, int(np.maximum(count - wanted, 0).sum()))
    return Held(rows, lost, repeated, size)


def _steps(node: NDArray[np.int64], value: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[int, int]:
    """Return the integers left out and those repeated, and move `last` on."""
    order = np.argsort(node, kind="stable")
    node, value = node[order], value[order]
    first = np.append(True, node[1:] != node[:-1])
    before = np.where(first, last[node], np.roll(value, 1))
    step = value - before
    last[node] = value  # of equal indices the last one stays
    return int((step[step > 1] - 1).sum()), int(np.count_nonzero(step < 1))


def broker(folder: Path) -> Broker | Mosquitto:
    """Return a broker as plants have it, or else the embedded one."""
    return Mosquitto(folder) if find("mosquitto").path else Broker(folder)


def finish(figures: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(figures), flush=True)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows of cells as text, columns side by side."""
    cells = [[_cell(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value)
