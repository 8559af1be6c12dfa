"""A small world around the real chain machine: two writers, one log, and everything that goes wrong.

Writes may be lost, late or doubled, their answers lost; processes die and come back with an older saved
prefix; both may believe to lead at once (nothing here is a lease); clean-up deletes names below a floor,
and a late write may then find its name free. Each step checks what must never happen; `heal` stops the
faults and checks what must happen in the end.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror import chain as machine
from mirror.chain import Chain, Event, Phase
from mirror.coverage import Coverage
from mirror.floor import sign_floor
from mirror.header import Header, chain_hash, public_hex
from mirror.prefix import Prefix, Saved

NAMES = ("a", "b")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()) for name in NAMES}
CHUNKS_MAX = 3


class Violation(AssertionError):
    """Something happened that must never happen, or something that must happen did not."""


@dataclass
class Write:
    """One PUT on its way: to the store, and its answer back."""

    seq: int
    data: bytes
    writer: str
    incarnation: str
    at_store: bool = False
    created: bool = False
    tracked: bool = True


@dataclass
class Writer:
    """One replica: what is on its disk, and its process while it lives."""

    name: str
    epoch: int = 0
    saved: bytes = b""
    newest: int = 0  # chunks (0, newest] are in its journal
    marked: set[int] = field(default_factory=set)  # used by the mutant `chain_marks` only
    chain: Chain | None = None
    incarnation: str = ""
    leading: bool = False
    request: Any = None
    done: bool = False  # fenced: nothing more until it restarts


class World:
    """See the module."""

    def __init__(self, seed: int, mutant: str = "", chain: type[Chain] = Chain) -> None:
        self.r = random.Random(seed)
        self.mutant, self.make = mutant, chain
        self.now = 0.0
        self.log: dict[int, bytes] = {}
        self.history: list[bytes] = []  # every segment that ever was the log's, by number
        self.floor = 0
        self.floor_file: bytes | None = None
        self.below = Prefix(Saved("g"))
        self.zombies: dict[int, bytes] = {}
        self.epoch = 0
        self.active = 0
        self.writes: list[Write] = []
        self.writers = {n: Writer(n) for n in NAMES}
        self.lost = self.r.choice((0.0, 0.05, 0.2))
        self.late = self.r.choice((0.0, 0.3, 0.7))
        self.calm = False
        self.placed = 0
        self.trace: list[str] = []

    # The store

    def arrive(self, write: Write) -> None:
        """A write reaches the store."""
        if write.at_store:
            return
        write.at_store = True
        seq = write.seq
        if seq < self.floor:
            write.created = seq not in self.zombies
            self.zombies.setdefault(seq, write.data)
            return
        if seq in self.log:
            if self.mutant != "cond_put":
                return
            if self.log[seq] != write.data:
                raise Violation(f"I2 segment {seq} overwritten")
        header = _header(write.data)
        if seq != len(self.history):
            raise Violation(f"I5 segment {seq} written when {len(self.history)} was next")
        if header.prev != (chain_hash(self.history[-1]) if self.history else ""):
            raise Violation(f"I5 segment {seq} does not follow the one before")
        if header.epoch < self.active:
            raise Violation(f"I2 epoch {header.epoch} entered after epoch {self.active} had placed its fence")
        if self.history and header.epoch < _header(self.history[-1]).epoch:
            raise Violation(f"I2 epochs fall at segment {seq}")
        write.created = True
        self.log[seq] = write.data
        self.history.append(write.data)
        self.say(
            f"segment {seq} epoch {header.epoch} of {header.holder}: {[(c.start, c.end) for c in header.intervals]}"
        )

    def collect(self) -> None:
        """Clean-up: record the prefix below a new floor, then delete; the newest segment stays."""
        target = min(len(self.history) - 1, self.floor + self.r.randrange(1, 4))
        if target <= self.floor:
            return
        while self.below.at.seq < target:
            data = self.history[self.below.at.seq]
            found = self.below.judge(data)
            if not isinstance(found, Header):
                raise Violation(f"I5 {found}")
            self.below.absorb(found, chain_hash(data), "")
        self.floor, self.floor_file = target, sign_floor(self.below, "a", KEYS["a"])
        for seq in [s for s in self.log if s < target]:
            del self.log[seq]
        self.zombies.clear()  # deleted with the rest; later writes may find these names free again
        self.say(f"floor {target}")

    def read(self, request: Any) -> Event:
        """Answer a reading request from the store as it is now."""
        match request:
            case machine.ReadFloor():
                return machine.FloorRead(self.floor_file)
            case machine.ReadSegment(seq):
                return machine.SegmentRead(seq, self.log.get(seq, self.zombies.get(seq)))
            case machine.ListFrom(seq):
                return machine.Listed(min((s for s in {*self.log, *self.zombies} if s >= seq), default=None))
        raise AssertionError(request)

    # The writers

    def start(self, w: Writer) -> None:
        self.say(f"{w.name} starts")
        prefix = Prefix.load(w.saved) if w.saved else Prefix(Saved("g"))
        w.incarnation = f"{w.name}{self.r.randrange(10**9)}"
        w.chain, w.leading, w.done = self.make(prefix, w.name, KEYS[w.name], "solo"), False, False
        w.request = None
        if self.mutant != "chain_marks":
            w.marked = set()
        self.step(w, machine.Start())

    def kill(self, w: Writer) -> None:
        self.say(f"{w.name} dies")
        w.chain, w.request = None, None

    def step(self, w: Writer, event: Event) -> None:
        assert w.chain is not None
        for effect in w.chain.step(event, self.now):
            self.carry_out(w, effect)

    def carry_out(self, w: Writer, effect: Any) -> None:
        assert w.chain is not None
        match effect:
            case machine.Put(seq, data, _):
                w.request = effect
                self.writes.append(Write(seq, data, w.name, w.incarnation))
            case machine.ReadFloor() | machine.ReadSegment() | machine.ListFrom():
                w.request = effect
            case machine.Absorbed(header, digest):
                if header.seq >= self.floor and digest != chain_hash(self.history[header.seq]):
                    raise Violation(f"I5 {w.name} took in a segment {header.seq} that is not the log's")
                if self.r.random() < 0.7:  # else a crash finds an older prefix on its disk
                    w.saved = w.chain.prefix.save()
            case machine.Placed(epoch):
                self.placed += 1
                self.say(f"{w.name} has placed epoch {epoch}")
                self.active = max(self.active, epoch)
                at = w.chain.prefix.at
                if 0 < at.seq <= len(self.history) and at.hash != chain_hash(self.history[at.seq - 1]):
                    raise Violation(f"I5 {w.name} leads from a segment that is not the log's")
            case machine.FencedOut():
                self.say(f"{w.name} is fenced: {effect.reason}")
                w.done = True
            case machine.Refused() | machine.Alarm():
                raise Violation(f"{w.name}: {effect}")
            case machine.Returned() | machine.Accepted() | machine.AtEnd() | machine.Believed():
                pass
            case _:
                raise AssertionError(effect)

    def lead(self, w: Writer) -> None:
        """The register gives an epoch to whoever asks; the one before may not know."""
        assert w.chain is not None
        self.epoch = w.epoch = max(self.epoch, w.chain.prefix.at.epoch, w.epoch) + 1
        w.leading = True
        keys = {n: public_hex(k) for n, k in KEYS.items()} if w.chain.prefix.at.seq == 0 else {}
        self.step(w, machine.Lead(w.epoch, w.incarnation, Header(keys=keys)))

    def offer(self, w: Writer) -> None:
        """Offer the oldest chunks that the log does not promise."""
        assert w.chain is not None
        pushed = w.chain.prefix.promise["s", "1-1", w.name]
        missing = [t for t in range(1, w.newest + 1) if t not in pushed and t not in w.marked][:CHUNKS_MAX]
        if not missing:
            return
        claims = tuple(Coverage("s", "1-1", t - 1, t, w.name) for t in missing)
        if self.mutant == "chain_marks":
            w.marked.update(missing)
        self.step(w, machine.Offer(Header(rows=len(missing), intervals=claims), missing))

    def pipeline(self, w: Writer) -> None:
        """The mutant `window1`: send the next segment while one is in flight."""
        assert w.chain is not None
        out = w.chain._out
        if out is not None and not any(x.writer == w.name and x.seq == out.seq + 1 for x in self.writes):
            header = Header(
                group="g", seq=out.seq + 1, epoch=out.header.epoch, holder=w.name, incarnation=w.incarnation,
                arbiter="solo", prev=out.hash,
            )  # fmt: skip
            self.writes.append(
                Write(out.seq + 1, machine.sign(header, KEYS[w.name]), w.name, w.incarnation, tracked=False)
            )

    # One random step

    def random_step(self) -> None:
        self.now += self.r.choice((0.01, 0.1, 1.0))
        kind = self.r.choices(("work", "write", "chunk", "gc", "kill"), (50, 30, 8, 3, 2))[0]
        w = self.writers[self.r.choice(NAMES)]
        if kind == "write" and self.writes:
            self.move(self.r.choice(self.writes))
        elif kind == "chunk":
            w.newest += 1
        elif kind == "gc" and self.history:
            self.collect()
        elif kind == "kill" and w.chain is not None:
            self.kill(w)
        elif kind == "work":
            self.work(w)

    def move(self, write: Write) -> None:
        """Let a write arrive, be lost, be doubled, or its answer come back."""
        if write.at_store:
            self.writes.remove(write)
            self.answer(write)
        elif self.r.random() < self.lost and not self.calm:
            self.writes.remove(write)
        elif self.r.random() >= self.late or self.calm:
            self.arrive(write)
            if self.r.random() < 0.1:
                self.writes.append(Write(write.seq, write.data, write.writer, "", tracked=False))

    def answer(self, write: Write) -> None:
        w = self.writers[write.writer]
        waiting = isinstance(w.request, machine.Put) and w.request.header == write.data
        if w.chain is None or w.incarnation != write.incarnation or not waiting or not write.tracked:
            return
        w.request = None
        self.step(w, machine.Written(write.seq, write.created, ""))

    def work(self, w: Writer) -> None:
        if w.chain is None:
            return self.start(w)
        if w.done:
            return self.kill(w) if self.r.random() < 0.3 or self.calm else None
        chain = w.chain
        if isinstance(w.request, machine.Put):
            if self.mutant == "window1":
                self.pipeline(w)
            gone = not any(x.data == w.request.header and x.tracked for x in self.writes)
            if gone or (self.r.random() < 0.2 and not self.calm):
                request, w.request = w.request, None
                self.step(w, machine.Written(request.seq, False, ""))
        elif w.request is not None:
            request, w.request = w.request, None
            away = not self.calm and self.r.random() < 0.1
            if away:
                self.step(w, machine.Away())
            else:
                self.step(w, self.read(request))
        elif chain.wake_at is not None:
            self.now = max(self.now, chain.wake_at) if self.calm or self.r.random() < 0.3 else self.now
            self.step(w, machine.Wake())
        elif chain.phase is Phase.IDLE and not w.leading and (self.r.random() < 0.2 or self.calm):
            self.lead(w)
        elif chain.ready:
            self.offer(w)
        return None

    # The end

    def run(self, steps: int = 160) -> World:
        for _ in range(steps):
            self.random_step()
        self.heal()
        return self

    def heal(self) -> None:
        """Stop the faults; let one writer after the other lead; then everything must be in the log."""
        self.calm = True
        for w in self.writers.values():
            for _ in range(400):
                for write in list(self.writes):
                    self.move(write)
                self.work(w)
                if w.chain is not None and w.chain.ready and not w.done and not self.unpushed(w):
                    break
            else:
                raise Violation(f"{w.name} does not come to an end: {w.chain and w.chain.phase} {self.unpushed(w)}")
        self.check()

    def unpushed(self, w: Writer) -> list[int]:
        assert w.chain is not None
        pushed = w.chain.prefix.promise["s", "1-1", w.name]
        return [t for t in range(1, w.newest + 1) if t not in pushed and t not in w.marked]

    def check(self) -> None:
        prefix = Prefix(Saved("g"))
        for seq, data in enumerate(self.history):
            found = prefix.judge(data)
            if not isinstance(found, Header):
                raise Violation(f"I5 {found}")
            prefix.absorb(found, chain_hash(data), "")
            if seq >= self.floor and self.log.get(seq) != data:
                raise Violation(f"I2 segment {seq} is gone or changed")
        for w in self.writers.values():
            missing = [t for t in range(1, w.newest + 1) if t not in prefix.promise["s", "1-1", w.name]]
            if missing:
                raise Violation(f"I1 chunks {missing} of {w.name} are not in the log")

    def say(self, line: str) -> None:
        self.trace.append(line)


def _header(data: bytes) -> Header:
    found = machine.examine(data, "g", {n: public_hex(k) for n, k in KEYS.items()}, _seq(data))
    assert isinstance(found, Header), found
    return found


def _seq(data: bytes) -> int:
    import msgspec

    return int(msgspec.json.decode(data).get("seq", 0))
