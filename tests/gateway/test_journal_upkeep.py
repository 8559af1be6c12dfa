"""What keeps a journal cheap as it ages: state rows that wait, a ledger that is counted, chunks that go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import parse
from gateway.io import runtime, survey
from gateway.io.journal import Journal, JournalReader
from gateway.io.ledger import Ledger
from mirror.coverage import Closure, Coverage, Gap, Promise, Reason
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fresh, inside
from tests.gateway.test_config import MINIMAL
from tests.mirror.batches import table


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


# The ledger


def steps(reader: JournalReader, read: Callable[[], Any]) -> tuple[int, Any]:
    """Return how many hundreds of SQLite's instructions a reading costs, and what it gives."""
    spent = [0]

    def step() -> bool:
        spent[0] += 1
        return False

    reader._db.set_progress_handler(step, 100, id=step)
    try:
        found = read()
        return spent[0], found
    finally:
        reader._db.set_progress_handler(None, id=step)


def record(journal: Journal, first: int, count: int, *, closed: bool) -> None:
    with journal.transaction():
        for n in range(first, first + count):
            gap = Gap.opened(STREAM, TIMELINE, n, Reason.OVERFLOW if n % 2 else Reason.MISSED, end=n + 1, tags=["t"])
            journal.open_gap(gap)
            if closed:
                journal.close_gap(gap.id, Closure.LOST, "gone")


def test_what_is_counted_of_the_ledger_costs_what_is_new_and_not_what_is_closed(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    reader = JournalReader.open(journal.path)
    costs = []
    config, looked = parse(MINIMAL), survey._Looked()
    for many in (200, 20_000):
        record(journal, many, many, closed=True)
        looked = survey._look(journal.path, config, looked)
        record(journal, many - 3, 3, closed=False)
        spent, tally = steps(reader, partial(reader.gap_tally, looked.gaps_counted))
        assert sum(tally.reasons.values()) == 3
        costs.append(spent)
        looked = survey._look(journal.path, config, looked)
    assert looked.gaps_open == 6
    assert looked.gaps == dict(Counter(str(g.reason) for g in reader.gaps())) and sum(looked.gaps.values()) == 20_206
    assert costs[1] <= costs[0] + 2, costs
    spent, open_gaps = steps(reader, lambda: reader.gaps(open_only=True))
    assert len(open_gaps) == 6 and spent < 20
    reader.close()
    journal.close()


def test_a_gap_is_read_until_the_log_knows_its_closure_and_not_afterwards(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    reader = JournalReader.open(journal.path)
    ledger = Ledger(reader)
    record(journal, 0, 2, closed=False)
    record(journal, 2, 3, closed=True)
    told: dict[str, str] = {}
    first, _ = ledger.read(told)
    assert first == reader.gaps()
    told |= {gap.id: "closed" for gap in first[2:]} | {gap.id: gap.extent for gap in first[:2]}
    assert ledger.read(told)[0] == first[:2]
    longer = msgspec.structs.replace(first[0], end=90)
    unreadable = Gap.opened(STREAM, TIMELINE, 50, Reason.UNDECODABLE, end=60)
    with journal.transaction():
        journal.open_gap(longer)
        journal.close_gap(first[1].id, Closure.HISTORY)
        journal.open_gap(unreadable)
        journal.close_gap(unreadable.id, Closure.LOST)
    gaps, damaged = ledger.read(told)
    assert gaps == [longer, *(g for g in reader.gaps() if g.id in (first[1].id, unreadable.id))]
    assert damaged == [gaps[-1]] and gaps[1].closed_by is Closure.HISTORY
    told |= {gap.id: "closed" for gap in gaps}
    assert ledger.read(told) == ([], damaged)
    assert ledger.read({})[0] == reader.gaps(), "another log knows nothing"
    reader.close()
    journal.close()


def test_reading_the_ledger_for_the_log_costs_what_it_does_not_know(tmp_path: Path) -> None:
    journal = fresh(tmp_path / "data")
    reader = JournalReader.open(journal.path)
    ledger = Ledger(reader)
    record(journal, 0, 20_000, closed=True)
    told = {gap.id: "closed" for gap in reader.gaps()}
    ledger.read(told)
    record(journal, 20_000, 2, closed=False)
    spent, (gaps, _) = steps(reader, lambda: ledger.read(told))
    assert len(gaps) == 2 and spent < 20
    reader.close()
    journal.close()


# Trimming


def test_trimming_keeps_up_with_any_rate_in_small_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(f"""
        [group]
        name = "g"
        [replica]
        name = "a"
        data_dir = "{tmp_path / "data"}"
        [journal]
        keep_days = 0
        [[source]]
        name = "s"
        endpoint = "opc.tcp://127.0.0.1:1"
        security = "none"
        [[source.device]]
        name = "d"
        browse = ["i=85/**"]
    """)
    monkeypatch.setattr(runtime, "TRIM_S", 0.01)
    gateway = runtime.Gateway(config)
    journal = gateway.journal
    with journal.transaction():
        journal.add_tags(table(1).tags)
        for n in range(3_500):
            journal.append(STREAM, TIMELINE, n, n + 1, ORIGIN, doubles(n, [0]))
    inside(journal, journal.flush_state)
    inside(journal, lambda: journal.extend(Coverage(STREAM, TIMELINE, 0, 9_999, ORIGIN)))
    rounds: list[int] = []

    def promise() -> Promise:
        rounds.append(len(rounds))
        return Promise([Coverage(STREAM, TIMELINE, 0, 3_400, ORIGIN)])

    gateway._promise = promise  # type: ignore[method-assign]
    gateway.ingest.start()

    async def first_round() -> None:
        trimming = asyncio.create_task(gateway._trim())
        while len(rounds) < 2:
            await asyncio.sleep(0.01)
        trimming.cancel()

    asyncio.run(asyncio.wait_for(first_round(), 30))
    gateway.ingest.stop()
    reader = JournalReader.open(journal.path)
    assert len(reader.chunks_since(0, 9_999)) == 100 and rounds == [0, 1]
    assert gateway.ingest.counters.commits >= 4
    reader.close()
    journal.close()
