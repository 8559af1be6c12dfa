"""Always and never, over random schedules of the whole road; and each rule's removal is found by some seed.

A failing seed prints its number; `python -m tests.sim --trace SEED` repeats it and tells what happened.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.mutants import MUTANTS, killer
from tests.sim.world import World

SEEDS = 160
PORTION = 40


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, PORTION))
def test_always_every_sample_is_in_the_bucket_once_or_in_a_declared_gap(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + PORTION):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            tail = "\n".join(world.trace[-60:])
            raise AssertionError(f"seed {seed}: {error}\n{tail}") from error
        seen.update(world.seen_kinds())
    # The schedules must be worth something: each kind of trouble occurs, again and again.
    for kind in ("lives", "gaps", "closed by history", "lost samples", "segments", "disk refusals", "recovered"):
        assert seen[kind] >= PORTION // 10, (kind, seen)


def test_one_seed_is_one_schedule() -> None:
    first, second = World(7).run(), World(7).run()
    assert first.trace == second.trace and first.stored == second.stored


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_never_holds_without_a_rule(name: str) -> None:
    assert killer(name, 200) is not None, f"nothing finds that a rule is missing: {name}"
