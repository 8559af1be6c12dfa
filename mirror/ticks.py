"""Time as OPC UA counts it: ticks of 100 ns since 1601-01-01 UTC.

Everything inside keeps these integers; they are turned into something readable only at the edges.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

TICKS_PER_S = 10_000_000
UNIX_EPOCH_TICKS = 116_444_736_000_000_000  # 1970-01-01 UTC
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


def from_unix_s(seconds: float) -> int:
    """Return Unix seconds as ticks."""
    return int(seconds * TICKS_PER_S) + UNIX_EPOCH_TICKS


def to_unix_s(ticks: int) -> float:
    """Return ticks as Unix seconds."""
    return (ticks - UNIX_EPOCH_TICKS) / TICKS_PER_S


def clock_text(ticks: int) -> str:
    """Return a time for people, to the second: `2026-01-31 23:59:59 UTC`; its number outside the calendar."""
    try:
        moment = _EPOCH + timedelta(seconds=ticks // TICKS_PER_S)
    except OverflowError:
        return f"tick {ticks}"  # outside the calendar
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
