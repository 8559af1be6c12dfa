"""Whether a process that runs for long stays as it is: trends of what it holds, and the verdict of a soak.

The slope is Theil and Sen's: the median of the slopes of all pairs of samples, which half of the pairs may
spoil (a burst, a checkpoint) without moving it. Pairs are taken within one life of the process alone, since a
new process begins anew. What is left of noise shrinks with the time looked at, so each limit has two parts: what
may grow per hour, for ever, and what may have come once.

What this module does not do: look at a process, or make faults happen (`tests.live.soak`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WARM_UP_S = (20.0, 300.0)  # threads start in seconds; caches of SQLite, of Arrow and of the heap fill for minutes
WARM_UP_SHARE = 1 / 3  # of a life, within these bounds
LIFE_S_MIN = 60.0  # a shorter life says nothing of a trend
SAMPLES_MAX = 500  # of one life: pairs grow with the square
HOUR_S = 3600.0
LAG_S_MAX = 60.0


class Held(NamedTuple):
    """What a process holds at one moment."""

    at_s: float  # since its start
    rss_mib: float
    handles: float
    disk_mib: float


class Limit(NamedTuple):
    """What may grow without being a leak."""

    per_hour: float
    once: float


#: By field of `Held`. The disk holds what is kept for a fixed time, and a write-ahead log that comes and goes.
LIMITS = {"rss_mib": Limit(2.0, 12.0), "handles": Limit(1.0, 2.0), "disk_mib": Limit(5.0, 16.0)}


def counted(lives: Sequence[Sequence[Held]]) -> list[list[Held]]:
    """Return the lives that are long enough, each without its warm-up."""
    return [[h for h in life if h.at_s >= _warm_up_s(life[-1].at_s)] for life in lives if _is_long(life)]


def _is_long(life: Sequence[Held]) -> bool:
    return bool(life) and life[-1].at_s >= LIFE_S_MIN


def _warm_up_s(life_s: float) -> float:
    return min(max(WARM_UP_S[0], life_s * WARM_UP_SHARE), WARM_UP_S[1])


def slope_per_hour(lives: Sequence[Sequence[Held]], name: str) -> float | None:
    """Return the median slope of a field of `Held` over all pairs of samples of one life; None without any."""
    slopes = []
    for life in lives:
        thinned = life[:: -(-len(life) // SAMPLES_MAX)] if life else []
        at = np.array([h.at_s for h in thinned])
        value = np.array([getattr(h, name) for h in thinned])
        first, second = np.triu_indices(len(thinned), 1)
        slopes.append((value[second] - value[first]) / (at[second] - at[first]))
    every = np.concatenate(slopes) if slopes else np.zeros(0)
    return float(np.median(every)) * HOUR_S if len(every) else None


def judge(lives: Sequence[Sequence[Held]], *, undeclared: int, lag_max_s: float) -> tuple[dict[str, Any], list[str]]:
    """Return the slopes, and why the soak failed; no reason means that it passed.

    Args:
        lives: Of the gateway, oldest first, each sample in order.
        undeclared: Samples that are lost and that no gap tells of.
        lag_max_s: Longest time from the end of a fault until what was written after it was durable.
    """
    long = counted(lives)
    hours = sum(life[-1].at_s - life[0].at_s for life in long) / HOUR_S
    slopes = {name: slope_per_hour(long, name) for name in LIMITS}
    reasons = []
    if undeclared:
        reasons.append(f"{undeclared} lost samples are not in the gap ledger")
    if lag_max_s > LAG_S_MAX:
        reasons.append(f"{lag_max_s:.0f} s after a fault until samples came again; {LAG_S_MAX:.0f} s are allowed")
    for name, slope in slopes.items():
        if slope is None:
            reasons.append(f"no life was long enough to tell a trend of {name}")
            continue
        limit = LIMITS[name].per_hour + LIMITS[name].once / hours
        if slope > limit:
            reasons.append(f"{name} grows by {slope:.2f} an hour; {limit:.2f} are allowed after {hours:.2f} hours")
    return {name: None if slope is None else round(slope, 3) for name, slope in slopes.items()}, reasons
