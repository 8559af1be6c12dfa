"""One reckoning of how long the journal lasts, and what a gateway says of it."""

from __future__ import annotations

import math

import pytest

from gateway.health import Figures, JournalFigures, SourceFigures, exposition, problems
from gateway.room import FREE_BYTES_MIN, GIB, WAL_BYTES_MAX, Room, room_bytes


def room(held: float, free: float, unpushed: float = 0.0, per_day: float | None = 1.0, *, bucket: bool = True) -> Room:
    sizes = [int(gib * GIB) for gib in (held, free, unpushed)]
    return Room(20 * GIB, sizes[0], sizes[1] + FREE_BYTES_MIN, sizes[2], per_day and per_day * GIB, bucket=bucket)


@pytest.mark.parametrize(
    ("found", "days", "limit"),
    [
        (room(19, 100), 20.0, "journal.max_gib"),  # all of it may go
        (room(19, 100, 16), 4.0, "journal.max_gib"),
        (room(19, 0.5, 16), 3.5, "the disk"),
        (room(19, 100, bucket=False), 1.0, "journal.max_gib"),
        (room(5, 3, bucket=False), 3.0, "the disk"),
        (room(30, 100, 20), 0.0, "journal.max_gib"),
        (room(20, 100, bucket=False), 0.0, "journal.max_gib"),
        (room(19, 100, 1, None), None, "journal.max_gib"),
        (room(19, 100, 1, 0.0), math.inf, "journal.max_gib"),
    ],
)
def test_the_days_left_are_those_of_what_may_not_be_deleted_and_the_smaller_limit(
    found: Room, days: float | None, limit: str
) -> None:
    assert found.days_left == days and found.limit == limit
    assert limit in found.forecast or days is None


def test_the_forecast_is_a_sentence() -> None:
    assert "full in 4.0 days at the present rate (1,024 MiB a day) if the bucket took" in room(19, 100, 16).forecast
    alone = room(19, 100, bucket=False)
    assert (
        alone.forecast.startswith("full in 1.0 days") and "without a bucket nothing is ever deleted" in alone.forecast
    )
    assert "full (journal.max_gib): what the bucket lacks is never deleted" in room(30, 100, 20).forecast
    assert "no forecast" in room(1, 1, 0, None).forecast and "in years" in room(1, 100, 0, 1e-6).forecast
    assert "16.00 of them not in the bucket" in room(19, 100, 16).text


def test_the_room_is_never_more_than_the_disk_has_nor_less_than_nothing() -> None:
    assert room_bytes(20 * GIB, GIB, 100 * GIB) == 20 * GIB
    assert room_bytes(20 * GIB, GIB, GIB) == 2 * GIB - FREE_BYTES_MIN
    assert room_bytes(20 * GIB, 0, 0) == 0


def figures(**journal: int | bool) -> Figures:
    return Figures("1", "g", "a", sources=[SourceFigures("s", "live")], journal=JournalFigures(**journal))  # type: ignore[arg-type]


def test_a_journal_that_is_too_large_makes_the_gateway_unready_and_says_why_nothing_is_deleted() -> None:
    (told,) = problems(figures(size_bytes=9, size_bytes_max=8, unpushed_bytes=7))
    assert told.blocks and told.text == (
        "9 bytes, and 8 are allowed (journal.max_gib); "
        "7 of them are not in the bucket: what the bucket lacks is never deleted"
    )
    (told,) = problems(figures(size_bytes=9, size_bytes_max=8, bucket=False))
    assert told.blocks and told.text.endswith("without a bucket nothing is ever deleted")


def test_a_write_ahead_log_that_is_not_emptied_is_told_and_does_not_make_unready() -> None:
    assert problems(figures(wal_bytes=WAL_BYTES_MAX)) == []
    (told,) = problems(figures(wal_bytes=2 * WAL_BYTES_MAX))
    assert not told.blocks and "128 MiB" in told.text and "does not end reading" in told.text
    assert f"edgemirror_store_wal_bytes {float(2 * WAL_BYTES_MAX)!r}" in exposition(
        figures(wal_bytes=2 * WAL_BYTES_MAX)
    )
