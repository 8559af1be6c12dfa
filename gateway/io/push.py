"""The thread that lengthens the log: it carries out what the chain asks of the store and seals segments.

It owns the store's connections and one read-only view of the journal; it writes to the journal only
through the ingest thread (`Writer.call`), where its rows become durable with the samples. It may be
killed anywhere: what was sent and not recorded is found again by reading the log, and what is recorded
was verified. Nothing here decides: `mirror.chain` says what to ask of the store, `gateway.sync` when to
seal and what is missing.

Without a mandate (`lead`) it only follows: it reads what others append, so that the journal knows what need not be
pushed any more. Without a store nothing is lost and nothing else stops: the journal keeps what the log does not
promise.
What it does not do: trim the journal, hold the lease, or take samples of other replicas in.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import sync
from gateway.io.journal import Journal
from gateway.io.knock import Knock
from gateway.io.log import log
from gateway.io.reader import ChainRow, JournalReader
from gateway.io.sealing import Builder, Payload, Surroundings, Writer
from gateway.sync import Status
from mirror import chain, segment
from mirror.coverage import Coverage, Settled
from mirror.errors import ConfigError, Conflict, Corrupt, Fenced, MirrorError, Unavailable
from mirror.floor import FLOOR_BYTES_MAX
from mirror.header import chain_hash, public_hex
from mirror.layout import Layout
from mirror.prefix import Prefix, Saved
from mirror.probe import Probe, Together, probe
from mirror.store import ObjectStore, get_bounded

PROBE_FACT = "store.probe"
TAIL_BYTES = 64 * 1024  # the end of a segment that most likely holds its footer
PROBE_LIFE_S = 86_400.0  # an older one is made again at a start
RETRY_S = 30.0  # after an error that only a person can mend
WAIT_MAX_S = 10.0
TOLD_FEW = 500  # gaps; a prefix that was told more of them is large
SAVE_S = 300.0  # and saved so often
NEVER_S = 3600.0
LOOK_AGAIN_S = 600.0  # after a refusal: the store may have lied, or somebody has mended it
FOLLOW_S = 2.0
HUNG_S = 900.0  # no turn takes longer: a slow store has its timeouts, and a segment is built in seconds


class Pusher:
    """Pushes one group's journal into its log.

    Args:
        stores: The bucket, through one or more dialects (`S3Store.dialects`).
        open_reader: Opens a view of the journal; called in the thread.
        writer: See `Writer`.
        layout: Where the group's objects are.
        replica: Own name, the origin of own rows.
        key: Own signing key.
        policy: When to seal.
        incarnation: Random name of this process.
        arbiter: Asked for who it is that lets this replica lead.
        on_known: Told the epoch that the log has, before anything is written into it; in this thread.
        on_overruled: Told a higher epoch that fences this one, and why; in this thread.
        on_status: Told after every change, in this thread.
        together: Runs the probe's racers; None leaves the probe out.
        surroundings: Asked for each segment.
        members: See `Builder`.
        replaces: See `mirror.prefix.Prefix.barred`.
        clock: Seconds that only go forward.
        wall: Seconds since 1970; it decides nothing but whether a passed probe is old.
        make_chain: For tests that take a rule out.
        follow_s: Between two looks at what another one has appended.
    """

    def __init__(
        self,
        stores: Sequence[ObjectStore],
        open_reader: Callable[[], JournalReader],
        writer: Writer,
        *,
        layout: Layout,
        replica: str,
        key: Ed25519PrivateKey,
        policy: sync.Policy,
        incarnation: str,
        arbiter: Callable[[], str] = lambda: "solo",
        on_known: Callable[[int], None] = lambda epoch: None,
        on_overruled: Callable[[int, str], None] = lambda epoch, reason: None,
        on_status: Callable[[Status], None] = lambda status: None,
        together: Together | None = None,
        listens: Callable[[], bool] | None = None,
        surroundings: Callable[[], Surroundings] = Surroundings,
        members: Mapping[str, str] = {},
        replaces: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        make_chain: chain.ChainFactory = chain.Chain,
        follow_s: float = FOLLOW_S,
    ) -> None:
        self.status = Status()
        self._stores, self._store = stores, stores[0]
        self._open_reader, self._writer = open_reader, writer
        self._layout, self._replica, self._key = layout, replica, key
        self._incarnation, self._arbiter = incarnation, arbiter
        self._on_known, self._on_overruled = on_known, on_overruled
        self._mandate = 0  # the epoch under which it may lead; 0: it may not
        self._is_told = False  # of another mandate
        self._follow_at = 0.0
        self._has_read, self._follow_s = False, follow_s
        self._on_status, self._together, self._surroundings = on_status, together, surroundings
        self._members, self._replaces = members, replaces
        self.barred = ""  # why this replica could not lead the log that it has read
        self._builder: Builder | None = None
        self._clock, self._wall, self._make_chain = clock, wall, make_chain
        self._sync = sync.Sync(policy, clock())
        self._reader: JournalReader | None = None
        self._chain: chain.Chain | None = None
        self._request: chain.Request | None = None
        self._unsaved: list[tuple[ChainRow, tuple[Coverage, ...]]] = []
        self._saving: Future[Any] | None = None
        self._saving_rows = 0
        self._following = False
        self._saved_at = -SAVE_S
        self._not_before = 0.0
        self._failures = 0  # to do what this program should be able to do
        self._probes = 0
        self._refused = ""
        self._knock = None if listens is None else Knock(listens)
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    @property
    def has_read(self) -> bool:
        """Whether it has been at the end of the log, or knows that it cannot get there now."""
        return self._has_read or self.status.error is not None

    # The thread

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Tell the thread to end after the request in flight, and wait for it."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def lead(self, epoch: int) -> None:
        """Lead under an epoch, which is durable; from any thread, at any time."""
        self._mandate, self._is_told = epoch, True
        self._woken.set()

    def follow(self) -> None:
        """Lead no more; from any thread, at any time. What was sent before may still come to stand in the log."""
        self.lead(0)

    @property
    def alive(self) -> bool:
        """Whether the thread has neither ended nor stood still for longer than any turn may; true before `start`."""
        if self._thread.ident is None:
            return True
        return self._thread.is_alive() and time.monotonic() - self._beat < HUNG_S

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._beat = time.monotonic()
                pause = self.turn()
                if pause > 0 and self._woken.wait(min(pause, WAIT_MAX_S)):
                    self._woken.clear()
        finally:
            if self._reader is not None:
                self._reader.close()
            self._tell(state="stopped" if self.status.state not in ("fenced", "refused") else self.status.state)

    def turn(self) -> float:
        """Do the next thing; return in how many seconds there is another one."""
        if self._is_told:
            self._is_told = False
            self._appointed()
        if self.status.state == "fenced":
            self._save_chain()
            return NEVER_S
        pause = self._not_before - self._clock()
        if pause > 0:
            return pause
        try:
            if self.status.state == "refused":
                self._look_again()
            return self._turn()
        except (Unavailable, ConfigError) as error:
            # Of the journal, or of the store before the chain has begun: the reaction is to try again.
            self._complain(error)
            pause = RETRY_S if isinstance(error, ConfigError) else chain.RETRY_MAX_S / 6
            self._not_before = self._clock() + pause
            return pause
        except Exception as error:
            return self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> float:
        """Nobody would see this thread end: begin as after a restart, with a higher epoch, ever more seldom."""
        self._complain(Unavailable(f"pushing failed: {error!r}"[:1000], hint="report this error; pushing begins anew"))
        if self._reader is not None:
            self._reader.close()
        self._reader = self._builder = None
        self._look_again()
        pause = min(RETRY_S * 2.0**self._failures, NEVER_S)
        self._failures = min(self._failures + 1, 10)
        self._not_before = self._clock() + pause
        return pause

    def _look_again(self) -> None:
        """Read the log as after a restart: what was refused may have been a lie, or is mended."""
        self._chain = self._request = self._saving = None
        self._unsaved = []
        self._sync = sync.Sync(self._sync.policy, self._clock())
        self._tell(state="starting")

    def _turn(self) -> float:
        if self._chain is None:
            self._open()
            return 0.0
        self._save_chain()
        if self._request is not None:
            request, self._request = self._request, None
            self._step(self._carry_out(request))
            return 0.0
        now = self._clock()
        if self._chain.wake_at is not None and now >= self._chain.wake_at:
            self._step(chain.Wake())
            return 0.0
        if now >= self._sync.wake_at:
            self._plan(sync.Tick())
            return 0.0
        if self._chain.phase is chain.Phase.IDLE and not self._chain.placed:
            if now >= self._follow_at:
                self._follow_at = now + self._follow_s
                self._step(chain.Start())
                return 0.0
            return max(0.0, min(self._follow_at, self._sync.wake_at) - now)
        if self._chain.wake_at is None:
            return max(0.0, self._sync.wake_at - now)
        if self._knock is not None and self._knock.is_back(now):
            self._step(chain.Wake(early=True))
            return 0.0
        pause = max(0.0, min(self._sync.wake_at, self._chain.wake_at) - now)
        return pause if self._knock is None else min(pause, self._knock.pause_s)

    def _open(self) -> None:
        """Probe the store unless it is known, and take up the log where the journal knows it to be."""
        if self._reader is None:
            self._reader = self._open_reader()
            self._builder = Builder(self._reader, self._writer, self._sync.policy, self._surroundings, self._members)
        if self._together is not None and not self._probe(self._together):
            return
        saved = self._reader.fact(self._log_fact)
        prefix = Prefix(Saved(self._layout.group)) if saved is None else Prefix.load(saved)
        self._chain = self._make_chain(prefix, self._replica, self._key, self._arbiter())
        self._tell(state="following", seq=prefix.at.seq)
        self._step(chain.Start())

    @property
    def _log_fact(self) -> str:
        return log_fact(self._store, self._layout)

    def _probe(self, together: Together) -> bool:
        """Learn what the store can do unless that is known; tell whether it can hold a log, as far as one knows now."""
        assert self._reader is not None
        passed, server, now_s = _passed(self._reader.fact(PROBE_FACT)), self._stores[0].server(), self._wall()
        if passed is None or not passed.holds(self._stores, server, now_s):
            self._probes += 1
            try:
                report = probe(self._stores, self._layout.probe, f"{self._incarnation}-{self._probes}", together)
            except Unavailable as error:  # a probe is a hundred requests: ever more seldom
                self._complain(error)
                self._not_before = self._clock() + min(RETRY_S / 12 * 2.0 ** min(self._probes, 20), NEVER_S)
                return False
            try:
                report.refuse()
            except ConfigError as error:
                self._refuse(error)  # and not remembered: the next start asks again
                return False
            passed = _Passed(report, now_s)
            data = msgspec.json.encode(passed)
            self._writer.call(lambda journal: journal.set_fact(PROBE_FACT, data))
        self._store = self._stores[passed.report.dialect]
        return True

    # The chain's requests

    def _step(self, event: chain.Event) -> None:
        assert self._chain is not None
        for effect in self._chain.step(event, self._clock()):
            self._effect(effect)

    def _effect(self, effect: chain.Effect) -> None:
        assert self._chain is not None
        match effect:
            case chain.ReadFloor() | chain.ReadSegment() | chain.ListFrom() | chain.Put():
                assert self._request is None
                self._request = effect
            case chain.Absorbed(header, hash):
                row = ChainRow(header.seq, header.epoch, header.holder, header.incarnation, hash)
                self._unsaved.append((row, header.intervals))
                self._tell(seq=header.seq + 1)
            case chain.AtEnd(epoch):
                self._at_end(epoch)
            case chain.Placed(epoch):
                self._tell(state="leading", epoch=epoch, error=None)
                self._plan(sync.Opened())
            case chain.Accepted(seq, body):
                self._accepted(seq, body)
            case chain.Returned():
                self._plan(sync.Dropped(nothing=False))
            case chain.FencedOut(reason):
                self._plan(sync.Closed())
                log("push.fenced", reason=reason)
                hint = "stop the other gateway (`edgemirror status` says who holds the log), then restart this one"
                self._tell(state="fenced", error=Fenced(reason, hint=hint))
                self._on_overruled(self._chain.prefix.at.epoch, reason)
            case chain.Refused(what, hint):
                self._plan(sync.Closed())
                self._refuse(ConfigError(what, hint=hint))
            case chain.Believed(seq, signer):
                log("push.floor_believed", seq=seq, signer=signer)
            case chain.Alarm(finding):
                log("push.failed", error=str(finding), hint="run `edgemirror verify`")

    def _refuse(self, error: ConfigError) -> None:
        if str(error) != self._refused:
            log("push.refused", error=str(error), hint=error.hint)
        self._refused = str(error)
        self._not_before = self._clock() + LOOK_AGAIN_S
        self._tell(state="refused", error=error)

    def _appointed(self) -> None:
        """Take another mandate: under the one before nothing more is sent, and the log is read anew."""
        if self._chain is not None and (self._chain.leads or self.status.state == "fenced"):
            self._look_again()
        self._follow_at = 0.0
        self._tell(epoch=self._mandate or self.status.epoch)

    def _at_end(self, newest: int) -> None:
        """Lead if there is a mandate above all that the log knows."""
        assert self._chain is not None
        assert self._builder is not None
        self._has_read = True
        if self._chain.leads:
            return
        bar = self._chain.prefix.barred(
            self._replica, public_hex(self._key), self._arbiter(), self._members, self._replaces
        )
        self.barred = "" if bar is None else bar[0]
        self._on_known(newest)
        self._follow_at = self._clock() + self._follow_s
        if self._mandate > newest:
            self._chain.arbiter, self._chain.replaces = self._arbiter(), self._replaces
            self._step(chain.Lead(self._mandate, self._incarnation, self._builder.fence()))
        elif self.status.state != "following" or self.status.error is not None:
            self._tell(state="following", error=None)

    def _carry_out(self, request: chain.Request) -> chain.Event:
        """Ask the store; every answer is an event."""
        if isinstance(request, chain.Put):
            return self._put(request)
        try:
            match request:
                case chain.ReadFloor():
                    answer: chain.Event = self._read_floor()
                case chain.ReadSegment(seq):
                    answer = self._read_segment(seq)
                case chain.ListFrom(seq):
                    answer = self._list_from(seq)
        except (Unavailable, ConfigError, Corrupt) as error:
            self._complain(error)
            return chain.Away()
        if self.status.error is not None:
            self._tell(error=None)
        return answer

    def _read_floor(self) -> chain.Event:
        self._spend(1)
        try:
            found = get_bounded(self._store, self._layout.floor, FLOOR_BYTES_MAX)
        except Corrupt:  # too large to be one: it counts as little as any other that is not genuine
            return chain.FloorRead(b"")
        return chain.FloorRead(None if found is None else found.body)

    def _read_segment(self, seq: int) -> chain.Event:
        self._spend(1)
        key = self._layout.segment(seq)
        found = self._store.get(key, (-TAIL_BYTES, None))
        if found is None:
            return chain.SegmentRead(seq, None)
        try:
            size = segment.footer_size(found.body)
            if len(found.body) < size <= min(found.size, segment.FOOTER_BYTES_MAX):
                self._spend(1)
                found = self._store.get(key, (-size, None)) or found
            return chain.SegmentRead(seq, segment.read_header(found.body), found.metadata.get("sha256", ""))
        except Corrupt as error:
            return chain.SegmentBroken(seq, str(error))

    def _list_from(self, seq: int) -> chain.Event:
        self._spend(1)
        after = self._layout.segment(seq - 1) if seq else ""
        for found in self._store.list(self._layout.log, start_after=after, limit=100):
            number = self._layout.sequence(found.key)
            if number is not None and number >= seq:
                return chain.Listed(number)
        return chain.Listed(None)

    def _put(self, request: chain.Put) -> chain.Event:
        payload: Payload = request.body or Payload.empty(self._clock())
        data = payload.encoded(request.header)
        file = hashlib.sha256(data).digest()
        self._spend(1)
        metadata = {"chain": chain_hash(request.header), "sha256": file.hex()}
        known = False
        try:
            self._store.put(self._layout.segment(request.seq), data, if_none_match=True, metadata=metadata, sha256=file)
            known = True
        except Conflict:
            pass
        except (Unavailable, ConfigError, Corrupt) as error:
            self._complain(error)
        return chain.Written(request.seq, known, file.hex())

    # Sealing

    def _plan(self, event: sync.Event) -> None:
        """Feed the sync machine; its effects are answered at once or end in an offer to the chain."""
        todo = self._sync.step(event, self._clock())
        while todo:
            match todo.pop(0):
                case sync.Measure():
                    todo += self._sync.step(self._measure(), self._clock())
                case sync.Seal():
                    todo += self._seal()
        self._tell(interval_s=self._sync.interval_s)

    def _spend(self, requests: int) -> None:
        self.status = replace(self.status, requests=self.status.requests + requests)
        self._sync.step(sync.Spent(requests), self._clock())

    def _measure(self) -> sync.Measured:
        assert self._reader is not None
        assert self._chain is not None
        try:
            found = self._reader.backlog(Settled(self._chain.prefix.promise, self._reader.streams()))
        except Unavailable as error:
            self._complain(error)
            return self._sync.backlog
        self._tell(backlog_rows=found.rows, backlog_bytes=found.size_bytes)
        return sync.Measured(found.rows, found.size_bytes)

    def _seal(self) -> list[sync.Effect]:
        """Offer what the log lacks, oldest first, up to a full segment."""
        assert self._chain is not None
        built = None
        try:
            if self._chain.ready:
                assert self._builder is not None
                built = self._builder.build(self._chain.prefix, self._clock())
        except MirrorError as error:
            self._complain(error)
        if built is None:
            return self._sync.step(sync.Dropped(nothing=True), self._clock())
        self._step(chain.Offer(*built))
        return []

    def _accepted(self, seq: int, body: Payload) -> None:
        took_s = self._clock() - body.sealed_at
        log("push.pushed", seq=seq, rows=len(body.rows), size_bytes=len(body.file), took_ms=round(took_s * 1000))
        status, self._failures = self.status, 0
        self._tell(
            segments=status.segments + 1, rows=status.rows + len(body.rows), pushed_at=self._clock(),
            size_bytes=status.size_bytes + len(body.file), error=None,
        )  # fmt: skip
        self._plan(sync.Accepted(took_s))

    # What the journal remembers of the log

    def _save_chain(self) -> None:
        """Record absorbed segments and the prefix in one transaction; never two at a time.

        A prefix that knows of many gaps is large and is saved seldom: an older one is brought up from the log.
        """
        if self._saving is not None:
            if not self._saving.done():
                return
            saving, self._saving = self._saving, None
            failed = saving.exception()
            if failed is None:
                self._following = True
                del self._unsaved[: self._saving_rows]
            elif isinstance(failed, MirrorError):
                self._complain(failed)
            else:
                raise failed
        if not self._unsaved or self._chain is None or not self._is_enrolled(self._chain.prefix):
            return
        rows, name, prefix, now = tuple(self._unsaved), self._log_fact, self._chain.prefix, self._clock()
        earlier = [] if self._following else prefix.promise.claims()  # it is that of this log from then on
        data = None
        if len(prefix.at.told) <= TOLD_FEW or now - self._saved_at >= SAVE_S:
            self._saved_at, data = now, prefix.save()

        def save(journal: Journal) -> None:
            journal.follow_log(name, earlier)
            for row, claims in rows:
                journal.add_chain(row, claims)
            if data is not None:
                journal.set_fact(name, data)

        self._saving_rows = len(rows)
        self._saving = self._writer.call(save)

    def _is_enrolled(self, prefix: Prefix) -> bool:
        """Whether this is our log: another's is not to be remembered, or taking it away would look like a loss."""
        return prefix.at.keys.get(self._replica) == public_hex(self._key)

    # What others are told

    def _complain(self, error: MirrorError) -> None:
        """Tell of an error once, until it is another one or gone."""
        if self.status.error is None or str(self.status.error) != str(error):
            log("push.failed", error=str(error), hint=error.hint)
            self._tell(error=error)

    def _tell(self, **changes: Any) -> None:
        status = replace(self.status, **changes)
        if status != self.status:
            self.status = status
            self._on_status(status)


def log_fact(store: ObjectStore, layout: Layout) -> str:
    """Return the name of the journal's fact about this very log: another bucket is another log."""
    return f"log:{store.name}/{layout.root}"


class _Passed(msgspec.Struct, frozen=True):
    """A probe that found nothing against the store, and when it was made (seconds since 1970)."""

    report: Probe
    at_s: float

    def holds(self, stores: Sequence[ObjectStore], server: str, now_s: float) -> bool:
        """Tell whether it speaks of the store that is asked now, and is not old."""
        report = self.report
        same = (report.store, report.server) == (stores[0].name, server) and report.dialect < len(stores)
        return same and 0 <= now_s - self.at_s < PROBE_LIFE_S


def _passed(data: bytes | None) -> _Passed | None:
    try:
        return None if data is None else msgspec.json.decode(data, type=_Passed)
    except msgspec.MsgspecError:
        return None  # of another version of this program
