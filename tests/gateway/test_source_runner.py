"""A source's runner against servers that behave as some do: sessions kept and lost, transfers, two names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from gateway.config import Device, parse
from gateway.io import datadir
from gateway.io.journal import Journal
from gateway.io.runtime import Gateway
from gateway.io.source import SourceRunner
from gateway.server import Refused
from mirror.errors import Unavailable
from mirror.tags import Tag
from tests.gateway.runners import (
    BAD_NOT_AVAILABLE,
    DEADLINE_S,
    TAGS,
    URI,
    Line,
    World,
    again,
    answers,
    in_loop,
    kept,
    message,
    no_waiting,
    plant,
)

NO_SESSION = Refused("resume", 0x80250000)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


@in_loop
async def test_a_session_that_cannot_be_decrypted_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
    world = World(answers(message(1)))
    async with plant(world, tmp_path, replica="renamed") as running:
        await running.until(lambda: running.runner.status.connected)
        assert (world.connects, world.resumes) == (1, 0)
    (tmp_path / "data" / "session.key").unlink()
    world = World(answers(message(1)))
    async with plant(world, tmp_path, replica="renamed") as running:
        await running.until(lambda: running.runner.status.connected)
        assert (world.connects, world.resumes) == (1, 0)
    world = World(answers(message(1)))
    async with plant(world, tmp_path, replica="renamed") as running:
        await running.until(lambda: running.runner.status.connected)
        assert (world.connects, world.resumes) == (0, 1), "the new session is one that can be taken up again"


@in_loop
async def test_a_source_delivers_once_there_is_room_for_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datadir.os, "write", full)
        patch.setattr("gateway.io.ingest.RETRY_S", 0.01)
        async with plant(World(answers(message(1))), tmp_path) as running:
            await running.until(lambda: running.ingest.stalled_since is not None)
            patch.undo()
            await running.until(lambda: running.ingest.counters.samples == 1)


@in_loop
async def test_a_session_that_nobody_can_take_up_again_is_closed(tmp_path: Path) -> None:
    world = World(tags=[])
    async with plant(world, tmp_path) as running:
        await running.until(lambda: world.connects >= 3)
    assert kept(world.lines) == 0, "each was closed with its session"
    world = World(answers(message(1)))
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
    assert kept(world.lines) == 1


@in_loop
async def test_a_tag_of_two_devices_belongs_to_the_first_at_every_browse(tmp_path: Path) -> None:
    shared = [Tag(URI, "urn:ns", "s=0", path="P/0", device=name, name="0") for name in ("one", "two")]
    mine = Tag(URI, "urn:ns", "s=1", path="P/1", device="two", name="1")
    devices = [Device(name="one", browse=["i=1/**"]), Device(name="two", browse=["i=2/**"])]

    def browsed(world: World) -> bool:
        return world.browses == len(devices)

    for life in range(3):  # the first one browses, each later one browses again behind its cached model
        world = World(answers(message(1 + life)), tags_of={"one": [shared[0]], "two": [shared[1], mine]})
        async with plant(world, tmp_path, device=devices) as running:
            await running.until(lambda: len(running.runner.handles) == 2 and running.runner.status.connected)
            await running.until(partial(browsed, world))
            assert running.ingest.journal.tags[0].device == "one"
            assert running.ingest.journal.tags[1].device == "two"
            assert world.subscriptions == (1 if life == 0 else 0)


CONFIG = """
    [group]
    name = "g"
    [replica]
    name = "a"
    data_dir = "{folder}"
    [http]
    listen = ""
"""
SOURCE = """
    [[source]]
    name = "{name}"
    endpoint = "opc.tcp://{host}:4840"
    security = "none"
    history = false
    audit_s = 0.0
    [[source.device]]
    name = "{name}"
    browse = ["i=85/**"]
"""


@in_loop
async def test_the_same_server_under_two_names_is_mirrored_by_the_first_source_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = asyncio.Event()

    async def answer(line: Line, acks: Sequence[tuple[int, int]]) -> bytes:
        """Send the next message once the last one is acknowledged; break once."""
        if acks:
            line.world.sent += 1
        if cut.is_set():
            cut.clear()
            raise Unavailable("cut")
        await asyncio.sleep(0.001)
        return message(line.world.sent, subscription=1, available=(line.world.sent,))

    world = World(answer, sent=1)
    monkeypatch.setattr(SourceRunner, "_connection", lambda _self: Line(world))
    text = CONFIG.format(folder=tmp_path) + SOURCE.format(name="plc", host="192.0.2.7")
    gateway = Gateway(parse(text + SOURCE.format(name="again", host="plc7")))
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        async with asyncio.timeout(DEADLINE_S):
            live = [False, False]
            while not any(live) or not any("are the same server" in s.status.last_error for s in gateway.sources):
                await asyncio.sleep(0.005)
                live = [s.status.connected for s in gateway.sources]
            assert live.count(True) == 1
            for _ in range(3):  # after each new session, too, what is durable is acknowledged
                enough = world.sent + 5
                while world.sent < enough:
                    await asyncio.sleep(0.005)
                cut.set()
            assert world.subscriptions == 1
        refused = gateway.sources[live.index(False)]
        assert refused.status.last_error.startswith("sources 'plc' and 'again'" if live[0] else "sources 'again'")
        assert not refused.streams and not refused.handles
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@in_loop
async def test_a_transferred_subscription_is_fetched_and_goes_on(tmp_path: Path) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)

    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number in (2, 3):
            return again(number)
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    world = World(answers(message(4)), told, transferred={1: (2, 3)}, refuse_resume=NO_SESSION)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.values() == [1.0, 2.0, 3.0, 4.0])
        assert running.runner.status.how == "transferred" and world.republished == [2, 3]
        assert running.gaps() == [] and world.subscriptions == 0


@in_loop
async def test_a_session_with_transferred_subscriptions_is_kept_whatever_fails_after_the_transfer(
    tmp_path: Path,
) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    more = Tag(URI, "urn:ns", "s=9", path="P/9", device="e", name="9")
    devices = [Device(name="d", browse=["i=85/**"]), Device(name="e", browse=["i=86"], publishing_ms=500)]
    world = World(
        transferred={1: (2,)}, refuse_resume=NO_SESSION, refuse_subscribe=Unavailable("the answer took too long"),
        tags_of={"d": TAGS, "e": [more]},
    )  # fmt: skip
    async with plant(world, tmp_path, device=devices) as running:
        await running.until(lambda: world.connects >= 1 and world.lines[1].kept is not None)
        assert world.lines[1].kept, "closing the session would have deleted the subscription with what it holds"
        saved = await running.saved()
        assert saved is not None and [held.id for held in saved.streams.values()] == [1]


def test_a_product_that_overwrites_without_a_word_is_known(tmp_path: Path) -> None:
    async def detectable(product: str, folder: Path) -> bool:
        async with plant(World(answers(message(1)), product=product), folder) as running:
            await running.until(lambda: running.runner.status.connected)
            (stream,) = running.read(lambda reader: reader.streams())
            return bool(stream.overflow_detectable)

    assert asyncio.run(detectable("node-opcua 2.1", tmp_path / "a"))
    assert not asyncio.run(detectable("FreeOpcUa Python Server 1.0", tmp_path / "b"))


def test_tags_are_found_by_uri_whatever_the_handles_before(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "data" / "mirror.db", replica="a")
    with journal.transaction():
        journal.add_tags([Tag(URI, "urn:other", "s=9", path="X", device="d", name="X")])
    journal.close()

    async def first() -> None:
        async with plant(World(answers(message(1))), tmp_path) as running:
            await running.until(lambda: running.runner.status.connected)
            assert running.runner.handles == {1, 2, 3}

    asyncio.run(first())
