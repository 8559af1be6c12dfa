"""The gateway's process in the simulation: the real journal, ingest, machines and pusher, without their threads.

What `gateway.io.source` does with sockets is done here step by step: connect, take a former subscription
up again or make a new one, pump, republish, backfill. A process ends anywhere by `Kill`; what it leaves
is what was committed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway import failover, sampler
from gateway.acks import Acks
from gateway.decode import read_publish, read_republish
from gateway.io import backfill, ingest, leading, upkeep
from gateway.io import push as pushing
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from gateway.io.registers import SoloRegister
from gateway.plan import Item, Plan
from gateway.sync import Policy
from gateway.window import Call
from mirror.batch import SOURCE_NULL, Batch, Kind
from mirror.coverage import Reason, Stream, StreamSpec
from mirror.errors import Unavailable
from mirror.store import ObjectStore
from tests.gateway.boxes import KEY, LAYOUT
from tests.gateway.journals import STREAM
from tests.mirror.batches import table
from tests.sim.server import TAGS, Sample, Server

HELD = "held"
POLICY = Policy(rows_max=60, bytes_max=1 << 20, interval_min_s=1.0, interval_max_s=8.0, requests_per_day=2_000_000)


class SimPlan(Plan):
    """A plan under the name of the one stream."""

    @property
    def id(self) -> str:
        return STREAM


PLAN = SimPlan(200.0, tuple(Item(tag, 100.0, 10) for tag in table(TAGS).tags), StreamSpec("urn:x", 200.0, ()))


class Violation(AssertionError):
    """Something happened that must never happen, or something that must happen did not."""


class SimJournal(Journal):
    """A journal on a disk that refuses on demand, in a process that may end around each commit."""

    spark: Callable[[str], None] = staticmethod(lambda point: None)

    @contextmanager
    def transaction(self, *, flush: bool = True) -> Iterator[None]:
        with super().transaction(flush=flush):
            self.spark("transaction" if flush else "reserve")
            yield
            self.spark("commit" if flush else "reserve")
        self.spark("committed")


@dataclass(frozen=True)
class Parts:
    """What a process is made of; a mutant puts something else in the place of one."""

    journal: type[SimJournal] = SimJournal
    ingest: type[ingest.Ingest] = ingest.Ingest


class Process:
    """One life of the gateway.

    Args:
        path: The journal.
        server: Of the one source.
        store: The bucket.
        parts: See `Parts`.
        spark: Called at each point where the process may end or something outside may fail.
        seconds: The clock.
        life: Number of this life.
        state_period_s: See `Journal.open`.
        requests: Publish requests that wait at the server.
    """

    def __init__(
        self,
        path: Path,
        server: Server,
        store: ObjectStore,
        parts: Parts,
        spark: Callable[[str], None],
        seconds: Callable[[], float],
        life: int,
        state_period_s: float,
        requests: int,
    ) -> None:
        self.path, self.server, self.spark, self.seconds, self.life = path, server, spark, seconds, life
        self.requests = requests
        self.journal = parts.journal.open(
            path, replica="a", state_period_s=state_period_s, clock=lambda: 1_700_000_000 + seconds()
        )
        self.journal.spark = spark  # type: ignore[method-assign]
        self.reader = JournalReader.open(path)
        self.acks = Acks()
        self.work: deque[sampler.Effect] = deque()
        self.filling: tuple[sampler.Backfilled, Future[Any]] | None = None
        self.wire: list[bytes] = []  # responses on their way
        self.outstanding = 0  # requests at the server
        self.subscription = 0  # 0: not connected
        self.resuming = False
        self.first = True
        self.ingest = parts.ingest(
            self.journal, replica="a", commit_s=0.0, inbox_bytes_max=4_000, on_durable=self.durable,
            on_room=lambda: None, clock=seconds,
        )  # fmt: skip
        self.filler = backfill.Backfiller(self.ingest, path, enabled=True, on_rows=lambda rows: None)
        self.on_let_go: Callable[[], None] = lambda: None
        self._incarnation = f"life{life}"
        self.pusher = pushing.Pusher(
            [store], partial(JournalReader.open, self.path), self.ingest, layout=LAYOUT, replica="a", key=KEY,
            policy=POLICY, incarnation=self._incarnation, clock=seconds,
            on_known=lambda epoch: self.leading.post(failover.Known(epoch)),
            on_overruled=lambda epoch, reason: self.leading.post(failover.Overruled(epoch, reason)),
        )  # fmt: skip
        self.leading = leading.Leading(
            leading.machine("a", self._incarnation, self.journal.epoch()[0], leading.timing("solo", 0.0), "solo"),
            SoloRegister(), told=self, clock=seconds, inline=True,
            save=lambda epoch: self.ingest.call(lambda j: j.save_epoch(epoch, self._incarnation)),
        )  # fmt: skip
        self.leading.post(failover.Ready(True))

    def kill(self) -> None:
        """End the process: nothing is written any more."""
        self.reader.close()
        if self.pusher._reader is not None:
            self.pusher._reader.close()
        self.journal._db.close()
        os.close(self.journal._lock)

    # The runtime

    def turn(self) -> bool:
        """Let the ingest thread do one transaction."""
        done = self.ingest.turn()
        return done

    def push(self) -> float:
        """Let the thread of the lease and that of the log do what is due; return for how long there is nothing more."""
        self.leading.turn()
        pause = self.pusher.turn()
        return 0.0 if self.leading.turn() <= 0 else pause

    def promoted(self, epoch: int) -> None:
        self.pusher.lead(epoch)

    def drifting(self) -> None:
        raise Violation("a lease of one's own has run out")

    def demoted(self, reason: str) -> None:
        """The pusher has fenced itself."""

    def durable(self, durable: ingest.Durable) -> None:
        """Take what a commit lets go."""
        self.spark("durable")
        for _, effect in durable.effects:
            match effect:
                case sampler.Acknowledge():
                    self.acks.durable([(effect.subscription, effect.sequence)])
                case sampler.Resumed():
                    self.resuming = False
                case sampler.Backfill(gap):
                    self.filler.add(STREAM, gap)
                case _:
                    self.work.append(effect)
        self.on_let_go()

    def trim(self, keep_s: float) -> None:
        """Delete what is old, or, where nothing may be kept, what is too much."""
        promise = self.reader.settled()
        self.ingest.call(partial(upkeep.by_age, promise, keep_s) if keep_s else partial(upkeep.by_size, promise, 0))

    # The source

    def connect(self) -> str:
        """Do what `SourceRunner._subscribe` does; Unavailable if the journal does not take it."""
        traits, sub = self.server.traits, self.server.subscription
        saved = self.reader.fact(HELD)
        held = msgspec.json.decode(saved, type=int) if saved else 0
        position = ingest.read_position(self.reader.fact(ingest.position_name(STREAM)))
        self.ingest.add_stream(STREAM, position, self.journal.tags.identities.__getitem__, range(TAGS))
        self.work.clear()
        self.wire.clear()
        self.outstanding = 0
        self.filling = None
        reason, self.first = Reason.GATEWAY_DOWN if self.first else Reason.DISCONNECTED, False
        available = None
        if sub is not None and sub.id == held and traits.resume != "none":
            resumed, available = True, tuple(sub.kept) if traits.resume == "transfer" else None
        else:
            sub, resumed = self.server.subscribe(), False
            stream = Stream(STREAM, "urn:x", overflow_detectable=traits.queue_size > 1)
            self._wait(lambda j: j.save_stream(stream))
        self.resuming = resumed
        self.ingest.event(STREAM, sampler.Subscribed(sub.id, self.server.started, resumed, reason, available))
        self._wait(lambda j: j.set_fact(HELD, msgspec.json.encode(sub.id)))
        self._begin_filling()
        self.subscription = sub.id
        return f"{'resumes' if resumed else 'subscribes'} {sub.id}"

    def disconnect(self) -> None:
        """The connection breaks; requests and answers on their way are lost."""
        self.wire.clear()
        self.outstanding = self.subscription = 0

    def request(self, *, lost: bool = False) -> list[tuple[int, int]]:
        """Send one Publish request if there is room for its answer; return its acknowledgements."""
        busy = self.outstanding + len(self.wire)
        if not self.subscription or self.resuming or self.ingest.full or busy >= self.requests:
            return []
        acks = self.acks.take()
        if lost:
            self.acks.put_back(acks)
            return []
        self.outstanding += 1
        return acks

    def receive(self, at: int) -> None:
        """Take one response from the wire."""
        message = read_publish(self.wire.pop(at))
        if message.subscription != self.subscription:
            return
        self.acks.available(message.subscription, message.available)
        self.ingest.message(STREAM, message)

    def republish(self) -> None:
        """Carry out what the machine asks of the server."""
        effect = self.work.popleft()
        assert isinstance(effect, sampler.Republish)
        if effect.subscription != self.subscription:
            return
        body = self.server.republish(effect.subscription, effect.sequence)
        if body is None:
            self.ingest.event(STREAM, sampler.NotAvailable(effect.sequence))
        else:
            self.ingest.message(STREAM, read_republish(body), republished=True)

    def backfill(self) -> None:
        """Do the next step of filling a gap: read and store, or close."""
        if self.filling is not None:
            outcome, stored = self.filling
            if stored.done():
                stored.result()
                self.filling = None
                self.ingest.event(STREAM, outcome)
            return
        if not self.gaps:
            return
        _, gap = self.filler._gaps.get_nowait()
        if not self.server.traits.history:
            self.ingest.event(STREAM, sampler.Backfilled(gap, False, "the server keeps none"))
            return
        asked = self.filler.question(PLAN, gap)
        batches = [asked.take(self._history(call)) for call in asked.calls(asked.asked.tolist())]
        outcome = backfill.verdict(gap, asked, sum(map(len, batches)), without=0, failed=0, is_all=True)
        new = self.filler.new(STREAM, gap, asked, batches)
        self.filling = (outcome, self.filler.store(STREAM, outcome, new))

    @property
    def gaps(self) -> int:
        """Number of gaps to be filled."""
        return self.filler._gaps.qsize()

    def _begin_filling(self) -> None:
        """Do what `Backfiller.begin` does."""
        self.filler = backfill.Backfiller(self.ingest, self.path, enabled=True, on_rows=lambda rows: None)
        for gap in self.filler._open_gaps(STREAM):
            self.filler.add(STREAM, gap)

    def _history(self, call: Call) -> Batch:
        """Return what the historian has of some tags between two times, the server's where there are no others."""
        traits, found = self.server.traits, []
        for tag in call.handles:
            kept = [s for s in self.server.samples if s.tag == tag][-traits.remembers :]
            found += [s for s in kept if call.start <= (s.source if traits.stamps else s.server) <= call.end]
        return rows_of(found, stamps=traits.stamps)

    def _wait(self, work: Callable[[Journal], Any]) -> None:
        """Run work in the next transaction and wait for it, as the source does before it goes on."""
        answer = self.ingest.call(work)
        for _ in range(10):
            self.turn()
            if answer.done():
                answer.result()
                return
        raise Unavailable("the disk refuses")


def rows_of(samples: list[Sample], *, stamps: bool) -> Batch:
    """Return samples as the historian tells them."""
    batch = Batch.zeros(len(samples))
    batch.handle[:] = [s.tag for s in samples]
    batch.source_ticks[:] = [s.source if stamps else 0 for s in samples]
    batch.flags[:] = 0 if stamps else SOURCE_NULL
    batch.server_ticks[:] = [s.server for s in samples]
    batch.kind[:] = Kind.DOUBLE
    batch.bits[:] = np.array([float(s.number) for s in samples], np.float64).view(np.uint64)
    return batch


def numbers_of(batch: Batch) -> list[int]:
    """Return the numbers of the samples in a batch."""
    return [int(v) for v in batch.bits.view(np.float64).tolist()]
