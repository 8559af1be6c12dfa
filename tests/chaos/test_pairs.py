"""A short piece of chaos; `make chaos MINUTES=n` is a long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.pairs import run


@pytest.mark.slow
def test_whatever_befalls_a_pair_nothing_is_lost_untold_and_the_log_stays_whole(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    result = run("etcd", 2, 5, seed, tmp_path, 0.0, 10)
    print(result)
    assert result["verified"], result
    assert (result["undeclared"], result["alarms"]) == (0, 0), result
    assert result["produced"] > 200
