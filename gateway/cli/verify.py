"""`edgemirror verify`: read a group's log in the bucket and prove it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from gateway.cli.run import load
from gateway.config import Config
from gateway.io import verified
from gateway.io.keys import SIGNING_KEY, signing_key
from gateway.io.opening import log_layout, open_store
from gateway.io.push import log_fact
from gateway.io.reader import JournalReader
from gateway.io.runtime import JOURNAL
from mirror.errors import ConfigError
from mirror.header import public_hex
from mirror.prefix import Prefix
from mirror.ticks import clock_text
from mirror.verify import Report, verify_store

_BELIEVED = {
    "keys": "the keys that this replica knows",
    "segment 0": "the keys in segment 0, as nobody's are known here",
    "floor.json": "the keys in floor.json, as nobody's are known here",
}


def verify(options: argparse.Namespace) -> int:
    """Check names, signatures, hashes, digests and coverage; exit code 1 if anything is wrong."""
    config = load(options.config)
    if not config.sync.bucket:
        raise ConfigError(
            "sync.bucket is empty; there is no log to verify", hint="set sync.bucket to s3://BUCKET/PREFIX"
        )
    began = time.monotonic()
    store, layout = open_store(config.sync), log_layout(config)
    keys, known = ({}, {}) if options.alone else _memory(config, log_fact(store, layout))
    report = verify_store(store, layout, keys=keys, known=known)
    took_s = round(time.monotonic() - began, 3)
    if report.verified and not options.alone:
        _note(config, report)
    if options.json:
        facts: dict[str, Any] = msgspec.to_builtins(report)
        print(json.dumps({**facts, "verified": report.verified, "seconds": took_s}))
    else:
        _print(report, took_s)
    return 0 if report.verified else 1


def _memory(config: Config, log: str) -> tuple[dict[str, str], dict[int, str]]:
    """Return what this replica knows without the bucket: public keys, and the chain hash of each segment.

    Its log begins with a segment that it has signed itself, or that its journal remembers; the keys that
    the journal has verified since may sign a floor. A log cut at its end is found by the hashes.
    """
    directory = Path(config.replica.data_dir)
    keys: dict[str, str] = {}
    known: dict[int, str] = {}
    if (directory / JOURNAL).exists():
        reader = JournalReader.open(directory / JOURNAL)
        try:
            while rows := reader.chain(after=max(known, default=-1)):
                known |= {row.seq: row.hash for row in rows}
            saved = reader.fact(log)
        finally:
            reader.close()
        keys = {} if saved is None else Prefix.load(saved).at.keys
    if (directory / SIGNING_KEY).exists():
        keys = {**keys, config.replica.name: public_hex(signing_key(directory))}
    return keys, known


def _note(config: Config, report: Report) -> None:
    """Tell the gateway on this box, if there is one, that its log was proved."""
    directory = Path(config.replica.data_dir)
    if not (directory / JOURNAL).exists():
        return
    try:
        verified.note(directory, verified.Verified(verified.log_name(config), time.time(), report.next))
    except OSError as error:
        print(f"edgemirror: {directory / verified.FILE}: {error.strerror}; its age is not told", file=sys.stderr)


def _print(report: Report, took_s: float) -> None:
    print(f"{report.store}, group {report.group}: segments {report.first} to {report.next - 1}")
    print(f"believed: {_BELIEVED[report.believed]}")
    print(f"{report.rows:,} samples of {len(report.rows_by_tag):,} tags, {report.size_bytes:,} bytes, {took_s} s")
    for stream in report.streams:
        print(f"stream {stream.stream}, timeline {stream.timeline}: complete to {_clock(stream.complete_up_to)}")
    for gap in report.gaps:
        closed = f"closed by {gap.closed_by}" if gap.closed_by else "open"
        print(f"gap {gap.id}: {gap.reason}, {_clock(gap.start)} to {_clock(gap.end)}, {closed}")
    for first, last in report.lost:
        which = f"segment {first}" if first == last else f"segments {first} to {last}"
        print(f"{which} cannot be read: what gaps they told is not known")
    for finding in report.findings:
        print(f"WRONG: {finding}")
    for key in report.strangers:
        print(f"WRONG: {key}: not a segment's name")
    print("verified" if report.verified else f"NOT verified: {len(report.findings) + len(report.strangers)} findings")


def _clock(ticks: int | None) -> str:
    return "now" if ticks is None else clock_text(ticks)
