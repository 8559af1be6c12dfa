"""Server kind by fault: what each cost, measured, as the table of docs/guarantees.md.

    python -m tests.live.matrix [--server node-opcua --fault restart]

Every cell is a gateway of its own beside a real server: the fault is made, live samples are waited for, and the
journal is compared with what the server wrote. The last line is one JSON object; the exit code is 1 if a sample
is lost that no gap row tells of, save where the stream says of itself that it cannot know (`overflow_detectable`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mirror.coverage import Closure
from tests.live.gateways import Rig, Verdict
from tests.live.proxy import Proxy
from tests.live.servers import AsyncuaServer, Counters, NodeServer

NODES = 20
RATE_HZ = 10.0
SESSION_S = 10.0  # the shortest that may be set; servers look at it every few seconds
LONGER_S = 2.5 * SESSION_S
HISTORY = 10_000
CLOSED_S = 20.0


@dataclass(frozen=True)
class Kind:
    """A server and what it can do.

    Attributes:
        server: Its class.
        keeps_history: Whether its historian is on, and used.
        tells_overflow: Whether it sets the Overflow bit.
        can: In words.
    """

    server: type[Counters]
    keeps_history: bool
    tells_overflow: bool
    can: str


KINDS = {
    "node-opcua": Kind(NodeServer, False, True, "class S, resume, Transfer"),
    "node-opcua, history": Kind(NodeServer, True, True, "class S, resume, Transfer, history"),
    "asyncua": Kind(AsyncuaServer, False, False, "class S, resume"),
    "asyncua, history": Kind(AsyncuaServer, True, False, "class S, resume, history"),
}


@dataclass(frozen=True)
class Fault:
    """What is done to a rig, and its length.

    Attributes:
        name: For people.
        make: Makes it and heals it; returns when it was healed.
        settings: Of the gateway.
        overflows: Whether a queue runs over on purpose.
    """

    name: str
    make: Callable[[Rig, Proxy], float]
    settings: dict[str, object]
    overflows: bool = False


def _kill(seconds: float) -> Callable[[Rig, Proxy], float]:
    def make(rig: Rig, _way: Proxy) -> float:
        rig.kill()
        time.sleep(seconds)
        healed = time.monotonic()
        rig.start()
        return healed

    return make


def _cut(seconds: float) -> Callable[[Rig, Proxy], float]:
    def make(_rig: Rig, way: Proxy) -> float:
        way.cut()
        time.sleep(seconds)
        way.heal()
        return time.monotonic()

    return make


def _stall(_rig: Rig, way: Proxy) -> float:
    way.stall()
    time.sleep(4.0)
    way.flow()
    return time.monotonic()


def _crash(rig: Rig, _way: Proxy) -> float:
    rig.server.crash()
    time.sleep(1.5)
    rig.server.restart()
    rig.server.run(RATE_HZ)
    return time.monotonic()


def _freeze(rig: Rig, _way: Proxy) -> float:
    assert rig.process is not None
    rig.process.freeze()
    time.sleep(3.0)
    rig.process.thaw()
    return time.monotonic()


FAULTS = {
    "kill": Fault("gateway killed, back after 1 s", _kill(1.0), {}),
    "down": Fault(f"gateway away for {LONGER_S:g} s, the session for {SESSION_S:g}", _kill(LONGER_S),
                  {"session_timeout_s": 10}),
    "cut": Fault("connection reset and refused for 2 s", _cut(2.0), {}),
    "stall": Fault("nothing moves for 4 s", _stall, {}),
    "away": Fault(f"connection away for {LONGER_S:g} s, the session for {SESSION_S:g}", _cut(LONGER_S),
                  {"session_timeout_s": 10}),
    "restart": Fault("server killed, back after 1.5 s", _crash, {}),
    "overflow": Fault("gateway frozen for 3 s, queues of 10", _freeze, {"queue_size": 10}, overflows=True),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What one fault cost at one kind of server.

    Attributes:
        verdict: The count.
        fresh_s: From the end of the fault, or the start of the process, to live samples of every node.
        marked: Whether the stream says that it cannot know of overflows.
    """

    verdict: Verdict
    fresh_s: float
    marked: bool

    def text(self) -> str:
        """Return the cell of the table."""
        lost, undeclared = self.verdict.lost / NODES, len(self.verdict.undeclared) / NODES
        filled = sum(gap.closed_by is Closure.HISTORY for gap in self.verdict.gaps)
        what = "0 lost" if not lost else f"{lost:.1f} lost of each node"
        if lost:
            what += ", declared" if not undeclared else f", **{undeclared:.1f} undeclared**"
        if undeclared and self.marked:
            what += " (marked)"
        return f"{what}{', filled' if filled else ''}; {self.fresh_s:.1f} s"


def measure(kind: Kind, fault: Fault, folder: Path) -> Cell:
    """Make one fault at one server."""
    history = HISTORY if kind.keeps_history else 0
    with ExitStack() as stack:
        server = stack.enter_context(kind.server(folder / "server", nodes=NODES, history=history))
        way = stack.enter_context(Proxy(server.port))
        settings = {"history": str(kind.keeps_history).lower(), **fault.settings}
        rig = stack.enter_context(Rig(folder / "rig", server, server_port=way.port, **settings))  # type: ignore[arg-type]
        rig.live()
        server.run(RATE_HZ)
        rig.grown(10)
        healed = fault.make(rig, way)
        now = rig.now()
        rig.until(lambda: rig.has({node: value + 1 for node, value in now.items()}), "live samples")
        fresh_s = time.monotonic() - healed
        rig.grown(10)
        rig.settle()
        rig.until(lambda: all(gap.closed_by for gap in rig.gaps()), "every gap closed", CLOSED_S)
        marked = fault.overflows and not kind.tells_overflow
        return Cell(rig.verdict(), fresh_s, marked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.live.matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=KINDS, action="append")
    parser.add_argument("--fault", choices=FAULTS, action="append")
    options = parser.parse_args(arguments)
    kinds, faults = options.server or list(KINDS), options.fault or list(FAULTS)
    print("| Fault | " + " | ".join(f"{name} ({KINDS[name].can})" for name in kinds) + " |")
    print("|---|" + "---|" * len(kinds), flush=True)
    silent = lost = 0
    for fault in faults:
        row = []
        for name in kinds:
            with tempfile.TemporaryDirectory(prefix="edgemirror-matrix-") as folder:
                cell = measure(KINDS[name], FAULTS[fault], Path(folder))
            row.append(cell.text())
            lost += cell.verdict.lost
            silent += 0 if cell.marked else len(cell.verdict.undeclared)
        print(f"| {FAULTS[fault].name} | " + " | ".join(row) + " |", flush=True)
    print(json.dumps({"cells": len(kinds) * len(faults), "lost": lost, "undeclared": silent}))
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
