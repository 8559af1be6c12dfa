"""`edgemirror gaps`: the ledger of what is missing, for the person who has to answer for it.

`list` and `explain` read the journal beside a running gateway. `declare-lost` writes to it, and one process
at a time may write: the gateway is stopped for it, which costs nothing within the session's life.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.cli.look import journal_path
from gateway.cli.run import load
from gateway.io.journal import Journal
from gateway.io.reader import JournalReader
from mirror.coverage import Closure, Gap, Reason
from mirror.errors import ConfigError
from mirror.tags import TagTable
from mirror.ticks import TICKS_PER_S, clock_text

TAGS_SHOWN = 10

#: By reason: what happened.
STORIES = {
    Reason.OVERFLOW: "the server's queue for these tags ran over between two publishes, and it said so",
    Reason.MISSED: "notification messages never came, and the server could not send them again",
    Reason.DISCONNECTED: "the connection to the server was away for longer than the server kept its session",
    Reason.SERVER_RESTART: "the server restarted; what changed before the new subscription was seen by nobody",
    Reason.GATEWAY_DOWN: "this gateway was not running for longer than the server kept its session",
    Reason.CLOCK_BACK: "the server's clock went back, so that its times before and after cannot be compared",
    Reason.DISK_FULL: "the disk of this gateway took nothing more, and the server's queues ran over",
    Reason.SLOW_STORE: "the journal was too slow for the plant, and the server's queues ran over",
    Reason.UNDECODABLE: "a message could not be decoded; its bytes are kept in the journal's quarantine",
    Reason.NODE_GONE: "the server no longer has these nodes",
    Reason.MISMATCH: "the device, when it was read, said something else than the mirror held: the server left it out",
    Reason.MUTE: "keep-alives came, but the server's own clock stood still in this subscription: nothing was sampled",
    Reason.DAMAGED: "the journal was damaged; what could not be read of it had not been pushed, as far as is known",
    Reason.QUEUE_UNKNOWN: "the server cannot tell whether its queues ran over",
}
#: By closure: how it ended.
ENDINGS = {
    Closure.REPUBLISH: "closed: the server sent the messages again",
    Closure.REPLICA: "closed: another replica had the samples",
    Closure.HISTORY: "closed: the samples were read back from the server's history",
    Closure.LOST: "closed as lost: nobody has the samples",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A gap as it is shown; times in UTC, `to` and `seconds` None while it lasts."""

    id: str
    source: str
    stream: str
    reason: str
    start: str
    to: str | None
    seconds: float | None
    tags: int | None
    state: str
    why: str


def gaps(options: argparse.Namespace) -> int:
    """Carry out the verb's own verb."""
    what = {"list": _list, "explain": _explain, "declare-lost": _declare_lost}
    return what[options.action](options)


def _list(options: argparse.Namespace) -> int:
    found, sources, _ = _read(journal_path(options))
    rows = [_row(gap, sources) for gap in found if _is_wanted(gap, options, sources)]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    for row in rows:
        length = "still open-ended" if row.seconds is None else f"{row.seconds:,.1f} s"
        tags = "all tags" if row.tags is None else f"{row.tags} tags"
        print(f"{row.id}  {row.start}  {length:>18}  {row.reason:<15} {row.state:<10} {tags}  {row.source}")
    counts = f"{len(rows)} of {len(found)} gaps"
    print(counts if rows else f"{counts}: nothing is missing here", file=sys.stderr)
    return 0


def _explain(options: argparse.Namespace) -> int:
    found, sources, tags = _read(journal_path(options))
    gap = _find(found, options.id)
    row = _row(gap, sources)
    names = _names(gap, tags)
    if options.json:
        print(json.dumps({**asdict(row), "story": STORIES[gap.reason], "tag_names": names}))
        return 0
    print(f"gap {gap.id} of {row.source} (stream {gap.stream})")
    print(f"  what: {STORIES[gap.reason]}")
    until = "and it is not over" if row.to is None else f"to {row.to} ({row.seconds:,.1f} s)"
    print(f"  when: from {row.start} {until}, by the server's publish time")
    if names is None:
        print("  which: every tag of the stream; what did not change meanwhile is not missing")
    else:
        more = f" and {len(names) - TAGS_SHOWN} more" if len(names) > TAGS_SHOWN else ""
        print(f"  which: {', '.join(names[:TAGS_SHOWN])}{more}")
    print(f"  state: {_ending(gap)}")
    return 0


def _declare_lost(options: argparse.Namespace) -> int:
    path = journal_path(options)
    _find(_read(path)[0], options.id)  # a journal that is none is not made here
    journal = Journal.open(path, replica=load(options.config).replica.name)
    try:
        gap = _find(_read(path)[0], options.id)
        if gap.closed_by is not None:
            raise ConfigError(f"gap {gap.id} is closed already ({gap.closed_by})", hint="edgemirror gaps list --open")
        if gap.end is None:
            raise ConfigError(f"gap {gap.id} is not over yet; a gap is declared lost once its end is known")
        with journal.transaction():
            journal.close_gap(gap.id, Closure.LOST, f"declared by a person: {options.why}")
    finally:
        journal.close()
    facts = {"id": gap.id, "closed_by": str(Closure.LOST), "why": options.why}
    print(json.dumps(facts) if options.json else f"gap {gap.id} is closed as lost; the next segment tells it")
    return 0


def _read(path: Path) -> tuple[list[Gap], dict[str, str], TagTable]:
    """Return all gaps, oldest first, the source of each stream, and the tags."""
    reader = JournalReader.open(path)
    try:
        sources = {stream.id: stream.source for stream in reader.streams()}
        return sorted(reader.gaps(), key=lambda gap: gap.start), sources, reader.tags()
    finally:
        reader.close()


def _is_wanted(gap: Gap, options: argparse.Namespace, sources: dict[str, str]) -> bool:
    if options.open and gap.closed_by is not None:
        return False
    return not options.source or options.source in sources.get(gap.stream, "")


def _find(found: list[Gap], name: str) -> Gap:
    """Return the gap whose id begins with the text."""
    fitting = [gap for gap in found if gap.id.startswith(name)]
    if len(fitting) != 1:
        what = "no gap" if not fitting else f"{len(fitting)} gaps"
        raise ConfigError(f"{what} with an id that begins with {name!r}", hint="edgemirror gaps list")
    return fitting[0]


def _row(gap: Gap, sources: dict[str, str]) -> Row:
    ends = gap.end is not None
    state = "open" if gap.closed_by is None else str(gap.closed_by)
    return Row(
        gap.id, sources.get(gap.stream, "?"), gap.stream, str(gap.reason), clock_text(gap.start),
        clock_text(gap.end) if gap.end is not None else None,
        round((gap.end - gap.start) / TICKS_PER_S, 3) if ends and gap.end is not None else None,
        None if gap.tags is None else len(gap.tags), state, gap.closed_reason,
    )  # fmt: skip


def _names(gap: Gap, tags: TagTable) -> list[str] | None:
    if gap.tags is None:
        return None
    handles = [tags.find(identity) for identity in gap.tags]
    return [gap.tags[i] if h is None else tags[h].path or tags[h].node for i, h in enumerate(handles)]


def _ending(gap: Gap) -> str:
    if gap.closed_by is not None:
        return ENDINGS[gap.closed_by] + (f" ({gap.closed_reason})" if gap.closed_reason else "")
    if gap.end is None:
        return "open; its end is not known before the source delivers again"
    return "open; the server's history is asked, where it keeps one, and else it is closed as lost"
