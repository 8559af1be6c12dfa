"""The ingest thread on a real journal: what is durable when, and what happens when the disk refuses."""

from __future__ import annotations

import queue
import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import sampler
from gateway.decode import read_publish
from gateway.io.ingest import Durable, Ingest, position_name, read_position
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror import chunk
from mirror.batch import AHEAD, NO_VALUE, Batch, concat
from mirror.coverage import Gap, Reason
from mirror.errors import Unavailable
from mirror.tags import Tag
from tests.gateway.publish_bytes import data_change, double, item, publish, string

STREAM = "s1"
T = 133_800_000_000_000_000
WAIT_S = 20.0


class Rig:
    """An ingest on a journal in a folder, and what it has let go.

    Args:
        folder: Of the journal.
        journal: Another kind of journal.
        vfs: The disk under it.
        is_stepped: No thread: the test calls `ingest.turn()`.
        more: Of the ingest.
    """

    def __init__(
        self, folder: Path, *, journal: type[Journal] = Journal, vfs: str = "", is_stepped: bool = False, **more: Any
    ) -> None:
        self.path = folder / "mirror.db"
        self.journal = journal.open(self.path, replica="a", vfs=vfs)
        self.durable: queue.SimpleQueue[Durable] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[bool] = queue.SimpleQueue()
        how = {"commit_s": 0.0, "inbox_bytes_max": 1 << 20, **more}
        self.ingest = Ingest(
            self.journal, replica="a", on_durable=self.durable.put, on_room=lambda: self.room.put(True), **how
        )  # fmt: skip
        self.is_stepped = is_stepped
        if not is_stepped:
            self.ingest.start()
        tags = [Tag("urn:plc", "urn:ns", f"s={n}", path=f"P/{n}", device="d", name=str(n)) for n in range(4)]
        self.do(lambda j: j.add_tags(tags))
        self.ingest.add_stream(STREAM, None, self.journal.tags.identities.__getitem__, range(4))
        self.ingest.event(STREAM, sampler.Subscribed(7, 1, resumed=False, reason=Reason.GATEWAY_DOWN))

    def do(self, work: Any) -> Any:
        answer = self.ingest.call(work)
        if self.is_stepped:
            self.ingest.turn()
        return answer.result(WAIT_S)

    def send(self, sequence: int, *items: bytes, ticks: int | None = None) -> None:
        at = T + sequence * 1_000_000 if ticks is None else ticks
        body = publish([data_change(items)], sequence=sequence, publish_ticks=at, available=(sequence,))
        self.ingest.message(STREAM, read_publish(body))

    def acknowledged(self, count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            for _, effect in self.durable.get(timeout=WAIT_S).effects:
                if isinstance(effect, sampler.Acknowledge):
                    found.append(effect.sequence)
        return found

    def close(self) -> None:
        if not self.is_stepped:
            self.ingest.stop()
        self.journal.close()

    def gaps(self) -> list[Gap]:
        reader = JournalReader.open(self.path)
        try:
            return reader.gaps()
        finally:
            reader.close()

    def rows(self) -> Batch:
        reader = JournalReader.open(self.path)
        try:
            return concat([chunk.decode(row.body) for row in reader.chunks_since(0)])
        finally:
            reader.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this: a disk that is full, as far as a write can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_acknowledged_can_be_read_by_somebody_else(rig: Rig) -> None:
    rig.send(1, item(0, double(1.5)), item(1, string("x")))
    assert rig.acknowledged(1) == [1]
    rows = rig.rows()
    assert rows.handle.tolist() == [0, 1] and rows.value_bytes(0) == struct.pack("<d", 1.5)
    position = rig.ingest.sampler(STREAM)
    assert position is not None and position.position is not None
    reader = JournalReader.open(rig.path)
    assert read_position(reader.fact(position_name(STREAM))) == position.position
    (coverage,) = reader.coverage()
    assert coverage.end == T + 1_000_000
    reader.close()


def test_a_refused_node_is_stored_with_the_server_s_own_status_in_front_of_the_first_rows(rig: Rig) -> None:
    rig.ingest.refused(STREAM, {2: 0x80340000}, T)
    rig.send(1, item(0, double(1.0)))
    rig.send(2, item(0, double(2.0)))
    rig.acknowledged(2)
    rows = rig.rows()
    assert rows.handle.tolist() == [2, 0, 0]
    assert rows.status.tolist() == [0x80340000, 0, 0] and rows.flags[0] & NO_VALUE


def test_refused_nodes_told_while_earlier_ones_are_stored_are_stored_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    hold, go = queue.SimpleQueue[bool](), queue.SimpleQueue[bool]()

    def wait(_journal: Journal) -> None:
        hold.put(True)
        go.get(timeout=WAIT_S)

    rig.ingest.call(wait)
    hold.get(timeout=WAIT_S)  # what follows is one transaction
    rig.ingest.refused(STREAM, {2: 0x80340000}, T)
    rig.send(1, item(0, double(1.0)))
    rig.ingest.refused(STREAM, {3: 0x80340000}, T)
    go.put(True)
    rig.acknowledged(1)
    rig.send(2, item(0, double(2.0)))
    rig.acknowledged(1)
    assert {2, 3} <= set(rig.rows().handle.tolist())
    rig.close()


def test_a_source_time_far_ahead_of_our_clock_is_kept_and_flagged(rig: Rig) -> None:
    rig.send(1, item(0, double(1.0), source=2**62), item(1, double(1.0)))
    rig.acknowledged(1)
    rows = rig.rows()
    assert rows.source_ticks[0] == 2**62 and (rows.flags & AHEAD).tolist() == [AHEAD, 0]


def test_a_message_that_cannot_be_decoded_is_set_aside_declared_and_acknowledged(rig: Rig) -> None:
    rig.send(1, item(0, double(1.0)))
    good = publish([data_change([item(0, double(2.0))], count=99)], sequence=2, publish_ticks=T + 2_000_000)
    rig.ingest.message(STREAM, read_publish(good))
    rig.send(3, item(0, double(3.0)))
    assert rig.acknowledged(3) == [1, 2, 3]
    reader = JournalReader.open(rig.path)
    assert reader.fact(f"quarantine/{STREAM}/2") == good
    (gap,) = reader.gaps()
    assert gap.reason is Reason.UNDECODABLE
    reader.close()
    assert len(rig.rows()) == 2 and rig.ingest.counters.undecodable == 1


def test_while_the_disk_refuses_nothing_is_acknowledged_nobody_asks_and_afterwards_nothing_is_missing(rig: Rig) -> None:
    rig.send(1, item(0, double(1.0)))
    rig.acknowledged(1)
    big = string(random.Random(1).randbytes(100_000).hex())  # does not compress to nothing
    with file_size_limit(100_000):
        for sequence in range(2, 6):
            rig.send(sequence, item(1, big), item(0, double(sequence)))
        deadline = 200
        while rig.ingest.stalled_since is None and deadline:
            rig.ingest._stopping.wait(0.05)
            deadline -= 1
        assert rig.ingest.stalled_since is not None and rig.ingest.full
        assert rig.durable.empty(), "something was let go although the disk refused"
    assert rig.acknowledged(4) == [2, 3, 4, 5]
    assert rig.room.get(timeout=WAIT_S)
    assert not rig.ingest.full and rig.ingest.counters.store_failures > 0
    assert rig.ingest.counters.samples == 9, "what was tried twice counts once"
    rows = rig.rows()
    assert rows.bits[rows.handle == 0].view("f8").tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    reader = JournalReader.open(rig.path)
    assert not reader.gaps() and len(reader.coverage()) == 1
    reader.close()


def test_work_that_fails_is_answered_and_does_not_hurt_the_rest(rig: Rig) -> None:
    def fail(journal: Journal) -> None:
        journal.set_fact("half", b"done")
        raise ValueError("mine")

    rig.send(1, item(0, double(1.0)))
    with pytest.raises(ValueError, match="mine"):
        rig.ingest.call(fail).result(WAIT_S)
    rig.acknowledged(1)
    assert rig.ingest.failure is None
    reader = JournalReader.open(rig.path)
    assert reader.fact("half") is None, "half of failed work stayed"
    assert len(rig.rows()) == 1
    reader.close()


def test_who_stops_waiting_for_an_answer_stops_neither_the_work_nor_the_thread(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    hold, go = queue.SimpleQueue[bool](), queue.SimpleQueue[bool]()

    def work(journal: Journal) -> None:
        hold.put(True)
        go.get(timeout=WAIT_S)
        journal.set_fact("kept", b"yes")

    answer = rig.ingest.call(work)
    late = rig.ingest.call(lambda journal: journal.set_fact("late", b"yes"))
    hold.get(timeout=WAIT_S)
    assert not answer.cancel() and not late.cancel()
    go.put(True)
    rig.send(1, item(0, double(1.0)))
    assert rig.acknowledged(1) == [1]
    assert rig.ingest.failure is None
    rig.close()
    reader = JournalReader.open(rig.path)
    assert (reader.fact("kept"), reader.fact("late")) == (b"yes", b"yes")
    reader.close()


def test_the_inbox_is_full_until_what_is_in_it_is_durable(tmp_path: Path) -> None:
    rig = Rig(tmp_path, inbox_bytes_max=1000)
    body = publish([data_change([item(1, string("x" * 5000))])], sequence=1, publish_ticks=T)
    hold, go = queue.SimpleQueue[bool](), queue.SimpleQueue[bool]()

    def wait(_journal: Journal) -> None:
        hold.put(True)
        go.get(timeout=WAIT_S)

    rig.ingest.call(wait)
    hold.get(timeout=WAIT_S)
    rig.ingest.message(STREAM, read_publish(body))
    assert rig.ingest.full
    go.put(True)
    assert rig.acknowledged(1) == [1]
    assert rig.room.get(timeout=WAIT_S) and not rig.ingest.full
    rig.close()


def test_what_has_arrived_is_stored_before_the_thread_ends(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for sequence in range(1, 50):
        rig.send(sequence, item(0, double(sequence)))
    rig.close()
    assert len(rig.rows()) == 49
    with pytest.raises(Unavailable):
        rig.ingest.call(lambda j: None).result(0.5)
