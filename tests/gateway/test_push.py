"""The pushing thread against a real journal and a store: kills, lost answers, long absence, strangers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import failover
from gateway.io.journal import Journal
from gateway.io.push import LOOK_AGAIN_S, Pusher
from gateway.io.reader import JournalReader
from gateway.io.sealing import Surroundings
from gateway.sync import Status
from mirror import segment
from mirror.batch import Batch, Heap, Kind
from mirror.coverage import Closure, Coverage, Gap, Grade, Reason
from mirror.errors import ConfigError, Conflict, Fenced, Unavailable
from mirror.floor import sign_floor
from mirror.header import Clock, Flaw, Header, chain_hash, public_hex
from mirror.layout import Layout
from mirror.prefix import Prefix, Saved
from mirror.verify import verify_store
from tests.gateway.boxes import KEY, LAYOUT, OTHER, POLICY, Box, InTurn, Kill
from tests.gateway.journals import STREAM, TIMELINE, doubles


def recording(method: Callable[..., None], names: list[str]) -> Callable[..., None]:
    """Return a method that does the same and notes the first argument of each call."""

    def call(journal: Journal, name: str, value: bytes) -> None:
        names.append(name)
        method(journal, name, value)

    return call


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.journal.close()


def test_what_is_covered_reaches_the_log_and_nothing_else_does(box: Box):
    box.receive(5)
    box.receive(1, cover=False)
    status = box.run(5)
    assert status.state == "leading"
    box.sent.pop()
    report = box.assert_all_pushed()
    assert report.streams[0].complete_up_to == 60
    assert report.streams[0].source == "urn:x"
    assert status.error is None
    assert (status.segments, status.rows) == (1, 30)


def test_the_first_segment_is_an_empty_fence_that_enrols_the_key(box: Box):
    box.receive(1)
    box.run(2)
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert (headers[0].rows, headers[0].intervals, headers[0].keys) == (0, (), {"a": public_hex(KEY)})
    assert headers[1].facts_sha256, "facts travel with the first rows"
    box.receive(1)
    box.run(5)
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert headers[-1].rows == 6
    assert not headers[-1].facts_sha256, "and not again while they stay as they are"


def test_a_backlog_is_cut_on_chunk_boundaries_into_full_segments(box: Box):
    box.receive(45)
    status = box.run(0.5)
    assert status.segments >= 4, "full ones follow each other without a pause"
    box.run(5)
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert [h.rows for h in headers if h.rows] == [60, 60, 60, 60, 30]
    box.assert_all_pushed()


def test_chunks_of_one_publish_time_stay_together(box: Box):
    box.receive(9)
    for part in range(4):  # a message in parts: one publish time, claimed when whole
        with box.journal.transaction():
            batch = doubles(100 + part)
            box.journal.append(STREAM, TIMELINE, 100, 110, "a", batch)
            box.sent.append(batch)
    with box.journal.transaction():
        box.journal.extend(Coverage(STREAM, TIMELINE, 100, 110, "a"))
    box.run(5)
    report = box.assert_all_pushed()
    assert report.segments == 3


def test_a_segment_takes_only_so_much_text(box: Box, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.io.sealing.HEAP_BYTES", 2500)
    for step in range(1, 7):
        batch = Batch.zeros(1)
        batch.kind[:] = Kind.STRING
        text = (1000).to_bytes(4, "little") + b"x" * 1000
        batch = replace(batch, heap=Heap.of([text]))
        batch.source_ticks[:] = step
        with box.journal.transaction():
            box.journal.append(STREAM, TIMELINE, step * 10, step * 10 + 10, "a", batch)
            box.journal.extend(Coverage(STREAM, TIMELINE, step * 10, step * 10 + 10, "a"))
        box.sent.append(batch)
    box.run(60)
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert [h.rows for h in headers if h.rows] == [3, 3]


def test_silence_is_told_as_coverage_without_rows(box: Box):
    box.receive(1)
    box.run(2)
    with box.journal.transaction():
        box.journal.extend(Coverage(STREAM, TIMELINE, 20, 95, "a"))
    box.run(12)
    assert box.verified().streams[0].complete_up_to == 95


def test_gaps_and_their_closing_reach_the_log(box: Box):
    box.receive(1)
    gap = Gap.opened(STREAM, TIMELINE, 20, Reason.DISCONNECTED, end=50)
    with box.journal.transaction():
        box.journal.open_gap(gap)
    box.run(3)
    assert [g.closed_by for g in box.verified().gaps] == [None]
    with box.journal.transaction():
        box.journal.close_gap(gap.id, Closure.LOST, "retention")
    box.run(12)
    assert [(g.closed_by, g.closed_reason) for g in box.verified().gaps] == [(Closure.LOST, "retention")]
    segments = box.verified().next
    box.run(60)
    assert box.verified().next == segments, "told once"


def test_gaps_are_told_again_where_the_segment_that_told_them_cannot_be_read_any_more(box: Box):
    gap = Gap.opened(STREAM, TIMELINE, 20, Reason.DISCONNECTED, end=50)
    with box.journal.transaction():
        box.journal.open_gap(gap)
    box.run(12)
    last = LAYOUT.segment(box.verified().next - 1)
    box.store.put(last, box.store.objects[last].body[:-9])
    box.pusher = None
    box.run(30)
    report = verify_store(box.store, LAYOUT, keys={"a": public_hex(KEY)})
    assert [f[:2] for f in report.findings] == [(1, Flaw.UNREADABLE)]
    assert [g.id for g in report.gaps] == [gap.id]
    segments = report.next
    box.run(60)
    assert verify_store(box.store, LAYOUT).next == segments, "told once"


def test_rows_from_history_are_pushed_under_their_own_origin(box: Box):
    box.receive(2)
    box.run(3)
    box.receive(1, grade=Grade.HISTORY, origin="a/history")
    box.run(12)
    report = box.assert_all_pushed()
    assert {c.origin for c in report.claims} == {"a", "a/history"}


def test_held_rows_are_sent_once_and_claimed_again_when_they_turn_out_complete(box: Box):
    box.receive(2, grade=Grade.HELD)
    box.run(3)
    assert box.verified().streams[0].complete_up_to is None
    with box.journal.transaction():
        box.journal.extend(Coverage(STREAM, TIMELINE, 10, 30, "a"))
    box.run(12)
    assert box.assert_all_pushed().streams[0].complete_up_to == 30


def test_surroundings_are_told_in_each_header(box: Box):
    around = Surroundings({"urn:x": ("http://opcfoundation.org/UA/", "urn:ns")}, Clock(5, 100, True))
    box.receive(1)
    box.run(3, surroundings=lambda: around)
    headers: list[Header] = []
    verify_store(box.store, LAYOUT, visit=lambda header, *_: headers.append(header))
    assert all(h.sources == around.sources and h.clock == around.clock for h in headers)


def test_the_journal_remembers_the_verified_log_and_its_promise(box: Box):
    box.receive(3)
    box.run(3)
    reader = JournalReader.open(box.journal.path)
    tip = reader.chain_tip()
    assert tip is not None
    assert (tip.seq, tip.epoch, tip.holder) == (1, 1, "a")
    assert reader.promise()[STREAM, TIMELINE, "a"].covers(10, 40)
    known = {row.seq: row.hash for row in reader.chain()}
    assert verify_store(box.store, LAYOUT, known=known).verified
    reader.close()


def test_a_log_with_many_gaps_is_not_written_into_the_journal_with_each_segment(
    box: Box, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.io.push.TOLD_FEW", 5)
    with box.journal.transaction():
        for i in range(20):
            box.journal.open_gap(Gap.opened(STREAM, TIMELINE, 20 + i, Reason.OVERFLOW, end=90 + i))
    saved: list[str] = []
    monkeypatch.setattr(Journal, "set_fact", recording(Journal.set_fact, saved))
    for _ in range(30):
        box.receive(1)
        box.run(12)
    assert box.verified().next > 20
    assert 1 <= len([name for name in saved if name.startswith("log:")]) <= 5
    box.pusher = None
    box.receive(1)
    box.run(30)
    box.assert_all_pushed()


def test_a_floor_that_nobody_signed_stops_nothing_and_hides_nothing(box: Box, capsys: pytest.CaptureFixture[str]):
    box.receive(2)
    box.run(3)
    lie = Saved("g", 9, "11" * 32, claims=[Coverage(STREAM, TIMELINE, 0, 10**9, "a")], genesis="22" * 32)
    for floor in (Prefix(lie).save(), b"noise"):
        box.store.put(LAYOUT.floor, floor)
        box.receive(2)
        assert box.run(12).state == "leading"
        box.pusher = None
        box.receive(2)
        assert box.run(12).state == "leading"
    report = verify_store(box.store, LAYOUT, keys={"a": public_hex(KEY)})
    assert (report.rows, [f.place for f in report.findings]) == (sum(map(len, box.sent)), ["floor.json"])
    told = [line for line in capsys.readouterr().err.splitlines() if "floor.json" in line]
    assert len(told) == 4, "once by each process for each of the two"


def test_a_journal_that_forgot_the_log_goes_on_from_its_floor(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for _ in range(3):
        box.receive(1)
        box.run(12)
    assert box.pusher is not None and box.pusher._chain is not None
    below = Prefix(Saved("g"))
    last = box.verified().next - 1
    for seq in range(last):
        data = segment.read_header(box.store.objects[LAYOUT.segment(seq)].body)
        found = below.judge(data)
        assert isinstance(found, Header)
        below.absorb(found, chain_hash(data), "")
        box.store.delete(LAYOUT.segment(seq))
    box.store.put(LAYOUT.floor, sign_floor(below, "a", KEY))
    other = Box(tmp_path / "other", box.store)
    assert other.run(12).state == "leading"
    assert '"event":"push.floor_believed"' in capsys.readouterr().err
    other.step = box.step
    other.receive(1)
    other.run(12)
    report = other.verified()
    assert (report.first, report.streams[0].complete_up_to) == (last, (box.step + 2) * 10)


# Kills


def test_killed_anywhere_it_resumes_with_each_row_once_in_the_log(tmp_path: Path):
    """Ends the process at the n-th interaction with store or journal, for every n until none is left."""
    killed = points = 0
    for point in range(1, 200):
        box = Box(tmp_path / str(point))
        left = point

        def die(_point: str, _key: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Kill

        box.store.fault = box.writer.fault = die
        for _ in range(3):
            box.receive(7)
            box.run(3)
        died = left <= 0
        box.store.fault = box.writer.fault = lambda point, key: None
        box.run(30)
        report = box.assert_all_pushed()
        assert box.pusher is not None
        assert box.pusher.status.error is None
        assert len(report.epochs) == box.starts or died
        box.journal.close()
        killed += died
        points = point
        if not died:
            break
    assert killed == points - 1, "every point but the last was reached"
    assert killed >= 20


def test_killed_again_and_again_the_log_stays_whole(box: Box):
    count = 0

    def die(_point: str, _key: str) -> None:
        nonlocal count
        count += 1
        if count % 11 == 0:
            raise Kill

    box.store.fault = box.writer.fault = die
    for _ in range(25):
        box.receive(2)
        box.run(2)
    box.store.fault = box.writer.fault = lambda point, key: None
    box.run(30)
    report = box.assert_all_pushed()
    epochs = [epoch for epoch, _, _ in report.epochs]
    assert epochs == sorted(set(epochs))
    assert len(epochs) > 5


def test_a_journal_that_forgot_the_log_reads_it_again_from_the_store(box: Box, tmp_path: Path):
    box.receive(8)
    box.run(3)
    box.pusher = None
    with box.journal.transaction():
        box.journal.set_fact(f"log:memory/{LAYOUT.root}", b"")
        box.journal._db.execute("DELETE FROM fact WHERE name LIKE 'log%'")
    box.receive(1)
    box.run(12)
    box.assert_all_pushed()


# Lost answers and absence


@pytest.mark.parametrize("point", ["before put", "after put"])
def test_a_write_without_an_answer_enters_the_log_once(box: Box, point: str):
    lost = 2

    def lose(where: str, key: str) -> None:
        nonlocal lost
        if where == point and lost and key.startswith(LAYOUT.log):
            lost -= 1
            raise Unavailable("no answer")

    box.store.fault = lose
    box.receive(5)
    box.run(20)
    assert lost == 0
    box.assert_all_pushed()


def test_a_store_that_refuses_with_a_conflict_although_it_wrote_is_read_back(box: Box):
    """A repeat by something between here and the store: the first copy won, the answer is of the second."""
    times = 2

    def deny(where: str, key: str) -> None:
        nonlocal times
        if where == "after put" and times and key.startswith(LAYOUT.log):
            times -= 1
            raise Conflict("exists")

    box.store.fault = deny
    box.receive(5)
    box.run(20)
    assert times == 0
    box.assert_all_pushed()


def test_a_store_away_for_seven_days_loses_nothing_and_is_not_pestered(box: Box):
    box.receive(2)
    box.run(3)

    def away(point: str, key: str) -> None:
        raise Unavailable("away")

    box.store.fault = away
    before = len(box.store.calls)
    for _ in range(7 * 24):
        box.receive(2)
        status = box.run(3600)
    assert isinstance(status.error, Unavailable)
    assert status.backlog_rows == 7 * 24 * 12
    asked = (len(box.store.calls) - before) / (7 * 24)
    assert asked <= 3600 / 30 + 5, "about one question in half a minute"
    box.store.fault = lambda point, key: None
    status = box.run(60)
    assert status.error is None
    box.assert_all_pushed()


def test_a_store_that_listens_again_gets_the_backlog_at_once(box: Box):
    knocks: list[float] = []
    is_there = True

    def listens() -> bool:
        knocks.append(box.now)
        return is_there

    def away(point: str, key: str) -> None:
        raise Unavailable("away")

    box.run(60, listens=listens)
    assert knocks == [], "nobody knocks at a store that answers"
    box.store.fault = away
    box.receive(5)
    box.run(1200)
    assert len(knocks) < 250, "who listens and refuses is left to the pauses"
    is_there = False
    box.run(60)
    before, asked = len(knocks), len(box.store.calls)
    box.run(60)
    assert 230 <= len(knocks) - before <= 241
    assert len(box.store.calls) - asked <= 3, "a knock is no request"
    box.store.fault, is_there = (lambda point, key: None), True
    assert box.run(1.0).rows == 30
    box.assert_all_pushed()


def test_a_store_away_from_the_start_is_waited_for(box: Box):
    def away(point: str, key: str) -> None:
        raise Unavailable("away")

    box.store.fault = away
    box.receive(3)
    status = box.run(100)
    assert isinstance(status.error, Unavailable)
    box.store.fault = lambda point, key: None
    assert box.run(60).state == "leading"
    box.assert_all_pushed()


def test_wrong_credentials_are_told_and_tried_again(box: Box):
    def denied(point: str, key: str) -> None:
        raise ConfigError("403", hint="check the keys")

    box.store.fault = denied
    box.receive(1)
    status = box.run(100)
    assert isinstance(status.error, ConfigError)
    box.store.fault = lambda point, key: None
    box.run(60)
    box.assert_all_pushed()


# Others


def test_somebody_elses_log_is_refused_with_a_hint_and_left_alone(box: Box, tmp_path: Path):
    stranger = Box(tmp_path / "b", box.store)
    stranger.receive(2)
    stranger.run(3, replica="b", key=OTHER)
    objects = dict(box.store.objects)
    box.receive(2)
    status = box.run(60)
    assert status.state == "refused"
    assert isinstance(status.error, ConfigError)
    assert "belongs to b" in str(status.error)
    assert "group.name" in status.error.hint
    assert box.store.objects == objects
    box.store.objects.clear()  # somebody puts it elsewhere
    assert box.run(LOOK_AGAIN_S + 5).state == "leading"
    box.assert_all_pushed()
    stranger.journal.close()


def test_who_only_follows_learns_what_is_there_and_whether_it_could_lead(box: Box, tmp_path: Path):
    box.receive(5)
    box.run(10)
    for replica, key, barred in (("a", KEY, ""), ("b", OTHER, "not enrolled")):
        other = Box(tmp_path / replica, box.store)
        known: list[int] = []
        pusher = other.start(replica=replica, key=key)
        other.leading.post(failover.Ready(False))
        pusher._on_known = known.append
        other.receive(2)
        for _ in range(200):
            other.now += pusher.turn()
        assert (pusher.status.state, pusher.has_read, known[-1]) == ("following", True, 1)
        assert barred in pusher.barred and bool(pusher.barred) == bool(barred)
        assert pusher.status.seq == 2
        other.journal.close()
    assert len([key for key in box.store.objects if key.startswith(LAYOUT.log)]) == 2, "nothing is written"


def test_the_same_replica_name_with_another_key_is_refused(box: Box, tmp_path: Path):
    twin = Box(tmp_path / "b", box.store)
    twin.receive(2)
    twin.run(3, key=OTHER)
    status = box.run(60)
    assert status.state == "refused"
    twin.journal.close()


def test_a_second_process_with_a_copy_of_everything_fences_the_first(box: Box, tmp_path: Path):
    box.receive(2)
    box.run(3)
    clone = Box(tmp_path / "b", box.store)
    clone.receive(2)
    status = clone.run(3)
    assert status.state == "leading"
    assert status.epoch == 2, "above the log's, although its own journal knew of none"
    box.receive(2)
    status = box.run(20)
    assert status.state == "fenced"
    assert isinstance(status.error, Fenced)
    assert status.error.hint
    box.receive(2)
    assert box.run(100).state == "fenced", "and never takes the log back by itself"
    assert verify_store(box.store, LAYOUT).verified
    clone.journal.close()


def test_another_place_in_the_bucket_is_another_log_and_gets_everything(box: Box):
    box.receive(4)
    box.run(3)
    box.pusher = None
    other = Layout("elsewhere", "g")
    box.run(12, layout=other)
    report = verify_store(box.store, other)
    assert report.verified
    assert report.rows == 24
    reader = JournalReader.open(box.journal.path)
    assert [row.seq for row in reader.chain()] == [0, 1]
    assert {row.epoch for row in reader.chain()} == {2}, "the former log is forgotten"
    reader.close()
    box.pusher = None
    box.receive(1)
    box.run(12)  # and back: the first log goes on where it was
    box.assert_all_pushed()


# The thread itself


def test_an_error_that_nobody_foresaw_is_told_and_pushing_begins_anew(box: Box):
    broken = 2

    def fault(where: str, key: str) -> None:
        nonlocal broken
        if broken and where == "after put" and key.startswith(LAYOUT.log):
            broken -= 1
            raise RuntimeError("nobody foresaw this")

    box.store.fault = fault
    box.receive(3)
    status = box.run(1)
    assert "nobody foresaw this" in str(status.error)
    box.receive(3)
    status = box.run(200)
    assert (status.state, status.error) == ("leading", None)
    report = box.assert_all_pushed()
    assert [epoch for epoch, _, _ in report.epochs] == [1, 2, 3], "each beginning has an epoch of its own"


class Threaded:
    """Runs the journal's work in a thread of its own, as ingest does."""

    def __init__(self, journal: Journal) -> None:
        self.inner, self.lock = InTurn(journal), threading.Lock()

    def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
        with self.lock:
            return self.inner.call(work)


def test_the_thread_pushes_and_ends_when_told(box: Box):
    pushed = threading.Event()

    def told(status: Status) -> None:
        if status.segments:
            pushed.set()

    box.receive(3)
    with box.journal.transaction():
        box.journal.save_epoch(1, "inc")
    pusher = Pusher(
        [box.store], lambda: JournalReader.open(box.journal.path), Threaded(box.journal), layout=LAYOUT, replica="a",
        key=KEY, policy=POLICY, incarnation="inc", on_status=told,
    )  # fmt: skip
    pusher.start()
    pusher.lead(1)
    assert pushed.wait(20)
    pusher.stop()
    assert pusher.status.state == "stopped"
    box.assert_all_pushed()


def test_the_file_in_the_store_is_the_one_whose_hash_stands_beside_it(box: Box):
    box.receive(1)
    box.run(3)
    for key, found in box.store.objects.items():
        if key.startswith(LAYOUT.log):
            assert found.metadata["sha256"] == hashlib.sha256(found.body).hexdigest()
            metadata: Mapping[str, str] = found.metadata
            assert len(metadata["chain"]) == 64
