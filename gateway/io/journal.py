"""The replica's journal: what was received, durable before it is acknowledged.

One process owns the file (a lock on its directory says so) and one thread of it writes. Everything
that belongs together is one transaction: chunks, the coverage they give, the gaps they open, and the
state rows that are due. When `Journal.transaction()` has ended without an error, the disk has it
(`synchronous=FULL`); the caller may then acknowledge.

The rule that makes the state safe: `state_mark` names the chunk through which every row of `state` is
complete, and moves only in the transaction that writes the last of those rows. State is rows plus the
replay of later chunks, so it never matters how far a flush had come when the power went. Batches enter
the state in memory only when their transaction has committed: there is nothing to undo when one fails.

What this module does not do: decide what to store or when to commit (`gateway.sampler`, the runtime),
or say what was pushed (`mirror.coverage.Promise`, from the verified chain).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from gateway.io import datadir
from gateway.io.intervals import IntervalTable
from gateway.io.ledger import CLOSE_GAP, OPEN_GAP, gap_values
from gateway.io.reader import Backlog, ChainRow, ChunkRow, JournalReader, read_epoch, size_bytes
from gateway.io.trimming import Trimming
from mirror import chunk
from mirror.batch import SOURCE_NULL, Batch
from mirror.coverage import Closure, Coverage, Gap, Pushed, Stream
from mirror.errors import Corrupt, Unavailable
from mirror.io.sqlite import (
    STRUCTURES,
    TAG_COLUMNS,
    check,
    connect,
    encode_structures,
    migrate,
    reaction,
    reactions,
    read_state,
    read_structures,
    read_tags,
)
from mirror.schema import STATE_COLUMNS, SqlValue, state_parameters
from mirror.state import State
from mirror.tags import Tag, TagTable
from mirror.variant import Structure

__all__ = ["Backlog", "ChainRow", "ChunkRow", "Journal", "JournalReader"]

STATE_ROWS_MIN = 256  # state rows written along with a transaction when a flush is under way
STATE_ROWS_MAX = 4_000  # and at most so many, or a commit would take too long
LATER_TICKS = 100_000_000  # of one server's clock, as another replica may have heard it
WAL_PAGES = 1_000  # a WAL of so many pages (4 MiB) is due for a checkpoint
WAL_BYTES_KEPT = 32 << 20  # a reader that did not end makes its file larger; it is cut to this once that has ended
CLOCK_AHEAD_MAX_S = 86_400  # receive times further in the future than this come from a clock that was wrong

LOG_FACT = "log.followed"

_INSERT_CHUNK = (
    "INSERT INTO chunk (seq, lane, pub_from, pub_to, received_s, n, t0, t1, h0, h1, size, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
#: By number of rows: one statement with many costs half of as many statements; longer ones are not cached.
_WRITE_STATE = {
    rows: f"INSERT OR REPLACE INTO state ({', '.join(STATE_COLUMNS)})"
    f" VALUES {', '.join(['(' + ','.join('?' * len(STATE_COLUMNS)) + ')'] * rows)}"
    for rows in (200, 20, 1)
}
_WRITE_TAG = (
    f"INSERT INTO tag (handle, {', '.join(TAG_COLUMNS)}) VALUES (?, {', '.join('?' * len(TAG_COLUMNS))})"
    f" ON CONFLICT (handle) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in TAG_COLUMNS)}"
)


class Journal:
    """The one writer. Not safe for use by two threads at once.

    Attributes:
        path: The file.
        state: Current value of every tag: the fold of all committed chunks.
        tags: All committed tags, by handle.
        structures: Structure definitions by source.
        committed: Sequence number of the newest committed chunk; 0 if there is none.
        wal_pages: Pages in the write-ahead log that are not yet in the file, as far as known.
    """

    def __init__(
        self,
        db: apsw.Connection,
        lock: int,
        path: Path,
        replica: str,
        state_period_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Take over an open connection and the lock; use `Journal.open`."""
        self.path = path
        self.tags: TagTable = read_tags(db)
        self.state: State = read_state(db)
        self.structures: dict[str, dict[str, Structure]] = read_structures(db)
        self.wal_pages = 0
        self._db = db
        self._lock = lock
        self._replica = replica
        self._clock = clock
        self._period_s = state_period_s
        self._mark: int = db.execute("SELECT chunk FROM state_mark").get
        last: Any = db.execute("SELECT seq, received_s FROM chunk ORDER BY seq DESC LIMIT 1").fetchone()
        newest, received = last or (0, 0)
        self.committed: int = max(newest, self._mark)
        self._received_s: int = received
        # Tags whose row is older than their value: everything that chunks after the mark may have changed.
        self._dirty: NDArray[np.bool_] = np.ones(len(self.tags), np.bool_) & (self.committed > self._mark)
        self._sweep: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._sweep_at = 0
        self._sweep_mark = self._mark
        self._swept_s = self._flushed_s = time.monotonic()
        self._lanes: dict[tuple[str, str, str], int] = {}
        self._coverage = IntervalTable(self._run, "coverage")
        self._promise = IntervalTable(self._run, "promise")
        self._trimming = Trimming(self._run, self._run_many, clock)
        self._open = False
        self._begin()
        db.set_wal_hook(self._on_wal)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        replica: str,
        state_period_s: float = 1.0,
        vfs: str = "",
        clock: Callable[[], float] = time.time,
    ) -> Journal:
        """Lock the directory of `path`, bring the schema up to date, load tags and state.

        Args:
            path: The file; its directory is made if it is missing, readable for its owner alone.
            replica: Name of this replica.
            state_period_s: Every changed state row is written about once in so many seconds.
            vfs: Name of another registered SQLite VFS.
            clock: Wall clock, Unix seconds.

        Raises:
            ConfigError: Another process holds the directory, SQLite is too old, the file is newer than
                this program or another program's, or it may not be read.
            Corrupt: The file is damaged.
        """
        lock = datadir.hold(path.parent)
        try:
            migrate(path)
            db = connect(path, write=True, vfs=vfs)
            try:
                check(db, path)
                with reactions(path):
                    db.execute("PRAGMA journal_mode = WAL")
                    db.execute("PRAGMA synchronous = FULL")
                    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
                    db.wal_autocheckpoint(0)  # it would run inside some unlucky commit
                    return cls(db, lock, path, replica, state_period_s, clock)
            except BaseException:
                db.close()
                raise
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Write the whole state, checkpoint, release the directory. A second call does nothing."""
        if self._lock < 0:
            return
        try:
            # On a full disk the chunks are there all the same, and the state is replayed from them.
            with suppress(Unavailable), self.transaction():
                self.flush_state()
            # Closing moves the WAL into the file; where that fails, the next writer finds the WAL.
            with suppress(apsw.FullError, apsw.IOError):
                self._db.close()
        finally:
            os.close(self._lock)
            self._lock = -1

    @contextmanager
    def transaction(self, *, flush: bool = True) -> Iterator[None]:
        """Commit everything done inside as one; on return it is on disk. Nothing is kept on an error.

        A statement that fails dooms the transaction, even where its error is caught inside.

        Args:
            flush: Whether due state rows are written along: at most STATE_ROWS_MAX, all of them about once in
                `state_period_s` as long as transactions come.

        Raises:
            Unavailable: Disk full or I/O error; rolled back, the journal stays usable.
            Corrupt: The file is damaged.
        """
        assert not self._open, "transactions do not nest"
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            self._open = True
            yield
            if flush and not self._flushed:
                self._flush_due()
            if self._failed is not None:
                raise self._failed  # a statement failed, and whoever ran it took no notice
            db.execute("COMMIT")
        except BaseException as error:
            self._undo()
            if isinstance(error, apsw.Error):
                raise reaction(error, self.path) from error
            raise
        self._done()

    # All of these only inside a transaction.

    def append(
        self,
        stream: str,
        timeline: str,
        pub_from: int,
        pub_to: int,
        origin: str,
        batch: Batch,
        body: bytes | None = None,
    ) -> int:
        """Store a batch as one chunk and return its sequence number.

        Args:
            stream: Stream id.
            timeline: Timeline name.
            pub_from: Publish time (ticks) after which the rows were published.
            pub_to: Publish time of the last message in it; several chunks may share one.
            origin: Name of the replica, or `<replica>/history`.
            batch: At least one row; becomes part of `state` when the transaction has committed.
            body: `mirror.chunk.encode(batch)` if it was already made elsewhere.
        """
        assert self._open
        assert pub_from <= pub_to
        n, handle = len(batch), batch.handle
        h0, h1 = int(handle.min()), int(handle.max())
        assert h1 < len(self.tags) + len(self._new_handles), "a tag is stored before its samples"
        stamped = batch.source_ticks
        if batch.flags.any():
            stamped = stamped[batch.flags & np.uint8(SOURCE_NULL) == 0]
        t0, t1 = (int(stamped.min()), int(stamped.max())) if len(stamped) else (None, None)
        if body is None:
            body = chunk.encode(batch)
        seq = self.committed + len(self._pending) + 1
        lane = self._lanes.get((stream, timeline, origin)) or self._lane(stream, timeline, origin)
        received = self._received()
        self._run(_INSERT_CHUNK, (seq, lane, pub_from, pub_to, received, n, t0, t1, h0, h1, len(body), body))
        self._pending.append(batch)
        return seq

    def has_timeline(self, stream: str, timeline: str) -> bool:
        """Tell whether anything was ever stored or claimed on a timeline."""
        found: int = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM lane WHERE stream = ? AND timeline = ?)"
            " OR EXISTS (SELECT 1 FROM coverage WHERE stream = ? AND timeline = ?)",
            (stream, timeline, stream, timeline),
        ).get
        return bool(found)

    def has_later(self, stream: str, timeline: str, ticks: int) -> bool:
        """Tell whether the followed log has something on a timeline that was published well after these ticks."""
        found: int = self._db.execute(
            'SELECT EXISTS (SELECT 1 FROM promise WHERE stream = ? AND timeline = ? AND "end" > ?)',
            (stream, timeline, min(ticks + LATER_TICKS, (1 << 63) - 1)),
        ).get
        return bool(found)

    def extend(self, coverage: Coverage) -> None:
        """Add an interval to the coverage; it joins what it touches of the same key and grade."""
        assert self._open
        self._coverage.add(coverage)

    def open_gap(self, gap: Gap) -> None:
        """Record a gap; recording it again widens it to a later end and other tags while it is open."""
        assert self._open
        self._run(OPEN_GAP, gap_values(gap))

    def close_gap(self, gap_id: str, closed_by: Closure, closed_reason: str = "", *, end: int | None = None) -> None:
        """Close a gap; a closed gap never changes again.

        Args:
            gap_id: A recorded gap.
            closed_by: How.
            closed_reason: More about it.
            end: Publish time at which it ended, if that was not recorded yet.
        """
        assert self._open
        assert self._run("SELECT count(*) FROM gap WHERE id = ?", (gap_id,)).get == 1, gap_id
        self._run(CLOSE_GAP, (end, str(closed_by), closed_reason, gap_id))

    def save_stream(self, stream: Stream) -> None:
        """Record a stream, or what the server revised of it."""
        assert self._open
        self._run(
            "INSERT INTO stream (id, source, axis, revised_publishing_ms, revised_queue_size, overflow_detectable,"
            " revised_sampling_ms) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET axis = excluded.axis,"
            " revised_publishing_ms = excluded.revised_publishing_ms,"
            " revised_queue_size = excluded.revised_queue_size, overflow_detectable = excluded.overflow_detectable,"
            " revised_sampling_ms = excluded.revised_sampling_ms",
            (stream.id, stream.source, str(stream.axis), stream.revised_publishing_ms, stream.revised_queue_size,
             int(stream.overflow_detectable), stream.revised_sampling_ms),
        )  # fmt: skip

    def add_tags(self, tags: Sequence[Tag]) -> list[int]:
        """Return the handles of tags, storing new ones and new facts of known ones."""
        assert self._open
        handles: list[int] = []
        rows: list[tuple[object, ...]] = []
        for tag in tags:
            identity = tag.identity
            handle = self.tags.find(identity)
            if handle is None:
                handle = self._new_handles.setdefault(identity, len(self.tags) + len(self._new_handles))
            elif self.tags[handle] == tag:
                handles.append(handle)
                continue
            rows.append((handle, *msgspec.structs.astuple(tag)))
            self._new_tags.append(tag)
            handles.append(handle)
        self._run_many(_WRITE_TAG, rows)
        return handles

    def set_structures(self, source: str, structures: Mapping[str, Structure]) -> None:
        """Store a source's structure definitions, with which SQL shows its values readably."""
        self.set_fact(STRUCTURES + source, encode_structures(structures))
        self.structures[source] = dict(structures)

    def set_fact(self, name: str, value: bytes) -> None:
        """Store a named value."""
        assert self._open
        self._run("INSERT OR REPLACE INTO fact (name, value) VALUES (?, ?)", (name, value))

    def save_session(self, source: str, secret: bytes) -> None:
        """Store what is needed to resume a source's session, encrypted; replaces the one before."""
        assert self._open
        nonce = os.urandom(12)
        body = AESGCM(datadir.key(self.path.parent, make=True)).encrypt(nonce, secret, self._bound_to(source))
        self._run("INSERT OR REPLACE INTO session (source, nonce, body) VALUES (?, ?, ?)", (source, nonce, body))

    def drop_session(self, source: str) -> None:
        """Forget a source's session."""
        assert self._open
        self._run("DELETE FROM session WHERE source = ?", (source,))

    def save_epoch(self, epoch: int, incarnation: str) -> None:
        """Record the epoch about to be used; it is greater than the one before."""
        assert self._open
        assert epoch > self.epoch()[0], "epochs only grow"
        self._run("INSERT OR REPLACE INTO epoch (id, epoch, incarnation) VALUES (0, ?, ?)", (epoch, incarnation))

    def follow_log(self, name: str, claims: Sequence[Coverage] = ()) -> None:
        """Make `chain` and `promise` those of the log `name`; what is known of another log is forgotten.

        Args:
            name: Identity of the log: store, bucket and place in it.
            claims: What this log promises as far as it is known; used when it becomes the followed one.
        """
        assert self._open
        if self._run("SELECT value FROM fact WHERE name = ?", (LOG_FACT,)).get == name.encode():
            return
        self._run("DELETE FROM chain")
        self._promise.clear()
        self.set_fact(LOG_FACT, name.encode())
        for claim in claims:
            self._promise.add(claim)

    def add_chain(self, row: ChainRow, claims: Sequence[Coverage] = ()) -> None:
        """Append one verified segment of the log and what it promises; the same again changes nothing."""
        assert self._open
        known = self._run("SELECT hash FROM chain WHERE seq = ?", (row.seq,)).get
        assert known in (None, row.hash), f"segment {row.seq} of a verified log cannot change"
        self._run("INSERT OR IGNORE INTO chain (seq, epoch, holder, incarnation, hash) VALUES (?, ?, ?, ?, ?)", row)
        for claim in claims:
            self._promise.add(claim)

    def retract(self, claim: Coverage) -> None:
        """Take a claim out of the promise, whatever its grade, because its segment was found rotten."""
        assert self._open
        self._promise.subtract(claim)

    def flush_state(self, limit: int | None = None) -> int:
        """Write up to `limit` (None: all) state rows that are due; return how many then remain.

        Rows carry the values as of the newest committed chunk; those of this transaction follow later.
        """
        assert self._open
        if limit is None or self._sweep_at == len(self._sweep):
            self._start_sweep()
        end = len(self._sweep) if limit is None else min(self._sweep_at + limit, len(self._sweep))
        handles = self._sweep[self._sweep_at : end]
        if len(handles):
            self._write_state(state_parameters(self.state.batch(handles), self._structures_of))
            self._flushed.append(handles)
        self._sweep_at = end
        if end == len(self._sweep) and self._sweep_mark > self._mark:
            self._run("UPDATE state_mark SET chunk = ?", (self._sweep_mark,))
            self._new_mark = self._sweep_mark
        return len(self._sweep) - end

    def trim(self, promise: Pushed, *, keep_s: float, limit: int = 1000) -> int:
        """Delete chunks that are promised AND old; see `gateway.io.trimming.Trimming.by_age`."""
        assert self._open
        return self._trimming.by_age(promise, self._mark, keep_s=keep_s, limit=limit)

    def trim_to(self, size_bytes: int, promise: Pushed, *, limit: int = 1000) -> int:
        """Delete chunks that are promised until the rest fits; see `gateway.io.trimming.Trimming.by_size`."""
        assert self._open
        return self._trimming.by_size(promise, self._mark, size_bytes=size_bytes, limit=limit)

    def give_back(self, size_bytes: int, *, limit: int = 512) -> int:
        """Return free pages above a size to the disk; see `gateway.io.trimming.Trimming.give_back`."""
        assert self._open
        return self._trimming.give_back(size_bytes, limit)

    @property
    def is_trimming(self) -> bool:
        """Whether the last `trim` has not come to the end of what is old enough."""
        return self._trimming.after > 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the file's pages that are in use."""
        return self._trimming.used_bytes

    # Outside of a transaction.

    def maintain(self) -> int:
        """Checkpoint the WAL (PASSIVE) if it has grown enough; return its pages not yet in the file.

        Call it between transactions, after the acknowledgement. A figure that keeps growing means a
        reader that does not end.
        """
        assert not self._open
        if self.wal_pages >= WAL_PAGES:
            with reactions(self.path):
                pages, moved = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self.wal_pages = pages - moved
        return self.wal_pages

    @property
    def dirty(self) -> int:
        """Number of state rows that are older than their value."""
        return int(np.count_nonzero(self._dirty))

    @property
    def size_bytes(self) -> int:
        """Bytes of the file and its WAL on disk."""
        return size_bytes(self.path)

    def load_session(self, source: str) -> bytes | None:
        """Return what `save_session` stored, None if nothing is.

        Raises:
            Corrupt: The key file is another one or gone, or the row was altered.
            ConfigError: The key file can be read by others.
        """
        with reactions(self.path):
            row: Any = self._db.execute("SELECT nonce, body FROM session WHERE source = ?", (source,)).fetchone()
        if row is None:
            return None
        try:
            return AESGCM(datadir.key(self.path.parent, make=False)).decrypt(row[0], row[1], self._bound_to(source))
        except (InvalidTag, FileNotFoundError) as error:
            raise Corrupt(
                f"the stored session of {source} does not fit the key in {self.path.parent}",
                hint="nothing to do: a new session is made; what came in between is a gap",
            ) from error

    def epoch(self) -> tuple[int, str]:
        """Return the last saved epoch and incarnation, (0, "") if there is none."""
        with reactions(self.path):
            return read_epoch(self._db)

    # Inside.

    def _begin(self) -> None:
        """Forget what a transaction had in hand."""
        self._open = False
        self._pending: list[Batch] = []
        self._new_tags: list[Tag] = []
        self._new_handles: dict[str, int] = {}
        self._flushed: list[NDArray[np.uint32]] = []
        self._new_mark = self._mark
        self._failed: Exception | None = None

    def _done(self) -> None:
        """Let the memory follow a commit."""
        for tag in self._new_tags:
            self.tags.add(tag)
        for handles in self._flushed:
            self._dirty[handles] = False
        self._mark = self._new_mark
        if len(self._dirty) < len(self.tags):
            self._dirty = np.concatenate((self._dirty, np.zeros(len(self.tags) - len(self._dirty), np.bool_)))
        for batch in self._pending:
            self._dirty[self.state.apply(batch)] = True
        self.committed += len(self._pending)
        self._begin()

    def _undo(self) -> None:
        """Roll back, and forget what was only known to the transaction."""
        with suppress(apsw.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self._lanes.clear()
        self._coverage.forget()
        self._promise.forget()
        self._sweep, self._sweep_at = np.zeros(0, np.uint32), 0
        self._begin()

    def _run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        try:
            return self._db.execute(sql, values)
        except apsw.Error as error:
            self._failed = reaction(error, self.path)
            raise self._failed from error

    def _run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        try:
            self._db.executemany(sql, rows)
        except apsw.Error as error:
            self._failed = reaction(error, self.path)
            raise self._failed from error

    def _write_state(self, parameters: list[SqlValue]) -> None:
        """Write state rows in as few statements as there can be."""
        at = 0
        for rows, sql in _WRITE_STATE.items():
            size = rows * len(STATE_COLUMNS)
            whole = range(at, len(parameters) - size + 1, size)
            if whole:
                self._run_many(sql, [parameters[i : i + size] for i in whole])
                at = whole[-1] + size

    def _lane(self, stream: str, timeline: str, origin: str) -> int:
        key = (stream, timeline, origin)
        self._run("INSERT OR IGNORE INTO lane (stream, timeline, origin) VALUES (?, ?, ?)", key)
        lane: int = self._run("SELECT id FROM lane WHERE stream = ? AND timeline = ? AND origin = ?", key).get
        self._lanes[key] = lane
        return lane

    def _received(self) -> int:
        """Return the receive time of a chunk: it never goes back, unless a clock was far ahead."""
        now = int(self._clock())
        if now > self._received_s or self._received_s - now > CLOCK_AHEAD_MAX_S:
            self._received_s = now
        return self._received_s

    def _start_sweep(self) -> None:
        self._sweep, self._sweep_at, self._sweep_mark = np.flatnonzero(self._dirty).astype(np.uint32), 0, self.committed
        self._swept_s = self._flushed_s = time.monotonic()

    def _flush_due(self) -> None:
        """Write the share of the state rows that keeps the period, within bounds."""
        now = time.monotonic()
        if self._sweep_at == len(self._sweep):
            if now - self._swept_s < self._period_s:
                return
            self._start_sweep()
        # Half a period for a sweep: rows that change while it runs wait for the next one.
        share = len(self._sweep) * (now - self._flushed_s) / (self._period_s / 2) if self._period_s else STATE_ROWS_MAX
        self.flush_state(min(max(int(share), STATE_ROWS_MIN), STATE_ROWS_MAX))
        self._flushed_s = now

    def _structures_of(self, handle: int) -> Mapping[str, Structure]:
        return self.structures.get(self.tags[handle].source, {})

    def _bound_to(self, source: str) -> bytes:
        """Return what an encrypted session is tied to, so that rows cannot be swapped."""
        return f"{self._replica}\n{source}".encode()

    def _on_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK
