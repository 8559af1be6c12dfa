"""Opening a mirror.db: versions, migrations, errors as reactions, samples as SQL, export.

SQLite is reached through apsw and the library it brings, of a version that is checked, because older
ones can damage a write-ahead log (fixed in 3.51.3 and back-ported to 3.50.7 and 3.44.6). sqlite-utils
brings another SQLite into the process; it only ever touches a file that nothing here has open: a
journal before its writer opens, and the file that an export makes.

A reader never blocks the writer, but it keeps the write-ahead log from being emptied. Therefore the
time of its statements is bounded, and an export reads in many short steps.

What this module does not do: write samples (`gateway.io.journal`).
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import apsw
import apsw.ext
import msgspec
import numpy as np

from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable
from mirror.io.samples import COLUMNS, Bounds, Rows, Samples, decode_chunk, select
from mirror.schema import APPLICATION_ID, MIGRATIONS, STATE_COLUMNS, SqlValue, state_batch
from mirror.state import State
from mirror.tags import Tag, TagTable
from mirror.variant import Structure

if TYPE_CHECKING:
    import sqlite_utils

Database = apsw.Connection

BUSY_MS = 5_000  # a writer waits so long for another program that writes to the file
PROGRESS_STEPS = 2_000  # SQLite instructions between two looks at the clock
CHECKED_BYTES_MAX = 64 << 20  # a file up to this size is checked as a whole when its writer opens it
EXPORT_STEP_BYTES = 4 << 20  # chunks read in one step of an export
EXPORT_BATCH = 5_000  # rows written in one step


def check_version(version: str = "") -> None:
    """Refuse an SQLite whose write-ahead log is not safe.

    Args:
        version: Such as `3.51.3`; empty means the library in use.

    Raises:
        ConfigError: It is older than the correction.
    """
    number = tuple(int(part) for part in (version or apsw.sqlite_lib_version()).split(".")[:3])
    mended = number >= (3, 51, 3) or (3, 50, 7) <= number < (3, 51) or (3, 44, 6) <= number < (3, 45)
    if not mended:
        raise ConfigError(
            f"SQLite {version or apsw.sqlite_lib_version()} can damage a write-ahead log; use 3.51.3 or later",
            hint="pip install --upgrade 'apsw>=3.51.3'",
        )


@contextmanager
def reactions(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except apsw.Error as error:
        raise reaction(error, path) from error


def reaction(error: apsw.Error, path: Path) -> MirrorError | apsw.Error:
    """Return what an SQLite error means to a caller, or the error itself if it is a mistake of ours."""
    text = f"{path}: {error}"
    if isinstance(error, apsw.NotADBError):
        which = "a journal is the file mirror.db in replica.data_dir"
        return Corrupt(text, hint=f"{which}; if this is it, {_REPAIR}")
    if isinstance(error, apsw.CorruptError | apsw.FormatError):
        return Corrupt(text, hint=_REPAIR)
    if isinstance(error, apsw.FullError):
        return Unavailable(text, hint=f"free space on the disk of {path.parent}")
    if isinstance(error, apsw.IOError | apsw.BusyError | apsw.LockedError | apsw.NoMemError | apsw.InterruptError):
        return Unavailable(text, hint=f"check the disk and the programs that use {path}")
    if isinstance(error, apsw.CantOpenError | apsw.PermissionsError | apsw.ReadOnlyError):
        return ConfigError(text, hint=f"ls -l {path.parent}; the gateway's user must own it")
    return error


def _start_again(path: Path) -> str:
    return f"move {path} away and start again; what the bucket has can be restored from it"


_REPAIR = "stop the gateway, then `edgemirror repair`: it saves what can be read"


def connect(path: Path, *, write: bool = False, vfs: str = "") -> apsw.Connection:
    """Open an existing mirror.db and make sure that it is one.

    Raises:
        ConfigError: There is none, it is another program's, or newer than this program.
        Corrupt: It is damaged.
    """
    check_version()
    if not path.exists():
        raise ConfigError(f"there is no journal at {path}", hint=f"ls -l {path.parent}")
    flags = apsw.SQLITE_OPEN_READWRITE if write else apsw.SQLITE_OPEN_READONLY
    with reactions(path):
        db = apsw.Connection(str(path), flags, vfs or None)
        try:
            db.set_busy_timeout(BUSY_MS)
            found = _version_of(db, path)
        except BaseException:
            db.close()
            raise
    if found > len(MIGRATIONS):
        db.close()
        raise ConfigError(
            f"{path} was written by a newer edgemirror (schema {found}, known up to {len(MIGRATIONS)})",
            hint=f"go forward again (/opt/edgemirror/current/install.sh rollback), or {_start_again(path)}",
        )
    return db


def migrate(path: Path) -> None:
    """Make or bring up to date the tables of a mirror.db that nobody has open.

    Raises:
        ConfigError: It is another program's file or newer than this program.
        Corrupt: It is damaged.
    """
    fresh = not path.exists() or path.stat().st_size == 0
    if not fresh:
        db = connect(path, write=True)  # a step that was cut off is rolled back here
        try:
            with reactions(path):
                if _version_of(db, path) == len(MIGRATIONS):
                    return
        finally:
            db.close()
    import sqlite_utils  # noqa: PLC0415 - a third of a second and some MiB that most starts do without

    tables = sqlite_utils.Database(path, execute_plugins=False)
    try:
        if fresh:  # so that free pages can be given back; possible before the first table only
            tables.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _migrations().apply(tables)
    finally:
        tables.close()
    if fresh:
        with _directory(path) as handle:
            os.fsync(handle)


def _migrations() -> sqlite_utils.Migrations:
    """Return the steps of the schema in the form that sqlite-utils applies and remembers."""
    import sqlite_utils  # noqa: PLC0415

    steps = sqlite_utils.Migrations("edgemirror")

    def step(number: int, statements: tuple[str, ...]) -> Callable[[sqlite_utils.Database], None]:
        def apply(db: sqlite_utils.Database) -> None:
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number}")

        return apply

    for number, migration in enumerate(MIGRATIONS, 1):
        steps(name=migration.name)(step(number, migration.statements))
    return steps


def _version_of(db: apsw.Connection, path: Path) -> int:
    """Return the number of migrations applied; ConfigError for the file of another program."""
    application, version = db.pragma("application_id"), db.pragma("user_version")
    tables = db.execute("SELECT count(*) FROM sqlite_schema WHERE tbl_name != '_sqlite_migrations'").get
    if tables and application != APPLICATION_ID:
        raise ConfigError(
            f"{path} is not a journal of edgemirror", hint="set replica.data_dir to a directory of its own"
        )
    return int(version) if tables else 0


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def check(db: apsw.Connection, path: Path) -> None:
    """Look for damage: in the whole of a small file, in all tables but the chunks of a large one.

    Raises:
        Corrupt: Some was found.
    """
    with reactions(path):
        if path.stat().st_size <= CHECKED_BYTES_MAX:
            found = [str(row[0]) for row in db.execute("PRAGMA quick_check(10)")]
        else:
            tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            checked = (db.pragma("quick_check", name) for name in tables if name != "chunk")
            found = [str(result) for result in checked]
    damage = [line for line in found if line != "ok"]
    if damage:
        raise Corrupt(f"{path} is damaged: {damage[0]}", hint=_REPAIR)


def bound_time(db: apsw.Connection, seconds_max: float) -> Callable[[], None]:
    """Interrupt any statement that runs longer than so; return what starts the count anew.

    The count starts anew by itself only through what is returned: call it before each statement.
    """
    until = [time.monotonic() + seconds_max]
    db.set_progress_handler(lambda: time.monotonic() > until[0], PROGRESS_STEPS)

    def again() -> None:
        until[0] = time.monotonic() + seconds_max

    return again


def read_tags(db: apsw.Connection) -> TagTable:
    """Return all tags by handle."""
    columns = ", ".join(TAG_COLUMNS)
    table = TagTable()
    for handle, *facts in db.execute(f"SELECT handle, {columns} FROM tag ORDER BY handle"):
        for column in _SHARED:
            facts[column] = sys.intern(facts[column])
        given = table.add(Tag(*facts))
        if given != handle:
            raise Corrupt(f"tag {handle} stands at place {given}", hint="edgemirror export; handles must be dense")
    return table


#: Columns of `tag` after the handle, in the order of `Tag`'s fields.
TAG_COLUMNS = tuple(field.name for field in msgspec.structs.fields(Tag))

#: Places of the columns in which few texts are repeated by many tags: one copy of each is enough.
_SHARED = tuple(TAG_COLUMNS.index(name) for name in ("source", "namespace", "device", "data_type", "unit", "stamping"))


def read_state(db: apsw.Connection) -> State:
    """Return the fold of all chunks: rows of `state`, then whatever chunks after `state_mark` say.

    Some rows are newer than the mark. Folding once more what a row has seen already changes nothing in
    the end: without a row that wins by its arrival the greatest key wins, however often it comes; with
    one, only that row and what follows it count. Call inside a read transaction, or where nobody writes.
    """
    state = State()
    rows = db.execute(f"SELECT {', '.join(STATE_COLUMNS)} FROM state ORDER BY tag").fetchall()
    state.apply(state_batch(cast("list[tuple[SqlValue, ...]]", rows)))
    mark = db.execute("SELECT chunk FROM state_mark").get
    for seq, body in db.execute("SELECT seq, body FROM chunk WHERE seq > ? ORDER BY seq", (mark,)):
        state.apply(decode_chunk(seq, body))
    return state


def read_structures(db: apsw.Connection) -> dict[str, dict[str, Structure]]:
    """Return the structure definitions of each source; see `STRUCTURES`."""
    rows = db.execute("SELECT name, value FROM fact WHERE name >= ? AND name < ?", (STRUCTURES, STRUCTURES[:-1] + "0"))
    return {name[len(STRUCTURES) :]: decode_structures(value) for name, value in rows}


#: Name of the fact that holds a source's structure definitions, before its ApplicationUri.
STRUCTURES = "structures/"


def encode_structures(structures: Mapping[str, Structure]) -> bytes:
    """Return definitions as a fact's value."""
    return msgspec.json.encode(structures)


def decode_structures(value: bytes) -> dict[str, Structure]:
    """Return what `encode_structures` was given."""
    return msgspec.json.decode(value, type=dict[str, Structure])


def open_sql(path: Path, *, seconds_max: float = 30.0) -> apsw.Connection:
    """Open a journal for a person: read-only, with `samples`, each statement bounded in time."""
    db = connect(path)
    again = bound_time(db, seconds_max)

    def started(_cursor: object, _sql: str, _values: object) -> bool:
        again()
        return True

    db.exec_trace = started
    register_samples(db)
    return db


def run_sql(db: Database, sql: str) -> tuple[list[str], Iterator[tuple[SqlValue, ...]]]:
    """Run one statement of a person's; return the names of its columns and its rows, as they are found.

    Raises:
        ConfigError: SQLite does not understand it.
        Unavailable: Its time was up; also while rows are taken.
    """
    path = Path(db.filename)
    with reactions(path):
        try:
            told = apsw.ext.query_info(db, sql)
            cursor = db.execute(told.first_query)
        except apsw.SQLError as error:
            raise ConfigError(str(error), hint="SELECT name, sql FROM sqlite_schema") from error
    if told.query_remaining and told.query_remaining.strip():
        raise ConfigError("one statement at a time", hint="give each statement to a command of its own")

    def rows() -> Iterator[tuple[SqlValue, ...]]:
        with reactions(path):
            yield from cursor

    return [column[0] for column in told.description], rows()


def register_samples(db: apsw.Connection) -> None:
    """Give a connection the virtual table `samples`; tags are read again when there are new ones."""
    known: list[TagTable] = []

    def tags() -> TagTable:
        count = db.execute("SELECT count(*) FROM tag").get
        if not known or len(known[0]) != count:
            known[:] = [read_tags(db)]
        return known[0]

    module = Samples(tags, lambda: read_structures(db))
    db.create_module(
        "samples", cast("apsw.VTModule", module), use_bestindex_object=True, eponymous_only=True, read_only=True
    )


def export(path: Path, out: Path, *, progress: Callable[[int, int], None] = lambda _done, _all: None) -> dict[str, int]:
    """Write what a journal holds into a plain SQLite file: samples, state, tags, gaps, coverage.

    The file is what any tool reads without edgemirror; `samples` has the columns of the virtual table.
    Everything is as of one moment, except that chunks trimmed while the export runs are missing.

    Args:
        path: The journal; its gateway may be running.
        out: The new file; appears when it is complete.
        progress: Told the rows written and the rows to write, after each step.

    Returns:
        Rows by table.

    Raises:
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists", hint=f"rm {out}, or choose another name")
    part = out.with_name(out.name + ".part")
    part.unlink(missing_ok=True)
    db = connect(path)
    try:
        try:
            with reactions(path):
                counts = _export(db, part, progress)
            part.rename(out)
        except (sqlite3.Error, OSError) as error:  # sqlite-utils writes through the standard library
            raise Unavailable(
                f"{out} cannot be written: {error}", hint=f"df -h {out.parent}; ls -ld {out.parent}"
            ) from error
    finally:
        db.close()
        part.unlink(missing_ok=True)
    return counts


def _export(db: apsw.Connection, part: Path, progress: Callable[[int, int], None]) -> dict[str, int]:
    """Write the file; see `export`."""
    import sqlite_utils  # noqa: PLC0415

    with snapshot(db):
        tags, structures, state = read_tags(db), read_structures(db), read_state(db)
        ledger = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in ("gap", "coverage")}
        names = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in ledger}
        newest, total = db.execute("SELECT ifnull(max(seq), 0), ifnull(sum(n), 0) FROM chunk").get
    made = sqlite_utils.Database(part, execute_plugins=False)
    try:
        made.execute("PRAGMA journal_mode = OFF")  # nobody reads it before it is whole
        made.execute("PRAGMA synchronous = OFF")
        made.execute(f"CREATE TABLE tags (tag TEXT, {', '.join(TAG_COLUMNS)})")
        made.execute(f"CREATE TABLE state ({', '.join(_STATE_SHOWN)})")
        made.execute(f"CREATE TABLE samples ({', '.join(COLUMNS)})")
        made.execute(f"CREATE TABLE gaps ({_quoted(names['gap'])})")
        made.execute(f"CREATE TABLE coverage ({_quoted(names['coverage'])})")
        _insert(made, "tags", ("tag", *TAG_COLUMNS), ((tag.node, *msgspec.structs.astuple(tag)) for tag in tags.tags))
        _insert(made, "gaps", names["gap"], ledger["gap"])
        _insert(made, "coverage", names["coverage"], ledger["coverage"])
        current = Rows(newest, "", np.arange(len(tags)), state.batch(state.handles), tags, structures)
        _insert(made, "state", _STATE_SHOWN, _rows(current, _STATE_SHOWN))

        def samples() -> Iterator[tuple[SqlValue, ...]]:
            done = 0
            for rows in _steps(db, newest, tags, structures):
                yield from _rows(rows, COLUMNS)
                done += len(rows.batch)
                progress(done, total)

        _insert(made, "samples", COLUMNS, samples())
        made.execute("CREATE INDEX samples_of_tag ON samples (tag, source_ticks)")
        counts = {name: made[name].count for name in ("samples", "state", "tags", "gaps", "coverage")}
    finally:
        made.close()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return counts


_STATE_SHOWN = tuple(name for name in COLUMNS if name not in ("origin", "seq"))


def _insert(
    db: sqlite_utils.Database, table: str, columns: Sequence[str], rows: Iterable[tuple[SqlValue, ...]]
) -> None:
    """Write rows as they come, a bounded number at a time."""
    db.table(table).insert_all(itertools.chain([list(columns)], rows), batch_size=EXPORT_BATCH)


def _rows(rows: Rows, columns: Sequence[str]) -> Iterator[tuple[SqlValue, ...]]:
    return zip(*(rows.column(COLUMNS.index(name)) for name in columns), strict=True)


def _steps(
    db: apsw.Connection, newest: int, tags: TagTable, structures: Mapping[str, Mapping[str, Structure]]
) -> Iterator[Rows]:
    """Yield the rows of all chunks up to `newest`, oldest first; no statement stays open between steps."""
    after = 0
    while after < newest:
        sizes = db.execute("SELECT seq, size FROM chunk WHERE seq > ? AND seq <= ? ORDER BY seq", (after, newest))
        total = 0
        for seq, size in sizes:
            total += size
            last = seq
            if total > EXPORT_STEP_BYTES:
                break
        if not total:
            return
        del sizes
        yield from list(select(db, Bounds(seq=(after + 1, last)), tags, structures))
        after = last


@contextmanager
def snapshot(db: apsw.Connection) -> Iterator[None]:
    """Let several reads see one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(apsw.Error):
            db.execute("ROLLBACK")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
