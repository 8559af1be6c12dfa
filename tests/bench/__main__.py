"""Measure: `python -m tests.bench ingest|journal|segment|latency|start|faults|codec|decode [--json]`.

Without a name all of them run, one after the other. Each prints a table for people and as its last line one
JSON object; with `--json` that line alone. A lost change makes the exit code 1. Figures of a busy machine are
upper bounds: compare ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys

from tests.bench.rig import finish

NAMES = ("ingest", "journal", "segment", "latency", "start", "faults", "codec", "decode")


def main(arguments: list[str]) -> None:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if name not in ("", *NAMES):
        sys.exit(f"there is no bench {name!r}; use one of {', '.join(NAMES)}")
    lost = 0
    for chosen in [name] if name else NAMES:
        bench = importlib.import_module(f"tests.bench.{chosen}")
        parser = argparse.ArgumentParser(prog=f"python -m tests.bench {chosen}", description=bench.__doc__)
        parser.add_argument("--json", action="store_true", help="print the last line alone")
        if hasattr(bench, "options"):
            bench.options(parser)
        options = parser.parse_args(arguments[1:] if name else arguments)
        with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
            figures = bench.run(options)
        finish(figures)
        lost += figures.get("lost", 0)
    if lost:
        sys.exit(f"{lost} changes are lost")


if __name__ == "__main__":
    main(sys.argv[1:])
