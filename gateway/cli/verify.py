"""`edgemirror verify`: read a group's log in the bucket and prove it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec

from gateway.cli.run import load
from gateway.config import Config
from gateway.io.keys import SIGNING_KEY, signing_key
from gateway.io.reader import JournalReader
from gateway.io.runtime import log_layout, open_store
from mirror.errors import ConfigError
from mirror.header import public_hex
from mirror.ticks import clock_text
from mirror.verify import Report, verify_store


def verify(options: argparse.Namespace) -> int:
    """Check names, signatures, hashes, digests and coverage; exit code 1 if anything is wrong."""
    config = load(options.config)
    if not config.sync.bucket:
        raise ConfigError(
            "sync.bucket is empty; there is no log to verify", hint="set sync.bucket to s3://BUCKET/PREFIX"
        )
    began = time.monotonic()
    keys, known = ({}, None) if options.alone else (_keys(config), _known(config))
    report = verify_store(open_store(config.sync), log_layout(config), keys=keys, known=known)
    took_s = round(time.monotonic() - began, 3)
    if options.json:
        facts: dict[str, Any] = msgspec.to_builtins(report)
        print(json.dumps({**facts, "verified": report.verified, "seconds": took_s}))
    else:
        _print(report, took_s)
    return 0 if report.verified else 1


def _keys(config: Config) -> dict[str, str]:
    """Return this replica's own public key: its log begins with a segment that it has signed."""
    directory = Path(config.replica.data_dir)
    if not (directory / SIGNING_KEY).exists():
        return {}
    return {config.replica.name: public_hex(signing_key(directory))}


def _known(config: Config) -> dict[int, str]:
    """Return the chain hashes that this replica's journal remembers: a log cut at its end is found by them."""
    path = Path(config.replica.data_dir) / "mirror.db"
    if not path.exists():
        return {}
    reader = JournalReader.open(path)
    try:
        known: dict[int, str] = {}
        while rows := reader.chain(after=max(known, default=-1)):
            known |= {row.seq: row.hash for row in rows}
        return known
    finally:
        reader.close()


def _print(report: Report, took_s: float) -> None:
    print(f"{report.store}, group {report.group}: segments {report.first} to {report.next - 1}")
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
        print(f"WRONG: segment {finding.seq}: {finding.flaw}: {finding.detail}")
    for key in report.strangers:
        print(f"WRONG: {key}: not a segment's name")
    print("verified" if report.verified else f"NOT verified: {len(report.findings) + len(report.strangers)} findings")


def _clock(ticks: int | None) -> str:
    return "now" if ticks is None else clock_text(ticks)
