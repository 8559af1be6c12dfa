"""What pushing asks of a store before it trusts it: the probe, what is remembered of it, and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import ConfigError, Unavailable
from mirror.floor import FLOOR_BYTES_MAX
from mirror.io.s3 import together
from mirror.store import Object
from tests.gateway.boxes import LAYOUT, Box, FaultyStore

DAY_S = 86_400.0


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.journal.close()


def probes(box: Box) -> int:
    """Return how many probes have begun."""
    return len({call.split("/probe/")[1].split("/")[0] for call in box.store.calls if "/probe/" in call})


def restart(box: Box, seconds: float = 3, **how: Any) -> None:
    box.pusher = None
    assert box.run(seconds, together=together, **how).state == "leading"


class Careless(FaultyStore):
    """Ignores conditions until it is mended."""

    mended = False

    def put(self, key: str, body: bytes, **how: Any) -> str:
        return super().put(key, body, **how if self.mended else {"metadata": how.get("metadata", {})})


def test_a_store_that_ignores_conditions_is_refused_until_it_is_mended(box: Box):
    box.store = store = Careless()
    status = box.run(60, together=together)
    assert status.state == "refused"
    assert isinstance(status.error, ConfigError)
    assert "create-once" in str(status.error)
    assert "conditional writes" in status.error.hint
    assert not [key for key in store.objects if key.startswith(LAYOUT.log)]
    assert box.run(DAY_S).state == "refused"
    store.mended = True
    restart(box)


def test_the_probe_runs_once_for_a_store_and_leaves_nothing_behind(box: Box):
    restart(box, wall=lambda: 5.0)
    restart(box, wall=lambda: 5.0 + DAY_S - 1)
    assert probes(box) == 1
    assert not [key for key in box.store.objects if "/probe/" in key]


@pytest.mark.parametrize("later", [DAY_S, -1.0])
def test_the_probe_is_repeated_at_a_start_when_it_is_old_or_the_clock_cannot_say(box: Box, later: float):
    restart(box, wall=lambda: 5.0)
    restart(box, wall=lambda: 5.0 + later)
    assert probes(box) == 2


def test_the_probe_is_repeated_at_a_start_when_the_server_is_another(box: Box, monkeypatch: pytest.MonkeyPatch):
    restart(box)
    monkeypatch.setattr(box.store, "server", lambda: "memory 2.0")
    restart(box)
    restart(box)
    assert probes(box) == 2


def test_a_probe_with_too_few_answers_is_made_again_ever_more_seldom_and_not_remembered(box: Box):
    def lose(point: str, key: str) -> None:
        if "/swaps" in key and point == "after put":
            raise Unavailable("no answer")

    box.store.fault = lose
    status = box.run(60, together=together)
    assert status.state == "starting"
    assert isinstance(status.error, Unavailable)
    assert 2 <= probes(box) <= 4
    box.run(DAY_S)
    assert probes(box) <= 40, "hardly more than one in an hour"
    box.store.fault = lambda point, key: None
    status = box.run(3600)
    assert (status.state, status.error) == ("leading", None)


def test_what_a_probe_could_not_clean_up_is_not_in_the_way_of_the_next(box: Box):
    def away(point: str, key: str) -> None:
        if point == "list" and "/probe/" in key:
            raise Unavailable("away")

    box.store.fault = away
    assert isinstance(box.run(4, together=together).error, Unavailable)
    assert [key for key in box.store.objects if "/probe/" in key]
    box.store.fault = lambda point, key: None
    status = box.run(20)
    assert (status.state, status.error) == ("leading", None)


def test_a_floor_that_is_too_large_is_told_and_neither_fetched_nor_in_the_way(
    box: Box, capsys: pytest.CaptureFixture[str]
):
    fetched: list[int] = []

    class Measured(FaultyStore):
        def get(self, key: str, range: Any = None) -> Object | None:
            found = super().get(key, range)
            fetched.append(len(found.body) if found else 0)
            return found

    box.store = store = Measured()
    store.put(LAYOUT.floor, bytes(FLOOR_BYTES_MAX + 5))
    box.receive(1)
    box.run(60)
    assert "floor.json is unreadable" in capsys.readouterr().err
    assert max(fetched) <= 2**20
    store.delete(LAYOUT.floor)
    box.assert_all_pushed()
