"""The thread that publishes what the devices say.

Publishing must never cost the mirror anything. `offer` appends to what is pending and returns; the thread
encodes and sends as fast as the broker acknowledges, never with more than a window of messages under way.
While it is slower than the plant, or the broker is away, what is pending is folded to the last value of
each tag, so that memory is bounded by the number of tags and a subscriber is late but never out of date.

When to connect again is decided here, with growing, jittered pauses, and not at all once another client
took over the session: whether this gateway may still act is then for somebody else to say. After each
connection the broker is taken to have forgotten everything: `online`, the facts about the gateway, all
device states and all retained tags are published again. Rows whose messages the broker had not all
acknowledged go back to what is pending, so that no tag's last value is lost; a subscriber may see it twice.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gateway.formats import json_uns
from gateway.formats.coalesce import Latest
from gateway.formats.json_uns import Message
from gateway.formats.names import Names
from gateway.formats.retained import Retained
from gateway.io.mqtt import Broker, Link, Phase, Status
from gateway.payload import PayloadLimit
from mirror.batch import Batch, take
from mirror.ticks import UNIX_EPOCH_TICKS

REFRESH_ROWS = 500  # retained tags published again between two rounds of live values
SILENT_S = 0.05  # between two looks whether it may speak again
IDLE_S = 30.0  # a thread with nothing to do looks up so often
HUNG_S = 300.0  # no turn takes longer: names are resolved and sockets opened well within
HISTORY_ROWS = 2000  # back-filled rows between two rounds of live values
STEADY_S = 10.0  # a connection that stood this long resets the pauses between attempts
ROUND_S_MAX = 0.5  # longest time between two rounds for the sake of the processor

OnEvent = Callable[[str, dict[str, Any]], None]


class _Job(NamedTuple):
    """Messages of some rows or topics.

    Attributes:
        messages: What to send.
        put_back: Returns the rows or topics when the broker may not have them all.
        done: Called when the broker has answered all of them.
    """

    messages: Iterator[Message]
    put_back: Callable[[], None]
    done: Callable[[], None] = lambda: None


class Publisher:
    """Publishes batches from a thread of its own. All methods may be called from any thread."""

    def __init__(
        self, broker: Broker, names: Names, *, on_event: OnEvent = lambda name, facts: None,
        on_emptied: Callable[[list[str]], None] = lambda topics: None, may: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        """Prepare; nothing is sent before `start`.

        Args:
            broker: Where and how.
            names: Topics and keys by handle.
            on_event: Called from the publisher's thread with `mqtt.connected`, `mqtt.disconnected`,
                `mqtt.connect_failed`, `mqtt.taken_over`, `mqtt.message_refused`, `mqtt.payload_limited`,
                `mqtt.payload_raised` or `mqtt.failed`, and facts about it.
            on_emptied: Called from the publisher's thread with topics that the broker has emptied.
            may: Asked before each round whether this replica may still speak.
        """
        self._broker, self._on_event, self._on_emptied, self._may = broker, on_event, on_emptied, may
        self._status = Status()
        self._lock = threading.Lock()  # guards _pending and _history; held only to append or to take
        self._pending = Latest()
        self._history: deque[Batch] = deque()
        self._history_rows = 0
        self._say_lock = threading.Lock()  # guards _names, _retained and the facts
        self._names = names
        self._retained = Retained(names, offline_after_s=broker.offline_after_s, now=time.monotonic(), ticks=_ticks())
        self._facts: dict[str, bytes] = {}
        self._facts_due: set[str] = set()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._woken = False
        self._epoch, self._stopping, self._stop_by = 0, False, 0.0
        self._paused = "not started"  # why nothing is published; empty while it may be
        self._stays = False  # only as long as the connection stands
        self._quietly = True
        # What follows belongs to the thread.
        self._link = Link(broker, Message(names.gateway(broker.node, "online"), b"offline", 1, True), self._status)
        self._phase = Phase.CLOSED
        self._attempts, self._retry_at, self._answer_by, self._steady_at = 0, 0.0, 0.0, 0.0
        self._urgent: deque[Message] = deque()
        self._job: _Job | None = None
        self._unsure: deque[tuple[int, _Job]] = deque()  # jobs sent, by the count at which they are answered
        self._refresh_next = True
        self._round_start, self._round_cpu_s = 0.0, 0.0  # when the last round began, on both clocks
        self._seqs: dict[str, int] = {}
        self._seqs_epoch = 0
        self._limit = PayloadLimit(broker.payload_bytes_max)
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    # --- any thread -----------------------------------------------------------------------------------

    def start(self, epoch: int = 0) -> None:
        """Start the thread; connect and publish under this epoch, or wait for `resume`."""
        if epoch:
            self._epoch, self._paused = epoch, ""
        self._thread.start()

    def offer(self, batch: Batch) -> None:
        """Take a batch for publishing; returns at once, whatever the broker does."""
        if len(batch):
            with self._lock:
                self._pending.add(batch)
            self._wake()

    def offer_history(self, batch: Batch) -> bool:
        """Take back-filled rows; tells False, and takes none of them, where too many would wait."""
        with self._lock:
            if self._history_rows + len(batch) > self._broker.history_rows_max:
                self._status.history_refused_rows += len(batch)
                return False
            self._history.append(batch)
            self._history_rows += len(batch)
        self._wake()
        return True

    def use(self, names: Names) -> None:
        """Publish by a new table of names from the next round on."""
        with self._say_lock:
            self._names = names
            self._retained.use(names)
        self._wake()

    def take_back(self, topics: Iterable[str]) -> None:
        """Empty retained topics of an earlier configuration, but for those that are in use."""
        with self._say_lock:
            self._retained.take_back(topics)
        self._wake()

    def source_live(self, source: str, *, resumed: bool = False) -> None:
        """Say that a source delivers again; see `Retained.live`."""
        with self._say_lock:
            self._retained.live(source, resumed=resumed)
        self._wake()

    def source_lost(self, source: str) -> None:
        """Say that a source no longer delivers: its retained tags are Bad, its devices stale, later offline."""
        with self._say_lock:
            self._retained.lost(source, now=time.monotonic(), ticks=_ticks())
        self._wake()

    def tell(self, leaf: str, payload: bytes) -> None:
        """Publish a fact about the gateway, retained: `role`, `health` or `sync`."""
        with self._say_lock:
            if self._facts.get(leaf) != payload:
                self._facts[leaf] = payload
                self._facts_due.add(leaf)
        self._wake()

    def pause(self, reason: str = "paused", *, quietly: bool = True) -> None:
        """Leave the broker: quietly where a successor speaks, otherwise so that the broker says that nobody does."""
        self._quietly, self._paused = quietly, reason
        self._wake()

    def resume(self, epoch: int) -> None:
        """Connect again, under this epoch; sequence numbers start anew where it is a new one."""
        self._epoch, self._paused, self._stays = epoch, "", False
        self._wake()

    def stay(self) -> None:
        """Go on as long as the connection stands, and make no other: nobody else can speak, or a successor does."""
        self._stays = True
        self._wake()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Say `offline`, leave and end the thread; blocks for about `timeout_s` at most."""
        self._stopping, self._stop_by = True, time.monotonic() + timeout_s
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 2 * self._broker.connect_timeout_s)
        if not self._thread.is_alive():
            self._wake_r.close()
            self._wake_w.close()

    def status(self) -> Status:
        """Return the counters as they stand."""
        return replace(
            self._status, inflight=self._link.inflight, pending_rows=len(self._pending),
            last_error=self._paused or self._status.last_error,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether the thread has neither ended nor stood still for longer than any turn may; true before `start`."""
        if self._thread.ident is None:
            return True
        return self._thread.is_alive() and time.monotonic() - self._beat < HUNG_S

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # full: it will wake anyway; closed: nobody is left to wake
                self._wake_w.send(b"\0")

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._beat = time.monotonic()
            try:
                self._turn(self._beat)
            except Exception as error:  # the top of this task: the mirror goes on without this round
                self._job = None
                self._status.failures += 1
                self._link.close(f"failed: {error!r}")
                self._phase = Phase.CLOSED
                self._put_back()
                self._retry_at = time.monotonic() + self._broker.retry_s_max
                self._on_event("mqtt.failed", {"error": repr(error)})
        self._leave()

    def _turn(self, now: float) -> None:
        """Do what is due, wait for the socket or a wake-up, and follow what became of the connection."""
        link = self._link
        if self._paused:
            link.close(self._paused, polite=self._quietly)
            self._follow(now)
            self._wait(None)
        elif link.phase is Phase.CLOSED:
            if self._stays:
                self._paused = "the right to speak has run out"
            elif now >= self._retry_at:
                self._phase = Phase.CONNECTING
                link.open()
                self._answer_by = time.monotonic() + self._broker.connect_timeout_s
            else:
                self._wait(self._retry_at - now)
        elif link.phase is Phase.CONNECTING:
            self._wait(self._answer_by - now)
            if link.phase is Phase.CONNECTING and time.monotonic() >= self._answer_by:
                link.close("the broker did not answer")
        elif self._may():
            self._wait(self._publish(now))
        else:
            self._wait(SILENT_S)
        self._follow(now)

    def _wait(self, timeout_s: float | None) -> None:
        self._link.wait(self._wake_r, IDLE_S if timeout_s is None else min(timeout_s, IDLE_S))
        if self._woken:
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(64)
            self._woken = False  # after reading, or a wake-up in between leaves it set, with nothing there to read

    def _follow(self, now: float) -> None:
        """Tell what was refused, and act on a change of the connection."""
        before, after = self._phase, self._link.phase
        self._phase = after
        while self._link.refusals:
            topic, reason = self._link.refusals.popleft()
            self._on_event("mqtt.message_refused", {"topic": topic, "reason": reason})
        if after is Phase.UP and before is not Phase.UP:
            self._connected(now)
        elif after is Phase.CLOSED and before is not Phase.CLOSED:
            self._closed(now, before)

    def _connected(self, now: float) -> None:
        self._steady_at, self._round_start = now + STEADY_S, 0.0
        self._limit.connected(now)
        with self._say_lock:
            self._retained.everything()
            self._facts_due |= self._facts.keys()
            online = self._names.gateway(self._broker.node, "online")
        self._urgent = deque([Message(online, b"online", 1, True)])
        self._on_event("mqtt.connected", {"url": self._broker.url, "protocol": self._status.protocol})

    def _closed(self, now: float, before: Phase) -> None:
        """Put back what the broker may not have, and decide when to try again."""
        self._put_back()
        steady = before is Phase.UP and now >= self._steady_at
        link, facts = self._link, {"url": self._broker.url, "error": self._status.last_error}
        by_size = not self._paused and not link.taken_over  # the end may have to do with what was under way
        if by_size and self._limit.ended(link.largest_bytes, link.taken_bytes, steady=steady):
            self._on_event("mqtt.payload_limited", {"payload_bytes_max": self._limit.size_bytes})
        if link.taken_over:
            self._paused = self._status.last_error
            self._on_event("mqtt.taken_over", facts)
        elif not self._paused:
            self._attempts = 0 if steady else self._attempts + 1
            pause_s = min(self._broker.retry_s_max, 0.5 * 2 ** min(self._attempts, 16))
            self._retry_at = now + pause_s * random.uniform(0.5, 1.0)
            if before is not Phase.UP and link.other_version():
                self._retry_at = now
            self._on_event("mqtt.disconnected" if before is Phase.UP else "mqtt.connect_failed", facts)

    def _put_back(self) -> None:
        """Return the rows of all jobs that the broker has not acknowledged to where they were taken from."""
        jobs = [job for _, job in self._unsure] + ([self._job] if self._job else [])
        for job in reversed(jobs):  # each goes before what is there, so that the oldest comes to stand first
            job.put_back()
        self._job = None
        self._unsure.clear()

    # --- what to send next ----------------------------------------------------------------------------

    def _publish(self, now: float) -> float:
        """Fill the window; returns how long the thread may then wait."""
        link = self._link
        while self._unsure and self._unsure[0][0] <= link.answered:
            self._unsure.popleft()[1].done()
        raised = self._limit.tick(now)
        if raised:
            self._on_event("mqtt.payload_raised", {"payload_bytes_max": self._limit.size_bytes})
        with self._say_lock:
            if raised:  # what was left out because it was too large
                self._retained.everything()
            self._retained.tick(now)
            wake_at = self._retained.wake_at
        while link.room():
            message = self._next(now)
            if message is None:
                break
            link.publish(message)
        else:
            return link.idle_s  # an acknowledgement will come, or the keep-alive will end the connection
        if self._pending:
            wake_at = min(wake_at or self._round_at, self._round_at)  # no later than either
        return link.idle_s if wake_at is None else min(max(wake_at - now, 0.0), link.idle_s)

    def _next(self, now: float) -> Message | None:
        """Return the next message: about the gateway and its devices first, then rounds of values."""
        while True:
            if not self._urgent:
                with self._say_lock:
                    self._urgent.extend(
                        Message(self._names.gateway(self._broker.node, leaf), self._facts[leaf], 1, True)
                        for leaf in sorted(self._facts_due)
                    )
                    self._facts_due.clear()
                    self._urgent.extend(self._retained.states())
            if self._urgent:
                return self._urgent.popleft()
            if self._job is not None:
                message = next(self._job.messages, None)
                if message is not None:
                    return message
                self._unsure.append((self._link.sent, self._job))
                self._job = None
            if not self._begin(now):
                return None

    def _begin(self, now: float) -> bool:
        """Begin the next job: live values and retained tags in turn, back-fill when neither is due."""
        if self._seqs_epoch != self._epoch:
            self._seqs, self._seqs_epoch = {}, self._epoch
        if self._refresh_next and (self._begin_emptying() or self._begin_refresh()):
            self._refresh_next = False
            return True
        self._refresh_next = True
        return self._begin_round(now) or self._begin_emptying() or self._begin_refresh() or self._begin_history()

    def _begin_round(self, now: float) -> bool:
        if not self._pending or now < self._round_at:
            return False
        with self._lock:
            batch = self._pending.pop()
        with self._say_lock:
            names = self._names
            self._retained.note(batch)
        self._round_start, self._round_cpu_s = now, time.thread_time()
        messages = json_uns.messages(
            batch, names, epoch=self._seqs_epoch, seqs=self._seqs, node=self._broker.node,
            payload_bytes_max=self._payload_bytes_max(names),
        )  # fmt: skip

        def put_back() -> None:
            with self._lock:
                self._pending.add_before(batch)

        self._job = _Job(messages, put_back)
        return True

    @property
    def _round_at(self) -> float:
        """When the next round of live values may begin.

        The more the last one cost, the later: values then coalesce for longer, and what subscribers get
        does not cost more than a share of one processor, however fast the plant is.
        """
        cost_s = time.thread_time() - self._round_cpu_s
        pause_s = min(cost_s / self._broker.cpu_share, ROUND_S_MAX)
        return self._round_start + max(self._broker.interval_s, pause_s)

    def _begin_emptying(self) -> bool:
        with self._say_lock:
            topics = self._retained.gone(REFRESH_ROWS)
        if not topics:
            return False
        messages = (Message(topic, b"", 1, True) for topic in topics)
        self._job = _Job(messages, lambda: self.take_back(topics), lambda: self._on_emptied(topics))
        return True

    def _begin_refresh(self) -> bool:
        with self._say_lock:
            names, batch = self._names, None
            while self._retained.due and not batch:
                batch = self._retained.take(REFRESH_ROWS)
        if not batch:
            return False
        messages = json_uns.tag_messages(
            batch, names, epoch=self._seqs_epoch, seqs=self._seqs, payload_bytes_max=self._payload_bytes_max(names)
        )
        self._job = _Job(messages, _nothing)  # after a new connection all of it is due again
        return True

    def _begin_history(self) -> bool:
        with self._lock:
            if not self._history:
                return False
            batch = self._history.popleft()
            if len(batch) > HISTORY_ROWS:
                self._history.appendleft(take(batch, np.arange(HISTORY_ROWS, len(batch))))
                batch = take(batch, np.arange(HISTORY_ROWS))
            self._history_rows -= len(batch)
        with self._say_lock:
            names = self._names
        messages = json_uns.history(
            batch, names, epoch=self._seqs_epoch, seqs=self._seqs, node=self._broker.node,
            payload_bytes_max=self._payload_bytes_max(names),
        )  # fmt: skip

        def put_back() -> None:
            with self._lock:
                self._history.appendleft(batch)
                self._history_rows += len(batch)

        self._job = _Job(messages, put_back)
        return True

    def _payload_bytes_max(self, names: Names) -> int:
        """Return the longest payload that the configuration and the broker allow on any topic."""
        packet_bytes_max = self._link.packet_bytes_max - names.topic_bytes_max - 64
        return min(self._limit.size_bytes, packet_bytes_max)

    def _leave(self) -> None:
        """Say that the gateway and its devices are offline, wait for the broker to take it, and leave."""
        link = self._link
        if link.phase is Phase.UP:
            with self._say_lock:
                last = deque(self._retained.farewell())
                last.append(Message(self._names.gateway(self._broker.node, "online"), b"offline", 1, True))
            while link.phase is Phase.UP and (last or link.inflight) and time.monotonic() < self._stop_by:
                while last and link.room():
                    link.publish(last.popleft())
                self._wait(max(0.0, self._stop_by - time.monotonic()))
        link.close("stopped", polite=True)


def _ticks() -> int:
    return time.time_ns() // 100 + UNIX_EPOCH_TICKS


def _nothing() -> None:
    pass
