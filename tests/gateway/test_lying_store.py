"""A store that does not tell the truth for a while: nothing is lost by it, written twice, or believed for good."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import Conflict, Unavailable
from mirror.store import Object
from tests.gateway.boxes import LAYOUT, Box, FaultyStore

PATIENCE_S = 1800.0  # within which it goes on by itself once the store tells the truth


class LyingStore(FaultyStore):
    """Answers reads through `lie`, which gets the true answer."""

    def __init__(self) -> None:
        super().__init__()
        self.lie: Callable[[str, Object | None], Object | None] = lambda key, found: found
        self.hides: Callable[[str], bool] = lambda key: False

    def get(self, key: str, range: Any = None) -> Object | None:
        return self.lie(key, super().get(key, range))

    def list(self, prefix: str, **how: Any) -> Iterator[Object]:
        return (found for found in super().list(prefix, **how) if not self.hides(found.key))


def of_log(key: str) -> bool:
    return key.startswith(LAYOUT.log)


def absent(store: LyingStore) -> None:
    """As if the newest objects had not been written: a store that is eventually consistent."""
    store.lie = lambda key, found: None if of_log(key) else found
    store.hides = of_log


def cut(store: LyingStore) -> None:
    """The bodies end in the middle."""

    def lie(key: str, found: Object | None) -> Object | None:
        return found if found is None or not of_log(key) else replace(found, body=found.body[: len(found.body) // 2])

    store.lie = lie


def older(store: LyingStore) -> None:
    """Another, older object under every name."""
    first = store.get(LAYOUT.segment(0))
    store.lie = lambda key, found: (
        None if found is None else replace(first, key=key) if of_log(key) and first else found
    )


def flipped(store: LyingStore) -> None:
    """A bit in the footer of each object."""

    def lie(key: str, found: Object | None) -> Object | None:
        if found is None or not of_log(key) or len(found.body) < 200:
            return found
        body = bytearray(found.body)
        body[-150] ^= 0x10
        return replace(found, body=bytes(body))

    store.lie = lie


def hidden(store: LyingStore) -> None:
    """A list without what can be read."""
    store.hides = of_log


LIES = {"absent": absent, "cut": cut, "older": older, "flipped": flipped, "hidden": hidden}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path, LyingStore())


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("forgot", [False, True], ids=["it remembers the log", "it has forgotten the log"])
def test_lies_at_a_start_are_not_believed_for_good(box: Box, tmp_path: Path, name: str, forgot: bool) -> None:
    store = box.store
    assert isinstance(store, LyingStore)
    box.receive(5)
    box.run(30)
    box.pusher = None  # the process ends
    if forgot:
        with box.journal.transaction():
            box.journal._db.execute("delete from fact where name like 'log:%'")
    before = dict(store.objects)
    LIES[name](store)
    box.receive(5)
    box.run(120)
    kept = {key: found for key, found in store.objects.items() if key in before}
    assert kept == before, "what stands there stands there"
    store.lie, store.hides = (lambda key, found: found), (lambda key: False)
    status = box.run(PATIENCE_S)
    assert status.state == "leading", status
    box.assert_all_pushed()


def test_lies_in_the_middle_of_pushing_are_survived(tmp_path: Path) -> None:
    for seed in range(12):
        chance = random.Random(seed)
        box = Box(tmp_path / str(seed), LyingStore())
        store = box.store
        assert isinstance(store, LyingStore)
        box.receive(3)
        box.run(10)

        def fault(point: str, key: str, chance: random.Random = chance) -> None:
            if of_log(key) and point == "after put" and chance.random() < 0.3:
                raise Unavailable("no answer")
            if of_log(key) and point == "after put" and chance.random() < 0.1:
                raise Conflict("it exists")

        store.fault = fault
        for name in chance.choices(sorted(LIES), k=6):
            LIES[name](store)
            box.receive(chance.randrange(1, 6))
            box.run(chance.uniform(1, 90))
            store.lie, store.hides = (lambda key, found: found), (lambda key: False)
            box.run(chance.uniform(1, 90))
        store.fault = lambda point, key: None
        status = box.run(PATIENCE_S)
        assert status.state == "leading", (seed, status)
        box.assert_all_pushed()
        box.journal.close()
