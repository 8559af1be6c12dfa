"""`edgemirror promote` and `demote`: hand the acting over, by command."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from gateway.cli.run import load
from gateway.io.control import ask
from mirror.errors import Unavailable

WAIT_S = 15.0
LOOK_S = 0.05


def promote(options: argparse.Namespace) -> int:
    """Have this replica act; who acts now lets go first."""
    return _until(options, "promote", "PRIMARY")


def demote(options: argparse.Namespace) -> int:
    """Have this replica let go, and leave it to others for ten seconds."""
    return _until(options, "demote", "STANDBY")


def _until(options: argparse.Namespace, do: str, role: str) -> int:
    config = load(options.config)
    directory = Path(config.replica.data_dir)
    told = ask(directory, do)
    end = time.monotonic() + max(WAIT_S, 4 * (0.0 if config.arbiter.kind == "solo" else config.arbiter.seconds))
    while told["role"] != role:
        if time.monotonic() > end:
            raise Unavailable(
                f"this replica is still {told['role']}: {told['reason']}", hint="edgemirror status, on each box"
            )
        time.sleep(LOOK_S)
        told = ask(directory, "role")
    _print(told, as_json=options.json)
    return 0


def _print(told: dict[str, Any], *, as_json: bool) -> None:
    text = f"{told['replica']} is {told['role']} under epoch {told['epoch']}: {told['reason']}"
    print(json.dumps(told) if as_json else text)
