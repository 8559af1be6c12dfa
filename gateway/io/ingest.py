"""The ingest thread: decode, put in order, store, make durable, and only then tell.

One thread owns the samplers and the journal's writer. It takes what has arrived, carries out the
samplers' effects in one transaction, commits (group commit: at most one fsync per `commit_s`), and then
lets go what depends on the fsync: acknowledgements, MQTT, requests to the server. Nothing leaves before.

When the disk refuses, the transaction is rolled back, the samplers go back to where they were, the same
arrivals are tried again, and nobody asks the server for more meanwhile: its own queues hold the samples.

What it does not do: talk to servers or brokers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway import sampler
from gateway.decode import Message, decode
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.sampler import Effect, Event, Position, Sampler
from mirror.batch import AHEAD, NO_VALUE, SERVER_NULL, SOURCE_NULL, Batch, concat, take
from mirror.coverage import Reason
from mirror.errors import Corrupt, Unavailable
from mirror.ticks import from_unix_s

AHEAD_TICKS = 60 * 10_000_000  # a source time further ahead of our clock than this does not freeze the state
GATHER_MAX = 256  # arrivals in one transaction
GATHER_BYTES_MAX = 8 << 20
RETRY_S = 0.5
QUARANTINE_MAX = 100  # bodies kept that could not be decoded; later ones are only counted


@dataclass(slots=True)
class Counters:
    """What the ingest has done since the process began; read by anyone, written by the ingest thread."""

    samples: int = 0
    quality: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # by stream: good, uncertain, bad, other
    messages: int = 0
    keepalives: int = 0
    chunks: int = 0
    commits: int = 0
    commit_s: float = 0.0
    commit_s_max: float = 0.0
    commit_s_last: float = 0.0
    recovered_rows: int = 0
    overflows: dict[str, int] = field(default_factory=dict)  # by stream
    refused: int = 0
    undecodable: int = 0
    store_failures: int = 0
    gaps_opened: int = 0
    gaps_closed: int = 0
    newest_ticks: int = 0
    events: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Durable:
    """What one commit has made durable.

    Attributes:
        batches: (stream, rows) in the order in which they were stored; history is not among them.
        effects: (stream, effect) of those that concern the server: Acknowledge, Republish, Resumed, Backfill.
        waited: By stream, the waiting rows that were stored in front of its own.
    """

    batches: list[tuple[str, Batch]] = field(default_factory=list)
    effects: list[tuple[str, Effect]] = field(default_factory=list)
    waited: dict[str, Batch] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Arrival:
    stream: str
    event: Event | None
    message: Message | None
    republished: bool
    size_bytes: int
    rows: Batch | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[Journal], Any]
    answer: Future[Any]
    size_bytes: int = 0


class _CallFailed(Exception):
    """A caller's work failed by itself; nothing of it may stay."""

    def __init__(self, call: _Call, error: Exception) -> None:
        super().__init__(call, error)
        self.call, self.error = call, error


def position_name(stream: str) -> str:
    """Return the name of the journal fact that holds a stream's position."""
    return f"position/{stream}"


class Ingest:
    """The thread and its inbox.

    Args:
        journal: Opened; from now on only this thread touches its writer.
        commit_s: Least time between two commits.
        inbox_bytes_max: Above this `full` is true and pumps stop asking.
        on_durable: Called in this thread after each commit.
        on_room: Called in this thread when `full` has become false again.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        replica: str,
        commit_s: float,
        inbox_bytes_max: int,
        on_durable: Callable[[Durable], None],
        on_room: Callable[[], None],
    ) -> None:
        self.journal = journal
        self.replica = replica
        self.counters = Counters()
        self.stalled_since: float | None = None
        self._commit_s = commit_s
        self._bytes_max = inbox_bytes_max
        self._on_durable = on_durable
        self._on_room = on_room
        self._samplers: dict[str, Sampler] = {}
        self._owners: dict[str, str] = {}
        self._waiting: dict[str, Batch] = {}  # rows that are stored in front of the stream's next ones
        self._inbox: queue.SimpleQueue[_Arrival | _Call | None] = queue.SimpleQueue()
        self._taken: list[_Arrival | _Call] = []  # out of the inbox and not durable yet
        self._bytes = 0
        self._lock = threading.Lock()
        self._was_full = False
        self._last_commit = 0.0
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    # For other threads

    @property
    def full(self) -> bool:
        """Whether nobody should ask servers for more now."""
        return self._bytes > self._bytes_max or self.stalled_since is not None

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, if something did that should not have."""
        return self._failure

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Store what has arrived, then end; does not close the journal."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()

    def message(self, stream: str, message: Message, *, republished: bool = False) -> None:
        """Hand over a response."""
        self._put(_Arrival(stream, None, message, republished, len(message.body)))

    def event(self, stream: str, event: Event) -> None:
        """Hand over what else happened to a stream."""
        self._put(_Arrival(stream, event, None, False, 0))

    def refused(self, stream: str, statuses: dict[int, int], server_ticks: int) -> None:
        """Note that the server monitors some tags not at all; their rows go with the stream's next message.

        Args:
            stream: Stream id.
            statuses: StatusCode of the refusal by handle.
            server_ticks: When the server said so, 0 if it did not tell.
        """
        rows = Batch.zeros(len(statuses))
        rows.handle[:] = list(statuses)
        rows.status[:] = list(statuses.values())
        rows.server_ticks[:] = server_ticks
        rows.flags[:] = NO_VALUE | SOURCE_NULL | (0 if server_ticks else SERVER_NULL)
        self._put(_Arrival(stream, None, None, False, 0, rows))

    def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
        """Run `work` inside the next transaction; the answer comes when that is durable.

        `work` may run more than once, when a transaction is rolled back and tried again.
        """
        call = _Call(work, Future())
        call.answer.set_running_or_notify_cancel()  # who stops waiting does not stop the work, nor this thread
        self._put(call)
        if self._ended.is_set():
            self._refuse_calls()
        return call.answer

    def add_stream(self, stream: str, position: Position | None, identity: Callable[[int], str]) -> None:
        """Add a stream's machine, once; call before its first event."""
        if stream not in self._samplers:
            is_used = partial(self.journal.has_timeline, stream)
            self._samplers[stream] = Sampler(stream, self.replica, position, identity, is_used)

    def owned(self, stream: str, source: str) -> str:
        """Return the source that a stream belongs to: the first that asked. Call it in the event loop."""
        return self._owners.setdefault(stream, source)

    def sampler(self, stream: str) -> Sampler | None:
        """Return a stream's machine, to be looked at only."""
        return self._samplers.get(stream)

    def _put(self, item: _Arrival | _Call) -> None:
        if item.size_bytes:
            with self._lock:
                self._bytes += item.size_bytes
        self._inbox.put(item)

    # The thread

    def turn(self, wait_s: float = 0.0) -> bool:
        """Carry out what has arrived in one transaction; tell whether something became durable.

        What a disk refused is kept and tried again by the next turn, before anything newer.

        Args:
            wait_s: How long to wait for a first arrival.
        """
        if not self._taken:
            self._taken = self._gather(wait_s)
        if not self._taken or not self._commit(self._taken):
            return False
        self._taken = []
        self.journal.maintain()
        return True

    def _run(self) -> None:
        try:
            while True:
                wait_s = 0.0 if self._stopping.is_set() else 1.0
                if self.turn(wait_s):
                    continue
                if self._taken:
                    if self._stopping.wait(RETRY_S):
                        self._give_up()
                elif self._stopping.is_set():
                    return
                else:
                    self._flush()
        except BaseException as error:
            self._failure = error
            log("ingest.failed", error=repr(error))
            raise
        finally:
            self._ended.set()
            self._refuse_calls()

    def _flush(self) -> None:
        """Nothing arrives: write the state rows that are still due."""
        if self.journal.dirty:
            with contextlib.suppress(Unavailable), self.journal.transaction():
                self.journal.flush_state()

    def _gather(self, wait_s: float) -> list[_Arrival | _Call]:
        """Take what has arrived; wait so that commits are at least `commit_s` apart."""
        try:
            item = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            return []
        items = [item] if item is not None else []
        size = items[0].size_bytes if items else 0
        due = self._last_commit + self._commit_s
        while len(items) < GATHER_MAX and size < GATHER_BYTES_MAX:
            left = 0.0 if self._stopping.is_set() else due - time.monotonic()
            try:
                item = self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                items.append(item)
                size += item.size_bytes
        return items

    def _commit(self, items: list[_Arrival | _Call]) -> bool:
        """Carry items out in one transaction; tell whether the disk took it, else all is as it was before."""
        before = {s: m.snapshot() for s, m in self._samplers.items()}
        durable, answers = Durable(), []
        began = time.monotonic()
        try:
            with self.journal.transaction():
                for item in items:
                    if isinstance(item, _Call):
                        answers.append((item.answer, self._answer(item)))
                    else:
                        self._arrived(item, durable)
                began = time.monotonic()
        except _CallFailed as failed:
            self._samplers.update(before)
            failed.call.answer.set_exception(failed.error)
            items[:] = [item for item in items if item is not failed.call]
            return self._commit(items) if items else True
        except Unavailable as error:
            self._samplers.update(before)  # others may have been added meanwhile
            self._stall(error)
            return False
        self._committed(items, time.monotonic() - began)
        for future, result in answers:
            future.set_result(result)
        for stream, rows in durable.waited.items():
            if self._waiting.get(stream) is rows:  # others may have come since, in the same transaction
                del self._waiting[stream]
        self._count(durable)
        self._on_durable(durable)
        return True

    def _count(self, durable: Durable) -> None:
        """Count what is on disk now."""
        counters = self.counters
        for stream, batch in durable.batches:
            counters.chunks += 1
            counters.samples += len(batch)
            quality = np.bincount(batch.status >> np.uint32(30), minlength=4)
            counters.quality[stream] = counters.quality.get(stream, 0) + quality

    def _committed(self, items: list[_Arrival | _Call], took_s: float) -> None:
        counters = self.counters
        self._last_commit = time.monotonic()
        counters.commits += 1
        counters.commit_s += took_s
        counters.commit_s_last = took_s
        counters.commit_s_max = max(counters.commit_s_max, took_s)
        was_full = self.full or self._was_full
        if self.stalled_since is not None:
            log("journal.recovered", stalled_s=round(time.monotonic() - self.stalled_since, 3))
            self.stalled_since = None
        with self._lock:
            self._bytes -= sum(item.size_bytes for item in items)
        self._was_full = self.full
        if was_full and not self._was_full:
            self._on_room()

    def _stall(self, error: Unavailable) -> None:
        self.counters.store_failures += 1
        if self.stalled_since is None:
            self.stalled_since = time.monotonic()
            log("journal.stalled", error=str(error), hint=error.hint)

    def _give_up(self) -> None:
        """Told to stop while the disk refuses: nothing was acknowledged, so the server still has it."""
        for item in self._taken:
            if isinstance(item, _Call):
                item.answer.set_exception(Unavailable("the disk refuses, and the gateway ends"))
        self._taken = []

    def _refuse_calls(self) -> None:
        """Answer the calls that will never run."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get_nowait()
                if isinstance(item, _Call):
                    item.answer.set_exception(Unavailable("the journal is closed"))

    def _answer(self, call: _Call) -> Any:
        """Run a caller's work; an error of its own undoes the transaction, which is tried again without it."""
        try:
            return call.work(self.journal)
        except (Unavailable, AssertionError):
            raise
        except Exception as error:
            raise _CallFailed(call, error) from error

    def _arrived(self, item: _Arrival, durable: Durable) -> None:
        machine = self._samplers.get(item.stream)
        if machine is None:
            return
        if item.rows is not None:
            self._wait(item.stream, item.rows)
            return
        event = item.event
        if item.message is not None:
            event = self._decoded(item.stream, item.message, republished=item.republished)
        assert event is not None
        for effect in machine.step(event):
            self._carry_out(item.stream, effect, durable)
        if machine.counts:
            for name, n in machine.counts.items():
                self.counters.events[name] = self.counters.events.get(name, 0) + n
            machine.counts.clear()

    def _wait(self, stream: str, rows: Batch) -> None:
        """Keep rows for the stream's next message; later ones of a tag replace earlier ones."""
        waiting = self._waiting.get(stream)
        if waiting is not None:
            earlier = np.flatnonzero(~np.isin(waiting.handle, rows.handle)).astype(np.int64)
            rows = concat([take(waiting, earlier), rows])
        self._waiting[stream] = rows

    def _decoded(self, stream: str, message: Message, *, republished: bool) -> Event:
        """Decode a message into the event that the sampler takes; what cannot be decoded is set aside."""
        counters = self.counters
        if message.keepalive:
            counters.keepalives += 1
            return sampler.Delivered(
                message.sequence, message.publish_ticks, message.response_ticks,
                keepalive=True, available=message.available,
            )  # fmt: skip
        counters.messages += 1
        undecodable, batch, overflow = False, None, ()
        try:
            decoded = decode(message, handle_limit=len(self.journal.tags))
            counters.refused += decoded.refused
            if republished:
                counters.recovered_rows += len(decoded.batch)
            if len(decoded.overflow):
                counters.overflows[stream] = counters.overflows.get(stream, 0) + len(decoded.overflow)
            batch, overflow = _flag_ahead(decoded.batch), tuple(decoded.overflow.tolist())
        except Corrupt as error:
            undecodable = True
            counters.undecodable += 1
            log("message.undecodable", stream=stream, sequence=message.sequence, error=str(error))
            if counters.undecodable <= QUARANTINE_MAX:
                self.journal.set_fact(f"quarantine/{stream}/{message.sequence}", message.body)
        return sampler.Delivered(
            message.sequence, message.publish_ticks, message.response_ticks, more=message.more, overflow=overflow,
            republished=republished, undecodable=undecodable, ref=batch,
            available=None if republished else message.available,
        )  # fmt: skip

    def _carry_out(self, stream: str, effect: Effect, durable: Durable) -> None:
        journal, counters = self.journal, self.counters
        match effect:
            case sampler.Store(ref=Batch() as batch):
                if stream in self._waiting and stream not in durable.waited:
                    durable.waited[stream] = self._waiting[stream]
                    batch = concat([self._waiting[stream], batch])
                if len(batch):
                    journal.append(stream, effect.timeline, effect.pub_from, effect.pub_to, self.replica, batch)
                    durable.batches.append((stream, batch))
                counters.newest_ticks = max(counters.newest_ticks, effect.pub_to)
            case sampler.Extend():
                journal.extend(effect.coverage)
            case sampler.Progress():
                journal.set_fact(position_name(stream), msgspec.json.encode(effect.position))
            case sampler.OpenGap():
                journal.open_gap(effect.gap)
                counters.gaps_opened += 1
                log("gap.opened", stream=stream, reason=effect.gap.reason, tags=len(effect.gap.tags or ()))
            case sampler.CloseGap():
                journal.close_gap(effect.gap.id, effect.closure, effect.why)
                counters.gaps_closed += 1
                log("gap.closed", stream=stream, closure=effect.closure, why=effect.why)
            case _:
                durable.effects.append((stream, effect))


def read_position(data: bytes | None) -> Position | None:
    """Return a position as written by the ingest thread."""
    return msgspec.json.decode(data, type=Position) if data else None


def _flag_ahead(batch: Batch) -> Batch:
    """Flag rows whose source time is too far ahead of this gateway's clock."""
    limit = from_unix_s(time.time()) + AHEAD_TICKS
    ahead = batch.source_ticks > limit
    if ahead.any():
        batch.flags[ahead] |= AHEAD
    return batch


__all__ = ["Counters", "Durable", "Ingest", "Reason", "position_name", "read_position"]
