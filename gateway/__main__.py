"""The command `edgemirror`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gateway.cli import parser
from mirror.errors import MirrorError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 ok, 1 a check failed, 2 usage, 3 somebody is unreachable."""
    options = parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except MirrorError as error:
        print(f"edgemirror: {error}", file=sys.stderr)
        if error.hint:
            print(f"  try: {error.hint}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
