"""What the demo shows: the counters on every terminal, and no more tags than fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from demo.show import Screen
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror.batch import Batch
from mirror.tags import Tag

T = 134_000_000_000_000_000


@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_counters_are_in_every_frame_however_low_the_terminal(tmp_path: Path, height: int) -> None:
    journal = Journal.open(tmp_path / "mirror.db", replica="a")
    rows = Batch.zeros(60)
    rows.handle[:] = range(60)
    rows.kind[:], rows.source_ticks[:], rows.status[:30] = 8, T, 0x80310000
    with journal.transaction():
        journal.add_tags([Tag("urn:s", "urn:n", f"s={n}", path=f"Press/{n}") for n in range(60)])
        journal.append("s1", "1-1", T, T + 100, "a", rows)
        journal.flush_state()
    journal.close()
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=True, width=100, height=height))
    reader = JournalReader.open(tmp_path / "mirror.db")
    with screen:
        screen.show(reader, {"edgemirror_samples_total": 1234.0}, 5, 6, 7.0)
        frame = out.getvalue()
    reader.close()
    assert "1,234" in frame and "Press/" in frame
    assert frame.count("\n") < height
