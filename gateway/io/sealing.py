"""Builds segments from the journal: which chunks, their rows in canonical order, and what the header says.

A segment takes whole chunks and claims only what coverage claims. Everything is read anew from the
journal and compared with the promise, so that a segment that was built and not accepted leaves nothing
behind. A chunk that cannot be decoded any more is declared, once, as a gap; what is left of its
interval is claimed as held.

What this module does not do: number, sign or send (`mirror.chain`, `gateway.io.push`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway import sync
from gateway.io.journal import Journal
from gateway.io.ledger import Ledger
from gateway.io.reader import ChunkRow, JournalReader
from mirror import chunk, segment
from mirror.batch import Batch, canonical_order, concat, digest, ordered_digest, take
from mirror.coverage import Coverage, Gap, Reason, Settled
from mirror.errors import Corrupt
from mirror.facts import Definitions, encode_facts
from mirror.header import Clock, Header
from mirror.prefix import Prefix
from mirror.tags import TagTable, legible

CHUNKS_READ = 100
HEAP_BYTES = segment.HEAP_BYTES_MAX // 4  # of Strings, arrays and structures in a segment, decoded
CLAIMS_MAX = 10_000  # in a segment: a header has its limit
TAGS_S = 30.0  # how old the known facts of tags may be


class Writer(Protocol):
    """The journal's writing thread."""

    def call(self, work: Callable[[Journal], Any]) -> Future[Any]:
        """Run `work` in the next transaction, more than once if need be; the answer comes when it is durable."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a segment tells beside its samples: namespace arrays by ApplicationUri, and the clock."""

    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    clock: Clock | None = None


@dataclass(slots=True)
class Payload:
    """A segment's body until it is settled: rows in canonical order, and the file once it is made."""

    rows: Batch
    tags: TagTable
    facts: bytes
    structures: Definitions
    intervals: NDArray[np.int32]
    sealed_at: float
    file: bytes = b""

    @staticmethod
    def empty(sealed_at: float) -> Payload:
        """Return the body of a fence."""
        return Payload(Batch.zeros(0), TagTable(), b"", {}, np.zeros(0, np.int32), sealed_at)

    def encoded(self, header: bytes) -> bytes:
        """Return the file; the same bytes whenever it is asked for."""
        if not self.file:
            self.file = segment.encode(
                self.rows,
                self.tags,
                header,
                facts=self.facts,
                structures=self.structures,
                intervals=self.intervals,
                ordered=True,
            )
        return self.file


@dataclass(slots=True)
class _Facts:
    """What the journal knows of tags, and the bytes that tell it in a footer."""

    tags: TagTable
    structures: Definitions
    data: bytes
    sha256: str
    read_at: float


@dataclass(slots=True)
class _Room:
    """What still fits into a segment, and what is in it. The first publish time always fits."""

    rows: int
    size_bytes: int
    heap_bytes: int
    batches: list[Batch] = field(default_factory=list)
    rows_in: int = 0
    heap_in: int = 0

    def take(self, rows: int, size_bytes: int) -> bool:
        """Take room, if there is any, for one publish time."""
        if self.batches and (rows > self.rows or self.size_bytes <= 0 or self.heap_bytes <= 0):
            return False
        self.rows, self.size_bytes = self.rows - rows, self.size_bytes - size_bytes
        return True

    def fits(self, batches: Sequence[Batch]) -> bool:
        """Whether a segment can hold these beside what is in it, whatever the policy."""
        rows, heap = sum(map(len, batches)), sum(len(batch.heap.data) for batch in batches)
        return self.rows_in + rows <= segment.ROWS_MAX and self.heap_in + heap <= segment.HEAP_BYTES_MAX

    def add(self, batch: Batch) -> None:
        """Put rows in for which room was taken."""
        self.heap_bytes -= len(batch.heap.data)
        self.heap_in += len(batch.heap.data)
        self.rows_in += len(batch)
        self.batches.append(batch)


class Builder:
    """Builds one journal's segments.

    Args:
        reader: For this alone.
        writer: Where a damaged chunk is declared.
        policy: How much is a full segment.
        surroundings: Asked for each segment.
        members: Public keys of the group's replicas, in hex, by name; a fence enrols them.
    """

    def __init__(
        self,
        reader: JournalReader,
        writer: Writer,
        policy: sync.Policy,
        surroundings: Callable[[], Surroundings],
        members: Mapping[str, str] = {},
    ) -> None:
        self._reader, self._writer = reader, writer
        self._policy, self._surroundings, self._members = policy, surroundings, dict(members)
        self._ledger = Ledger(reader)
        self._facts: _Facts | None = None
        self._damaged: dict[str, tuple[Gap, Future[Any]]] = {}

    def fence(self) -> Header:
        """Return the draft of an empty segment."""
        around = self._around()
        nothing = digest(Batch.zeros(0), [], np.zeros(0, np.uint32)).hex()
        return Header(body_digest=nothing, sources=around.sources, clock=around.clock, keys=self._members)

    def build(self, prefix: Prefix, now: float) -> tuple[Header, Payload] | None:
        """Return the draft of the next segment and its body, or None if the log lacks nothing.

        Raises:
            Corrupt: A chunk was found damaged; the next call goes on without it.
            Unavailable: The journal did not answer.
        """
        self._declare_again()
        at = prefix.at
        ledger, unreadable = self._ledger.read(at.told)
        claims, batches, places = self._collect(prefix, unreadable)
        gaps, closures = sync.untold(ledger, at.told)
        if not claims and not gaps and not closures:
            return None
        rows = concat(batches)
        known = self._known(int(rows.handle.max()) if len(rows) else -1, now)
        intervals = np.repeat(np.array(places, np.int32), [len(batch) for batch in batches])
        batches.clear()  # a segment's rows are the most memory that anything here takes: hold them once
        if len(rows):
            order = canonical_order(rows, known.tags.rank)
            rows, intervals = take(rows, order), intervals[order]
        facts = b"" if known.sha256 == at.facts else known.data
        named = {claim.stream for claim in claims} | {gap.stream for gap in gaps}
        around = self._around()
        draft = Header(
            body_digest=ordered_digest(rows, known.tags.identities).hex(), rows=len(rows), intervals=tuple(claims),
            streams=tuple(s for s in self._reader.streams() if s.id in named), gaps=tuple(gaps),
            closures=tuple(closures), facts_sha256=known.sha256 if facts else "", sources=around.sources,
            clock=around.clock,
        )  # fmt: skip
        return draft, Payload(rows, known.tags, facts, known.structures, intervals, now)

    def _around(self) -> Surroundings:
        """Return what goes into each header; JSON cannot carry a URI that was not UTF-8."""
        around = self._surroundings()
        sources = {legible(uri): tuple(map(legible, names)) for uri, names in around.sources.items()}
        return Surroundings(sources, around.clock)

    def _collect(self, prefix: Prefix, unreadable: Iterable[Gap]) -> tuple[list[Coverage], list[Batch], list[int]]:
        """Return the claims of the next segment, their rows, and the place of each batch's claim."""
        room = _Room(min(self._policy.rows_max, segment.ROWS_MAX), self._policy.bytes_max, HEAP_BYTES)
        claims: list[Coverage] = []
        places: list[int] = []
        damaged = (gap for gap, _ in self._damaged.values())
        settled = Settled(prefix.promise, self._reader.streams())
        for part in sync.unpushed(self._reader.coverage(), settled, [*unreadable, *damaged]):
            if len(claims) >= CLAIMS_MAX:
                break
            done = self._fill(room, part.claim) if part.rows else part.claim.end
            places += [len(claims)] * (len(room.batches) - len(places))
            if done > part.claim.start:
                claims.append(msgspec.structs.replace(part.claim, end=done))
            if done < part.claim.end:
                break
        return claims, room.batches, places

    def _fill(self, room: _Room, claim: Coverage) -> int:
        """Add a claim's rows while there is room; return the publish time up to which they are in."""
        done = claim.start
        while room.rows > 0 and room.size_bytes > 0 and room.heap_bytes > 0:
            found = self._reader.chunks(*claim.key, done, claim.end, CHUNKS_READ, room.rows)
            if not found:
                return claim.end
            for time, together in groupby(found, key=lambda row: row.pub_to):
                rows = list(together)  # all of one publish time, or none
                if not room.take(sum(row.n for row in rows), sum(len(row.body) for row in rows)):
                    return done
                batches = self._decoded(rows)
                if not room.fits(batches):
                    if room.batches:
                        return done
                    raise self._declared(rows[0], "its publish time has more than a segment holds")
                for batch in batches:
                    room.add(batch)
                done = time
        return done

    def _decoded(self, rows: Iterable[ChunkRow]) -> list[Batch]:
        """Return the rows of chunks of one publish time; of a damaged one none, once its loss is declared."""
        batches = []
        for row in rows:
            if self._damaged and _loss(row).id in self._damaged:
                continue
            try:
                batches.append(chunk.decode(row.body))
            except Corrupt as error:
                raise self._declared(row, f"it is damaged: {error}") from error
        return batches

    def _declared(self, row: ChunkRow, why: str) -> Corrupt:
        """Declare that a chunk cannot be pushed, so that it does not stand in the way of the others."""
        gap = _loss(row)
        self._damaged[gap.id] = gap, self._writer.call(partial(_open_gap, gap))
        return Corrupt(
            f"chunk {row.seq} of the journal is left out: {why}", hint="its loss is a gap row; check the disk"
        )

    def _declare_again(self) -> None:
        """Repeat what the journal could not take."""
        for gap, done in list(self._damaged.values()):
            if done.done() and done.exception() is not None:
                self._damaged[gap.id] = gap, self._writer.call(partial(_open_gap, gap))

    def _known(self, handle: int, now: float) -> _Facts:
        """Return the facts of tags, read anew when they are old or lack a handle."""
        known = self._facts
        if known is None or handle >= len(known.tags) or now - known.read_at > TAGS_S:
            tags, structures = self._reader.tags(), self._reader.structures()
            if known is None or tags.tags != known.tags.tags or structures != known.structures:
                data = encode_facts(tags.tags, structures)
                self._facts = known = _Facts(tags, structures, data, hashlib.sha256(data).hexdigest(), now)
            known.read_at = now
        assert handle < len(known.tags), "a chunk's tags are in the journal before it"
        return known


def _loss(row: ChunkRow) -> Gap:
    return Gap.opened(row.stream, row.timeline, row.pub_from, Reason.UNDECODABLE, end=row.pub_to)


def _open_gap(gap: Gap, journal: Journal) -> None:
    journal.open_gap(gap)
