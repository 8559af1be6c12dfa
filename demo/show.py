"""What the demo shows while it runs: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.io.reader import JournalReader
from mirror.batch import SOURCE_NULL
from mirror.schema import sql_values
from mirror.status import status_name
from mirror.ticks import from_unix_s

ROWS, ROWS_MIN, ROWS_BESIDE = 24, 4, 9  # tags shown; at least; lines of a terminal that other things take
LINE_S = 5.0
COLOURS = ("green", "yellow", "red", "red")  # by the two highest bits of a StatusCode


class Screen:
    """Writes to standard error, so that standard output holds the result alone."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._said = 0.0

    def say(self, text: str) -> None:
        """Write one line."""
        self._console.print(text, highlight=False, markup=False)

    def hints(self, commands: Sequence[str]) -> None:
        """Write what can be tried in another terminal meanwhile."""
        self.say("\nto try in another terminal meanwhile:")
        for command in commands:
            self._console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
        self.say("")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(
        self, reader: JournalReader, metrics: Mapping[str, float], messages: int, values: int, left_s: float
    ) -> None:
        """Show how things are."""
        summary = _summary(metrics, messages, values, left_s)
        if self._live is not None:
            rows = max(ROWS_MIN, min(ROWS, self._console.height - ROWS_BESIDE))
            self._live.update(_table(reader, summary, rows), refresh=True)
        elif time.monotonic() - self._said > LINE_S:
            self._said = time.monotonic()
            self.say(summary)


def _summary(metrics: Mapping[str, float], messages: int, values: int, left_s: float) -> str:
    def n(name: str) -> str:
        return f"{metrics.get(f'edgemirror_{name}', 0):,.0f}"

    return (
        f"{n('samples_total')} samples journaled | {n('backlog_samples')} not pushed yet | "
        f"{n('sync_segments_total')} segments, {n('sync_bytes_total')} bytes to and from S3 | "
        f"MQTT: {messages:,} messages, {values:,} values | {n('gaps_total')} gaps | {left_s:.0f} s left"
    )


def _table(reader: JournalReader, summary: str, lines: int) -> Table:
    table = Table(title=summary, title_justify="left", title_style="bold", expand=True)  # what is cropped is below
    for name, share in (("tag", 4), ("value", 4), ("quality", 2), ("age", 1)):
        table.add_column(name, ratio=share, no_wrap=True, overflow="ellipsis")
    tags, structures, state = reader.tags(), reader.structures(), reader.state()
    rows = state.batch(_chosen(state.handles, state.status, lines))
    now = from_unix_s(time.time())
    times = np.where(rows.flags & SOURCE_NULL, rows.server_ticks, rows.source_ticks).tolist()
    values = sql_values(rows, lambda handle: structures.get(tags[handle].source, {}))
    for handle, at, status, value in zip(rows.handle.tolist(), times, rows.status.tolist(), values, strict=True):
        table.add_row(
            tags[handle].path or tags[handle].node, _text(value),
            f"[{COLOURS[status >> 30]}]{status_name(status)}[/]", _age((now - at) / 10_000_000) if at else "-",
        )  # fmt: skip
    return table


def _chosen(handles: NDArray[np.uint32], status: NDArray[np.uint32], lines: int) -> NDArray[np.uint32]:
    """Return at most so many tags, those that are not Good among them, by handle."""
    doubtful = handles[status[handles] >> np.uint32(30) != 0][: lines // 2]
    good = np.setdiff1d(handles, doubtful)
    step = max(1, -(-len(good) // max(1, lines - len(doubtful))))
    return np.union1d(doubtful, good[::step])


def _text(value: Any) -> str:
    text = "null" if value is None else value.hex() if isinstance(value, bytes) else str(value)
    return text.replace("[", "\\[")


def _age(seconds: float) -> str:
    if abs(seconds) < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:,.0f} h"
