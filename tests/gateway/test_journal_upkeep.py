"""What keeps a journal cheap as it ages: state rows that wait, a ledger that is counted, chunks that go."""

from __future__ import annotations

from pathlib import Path

from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh, inside


def test_a_transaction_may_leave_the_state_rows_for_later(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data", state_period_s=0.0)
    inside(journal, lambda: journal.append(STREAM, TIMELINE, 0, 1, ORIGIN, doubles(1)))
    due = journal.dirty
    with journal.transaction(flush=False):
        journal.set_fact("small", b"x")
    assert journal.dirty == due > 0
    with journal.transaction():
        pass
    assert journal.dirty == 0
    journal.close()
