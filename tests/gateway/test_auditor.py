"""The audit of a running source: a mismatch is declared once, and what is merely late is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway import audit
from gateway.io import attempts, auditor
from gateway.server import Refused
from mirror.coverage import Reason
from tests.gateway.publish_bytes import data_change, double, item, publish
from tests.gateway.runners import Line, T, World, in_loop, never, plant


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "READ_EVERY_S_MIN", 0.02)
    monkeypatch.setattr(auditor, "GRACE_S", 0.02)
    monkeypatch.setattr(attempts, "BACKOFF_S", (0.01,))


class Told:
    """Publishes one message with a value for each tag, then whatever a test puts in."""

    def __init__(self) -> None:
        self.more: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent = 0

    def put(self, values: dict[int, float], subscription: int = 1) -> None:
        self.sent += 1
        rows = [data_change([item(handle, double(value)) for handle, value in values.items()])]
        at = T + self.sent * 1_000_000
        self.more.put_nowait(
            publish(rows, sequence=self.sent, subscription=subscription, available=(self.sent,), publish_ticks=at)
        )

    async def __call__(self, _line: Line, _acks: Sequence[tuple[int, int]]) -> bytes:
        return await self.more.get()


@in_loop
async def test_devices_that_say_what_the_mirror_holds_are_left_in_peace(tmp_path: Path) -> None:
    told = Told()
    told.put({0: 1.0, 1: 2.0, 2: 3.0})
    world = World(told, devices={0: 1.0, 1: 2.0, 2: 3.0})
    async with plant(world, tmp_path, audit_s=0.05) as running:
        await running.until(lambda: running.runner.auditor.counts.turns >= 2)
        assert running.gaps() == [] and world.subscriptions == 1
        assert running.runner.auditor.counts.mismatches == 0


@in_loop
async def test_a_tag_that_the_server_leaves_out_is_declared_and_subscribed_anew_once(tmp_path: Path) -> None:
    told = Told()
    told.put({0: 1.0, 1: 2.0, 2: 3.0})
    world = World(told, devices={0: 1.0, 1: 99.0, 2: 3.0})
    async with plant(world, tmp_path, audit_s=0.05) as running:
        await running.until(lambda: world.subscriptions == 2)
        found = [gap for gap in running.gaps() if gap.reason == Reason.MISMATCH]
        assert len(found) == 1
        known = running.ingest.before.get(found[0].id)  # gone where it is closed already
        assert known is None or known.ticks[1] > 0, "a historian has to reach what was known of it"
        assert found[0].closed_by is not None or known is not None
        assert found[0].tags is not None and [t.rpartition("=")[2] for t in found[0].tags] == ["1"]
        turns = running.runner.auditor.counts.turns
        await running.until(lambda: running.runner.auditor.counts.turns >= turns + 2)
        assert world.subscriptions == 2, "an odd node does not cost the others their subscription again and again"


@in_loop
async def test_a_value_that_comes_within_the_grace_is_no_mismatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditor, "GRACE_S", 0.5)
    told = Told()
    told.put({0: 1.0, 1: 2.0, 2: 3.0})
    world = World(told, devices={0: 1.0, 1: 2.0, 2: 3.0})
    async with plant(world, tmp_path, audit_s=0.02) as running:
        await running.until(lambda: running.ingest.counters.samples == 3)
        world.devices[1] = 5.0
        reads = world.reads
        await running.until(lambda: world.reads > reads)
        told.put({1: 5.0})
        await running.until(lambda: running.ingest.counters.samples == 4)
        turns = running.runner.auditor.counts.turns
        await running.until(lambda: running.runner.auditor.counts.turns >= turns + 2)
        assert running.gaps() == [] and world.subscriptions == 1


@in_loop
async def test_a_subscription_that_never_delivered_a_value_is_found(tmp_path: Path) -> None:
    told = Told()
    told.put({0: 1.0, 2: 3.0})
    world = World(told, devices={0: 1.0, 1: 2.0, 2: 3.0})
    async with plant(world, tmp_path, audit_s=0.05) as running:
        await running.until(lambda: world.subscriptions == 2)
        assert running.runner.auditor.counts.mismatches >= 1


@in_loop
async def test_a_server_that_refuses_to_be_read_is_mirrored_all_the_same(tmp_path: Path) -> None:
    told = Told()
    told.put({0: 1.0, 1: 2.0, 2: 3.0})
    world = World(told, refuse_read=Refused("Read", 0x80100000))
    async with plant(world, tmp_path, audit_s=0.05) as running:
        await running.until(lambda: running.runner.auditor.counts.refused >= 3)
        told.put({0: 4.0})
        await running.until(lambda: running.ingest.counters.samples == 4)
        assert running.runner.status.connected and world.subscriptions == 1


@in_loop
async def test_no_period_audits_nothing(tmp_path: Path) -> None:
    world = World(never)
    async with plant(world, tmp_path, audit_s=0.0) as running:
        await running.until(lambda: world.publishing > 0)
        assert (world.reads, world.resumes) == (0, 0) and running.runner.status.last_error == ""
