"""The replica's journal: what was received, durable before it is acknowledged.

One process owns the file (a lock on its directory says so) and one thread of it writes. Everything
that belongs together is one transaction: chunks, the coverage they give, the gaps they open, and the
state rows that are due. When `Journal.transaction()` has ended without an error, the disk has it
(`synchronous=FULL`); the caller may then acknowledge.

The rule that makes the state safe: a row of `state` names the chunk through which it is complete, and
`state_mark` the chunk through which all rows are. State is rows plus the replay of later chunks, so it
never matters how far the flush had come when the power went.

What this module does not do: decide what to store or when to commit (`gateway.sampler`, the runtime),
or say what was pushed (`mirror.coverage.Promise`, from the verified chain).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mirror.batch import Batch
    from mirror.coverage import Closure, Coverage, Gap, Promise, Stream
    from mirror.state import State
    from mirror.tags import Tag, TagTable


class ChunkRow(NamedTuple):
    """One chunk as stored: rows of one stream, timeline and origin published in (pub_from, pub_to]."""

    seq: int
    stream: str
    timeline: str
    pub_from: int
    pub_to: int
    origin: str
    n: int
    body: bytes  # mirror.chunk


class ChainRow(NamedTuple):
    """One verified segment of the log, as remembered here."""

    seq: int
    epoch: int
    holder: str
    incarnation: str
    hash: str  # mirror.chain.chain_hash of the signed header, hex


class Backlog(NamedTuple):
    """What is journaled and covered and not yet in the promise."""

    chunks: int
    rows: int
    size_bytes: int
    oldest_s: float | None  # Unix seconds at which the oldest of them was received


class Journal:
    """The one writer. Not safe for use by two threads at once.

    Attributes:
        state: Current value of every tag: the fold of all committed chunks.
        tags: All tags ever added, by handle.
    """

    state: State
    tags: TagTable

    @classmethod
    def open(
        cls, path: Path, *, replica: str, state_period_s: float = 1.0, vfs: str = "", clock: Callable[[], float] = ...
    ) -> Journal:
        """Lock the directory of `path`, bring the schema up to date, load tags and state.

        Raises:
            ConfigError: another process holds the directory, SQLite is too old, the file is newer than
                this program, or it may not be read.
            Corrupt: the file is damaged.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Flush the whole state, checkpoint, and release the directory."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything done inside as one; on return it is on disk. Nothing is kept on an error.

        Due state rows are written along (at most `STATE_ROWS_MAX` a transaction, all about once per
        `state_period_s` as long as transactions come).

        Raises:
            Unavailable: disk full or I/O error; rolled back, the journal stays usable.
            Corrupt: the file is damaged.
        """
        yield

    # All of these only inside a transaction.

    def append(
        self, stream: str, timeline: str, pub_from: int, pub_to: int, origin: str, batch: Batch, body: bytes | None = None
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
        raise NotImplementedError

    def extend(self, coverage: Coverage) -> None:
        """Add an interval to the coverage; it joins what it touches of the same key and grade."""

    def open_gap(self, gap: Gap) -> None:
        """Record a gap; recording it again changes nothing."""

    def end_gap(self, gap_id: str, end: int) -> None:
        """Set the publish time at which a gap ended; it stays open until it is closed."""

    def close_gap(self, gap_id: str, closed_by: Closure, closed_reason: str = "") -> None:
        """Close a gap that has an end; a closed gap never changes again."""

    def save_stream(self, stream: Stream) -> None:
        """Record a stream, or what the server revised of it."""

    def add_tags(self, tags: Sequence[Tag]) -> list[int]:
        """Return the handles of tags, storing new ones and new facts of known ones."""
        raise NotImplementedError

    def save_session(self, source: str, secret: bytes) -> None:
        """Store what is needed to resume a source's session, encrypted; replaces the one before."""

    def drop_session(self, source: str) -> None:
        """Forget a source's session."""

    def save_epoch(self, epoch: int, incarnation: str) -> None:
        """Record the epoch about to be used; epochs only grow (asserted)."""

    def add_chain(self, row: ChainRow, claims: Sequence[Coverage] = ()) -> None:
        """Append one verified segment of the log and what it promises."""

    def retract(self, claim: Coverage) -> None:
        """Take a claim out of the promise, because its segment was found rotten."""

    def set_fact(self, name: str, value: bytes) -> None:
        """Store a named value, such as the structure definitions of a source."""

    def flush_state(self, limit: int | None = None) -> int:
        """Write up to `limit` (None: all) due state rows; return how many are still due."""
        raise NotImplementedError

    def trim(self, promise: Promise, *, keep_s: float, limit: int = 1000) -> int:
        """Delete chunks that are promised AND were received more than `keep_s` ago.

        At most `limit` chunks are looked at; returns how many were deleted. Freed pages are used again,
        the file does not shrink.
        """
        raise NotImplementedError

    # Outside of a transaction.

    def maintain(self) -> int:
        """Checkpoint the WAL (PASSIVE) if it has grown enough; return the WAL pages not yet in the file.

        Call it between transactions, after the acknowledgement. A figure that keeps growing means a
        reader that does not end.
        """
        raise NotImplementedError

    @property
    def size_bytes(self) -> int:
        """Bytes of the file and its WAL on disk."""
        raise NotImplementedError

    def load_session(self, source: str) -> bytes | None:
        """Return what `save_session` stored; Corrupt if the key file does not fit it."""
        raise NotImplementedError

    def epoch(self) -> tuple[int, str]:
        """Return the last saved epoch and incarnation, (0, "") if there is none."""
        raise NotImplementedError


class JournalReader:
    """A read-only view for other threads and processes; use one per thread.

    Every call is one short read transaction of bounded length and time; it never blocks the writer.
    All methods raise Unavailable when the time is up or the file is away.
    """

    @classmethod
    def open(cls, path: Path, *, seconds_max: float = 10.0) -> JournalReader:
        """Open an existing journal; ConfigError if there is none."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection."""

    def streams(self) -> list[Stream]:
        """Return all streams, oldest first."""
        raise NotImplementedError

    def coverage(self, stream: str | None = None) -> list[Coverage]:
        """Return all committed coverage, disjoint and merged, ordered."""
        raise NotImplementedError

    def gaps(self, *, open_only: bool = False) -> list[Gap]:
        """Return the gap ledger, oldest first."""
        raise NotImplementedError

    def chunks(
        self, stream: str, timeline: str, origin: str, after: int, up_to: int, limit: int = 1000, rows_max: int = 1_000_000
    ) -> list[ChunkRow]:
        """Return chunks with pub_to in (after, up_to], by pub_to, then seq.

        Stops before `limit` chunks or `rows_max` rows are exceeded, but never between two chunks of one
        pub_to, and never before the first pub_to is complete: `(after, result[-1].pub_to]` is whole.
        """
        raise NotImplementedError

    def chunks_since(self, seq: int, limit: int = 100) -> list[ChunkRow]:
        """Return chunks with a greater sequence number, oldest first."""
        raise NotImplementedError

    def newest(self) -> int:
        """Return the newest sequence number, 0 if there is none."""
        raise NotImplementedError

    def tags(self) -> TagTable:
        """Return all tags by handle."""
        raise NotImplementedError

    def state(self) -> State:
        """Return the fold of all committed chunks: state rows plus the replay of later chunks."""
        raise NotImplementedError

    def chain(self, after: int = -1, limit: int = 1000) -> list[ChainRow]:
        """Return verified segments of the log with a greater sequence number, in order."""
        raise NotImplementedError

    def chain_tip(self) -> ChainRow | None:
        """Return the last verified segment, if any."""
        raise NotImplementedError

    def promise(self) -> Promise:
        """Return what the verified segments promise together."""
        raise NotImplementedError

    def epoch(self) -> tuple[int, str]:
        """Return the last saved epoch and incarnation, (0, "") if there is none."""
        raise NotImplementedError

    def fact(self, name: str) -> bytes | None:
        """Return what `Journal.set_fact` stored."""
        raise NotImplementedError

    def backlog(self, promise: Promise) -> Backlog:
        """Return what is journaled and not yet promised."""
        raise NotImplementedError
