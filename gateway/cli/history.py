"""`edgemirror history`: what one tag said, from this box's journal, with what is missing in between.

It reads beside a running gateway, one chunk after the other, and holds nothing but the row that it prints. A
stretch that the journal does not cover is told along with the samples: an answer without its holes is a
wrong answer.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.cli.look import journal_path, json_text
from gateway.io.reader import JournalReader
from mirror.coverage import Gap
from mirror.errors import ConfigError
from mirror.io.sqlite import open_sql, run_sql
from mirror.status import status_name
from mirror.tags import Tag, TagTable
from mirror.ticks import UNIX_EPOCH_TICKS, clock_text, from_unix_s

COLUMNS = ("time", "value", "status", "source_ticks", "server_ticks", "origin")
SECONDS_MAX = 3600.0  # a person may stop it sooner
LENGTHS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def history(options: argparse.Namespace) -> int:
    """Print the samples of one tag between two times."""
    path = journal_path(options)
    now_s = time.time()
    start, end = moment(options.start, now_s), moment(options.end, now_s)
    reader = JournalReader.open(path)
    try:
        tag = _the_tag(reader.tags(), options.tag)
        gaps = [gap for gap in reader.gaps() if _concerns(gap, tag, reader, start, end)]
    finally:
        reader.close()
    db = open_sql(path, seconds_max=SECONDS_MAX)
    try:
        rows = _rows(run_sql(db, _query(tag, start, end, options))[1])
        count = _print(rows, options)
    finally:
        db.close()
    for gap in sorted(gaps, key=lambda g: g.start):
        until = "now" if gap.end is None else clock_text(gap.end)
        state = "open" if gap.closed_by is None else f"closed by {gap.closed_by}"
        print(f"gap {gap.id}: {clock_text(gap.start)} to {until}, {gap.reason}, {state}", file=sys.stderr)
    print(f"{count:,} samples, {len(gaps)} gaps in between", file=sys.stderr)
    return 0


def moment(text: str | None, now_s: float) -> int | None:
    """Return a time as ticks: ISO 8601 (UTC unless it says otherwise), or how long ago, such as `15m` or `2d`.

    Raises:
        ConfigError: It is neither.
    """
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return from_unix_s(now_s - float(ago[1]) * LENGTHS[ago[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is no time; use 2026-01-31T12:00:00 (UTC), or 15m, 2h, 7d for so long ago"
        ) from error
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return UNIX_EPOCH_TICKS + (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 10


def _the_tag(tags: TagTable, text: str) -> Tag:
    """Return the tag of that name, node or path, or the only one that contains the text."""
    named = [tag for tag in tags.tags if text in (tag.path, tag.node, f"{tag.device}/{tag.name}")]
    fitting = named or [tag for tag in tags.tags if text in tag.path or text in tag.node]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ConfigError(f"no tag contains {text!r}", hint="edgemirror sql 'SELECT path FROM tag'")
    some = ", ".join(tag.path or tag.node for tag in fitting[:5])
    raise ConfigError(f"{len(fitting)} tags contain {text!r}: {some}{' ...' if len(fitting) > 5 else ''}")


def _query(tag: Tag, start: int | None, end: int | None, options: argparse.Namespace) -> str:
    """Return the statement; times are compared as ticks, which choose the chunks that are read."""
    where = [f"tag = {_quoted(tag.node)}", f"source = {_quoted(tag.source)}"]
    where += [f"source_ticks >= {start}"] if start is not None else []
    where += [f"source_ticks < {end}"] if end is not None else []
    order = "DESC" if options.lines else "ASC"
    limit = f" LIMIT {options.lines}" if options.lines else ""
    columns = ", ".join(COLUMNS)
    chosen = f"SELECT {columns}, seq FROM samples WHERE {' AND '.join(where)}"
    inner = f"{chosen} ORDER BY source_ticks {order}, seq {order}{limit}"
    return f"SELECT {columns} FROM ({inner}) ORDER BY source_ticks, seq"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        named = dict(zip(COLUMNS, row, strict=True))
        value = named["value"]
        yield named | {
            "value": value.hex() if isinstance(value, bytes) else value, "status": status_name(named["status"]),
        }  # fmt: skip


def _print(rows: Iterator[dict[str, Any]], options: argparse.Namespace) -> int:
    count = 0
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n") if options.csv else None
    if writer is not None:
        writer.writeheader()
    for count, row in enumerate(rows, 1):  # noqa: B007 (returned)
        if writer is not None:
            writer.writerow(row)
        elif options.json:
            print(json_text(row))
        else:
            print(f"{row['time'] or '-':26}  {row['status']:<24} {row['value']}")
    return count


def _concerns(gap: Gap, tag: Tag, reader: JournalReader, start: int | None, end: int | None) -> bool:
    """Whether a gap concerns the tag in the time asked for."""
    if gap.tags is not None and tag.identity not in gap.tags:
        return False
    if not any(stream.id == gap.stream and stream.source == tag.source for stream in reader.streams()):
        return False
    return (end is None or gap.start < end) and (start is None or gap.end is None or gap.end > start)
