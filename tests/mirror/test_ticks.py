"""Ticks and what people read of them."""

from __future__ import annotations

import pytest

from mirror.ticks import UNIX_EPOCH_TICKS, clock_text, from_unix_s


def test_unix_seconds_become_ticks() -> None:
    assert from_unix_s(0) == UNIX_EPOCH_TICKS and from_unix_s(1.5) == UNIX_EPOCH_TICKS + 15_000_000


@pytest.mark.parametrize(
    ("ticks", "text"),
    [
        (UNIX_EPOCH_TICKS, "1970-01-01 00:00:00 UTC"),
        (0, "1601-01-01 00:00:00 UTC"),
        (UNIX_EPOCH_TICKS + 1_785_542_399 * 10_000_000 + 9_999_999, "2026-07-31 23:59:59 UTC"),
        (2**63 - 1, f"tick {2**63 - 1}"),
        (-(2**63), f"tick {-(2**63)}"),
    ],
)
def test_a_time_reads_as_a_person_expects_whatever_it_is(ticks: int, text: str) -> None:
    assert clock_text(ticks) == text
