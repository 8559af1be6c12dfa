"""The simulated plant: an OPC UA server of three machines that logs every value it writes.

    python -m demo.plant --port 0 --seed 1 --log FILE

prints one JSON line when it is ready, with its endpoint. The log has one JSON line a write, in order,
with exactly what goes on the wire: node, both times in ticks, status, encoding byte and body. It is
written before the value is, so that nothing can be mirrored that is not in the log; `demo.ledger` reads
it. Commands come as JSON lines on stdin: `{"do": "pause"}`, `{"do": "run"}`, `{"do": "stop"}`, each
answered by one line. The end of stdin ends the plant.

What it does not do: sample. A value is sent as it is written, whatever interval a client asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from asyncua import Node, Server, ua
from asyncua.common.structures104 import new_struct, new_struct_field
from asyncua.ua.ua_binary import variant_to_binary

from demo.signals import CYCLE, Signal, plant

NAMESPACE = "urn:edgemirror:demo:plant"
URI = "urn:edgemirror:demo:plant-server"
STALE = timedelta(hours=1)
SLICE_S = 0.01


@dataclass
class Running:
    """A signal in the address space, and what was written to it last."""

    signal: Signal
    node: Node
    n: int = 0
    last: tuple[ua.Variant, int] | None = None
    stamp: datetime = field(default=datetime.min.replace(tzinfo=UTC))


class Plant:
    """The server's variables and the loop that writes them.

    Args:
        server: Initialised, not started.
        seed: All values follow from it.
        log: Where every write is noted.
    """

    def __init__(self, server: Server, seed: int, log: IO[str]) -> None:
        self.server = server
        self.seed = seed
        self.log = log
        self.running: list[Running] = []
        self.written = 0
        self._task: asyncio.Task[None] | None = None
        self._pausing = False
        self._structure: Any = None

    async def build(self) -> None:
        """Add machines, folders and variables with their first values."""
        index = await self.server.register_namespace(NAMESPACE)
        cycle = await self._define(index)
        folders: dict[str, Node] = {"": self.server.nodes.objects}
        for signal in plant():
            parent = folders[""]
            parts = signal.identifier.split("/")
            for depth in range(1, len(parts)):
                path = "/".join(parts[:depth])
                if path not in folders:
                    name = ua.QualifiedName(parts[depth - 1], index)
                    add = parent.add_object if depth == 1 else parent.add_folder
                    folders[path] = await add(ua.NodeId(path, index), name)
                parent = folders[path]
            data_type = cycle if signal.type == ua.VariantType.ExtensionObject else None
            self.running.append(Running(signal, await self._add(parent, signal, index, data_type)))
        for each in self.running:
            await self.write(each)

    async def _define(self, index: int) -> ua.NodeId:
        """Add the data type of the press's cycle, with the definition that lets clients decode it."""
        fields = [
            new_struct_field("Number", ua.VariantType.UInt32), new_struct_field("PeakForce", ua.VariantType.Double),
            new_struct_field("Good", ua.VariantType.Boolean), new_struct_field("Material", ua.VariantType.String),
            new_struct_field("Began", ua.VariantType.DateTime),
            new_struct_field("Force", ua.VariantType.Double, array=True),
        ]  # fmt: skip
        node, _ = await new_struct(self.server, index, CYCLE, fields)
        classes = await self.server.load_data_type_definitions()
        self._structure = classes[CYCLE]
        return node.nodeid

    async def _add(self, parent: Node, signal: Signal, index: int, data_type: ua.NodeId | None) -> Node:
        parts = signal.identifier.split("/")
        node = await parent.add_variable(
            ua.NodeId(signal.identifier, index), ua.QualifiedName(parts[-1], index), self._value(signal, 0),
            datatype=data_type or ua.NodeId(signal.data_type or signal.type.value, 0),
        )  # fmt: skip
        if signal.text:
            text = ua.DataValue(ua.Variant(ua.LocalizedText(signal.text, "en")))
            await node.write_attribute(ua.AttributeIds.Description, text)
        if signal.unit:
            unit = ua.EUInformation(
                DisplayName=ua.LocalizedText(signal.unit), Description=ua.LocalizedText(signal.unit)
            )
            await node.add_property(0, "EngineeringUnits", unit)
        if signal.high > signal.low:
            await node.add_property(0, "EURange", ua.Range(Low=signal.low, High=signal.high))
        return node

    def _value(self, signal: Signal, n: int) -> ua.Variant:
        value = signal.value(self.seed, n)
        if signal.type == ua.VariantType.ExtensionObject:
            return ua.Variant(self._structure(**value.Value), ua.VariantType.ExtensionObject)
        return value

    async def write(self, each: Running) -> None:
        """Write a signal's next value that differs from its last; the server would not report another."""
        while True:
            value, status = self._value(each.signal, each.n), each.signal.status(self.seed, each.n)
            each.n += 1
            if status & 0x80000000:  # a bad value is no value: the server would drop it
                value = ua.Variant(None, ua.VariantType.Null)
            if each.last != (value, status):
                break
        each.last = (value, status)
        data = self._stamped(each, value, status)
        self._note(each, data)
        space = self.server.iserver.aspace
        done = await space.write_attribute_value(each.node.nodeid, ua.AttributeIds.Value, data)
        assert done.is_good(), f"{each.signal.identifier}: {done}"

    def _stamped(self, each: Running, value: ua.Variant, status: int) -> ua.DataValue:
        now = datetime.now(UTC)
        each.stamp = max(each.stamp + timedelta(microseconds=1), now)
        stamps = each.signal.stamps
        source = {"no source": None, "stale": each.stamp - STALE}.get(stamps, each.stamp)
        served = None if stamps == "no server" else now
        # No picoseconds: this server would put them behind the server time, where no client looks for them.
        return ua.DataValue(value, ua.StatusCode(status), SourceTimestamp=source, ServerTimestamp=served)

    def _note(self, each: Running, data: ua.DataValue) -> None:
        assert data.Value is not None and data.StatusCode is not None
        wire = variant_to_binary(data.Value)
        ticks = [
            None if t is None else ua.datetime_to_win_epoch(t) for t in (data.SourceTimestamp, data.ServerTimestamp)
        ]
        line = {
            "node": f"nsu={NAMESPACE};s={each.signal.identifier}", "source_ticks": ticks[0], "server_ticks": ticks[1],
            "source_ps": 0, "status": data.StatusCode.value, "kind": wire[0],
            "body": wire[1:].hex(),
        }  # fmt: skip
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        self.written += 1

    async def run(self) -> None:
        """Write each signal once a period until `obey` says otherwise; what is late is not made up for."""
        loop = asyncio.get_running_loop()
        due = [(loop.time() + each.signal.period_s, i) for i, each in enumerate(self.running)]
        heapq.heapify(due)
        while not self._pausing:
            at, i = due[0]
            if (wait := at - loop.time()) > 0:
                await asyncio.sleep(max(wait, SLICE_S))
                continue
            await self.write(self.running[i])
            heapq.heapreplace(due, (max(at + self.running[i].signal.period_s, loop.time()), i))

    async def obey(self, command: dict[str, Any]) -> None:
        """Carry out `run`, `pause` or `stop`; after the answer to pause nothing more is written."""
        if self._task is not None:  # not cancelled: a write that is noted is also made
            self._pausing = True
            await self._task
            self._task, self._pausing = None, False
        if command["do"] == "run":
            self._task = asyncio.create_task(self.run())


async def serve(port: int, seed: int, log: IO[str], *, paused: bool) -> None:
    """Run the plant until it is told to stop."""
    port = port or _free_port()
    endpoint = f"opc.tcp://127.0.0.1:{port}"
    server = Server()
    await server.init()
    server.set_endpoint(endpoint)
    server.set_server_name("edgemirror demo plant")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.set_application_uri(URI)
    works = Plant(server, seed, log)
    await works.build()

    def answer(event: str, **facts: object) -> None:
        print(json.dumps({"event": event, **facts, "written": works.written}), flush=True)

    async with server:
        if not paused:
            await works.obey({"do": "run"})
        machines = list(dict.fromkeys(signal.machine for signal in plant()))
        answer(
            "ready", endpoint=endpoint, uri=URI, namespace=NAMESPACE, tags=len(works.running), machines=machines,
            pid=os.getpid(),
        )  # fmt: skip
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            await works.obey(command)
            answer("done", do=command["do"])
            if command["do"] == "stop":
                break


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plant as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m demo.plant", description="A simulated plant of three machines.")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--seed", type=int, default=1, help="all values follow from it")
    parser.add_argument("--log", type=Path, required=True, help="gets one line a write; begun anew")
    parser.add_argument("--paused", action="store_true", help="write first values only, until told to run")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    with options.log.open("w") as log:
        asyncio.run(serve(options.port, options.seed, log, paused=options.paused))
    return 0


if __name__ == "__main__":
    sys.exit(main())
