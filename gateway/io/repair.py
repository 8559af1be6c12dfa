"""A damaged journal becomes a whole one: the file is put aside, and what can be read of it is written anew.

What the file held alone, samples that the bucket does not have yet, is saved wherever it can be read. What was
lost with a broken page is taken out of the coverage and told in the ledger as a gap `damaged`, unless the bucket
has it. What stands elsewhere is not copied: the verified log is read again from the bucket, tags and values
come from the servers. Nothing of the damaged file is ever deleted.

A repair that is killed anywhere can be begun anew: the new file takes its place at once and whole, and until
then the damaged one keeps its name or has its second name already.

What it does not do: mend pages, or find damage that SQLite and the chunks' own checks do not see.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.io import datadir, salvage
from gateway.io.salvage import KEY_MAX, Row
from mirror import chunk
from mirror.coverage import Gap, Grade, IntervalSet, Reason
from mirror.errors import ConfigError, Corrupt, MirrorError
from mirror.io.sqlite import Database, connect, migrate, reactions
from mirror.schema import STATE_COLUMNS
from mirror.ticks import from_unix_s

PART = "mirror.db.repaired"
LONGER = "mirror.db.lengthened"
HEAD_BYTES = 100  # of an SQLite file
LENGTHENED_MAX = 1000  # times its length: a head that says more is damaged itself
CHUNK = ("seq", "lane", "pub_from", "pub_to", "received_s", "n", "t0", "t1", "h0", "h1", "size", "body")
LANE = ("id", "stream", "timeline", "origin")
TAG = (
    "handle", "source", "namespace", "identifier", "path", "device", "name", "data_type", "value_rank", "unit",
    "range_low", "range_high", "description", "stamping",
)  # fmt: skip
CLAIM = ("stream", "timeline", "origin", "grade", "start", '"end"')
CLAIM_ORDER = ("stream", "timeline", "origin", "grade", "start")
GAP = ("id", "stream", "timeline", "start", '"end"', "tags", "reason", "closed_by", "closed_reason")
NAMELESS = "urn:edgemirror:nameless"  # namespace of tags whose row could not be read, though samples of them could
POSITION = "position/"
#: Facts that are copied; what is known of the log is read from the bucket again.
FACTS = (POSITION, "model/", "structures/", "quarantine/", "mqtt.retained", "store.probe")

Lane = tuple[str, str, str]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Report:
    """What a repair found and did.

    Attributes:
        damaged: What was wrong first; empty if nothing was, and then nothing was done.
        aside: Where the damaged file is now.
        chunks, samples: Saved.
        chunks_lost: Known to have been there, and not readable.
        tags, tags_nameless: Saved; of these, without their name.
        gaps: Gaps that were opened for what may be lost.
    """

    damaged: str = ""
    aside: str = ""
    chunks: int = 0
    samples: int = 0
    chunks_lost: int = 0
    tags: int = 0
    tags_nameless: int = 0
    gaps: int = 0


def repair(path: Path, *, clock: Callable[[], float] = time.time) -> Report:
    """Look through a journal that nobody has open, and rebuild it if it is damaged.

    Raises:
        ConfigError: A gateway uses it, or there is none.
        Unavailable: The disk refuses; nothing has changed.
    """
    if not path.exists():
        raise ConfigError(f"there is no journal at {path}", hint=f"ls -l {path.parent}")
    lock = datadir.hold(path.parent)
    try:
        damage = _damage(path)
        if not damage:
            return Report()
        aside = _put_aside(path, clock)
        part = path.with_name(PART)
        _remove(part)
        migrate(part)
        report = _rebuild(aside, part, damage, clock)
        _remove(path, main=False)  # a log of the old file would be carried out in the new one
        part.rename(path)
        _remove(path.with_name(LONGER))
        _sync(path.parent)
        return report
    finally:
        os.close(lock)


def _damage(path: Path) -> str:
    """Return what is wrong with a file: the first damage that SQLite or a chunk shows; empty if nothing is."""
    try:
        db = connect(path)
    except Corrupt as error:
        return str(error)
    try:
        with reactions(path):
            for (found,) in db.execute("PRAGMA quick_check(1)"):
                if found != "ok":
                    return str(found).partition("\n")[0]
            tags: int = db.execute("SELECT count(*) FROM tag").get
            for seq, lane, n, body in db.execute(
                "SELECT seq, lane.id, n, body FROM chunk LEFT JOIN lane ON lane.id = lane ORDER BY seq"
            ):
                if lane is None or _flaw(body, n, tags):
                    return f"chunk {seq}: {_flaw(body, n, tags) or 'of no known stream'}"
    except Corrupt as error:
        return str(error)
    finally:
        db.close()
    return ""


def _flaw(body: bytes, n: int, tags: int) -> str:
    """Return what is wrong with a chunk's body; empty if nothing is."""
    try:
        batch = chunk.decode(body)
    except MirrorError as error:
        return str(error)
    if len(batch) != n or (len(batch) and int(batch.handle.max()) >= tags):
        return "its rows are not those that its columns tell of"
    return ""


def _put_aside(path: Path, clock: Callable[[], float]) -> Path:
    """Give the damaged file and its write-ahead log a second name, unless an earlier repair did; return it."""
    for known in path.parent.glob(f"{path.name}.damaged-*"):
        if known.samefile(path):
            return known
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(clock()))
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for end in ("-wal", ""):  # the file last: where it stands, its log does
        old = path.with_name(path.name + end)
        if old.exists():
            try:
                os.link(old, aside.with_name(aside.name + end))
            except OSError:  # a file system without links
                shutil.copy2(old, aside.with_name(aside.name + end))
    _sync(path.parent)
    return aside


def _remove(path: Path, *, main: bool = True) -> None:
    for end in ("-wal", "-shm", *([""] if main else [])):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rebuild(aside: Path, part: Path, damage: str, clock: Callable[[], float]) -> Report:
    """Write what is readable of a damaged file into a new one, in one transaction."""
    new = connect(part, write=True)
    try:
        with reactions(part):
            new.execute("PRAGMA synchronous = FULL")
            new.execute("BEGIN")
            try:
                old = connect(_lengthened(aside))
            except MirrorError:  # not even its first page: all is lost but what stands elsewhere
                report = Report(damage, str(aside))
            else:
                try:
                    report = _Salvage(old, aside, new, clock).run(damage)
                finally:
                    old.close()
            new.execute("COMMIT")
    finally:
        new.close()  # which moves its write-ahead log, if it has one, into the file
    return report


def _lengthened(aside: Path) -> Path:
    """Return a damaged file, or a copy with empty pages at its end if it is shorter than its head says."""
    with aside.open("rb") as file:
        head = file.read(HEAD_BYTES)
    size = int.from_bytes(head[16:18], "big") * int.from_bytes(head[28:32], "big")
    if len(head) < HEAD_BYTES or not aside.stat().st_size < size <= LENGTHENED_MAX * aside.stat().st_size:
        return aside
    longer = aside.with_name(LONGER)
    _remove(longer)
    shutil.copyfile(aside, longer)
    with longer.open("r+b") as file:
        file.truncate(size)
    return longer


class _Salvage:
    """One rebuild."""

    def __init__(self, old: Database, aside: Path, new: Database, clock: Callable[[], float]) -> None:
        self._old, self._aside, self._new, self._clock = old, aside, new, clock
        self._there = salvage.tables(old, aside)
        self._claims: dict[tuple[Lane, str], IntervalSet] = {}
        self._promised: dict[Lane, IntervalSet] = defaultdict(IntervalSet)
        self._claims_unread = False
        self._gaps = 0

    def run(self, damage: str) -> Report:
        lanes = self._lanes()
        chunks, unread = self._chunks()
        nameless, tags = self._tags(chunks)
        kept: list[Row] = []
        broken: list[Row] = []
        for row in chunks:
            good = row[1] in lanes and not _flaw(row[-1], row[5], tags)
            (kept if good else broken).append(row)
        self._write("chunk", CHUNK, kept)
        self._write("lane", LANE, ((i, *lane) for i, lane in lanes.items()))
        self._plain()
        self._read_claims(lanes, kept)
        self._take_back(lanes, kept, broken, unread)
        self._write_claims()
        self._unplaced()
        return Report(
            damage, str(self._aside), len(kept), sum(row[5] for row in kept), len(broken), tags, nameless, self._gaps
        )

    def _by_key(self, table: str, columns: tuple[str, ...]) -> salvage.Found:
        return salvage.by_key(self._old, self._aside, table, columns) if table in self._there else salvage.Found()

    def _scan(self, table: str, columns: tuple[str, ...], order: tuple[str, ...], index: str = "") -> list[Row]:
        if table not in self._there or (index and index not in self._there):
            return []
        return salvage.scan(self._old, self._aside, table, columns, order, index).rows

    def _write(self, table: str, columns: tuple[str, ...], rows: Iterable[Row]) -> None:
        marks = ", ".join("?" * len(columns))
        self._new.executemany(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def _lanes(self) -> dict[int, Lane]:
        """Return the lanes by id, from the table and from its index: one broken page breaks only one of them."""
        rows = self._by_key("lane", LANE).rows + self._scan("lane", LANE, LANE[1:], "sqlite_autoindex_lane_1")
        return {row[0]: row[1:] for row in rows if all(isinstance(part, str) for part in row[1:])}

    def _chunks(self) -> tuple[list[Row], list[Span]]:
        found = self._by_key("chunk", CHUNK)
        rows = [row for row in found.rows if isinstance(row[-1], bytes) and all(isinstance(v, int) for v in row[:6])]
        odd = {row[0] for row in found.rows} - {row[0] for row in rows}
        unread = found.unread if "chunk" in self._there else [(-1, KEY_MAX)]
        return rows, unread + [(seq - 1, seq + 1) for seq in odd]

    def _tags(self, chunks: list[Row]) -> tuple[int, int]:
        """Write the tags, by handle without a hole; return how many have no name any more, and how many there are."""
        rows = {row[0]: row for row in self._by_key("tag", TAG).rows}
        order = ("source", "namespace", "identifier")
        for handle, *identity in self._scan("tag", ("handle", *order), order, "sqlite_autoindex_tag_1"):
            blank = ("", "", "", "", -1, "", None, None, "", "")
            rows.setdefault(handle, (handle, *identity, *blank))
        last = max([-1, *rows, *(row[9] for row in chunks if isinstance(row[9], int) and row[9] < 2**24)])
        nameless = [h for h in range(last + 1) if h not in rows]
        for h in nameless:
            rows[h] = (h, "", NAMELESS, f"i={h}", "", "", f"nameless {h}", "", -1, "", None, None, "", "")
        self._write("tag", TAG, [rows[h] for h in range(last + 1)])
        return len(nameless), last + 1

    def _plain(self) -> None:
        """Copy what stands for itself: state, streams, epoch, sessions, facts, the ledger."""
        self._write("state", STATE_COLUMNS, self._by_key("state", ("tag", *STATE_COLUMNS[1:])).rows)
        for table, columns in (
            (
                "stream",
                (
                    "id",
                    "source",
                    "axis",
                    "revised_publishing_ms",
                    "revised_queue_size",
                    "overflow_detectable",
                    "revised_sampling_ms",
                ),
            ),
            ("session", ("source", "nonce", "body")),
            ("gap", GAP),
        ):
            rows = self._by_key(table, ("rowid", *columns)).rows
            self._write(table, columns, [row[1:] for row in rows])
        self._write("epoch", ("id", "epoch", "incarnation"), self._by_key("epoch", ("id", "epoch", "incarnation")).rows)
        facts = [row[1:] for row in self._by_key("fact", ("rowid", "name", "value")).rows]
        self._write("fact", ("name", "value"), [f for f in facts if isinstance(f[0], str) and f[0].startswith(FACTS)])

    def _read_claims(self, lanes: dict[int, Lane], kept: list[Row]) -> None:
        claims = salvage.scan(self._old, self._aside, "coverage", CLAIM, CLAIM_ORDER)
        self._claims_unread = bool(claims.unread)
        for stream, timeline, origin, grade, start, end in claims.rows:
            self._claim((stream, timeline, origin), grade, start, end)
        for stream, timeline, origin, _, start, end in self._scan("promise", CLAIM, CLAIM_ORDER):
            if _is_span(start, end):
                self._promised[stream, timeline, origin] |= IntervalSet([(start, end)])
        for row in kept:  # what no claim tells of is stored all the same, and has to reach the bucket
            lane, start, end = lanes[row[1]], row[2], row[3]
            if start < end and not any(
                self._claims.get((lane, str(grade)), IntervalSet()).covers(start, end) for grade in Grade
            ):
                self._claim(lane, str(Grade.HELD), start, end)

    def _claim(self, lane: Lane, grade: str, start: Any, end: Any) -> None:
        if _is_span(start, end) and grade in set(map(str, Grade)):
            key = (lane, grade)
            self._claims[key] = self._claims.get(key, IntervalSet()) | IntervalSet([(start, end)])

    def _take_back(self, lanes: dict[int, Lane], kept: list[Row], broken: list[Row], unread: list[Span]) -> None:
        """Claim nothing where something may be missing, and say so where the bucket does not have it."""
        for row in broken:
            if row[1] in lanes and row[2] < row[3]:
                self._lose(lanes[row[1]], row[2], row[3])
            else:
                unread = [*unread, (row[0] - 1, row[0] + 1)]
        places: dict[Lane, list[tuple[int, int, int]]] = defaultdict(list)
        for row in kept:
            places[lanes[row[1]]].append((row[0], row[2], row[3]))
        known = {lane for lane, _ in self._claims} | set(places)
        for low, high in unread:
            for lane in known:
                before = [to for seq, _, to in places[lane] if seq <= low]
                after = [since for seq, since, _ in places[lane] if seq >= high]
                start, end = self._ends(lane)
                self._lose(lane, max(before, default=start), min(after, default=end))

    def _ends(self, lane: Lane) -> Span:
        """Return where the claims of a lane begin and end; all of time where not all of them could be read."""
        if self._claims_unread:
            return 0, from_unix_s(self._clock())
        spans = [span for (of, _), claims in self._claims.items() if of == lane for span in claims.intervals]
        return min((s for s, _ in spans), default=0), max((e for _, e in spans), default=0)

    def _lose(self, lane: Lane, start: int, end: int) -> None:
        if start >= end:
            return
        lost = IntervalSet([(start, end)])
        for (of, grade), claims in list(self._claims.items()):
            if of == lane:
                self._claims[of, grade] = claims - lost
        for gap_start, gap_end in (lost - self._promised[lane]).intervals:
            self._open(lane[0], lane[1], gap_start, gap_end)

    def _open(self, stream: str, timeline: str, start: int, end: int) -> None:
        gap = Gap.opened(stream, timeline, start, Reason.DAMAGED, end=end)
        self._write("gap", GAP, [(gap.id, stream, timeline, start, end, None, str(gap.reason), None, "")])
        self._gaps += 1

    def _write_claims(self) -> None:
        self._write("coverage", CLAIM, self._spans())

    def _spans(self) -> Iterator[Row]:
        for (lane, grade), claims in self._claims.items():
            for start, end in claims.intervals:
                yield (*lane, grade, start, end)

    def _unplaced(self) -> None:
        """A stream that no longer knows where it stood begins anew: what lies between is told."""
        now = from_unix_s(self._clock())
        placed = {name.removeprefix(POSITION) for (name,) in self._new.execute("SELECT name FROM fact")}
        ends: dict[str, tuple[int, str]] = {}
        for (stream, timeline, _), _ in self._claims:
            for (of, _), claims in self._claims.items():
                if of[:2] == (stream, timeline) and claims.intervals:
                    ends[stream] = max(ends.get(stream, (0, "")), (claims.intervals[-1].end, timeline))
        for stream, (end, timeline) in ends.items():
            if stream not in placed and end < now:
                self._open(stream, timeline, end, now)


def _is_span(start: Any, end: Any) -> bool:
    return isinstance(start, int) and isinstance(end, int) and start < end
