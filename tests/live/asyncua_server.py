"""Counter nodes on asyncua's server: the same nodes, log and control as `node_server.js`.

For protocol tests: this server sets no Overflow bit, never publishes again after a Transfer and answers
Good to a Republish of nothing, as real servers do not. The end of stdin ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from asyncua import Server, ua
from asyncua.common.node import Node

NAMESPACE = "urn:edgemirror:test:counters"
URI = "urn:edgemirror:test:asyncua-server"
FOLDER = 200
SLICE_S = 0.02


class Counters:
    """The nodes, how often they were written, and what a command does to them."""

    def __init__(self, server: Server, options: argparse.Namespace, log: IO[str]) -> None:
        self.server = server
        self.count: int = options.nodes
        self.kind = ua.VariantType[options.type]
        self.history: int = options.history
        self.shift: int = options.shift
        self.index = 0
        self.written: int = options.first
        self.log = log
        self.nodes: list[Node | None] = []
        self.task: asyncio.Task[None] | None = None
        self.stamp = datetime.min.replace(tzinfo=UTC)

    async def build(self) -> None:
        """Add the variables in folders, since a parent's children are searched one by one."""
        for i in range(self.shift):
            await self.server.register_namespace(f"urn:edgemirror:test:other:{i}")
        self.index = index = await self.server.register_namespace(NAMESPACE)
        top = await self.server.nodes.objects.add_folder(
            ua.NodeId("Counters", index), ua.QualifiedName("Counters", index)
        )
        rounds, rest = divmod(self.written, self.count)
        folder = top
        for i in range(self.count):
            if i % FOLDER == 0:
                name = f"F{i // FOLDER}"
                folder = await top.add_folder(ua.NodeId(name, index), ua.QualifiedName(name, index))
            name = f"c{i}"
            value = self.variant(rounds + (i < rest))
            self.nodes.append(await folder.add_variable(ua.NodeId(name, index), ua.QualifiedName(name, index), value))
        if self.history:
            await self.server.historize_node_data_change(self.nodes, period=None, count=self.history)

    def variant(self, counter: int) -> ua.Variant:
        value: object = counter
        if self.kind in {ua.VariantType.Double, ua.VariantType.Float}:
            value = float(counter)
        elif self.kind == ua.VariantType.String:
            value = str(counter)
        elif self.kind == ua.VariantType.Boolean:
            value = counter % 2 == 1
        return ua.Variant(value, self.kind)

    async def write(self, total: int) -> None:
        good = ua.StatusCode(ua.StatusCodes.Good)
        for w in range(self.written, self.written + total):
            now = self.later() if w == self.written or w % self.count == 0 else self.stamp
            node = self.nodes[w % self.count]
            if node is not None:
                value = ua.DataValue(self.variant(w // self.count + 1), good, SourceTimestamp=now, ServerTimestamp=now)
                await self.server.write_attribute_value(node.nodeid, value)
            self.written = w + 1
        print(self.written, time.time(), file=self.log, flush=True)

    def later(self) -> datetime:
        """Return a source time after all earlier ones, as history and merging need."""
        self.stamp = max(self.stamp + timedelta(microseconds=1), datetime.now(UTC))
        return self.stamp

    async def run(self, rate: float) -> None:
        start, base = time.monotonic(), self.written
        while True:
            await asyncio.sleep(SLICE_S)
            due = base + int((time.monotonic() - start) * rate * self.count) - self.written
            if due > 0:
                await self.write(due)

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command and return what to add to the answer."""
        what = command["do"]
        if what in {"run", "pause", "stop"} and self.task is not None:
            self.task.cancel()
            self.task = None
        if what == "run":
            self.task = asyncio.create_task(self.run(command["rate"]))
        elif what == "write":
            await self.write(command["rounds"] * self.count)
        elif what == "status":
            await self.bend(command["node"], command["code"])
        elif what == "delete":
            await self.server.delete_nodes([self.nodes[command["node"]]])
            self.nodes[command["node"]] = None
        elif what == "restore":
            await self.restore(command["node"])
        elif what == "facts":
            service = self.server.iserver.subscription_service
            return {"sessions": None, "subscriptions": len(service.subscriptions)}
        elif what == "exit":
            os._exit(9)  # as a crash: no session is closed
        elif what not in {"pause", "stop"}:
            raise ValueError(f"no command {what}")
        return {}

    async def restore(self, place: int) -> None:
        """Bring a deleted node back, with the value that it would have by now."""
        name = f"c{place}"
        folder = self.server.get_node(ua.NodeId(f"F{place // FOLDER}", self.index))
        rounds, rest = divmod(self.written, self.count)
        value = self.variant(rounds + (place < rest))
        node = await folder.add_variable(ua.NodeId(name, self.index), ua.QualifiedName(name, self.index), value)
        self.nodes[place] = node

    async def bend(self, place: int, code: int) -> None:
        """Give a node another status and leave its value."""
        node = self.nodes[place]
        assert node is not None
        now = self.later()
        value = (await node.read_data_value(raise_on_bad_status=False)).Value
        await self.server.write_attribute_value(
            node.nodeid, ua.DataValue(value, ua.StatusCode(code), SourceTimestamp=now, ServerTimestamp=now)
        )


async def serve(options: argparse.Namespace, log: IO[str], kind: type[Counters] = Counters) -> None:
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{options.port}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.set_application_uri(URI)
    counters = kind(server, options, log)
    await counters.build()

    def answer(event: str, **facts: object) -> None:
        print(json.dumps({"event": event, **facts, "written": counters.written}), flush=True)

    async with server:
        endpoint = f"opc.tcp://127.0.0.1:{options.port}"
        answer("ready", pid=os.getpid(), namespace=NAMESPACE, uri=URI, endpoint=endpoint)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            try:
                answer("done", **await counters.obey(command))
            except Exception as error:  # the test decides what a failed command means
                answer("failed", reason=repr(error))
            if command["do"] == "stop":
                break


def main(kind: type[Counters] = Counters) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--type", default="Double", help="name of a built-in type")
    parser.add_argument("--first", type=int, default=0, help="writes already done by a predecessor")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shift", type=int, default=0, help="other namespaces that come before the counters'")
    parser.add_argument("--history", type=int, default=0, help="values kept per node; 0: no history")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with options.log.open("a") as log:
        asyncio.run(serve(options, log, kind))


if __name__ == "__main__":
    main()
