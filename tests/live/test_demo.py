"""The demo as a newcomer runs it: the plant, the journal and the bucket agree bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_loses_nothing_and_verifies() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--seconds", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["verified"] and figures["lost"] == figures["foreign"] == figures["findings"] == 0
    assert figures["produced"] == figures["journaled"] == figures["pushed"] > 300
    assert figures["published"] > 0 and figures["received"] > 0 and figures["segments"] >= 2
    assert "edgemirror tail" in done.stderr, "it says what can be tried meanwhile"
