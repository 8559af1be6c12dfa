"""One gateway, one server, one bucket, and everything that goes wrong between them, from one seed.

A step is one small act: the server samples or publishes, a response arrives (in any order) or is lost,
the ingest commits, the pusher takes a turn, a connection breaks, the process dies. A fuse may be lit that
ends the process in the middle of any of these. `heal` stops the faults; then everything must come to an
end, and `tests.sim.checks` compares what the server sampled with what the bucket holds.

What is simulated is one replica and one stream. Power cuts that lose part of a file are the business of
`tests/gateway/test_journal_crash.py`, two writers of one log that of `tests/mirror/chain_world.py`.
"""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway import sampler
from gateway.io import ingest as ingesting
from gateway.io import outcome
from gateway.io import push as pushing
from gateway.sync import unpushed, untold
from mirror import chunk
from mirror.coverage import Settled
from mirror.errors import Conflict, Unavailable
from mirror.state import State
from tests.gateway.boxes import FaultyStore, Kill
from tests.gateway.journals import fresh, same
from tests.sim.gateway import Parts, Process, Violation, numbers_of
from tests.sim.server import MS, TAGS, Server, Traits

STEPS = 140
HEAL_TURNS = 400


@dataclass(frozen=True)
class Stored:
    """One chunk as it once stood in the journal; `numbers` are those of its samples."""

    seq: int
    timeline: str
    pub_from: int
    pub_to: int
    origin: str
    numbers: tuple[int, ...]


class Store(FaultyStore):
    """A bucket where a write may also arrive late, after its sender has given up."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[str, bytes, dict[str, Any]]] = []
        self.delay: Callable[[], bool] = lambda: False

    def put(self, key: str, body: bytes, **how: Any) -> str:
        if self.delay():
            self.late.append((key, body, how))
            raise Unavailable("no answer in time")
        return super().put(key, body, **how)

    def land(self) -> None:
        """Let the late writes arrive."""
        for key, body, how in self.late:
            with suppress(Conflict):
                super(FaultyStore, self).put(key, body, **how)
        self.late.clear()


class World:
    """See the module.

    Args:
        seed: Decides everything.
        parts: Of the process; see `tests.sim.mutants`.
        favour: Traits of the server and kinds of trouble, where they are not left to the seed.
    """

    def __init__(self, seed: int, parts: Parts | None = None, **favour: Any) -> None:
        self.seed, self.r, self.parts = seed, random.Random(seed), parts or Parts()
        r = self.r
        self.trace: list[str] = []
        self.seconds = 0.0
        traits = Traits.of(r)
        self.server = Server(r, replace(traits, **{k: v for k, v in favour.items() if hasattr(traits, k)}))
        self.store = Store()
        self.store.fault, self.store.delay = self._store_fault, self._is_delayed
        self.process: Process | None = None
        self.lives = 0
        self.fuse = 0
        self.calm = False
        self.disk_full = False
        self.refusals = 0
        self.store_away = False
        self.stored: list[Stored] = []
        self.state = State()
        self.seen = 0
        self.counted: dict[str, int] = {}
        self.state_period_s = r.choice((0.0, 0.0, 1e9))
        self.requests = r.choice((1, 2, 4))
        self.loss = r.choice((0.0, 0.02, 0.15))
        self.flaky = r.choice((0.0, 0.05, 0.3))
        self.danger = r.choice((0.0, 0.3, 1.0))
        self.clock_steps = r.choice((0.0, 0.0, 1.0))
        self.broken = r.choice((0.0, 0.0, 0.05))
        self.__dict__.update({k: v for k, v in favour.items() if k in self.__dict__})
        self.say(f"{self.server.traits} requests={self.requests}")

    def say(self, line: str) -> None:
        self.trace.append(f"{self.seconds:9.3f} {line}")

    # Faults

    def spark(self, point: str) -> None:
        """A place where the process may end or the disk may refuse."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.say(f"the process ends at {point}")
                raise Kill
        if self.disk_full and (point in ("transaction", "commit") or (point == "reserve" and self.r.random() < 0.3)):
            self.refusals += 1
            raise Unavailable("no space left")

    def _store_fault(self, point: str, key: str) -> None:
        self.spark(point)
        if self.store_away:
            raise Unavailable("away")
        if self.calm or self.r.random() >= self.flaky:
            return
        self.say(f"the store fails {point} of {key[-28:]}")
        if "put" in point and self.r.random() < 0.3:
            raise Conflict("412")
        raise Unavailable("503")

    def _is_delayed(self) -> bool:
        delayed = not self.calm and self.r.random() < self.flaky / 2
        if delayed:
            self.say("a write to the store is late")
        return delayed

    # The process

    def start(self) -> None:
        """Start the process, compare its state with the fold of all that was ever journaled."""
        self.lives += 1
        self.say(f"the process starts, life {self.lives}")
        self.fuse, fuse = 0, self.fuse
        self.process = Process(
            self.path, self.server, self.store, self.parts, self.spark, lambda: self.seconds, self.lives,
            self.state_period_s, self.requests,
        )  # fmt: skip
        self.process.on_let_go = self._let_go
        self.observe()
        if not same(self.process.journal.state, self.state):
            raise Violation("I4 the state after a start is not the fold of the journal")
        self.fuse = fuse

    def crash(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process, self.fuse = None, 0

    def observe(self) -> None:
        """Note the chunks that have become durable."""
        assert self.process is not None
        for row in self.process.reader.chunks_since(self.seen, limit=100_000):
            batch = chunk.decode(row.body)
            self.state.apply(batch)
            self.stored.append(
                Stored(row.seq, row.timeline, row.pub_from, row.pub_to, row.origin, tuple(numbers_of(batch)))
            )
            self.seen = row.seq

    def _let_go(self) -> None:
        """Between the commit and whatever comes next, a pump may already send what was let go."""
        if self.r.random() < 0.5:
            self.request()

    def request(self) -> None:
        """A Publish request reaches the server, with acknowledgements."""
        process = self.process
        assert process is not None
        acks = process.request(lost=not self.calm and self.r.random() < self.loss / 2)
        if not acks:
            return
        self.observe()
        numbers = {n for s in self.stored for n in s.numbers}
        for subscription, sequence in acks:
            sub = self.server.subscription
            sent = sub.kept.get(sequence) if sub is not None and sub.id == subscription else None
            told = sent is not None and not sent.broken and sub is not None and not sub.is_anew
            if told and not numbers.issuperset(s.number for s in sent.samples):
                raise Violation(f"I1 message {sequence} is acknowledged and not in the journal")
            self.server.acknowledge(subscription, sequence)
        self.say(f"acknowledges {acks}")

    # Steps

    def random_step(self) -> None:
        r = self.r
        self.advance(r.choice((0.0, 0.001, 0.02, 0.1, 0.3)))
        acts: list[tuple[Callable[[], None], float]] = [
            (self.act_sample, 30), (self.act_publish, 30), (self.act_receive, 30), (self.act_commit, 25),
            (self.act_ask, 12), (self.act_push, 14), (self.act_fault, 1.5 + 4 * self.danger), (self.act_trim, 1),
            (self.act_clock, 2 * self.clock_steps),
        ]  # fmt: skip
        act = r.choices([a for a, _ in acts], [w for _, w in acts])[0]
        self.guarded(act)

    def guarded(self, act: Callable[[], None]) -> None:
        """Do something during which the process may end."""
        try:
            if self.process is None:
                self.start()
            act()
        except Kill:
            self.crash()
        except Unavailable as error:  # as `SourceRunner.run` takes it: connect anew
            self.say(f"disconnected: {error}")
            assert self.process is not None
            self.process.disconnect()
        self.check_process()

    def check_process(self) -> None:
        process = self.process
        pusher = process.pusher if process is not None else None
        if pusher is not None and pusher.status.state in ("fenced", "refused"):
            raise Violation(f"I8 the only writer stopped pushing: {pusher.status.error}")

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.server.true += int(seconds * 1000 * MS)

    def act_sample(self) -> None:
        for _ in range(self.r.choice((1, 1, 3, 8))):
            self.server.sample(self.r.randrange(TAGS))
            if self.r.random() < 0.5:
                self.server.true += self.r.randrange(3 * MS)

    def act_publish(self) -> None:
        process = self.process
        assert process is not None
        for _ in range(self.r.choice((1, 1, 2))):
            self.request()
        sub = self.server.subscription
        if not process.subscription or not process.outstanding or sub is None:
            return
        if not self.server.waiting and self.r.random() < 0.6 and not self.calm:
            return
        while process.outstanding:
            body = self.server.cycle(break_it=not self.calm and self.r.random() < self.broken)
            assert body is not None
            process.outstanding -= 1
            if self.calm or self.r.random() >= self.loss:
                process.wire.append(body)
            else:
                self.say(f"what is before number {sub.sequence} is lost on its way")
            if not self.server.waiting or self.r.random() < 0.3:
                return
            if self.r.random() < 0.5:
                self.advance(0.001)
                self.server.sample(self.r.randrange(TAGS))

    def act_receive(self) -> None:
        process = self.process
        assert process is not None
        if not process.subscription:
            self.say(process.connect())
        elif process.wire:
            overtake = not self.calm and self.r.random() < 0.2
            process.receive(self.r.randrange(len(process.wire)) if overtake else 0)

    def act_commit(self) -> None:
        process = self.process
        assert process is not None
        process.turn()
        self.observe()

    def act_ask(self) -> None:
        process = self.process
        assert process is not None
        if process.work and (self.calm or self.r.random() < 0.8):
            self.say(f"{process.work[0]}")
            process.republish()
        else:
            process.backfill()

    def act_push(self) -> None:
        process = self.process
        assert process is not None
        for _ in range(self.r.choice((1, 3, 10))):
            pause = process.push()
            if pause:
                self.advance(min(pause, 0.2 if not self.calm else 2.0))

    def act_trim(self) -> None:
        assert self.process is not None
        self.process.trim(self.r.choice((0.0, 1.0, 20.0)))

    def act_clock(self) -> None:
        back = self.r.choice((5_000, 2 * MS, 40 * MS, 3_000 * MS))
        self.server.step_back(back)
        self.say(f"the server's clock goes back by {back}")

    def act_fault(self) -> None:
        process, r = self.process, self.r
        assert process is not None
        match r.choice(("fuse", "fuse", "crash", "disk", "store", "cut", "cut", "lose", "restart", "land", "anew")):
            case "fuse":
                self.fuse = r.randrange(1, 25)
            case "crash":
                self.say("the process is killed")
                raise Kill
            case "disk":
                self.disk_full = not self.disk_full
                self.say(f"disk full: {self.disk_full}")
            case "store":
                self.store_away = not self.store_away
                self.say(f"store away: {self.store_away}")
            case "cut":
                self.say("the connection breaks")
                process.disconnect()
            case "lose":
                self.say("the server drops the subscription")
                self.server.end_subscription()
                process.disconnect()
            case "anew":
                self.say("the server's numbers begin anew")
                process.wire.clear()
                self.server.begin_anew()
            case "restart" if r.random() < 0.5:
                self.say("the server restarts")
                self.server.restart()
                process.disconnect()
            case "land":
                self.store.land()

    # A run

    def run(self, steps: int = STEPS) -> World:
        """Take random steps, heal, check.

        Raises:
            Violation: See `tests.sim.checks`; or an assertion of the gateway's own.
        """
        from tests.sim.checks import check

        with tempfile.TemporaryDirectory(dir=_memory(), prefix="edgemirror-sim-") as folder, _numbers(self.seed):
            self.path = Path(folder) / "mirror.db"
            shutil.copy(_template(), self.path)
            try:
                for _ in range(steps):
                    self.random_step()
                self.heal()
                check(self)
            finally:
                self.crash()
        return self

    def heal(self) -> None:
        """Stop the faults; everything must then come to rest."""
        self.say("the faults end")
        self.calm, self.disk_full, self.store_away, self.fuse = True, False, False, 0
        self.store.land()
        acts = (self.act_receive, self.act_commit, self.act_ask, self.act_commit, self.act_push)
        for turn in range(HEAL_TURNS):
            if turn < 20 and turn % 3 == 0:
                self.guarded(self.act_sample)
            # Now and then silence, in which everything can be told.
            if turn < 24 or turn % 40 == 0 or self.server.waiting:
                self.guarded(self.act_publish)
            for act in acts:
                self.guarded(act)
            self.advance(0.3)
            if turn > 20 and self.is_at_rest():
                return
        raise Violation(f"I8 it does not come to rest: { {k: v for k, v in self.rest.items() if v} }")

    def seen_kinds(self) -> dict[str, int]:
        """Return how often what happened in this run."""
        found = dict(self.counted)
        found["lives"] = self.lives - 1
        found["lost samples"] = sum(s.dropped or s.alone or s.sent is None for s in self.server.samples)
        found["segments"] = len(self.store.objects)
        return found

    def is_at_rest(self) -> bool:
        """Tell whether nothing is left to be done."""
        process = self.process
        if process is None or process.pusher is None or process.pusher._chain is None:
            return False
        at = process.pusher._chain.prefix
        gaps = process.reader.gaps()
        left = unpushed(process.reader.coverage(), Settled(at.promise, []), gaps)
        self.rest = {
            "wire": len(process.wire), "work": process.work, "gaps": process.gaps, "resuming": process.resuming,
            "open": [g for g in gaps if g.closed_by is None], "unpushed": left[:3],
            "untold": [x for xs in untold(gaps, at.at.told) for x in xs][:3],
        }  # fmt: skip
        self.rest["waiting"] = self.server.waiting
        return not any(self.rest.values())


@functools.cache
def _memory() -> str | None:
    """Return a folder in memory if there is one: then a commit costs no disk."""
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() else None


@functools.cache
def _template() -> Path:
    """A journal that knows the tags."""
    folder = Path(tempfile.mkdtemp(prefix="edgemirror-test-")) / "sim"
    fresh(folder, tags=TAGS).close()
    return folder / "mirror.db"


@contextmanager
def _numbers(seed: int) -> Iterator[None]:
    """Let sequence numbers wrap soon and limits be small in every other run; log nothing."""
    small = {"WRAP": 64, "HOLE_MAX": 24, "HELD_MAX": 12, "PROBE_MAX": 8, "RECENT": 16} if seed % 2 else {}
    before, declare_s = {name: getattr(sampler, name) for name in small}, ingesting.DECLARE_S
    logs = [(module, module.log) for module in (ingesting, outcome, pushing)]
    try:
        for name, value in small.items():
            setattr(sampler, name, value)
        ingesting.DECLARE_S = 0.3
        for module, _ in logs:
            module.log = lambda *args, **facts: None  # type: ignore[attr-defined]
        yield
    finally:
        for name, value in before.items():
            setattr(sampler, name, value)
        ingesting.DECLARE_S = declare_s
        for module, log in logs:
            module.log = log  # type: ignore[attr-defined]
