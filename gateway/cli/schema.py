"""`edgemirror schema`: the JSON Schema of the configuration."""

from __future__ import annotations

import argparse
import json

from gateway.config_schema import schema as document


def schema(options: argparse.Namespace) -> int:
    """Print the schema; with `--json` on one line."""
    print(json.dumps(document(), indent=None if options.json else 2))
    return 0
