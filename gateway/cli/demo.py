"""`edgemirror demo`: the demo of the project, as a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def demo(options: argparse.Namespace) -> int:
    """Mirror a simulated plant on this machine and check the result; see `demo`."""
    command = [sys.executable, "-m", "demo", "--seconds", str(options.seconds)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode
