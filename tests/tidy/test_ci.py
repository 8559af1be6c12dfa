"""A live test that cannot run is skipped with the reason, and in CI that is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT

LIVE = """
import pytest

from demo.servers import program

@pytest.mark.live
def test_needs_a_server():
    pytest.skip("mosquitto is missing")

def test_needs_a_module():
    pytest.skip("not here")

@pytest.fixture
def server():
    program("no-such-server")

@pytest.mark.live
def test_needs_a_wheel(server):
    pass
"""


def run(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_live.py").write_text(LIVE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", str(folder / "test_live.py")]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_skipped_live_test_fails_in_ci_and_says_why(tmp_path: Path) -> None:
    done = run(tmp_path, "true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "mosquitto is missing" in done.stdout
    assert "no-such-server is missing" in done.stdout
    assert "1 failed, 1 skipped, 1 error" in done.stdout


def test_a_skipped_live_test_is_a_skip_elsewhere(tmp_path: Path) -> None:
    done = run(tmp_path, "")
    assert done.returncode == pytest.ExitCode.OK
    assert "3 skipped" in done.stdout


def test_ci_calls_make_test_with_ci_set() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "export CI=true" in text and "make test" in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
