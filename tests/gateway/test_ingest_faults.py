"""The ingest thread under what servers, disks and other threads do to it: nothing of that ends it, or goes unsaid."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway import sampler
from gateway.decode import read_publish, read_republish
from gateway.io import datadir
from gateway.io import ingest as ingesting
from gateway.io.ingest import DECLARE_S, Ingest, position_name, read_position
from gateway.io.journal import WAL_PAGES, Journal
from gateway.io.reader import JournalReader
from gateway.sampler import Sampler, Subscribed
from mirror.coverage import Closure, Reason
from mirror.errors import Unavailable
from tests.gateway.disk import Recorder
from tests.gateway.publish_bytes import data_change, double, header, item, notification_message, publish, string
from tests.gateway.test_ingest import STREAM, WAIT_S, Rig, T

NOISE = string(random.Random(1).randbytes(100_000).hex())  # does not compress to nothing


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# What a server sends


@pytest.mark.parametrize("times", [(-(2**63),), (2**63 - 1, 2**63 - 1), (2**63 - 1, -(2**63), 0)])
def test_no_publish_time_ends_the_thread_and_none_that_is_fetched_again_does(
    tmp_path: Path, times: tuple[int, ...]
) -> None:
    for life in range(2):
        rig = Rig(tmp_path)
        if life:  # the process is new, and the server still has what it sent
            rig.ingest.event(STREAM, Subscribed(8, -(2**63), resumed=True, reason=Reason.GATEWAY_DOWN))
        for n, ticks in enumerate(times, 1):
            part = data_change([item(0, double(n))])
            if life:
                message = notification_message([part], sequence=n, publish_ticks=ticks)
                rig.ingest.message(STREAM, read_republish(header(835) + message), republished=True)
            else:
                rig.send(n, item(0, double(n)), ticks=ticks)
        rig.send(len(times) + 1, item(0, double(9.0)))
        assert rig.acknowledged(len(times) + 1) == list(range(1, len(times) + 2))
        assert rig.ingest.failure is None and rig.ingest.counters.undecodable == 0
        rig.close()


def test_a_server_cannot_write_the_tags_of_another(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.ingest.add_stream("other", None, str, [0, 2])
    rig.ingest.event("other", Subscribed(7, 1, resumed=False, reason=Reason.GATEWAY_DOWN))
    body = publish([data_change([item(h, double(h), status=0x0480) for h in (0, 1, 2, 3, 4, 2**32 - 1)])])
    rig.ingest.message("other", read_publish(body))
    assert rig.acknowledged(1) == [1]
    assert rig.rows().handle.tolist() == [0, 2]
    assert rig.ingest.counters.refused == 4
    (gap,) = rig.gaps()
    assert gap.tags == ["0", "2"], "nor say that they are missing"
    rig.close()


def test_a_message_that_provokes_an_error_of_ours_is_set_aside_told_and_acknowledged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path)
    rig.ingest.add_stream("odd", None, {0: "t"}.__getitem__, range(4))  # knows no name for most handles
    rig.ingest.event("odd", Subscribed(7, 1, resumed=False, reason=Reason.GATEWAY_DOWN))
    bodies = [
        publish([data_change([item(h, double(n), status=status)])], sequence=n, publish_ticks=T + n * 1_000_000)
        for n, h, status in ((1, 3, 0), (2, 3, 0x0480), (3, 3, 0))
    ]  # fmt: skip
    for body in bodies:
        rig.ingest.message("odd", read_publish(body))
    rig.send(1, item(0, double(1.0)))
    assert sorted(rig.acknowledged(4)) == [1, 1, 2, 3]
    assert rig.ingest.failure is None
    (gap,) = rig.gaps()
    assert gap.reason is Reason.UNDECODABLE and (gap.start, gap.end) == (T + 1_000_000, T + 2_000_000)
    reader = JournalReader.open(rig.path)
    assert reader.fact("quarantine/odd/2") == bodies[1]
    reader.close()
    assert rig.ingest.counters.undecodable == 1 and len(rig.rows()) == 3
    (told,) = [event for event in events(capfd.readouterr().err) if event["event"] == "message.failed"]
    assert (told["stream"], told["sequence"], told["error"]) == ("odd", 2, "KeyError(3)")
    rig.close()


class Forgetful(Journal):
    """A journal that cannot tell whether a timeline was used, which is asked when a clock goes back."""

    def has_timeline(self, stream: str, timeline: str) -> bool:
        if timeline.endswith("5"):
            raise LookupError(timeline)
        return super().has_timeline(stream, timeline)


def test_a_message_that_cannot_even_be_set_aside_is_as_good_as_lost_and_the_others_live_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, journal=Forgetful)
    odd = T - 999_999_995
    for n, ticks in ((1, T + 1_000_000), (2, odd), (3, T + 3_000_000), (4, T + 4_000_000)):
        body = publish([data_change([item(0, double(n))])], sequence=n, publish_ticks=ticks, available=None)
        rig.ingest.message(STREAM, read_publish(body))
    asked: list[sampler.Republish] = []
    while not asked:
        asked = [e for _, e in rig.durable.get(timeout=WAIT_S).effects if isinstance(e, sampler.Republish)]
    assert asked == [sampler.Republish(7, 2)]
    again = notification_message([data_change([item(0, double(2.0))])], sequence=2, publish_ticks=odd)
    rig.ingest.message(STREAM, read_republish(header(835) + again), republished=True)
    assert rig.acknowledged(2) == [3, 4]
    (gap,) = rig.gaps()
    assert gap.reason is Reason.MISSED and rig.ingest.failure is None
    rig.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_no_message_is_to_blame_for_still_ends_the_thread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(tmp_path)
    rig.do(lambda journal: None)
    broken = sampler.Backfilled(gap=None, complete=True)  # type: ignore[arg-type]
    rig.ingest.event(STREAM, broken)
    rig.ingest._thread.join(WAIT_S)
    assert isinstance(rig.ingest.failure, AttributeError)
    assert "ingest.failed" in capfd.readouterr().err
    with pytest.raises(Unavailable):
        rig.ingest.call(lambda journal: None).result(WAIT_S)
    rig.journal.close()


# What a disk refuses


class Refusing(Journal):
    """A journal whose commits fail as long as they shall."""

    refuses = False

    @contextmanager
    def transaction(self, **how: Any) -> Iterator[None]:
        with super().transaction(**how):
            yield
            if self.refuses:
                raise Unavailable("no space left")


def test_what_is_tried_again_is_counted_told_and_kept_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rig = Rig(tmp_path, journal=Refusing, is_stepped=True)
    rig.send(1, item(0, double(1.0)))
    rig.ingest.turn()
    capfd.readouterr()
    broken = publish([data_change([item(0, double(2.0))], count=99)], sequence=2, publish_ticks=T + 2_000_000)
    rig.ingest.message(STREAM, read_publish(broken))
    rig.send(3, item(0, double(3.0), status=0x0480))
    assert isinstance(rig.journal, Refusing)
    rig.journal.refuses = True
    for _ in range(ingesting.QUARANTINE_MAX + 1):
        assert not rig.ingest.turn()
    assert [event["event"] for event in events(capfd.readouterr().err)] == ["journal.stalled"]
    rig.journal.refuses = False
    assert rig.ingest.turn()
    counters = rig.ingest.counters
    assert (counters.messages, counters.undecodable, counters.gaps_opened, counters.samples) == (3, 1, 2, 2)
    assert counters.overflows == {STREAM: 1} and counters.events["overflow"] == 1
    told = [event["event"] for event in events(capfd.readouterr().err)]
    assert sorted(told) == ["gap.opened", "gap.opened", "journal.recovered", "message.undecodable"]
    reader = JournalReader.open(rig.path)
    assert reader.fact(f"quarantine/{STREAM}/2") == broken
    reader.close()
    rig.close()


def test_a_run_of_overflows_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rig = Rig(tmp_path)
    for n in range(1, 6):
        rig.send(n, item(n % 4, double(n), status=0x0480))
    rig.acknowledged(5)
    assert len(rig.gaps()) == rig.ingest.counters.gaps_opened == 1
    assert [event["event"] for event in events(capfd.readouterr().err)] == ["gap.opened"]
    rig.close()


def test_a_disk_that_is_full_for_the_checkpoint_alone_stops_nothing(tmp_path: Path) -> None:
    disk = Recorder("full-for-checkpoints")
    rig = Rig(tmp_path, vfs=disk.name)
    disk.full_file = "mirror.db"
    n = 0
    while rig.journal.wal_pages < 2 * WAL_PAGES:
        n += 1
        rig.send(n, item(0, NOISE))
        assert rig.acknowledged(1) == [n]
    assert rig.ingest.failure is None and rig.ingest.stalled_since is None
    disk.full_file = ""
    rig.send(n + 1, item(0, double(1.0)))
    rig.acknowledged(1)
    rig.do(lambda journal: None)
    assert rig.journal.wal_pages < WAL_PAGES
    rig.close()
    disk.close()


def test_what_a_failed_sync_refused_is_acknowledged_only_once_it_is_written_again(tmp_path: Path) -> None:
    disk = Recorder("failing-syncs")
    rig = Rig(tmp_path, vfs=disk.name, is_stepped=True)
    rig.ingest.turn()
    while not rig.durable.empty():
        rig.durable.get()
    disk.sync_fails = lambda file: True
    rig.send(1, item(0, double(1.0)))
    for _ in range(5):
        assert not rig.ingest.turn()
        assert rig.durable.empty(), "nothing is acknowledged, and nothing published"
    assert rig.ingest.stalled_since is not None, "and no more is asked for"
    disk.sync_fails = lambda file: False
    assert rig.ingest.turn()
    assert rig.acknowledged(1) == [1]
    assert rig.ingest.stalled_since is None and len(rig.rows()) == 1
    rig.close()
    disk.close()


class SmallDisk:
    """A rig on a disk that can be filled to the last byte, on a clock of the test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.now = 0.0
        self.disk = Recorder(name)
        self.folder = folder
        self.rig = self.start()

    def start(self) -> Rig:
        datadir.keep_reserve(self.folder)
        return Rig(self.folder, vfs=self.disk.name, is_stepped=True, clock=lambda: self.now)

    def fill(self) -> None:
        """Leave nothing but the reserve; something that has to be stored waits."""
        self.disk.capacity = sum(file.stat().st_size for file in self.folder.iterdir()) + 1000
        self.answer = self.rig.ingest.call(lambda journal: journal.set_fact("large", bytes(500_000)))
        assert not self.rig.ingest.turn()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        assert not self.rig.ingest.turn()

    def free(self) -> None:
        self.disk.capacity = None
        assert self.rig.ingest.turn() and self.answer.done()

    def close(self) -> None:
        self.disk.capacity = None
        self.rig.close()
        self.disk.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path, f"small-{tmp_path.name}")
    small.rig.send(1, item(0, double(1.0)))
    small.rig.ingest.turn()
    yield small
    small.close()


def begin_anew(rig: Rig, reason: Reason = Reason.DISCONNECTED, subscription: int = 8) -> None:
    """Subscribe anew and take one message, ten minutes later."""
    rig.ingest.event(STREAM, Subscribed(subscription, 1, resumed=False, reason=reason))
    rig.send(1, item(0, double(9.0)), ticks=T + 6_000_000_000)
    rig.ingest.turn()


def test_a_full_disk_that_lasts_gets_its_gap_row_before_there_is_room_and_its_end_afterwards(small: SmallDisk) -> None:
    small.fill()
    small.wait(DECLARE_S / 2)
    assert not small.rig.gaps()
    small.wait(DECLARE_S)
    (gap,) = small.rig.gaps()
    assert (gap.reason, gap.start, gap.end) == (Reason.DISK_FULL, T + 1_000_000, None)
    assert small.rig.ingest.full, "and nothing else has got the room"
    small.wait(600.0)
    small.free()
    begin_anew(small.rig)
    (ended,) = small.rig.gaps()
    assert (ended.id, ended.end) == (gap.id, T + 6_000_000_000 - 1)
    assert small.rig.ingest.counters.gaps_opened == 1
    small.rig.send(2, item(0, double(2.0)), ticks=T + 6_001_000_000)
    small.rig.ingest.turn()
    begin_anew(small.rig, subscription=9)
    assert small.rig.gaps()[1].reason is Reason.DISCONNECTED, "the disk has nothing to do with the next one"


def test_a_process_that_ends_on_a_full_disk_leaves_the_reason_to_the_next_one(small: SmallDisk) -> None:
    small.fill()
    small.wait(DECLARE_S)
    small.disk.capacity = None
    small.rig.journal.close()
    small.rig = small.start()
    reader = JournalReader.open(small.rig.path)
    position = read_position(reader.fact(position_name(STREAM)))
    reader.close()
    small.rig.ingest = fresh = Ingest(
        small.rig.journal, replica="a", commit_s=0.0, inbox_bytes_max=1 << 20, on_durable=lambda durable: None,
        on_room=lambda: None,
    )  # fmt: skip
    fresh.add_stream(STREAM, position, str, range(4))
    begin_anew(small.rig, Reason.GATEWAY_DOWN)
    (gap,) = small.rig.gaps()
    assert gap.reason is Reason.DISK_FULL and gap.end == T + 6_000_000_000 - 1


@pytest.mark.parametrize("reserve", [True, False])
def test_what_waited_is_stored_and_the_gap_begins_behind_it_with_the_reason(small: SmallDisk, reserve: bool) -> None:
    small.fill()
    if not reserve:  # somebody else was faster
        (small.folder / "reserve").unlink()
        small.disk.capacity -= datadir.RESERVE_BYTES  # type: ignore[operator]
    small.rig.send(2, item(0, double(2.0)))
    small.wait(DECLARE_S)
    small.wait(DECLARE_S)
    assert len(small.rig.gaps()) == reserve
    small.free()
    small.rig.ingest.turn()
    begin_anew(small.rig)
    *declared, gap = small.rig.gaps()
    assert (gap.reason, gap.start, gap.end) == (Reason.DISK_FULL, T + 2_000_000, T + 6_000_000_000 - 1)
    assert [(g.closed_by, g.end) for g in declared] == [(Closure.REPUBLISH, T + 1_000_000)] * reserve


def test_a_full_disk_that_the_subscription_outlives_leaves_no_gap(small: SmallDisk) -> None:
    small.fill()
    small.wait(DECLARE_S)
    small.free()
    small.rig.send(2, item(0, double(2.0)))
    small.rig.ingest.turn()
    (gap,) = small.rig.gaps()
    assert gap.closed_by is Closure.REPUBLISH and gap.end == gap.start
    assert (small.folder / "reserve").stat().st_size == datadir.RESERVE_BYTES, "and there is a reserve again"
    begin_anew(small.rig)
    assert small.rig.gaps()[1].reason is Reason.DISCONNECTED


# What other threads do meanwhile


def test_a_stream_may_be_added_at_any_moment_of_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []

    class Busy(Sampler):
        """In another thread, a source is met for the first time just now."""

        def snapshot(self) -> Sampler:
            added.append(f"s{len(added) + 2}")
            other = threading.Thread(target=rig.ingest.add_stream, args=(added[-1], None, str, ()))
            other.start()
            other.join(WAIT_S)
            return super().snapshot()

    monkeypatch.setattr(ingesting, "Sampler", Busy)
    rig = Rig(tmp_path)
    rig.send(1, item(0, double(1.0)))
    assert rig.acknowledged(1) == [1] and added
    assert rig.ingest.failure is None and all(rig.ingest.sampler(stream) for stream in added)
    rig.close()


class Meeting:
    """A lock, before which another thread gets its turn once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.first: Callable[[], None] | None = None

    def __enter__(self) -> None:
        first, self.first = self.first, None
        if first is not None:
            first()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_pump_that_finds_the_inbox_full_while_a_commit_ends_is_woken(tmp_path: Path) -> None:
    rig = Rig(tmp_path, is_stepped=True, inbox_bytes_max=1000)
    rig.ingest.turn()
    found: list[bool] = []

    def pump() -> None:
        rig.send(2, item(1, string("x" * 600)))
        found.append(rig.ingest.full)

    meeting = Meeting()
    rig.ingest._lock = meeting  # type: ignore[assignment]
    rig.send(1, item(1, string("x" * 600)))
    meeting.first = lambda: setattr(meeting, "first", pump)  # the first lock is for the machines, the second for bytes
    rig.ingest.turn()
    rig.ingest.turn()
    assert found == [True], "the pump has stopped asking"
    assert not rig.ingest.full and rig.room.qsize() == 1
    rig.close()


# Group commit


class Arrivals(queue.SimpleQueue[Any]):
    """An inbox into which things fall at given times; whoever waits for them makes the time pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Any]] = []

    def get_nowait(self) -> Any:
        if not self.due or self.due[0][0] > self.now:
            raise queue.Empty
        return self.due.pop(0)[1]

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert block and timeout is not None
        until = self.now + timeout
        if not self.due or self.due[0][0] > until:
            self.now = until
            raise queue.Empty
        self.now = max(self.now, self.due[0][0])
        return self.due.pop(0)[1]


def commits(tmp_path: Path, at_s: list[float]) -> dict[float, list[float]]:
    """Return the times at which commits ended, each with the arrival times of what it made durable."""
    found: dict[float, list[float]] = {}
    inbox = Arrivals()
    rig = Rig(tmp_path, is_stepped=True, commit_s=0.020, clock=lambda: inbox.now)
    rig.ingest.turn()
    for at in at_s:
        rig.ingest.call(lambda journal, at=at: found.setdefault(inbox.now, []).append(at))
        inbox.due.append((at, rig.ingest._inbox.get_nowait()))
    rig.ingest._inbox = inbox
    while inbox.due:
        rig.ingest.turn(1.0)
    rig.close()
    return found


def test_under_load_commits_are_twenty_milliseconds_apart_and_nothing_waits_for_longer(tmp_path: Path) -> None:
    found = commits(tmp_path, [n / 1000 for n in range(1, 500)])
    times = list(found)
    assert len(times) > 20
    assert all(after - before >= 0.020 - 1e-9 for before, after in pairwise(times))
    assert all(0 <= time - at <= 0.020 + 1e-9 for time, ats in found.items() for at in ats)
    assert sum(len(ats) for ats in found.values()) == 499


def test_what_comes_alone_is_committed_at_once(tmp_path: Path) -> None:
    at_s = [0.5, 0.6, 0.63, 5.0]
    assert commits(tmp_path, at_s) == {at: [at] for at in at_s}
