"""The load generator: an OPC UA server whose publish bodies come from numpy.

    python -m tests.bench.load_server --port 0 --nodes 10000 --mode doubles

An asyncua server carries the sessions; the subscription's publish cycle is replaced. Once all nodes are
monitored, every node's first value is sent; from then on writes go round the nodes at the rate asked for.
A write in `doubles` is a counter of its node plus noise below 1 in all bits of the mantissa, so that a lost
sample is a missing integer; with `noise` off it is the bare counter. In `mixed` values, statuses and stale
stamps are those of `tests.bench.mix`, over and over. A source stamp is the moment of the write, somewhere in
the publish interval before the message.

A publish cycle that finds no Publish request waiting counts as `late`, and its writes wait for the next
request, as in a server's queues; after QUEUE cycles the oldest are thrown away and count as `dropped`.
Rate 0 after `run` means saturating: every Publish request is answered at once with all nodes.

Commands come as JSON lines on stdin, each answered by one line: `run` with `rate` (changes a second) and
`noise`, `pause`, `facts`, `stop`. What it does not do: sample, keep queues per item, or read and write values.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import resource
import struct
import sys
import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from asyncua import Node, Server, ua
from asyncua.common.utils import Buffer
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.monitored_item_service import MonitoredItemData, MonitoredItemService
from asyncua.ua.ua_binary import struct_from_binary
from numpy.typing import NDArray

from mirror.batch import ARRAY, Batch, Kind
from tests.bench.mix import DAY_TICKS, MACHINE_TAGS, START_TICKS, mix, signals

NAMESPACE = "urn:edgemirror:bench"
URI = "urn:edgemirror:bench:load"
FOLDER_NODES = 250  # of one device
PATTERNS = 16
PATTERN_TICKS = 1_000_000
QUEUE = 10
KEPT = 100  # messages kept for Republish
UNIX_EPOCH_TICKS = 116_444_736_000_000_000

_ITEM = np.dtype(
    [("handle", "<u4"), ("mask", "u1"), ("kind", "u1"), ("value", "<f8"), ("source", "<i8"), ("server", "<i8")]
)


def ticks() -> int:
    """Return the present time."""
    return time.time_ns() // 100 + UNIX_EPOCH_TICKS


class Stamps:
    """When the writes of one turn of all nodes happen within their interval.

    Attributes:
        offset: int64[n], from the interval's start, of PATTERN_TICKS.
        lag: int64[n], server time less the time of the write.
        stale: int64[n], what the source's clock is behind: 0 or a day.
    """

    def __init__(self, batch: Batch, turn: int) -> None:
        start = START_TICKS + turn * PATTERN_TICKS
        self.stale = (batch.source_ticks < START_TICKS) * DAY_TICKS
        self.offset = batch.source_ticks + self.stale - start
        self.lag = batch.server_ticks - start - self.offset


class Slice(NamedTuple):
    """Writes of one publish cycle, numbered over all nodes: the nodes are written in turn."""

    first: int
    count: int
    start_ticks: int
    width_ticks: int

    def moments(self, place: NDArray[np.int64], offset: NDArray[np.int64], nodes: int) -> NDArray[np.int64]:
        """Return when the writes at these places of the slice happened; those of one node in rising order."""
        part = self.width_ticks // -(-self.count // nodes)
        return self.start_ticks + place // nodes * part + offset * part // PATTERN_TICKS


class Doubles:
    """Items of one shape, filled by columns."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._noise = np.random.default_rng(1).random((PATTERNS, nodes))
        self._stamps = [Stamps(batch, k) for k, batch in enumerate(mix(nodes, PATTERNS))]

    def items(self, handles: NDArray[np.uint32], part: Slice, *, noise: bool) -> bytes:
        """Return the slice's items, end to end."""
        place = np.arange(part.count)
        node, turn = (part.first + place) % self.nodes, (part.first + place) // self.nodes + 1
        stamps = self._stamps[part.first // self.nodes % PATTERNS]
        data = np.empty(part.count, _ITEM)
        data["handle"], data["mask"], data["kind"] = handles[node], 0x0D, Kind.DOUBLE
        data["value"] = turn + self._noise[turn % PATTERNS, node] if noise else turn
        moments = part.moments(place, stamps.offset[node], self.nodes)
        data["source"], data["server"] = moments, moments + stamps.lag[node]
        return data.tobytes()


class Mixed:
    """Items of all kinds: bytes made beforehand, with stamps and handles filled in."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._turns = [_Turn(batch, k) for k, batch in enumerate(mix(nodes, PATTERNS))]

    def items(self, handles: NDArray[np.uint32], part: Slice, *, noise: bool) -> bytes:
        """Return the slice's items, end to end; noise cannot be taken out."""
        del noise
        pieces: list[bytes] = []
        done = 0
        while done < part.count:  # one piece for each turn of the nodes
            turn, node = divmod(part.first + done, self.nodes)
            n = min(part.count - done, self.nodes - node)
            pieces.append(self._turns[turn % PATTERNS].piece(handles, node, n, part, done))
            done += n
        return b"".join(pieces)


class _Turn:
    """The items of all nodes once, as on the wire, with empty places for handles and stamps."""

    def __init__(self, batch: Batch, turn: int) -> None:
        self._stamps, self._nodes = Stamps(batch, turn), len(batch)
        items = []
        for row, (kind, status) in enumerate(zip(batch.kind.tolist(), batch.status.tolist(), strict=True)):
            head = struct.pack("<IBB", 0, 0x0F if status else 0x0D, kind) + batch.value_bytes(row)
            items.append(head + (struct.pack("<I", status) if status else b"") + bytes(16))
        self._ends = np.cumsum([0] + [len(item) for item in items])
        self._data = np.frombuffer(b"".join(items), np.uint8)

    def piece(self, handles: NDArray[np.uint32], first: int, n: int, part: Slice, done: int) -> bytes:
        rows, s = slice(first, first + n), self._stamps
        starts = self._ends[rows] - self._ends[first]
        ends = self._ends[first + 1 : first + n + 1] - self._ends[first]
        data = self._data[self._ends[first] : self._ends[first + n]].copy()
        moments = part.moments(done + np.arange(n), s.offset[rows], self._nodes)
        _put(data, starts, handles[rows].astype("<u4"))
        _put(data, ends - 16, moments - s.stale[rows])
        _put(data, ends - 8, moments + s.lag[rows])
        return data.tobytes()


def _put(data: NDArray[np.uint8], at: NDArray[np.int64], column: NDArray[Any]) -> None:
    width = column.dtype.itemsize
    data[at[:, None] + np.arange(width)] = column.view(np.uint8).reshape(-1, width)


class Load:
    """What all subscriptions are fed from.

    Attributes:
        rate: Changes a second and subscription; 0 is saturating, None pauses.
        index: Node number by identifier.
    """

    def __init__(self, source: Doubles | Mixed, *, keepalive_null: bool) -> None:
        self.source = source
        self.rate: float | None = None
        self.noise = True
        self.keepalive_null = keepalive_null
        self.index: dict[str, int] = {}
        self.feeds: dict[int, Feed] = {}

    def feed(self, subscription: Any) -> Feed:
        """Return what belongs to a subscription."""
        number = subscription.data.SubscriptionId
        if number not in self.feeds:
            self.feeds[number] = Feed(self, subscription)
        return self.feeds[number]

    def facts(self) -> dict[str, Any]:
        """Return what the newest subscription was sent."""
        if not self.feeds:
            return {"written": 0, "sent": 0, "messages": 0, "late": 0, "dropped": 0, "waiting": 0}
        feed = self.feeds[max(self.feeds)]
        return {
            "written": feed.written, "sent": feed.sent, "messages": feed.messages, "late": feed.late,
            "dropped": feed.dropped, "waiting": sum(part.count for part in feed.due),
        }  # fmt: skip


class Feed:
    """The publish cycle of one subscription."""

    def __init__(self, load: Load, subscription: Any) -> None:
        self.load, self.subscription = load, subscription
        self.handles: NDArray[np.uint32] | None = None
        self.due: deque[Slice] = deque()
        self.written = self.sent = self.messages = self.late = self.dropped = 0
        self._sequence = 1
        self._quiet = 0
        self._owed = 0.0
        self._last = ticks()

    def cycle(self, request: Any) -> bool:
        """Publish what is due; tell whether the request at hand was used. None: the interval has passed."""
        tick, given = request is None, request
        if self.subscription.pub_request_callback.__self__._transport.is_closing():
            self._last = ticks()
            return False
        if tick:
            self._write()
        while self.due or (self.load.rate == 0 and self.handles is not None):
            request, given = given or self._waiting(), None
            if request is None:
                self.late += tick and bool(self.due)
                break
            part = self.due.popleft() if self.due else self._slice(self.load.source.nodes)
            self._answer(request, part)
        else:
            self._quiet += tick
            if self._quiet >= self.subscription.data.RevisedMaxKeepAliveCount and (request := self._waiting()):
                self._answer(request, None)
        return not tick and given is None

    def _waiting(self) -> Any:
        return self.subscription.pub_request_callback(self.subscription.data.SubscriptionId)

    def _write(self) -> None:
        """Write what the interval that has passed owes."""
        nodes = self.load.source.nodes
        if self.handles is None:
            items = self.subscription.monitored_item_srv._monitored_items
            if len(items) < nodes:
                return
            self.handles = np.zeros(nodes, np.uint32)
            for item in items.values():
                self.handles[item.node] = item.client_handle
            self.due.append(self._slice(nodes))
        elif self.load.rate:
            self._owed += self.load.rate * (ticks() - self._last) / 1e7
            count = int(self._owed)
            self._owed -= count
            if count:
                self.due.append(self._slice(count))
        else:
            self._last, self._owed = ticks(), 0.0
        while len(self.due) > QUEUE:
            self.dropped += self.due.popleft().count

    def _slice(self, count: int) -> Slice:
        now = ticks()
        part = Slice(self.written, count, self._last, now - self._last)
        self.written += count
        self._last = now
        return part

    def _answer(self, request: Any, part: Slice | None) -> None:
        """Send a message with the slice's items, or a keep-alive."""
        kept = self.subscription._not_acknowledged_results
        if part is None:
            content = struct.pack("<i", -1 if self.load.keepalive_null else 0)
        else:
            assert self.handles is not None
            items = self.load.source.items(self.handles, part, noise=self.load.noise)
            content = struct.pack("<i4sBii", 1, b"\1\0\x2b\3", 1, len(items) + 8, part.count) + items + b"\xff" * 4
        notification = struct.pack("<Iq", self._sequence, ticks()) + content
        if part is not None:
            kept[self._sequence] = notification
            while len(kept) > KEPT:
                del kept[next(iter(kept))]
            self._sequence = 1 if self._sequence == 0xFFFFFFFF else self._sequence + 1
            self.sent += part.count
            self.messages += 1
        self._quiet = 0
        results = [r.value for r in request.results]
        body = b"".join((
            b"\1\0\x3d\3", struct.pack("<qIIBi3x", ticks(), request.requesthdr.RequestHandle, 0, 0, -1),
            struct.pack(f"<Ii{len(kept)}I?", self.subscription.data.SubscriptionId, len(kept), *kept, False),
            notification, struct.pack(f"<i{len(results)}Ii", len(results), *results, -1),
        ))  # fmt: skip
        processor = self.subscription.pub_request_callback.__self__
        processor._transport.write(
            processor._connection.message_to_binary(
                body, message_type=ua.MessageType.SecureMessage, request_id=request.seqhdr.RequestId
            )
        )


def replace_parts_of_asyncua(load: Load) -> None:
    """Let subscriptions publish from the load, and monitored items be mere handles."""

    async def publish_results(self: Any, requestdata: Any = None) -> bool:
        return load.feed(self).cycle(requestdata)

    def republish(self: Any, number: int) -> Any:
        kept = self._not_acknowledged_results.get(number)
        return struct_from_binary(ua.NotificationMessage, Buffer(kept)) if kept else ua.NotificationMessage()

    async def create_monitored_items(self: Any, params: Any) -> list[Any]:
        return [_monitored(self, load.index.get(str(item.ItemToMonitor.NodeId.Identifier)), item)
                for item in params.ItemsToCreate]  # fmt: skip

    InternalSubscription.publish_results = publish_results  # type: ignore[method-assign]
    InternalSubscription.republish = republish  # type: ignore[method-assign]
    MonitoredItemService.create_monitored_items = create_monitored_items  # type: ignore[method-assign]


def _monitored(service: Any, node: int | None, item: Any) -> Any:
    result = ua.MonitoredItemCreateResult()
    if node is None:
        result.StatusCode = ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown)
        return result
    asked = item.RequestedParameters
    service._monitored_item_counter += 1
    held: Any = MonitoredItemData()
    held.monitored_item_id, held.client_handle, held.node = service._monitored_item_counter, asked.ClientHandle, node
    service._monitored_items[held.monitored_item_id] = held
    result.MonitoredItemId, result.RevisedQueueSize = held.monitored_item_id, asked.QueueSize
    return result


async def build(server: Server, nodes: int, mode: str) -> dict[str, int]:
    """Add the nodes, in folders of machines; return their numbers by identifier."""
    index = await server.register_namespace(NAMESPACE)
    plant = signals(nodes)
    numbers: dict[str, int] = {}
    folder = machine = server.nodes.objects

    async def add(parent: Node, name: str) -> Node:
        return await parent.add_folder(ua.NodeId(name, index), ua.QualifiedName(name.rpartition(".")[2], index))

    for number in range(nodes):
        name = folder_name(number)
        if number % FOLDER_NODES == 0:
            folder = await add(server.nodes.objects, name)
        if number % MACHINE_TAGS == 0:  # asyncua looks through all siblings of a new node
            machine = await add(folder, f"{name}.press{number // MACHINE_TAGS:04d}")
        identifier = f"{name}.v{number:06d}"
        kind = Kind(plant[number].kind & 0x3F) if mode == "mixed" else Kind.DOUBLE
        value: Any = {Kind.STRING: "", Kind.BOOLEAN: False, Kind.DOUBLE: 0.0, Kind.FLOAT: 0.0}.get(kind, 0)
        if mode == "mixed" and plant[number].kind & ARRAY:
            value = [0.0]
        await machine.add_variable(
            ua.NodeId(identifier, index), ua.QualifiedName(f"v{number:06d}", index), value, ua.VariantType(int(kind))
        )
        numbers[identifier] = number
    return numbers


def folder_name(number: int) -> str:
    """Return the name of the folder that holds the node."""
    return f"m{number // FOLDER_NODES:04d}"


async def commands(load: Load) -> None:
    """Obey the lines of stdin until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        if order["do"] == "run":
            load.rate, load.noise = float(order["rate"]), bool(order.get("noise", True))
            for feed in load.feeds.values():
                feed.late = feed.dropped = 0
                feed._last = ticks()
                if load.rate == 0:  # requests that wait now are answered by the next cycle
                    feed._owed = 0.0
        elif order["do"] == "pause":
            load.rate = None
        used = resource.getrusage(resource.RUSAGE_SELF)
        say({"event": order["do"], "cpu_s": used.ru_utime + used.ru_stime, **load.facts()})
        if order["do"] == "stop":
            return


def say(facts: dict[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(facts), flush=True)


async def main(options: argparse.Namespace) -> None:
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    source = Doubles(options.nodes) if options.mode == "doubles" else Mixed(options.nodes)
    load = Load(source, keepalive_null=options.keepalive == "null")
    replace_parts_of_asyncua(load)
    server = Server()
    await server.init()
    await server.set_application_uri(URI)
    endpoint = f"opc.tcp://127.0.0.1:{options.port}"
    server.set_endpoint(endpoint)
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    load.index = await build(server, options.nodes, options.mode)
    gc.freeze()  # the nodes are many and stay: looking through them again and again would be the server's load
    async with server:
        say({"event": "ready", "endpoint": endpoint, "uri": URI})
        await commands(load)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--mode", choices=("doubles", "mixed"), default="doubles")
    parser.add_argument("--keepalive", choices=("empty", "null"), default="empty")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(main(parse()))
