"""The probe against stores that break one promise each, and against right ones with bad luck."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mirror.errors import ConfigError, Conflict, Unavailable
from mirror.io.s3 import together
from mirror.probe import Probe, probe
from mirror.store import MemoryStore, Object, Range

RACERS = 8
RACES = ("/race", "/swaps")


def probed(store: MemoryStore, *others: MemoryStore) -> Probe:
    return probe([store, *others], "p/", "token", together)


def failed(report: Probe) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


# Stores that break a promise


class IgnoresIfNoneMatch(MemoryStore):
    def put(self, key: str, body: bytes, *, if_none_match: bool = False, **how: Any) -> str:
        return super().put(key, body, **how)


class IgnoresIfMatch(MemoryStore):
    def put(self, key: str, body: bytes, *, if_match: str | None = None, **how: Any) -> str:
        return super().put(key, body, **how)


class CreatesWhatItShouldReplace(MemoryStore):
    def put(self, key: str, body: bytes, *, if_match: str | None = None, **how: Any) -> str:
        return super().put(key, body, if_match=if_match if key in self.objects else None, **how)


class RefusesRightfulReplaces(MemoryStore):
    def put(self, key: str, body: bytes, *, if_match: str | None = None, **how: Any) -> str:
        if if_match is not None:
            raise Conflict(key)
        return super().put(key, body, **how)


class RefusesCreates(MemoryStore):
    def put(self, key: str, body: bytes, *, if_none_match: bool = False, **how: Any) -> str:
        if if_none_match:
            raise Conflict(key)
        return super().put(key, body, **how)


class TwoSteps(MemoryStore):
    """Looks whether a condition holds, then writes without holding it: right alone, wrong in a race."""

    def __init__(self, condition: str) -> None:
        super().__init__()
        self.condition = condition
        self.barrier, self.lock, self.came = threading.Barrier(RACERS), threading.Lock(), Counter[str]()

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if not how.get(self.condition) or not key.partition("token")[2].startswith(RACES):
            return super().put(key, body, **how)
        found = self.objects.get(key)
        if how.get("if_none_match") and found is not None:
            raise Conflict(key)
        if how.get("if_match") is not None and (found is None or found.etag != how["if_match"]):
            raise Conflict(key)
        self.meet(key)
        return super().put(key, body)

    def meet(self, key: str) -> None:
        """Let the first of each race stand between the look and the write together."""
        with self.lock:
            self.came[key] += 1
            first = self.came[key] <= RACERS
        if first:
            self.barrier.wait(20)


class ForgetsInRaces(MemoryStore):
    """Accepts what racers write, and keeps nothing of it."""

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if "/race" in key:
            return "etag"
        return super().put(key, body, **how)


class KeepsTheLoser(MemoryStore):
    """Writes what it refuses."""

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if "/race" in key and key in self.objects:
            super().put(key, body)
            raise Conflict(key)
        return super().put(key, body, **how)


class ListsBackwards(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        found = list(super().list(prefix))
        return iter([o for o in reversed(found) if o.key > start_after][:limit])


class ListsFromTheBeginning(MemoryStore):
    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        return super().list(prefix, limit=limit)


class CutsWrongly(MemoryStore):
    def get(self, key: str, range: Range | None = None) -> Object | None:
        return super().get(key, None if range is None else (0, 3))


@pytest.mark.parametrize(
    ("make", "unmet"),
    [
        (IgnoresIfNoneMatch, {"create-once"}),
        (RefusesCreates, {"create-once", "create-race"}),
        (IgnoresIfMatch, {"replace-if-match"}),
        (CreatesWhatItShouldReplace, {"replace-if-match"}),
        (RefusesRightfulReplaces, {"replace-if-match", "replace-race"}),
        (lambda: TwoSteps("if_none_match"), {"create-race"}),
        (lambda: TwoSteps("if_match"), {"replace-race"}),
        (ForgetsInRaces, {"create-race"}),
        (KeepsTheLoser, {"create-race"}),
        (ListsBackwards, {"list-in-byte-order"}),
        (ListsFromTheBeginning, {"list-in-byte-order"}),
        (CutsWrongly, {"ranges"}),
    ],
)
def test_a_store_that_breaks_a_promise_is_refused_by_the_name_of_the_check(
    make: Callable[[], MemoryStore], unmet: set[str]
):
    report = probed(make())
    chance = {"create-race", "replace-race"} - unmet if "IgnoresIf" in repr(make) else set()
    assert failed(report) - chance == unmet, "what races find in a store without conditions is chance"
    with pytest.raises(ConfigError) as raised:
        report.refuse()
    assert all(name in str(raised.value) for name in unmet)
    assert raised.value.hint


class DropsMetadata(MemoryStore):
    def put(self, key: str, body: bytes, **how: Any) -> str:
        return super().put(key, body, **{**how, "metadata": {}})


class DeletesWhatHasChanged(MemoryStore):
    def delete(self, key: str, if_match: str | None = None) -> None:
        super().delete(key)


class KnowsNoConditionalDelete(MemoryStore):
    def delete(self, key: str, if_match: str | None = None) -> None:
        if if_match is not None:
            raise ConfigError("501")
        super().delete(key)


class ChecksNothing(MemoryStore):
    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, **how: Any) -> str:
        return super().put(key, body, **how)


@pytest.mark.parametrize(
    ("make", "unmet"),
    [
        (MemoryStore, set()),
        (DropsMetadata, {"user-metadata"}),
        (DeletesWhatHasChanged, {"delete-if-match"}),
        (KnowsNoConditionalDelete, {"delete-if-match"}),
        (ChecksNothing, {"upload-checksum"}),
    ],
)
def test_what_the_log_can_do_without_is_noted_and_refuses_nothing(make: Callable[[], MemoryStore], unmet: set[str]):
    store = make()
    report = probed(store)
    assert failed(report) == unmet
    report.refuse()
    assert store.objects == {}


class Quoteless(MemoryStore):
    """Compares If-Match with the ETag without its quotes, and answers ETags with them."""

    def __init__(self, objects: dict[str, Any], *, quoted: bool) -> None:
        super().__init__()
        self.objects, self.quoted = objects, quoted

    def put(self, key: str, body: bytes, *, if_match: str | None = None, **rest: Any) -> str:
        if if_match is not None and self.quoted:
            raise Conflict(key)
        return super().put(key, body, if_match=if_match, **rest)


def test_the_probe_finds_the_dialect_that_works():
    objects: dict[str, Any] = {}
    report = probed(Quoteless(objects, quoted=True), Quoteless(objects, quoted=False))
    report.refuse()
    assert report.dialect == 1


# Right stores with bad luck


class Unlucky(MemoryStore):
    """Some conditional writes of the races, counted from 1, get no answer, done or not."""

    def __init__(self, is_lost: Callable[[int], bool], *, done: bool, races: tuple[str, ...] = RACES) -> None:
        super().__init__()
        self.is_lost, self.done, self.races = is_lost, done, races
        self.lock, self.count = threading.Lock(), 0

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if not (how.get("if_none_match") or how.get("if_match")) or not any(race in key for race in self.races):
            return super().put(key, body, **how)
        with self.lock:
            self.count += 1
            lost = self.is_lost(self.count)
        if lost and not self.done:
            raise Unavailable("nobody knows")
        etag = super().put(key, body, **how)
        if lost:
            raise Unavailable("nobody knows")
        return etag


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_right_store_is_not_refused_for_answers_that_were_lost(every: int, done: bool):
    store = Unlucky(lambda count: count % every == 0, done=done)
    assert failed(probed(store)) == set()
    assert store.count >= every
    assert store.objects == {}


class OneAtATime(MemoryStore):
    """Calls off a conditional write that meets another one of the same name under way, as Amazon documents it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.under_way = threading.Lock(), set[str]()
        self.met: defaultdict[str, threading.Event] = defaultdict(threading.Event)

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if not any(race in key for race in RACES) or not (how.get("if_none_match") or how.get("if_match")):
            return super().put(key, body, **how)
        with self.lock:
            met = self.met[key]
            if key in self.under_way:
                met.set()
                raise Unavailable("ConditionalRequestConflict (409)")
            self.under_way.add(key)
        try:
            met.wait(20)  # of those who race another one is on its way
            return super().put(key, body, **how)
        finally:
            with self.lock:
                self.under_way.discard(key)


def test_a_store_that_calls_off_writes_under_way_is_not_refused():
    store = OneAtATime()
    assert failed(probed(store)) == set()
    assert len(store.met) >= 3
    assert all(met.is_set() for met in store.met.values())


@pytest.mark.parametrize("answered", [0, 3])
@pytest.mark.parametrize(("race", "done"), [("/race", False), ("/swaps", False), ("/swaps", True)])
def test_a_race_that_gets_hardly_any_answer_tells_nothing(race: str, done: bool, answered: int):
    store = Unlucky(lambda count: count > answered, done=done, races=(race,))
    with pytest.raises(Unavailable, match="it takes 8"):
        probed(store)
    assert store.count <= 3 * RACERS, "a store that answers nothing any more is not asked on and on"
    assert store.objects == {}


def test_lost_answers_hide_no_lost_step():
    """A store that writes in two steps is found although half of its answers are lost."""

    class Both(TwoSteps):
        def put(self, key: str, body: bytes, **how: Any) -> str:
            etag = super().put(key, body, **how)
            if "/swaps" in key and how.get("if_match") and body.endswith((b".0.0", b".2.0", b".4.0", b".6.0")):
                raise Unavailable("no answer")
            return etag

    assert failed(probed(Both("if_match"))) == {"replace-race"}


def test_an_error_that_is_for_the_operator_ends_the_probe():
    class Denied(MemoryStore):
        def put(self, key: str, body: bytes, **how: Any) -> str:
            if "/swaps" in key and how.get("if_match"):
                raise ConfigError("403")
            return super().put(key, body, **how)

    with pytest.raises(ConfigError, match="403"):
        probed(Denied())
