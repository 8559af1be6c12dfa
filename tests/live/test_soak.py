"""The soak's own judgement: a planted leak and a planted loss are seen, noise is not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.live.soak import WARM_S, Growth, Look, judged, slope

GOOD: dict[str, Any] = {"undeclared": 0, "foreign": 0, "overlaps": 0, "bucket_lacks": 0, "verified": True}


class Seen:
    """What an observer has, without a gateway."""

    def __init__(self, *lives: list[Look]) -> None:
        self.lives = list(lives)

    @property
    def longest(self) -> list[Look]:
        return max(self.lives, key=len, default=[])


def life(seconds: int = 600, *, rss_per_hour: float = 0.0, handles_per_hour: float = 0.0) -> list[Look]:
    """Return looks of a life with noise, a start that takes memory, and a leak if one is planted."""
    chance = random.Random(3)
    return [
        Look(float(t), 100 + min(t, 20) * 2 + chance.uniform(-3, 3) + rss_per_hour * t / 3600,
             40 + chance.randint(-2, 2) + int(handles_per_hour * t / 3600), t * 0.01, 0.5)
        for t in range(seconds)
    ]  # fmt: skip


def verdict(*lives: list[Look], **more: Any) -> dict[str, Any]:
    minutes = max((len(looks) for looks in lives), default=0) / 60
    return judged(Seen(*lives), {**GOOD, "minutes": minutes, **more})  # type: ignore[arg-type]


def test_a_slope_is_not_moved_by_a_few_wild_points() -> None:
    points = [(float(t), 2.0 * t + (1000 if t % 10 == 0 else 0)) for t in range(100)]
    assert slope(points) == pytest.approx(2.0, rel=0.2)
    assert slope([]) == slope([(1.0, 5.0)]) == slope([(1.0, 5.0), (1.0, 9.0)]) == 0.0


def test_noise_and_the_memory_of_a_start_are_no_leak() -> None:
    found = verdict(life())
    assert found["ok"] and abs(found["rss_slope"]) < 10 and found["longest_s"] == 599 - WARM_S


@pytest.mark.parametrize("leak", [{"rss_per_hour": 120.0}, {"handles_per_hour": 60.0}])
def test_a_planted_leak_is_seen(leak: dict[str, float]) -> None:
    assert not verdict(life(**leak))["ok"]


def test_a_slow_leak_is_seen_in_a_long_run() -> None:
    assert verdict(life(3600, rss_per_hour=10))["ok"]
    assert not verdict(life(6 * 3600, rss_per_hour=10))["ok"]


@pytest.mark.parametrize(
    "wrong", [{"undeclared": 1}, {"foreign": 1}, {"overlaps": 1}, {"bucket_lacks": 1}, {"verified": False}]
)
def test_a_planted_loss_is_seen(wrong: dict[str, Any]) -> None:
    assert not verdict(life(), **wrong)["ok"]


def test_a_run_in_which_nobody_looked_proves_nothing() -> None:
    assert not verdict(life(60), minutes=10)["ok"]
    assert not verdict(minutes=10)["ok"]


def test_only_the_longest_life_is_judged_and_none_at_all_is_no_crash() -> None:
    found = verdict(life(50), life(400), life(20, rss_per_hour=1e6))
    assert found["ok"] and found["lives"] == 3
    assert verdict()["rss_slope"] == 0.0
    assert Growth.of([], lambda look: look.rss_mib).is_within(0, 0)
