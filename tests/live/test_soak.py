"""The judgement of a soak: a planted leak and a planted loss are found, and what only fluctuates is not."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.soak import LIFE_S_MAX, LIFE_S_MIN, LIVES, OUTAGES, held, schedule
from tests.live.trend import LAG_S_MAX, SAMPLES_MAX, Held, counted, judge, slope_per_hour


def life(seconds: int, rss: Callable[[float], float], handles: Callable[[float], float] = lambda t: 30.0) -> list[Held]:
    return [Held(float(t), rss(t), handles(t), 5.0 + t % 7) for t in range(seconds)]


def steady(t: float) -> float:
    """Return memory as it is: it warms up, breathes, and jumps in bursts."""
    return 90.0 + 20.0 * math.exp(-t / 5) + 3.0 * math.sin(t / 9) + (25.0 if t % 60 < 8 else 0.0)


def test_a_steady_gateway_with_bursts_passes() -> None:
    slopes, reasons = judge([life(120, steady), life(1_800, steady)], undeclared=0, lag_max_s=3.0)
    assert reasons == []
    assert abs(slopes["rss_mib"]) < 2 and slopes["handles"] == 0.0


@pytest.mark.parametrize("lives", [1, 20])
def test_a_planted_leak_of_memory_fails_within_one_life_and_over_many(lives: int) -> None:
    leaking = life(7_200 // lives, lambda t: steady(t) + 30.0 * t / 3600)
    slopes, reasons = judge([leaking] * lives, undeclared=0, lag_max_s=0.0)
    assert slopes["rss_mib"] == pytest.approx(30.0, rel=0.2)
    assert len(reasons) == 1 and reasons[0].startswith("rss_mib grows by")


def test_a_planted_leak_of_handles_and_of_disk_fails() -> None:
    leaking = [Held(float(t), 90.0, 30.0 + t // 60, 5.0 + t / 20) for t in range(1_200)]
    _, reasons = judge([leaking], undeclared=0, lag_max_s=0.0)
    assert [reason.split()[0] for reason in reasons] == ["handles", "disk_mib"]


def test_a_planted_loss_fails() -> None:
    _, reasons = judge([life(100, steady)], undeclared=1, lag_max_s=0.0)
    assert reasons == ["1 lost samples are not in the gap ledger"]


def test_samples_that_come_late_after_a_fault_fail() -> None:
    _, reasons = judge([life(100, steady)], undeclared=0, lag_max_s=LAG_S_MAX + 1)
    assert len(reasons) == 1 and "after a fault" in reasons[0]


def test_short_lives_and_warm_up_do_not_count_and_no_trend_is_no_pass() -> None:
    assert counted([life(60, steady), [], life(62, steady)]) == [life(62, steady)[21:]]
    assert [len(kept) for kept in counted([life(601, steady), life(3_601, steady)])] == [401, 3_301]
    _, reasons = judge([life(60, steady)] * 9, undeclared=0, lag_max_s=0.0)
    assert [reason.split()[-1] for reason in reasons] == ["rss_mib", "handles", "disk_mib"]


def test_lives_are_not_compared_with_one_another() -> None:
    low, high = life(100, lambda t: 50.0), life(100, lambda t: 500.0)
    assert slope_per_hour([low, high], "rss_mib") == 0.0
    assert slope_per_hour([life(10 * SAMPLES_MAX, lambda t: t)], "rss_mib") == pytest.approx(3600.0)
    assert slope_per_hour([], "rss_mib") is None


@pytest.mark.parametrize("minutes", [5, 60, 1_440])
def test_a_schedule_is_that_of_its_seed_and_has_long_lives_and_every_outage(minutes: int) -> None:
    plan = schedule(minutes * 60, random.Random(7))
    assert plan == schedule(minutes * 60, random.Random(7)) != schedule(minutes * 60, random.Random(8))
    ends = [0.0, *(at for at, name in plan if name in LIVES), minutes * 60]
    lives = [b - a for a, b in itertools.pairwise(ends)]
    assert len(lives) >= 3 and all(LIFE_S_MIN <= s <= LIFE_S_MAX + 20 for s in lives[:-1])
    assert minutes == 5 or {name for _, name in plan} == {*LIVES, *OUTAGES}


def test_what_a_process_holds_is_read_from_the_kernel(tmp_path: Path) -> None:
    before = held(os.getpid(), tmp_path, 1.0)
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    with (tmp_path / "file").open():
        after = held(os.getpid(), tmp_path, 2.0)
    assert after.handles == before.handles + 1 and after.rss_mib > 10
    assert after.disk_mib == before.disk_mib + 1.0
