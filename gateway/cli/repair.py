"""`edgemirror repair`: a damaged journal is put aside, and what can be read of it goes into a new one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from gateway.cli.look import journal_path
from gateway.io.repair import repair as rebuild


def repair(options: argparse.Namespace) -> int:
    """Look through the journal, rebuild it if it is damaged, and say what was saved and what may be lost."""
    path = journal_path(options)
    report = rebuild(path)
    if options.json:
        print(json.dumps(asdict(report)))
        return 0
    if not report.damaged:
        print(f"{path}: nothing is damaged; nothing was changed")
        return 0
    print(f"{path} was damaged: {report.damaged}")
    print(f"  put aside as {report.aside}; nothing deletes it")
    print(f"  saved: {report.samples:,} samples in {report.chunks:,} chunks, {report.tags:,} tags")
    if report.tags_nameless:
        print(f"  {report.tags_nameless:,} tags lost their name; the servers tell it again, under new handles")
    if report.chunks_lost:
        print(f"  not readable: {report.chunks_lost:,} chunks")
    print(f"  gap rows for what may be lost: {report.gaps}" + ("; edgemirror gaps list" if report.gaps else ""))
    print("next: edgemirror run")
    return 0
