"""What is asked for again: until it is there, until it is gone, and never for ever."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from gateway.io import source as source_module
from gateway.io.refetch import ENDED_MAX
from gateway.server import Refused
from mirror.coverage import Reason
from mirror.errors import Corrupt, Unavailable
from tests.gateway.publish_bytes import publish, republish
from tests.gateway.runners import BAD_NOT_AVAILABLE, Line, T, World, again, answers, in_loop, message, no_waiting, plant

BAD_BUSY, BAD_INTERNAL_ERROR, BAD_TOO_LARGE, BAD_SESSION = 0x80EE0000, 0x80020000, 0x80B90000, 0x80250000
CUT = b"\x01\x00\x2b\x03\x00"  # a data change without its body
TOLD = tuple(range(1, 9))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


@in_loop
async def test_a_response_that_can_never_be_read_is_set_aside_declared_and_gone_on_behind(tmp_path: Path) -> None:
    poison = publish([CUT], sequence=2, publish_ticks=T + 2_000_000, subscription=1, available=(2,))
    cut = republish([CUT], sequence=2)

    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            return cut
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    world = World(answers(message(1), poison, *(message(n) for n in range(3, 9))), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 7)
        assert running.values() == [1.0, *map(float, range(3, 9))]
        assert [gap.reason for gap in running.gaps()] == [Reason.MISSED]
        assert world.resumes == 1 and world.republished.count(2) <= 3
        (stream,) = running.runner.streams
        assert running.read(lambda reader: reader.fact(f"quarantine/{stream}/2")) == cut


@in_loop
async def test_a_response_of_which_not_even_the_bytes_are_known_counts_as_lost(tmp_path: Path) -> None:
    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            raise Corrupt("the answer cannot be read")
        return again(number)

    world = World(answers(message(1, available=TOLD), *(message(n, available=TOLD) for n in range(3, 6))), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 4)
        assert [gap.reason for gap in running.gaps()] == [Reason.MISSED]
        assert world.resumes == 0


@pytest.mark.parametrize(
    "failure",
    [Unavailable("the response is larger than allowed"), Refused("Republish", BAD_INTERNAL_ERROR)],
    ids=["the connection breaks", "the server refuses"],
)
@in_loop
async def test_a_message_over_which_every_session_ends_counts_as_lost_after_some(
    tmp_path: Path, failure: Exception
) -> None:
    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            raise failure
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    broken = Unavailable("the response is larger than allowed")
    world = World(answers(message(1), broken, *(message(n) for n in range(3, 9))), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 7)
        assert world.resumes == ENDED_MAX + 1
        assert [gap.reason for gap in running.gaps()] == [Reason.MISSED]


@in_loop
async def test_a_message_that_the_server_calls_too_large_is_lost_at_once(tmp_path: Path) -> None:
    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        raise Refused("Republish", BAD_TOO_LARGE if number == 2 else BAD_NOT_AVAILABLE)

    refused = Refused("Publish", BAD_TOO_LARGE)
    world = World(answers(message(1), refused, *(message(n) for n in range(3, 9))), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 7)
        assert world.resumes == 1 and [gap.reason for gap in running.gaps()] == [Reason.MISSED]


@in_loop
async def test_a_session_that_is_over_says_nothing_of_the_message_that_was_asked_for(tmp_path: Path) -> None:
    tries = itertools.count()

    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 2:
            if next(tries) < 2 * ENDED_MAX:
                raise Refused("Republish", BAD_SESSION)
            return again(2)
        raise Refused("Republish", BAD_NOT_AVAILABLE)

    world = World(answers(message(1), Unavailable("cut"), message(3), message(4)), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 4)
        assert running.values() == [1.0, 2.0, 3.0, 4.0] and running.gaps() == []


@in_loop
async def test_a_busy_server_is_asked_for_a_message_again(tmp_path: Path) -> None:
    tries = itertools.count(1)

    async def told(_line: Line, _subscription: int, number: int) -> bytes:
        if number != 2:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        if next(tries) < 3:
            raise Refused("Republish", BAD_BUSY)
        return again(2)

    world = World(answers(message(1, available=TOLD), *(message(n, available=TOLD) for n in range(3, 6))), told)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 5)
        assert running.gaps() == [] and world.resumes == 0


@in_loop
async def test_a_slow_fetch_after_a_resume_ends_as_long_as_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    monkeypatch.setattr(source_module, "RESUME_S", 0.06)

    async def slowly(_line: Line, _subscription: int, number: int) -> bytes:
        await asyncio.sleep(0.03)
        if number > 10:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        return again(number)

    world = World(answers(message(11)), slowly)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.values() == [1.0, *map(float, range(2, 12))])
        assert world.resumes == 1 and running.gaps() == []


@in_loop
async def test_a_fetch_that_does_not_go_on_ends_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    monkeypatch.setattr(source_module, "RESUME_S", 0.02)
    asked = asyncio.Event()

    async def hangs(_line: Line, _subscription: int, number: int) -> bytes:
        if number == 3 and not asked.is_set():
            asked.set()
            await asyncio.Event().wait()
        if number > 4:
            raise Refused("Republish", BAD_NOT_AVAILABLE)
        return again(number)

    world = World(answers(message(5)), hangs)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.values() == [1.0, 2.0, 3.0, 4.0, 5.0])
        assert world.resumes >= 2 and running.gaps() == []
