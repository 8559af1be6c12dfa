"""One replica's journal and pusher in simulated time, with a store and a writer that fail on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import failover
from gateway.io import leading
from gateway.io.journal import Journal
from gateway.io.push import Pusher
from gateway.io.reader import JournalReader
from gateway.io.registers import SoloRegister
from gateway.sync import Policy, Status
from mirror.batch import Batch, canonical_order, concat, take
from mirror.coverage import Coverage, Grade, Stream
from mirror.header import Header, public_hex
from mirror.layout import Layout
from mirror.store import MemoryStore, Object
from mirror.tags import TagTable
from mirror.verify import Report, verify_store
from tests.gateway.journals import STREAM, TIMELINE, doubles, fresh

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
LAYOUT = Layout("plant", "g")
POLICY = Policy(rows_max=60, bytes_max=1 << 20, interval_min_s=1.0, interval_max_s=10.0)


class Kill(BaseException):
    """The process ends here."""


class FaultyStore(MemoryStore):
    """Calls `fault(point, key)` before and after each write and before each read; it may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Callable[[str, str], None] = lambda point, key: None
        self.calls: list[str] = []

    def get(self, key: str, range: Any = None) -> Object | None:
        self.calls.append(f"get {key}")
        self.fault("get", key)
        return super().get(key, range)

    def put(self, key: str, body: bytes, **how: Any) -> str:
        self.calls.append(f"put {key}")
        self.fault("before put", key)
        etag = super().put(key, body, **how)
        self.fault("after put", key)
        return etag

    def list(self, prefix: str, **how: Any) -> Iterator[Object]:
        self.fault("list", prefix)
        return super().list(prefix, **how)


class InTurn:
    """Runs the journal's work at once, in the caller's thread."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.fault: Callable[[str, str], None] = lambda point, key: None

    def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
        self.fault("before commit", "")
        answer: Future[Any] = Future()
        with self.journal.transaction():
            result = work(self.journal)
        answer.set_result(result)
        self.fault("after commit", "")
        return answer


class Box:
    """One replica: a journal that fills, and a pusher that may die and come back. Time is simulated."""

    def __init__(self, tmp_path: Path, store: FaultyStore | None = None) -> None:
        self.journal = fresh(tmp_path)
        self.store = store or FaultyStore()
        self.writer = InTurn(self.journal)
        self.now, self.step, self.starts = 0.0, 0, 0
        self.sent: list[Batch] = []
        self.told: list[Status] = []
        self.pusher: Pusher | None = None
        with self.journal.transaction():
            self.journal.save_stream(Stream(STREAM, "urn:x"))

    def receive(self, chunks: int = 1, *, grade: Grade = Grade.COVERED, origin: str = "a", cover: bool = True) -> None:
        """Journal chunks of six rows, one publish time (10 ticks) each."""
        for _ in range(chunks):
            self.step += 1
            batch = doubles(self.step)
            start = self.step * 10
            with self.journal.transaction():
                self.journal.append(STREAM, TIMELINE, start, start + 10, origin, batch)
                if cover:
                    self.journal.extend(Coverage(STREAM, TIMELINE, start, start + 10, origin, grade))
            self.sent.append(batch)

    def start(self, **how: Any) -> Pusher:
        """Start a process, with a lease that nobody contests."""
        self.starts += 1
        incarnation = f"inc{self.starts}"
        how = {"layout": LAYOUT, "replica": "a", "key": KEY, "policy": POLICY, **how}
        stores = how.pop("stores", [self.store])
        self.pusher = Pusher(
            stores, lambda: JournalReader.open(self.journal.path), self.writer, incarnation=incarnation,
            on_status=self.told.append, clock=lambda: self.now, on_known=self.known, on_overruled=self.overruled, **how,
        )  # fmt: skip
        self.leading = leading.Leading(
            leading.machine("a", incarnation, self.journal.epoch()[0], leading.timing("solo", 0.0), "solo"),
            SoloRegister(), save=lambda epoch: self.writer.call(lambda journal: journal.save_epoch(epoch, incarnation)),
            told=self, clock=lambda: self.now, inline=True,
        )  # fmt: skip
        self.leading.post(failover.Ready(True))
        return self.pusher

    def known(self, epoch: int) -> None:
        self.leading.post(failover.Known(epoch))

    def overruled(self, epoch: int, reason: str) -> None:
        self.leading.post(failover.Overruled(epoch, reason))

    def promoted(self, epoch: int) -> None:
        assert self.pusher is not None
        self.pusher.lead(epoch)

    def drifting(self) -> None:
        raise AssertionError("a lease of one's own does not run out")

    def demoted(self, reason: str) -> None:
        """Nothing more is pushed: the pusher has fenced itself."""

    def run(self, seconds: float = 0.0, **how: Any) -> Status:
        """Let the pusher work for a while; start it if there is none. A Kill ends it."""
        pusher = self.pusher or self.start(**how)
        end = self.now + seconds
        try:
            for _ in range(100_000):
                self.leading.turn()
                pause = pusher.turn()
                if pause > 0 and self.leading.turn() <= 0:
                    continue
                if pause > 0:
                    if self.now + pause > end:
                        break
                    self.now += pause
            else:
                raise AssertionError("it does not come to rest")
        except Kill:
            self.pusher = None
            return Status(state="killed")
        self.now = max(self.now, end)
        return pusher.status

    def verified(self) -> Report:
        """Check the log; nothing may be wrong with it, and each row stands in it once."""
        held: list[Batch] = []
        tags = TagTable()

        def visit(_header: Header, batch: Batch, table: TagTable) -> None:
            nonlocal tags
            tags = table
            held.append(batch)

        report = verify_store(self.store, LAYOUT, keys={"a": public_hex(KEY)}, visit=visit)
        assert report.verified, report.findings
        self.held, self.held_tags = concat(held), tags
        return report

    def assert_all_pushed(self) -> Report:
        report = self.verified()
        assert self.in_order(self.held, self.held_tags) == self.in_order(concat(self.sent), self.journal.tags)
        return report

    @staticmethod
    def in_order(batch: Batch, tags: TagTable) -> list[tuple[Any, ...]]:
        rows = take(batch, canonical_order(batch, tags.rank)) if len(batch) else batch
        names = [tags.identities[h] for h in rows.handle.tolist()]
        return list(zip(names, rows.source_ticks.tolist(), rows.bits.tolist(), rows.status.tolist(), strict=True))
