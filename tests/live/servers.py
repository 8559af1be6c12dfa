"""Servers of the live tests: OPC UA counters, a deployed broker, an S3 store, a proxy; all on loopback.

Every server is a context manager on free ports with a folder of its own; it can be stopped, killed,
frozen and started again on the same port. `needs(name)` skips a test whose server cannot be had and says
why; with CI=true the skip becomes a failure (tests/conftest.py). `Weed` and `Broker` stand in
`demo.servers`, which the demo uses too.

A counter server writes number w to node w mod N with value w div N + 1: a lost sample is a missing
integer. `writes()` tells what was written when.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from demo.servers import Broker, NotReady, Process, Server, Weed, free_ports, mqtt_answers, until
from tests.tools import ROOT, Tool, find

__all__ = [
    "AsyncuaServer", "Broker", "Counters", "Mosquitto", "NodeServer", "NotReady", "Process", "Server", "Weed",
    "free_ports", "needs", "until",
]  # fmt: skip

HERE = Path(__file__).parent
ANSWER_S = 30.0


def needs(name: str) -> Tool:
    """Return a tool, or skip the test with the reason why it cannot be had."""
    tool = find(name)
    if tool.path is None:
        pytest.skip(tool.reason)
    return tool


class Mosquitto(Server):
    """A broker as plants deploy it: MQTT 5 and 3.1.1, persistent across restarts.

    Args:
        folder: Where it keeps its database.
        certificate: CA, certificate and key: TLS 1.3 only on the port.
        clients: With a certificate: let in only clients that have one of the same CA, named in it.
    """

    def __init__(
        self, folder: Path, *, certificate: tuple[Path, Path, Path] | None = None, clients: bool = False
    ) -> None:
        super().__init__(folder)
        self.tool = needs("mosquitto")
        self.certificate = certificate
        self.clients = clients

    @property
    def url(self) -> str:
        return f"{'mqtts' if self.certificate else 'mqtt'}://127.0.0.1:{self.port}"

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1", "allow_anonymous true", "persistence true",
            f"persistence_location {self.folder}/", "autosave_on_changes true", "autosave_interval 1",
            "max_queued_messages 0", "max_inflight_messages 0", "log_dest stderr",
        ]  # fmt: skip
        if os.getuid() == 0:
            lines.append("user root")
        if self.certificate is not None:
            ca, certificate, key = self.certificate
            lines += [f"cafile {ca}", f"certfile {certificate}", f"keyfile {key}", "tls_version tlsv1.3"]
            lines += ["require_certificate true", "use_identity_as_username true"] if self.clients else []
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        assert self.tool.path is not None
        return [self.tool.path, "-c", config], self.tool.env

    def is_ready(self) -> bool:
        if self.certificate is not None:
            return _listens(self.port)
        return mqtt_answers(self.port)


class Counters(Server):
    """An OPC UA server with N counter nodes `ns=2;s=c0` ... below `Counters`, in folders of 200.

    Args:
        folder: Where its log of writes, its own log and its keys stand.
        nodes: Number of counters.
        type: Name of a built-in type: Double, Int32, Int64, String, Boolean, ...
        history: Values that the server keeps per node; 0: no history.
        options: Further options of the program, such as `{"max-sessions": 2}` (node-opcua only).
    """

    pipes = True
    namespace = "urn:edgemirror:test:counters"

    def __init__(
        self, folder: Path, *, nodes: int = 10, type: str = "Double", history: int = 0,
        options: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(folder)
        self.nodes = nodes
        self.options = {"nodes": nodes, "type": type, "history": history, **(options or {})}
        self.ready: dict[str, Any] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def program(self) -> tuple[list[str | Path], dict[str, str]]:
        """Return the interpreter and script, and additional environment."""
        raise NotImplementedError

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        start, env = self.program()
        writes = self.writes()
        first = writes[-1][0] if writes else 0
        fixed = {"port": self.port, "log": self.log_path, "folder": self.folder, "first": first}
        arguments = [f"--{name}={value}" for name, value in {**fixed, **self.options}.items()]
        return [*start, *arguments], env

    @property
    def log_path(self) -> Path:
        return self.folder / "writes.log"

    @property
    def endpoint(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The ApplicationUri that the server told when it became ready."""
        assert self.ready is not None
        return str(self.ready["uri"])

    def started(self, process: Process) -> None:
        self.ready = None
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers = answers

        def listen() -> None:
            for line in process.stdout:
                answers.put(json.loads(line))

        threading.Thread(target=listen, name=f"answers of {process.pid}", daemon=True).start()

    def is_ready(self) -> bool:
        try:
            self.ready = self._answers.get_nowait()
        except queue.Empty:
            return False
        return bool(self.ready["event"] == "ready")

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Give a command and return the answer; NotReady if none comes or the command failed."""
        self._tell(do, **arguments)
        try:
            answer = self._answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise NotReady(f"no answer to {do} within {ANSWER_S:g} s") from None
        if answer["event"] == "failed":
            raise NotReady(f"{do} failed: {answer['reason']}")
        return answer

    def run(self, rate_hz: float) -> None:
        """Write every node so many times a second, spread over slices of 20 ms, until `pause`."""
        self.ask("run", rate=rate_hz)

    def pause(self) -> int:
        """Stop writing; return the number of writes done so far."""
        return int(self.ask("pause")["written"])

    def write(self, rounds: int = 1) -> int:
        """Write every node so many times, at once; return the number of writes done so far."""
        return int(self.ask("write", rounds=rounds)["written"])

    def set_status(self, node: int, code: int) -> None:
        """Write a node's present value again with a status."""
        self.ask("status", node=node, code=code)

    def delete(self, node: int) -> None:
        """Take a node away, as a controller's reprogramming would."""
        self.ask("delete", node=node)

    def crash(self) -> None:
        """End at once without closing sessions."""
        self._tell("exit")
        assert self.process is not None
        self.process.popen.wait(ANSWER_S)

    def stop(self) -> None:
        if self.process is not None and self.process.alive:
            self._tell("stop")
            try:
                self.process.popen.wait(ANSWER_S)
            finally:
                super().stop()

    def restart(self) -> Self:
        """Start again on the same port; counters go on where the log ends."""
        return self.start()

    def writes(self) -> list[tuple[int, float]]:
        """Return (writes so far, unix time) after each slice of writes; a torn last line is left out."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_text().split("\n")[:-1]
        return [(int(w), float(t)) for w, t in (line.split() for line in lines)]

    def last(self, node: int) -> int:
        """Return the value of a counter after all writes of the log; 0 before the first."""
        writes = self.writes()
        written = writes[-1][0] if writes else 0
        return (written - node + self.nodes - 1) // self.nodes

    def _tell(self, do: str, **arguments: object) -> None:
        assert self.process is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()


class NodeServer(Counters):
    """Counters on node-opcua: queues, overflow, Transfer and Republish as real devices do them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.tool = needs("node-opcua")

    def program(self) -> tuple[list[str | Path], dict[str, str]]:
        assert self.tool.path is not None
        return [self.tool.path, HERE / "node_server.js"], self.tool.env

    def facts(self) -> dict[str, int]:
        """Return the number of sessions and subscriptions on the server."""
        answer = self.ask("facts")
        return {name: int(answer[name]) for name in ("sessions", "subscriptions")}


class AsyncuaServer(Counters):
    """Counters on asyncua's server: protocol tests only, see `asyncua_server.py`."""

    def program(self) -> tuple[list[str | Path], dict[str, str]]:
        return [sys.executable, HERE / "asyncua_server.py"], {}


class OddServer(Counters):
    """Counters on a server that misbehaves on command, see `odd_server.py`."""

    def program(self) -> tuple[list[str | Path], dict[str, str]]:
        return [sys.executable, "-m", "tests.live.odd_server"], {"PYTHONPATH": str(ROOT)}

    def odd(self, what: str, **how: object) -> None:
        """Begin to misbehave: `mute`, `drop`, `late`, `lie`, `slow`, `retype`; `heal` ends all of it."""
        self.ask(what, **how)

    def restore(self, node: int) -> None:
        """Bring a deleted node back."""
        self.ask("restore", node=node)


def _listens(port: int) -> bool:
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), 1.0):
            return True
    except OSError:
        return False
