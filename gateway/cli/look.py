"""Verbs that look at a journal, whether its gateway runs or not: `status`, `tail`, `sql`, `export`, `version`.

All of them open the file read-only; none of them can block or change the gateway.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.cli.run import load
from mirror.errors import ConfigError, MirrorError
from mirror.ticks import clock_text

TAIL_POLL_S = 0.1


def journal_path(options: argparse.Namespace) -> Path:
    """Return the journal that the options name, directly or through the configuration."""
    if options.journal:
        return Path(options.journal)
    return Path(load(options.config).replica.data_dir) / "mirror.db"


def status(options: argparse.Namespace) -> int:
    """Say what this gateway holds, claims, misses and has pushed."""
    from gateway.health import JournalFigures
    from gateway.io.reader import JournalReader, size_bytes, wal_bytes
    from gateway.io.room import measure

    path = journal_path(options)
    reader = JournalReader.open(path)
    try:
        facts = _status(reader)
    finally:
        reader.close()
    room = None if options.journal else measure(path, load(options.config))
    size = JournalFigures(
        size_bytes=size_bytes(path), size_bytes_max=0 if room is None else int(room.max_bytes),
        wal_bytes=wal_bytes(path), unpushed_bytes=facts["backlog"]["size_bytes"], bucket=room is None or room.bucket,
    )  # fmt: skip
    warnings = [f"journal: {text}" for text in (size.oversize, size.unread) if text]
    facts |= {"size_bytes": size.size_bytes, "warnings": warnings}
    if room is not None:
        left = room.days_left
        days = None if left is None or math.isinf(left) else round(left, 2)
        facts["room"] = {"days_left": days, "limit": room.limit, "text": f"{room.text}; {room.forecast}"}
    facts["role"] = None if options.journal else _role(path.parent)
    if options.json:
        print(json.dumps(facts))
        return 0
    for warning in facts["warnings"]:
        print(f"WARNING: {warning}")
    if (role := facts["role"]) is not None:
        age = "" if role["lease_age_s"] is None else f", whose record changed {role['lease_age_s']} s ago"
        print(f"{role['role']} under epoch {role['epoch']}: {role['reason']} ({role['arbiter']}{age})")
        if role["trouble"]:
            print(f"WARNING: {role['trouble']}")
    elif not options.journal:
        print("no gateway runs here")
    print(f"epoch {facts['epoch']}, {facts['tags']} tags, {facts['chunks']} chunks, {facts['size_bytes']} bytes")
    for stream in facts["streams"]:
        until = clock_text(stream["covered_to"]) if stream["covered_to"] else "never"
        print(f"stream {stream['id']}  {stream['source']}  complete to {until}  open gaps {stream['open_gaps']}")
    pushed = facts["pushed"]
    if pushed:
        print(f"log: segment {pushed['seq']}, epoch {pushed['epoch']}, by {pushed['holder']}")
    backlog = facts["backlog"]
    print(f"not pushed: {backlog['rows']} samples in {backlog['chunks']} chunks, {backlog['size_bytes']} bytes")
    if room is not None:
        print(f"room: {facts['room']['text']}")
    print(f"gaps: {facts['gaps']['open']} open, {facts['gaps']['closed']} closed, {facts['gaps']['lost']} lost")
    return 0


def _role(directory: Path) -> dict[str, Any] | None:
    """Return what the running gateway says of its role; None where none runs, or not for us."""
    from gateway.io.control import ask

    try:
        return ask(directory, "role")
    except MirrorError:
        return None


def _status(reader: Any) -> dict[str, Any]:
    gaps, coverage, tip = reader.gaps(), reader.coverage(), reader.chain_tip()
    backlog = reader.backlog(reader.settled())
    lost = sum(g.closed_by == "lost" for g in gaps)
    unclosed = [g for g in gaps if g.closed_by is None]
    streams = []
    for stream in reader.streams():
        ends = [c.end for c in coverage if c.stream == stream.id and c.grade == "covered"]
        streams.append({
            "id": stream.id, "source": stream.source, "covered_to": max(ends, default=None),
            "publishing_ms": stream.revised_publishing_ms, "queue_size": stream.revised_queue_size,
            "overflow_detectable": stream.overflow_detectable,
            "open_gaps": sum(g.stream == stream.id for g in unclosed),
        })  # fmt: skip
    return {
        "epoch": reader.epoch()[0], "tags": len(reader.tags()), "chunks": reader.newest(), "streams": streams,
        "pushed": None if tip is None else {"seq": tip.seq, "epoch": tip.epoch, "holder": tip.holder},
        "backlog": backlog._asdict(),
        "gaps": {"open": len(unclosed), "closed": len(gaps) - len(unclosed) - lost, "lost": lost},
    }  # fmt: skip


def tail(options: argparse.Namespace) -> int:
    """Print samples as they become durable."""
    left = options.lines or -1
    for sample in _samples(options):
        if options.json:
            print(json_text(sample), flush=True)
        else:
            print(f"{sample['time'] or '-':26}  {sample['status']:<24} {sample['tag']}  {sample['value']}", flush=True)
        left -= 1
        if left == 0:
            break
    return 0


def _samples(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield samples from the newest chunk on, without end."""
    from gateway.io.reader import JournalReader
    from mirror import chunk
    from mirror.batch import SOURCE_NULL
    from mirror.schema import sql_times, sql_values
    from mirror.status import status_name

    reader = JournalReader.open(journal_path(options))
    tags, structures = reader.tags(), reader.structures()
    seq = 0 if options.from_start else reader.newest()
    while True:
        rows = reader.chunks_since(seq)
        if not rows:
            time.sleep(TAIL_POLL_S)
            continue
        for row in rows:
            seq = row.seq
            batch = chunk.decode(row.body)
            if int(batch.handle.max()) >= len(tags):
                tags, structures = reader.tags(), reader.structures()
            current, known = tags, structures
            values = sql_values(batch, lambda handle: known.get(current[handle].source, {}))  # noqa: B023 (used at once)
            times = sql_times(batch.source_ticks, (batch.flags & SOURCE_NULL) != 0)
            codes = batch.status.tolist()
            for handle, value, at, code in zip(batch.handle.tolist(), values, times, codes, strict=True):
                tag = tags[handle]
                name = tag.path or tag.node
                if options.tag and not any(text in name or text in tag.node for text in options.tag):
                    continue
                shown = value if not isinstance(value, bytes) else value.hex()
                yield {"time": at, "tag": name, "value": shown, "status": status_name(code), "seq": row.seq}


def sql(options: argparse.Namespace) -> int:
    """Run one statement, or each line of standard input as one."""
    from mirror.io.sqlite import open_sql

    db = open_sql(journal_path(options))
    if options.query is not None:
        _statement(db, options.query, as_json=options.json)
        return 0
    if sys.stdin.isatty():
        print("tables: samples (every sample), state (current values), tag, gap, coverage, chain; end with Ctrl-D")
    failed = 0
    for line in sys.stdin:
        if line.strip():
            try:
                _statement(db, line, as_json=options.json)
            except MirrorError as error:
                print(f"edgemirror: {error}", file=sys.stderr)
                failed = error.exit_code
    return failed


def _statement(db: Any, query: str, *, as_json: bool) -> None:
    from mirror.io.sqlite import run_sql

    names, rows = run_sql(db, query)
    if as_json:
        print(json_text([dict(zip(names, map(_plain, row), strict=True)) for row in rows]))
        return
    if names:
        print("\t".join(names))
    for row in rows:
        print("\t".join("" if value is None else str(_plain(value)) for value in row))


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def json_text(rows: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Return rows as JSON, which has no number for NaN and the infinities: they are the strings of OPC UA.

    Source: OPC UA Part 6, 5.4.2.4.
    """
    try:
        return json.dumps(rows, allow_nan=False)
    except ValueError:
        plain = [{name: _spelled(value) for name, value in row.items()} for row in _list(rows)]
        return json.dumps(plain if isinstance(rows, list) else plain[0], allow_nan=False)


def _list(rows: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows if isinstance(rows, list) else [rows]


def _spelled(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def export(options: argparse.Namespace) -> int:
    """Write the journal as a plain SQLite file."""
    from mirror.io.sqlite import export as write

    path, out = journal_path(options), Path(options.out)
    if out.exists():
        raise ConfigError(f"{out} exists; name a file that does not")
    show = sys.stderr.isatty() and not options.json

    def progress(done: int, total: int) -> None:
        if show:
            print(f"\r{done:,} of {total:,} samples", end="", file=sys.stderr, flush=True)

    began = time.monotonic()
    write(path, out, progress=progress)
    if show:
        print(file=sys.stderr)
    facts = {"file": str(out), "size_bytes": out.stat().st_size, "seconds": round(time.monotonic() - began, 3)}
    print(json.dumps(facts) if options.json else f"{out}: {facts['size_bytes']:,} bytes")
    return 0


def version(options: argparse.Namespace) -> int:
    """Print the versions of this program, of its journal's schema and of what it stands on."""
    from mirror.schema import MIGRATIONS

    names = ["edgemirror", "asyncua", "numpy", "apsw", "pyarrow", "zstandard", "boto3", "paho-mqtt"]
    facts: dict[str, str | int] = {"python": platform.python_version(), "schema": len(MIGRATIONS)}
    for name in names:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    if options.json:
        print(json.dumps(facts))
    else:
        for name, number in facts.items():
            print(f"{name:12} {number}")
    return 0
