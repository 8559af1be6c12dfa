"""Random schedules around the real chain machine, and each rule's removal found by some seed or script.

A failing seed prints its number; `World(seed).run()` repeats it, `.trace` tells what happened.
"""

from __future__ import annotations

import pytest

from mirror import chain as machine
from mirror.chain import Chain
from mirror.prefix import Prefix, Saved
from tests.mirror.chain_world import Violation, World

SEEDS = 400


def test_always_holds_for_random_schedules_of_two_writers():
    segments = placed = floors = 0
    for seed in range(SEEDS):
        world = World(seed)
        try:
            world.run()
        except (Violation, AssertionError) as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(world.trace)) from error
        segments += len(world.history)
        placed += world.placed
        floors += world.floor > 0
    # The schedules must be worth something: leadership changes, clean-up, a log of some length.
    assert placed > 3 * SEEDS
    assert floors > SEEDS // 2
    assert segments > 8 * SEEDS


class NoFence(Chain):
    def _must_fence(self) -> bool:
        return False


class NoReadback(Chain):
    def _is_ours(self, header: bytes, hash: str) -> bool:
        return True


class NoFloor(Chain):
    def _is_below(self, seq: int, floor: int) -> bool:
        return False


@pytest.mark.parametrize(
    ("mutant", "chain", "finds"),
    [
        ("fence", NoFence, "I2"),
        ("readback", NoReadback, "I5"),
        ("cond_put", Chain, "I2"),
        ("window1", Chain, "I5"),
        ("chain_marks", Chain, "I1"),
    ],
)
def test_never_holds_without_a_rule(mutant: str, chain: type[Chain], finds: str):
    for seed in range(SEEDS):
        try:
            World(seed, mutant, chain).run()
        except Violation as violation:
            if str(violation).startswith(finds):
                return
    pytest.fail(f"no seed below {SEEDS} finds that {mutant} is missing")


def stalled_write_finds_its_name_freed(chain: type[Chain]) -> World:
    """A leader's write stalls; its successor goes on and clean-up frees the name; then the write lands."""
    world = World(0, chain=chain)
    world.calm = True
    a, b = world.writers["a"], world.writers["b"]

    def until_ready(w):
        while w.chain is None or not w.chain.ready:
            for write in list(world.writes):
                world.move(write)
            world.work(w)

    until_ready(a)
    a.newest = 1
    world.offer(a)
    stalled = world.writes.pop()
    until_ready(b)
    for _ in range(3):
        b.newest += 1
        world.offer(b)
        while not b.chain.ready:
            for write in list(world.writes):
                world.move(write)
            world.work(b)
    while world.floor < len(world.history) - 1:
        world.collect()
    world.arrive(stalled)
    assert stalled.created, "the name was free again"
    world.answer(stalled)
    while a.request is not None:
        world.work(a)
    return world


def test_a_write_that_lands_below_the_floor_does_not_count():
    world = stalled_write_finds_its_name_freed(Chain)
    assert world.writers["a"].done, "the writer has stepped down"
    world.heal()


def test_without_reading_the_floor_again_a_freed_name_deceives_the_writer():
    world = stalled_write_finds_its_name_freed(NoFloor)
    assert not world.writers["a"].done
    a = world.writers["a"].chain
    assert a.prefix.at.hash != machine.chain_hash(world.history[a.prefix.at.seq - 1]), "it is on a branch of its own"
    with pytest.raises(Violation):
        world.heal()


def test_a_late_reader_that_took_in_a_freed_name_finds_back_through_the_floor():
    """A reader stops at the stalled number; the name is freed and taken by the late write; it reads on."""
    world = stalled_write_finds_its_name_freed(Chain)
    late = Prefix(Saved("g"))
    stale = min(world.zombies)
    for data in world.history[:stale]:
        found = late.judge(data)
        assert not isinstance(found, machine.Finding)
        late.absorb(found, machine.chain_hash(data), "")
    reader = Chain(late, "a", world_key("a"), "solo")
    request: object = machine.ReadSegment(stale)
    reader.phase = machine.Phase.FOLLOW  # it had read the floor before that moved
    reader._request = request
    for _ in range(20):
        effects = reader.step(world.read(request), 0.0)
        assert not any(isinstance(e, machine.Refused) for e in effects), effects
        if any(isinstance(e, machine.AtEnd) for e in effects):
            break
        request = next(e for e in effects if not isinstance(e, machine.Absorbed))
    assert reader.prefix.at.hash == machine.chain_hash(world.history[-1])
    assert reader.prefix.at.seq == len(world.history)


def world_key(name: str):
    from tests.mirror.chain_world import KEYS

    return KEYS[name]
