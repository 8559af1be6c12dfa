"""The ingest thread: decode, put in order, store, make durable, and only then tell.

One thread owns the samplers and the journal's writer. It takes what has arrived, carries out the
samplers' effects in one transaction, commits (group commit: at most one fsync per `commit_s`), and then
lets go what depends on the fsync: acknowledgements, MQTT, requests to the server. Nothing leaves before.

When the disk refuses, the transaction is rolled back, the samplers go back to where they were, the same
arrivals are tried again, and nobody asks the server for more meanwhile: its own queues hold the samples. What
a transaction counts and tells belongs to it: of one that was rolled back, nothing stays. Once the disk has
refused for longer than a while, the streams' gaps are opened with room that was kept for them, since the
servers may give up before it takes data again.

No message ends the thread. One that cannot be decoded, or that provokes an error of this program, is set
aside: kept, declared as a gap, and told. What ends it is a damaged file, memory that is gone, and an
invariant that breaks without any message to blame.

What it does not do: talk to servers or brokers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway import sampler
from gateway.canary import Canary
from gateway.decode import Message, decode, handle_mask
from gateway.io import datadir
from gateway.io.arrivals import Arrival, Before, Call, CallFailed, MessageFailed
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.outcome import Counters, Durable, Transaction
from gateway.sampler import Effect, Event, Position, Sampler, Subscribed
from gateway.window import newest
from mirror.batch import AHEAD, NO_VALUE, SERVER_NULL, SOURCE_NULL, Batch, concat, take
from mirror.coverage import Gap, Reason
from mirror.errors import Corrupt, MirrorError, Unavailable
from mirror.ticks import from_unix_s

AHEAD_TICKS = 60 * 10_000_000  # a source time further ahead of our clock than this does not freeze the state
GATHER_MAX = 256  # arrivals in one transaction
GATHER_BYTES_MAX = 8 << 20
RETRY_S = 0.5
DECLARE_S = 5.0  # a stall of this length gets its gap rows: no server gives up a subscription any sooner
GAPS_KEPT = 16  # of which it is remembered what was known before
_NO_ROWS = Batch.zeros(0)
QUARANTINE_MAX = 100  # bodies kept that could not be decoded; later ones are only counted


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
        clock: Monotonic seconds.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self.replica = replica
        self.counters = Counters()
        self.stalled_since: float | None = None
        self._commit_s = commit_s
        self._bytes_max = inbox_bytes_max
        self._on_durable = on_durable
        self._on_room = on_room
        self._clock = clock
        self._samplers: dict[str, Sampler] = {}
        self._owners: dict[str, str] = {}
        self._monitored: dict[str, NDArray[np.bool_]] = {}  # by stream: the handles that its server may write
        self._waiting: dict[str, Batch] = {}  # rows that are stored in front of the stream's next ones
        self.canaries: dict[str, Canary] = {}  # by stream; read by anyone
        self.before: dict[str, Before] = {}  # by gap, for the newest ones
        self._opened: dict[str, str] = {}  # by stream: the gap opened last, which may be opened again longer
        self._inbox: queue.SimpleQueue[Arrival | Call | None] = queue.SimpleQueue()
        self._taken: list[Arrival | Call] = []  # out of the inbox and not durable yet
        self._bytes = 0
        self._outstayed: set[str] = set()  # streams of which nothing has come since the disk refused for long
        self._lock = threading.Lock()  # for `_samplers`, `_bytes` and `_outstayed`
        self._is_declared = False
        self._last_commit = -commit_s
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
        datadir.keep_reserve(self.journal.path.parent)
        self._thread.start()

    def stop(self) -> None:
        """Store what has arrived, then end; does not close the journal."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()

    def message(self, stream: str, message: Message, *, republished: bool = False) -> None:
        """Hand over a response."""
        if self._outstayed and self.stalled_since is None:
            with self._lock:
                self._outstayed.discard(stream)
        self._put(Arrival(stream, None, message, republished, len(message.body)))

    def event(self, stream: str, event: Event) -> None:
        """Hand over what else happened to a stream."""
        if isinstance(event, Subscribed) and stream in self._outstayed:
            event = replace(event, reason=Reason.DISK_FULL)  # whatever broke it: nobody could listen
        self._put(Arrival(stream, event, None, False, 0))

    def refused(self, stream: str, statuses: dict[int, int], server_ticks: int) -> None:
        """Note that the server monitors some tags not at all.

        Their rows are stored at once, or, where the stream has no time yet, with its first message or keep-alive.

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
        self._put(Arrival(stream, None, None, False, 0, rows))

    def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
        """Run `work` inside the next transaction; the answer comes when that is durable.

        `work` may run more than once, when a transaction is rolled back and tried again.
        """
        call = Call(work, Future())
        call.answer.set_running_or_notify_cancel()  # who stops waiting does not stop the work, nor this thread
        self._put(call)
        if self._ended.is_set():
            self._refuse_calls()
        return call.answer

    def add_stream(
        self, stream: str, position: Position | None, identity: Callable[[int], str], handles: Iterable[int]
    ) -> None:
        """Add a stream's machine, once; call before its first event.

        Args:
            stream: Stream id.
            position: Where the journal says that it stands.
            identity: Identity of a tag by handle.
            handles: The tags that its server is asked for: it may write no other.
        """
        if stream in self._samplers:
            return
        machine = Sampler(
            stream,
            self.replica,
            position,
            identity,
            partial(self.journal.has_timeline, stream),
            partial(self.journal.has_later, stream),
        )
        self._monitored[stream] = handle_mask(handles)
        with self._lock:
            self._samplers[stream] = machine

    def owned(self, stream: str, source: str) -> str:
        """Return the source that a stream belongs to: the first that asked. Call it in the event loop."""
        return self._owners.setdefault(stream, source)

    def sampler(self, stream: str) -> Sampler | None:
        """Return a stream's machine, to be looked at only."""
        return self._samplers.get(stream)

    def _put(self, item: Arrival | Call) -> None:
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
        with contextlib.suppress(Unavailable):  # what is committed is durable; the next commit tells if more is wrong
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
            self._give_up()
            self._refuse_calls()

    def _flush(self) -> None:
        """Nothing arrives: write the state rows that are still due."""
        if self.journal.dirty:
            with contextlib.suppress(Unavailable), self.journal.transaction():
                self.journal.flush_state()

    def _gather(self, wait_s: float) -> list[Arrival | Call]:
        """Take what has arrived; wait so that commits are at least `commit_s` apart."""
        try:
            item = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            return []
        items = [item] if item is not None else []
        size = items[0].size_bytes if items else 0
        due = self._last_commit + self._commit_s
        while len(items) < GATHER_MAX and size < GATHER_BYTES_MAX:
            left = 0.0 if self._stopping.is_set() else due - self._clock()
            try:
                item = self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                items.append(item)
                size += item.size_bytes
        return items

    def _commit(self, items: list[Arrival | Call]) -> bool:
        """Carry items out in one transaction; tell whether the disk took it, else all is as it was before.

        What fails by itself is taken out of `items` or set aside, and the others are carried out without it.
        """
        while items:
            before, done = self._snapshots(), Transaction()
            began = self._clock()
            try:
                with self.journal.transaction():
                    for item in items:
                        if isinstance(item, Call):
                            done.answers.append((item.answer, self._answer(item)))
                        else:
                            self._arrived(item, done)
                    began = self._clock()
            except CallFailed as failed:
                _restore(before)
                failed.call.answer.set_exception(failed.error)
                items[:] = [item for item in items if item is not failed.call]
            except MessageFailed as failed:
                _restore(before)
                arrival = failed.arrival
                again = replace(arrival, failures=arrival.failures + 1, error=repr(failed.error))
                items[:] = [again if item is arrival else item for item in items]
            except Unavailable as error:
                _restore(before)
                self._stall(error)
                return False
            else:
                self._committed(items, self._clock() - began)
                self._let_go(done)
                return True
        return True

    def _snapshots(self) -> list[tuple[Sampler, Sampler]]:
        """Return each machine with a copy to go back to."""
        with self._lock:
            machines = list(self._samplers.values())
        return [(machine, machine.snapshot()) for machine in machines]

    def _let_go(self, done: Transaction) -> None:
        """Tell, answer and count what is on disk now."""
        for future, result in done.answers:
            future.set_result(result)
        for stream, rows in done.durable.waited.items():
            if self._waiting.get(stream) is rows:  # others may have come since, in the same transaction
                del self._waiting[stream]
        done.count(self.counters)
        self._opened |= done.opened
        self._on_durable(done.durable)

    def _committed(self, items: list[Arrival | Call], took_s: float) -> None:
        counters = self.counters
        self._last_commit = self._clock()
        counters.commits += 1
        counters.commit_s += took_s
        counters.commit_s_last = took_s
        counters.commit_s_max = max(counters.commit_s_max, took_s)
        # A pump that finds it full has put its message in before this, or finds it so until the next commit.
        with self._lock:
            was_full, stalled_since = self.full, self.stalled_since
            self.stalled_since = None
            self._bytes -= sum(item.size_bytes for item in items)
            has_room = was_full and not self.full
        if stalled_since is not None:
            self._is_declared = False
            datadir.keep_reserve(self.journal.path.parent)
            log("journal.recovered", stalled_s=round(self._last_commit - stalled_since, 3))
        if has_room:
            self._on_room()

    def _stall(self, error: Unavailable) -> None:
        self.counters.store_failures += 1
        if self.stalled_since is None:
            self.stalled_since = self._clock()
            log("journal.stalled", error=str(error), hint=error.hint)
        elif self._clock() - self.stalled_since >= DECLARE_S:
            with self._lock:
                self._outstayed = set(self._samplers)
            if not self._is_declared:
                self._declare()

    def _declare(self) -> None:
        """Open the streams' gaps with their start, in the room that was kept for that."""
        before, done = self._snapshots(), Transaction()
        datadir.spend_reserve(self.journal.path.parent)
        try:
            with self.journal.transaction(flush=False):
                for machine, _ in before:
                    for effect in machine.step(sampler.Stalled()):
                        self._carry_out(machine.stream, effect, done)
        except Unavailable:
            _restore(before)
        else:
            self._is_declared = True
            done.count(self.counters)
            self._opened |= done.opened
        datadir.keep_reserve(self.journal.path.parent)

    def _give_up(self) -> None:
        """Leave what was taken and not stored: nothing of it was acknowledged, so the server still has it."""
        for item in self._taken:
            if isinstance(item, Call) and not item.answer.done():
                item.answer.set_exception(Unavailable("the disk refuses, and the gateway ends"))
        self._taken = []

    def _refuse_calls(self) -> None:
        """Answer the calls that will never run."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get_nowait()
                if isinstance(item, Call):
                    item.answer.set_exception(Unavailable("the journal is closed"))

    def _answer(self, call: Call) -> Any:
        """Run a caller's work; an error of its own undoes the transaction, which is tried again without it."""
        try:
            return call.work(self.journal)
        except (Unavailable, AssertionError):
            raise
        except Exception as error:
            raise CallFailed(call, error) from error

    def _arrived(self, item: Arrival, done: Transaction) -> None:
        machine = self._samplers.get(item.stream)
        if machine is None:
            return
        if item.rows is not None:
            self._wait(item.stream, item.rows)
            self._store_waiting(machine, done)
        elif item.message is None:
            assert item.event is not None
            self._step(machine, item.event, done)
        elif item.failures > 1:  # setting it aside was of no use: as if the server had lost it
            self._step(machine, sampler.NotAvailable(item.message.sequence), done)
        else:
            try:
                event = self._delivered(item, item.message, done)
                if event is not None:
                    self._step(machine, event, done)
                    self._store_waiting(machine, done)
            except (MirrorError, MemoryError):
                raise  # the file's and the machine's errors are not the message's
            except Exception as error:
                raise MessageFailed(item, error) from error

    def _step(self, machine: Sampler, event: Event, done: Transaction) -> None:
        for effect in machine.step(event):
            self._carry_out(machine.stream, effect, done)
        done.events.update(machine.counts)
        machine.counts.clear()

    def _store_waiting(self, machine: Sampler, done: Transaction) -> None:
        """Store the rows that wait, if no message has taken them along and there is a time for them."""
        waiting = self._waiting.get(machine.stream)
        if waiting is not None and done.durable.waited.get(machine.stream) is not waiting:
            done.durable.waited.pop(machine.stream, None)  # earlier ones are stored: these are newer
            self._step(machine, sampler.Noted(_NO_ROWS), done)

    def _wait(self, stream: str, rows: Batch) -> None:
        """Keep rows until they can be stored; later ones of a tag replace earlier ones."""
        waiting = self._waiting.get(stream)
        if waiting is not None:
            earlier = np.flatnonzero(~np.isin(waiting.handle, rows.handle)).astype(np.int64)
            rows = concat([take(waiting, earlier), rows])
        self._waiting[stream] = rows

    def _delivered(self, item: Arrival, message: Message, done: Transaction) -> Event | None:
        """Return the event that the sampler takes of a message; what cannot be decoded is set aside."""
        if message.keepalive:
            if item.failures:
                return None  # there is nothing in it to set aside
            done.counts["keepalives"] += 1
            return sampler.Delivered(
                message.sequence, message.publish_ticks, message.response_ticks,
                keepalive=True, available=message.available,
            )  # fmt: skip
        done.counts["messages"] += 1
        batch: Batch | None = None
        overflow: tuple[int, ...] = ()
        if item.failures:
            self._set_aside(item, message, "message.failed", item.error, done)
        else:
            try:
                batch, overflow = self._decoded(item, message, done)
            except Corrupt as error:
                self._set_aside(item, message, "message.undecodable", str(error), done)
        return sampler.Delivered(
            message.sequence, message.publish_ticks, message.response_ticks, more=message.more, overflow=overflow,
            republished=item.republished, undecodable=batch is None, ref=batch,
            available=None if item.republished else message.available,
        )  # fmt: skip

    def _decoded(self, item: Arrival, message: Message, done: Transaction) -> tuple[Batch, tuple[int, ...]]:
        """Return a message's rows, and the handles whose queue ran over at the server."""
        decoded = decode(message, handle_limit=len(self.journal.tags), monitored=self._monitored[item.stream])
        done.counts["refused"] += decoded.refused
        if decoded.canary is not None and not item.republished:
            here = self._samplers[item.stream].position
            self.canaries.setdefault(item.stream, Canary()).hear(
                decoded.canary, at=("", 0) if here is None else (here.timeline, here.covered),
                now_s=self._clock(), unix_s=time.time(),
            )  # fmt: skip
        if item.republished:
            done.counts["recovered_rows"] += len(decoded.batch)
        if len(decoded.overflow):
            done.overflows[item.stream] += len(decoded.overflow)
        return _flag_ahead(decoded.batch), tuple(decoded.overflow.tolist())

    def _set_aside(self, item: Arrival, message: Message, event: str, error: str, done: Transaction) -> None:
        """Keep the body of a message whose rows cannot be stored, and tell it."""
        done.counts["undecodable"] += 1
        if self.counters.undecodable + done.counts["undecodable"] <= QUARANTINE_MAX:
            self.journal.set_fact(f"quarantine/{item.stream}/{message.sequence}", message.body)
        done.tell(event, stream=item.stream, sequence=message.sequence, error=error)

    def note_before(self, stream: str, gap: Gap, later: Iterable[Batch] = ()) -> None:
        """Keep what was known before a gap: it tells where in source time history has to begin.

        Call it in this thread, when the gap is opened.

        Args:
            stream: Stream id.
            gap: The gap.
            later: Rows from before it that the same transaction stores.
        """
        if gap.id not in self.before:
            handles = np.flatnonzero(self._monitored[stream]).astype(np.uint32)
            self.before[gap.id] = Before(handles, newest(self.journal.state, later, handles))
            for old in list(self.before)[:-GAPS_KEPT]:
                self.before.pop(old, None)

    def _carry_out(self, stream: str, effect: Effect, done: Transaction) -> None:
        journal, durable = self.journal, done.durable
        match effect:
            case sampler.Store(ref=Batch() as batch):
                if stream in self._waiting and stream not in durable.waited:
                    durable.waited[stream] = self._waiting[stream]
                    batch = concat([self._waiting[stream], batch])
                if len(batch):
                    journal.append(stream, effect.timeline, effect.pub_from, effect.pub_to, self.replica, batch)
                    durable.batches.append((stream, batch))
                    done.ends.append(effect.pub_to)
                done.newest_ticks = max(done.newest_ticks, effect.pub_to)
            case sampler.Extend():
                journal.extend(effect.coverage)
            case sampler.Progress():
                journal.set_fact(position_name(stream), msgspec.json.encode(effect.position))
            case sampler.OpenGap(gap):
                journal.open_gap(gap)
                stored = zip(durable.batches, done.ends, strict=True)
                later = [rows for (of, rows), end in stored if of == stream and (gap.end is None or end < gap.end)]
                self.note_before(stream, gap, later)
                if done.opened.get(stream, self._opened.get(stream)) != gap.id:
                    done.opened[stream] = gap.id
                    done.counts["gaps_opened"] += 1
                    done.tell("gap.opened", stream=stream, reason=gap.reason, tags=len(gap.tags or ()))
            case sampler.CloseGap(gap):
                journal.close_gap(gap.id, effect.closure, effect.why, end=gap.end)
                done.counts["gaps_closed"] += 1
                done.tell("gap.closed", stream=stream, closure=effect.closure, why=effect.why)
            case _:
                durable.effects.append((stream, effect))


def _restore(before: list[tuple[Sampler, Sampler]]) -> None:
    """Put the machines back to where they were."""
    for machine, snapshot in before:
        machine.restore(snapshot)


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
