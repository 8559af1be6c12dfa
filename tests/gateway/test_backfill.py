"""Filling gaps: what a historian sends becomes rows and a closing, within limits."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from gateway.io import backfill
from gateway.io.backfill import Backfiller
from gateway.io.opcua import Connection
from gateway.io.reader import JournalReader
from gateway.plan import Item, Plan
from mirror.batch import Batch, Heap, Kind
from mirror.coverage import Closure, Gap, Grade, Reason, StreamSpec
from mirror.tags import Tag
from tests.gateway.test_ingest import STREAM, WAIT_S, Rig, T

TAGS = [Tag("urn:plc", "urn:ns", f"s={n}") for n in range(2)]


class Plant(Plan):
    """A plan under the name of the rig's stream."""

    @property
    def id(self) -> str:
        return STREAM


class Historian:
    """Sends pages of Strings; stands where the connection to a server stands."""

    def __init__(self, pages: int, size_bytes: int) -> None:
        self.pages, self.size_bytes, self.sent = pages, size_bytes, 0

    async def has_history(self, tags: Sequence[tuple[int, Tag]]) -> list[int]:
        return [handle for handle, _ in tags]

    async def history(self, tags: Any, start: int, end: int, failed: dict[int, int]) -> AsyncIterator[Batch]:
        for page in range(self.pages):
            self.sent += 1
            batch = Batch.zeros(10)
            batch.kind[:] = Kind.STRING
            batch.source_ticks[:] = start + page * 10 + np.arange(10)
            batch.bits[:] = np.arange(10)
            yield replace(batch, heap=Heap.of([struct.pack("<i", self.size_bytes) + b"x" * self.size_bytes] * 10))


def fill(rig: Rig, historian: Historian) -> Gap:
    gap = Gap.opened(STREAM, "1-1", T, Reason.DISCONNECTED, end=T + 10_000_000)
    rig.ingest.call(lambda journal: journal.open_gap(gap)).result(WAIT_S)
    plan = Plant(100.0, tuple(Item(tag, 100.0, 10) for tag in TAGS), StreamSpec("urn:plc", 100.0, ()))
    filler = Backfiller(rig.ingest, rig.path, enabled=True, on_rows=lambda rows: None)
    asyncio.run(filler._fill(cast(Connection, historian), plan, gap))
    reader = JournalReader.open(rig.path)
    try:
        [closed] = reader.gaps()
        held = {claim.origin: claim.grade for claim in reader.coverage()}
        assert set(held) == {f"a/history/{gap.id}"}
        assert (held[f"a/history/{gap.id}"] is Grade.HISTORY) == (closed.closed_by is Closure.HISTORY)
    finally:
        reader.close()
    return closed


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_gap_is_filled_with_what_the_historian_has(rig: Rig) -> None:
    assert fill(rig, Historian(3, 20)).closed_by is Closure.HISTORY
    assert len(rig.rows()) == 30


@pytest.mark.parametrize("limit", ["ROWS_MAX", "HEAP_BYTES_MAX"])
def test_a_history_beyond_any_segment_is_kept_in_part_and_never_called_complete(
    rig: Rig, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a gap shares one publish time, so all of it stands in one segment."""
    monkeypatch.setattr(backfill, limit, {"ROWS_MAX": 25, "HEAP_BYTES_MAX": 2_500}[limit])
    historian = Historian(1_000, 100)
    assert fill(rig, historian).closed_by is Closure.LOST
    assert historian.sent == 3 and len(rig.rows()) == 30
