"""Tags that a server will not monitor: Bad and durable at once, told after a restart, asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gateway.io import refusals
from gateway.server import Refused
from mirror.batch import NO_VALUE
from mirror.errors import Unavailable
from tests.gateway.runners import (
    BAD_NODE_ID_UNKNOWN,
    TAGS,
    Line,
    Plant,
    World,
    alive,
    answers,
    in_loop,
    message,
    no_waiting,
    plant,
)

BAD_NOT_READABLE = 0x803A0000
NO_SESSION = Refused("resume", 0x80250000)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    no_waiting(monkeypatch)


def bad(running: Plant) -> dict[int, int]:
    """Return the status of each row without a value, by handle."""
    rows = running.rows()
    told = np.flatnonzero(rows.flags & NO_VALUE)
    return dict(zip(rows.handle[told].tolist(), rows.status[told].tolist(), strict=True))


@in_loop
async def test_a_refused_tag_is_bad_in_the_journal_although_no_message_follows(tmp_path: Path) -> None:
    world = World(answers(alive(1)), refused={2: BAD_NODE_ID_UNKNOWN})
    async with plant(world, tmp_path) as running:
        await running.until(lambda: bad(running) == {2: BAD_NODE_ID_UNKNOWN})
        assert running.runner.status.refused == {"P/2": "0x80340000"}
        assert running.gaps() == []


@in_loop
async def test_a_refused_tag_of_a_stream_that_has_been_heard_before_is_bad_at_once(tmp_path: Path) -> None:
    world = World(answers(message(1), Unavailable("cut")))
    async with plant(world, tmp_path, publish_requests=1) as running:
        await running.until(lambda: world.resumes == 1)
    world = World(refused={2: BAD_NODE_ID_UNKNOWN}, refuse_resume=NO_SESSION)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: bad(running) == {2: BAD_NODE_ID_UNKNOWN})


@in_loop
async def test_what_was_refused_is_told_after_a_restart_and_said_again_only_where_the_state_lacks_it(
    tmp_path: Path,
) -> None:
    world = World(refused={2: BAD_NODE_ID_UNKNOWN})  # never says anything, so that no row has a time yet
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
    for _ in range(3):
        world = World(answers(alive(1)))
        async with plant(world, tmp_path) as running:
            await running.until(lambda: running.runner.status.connected)
            assert (world.resumes, world.subscriptions) == (1, 0)
            assert running.runner.status.refused == {"P/2": "0x80340000"}
            (stream,) = running.runner.streams
            assert running.runner._monitored(stream) == {0, 1}
            await running.until(lambda: bad(running) == {2: BAD_NODE_ID_UNKNOWN})
    assert world.resumes == 1
    async with plant(World(), tmp_path) as running:
        assert len(running.rows()) == 1


@in_loop
async def test_a_tag_that_was_refused_is_asked_for_again_and_then_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "AGAIN_S", 0.01)
    monkeypatch.setattr(refusals, "AGAIN_S_MAX", 0.01)
    world = World(answers(message(1)), refused={1: BAD_NODE_ID_UNKNOWN, 2: BAD_NODE_ID_UNKNOWN}, revised_queue=5)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: len(world.monitored) >= 2)
        assert world.monitored[0] == [1, 2] and world.subscriptions == 1
        world.refused, world.revised_queue = {2: BAD_NOT_READABLE}, 1
        await running.until(lambda: running.runner.status.refused == {"P/2": "0x803A0000"})
        assert bad(running) == {1: BAD_NODE_ID_UNKNOWN, 2: BAD_NOT_READABLE}
        saved = await running.saved()
        assert saved is not None and [held.refused for held in saved.streams.values()] == [{2: BAD_NOT_READABLE}]
        (stream,) = running.read(lambda reader: reader.streams())
        assert (stream.revised_queue_size, stream.overflow_detectable) == (1, False), "the new one's queue is smaller"
        before = len(world.monitored)
        await running.until(lambda: len(world.monitored) > before)
        assert world.monitored[-1] == [2] and (world.connects, world.resumes) == (1, 0)


@in_loop
async def test_a_server_that_will_not_be_asked_again_goes_on_being_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "AGAIN_S", 0.01)
    tries: list[int] = []

    async def refuse(_line: Line, _subscription: int, items: Sequence[object]) -> None:
        tries.append(len(items))
        raise NO_SESSION

    monkeypatch.setattr(Line, "monitor", refuse)
    world = World(answers(message(1)), refused={2: BAD_NODE_ID_UNKNOWN})
    async with plant(world, tmp_path) as running:
        await running.until(lambda: len(tries) >= 2)
        assert (world.connects, world.resumes) == (1, 0) and running.runner.status.refused == {"P/2": "0x80340000"}


@in_loop
async def test_tags_that_have_vanished_are_bad_before_their_absence_is_remembered(tmp_path: Path) -> None:
    async with plant(World(answers(message(1))), tmp_path) as running:
        await running.until(lambda: running.ingest.counters.samples == 1)
    world = World(tags=TAGS[:2])  # says nothing
    async with plant(world, tmp_path) as running:
        await running.until(lambda: bad(running) == {2: BAD_NODE_ID_UNKNOWN})
        await running.until(lambda: running.runner.handles == {0, 1} and world.subscriptions == 1)
        assert running.runner.status.refused == {}
    world = World(tags=TAGS[:2], refuse_resume=NO_SESSION)
    async with plant(world, tmp_path) as running:
        await running.until(lambda: running.runner.status.connected)
        await running.until(lambda: running.unclaimed() == 0)  # although nothing more comes of their stream
