"""`edgemirror doctor`: what a look at this box finds, and what to do about it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from gateway.cli.run import load
from gateway.doctor import worst
from gateway.io.doctor import examine

MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def doctor(options: argparse.Namespace) -> int:
    """Examine the box; exit code 1 if something is wrong."""
    found = []
    for one in examine(load(options.config)):
        found.append(one)
        if not options.json:
            print(f"{MARKS[one.level]}  {one.part:<16} {one.text}")
            if one.hint:
                print(f"{'':24}try: {one.hint}")
            sys.stdout.flush()
    level = worst(found)
    if options.json:
        print(json.dumps({"level": level, "found": [asdict(one) for one in found]}))
    return 1 if level == "fail" else 0
