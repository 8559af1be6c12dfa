"""The real runner of a source, its real ingest and journal, and a server that a test writes in a few lines.

A `World` stands for the server: what it has, what it answers, what it was asked. Each connection of the runner
is a `Line` to it, with the methods of `gateway.io.opcua.Connection` that the runner uses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway import canary
from gateway.config import Device, Source
from gateway.io import attempts, pump, refetch
from gateway.io.ingest import Durable, Ingest
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from gateway.io.sessions import Saved
from gateway.io.source import SourceRunner
from gateway.server import Limits, MonitoredItem, Refused, Revised, ServerFacts, Subscription
from mirror import chunk
from mirror.batch import Batch, Kind, concat
from mirror.coverage import Gap, IntervalSet
from mirror.tags import Tag
from tests.gateway.publish_bytes import data_change, double, item, publish, republish

T = 134_000_000_000_000_000
URI = "urn:plc"
TAGS = [Tag(URI, "urn:ns", f"s={i}", path=f"P/{i}", device="d", name=str(i)) for i in range(3)]
DEADLINE_S = 10.0


BAD_NO_SUBSCRIPTION, BAD_NOT_AVAILABLE, BAD_NODE_ID_UNKNOWN = 0x80790000, 0x807B0000, 0x80340000

Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts nobody has to wait."""
    monkeypatch.setattr(attempts, "AWAY_S", 0.01)
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(refetch, "AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(pump, "REFUSED_S", 0.005)
    monkeypatch.setattr(pump, "WATCH_S", 0.005)


def message(n: int, *, subscription: int = 1, available: Sequence[int] | None = ()) -> bytes:
    """Return a PublishResponse with a value of the first tag; value and publish time follow from its number."""
    rows = [data_change([item(0, double(n))])]
    told = (n,) if available == () else available
    return publish(rows, sequence=n, publish_ticks=T + n * 1_000_000, subscription=subscription, available=told)


def alive(n: int, *, subscription: int = 1, available: Sequence[int] | None = None) -> bytes:
    """Return a keep-alive before message `n`."""
    ticks = T + n * 1_000_000
    return publish(None, sequence=n, publish_ticks=ticks, subscription=subscription, available=available)


def again(n: int) -> bytes:
    """Return the answer to a Republish of `message(n)`."""
    rows = [data_change([item(0, double(n))])]
    return republish(rows, sequence=n, publish_ticks=T + n * 1_000_000)


def answers(*bodies: bytes | Exception) -> Callable[..., Any]:
    """Answer one Publish after the other with these, then never again."""
    order: Iterator[bytes | Exception] = iter(bodies)

    async def answer(_line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        body = next(order, None)
        if body is None:
            await never()
        if isinstance(body, Exception):
            raise body
        assert body is not None
        return body

    return answer


async def never(*_: Any) -> Any:
    """Never answer."""
    await asyncio.Event().wait()


@dataclass
class World:
    """A server as a test wants it, and what it was asked.

    Attributes:
        publish: Answers a Publish, given the line and the acknowledgements.
        republish: Answers a Republish, given the line, subscription and number.
        tags_of: By device, what is found below its roots; `tags` for all others.
        refused: By handle, what the server says to monitoring a tag.
        monitored: Handles of tags asked for again in a subscription, call by call.
        transferred: Subscriptions that a Transfer brings, with the numbers available.
        refuse_resume, refuse_subscribe: What resuming a session, or creating a subscription, raises.
        devices: By handle, what a Read says, stamped after everything that was published.
        refuse_read: What a Read raises.
        sent: For the test's own use.
    """

    publish: Callable[..., Any] = never
    republish: Callable[..., Any] | None = None
    tags: list[Tag] = field(default_factory=lambda: list(TAGS))
    tags_of: dict[str, list[Tag]] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)
    monitored: list[list[int]] = field(default_factory=list)
    start_ticks: int = 7
    product: str = "p"
    revised_ms: float | None = None
    revised_keep_alive: int | None = None
    revised_queue: int = 10
    transferred: dict[int, tuple[int, ...]] = field(default_factory=dict)
    refuse_resume: Exception | None = None
    refuse_subscribe: Exception | None = None
    devices: dict[int, float] = field(default_factory=dict)
    refuse_read: Exception | None = None
    reads: int = 0
    browses: int = 0
    sent: int = 0
    connects: int = 0
    resumes: int = 0
    subscriptions: int = 0
    lines: list[Line] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    acknowledged: list[list[tuple[int, int]]] = field(default_factory=list)
    republished: list[int] = field(default_factory=list)
    publishing: int = 0
    publishing_max: int = 0


class Line:
    """A connection to a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.missing: list[str] = []
        self.opened = False
        self.kept: bool | None = None  # whether the session was kept when the line was closed
        self.session_timeout_s = 600.0
        world.lines.append(self)

    async def connect(self) -> None:
        self.opened = True
        self.world.connects += 1

    async def resume(self, _secret: bytes) -> None:
        self.opened = True
        self.world.resumes += 1
        if self.world.refuse_resume is not None:
            raise self.world.refuse_resume

    def session_secret(self) -> bytes:
        return b"secret"

    async def close(self, *, keep_session: bool = False) -> None:
        self.kept = keep_session if self.kept is None else self.kept

    async def server_facts(self) -> ServerFacts:
        world = self.world
        namespaces = ("http://opcfoundation.org/UA/", URI, "urn:ns")
        return ServerFacts(URI, namespaces, world.start_ticks, world.product, Limits())

    async def browse(self, device: str, _roots: Sequence[str], _exclude: Sequence[str]) -> list[Tag]:
        self.world.browses += 1
        return list(self.world.tags_of.get(device, self.world.tags))

    async def structures(self) -> dict[str, Any]:
        return {}

    async def transfer(self, _ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
        return self.world.transferred

    async def delete_subscription(self, subscription: int) -> None:
        self.world.deleted.append(subscription)

    async def subscribe(
        self, publishing_ms: float, items: Sequence[MonitoredItem], *, keep_alive_count: int, lifetime_count: int
    ) -> Subscription:
        world = self.world
        if world.refuse_subscribe is not None:
            raise world.refuse_subscribe
        world.subscriptions += 1
        accepted, refused = self._judged(items)
        return Subscription(
            world.subscriptions, world.revised_ms or publishing_ms, world.revised_keep_alive or keep_alive_count,
            lifetime_count, accepted, refused, T,
        )  # fmt: skip

    async def monitor(
        self, _subscription: int, items: Sequence[MonitoredItem]
    ) -> tuple[dict[int, Revised], dict[int, int], int]:
        if items != [canary.ITEM]:
            self.world.monitored.append([i.handle for i in items])
        return *self._judged(items), T

    def _judged(self, items: Sequence[MonitoredItem]) -> tuple[dict[int, Revised], dict[int, int]]:
        refused = {i.handle: self.world.refused[i.handle] for i in items if i.handle in self.world.refused}
        accepted = {i.handle: Revised(i.handle, i.sampling_ms, self.world.revised_queue) for i in items}
        return {handle: revised for handle, revised in accepted.items() if handle not in refused}, refused

    async def publish(self, acknowledge: Sequence[tuple[int, int]] = ()) -> bytes:
        world = self.world
        world.acknowledged.append(list(acknowledge))
        world.publishing += 1
        world.publishing_max = max(world.publishing_max, world.publishing)
        try:
            answer: bytes = await world.publish(self, acknowledge)
            return answer
        finally:
            world.publishing -= 1

    async def read(self, tags: Sequence[tuple[int, Tag]]) -> Batch:
        self.world.reads += 1
        if self.world.refuse_read is not None:
            raise self.world.refuse_read
        rows = Batch.zeros(len(tags))
        rows.handle[:] = [handle for handle, _ in tags]
        rows.kind[:] = Kind.DOUBLE
        rows.bits[:] = np.array([self.world.devices.get(h, 0.0) for h, _ in tags], np.float64).view(np.uint64)
        rows.source_ticks[:] = rows.server_ticks[:] = T + 1_000_000_000
        return rows

    async def republish(self, subscription: int, number: int) -> bytes:
        self.world.republished.append(number)
        if self.world.republish is None:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        answer: bytes = await self.world.republish(self, subscription, number)
        return answer


class Runner(SourceRunner):
    """A runner whose connections lead to a world."""

    world: World

    def _connection(self) -> Any:
        return Line(self.world)


@dataclass
class Plant:
    """A running source with what stands behind it."""

    path: Path
    ingest: Ingest
    runner: Runner
    task: asyncio.Task[None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; the test fails if it does not, or if the runner has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.005)

    def gaps(self) -> list[Gap]:
        found: list[Gap] = self.read(lambda reader: reader.gaps())
        return found

    def rows(self) -> Batch:
        """Return every row of the journal."""
        return concat([chunk.decode(row.body) for row in self.read(lambda reader: reader.chunks_since(0))])

    def values(self) -> list[float]:
        """Return the values of the first tag, in the order in which they were stored."""
        rows = self.rows()
        found: list[float] = rows.bits[(rows.handle == 0) & (rows.kind == Kind.DOUBLE)].view(np.float64).tolist()
        return found

    def unclaimed(self) -> int:
        """Return how many chunks lie outside all coverage, so that no segment would ever take them."""
        covered: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for c in self.read(lambda reader: reader.coverage()):
            covered.setdefault((c.stream, c.timeline, c.origin), []).append((c.start, c.end))
        chunks = self.read(lambda reader: reader.chunks_since(0))
        spans = {key: IntervalSet(found) for key, found in covered.items()}
        return sum(
            not spans.get((c.stream, c.timeline, c.origin), IntervalSet()).covers(c.pub_from, c.pub_to) for c in chunks
        )

    async def saved(self) -> Saved | None:
        """Return what would be taken up again."""
        return await self.runner._sessions.load()

    @property
    def events(self) -> dict[str, int]:
        """What the machines have counted."""
        return self.ingest.counters.events

    def read(self, what: Callable[[JournalReader], Any]) -> Any:
        """Return something that the journal holds."""
        reader = JournalReader.open(self.path)
        try:
            return what(reader)
        finally:
            reader.close()


@asynccontextmanager
async def plant(
    world: World, folder: Path, *, replica: str = "a", inbox_bytes_max: int = 1 << 20,
    clock: Callable[[], float] = lambda: 0.0, **config: Any,
) -> AsyncIterator[Plant]:  # fmt: skip
    """Run a source against a world until the block ends; what was kept stays in the folder.

    Its clock stands still unless a test gives another one: then no server is ever silent for too long.
    """
    path = folder / "data" / "mirror.db"
    journal = Journal.open(path, replica=replica)
    loop = asyncio.get_running_loop()
    runners: list[Runner] = []

    def durable(found: Durable) -> None:
        for stream, effect in found.effects:
            loop.call_soon_threadsafe(runners[0].durable, stream, effect)

    ingest = Ingest(
        journal, replica=replica, commit_s=0.0, inbox_bytes_max=inbox_bytes_max, on_durable=durable,
        on_room=lambda: loop.call_soon_threadsafe(runners[0].room),
    )  # fmt: skip
    settings = {"name": "s", "endpoint": "opc.tcp://h:1", "security": "none", "history": False, "audit_s": 0.0} | config
    settings.setdefault("device", [Device(name="d", browse=["i=85/**"])])
    runner = Runner(
        Source(**settings), ingest, journal_path=path, password=str, on_tags=lambda: None,
        on_state=lambda _runner, _connected: None, on_history=lambda _rows: None,
        clock=clock,
    )  # fmt: skip
    runner.world = world
    runners.append(runner)
    ingest.start()
    task = asyncio.create_task(runner.run())
    try:
        yield Plant(path, ingest, runner, task)
    finally:
        while not task.done():  # a library on the way may take one cancellation for its own
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
        with contextlib.suppress(asyncio.CancelledError):
            task.result()
        await asyncio.to_thread(ingest.stop)
        journal.close()


def kept(lines: Collection[Line]) -> int:
    """Return how many sessions were left open at the server."""
    return sum(line.kept is True for line in lines)
