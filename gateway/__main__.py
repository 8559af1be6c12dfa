"""The command `edgemirror`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from gateway.cli import forget_stdout, parser
from gateway.plain import plain
from mirror.errors import MirrorError, Unavailable

LINE_MAX = 4_000  # characters of a line of a message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 ok, 1 a check failed, 2 usage, 3 somebody is unreachable."""
    options = parser().parse_args(arguments)
    try:
        code = int(options.verb(options))
        sys.stdout.flush()
        return code
    except MirrorError as error:
        with contextlib.suppress(OSError):
            print(f"edgemirror: {_shown(str(error))}", file=sys.stderr)
            if error.hint:
                print(f"  try: {_shown(error.hint)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        forget_stdout()
        return 0 if options.looks else Unavailable.exit_code  # a check whose result nobody got has not passed
    except KeyboardInterrupt:
        return 130


def _shown(text: str) -> str:
    """Return a message without what a server may have put into it to turn a terminal."""
    return "\n".join(plain(line, LINE_MAX) for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
