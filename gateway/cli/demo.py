"""`edgemirror demo`: the demo of the project, in the place of this process."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mirror.errors import ConfigError


def demo(options: argparse.Namespace) -> int:
    """Mirror a simulated plant on this machine and check the result; see `demo`. Its last line is JSON."""
    if not 0 < options.seconds <= 86_400:
        raise ConfigError(f"--seconds is {options.seconds}; use 1 to 86400, such as 30")
    here = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    arguments = [sys.executable, "-m", "demo", "--seconds", str(options.seconds)]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)
