"""A source's runner against servers that behave as some do: limits of one, refusals, poison, other answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Device
from gateway.io import attempts, datadir
from gateway.io import source as source_module
from gateway.io.journal import Journal
from gateway.server import Refused
from mirror.coverage import Reason
from mirror.errors import Unavailable
from mirror.tags import Tag
from tests.gateway.publish_bytes import data_change, double, header, item, publish, republish
from tests.gateway.runners import URI, Line, T, World, kept, message, never, plant

BAD_TOO_MANY, BAD_NO_SUBSCRIPTION, BAD_NOT_AVAILABLE, BAD_BUSY = 0x80780000, 0x80790000, 0x807B0000, 0x80EE0000
CUT = b"\x01\x00\x2b\x03\x00"  # a data change without its body

Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts nobody has to wait here."""
    monkeypatch.setattr(attempts, "AWAY_S", 0.01)
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))
    monkeypatch.setattr(source_module, "REPUBLISH_AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(source_module, "REFUSED_S", 0.005)


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


@in_loop
async def test_a_revised_interval_decides_what_silence_is(tmp_path: Path) -> None:
    world = World(answers(message(1)), revised_ms=100_000.0)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.ingest.counters.chunks == 1)
        (stream,) = running.runner.streams
        asked = running.runner.streams[stream]
        assert running.runner._silence_s[stream] > 100 * asked.keep_alive_count(), "not 100 ms: the server said 100 s"
    world = World(answers(message(1)), revised_keep_alive=1, revised_ms=10.0)
    async with plant(world, tmp_path / "quick") as running:
        await running.until(lambda: bool(running.runner.streams) and world.subscriptions == 1)
        await running.until(lambda: bool(running.runner._silence_s))
        assert max(running.runner._silence_s.values()) < 1.1


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


def test_a_key_that_a_kill_left_empty_is_made_again_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "session.key").touch(mode=0o600)
    assert len(datadir.key(tmp_path, make=True)) == datadir.KEY_BYTES
    (tmp_path / "session.key").unlink()

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datadir.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            datadir.key(tmp_path, make=True)
    assert not (tmp_path / "session.key").exists()
    assert len(datadir.key(tmp_path, make=True)) == datadir.KEY_BYTES


@in_loop
async def test_a_message_that_can_never_be_read_is_declared_and_the_next_ones_are_stored(tmp_path: Path) -> None:
    poison = publish([CUT], sequence=2, publish_ticks=T + 2_000_000, subscription=1, available=(2,))

    async def again(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            return republish([CUT], sequence=2)
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    world = World(answers(message(1), poison, *(message(n) for n in range(3, 9))), again)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 7)
        assert [gap.reason for gap in running.gaps()] == [Reason.MISSED]
        assert world.resumes == 1 and world.republished.count(2) <= 3


@in_loop
async def test_a_message_that_ends_every_connection_counts_as_lost_after_some(tmp_path: Path) -> None:
    async def again(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            raise Unavailable("the response is larger than allowed")
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    cut = Unavailable("the response is larger than allowed")
    world = World(answers(message(1), cut, *(message(n) for n in range(3, 9))), again)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 7)
        assert world.republished.count(2) == source_module.DEADLY_MAX
        assert [gap.reason for gap in running.gaps()] == [Reason.MISSED]


@in_loop
async def test_a_server_that_takes_one_publish_request_is_asked_one_at_a_time(tmp_path: Path) -> None:
    waiting: list[asyncio.Future[bytes]] = []
    numbers = itertools.count(1)

    async def one(_line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        if waiting:
            raise Refused("Publish", BAD_TOO_MANY)
        waiting.append(asyncio.get_running_loop().create_future())
        try:
            return await waiting[0]
        finally:
            waiting.clear()

    world = World(one)
    async with plant(world, tmp_path, publish_requests=3) as running:
        for count in range(1, 6):
            await running.until(lambda: bool(waiting))
            waiting[0].set_result(message(next(numbers)))
            await running.until(lambda expected=count: running.ingest.counters.samples == expected)  # type: ignore[misc]
        assert running.runner._pumps == 1
        assert (world.connects, world.resumes) == (1, 0)


@in_loop
async def test_as_many_requests_wait_at_the_server_as_are_configured(tmp_path: Path) -> None:
    world = World()
    async with plant(world, tmp_path, publish_requests=4) as running:
        await running.until(lambda: world.publishing == 4)
    assert world.publishing_max == 4


@in_loop
async def test_nothing_is_asked_while_there_is_no_room_and_again_as_soon_as_there_is(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def held(_line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        await release.wait()
        return await never()

    world = World(held)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: world.publishing == 1)
        running.ingest.stalled_since = 1.0  # as after a refusal of the disk
        running.runner.room()
        before = len(world.acknowledged)
        running.runner._pumps = 1
        assert not running.runner._room.is_set()
        running.ingest.stalled_since = None
        running.runner.room()
        assert running.runner._room.is_set() and len(world.acknowledged) == before
        release.set()


@in_loop
async def test_a_bad_result_inside_an_ordinary_response_is_a_refusal(tmp_path: Path) -> None:
    bad = publish(None, head=header(829, result=BAD_NO_SUBSCRIPTION), subscription=0, sequence=0, available=None)
    world = World(answers(message(1), bad, message(1, subscription=2)))
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: world.subscriptions == 2)
        assert len(world.acknowledged) <= 4


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
async def test_a_new_session_acknowledges_nothing_before_the_server_has_told_what_it_holds(tmp_path: Path) -> None:
    gone = Refused("Publish", BAD_NO_SUBSCRIPTION)
    released = asyncio.Event()
    first = answers(message(1))

    async def answer(line: Line, acks: Sequence[tuple[int, int]]) -> bytes:
        world = line.world
        if len(world.acknowledged) == 1:
            return bytes(await first(line, acks))
        if not released.is_set():
            await released.wait()
            raise gone
        return bytes(await never())

    world = World(answer)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
        released.set()
        await running.until(lambda: world.subscriptions == 2 and len(world.acknowledged) >= 3)
        after = world.acknowledged[2:]
        assert all(pair[0] != 1 for pairs in after for pair in pairs), world.acknowledged


@in_loop
async def test_a_busy_server_is_asked_for_a_message_again(tmp_path: Path) -> None:
    tries = itertools.count(1)

    async def again(_line: Line, _subscription: int, number: int) -> bytes:
        if number != 2:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        if next(tries) < 3:
            raise Refused("Republish", BAD_BUSY)
        return republish_of(2)

    told = tuple(range(1, 9))
    world = World(answers(message(1, available=told), *(message(n, available=told) for n in range(3, 6))), again)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 5)
        assert running.gaps() == []


def republish_of(n: int) -> bytes:
    """Return the answer to a Republish that `message(n)` belongs to."""
    body = [data_change([item(0, double(n))])]
    return republish(body, sequence=n)


@in_loop
async def test_a_tag_of_two_devices_belongs_to_the_first_at_every_browse(tmp_path: Path) -> None:
    devices = [Device(name="one", browse=["i=85/**"]), Device(name="two", browse=["i=85/**"])]
    world = World(answers(message(1)))
    async with plant(world, tmp_path, device=devices) as running:
        await running.until(lambda: running.runner.status.connected)
        model = running.runner._models.known
        assert model is not None and [len(tags) for tags in model.tags.values()] == [3, 0]


@in_loop
async def test_a_server_under_two_names_is_mirrored_once(tmp_path: Path) -> None:
    world = World(answers(message(1)))
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
        (stream,) = running.runner.streams
        assert running.ingest.owned(stream, "another") == "s"


@in_loop
async def test_a_second_source_of_the_same_server_says_which_is_the_first(tmp_path: Path) -> None:
    world = World()
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
        (stream,) = running.runner.streams
    world = World()
    async with plant(world, tmp_path) as running:
        running.ingest.owned(stream, "first")
        await running.until(lambda: "'first' and 's' are the same server" in running.runner.status.last_error)
        assert not running.runner.status.connected


@in_loop
async def test_a_transferred_subscription_is_fetched_and_goes_on(tmp_path: Path) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)

    async def again(_line: Line, _subscription: int, number: int) -> bytes:
        if number in (2, 3):
            return republish_of(number)
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    refused = Refused("resume", 0x80250000)
    world = World(answers(message(4)), again, transferred={1: (2, 3)}, refuse_resume=refused)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 3)
        assert running.runner.status.how == "transferred" and world.republished[:2] == [2, 3]
        assert running.gaps() == [] and world.subscriptions == 0


@in_loop
async def test_a_message_of_a_subscription_that_is_not_ours_is_neither_stored_nor_acknowledged(tmp_path: Path) -> None:
    numbers = itertools.count(1)

    async def answer(_line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        await asyncio.sleep(0.01)
        n = next(numbers)
        return message(9, subscription=77) if n == 1 else message(n - 1, available=tuple(range(1, n)))

    world = World(answer)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: any((1, 1) in pairs for pairs in world.acknowledged))
        assert running.gaps() == []
    assert all(pair[0] == 1 for pairs in world.acknowledged for pair in pairs)


@in_loop
async def test_a_slow_fetch_after_a_resume_ends_as_long_as_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    monkeypatch.setattr(source_module, "RESUME_S", 0.15)

    async def slowly(_line: Line, _subscription: int, number: int) -> bytes:
        await asyncio.sleep(0.05)
        if number > 10:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        return republish_of(number)

    world = World(answers(message(11)), slowly)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 10)
        assert world.resumes == 1


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
