"""What the verbs share towards a terminal: tables, and progress that only a person sees.

Progress goes to standard error, and only when that is a terminal and no JSON was asked for; it leaves no
trace in what is piped or stored.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import unicodedata
from collections.abc import Sequence

from gateway.plain import plain

PROGRESS_S = 0.1  # between two lines of progress


class Progress:
    """One line that is written over itself."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._on = sys.stderr.isatty() and not options.json
        self._width, self._shown_at = 0, 0.0

    def show(self, text: str, *, now: bool = False) -> None:
        """Show a line instead of the last one; most are left out when they come too fast."""
        moment = time.monotonic()
        if self._on and (now or moment - self._shown_at >= PROGRESS_S):
            line = plain(text, 78)
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width, self._shown_at = len(line), moment

    def done(self) -> None:
        """Wipe the line."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()


def quiet() -> None:
    """Silence asyncua: what matters of it comes as errors."""
    logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)


def table(rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows in columns; the last one is as wide as it likes."""
    if not rows:
        return
    shown = [[plain(cell, 200) for cell in row] for row in rows]
    widths = [max(_width(row[i]) for row in shown if len(row) > i) for i in range(max(map(len, shown)))]
    for row in shown:
        cells = [cell + " " * (widths[i] - _width(cell)) for i, cell in enumerate(row[:-1])] + [row[-1]]
        print(indent + "  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Return the columns that a text takes: East Asian letters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def note(text: str) -> None:
    """Say something beside the result."""
    print(f"edgemirror: {plain(text, 400)}", file=sys.stderr)
