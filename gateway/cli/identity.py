"""`edgemirror identity`: what the other replicas of the group have to know of this one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gateway.cli.run import load
from gateway.io.keys import signing_key
from mirror.errors import ConfigError
from mirror.header import public_hex


def identity(options: argparse.Namespace) -> int:
    """Print the table `[[peer]]` for the others' configuration; make the key if there is none."""
    config = load(options.config)
    directory = Path(config.replica.data_dir)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror}", hint=f"ls -ld {directory.parent}") from error
    key = public_hex(signing_key(directory))
    if options.json:
        print(json.dumps({"name": config.replica.name, "public_key": key}))
        return 0
    print(f'[[peer]]\nname = "{config.replica.name}"\npublic_key = "{key}"')
    return 0
