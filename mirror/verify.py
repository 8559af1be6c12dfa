"""The proof that a log is whole: every segment read, every digest worked out again, every flaw named.

The walk believes nothing but keys: those that it is given, or else those that the log's beginning names,
segment 0 or the floor. A floor that they do not sign excuses nothing: what is missing is missing. What it
finds wrong it names and steps over, so that one rotten segment does not hide the next. A segment
whose samples are not those that were signed promises nothing: its intervals count as missing.

What the store alone cannot tell is whether the newest segments were deleted; give `known`, what a
replica remembers of the log, and that is found too. What this module does not do: mend anything.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from mirror import segment
from mirror.batch import Batch, digest
from mirror.coverage import Coverage, Gap, Promise
from mirror.errors import Corrupt
from mirror.floor import FLOOR_BYTES_MAX, Floor, examine_floor
from mirror.header import FLOOR, Closing, Finding, Flaw, Header, chain_hash, examine
from mirror.layout import Layout
from mirror.prefix import Prefix, Saved
from mirror.store import ObjectStore, get_bounded
from mirror.tags import TagTable

MISSING_MAX = 1_000  # of a run of numbers without an object so many are told one by one
SEGMENT_BYTES_MAX = 2**30  # a larger object is no segment: it is not even fetched

#: Called with each good segment: its header, its rows, and the table of all tags so far.
Visitor = Callable[[Header, Batch, TagTable], None]


class StreamReport(msgspec.Struct, frozen=True):
    """What the log holds of one stream and timeline.

    Attributes:
        stream: `Stream.id`.
        source: ApplicationUri; empty if no header told it.
        timeline: As in `Coverage`.
        start: First publish time (ticks) from which everything is there; None if nothing is.
        complete_up_to: From `start` to here nothing is missing.
        newest: Last publish time of which anything is complete.
        holes: (start, end] between `start` and `newest`.
    """

    stream: str
    source: str
    timeline: str
    start: int | None
    complete_up_to: int | None
    newest: int | None
    holes: list[tuple[int, int]]


class Report(msgspec.Struct):
    """What `verify_store` found.

    Attributes:
        store: Its name.
        group: Whose log.
        believed: What the proof rests on: `keys` that were given, or else those that `segment 0` or
            `floor.json` names.
        first: Lowest sequence read: the floor, if there is one that counts.
        next: One more than the highest sequence found.
        segments: Good ones, fences included.
        fences: Of these, those without rows or claims.
        rows: In good segments, each of them under a digest that was worked out again.
        size_bytes: Of all objects read.
        rows_by_tag: Tag identity -> rows.
        epochs: Epoch, holder and first segment of each leadership.
        streams: One for each stream and timeline.
        claims: What its good segments promise together.
        gaps: Every gap told, as it stood last; `closed_by` is None while it is open.
        lost: First and last of each run of segments without a genuine header: what gaps those told is
            not known, and `gaps` may lack them or show them open.
        findings: What is wrong, by segment.
        strangers: Keys below `log/` that are no segment names.
    """

    store: str
    group: str
    believed: str = ""
    first: int = 0
    next: int = 0
    segments: int = 0
    fences: int = 0
    rows: int = 0
    size_bytes: int = 0
    rows_by_tag: dict[str, int] = {}
    epochs: list[tuple[int, str, int]] = []
    streams: list[StreamReport] = []
    claims: list[Coverage] = []
    gaps: list[Gap] = []
    lost: list[tuple[int, int]] = []
    findings: list[Finding] = []
    strangers: list[str] = []

    @property
    def verified(self) -> bool:
        """Whether nothing is wrong. Holes and gaps are not wrong: they are declared."""
        return not self.findings and not self.strangers


def verify_store(
    store: ObjectStore,
    layout: Layout,
    *,
    keys: Mapping[str, str] | None = None,
    known: Mapping[int, str] | None = None,
    visit: Visitor | None = None,
) -> Report:
    """Read a group's whole log and check all of it.

    Args:
        store: Where it is.
        layout: Whose it is.
        keys: Replica -> public key in hex, known from elsewhere; a floor has to be signed by one of them.
            Without them segment 0 is believed, or the floor if `known` is empty too.
        known: Sequence -> chain hash, as a replica's journal remembers them.
        visit: See `Visitor`.

    Returns:
        The report, flaws and all.

    Raises:
        Unavailable: The store did not answer; nothing is known about the rest.
        ConfigError: Wrong credentials or bucket.
    """
    walk = _Walk(store, layout, keys or {}, known or {}, visit)
    walk.run()
    return walk.report()


class _Walk:
    def __init__(
        self,
        store: ObjectStore,
        layout: Layout,
        keys: Mapping[str, str],
        known: Mapping[int, str],
        visit: Visitor | None,
    ) -> None:
        self.store, self.layout, self.known, self.visit = store, layout, known, visit
        self.told = Report(store.name, layout.group)
        self.prefix = Prefix(Saved(layout.group, keys=dict(keys)))
        self.tags = TagTable()
        self.rows: Counter[int] = Counter()
        self.gaps: dict[str, Gap] = {}
        self.sources: dict[str, str] = {}
        self.promise = Promise()
        self.found: set[tuple[int, Flaw]] = set()

    def run(self) -> None:
        self.told.believed = "keys" if self.prefix.at.keys else "segment 0"
        try:
            floor = get_bounded(self.store, self.layout.floor, FLOOR_BYTES_MAX)
        except Corrupt as error:
            self._found(Finding(FLOOR, Flaw.UNREADABLE, str(error)))
        else:
            if floor is not None:
                self._from_floor(floor.body)
        self.told.first = at = self.prefix.at.seq
        sizes, kept = self._sizes(), {at} if at else set()  # what a floor names is always there
        for seq in sorted(sizes.keys() | kept | {seq for seq in self.known if seq >= at}):
            self._missing(at, seq)
            if not self._segment(seq, sizes.get(seq)):
                self._lost(seq, seq)
            at = seq + 1
        self.told.next = at
        if at == 0:  # a mistyped prefix must not prove itself
            self._found(Finding(0, Flaw.MISSING, "there is no log in this place"))

    def _missing(self, start: int, end: int) -> None:
        """Name what is missing of `start` to `end - 1`; anybody can write an object with a number far above."""
        for seq in range(start, min(end, start + MISSING_MAX)):
            up_to = f", nor up to {end - 1}" if seq == start + MISSING_MAX - 1 and seq < end - 1 else ""
            self._found(Finding(seq, Flaw.MISSING, f"no object has its name{up_to}"))
        if end > start:
            self._lost(start, end - 1)

    def _lost(self, first: int, last: int) -> None:
        lost = self.told.lost
        if lost and lost[-1][1] == first - 1:
            first = lost.pop()[0]
        lost.append((first, last))

    def _from_floor(self, data: bytes) -> None:
        """Begin at the floor, if it counts; otherwise nothing says that anything may be missing."""
        found = self._judged_floor(data)
        if isinstance(found, Finding):
            self._found(found)
            return
        given = self.prefix.at.keys
        if not given:
            self.told.believed = "floor.json"
        self.prefix = Prefix(msgspec.structs.replace(found.below, keys={**found.below.keys, **given}))
        self.promise = Promise(found.below.claims)

    def _judged_floor(self, data: bytes) -> Floor | Finding:
        at = self.prefix.at
        if self.known and not at.keys:
            return Finding(
                FLOOR, Flaw.FOREIGN, "a replica remembers this log, and nobody's key is known to judge it by"
            )
        found = examine_floor(data, at.group, at.keys, self.known.get(0, ""))
        if isinstance(found, Floor):
            last, hash = found.below.seq - 1, found.below.hash
            if self.known.get(last, hash) != hash:
                return Finding(FLOOR, Flaw.FORK, f"it follows another segment {last} than a replica remembers")
        return found

    def _sizes(self) -> dict[int, int]:
        """Return the size of each segment that the store lists, by number."""
        sizes: dict[int, int] = {}
        for found in self.store.list(self.layout.log):
            seq = self.layout.sequence(found.key)
            if seq is None:
                self.told.strangers.append(found.key)
            elif seq >= self.prefix.at.seq:
                sizes[seq] = found.size
        return sizes

    def _segment(self, seq: int, size: int | None) -> bool:
        """Check a segment; return whether its header is genuine."""
        if size is not None and size > SEGMENT_BYTES_MAX:
            self._found(Finding(seq, Flaw.UNREADABLE, f"{size} bytes; {SEGMENT_BYTES_MAX} is the most"))
            return False
        found = None if size is None else self.store.get(self.layout.segment(seq))
        if found is None:
            self._found(Finding(seq, Flaw.MISSING, "no object has its name"))
            return False
        self.told.size_bytes += found.size
        file = hashlib.sha256(found.body).hexdigest()
        try:
            data = segment.read_header(found.body)
        except Corrupt as error:
            self._found(Finding(seq, Flaw.UNREADABLE, str(error)))
            return False
        header = self._judged(seq, data)
        if header is None:
            return False
        if (altered := self.prefix.altered(header)) is not None:
            self._found(altered)
        written = found.metadata.get("sha256", file)
        good = self._is_body_good(header, found.body)
        if good and file != written:
            self._found(Finding(seq, Flaw.ALTERED, "its bytes are not those that were uploaded"))
        if self.known.get(seq, chain_hash(data)) != chain_hash(data):
            self._found(Finding(seq, Flaw.FORK, "a replica remembers another segment here"))
        self._take_in(header, chain_hash(data), file, good=good)
        return True

    def _judged(self, seq: int, data: bytes) -> Header | None:
        """Return a genuine header; one that does not fit its predecessor is named and followed all the same."""
        at = self.prefix.at
        found = examine(data, at.group, at.keys, seq)
        if isinstance(found, Header):
            if at.seq != seq:
                self.prefix.skip(found)
            found = self.prefix.judge(data)
        if isinstance(found, Header):
            return found
        self._found(found)
        if found.flaw not in (Flaw.FORK, Flaw.EPOCH):
            return None
        header = examine(data, at.group, at.keys, seq)
        assert isinstance(header, Header)
        self.prefix = Prefix(msgspec.structs.replace(at, hash=header.prev, file="", epoch=0), self.prefix.promise)
        return header

    def _is_body_good(self, header: Header, data: bytes) -> bool:
        if (format := segment.read_format(data)) != segment.FORMAT:
            told = f"columns of format {format[:20]}; this program knows {segment.FORMAT}"
            self._found(Finding(header.seq, Flaw.NEWER, told))
            return False
        try:
            rows, tags = segment.decode(data)
            facts = segment.read_facts(data)
            segment.read_intervals(data, len(header.intervals))
        except Corrupt as error:
            self._found(Finding(header.seq, Flaw.ALTERED, str(error)))
            return False
        if len(rows) != header.rows or digest(rows, tags.identities, tags.rank).hex() != header.body_digest:
            self._found(Finding(header.seq, Flaw.ALTERED, "its samples are not those that were signed"))
            return False
        if (hashlib.sha256(facts).hexdigest() if facts else "") != header.facts_sha256:
            self._found(Finding(header.seq, Flaw.ALTERED, "its facts are not those that were signed"))
            return False
        rows = _under(self.tags, rows, tags)
        self.rows.update(dict(zip(*(a.tolist() for a in np.unique(rows.handle, return_counts=True)), strict=True)))
        if self.visit is not None:
            self.visit(header, rows, self.tags)
        return True

    def _take_in(self, header: Header, hash: str, file: str, *, good: bool) -> None:
        told = self.told
        if not told.epochs or told.epochs[-1][0] != header.epoch:
            told.epochs.append((header.epoch, header.holder, header.seq))
        self.prefix.absorb(header, hash, file)
        self.sources.update({stream.id: stream.source for stream in header.streams})
        for gap in header.gaps:
            self.gaps[gap.id] = gap
        for closing in header.closures:
            self._close(closing)
        if not good:
            return
        told.segments += 1
        told.fences += not header.rows and not header.intervals
        told.rows += header.rows
        for claim in header.intervals:
            self.promise.add(claim)

    def _close(self, closing: Closing) -> None:
        gap = self.gaps.get(closing.gap)
        if gap is not None:
            self.gaps[gap.id] = msgspec.structs.replace(
                gap,
                closed_by=closing.by,
                closed_reason=closing.reason,
                end=gap.end if closing.end is None else closing.end,
            )

    def _found(self, finding: Finding) -> None:
        if (finding.seq, finding.flaw) not in self.found:
            self.found.add((finding.seq, finding.flaw))
            self.told.findings.append(finding)

    def report(self) -> Report:
        told = self.told
        told.findings.sort()
        told.gaps, told.claims = list(self.gaps.values()), self.promise.claims()
        told.rows_by_tag = {self.tags.identities[h]: n for h, n in sorted(self.rows.items())}
        streams = sorted({key.stream for key in self.promise.keys()} | set(self.sources))  # noqa: SIM118 - no mapping
        told.streams = [self._stream(s, t) for s in streams for t in self.promise.timelines(s)]
        return told

    def _stream(self, stream: str, timeline: str) -> StreamReport:
        complete = self.promise.complete(stream, timeline)
        first, last = (complete.intervals[0], complete.intervals[-1]) if complete else (None, None)
        return StreamReport(
            stream,
            self.sources.get(stream, ""),
            timeline,
            first.start if first else None,
            first.end if first else None,
            last.end if last else None,
            [(hole.start, hole.end) for hole in complete.gaps()],
        )


def _under(tags: TagTable, rows: Batch, of: TagTable) -> Batch:
    """Return rows whose handles are of one table under the handles of another, which gets what it does not know."""
    handles = np.array([tags.add(tag) for tag in of.tags] or [0], np.uint32)
    columns = {name: getattr(rows, name) for name in Batch.__slots__}
    return Batch(**{**columns, "handle": handles[rows.handle]})
