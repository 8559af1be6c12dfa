"""State rows are written many to a statement; none is left out, whatever their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.journals import doubles, fresh, inside, same
from tests.gateway.test_journal import reader_of, store


@pytest.mark.parametrize("tags", [1, 19, 20, 21, 199, 200, 201, 455])
def test_every_state_row_is_written_however_many_there_are(tmp_path: Path, tags: int) -> None:
    journal = fresh(tmp_path / "data", tags=tags)
    store(journal, 0, 1, doubles(1, range(tags)))
    inside(journal, journal.flush_state)
    reader = reader_of(journal)
    assert same(reader.state(), journal.state) and len(journal.state.handles) == tags
    journal.close()
