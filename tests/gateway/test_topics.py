"""A retained topic is remembered from before its first message until the broker has emptied it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gateway.io.journal import Journal, JournalReader
from gateway.io.topics import FACT, Topics
from tests.gateway.boxes import InTurn
from tests.gateway.journals import fresh


def topics(journal: Journal) -> Topics:
    """Return the topics as a new process finds them."""
    reader = JournalReader.open(journal.path)
    saved = reader.fact(FACT)
    reader.close()
    return Topics(saved, InTurn(journal).call)


def test_what_a_former_configuration_used_is_handed_out_until_it_was_emptied(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    assert topics(journal).use({"a", "b"}, complete=True) == set()
    assert topics(journal).use({"b", "c"}, complete=True) == {"a"}
    later = topics(journal)
    assert later.use({"c"}, complete=True) == {"a", "b"}, "nobody said that it was emptied"
    later.emptied(["a"])
    later.emptied(["b"])
    assert topics(journal).use(set(), complete=True) == {"c"}
    journal.close()


def test_while_the_tags_of_a_source_are_not_known_nothing_is_handed_out(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    topics(journal).use({"a"}, complete=True)
    later = topics(journal)
    assert later.use(set(), complete=False) == set()
    assert later.use({"b"}, complete=True) == {"a"}
    journal.close()


def test_a_topic_that_came_back_while_it_was_emptied_is_not_forgotten(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    first = topics(journal)
    first.use({"a", "b"}, complete=True)
    assert first.use({"b"}, complete=True) == {"a"}
    first.use({"a", "b"}, complete=True)
    first.emptied(["a"])
    assert topics(journal).use(set(), complete=True) == {"a", "b"}
    journal.close()


def test_the_journal_is_written_only_when_something_new_comes_or_the_last_one_goes(tmp_path: Path) -> None:
    journal, calls = fresh(tmp_path), []

    def call(work: Callable[[Journal], None]) -> Future[Any]:
        calls.append(work)
        return InTurn(journal).call(work)

    kept = Topics(None, call)
    for _ in range(3):
        kept.use({"a", "b", "c"}, complete=True)
    assert len(calls) == 1
    kept.use({"a"}, complete=True)
    kept.emptied(["b"])
    assert len(calls) == 1
    kept.emptied(["c"])
    assert len(calls) == 2
    journal.close()
