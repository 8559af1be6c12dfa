"""The Publish requests at a server, driven through a real source, ingest and journal."""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.decode import read_publish
from gateway.io.journal import Journal
from gateway.io.pump import FROZEN_S, STRANGER_MESSAGES, UNKNOWN_MESSAGES_MAX
from gateway.io.sessions import Held
from gateway.sampler import Subscribed
from gateway.server import Refused
from mirror.coverage import Reason
from tests.gateway.publish_bytes import data_change, double, header, item, notification, publish
from tests.gateway.runners import (
    BAD_NO_SUBSCRIPTION,
    DEADLINE_S,
    Line,
    Plant,
    T,
    World,
    alive,
    answers,
    in_loop,
    message,
    never,
    no_waiting,
    plant,
)

BAD_TOO_MANY, BAD_INTERNAL_ERROR = 0x80780000, 0x80020000
TRANSFERRED, BAD_TIMEOUT = 0x002D0000, 0x800A0000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


class Desk:
    """A server at which requests wait until a test answers them, the oldest first.

    Args:
        most: Requests that it takes; one more and the newest, or the oldest, is refused.
    """

    def __init__(self, most: int = 100, *, oldest: bool = False) -> None:
        self.most, self.oldest = most, oldest
        self.waiting: list[asyncio.Future[bytes]] = []
        self.refusals = 0

    async def __call__(self, _line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        if len(self.waiting) > self.most:
            self.refusals += 1
            refused = self.waiting.pop(0 if self.oldest else -1)
            refused.set_exception(Refused("Publish", BAD_TOO_MANY))
        try:
            return await answer
        finally:
            if answer in self.waiting:
                self.waiting.remove(answer)

    def answer(self, body: bytes) -> None:
        self.waiting.pop(0).set_result(body)


def status_change(code: int, *, sequence: int, subscription: int = 1, rows: Sequence[bytes] = ()) -> bytes:
    """Return a message that tells what has become of the subscription, after some samples."""
    told = [data_change(rows)] if rows else []
    told.append(notification(820, struct.pack("<I", code) + b"\x00"))
    ticks = T + sequence * 1_000_000
    return publish(told, sequence=sequence, publish_ticks=ticks, subscription=subscription, available=(sequence,))


class HeldUp:
    """Keeps the ingest thread from storing anything."""

    def __init__(self, running: Plant) -> None:
        self.go, self.there = threading.Event(), threading.Event()
        running.ingest.call(self._wait)

    def _wait(self, _journal: Journal) -> None:
        self.there.set()
        self.go.wait(DEADLINE_S)


@in_loop
async def test_as_many_requests_wait_at_the_server_as_are_configured(tmp_path: Path) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=4) as running:
        for n in range(1, 10):
            await running.until(lambda: len(desk.waiting) == 4)
            desk.answer(message(n))
        await running.until(lambda: len(desk.waiting) == 4)
    assert world.publishing_max == 4


@in_loop
async def test_nothing_is_asked_while_the_ingest_is_full_and_again_once_it_is_not(tmp_path: Path) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=2, inbox_bytes_max=100) as running:
        desk_is_full = lambda: len(desk.waiting) == 2  # noqa: E731
        await running.until(desk_is_full)
        busy = HeldUp(running)
        await running.until(busy.there.is_set)
        desk.answer(message(1))
        desk.answer(message(2))
        await running.until(lambda: running.ingest.full)
        asked = len(world.acknowledged)
        for _ in range(50):  # whatever the tasks have left to do
            await asyncio.sleep(0)
        assert (len(world.acknowledged), desk.waiting) == (asked, [])
        busy.go.set()
        await running.until(desk_is_full)
        assert running.values() == [1.0, 2.0] and running.gaps() == []


@pytest.mark.parametrize("oldest", [False, True])
@in_loop
async def test_a_server_that_takes_one_request_is_asked_one_at_a_time(tmp_path: Path, oldest: bool) -> None:
    desk = Desk(1, oldest=oldest)
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=3) as running:
        await running.until(lambda: running.runner._pumps.requests == 1)
        for n in range(1, 6):
            await running.until(lambda: len(desk.waiting) == 1)
            desk.answer(message(n))
            await running.until(lambda expected=n: running.ingest.counters.samples == expected)  # type: ignore[misc]
        assert (world.connects, world.resumes, running.gaps()) == (1, 0, [])
        assert desk.refusals <= 4


@in_loop
async def test_a_server_that_takes_fewer_than_before_is_not_asked_in_a_hot_loop(tmp_path: Path) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=2) as running:
        await running.until(lambda: len(desk.waiting) == 2)
        desk.most = 1
        desk.answer(message(1))
        await running.until(lambda: desk.refusals > 0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert desk.refusals <= 2, "one request waits all the while"
        desk.most = 0
        desk.waiting.clear()


@in_loop
async def test_how_many_requests_a_server_takes_is_remembered_for_its_run(tmp_path: Path) -> None:
    desk = Desk(1)
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=3) as running:
        await running.until(lambda: running.runner._pumps.requests == 1)
        before = desk.refusals
        desk.waiting[0].set_exception(Refused("Publish", BAD_INTERNAL_ERROR))
        await running.until(lambda: world.resumes == 1 and len(desk.waiting) == 1)
        desk.answer(message(1))
        await running.until(lambda: running.ingest.counters.samples == 1)
        assert desk.refusals == before
        world.start_ticks, desk.most = 8, 100  # another run of the server
        await running.until(lambda: bool(desk.waiting))
        desk.waiting[0].set_exception(Refused("Publish", BAD_INTERNAL_ERROR))
        await running.until(lambda: len(desk.waiting) == 3)


@in_loop
async def test_a_bad_result_inside_an_ordinary_response_is_a_refusal(tmp_path: Path) -> None:
    bad = publish(None, head=header(829, result=BAD_NO_SUBSCRIPTION), subscription=0, sequence=0, available=None)
    world = World(answers(message(1), bad, message(1, subscription=2)))
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 2)
        assert world.subscriptions == 2 and len(world.acknowledged) <= 4


@in_loop
async def test_a_server_that_refuses_every_publish_is_asked_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    async def refuse(_line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        raise Refused("Publish", BAD_INTERNAL_ERROR)

    def pause_s(_error: Exception, refusals: int) -> float:
        pauses.append(refusals)
        return 0.0

    monkeypatch.setattr("gateway.io.source.pause_s", pause_s)
    async with plant(World(refuse), tmp_path) as running:
        await running.until(lambda: len(pauses) >= 4)
    assert pauses[:4] == [0, 1, 2, 3]


class Clock:
    """A clock that a test sets, and how often it was looked at."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now_s

    async def goes_on(self, running: Plant, seconds: float) -> None:
        """Let time pass in steps so small that the runner sees each of them."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + 0.9 * FROZEN_S)
            await self.seen(running)

    async def seen(self, running: Plant) -> None:
        """Wait until subscriptions have been looked at with the present time."""
        enough = self.looks + 4
        await running.until(lambda: self.looks > enough)


@in_loop
async def test_a_quiet_subscription_is_left_alone_as_long_as_the_revised_keep_alive_allows(tmp_path: Path) -> None:
    clock = Clock()
    world = World(answers(message(1)), revised_ms=1000.0)  # 100 were asked for
    async with plant(world, tmp_path, clock=clock) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
        (asked,) = running.runner.streams.values()
        await clock.goes_on(running, 1.4 * asked.keep_alive_count())
        assert (world.connects, world.resumes, world.subscriptions) == (1, 0, 1)
        await clock.goes_on(running, 0.2 * asked.keep_alive_count() + 1.0)
        await running.until(lambda: world.resumes == 1)


@in_loop
async def test_a_subscription_that_is_quicker_than_asked_is_suspected_sooner(tmp_path: Path) -> None:
    clock = Clock()
    world = World(answers(message(1)), revised_ms=10.0, revised_keep_alive=1)
    async with plant(world, tmp_path, clock=clock) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
        await clock.goes_on(running, 1.2)
        await running.until(lambda: world.resumes == 1)


@in_loop
async def test_a_gateway_that_was_frozen_itself_suspects_nobody(tmp_path: Path) -> None:
    clock = Clock()
    world = World(answers(message(1)), revised_ms=10.0, revised_keep_alive=1)
    async with plant(world, tmp_path, clock=clock) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
        clock.now_s = 60.0
        await clock.seen(running)
        await clock.goes_on(running, 0.9)
        assert (world.connects, world.resumes) == (1, 0)


@in_loop
async def test_a_resumed_subscription_that_never_says_anything_is_given_up(tmp_path: Path) -> None:
    clock = Clock()
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    world = World()
    async with plant(world, tmp_path, clock=clock) as running:
        await running.until(lambda: world.publishing > 0)
        await clock.goes_on(running, 3.0)
        await running.until(lambda: world.deleted == [1])
        assert world.subscriptions == 1


@in_loop
async def test_a_new_session_acknowledges_nothing_before_the_server_has_told_what_it_holds(tmp_path: Path) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: len(desk.waiting) == 1)
        desk.answer(message(1))
        await running.until(lambda: len(desk.waiting) == 1 and running.ingest.counters.samples == 1)
        desk.waiting[0].set_exception(Refused("Publish", BAD_NO_SUBSCRIPTION))
        await running.until(lambda: world.subscriptions == 2 and len(desk.waiting) == 1)
        assert world.acknowledged[-1] == [], "the acknowledgement is of a subscription that is no more"
        desk.answer(message(1, subscription=2))
        await running.until(lambda: running.ingest.counters.samples == 2)
        desk.answer(alive(2, subscription=2, available=(1,)))
        await running.until(lambda: world.acknowledged[-1] == [(2, 1)])


@in_loop
async def test_acknowledgements_of_a_request_that_was_refused_go_with_the_next_one(tmp_path: Path) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: len(desk.waiting) == 1)
        desk.answer(message(1))
        await running.until(lambda: len(desk.waiting) == 1 and running.ingest.counters.samples == 1)
        desk.answer(alive(2, available=(1,)))
        await running.until(lambda: world.acknowledged[-1] == [(1, 1)] and len(desk.waiting) == 1)
        desk.waiting[0].set_exception(Refused("Publish", BAD_TIMEOUT))
        await running.until(lambda: world.acknowledged[-2:] == [[(1, 1)], [(1, 1)]])


@in_loop
async def test_messages_of_a_subscription_that_nobody_knows_yet_wait_for_it_without_being_acknowledged(
    tmp_path: Path,
) -> None:
    desk = Desk()
    world = World(desk)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: len(desk.waiting) == 1)
        for n in (1, 2):
            desk.answer(message(n, subscription=9, available=(1, 2)))
            await running.until(lambda: len(desk.waiting) == 1)
        assert running.values() == [] and not any(world.acknowledged)
        runner = running.runner
        (stream,) = runner.streams
        runner._pumps.subscriptions.clear()
        subscribed = Subscribed(9, 7, resumed=False, reason=Reason.DISCONNECTED)
        runner._take_up(stream, Held(9, 100.0, 10), subscribed)  # as once a transfer has been noted down
        await running.until(lambda: running.ingest.counters.samples == 2)
        assert running.values() == [1.0, 2.0]
        desk.answer(alive(3, subscription=9, available=(1, 2)))
        await running.until(lambda: any(world.acknowledged))
        assert world.acknowledged[-1] == [(9, 1), (9, 2)]


@in_loop
async def test_what_is_held_of_unknown_subscriptions_is_bounded_and_ends_with_the_session(tmp_path: Path) -> None:
    async with plant(World(), tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
        pumps = running.runner._pumps
        for n in range(1, UNKNOWN_MESSAGES_MAX + 10):
            pumps._take(read_publish(message(n, subscription=1000 + n)))
        assert len(pumps._unknown) == UNKNOWN_MESSAGES_MAX
        assert pumps._unknown[0].sequence == 10, "the oldest ones have gone"
        pumps.begin(7)
        assert (len(pumps._unknown), pumps._unknown_bytes) == (0, 0)


@in_loop
async def test_a_subscription_that_goes_on_sending_and_that_nobody_will_know_is_deleted(tmp_path: Path) -> None:
    numbers = itertools.count(1)

    async def answer(line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        await asyncio.sleep(0)
        if 77 in line.world.deleted:
            return bytes(await never())
        return message(next(numbers), subscription=77)

    world = World(answer)
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: world.deleted == [77])
        assert next(numbers) >= STRANGER_MESSAGES and world.subscriptions == 1
        assert running.values() == [] and not any(world.acknowledged)
        assert (world.connects, world.resumes) == (1, 0)


@in_loop
async def test_a_subscription_that_another_client_has_taken_over_is_left_to_it(tmp_path: Path) -> None:
    taken = status_change(TRANSFERRED, sequence=2)
    world = World(answers(message(1), taken, message(1, subscription=2)))
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 2)
        assert world.deleted == [], "it is somebody else's now"
        assert [gap.reason for gap in running.gaps()] == [Reason.DISCONNECTED]
        saved = await running.saved()
        assert saved is not None and [held.id for held in saved.streams.values()] == [2]
        assert saved.dead == []


@in_loop
async def test_who_loses_every_subscription_to_another_client_makes_new_ones_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    def pause_s(_error: Exception, refusals: int) -> float:
        pauses.append(refusals)
        return 0.0

    async def take(line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        return status_change(TRANSFERRED, sequence=1, subscription=line.world.subscriptions)

    monkeypatch.setattr("gateway.io.source.pause_s", pause_s)
    async with plant(World(take), tmp_path, publish_requests=1) as running:
        await running.until(lambda: len(pauses) >= 4)
    assert pauses[:4] == [0, 1, 2, 3]


@in_loop
async def test_samples_beside_the_news_that_the_subscription_has_ended_are_stored(tmp_path: Path) -> None:
    last = status_change(BAD_TIMEOUT, sequence=2, rows=[item(0, double(2.0))])
    world = World(answers(message(1), last, message(1, subscription=2)))
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: running.ingest.counters.samples == 3)
        assert running.values() == [1.0, 2.0, 1.0]
        assert world.deleted == [1] and world.subscriptions == 2
