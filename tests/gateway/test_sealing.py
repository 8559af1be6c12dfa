"""What goes into a segment: damage that is declared, limits that are kept, and rows that are those of the chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from gateway.io.sealing import Surroundings
from mirror import chunk
from mirror.batch import canonical_order, concat, equal, take
from mirror.coverage import Coverage, Gap, Grade, Reason
from mirror.errors import Unavailable
from mirror.header import Header
from mirror.verify import verify_store
from tests.gateway.boxes import LAYOUT, Box, InTurn
from tests.gateway.journals import STREAM, TIMELINE, doubles


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.journal.close()


def test_a_damaged_chunk_is_declared_and_never_claimed_as_complete(box: Box):
    box.receive(3)
    lost = box.sent.pop(1)
    box.journal._db.execute("UPDATE chunk SET body = zeroblob(40) WHERE seq = 2")
    for _ in range(3):
        status = box.run(12)
        box.pusher = None
    assert status.state == "leading"
    report = box.assert_all_pushed()
    assert len(lost) == 6
    assert report.streams[0].holes == [(20, 30)]
    assert [(g.reason, g.start, g.end) for g in report.gaps] == [(Reason.UNDECODABLE, 20, 30)]


def test_a_namespace_that_is_not_utf_8_does_not_stop_the_log(box: Box):
    box.receive(1)
    box.run(3, surroundings=lambda: Surroundings({"urn:x": ("http://opcfoundation.org/UA/", "urn:\udcfc")}))
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert headers[-1].sources == {"urn:x": ("http://opcfoundation.org/UA/", "urn:\ufffd")}
    box.assert_all_pushed()


def test_a_loss_that_the_journal_could_not_note_is_noted_later(box: Box):
    box.receive(3)
    box.sent.pop(1)
    box.journal._db.execute("UPDATE chunk SET body = zeroblob(40) WHERE seq = 2")
    box.run(0.5)
    box.pusher = None
    box.receive(1)

    class Refusing(InTurn):
        left = 2

        def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
            answer: Future[Any] = Future()
            try:
                with self.journal.transaction():
                    answer.set_result(work(self.journal))
                    if self.left and self.journal._db.execute("SELECT count(*) FROM gap").get:
                        self.left -= 1
                        raise Unavailable("disk full")
            except Unavailable as error:
                answer = Future()
                answer.set_exception(error)
            return answer

    box.journal._db.execute("DELETE FROM gap")
    box.store.objects.clear()
    box.journal._db.execute("DELETE FROM fact WHERE name LIKE 'log%'")
    box.writer = Refusing(box.journal)
    box.run(30)
    assert [g.reason for g in box.assert_all_pushed().gaps] == [Reason.UNDECODABLE]


def test_a_publish_time_with_more_than_any_segment_holds_is_declared_and_the_log_goes_on(
    box: Box, monkeypatch: pytest.MonkeyPatch
):
    box.receive(2)
    with box.journal.transaction():  # a history: chunks that share one publish time
        for part in range(3):
            box.journal.append(STREAM, TIMELINE, 30, 40, "a/history/x", doubles(50 + part))
        box.journal.extend(Coverage(STREAM, TIMELINE, 30, 40, "a/history/x", Grade.HISTORY))
    box.step = 5
    box.receive(2)
    monkeypatch.setattr("mirror.segment.ROWS_MAX", 12)
    status = box.run(60)
    assert status.state == "leading"
    report = box.assert_all_pushed()
    assert [(g.reason, g.start, g.end) for g in report.gaps] == [(Reason.UNDECODABLE, 30, 40)]
    assert {c.grade for c in report.claims if c.origin != "a"} == {Grade.HELD}


def test_many_gaps_of_many_tags_are_told_in_as_many_headers_as_they_need(box: Box, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.sync.GAPS_BYTES_MAX", 20_000)
    monkeypatch.setattr("mirror.header.HEADER_BYTES_MAX", 30_000)
    box.receive(1)
    names = [f"urn:x\nnsu=urn:ns;s=Tag number {i}" for i in range(1_000)]
    with box.journal.transaction():
        for i in range(9):
            box.journal.open_gap(
                Gap.opened(STREAM, TIMELINE, 20 + i, Reason.OVERFLOW, end=50, tags=names[: 100 if i else 1000])
            )
    box.run(60)
    gaps = box.verified().gaps
    assert [None if g.tags is None else len(g.tags) for g in gaps] == [None] + [100] * 8
    segments = box.verified().next
    box.run(60)
    assert box.verified().next == segments, "told once"


def test_many_claims_are_told_in_as_many_headers_as_they_need(box: Box, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.io.sealing.CLAIMS_MAX", 10)
    with box.journal.transaction():
        for i in range(25):
            box.journal.extend(Coverage(STREAM, TIMELINE, 20 * i, 20 * i + 10, "a"))
    box.run(60)
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert [len(h.intervals) for h in headers] == [0, 10, 10, 5]


def test_chunks_decode_to_what_the_log_holds_bit_for_bit(box: Box):
    box.receive(3)
    box.run(3)
    box.verified()
    reader = JournalReader.open(box.journal.path)
    rows = concat([chunk.decode(row.body) for row in reader.chunks_since(0)])
    reader.close()
    order = canonical_order(rows, box.journal.tags.rank)
    theirs = take(box.held, canonical_order(box.held, box.held_tags.rank))
    renamed = [box.journal.tags.find(box.held_tags.identities[h]) for h in theirs.handle.tolist()]
    theirs.handle[:] = renamed
    assert equal(take(rows, order), theirs)
