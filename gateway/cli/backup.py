"""`edgemirror backup` and `edgemirror restore-config`: what makes another box this replica."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
from pathlib import Path

from gateway.cli.run import load
from gateway.config import ENVIRONMENT_PREFIX


def backup(options: argparse.Namespace) -> int:
    """Write configuration, keys, certificates and secrets into one file that only its owner may read."""
    from gateway.io.backup import write

    out = Path(options.out)
    manifest = write(Path(options.config), load(options.config), out, version=importlib.metadata.version("edgemirror"))
    facts = {
        "file": str(out), "size_bytes": out.stat().st_size, "files": len(manifest.files), "group": manifest.group,
        "replica": manifest.replica, "epoch": manifest.epoch, "public_key": manifest.public_key,
    }  # fmt: skip
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"{out}: {len(manifest.files)} files of replica {manifest.replica} of group {manifest.group}")
        for entry in manifest.files:
            print(f"  {entry.path}")
        print("It holds private keys and passwords in the clear: keep it as you keep those, and not on this box.")
    if out.stat().st_mode & 0o077:
        print(f"edgemirror: {out} can be read by others: this file system keeps no modes", file=sys.stderr)
    for name in sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)):
        print(f"edgemirror: {name} is set in the environment and is not in the backup", file=sys.stderr)
    return 0


def restore(options: argparse.Namespace) -> int:
    """Make this box the replica of a backup; overwrites nothing."""
    from gateway.io.backup import restore as write

    manifest = write(Path(options.file))
    command = f"edgemirror run --config {shlex.quote(manifest.config)}"
    facts = {
        "files": [entry.path for entry in manifest.files], "group": manifest.group, "replica": manifest.replica,
        "made": manifest.made.isoformat(timespec="seconds"), "next": command,
    }  # fmt: skip
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"replica {manifest.replica} of group {manifest.group}, as of {facts['made']}: {len(manifest.files)} files")
    for entry in manifest.files:
        print(f"  {entry.path}")
    print(f"next, if the former box is off: {command}\n  or, under systemd: systemctl enable --now edgemirror")
    return 0
