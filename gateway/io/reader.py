"""The read-only view of a journal, for other threads and processes.

Every call is one short read transaction, bounded in length and in time, so that a reader neither
blocks the writer nor keeps its write-ahead log from being emptied for long.

What this module does not do: show samples as SQL rows (`mirror.io.sqlite.open_sql`), or write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from gateway.io.ledger import GAPS, gap_of
from mirror.coverage import Axis, Coverage, Gap, Grade, Interval, Promise, Pushed, Settled, Stream
from mirror.io.sqlite import (
    Database,
    bound_time,
    connect,
    reactions,
    read_state,
    read_structures,
    read_tags,
    snapshot,
)
from mirror.state import State
from mirror.tags import TagTable
from mirror.variant import Structure

GROWTH_CHUNKS = 20_000


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
    """What is journaled and not yet promised."""

    chunks: int
    rows: int
    size_bytes: int
    oldest_s: float | None  # Unix seconds at which the oldest of them was received


class GapTally(NamedTuple):
    """Counts over the gap ledger."""

    last: int  # row of the newest gap; goes into the next count
    reasons: dict[str, int]  # of those recorded since the last count
    open: int  # of all


class JournalReader:
    """A read-only view; use one per thread.

    All methods raise Unavailable when the time is up or the file is away, Corrupt where it is damaged.
    """

    def __init__(self, db: Database, path: Path, again: Callable[[], None]) -> None:
        """Take over an open connection; use `JournalReader.open`."""
        self.path = path
        self._db = db
        self._again = again

    @classmethod
    def open(cls, path: Path, *, seconds_max: float = 10.0) -> JournalReader:
        """Open an existing journal; ConfigError if there is none.

        Args:
            path: The file.
            seconds_max: How long one call may take.
        """
        db = connect(path)
        return cls(db, path, bound_time(db, seconds_max))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def streams(self) -> list[Stream]:
        """Return all streams, oldest first."""
        with self._read():
            rows = self._db.execute(
                "SELECT id, source, axis, revised_publishing_ms, revised_queue_size, overflow_detectable,"
                " revised_sampling_ms FROM stream ORDER BY rowid"
            )
            return [
                Stream(id, source, Axis(axis), ms, size, bool(told), sampling)
                for id, source, axis, ms, size, told, sampling in rows
            ]

    def keys(self) -> list[tuple[str, str, str]]:
        """Return every stream, timeline and origin of which there ever was a chunk, oldest first."""
        with self._read():
            rows: Any = self._db.execute("SELECT stream, timeline, origin FROM lane ORDER BY id")
            return list(rows)

    def coverage(self, stream: str | None = None) -> list[Coverage]:
        """Return all committed coverage, disjoint and merged, in order."""
        with self._read():
            return self._claims("coverage", stream)

    def gaps(self, *, open_only: bool = False) -> list[Gap]:
        """Return the gap ledger, oldest first."""
        # Sorting the few that are open is cheaper than walking over all that are closed.
        which = "INDEXED BY gap_open WHERE closed_by IS NULL" if open_only else ""
        with self._read():
            return [gap_of(row) for row in self._db.execute(f"{GAPS} {which} ORDER BY rowid")]

    def gaps_since(self, row: int) -> list[tuple[int, Gap]]:
        """Return the gaps recorded after a row of the ledger, each with its own row, oldest first."""
        with self._read():
            found: Any = self._db.execute(f"{GAPS} WHERE rowid > ? ORDER BY rowid", (row,))
            return [(row[-1], gap_of(row)) for row in found]

    def gap(self, id: str) -> Gap:
        """Return a recorded gap as it is now."""
        with self._read():
            row: Any = self._db.execute(f"{GAPS} WHERE id = ?", (id,)).fetchone()
            return gap_of(row)

    def gap_tally(self, row: int = 0) -> GapTally:
        """Count gaps: those recorded after a row by reason, and the open ones. Costs what is new or open."""
        with self._read(), snapshot(self._db):
            found: Any = self._db.execute(
                "SELECT max(rowid), reason, count(*) FROM gap WHERE rowid > ? GROUP BY reason", (row,)
            )
            new = found.fetchall()
            still_open: int = self._db.execute("SELECT count(*) FROM gap WHERE closed_by IS NULL").get
        return GapTally(max((last for last, _, _ in new), default=row), {r: n for _, r, n in new}, still_open)

    def chunks(
        self,
        stream: str,
        timeline: str,
        origin: str,
        after: int,
        up_to: int,
        limit: int = 1000,
        rows_max: int = 1_000_000,
    ) -> list[ChunkRow]:
        """Return chunks with pub_to in (after, up_to], by pub_to, then seq.

        Stops before `limit` chunks or `rows_max` rows are exceeded, but only between two publish times,
        and never before the first: all rows published in `(after, result[-1].pub_to]` are there.
        """
        out: list[ChunkRow] = []
        whole = rows = 0
        with self._read():
            found = self._db.execute(
                "SELECT seq, stream, timeline, pub_from, pub_to, origin, n, body FROM lane"
                " CROSS JOIN chunk INDEXED BY chunk_published ON chunk.lane = lane.id"
                " WHERE stream = ? AND timeline = ? AND origin = ? AND pub_to > ? AND pub_to <= ? ORDER BY pub_to, seq",
                (stream, timeline, origin, after, up_to),
            )
            for row in map(ChunkRow._make, found):
                if out and row.pub_to != out[-1].pub_to:
                    whole = len(out)
                if whole and (len(out) >= limit or rows + row.n > rows_max):
                    return out[:whole]
                out.append(row)
                rows += row.n
        return out

    def chunks_since(self, seq: int, limit: int = 100) -> list[ChunkRow]:
        """Return chunks with a greater sequence number, oldest first."""
        with self._read():
            found = self._db.execute(
                "SELECT seq, stream, timeline, pub_from, pub_to, origin, n, body"
                " FROM chunk JOIN lane ON lane.id = chunk.lane WHERE seq > ? ORDER BY seq LIMIT ?",
                (seq, limit),
            )
            return [ChunkRow._make(row) for row in found]

    def history(self, stream: str, low: int, high: int) -> list[ChunkRow]:
        """Return a stream's chunks that were read back from a historian and may hold a source time in [low, high]."""
        with self._read():
            found = self._db.execute(
                "SELECT seq, stream, timeline, pub_from, pub_to, origin, n, body"
                " FROM chunk INDEXED BY chunk_time JOIN lane ON lane.id = chunk.lane"
                " WHERE t1 >= ? AND t0 <= ? AND stream = ? AND origin LIKE '%/history/%' ORDER BY seq",
                (low, high, stream),
            )
            return [ChunkRow._make(row) for row in found]

    def last_before(self, stream: str, timeline: str, origin: str, time: int) -> int:
        """Return the number of the last chunk published before a time, 0 if there is none."""
        with self._read():
            found: int | None = self._db.execute(
                "SELECT seq FROM lane CROSS JOIN chunk INDEXED BY chunk_published ON chunk.lane = lane.id"
                " WHERE stream = ? AND timeline = ? AND origin = ? AND pub_to < ?"
                " ORDER BY pub_to DESC, seq DESC LIMIT 1",
                (stream, timeline, origin, time),
            ).get
            return found or 0

    def newest(self) -> int:
        """Return the newest sequence number, 0 if there is none."""
        with self._read():
            seq: int = self._db.execute("SELECT ifnull(max(seq), 0) FROM chunk").get
            return seq

    def tags(self) -> TagTable:
        """Return all tags by handle."""
        with self._read():
            return read_tags(self._db)

    def structures(self) -> dict[str, dict[str, Structure]]:
        """Return the structure definitions of each source."""
        with self._read():
            return read_structures(self._db)

    def state(self) -> State:
        """Return the fold of all committed chunks: state rows plus the replay of later chunks."""
        with self._read(), snapshot(self._db):
            return read_state(self._db)

    def chain(self, after: int = -1, limit: int = 1000) -> list[ChainRow]:
        """Return verified segments of the log with a greater sequence number, in order."""
        with self._read():
            rows = self._db.execute(
                "SELECT seq, epoch, holder, incarnation, hash FROM chain WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            )
            return [ChainRow._make(row) for row in rows]

    def chain_tip(self) -> ChainRow | None:
        """Return the last verified segment, if any."""
        with self._read():
            row = self._db.execute(
                "SELECT seq, epoch, holder, incarnation, hash FROM chain ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            return None if row is None else ChainRow._make(row)

    def promise(self) -> Promise:
        """Return what the verified segments promise together."""
        with self._read():
            return Promise(self._claims("promise", None))

    def epoch(self) -> tuple[int, str]:
        """Return the last saved epoch and incarnation, (0, "") if there is none."""
        with self._read():
            return read_epoch(self._db)

    def fact(self, name: str) -> bytes | None:
        """Return what `Journal.set_fact` stored."""
        with self._read():
            value: bytes | None = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).get
            return value

    def settled(self) -> Settled:
        """Return what need not be pushed any more, as far as the verified segments tell."""
        return Settled(self.promise(), self.streams())

    def backlog(self, settled: Pushed) -> Backlog:
        """Return what is journaled and still has to be pushed, counted from an index alone."""
        chunks = rows = size = 0
        oldest: float | None = None
        with self._read(), snapshot(self._db):
            lanes: Any = self._db.execute("SELECT id, stream, timeline, origin FROM lane").fetchall()
            for lane, *key in lanes:
                for hole in _holes(settled, (key[0], key[1], key[2])):
                    span = (lane, hole.start, hole.end)
                    of_hole = "FROM chunk INDEXED BY chunk_published WHERE lane = ? AND pub_to > ? AND pub_to <= ?"
                    found = self._db.execute(f"SELECT count(*), sum(n), sum(size) {of_hole}", span).get
                    if not found[0]:
                        continue
                    chunks, rows, size = chunks + found[0], rows + found[1], size + found[2]
                    first = self._db.execute(f"SELECT received_s {of_hole} ORDER BY pub_to LIMIT 1", span).get
                    oldest = first if oldest is None else min(oldest, first)
        return Backlog(chunks, rows, size, oldest)

    def growth_per_s(self, since_s: float) -> float | None:
        """Return how many bytes of chunks were received a second since then, by the newest GROWTH_CHUNKS.

        None where there were too few to tell.
        """
        with self._read():
            count, size, first, last = self._db.execute(
                "SELECT count(*), sum(size), min(received_s), max(received_s) FROM"
                " (SELECT received_s, size FROM chunk ORDER BY seq DESC LIMIT ?) WHERE received_s >= ?",
                (GROWTH_CHUNKS, since_s),
            ).get
        return None if count < 2 or last <= first else size / (last - first)

    def _claims(self, table: str, stream: str | None) -> list[Coverage]:
        rows = self._db.execute(
            f'SELECT stream, timeline, start, "end", origin, grade FROM {table} WHERE ? IS NULL OR stream = ?',
            (stream, stream),
        )
        return sorted(Coverage(name, timeline, s, e, origin, Grade(g)) for name, timeline, s, e, origin, g in rows)

    @contextmanager
    def _read(self) -> Iterator[None]:
        self._again()
        with reactions(self.path):
            yield


def size_bytes(path: Path) -> int:
    """Return the bytes on disk of a journal's file and its WAL."""
    with suppress(FileNotFoundError):
        return path.stat().st_size + wal_bytes(path)
    return 0


def wal_bytes(path: Path) -> int:
    """Return the bytes on disk of a journal's WAL, which comes and goes with its writer."""
    with suppress(FileNotFoundError):
        return path.with_name(path.name + "-wal").stat().st_size
    return 0


def read_epoch(db: Database) -> tuple[int, str]:
    """Return the last saved epoch and incarnation, (0, "") if there is none."""
    row = db.execute("SELECT epoch, incarnation FROM epoch").fetchone()
    return (0, "") if row is None else (row[0], row[1])


def _holes(settled: Pushed, key: tuple[str, str, str]) -> list[Interval]:
    """Return the publish times outside of what is settled, from the beginning of time to its end."""
    bounds = [-(1 << 63), *(t for interval in settled[key] for t in interval), (1 << 63) - 1]
    return [Interval(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
