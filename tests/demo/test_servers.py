"""Starting servers: what a newcomer's machine does to it must not end the demo, or leave something behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from demo.servers import NotReady, Process, Server, stay_on_loopback


class Refused(Server):
    """A server that says what it is told to say and ends, some times; then it stays."""

    def __init__(self, folder: Path, words: str, failures: int) -> None:
        super().__init__(folder)
        self.words, self.failures = words, failures
        self.tried: list[int] = []

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        self.tried.append(self.port)
        ends = len(self.tried) <= self.failures
        program = f"import time; print({self.words!r}, flush=True); time.sleep({0 if ends else 60})"
        return [sys.executable, "-c", program], {}

    def is_ready(self) -> bool:
        return len(self.tried) > self.failures


@pytest.mark.parametrize("words", ["address already in use", "Volume server port 18080 is not available"])
def test_a_port_that_somebody_else_took_is_replaced_by_another(tmp_path: Path, words: str) -> None:
    with Refused(tmp_path, words, failures=2) as server:
        assert len(set(server.tried)) == 3 and server.process is not None and server.process.alive
    assert not server.process.alive


def test_another_failure_is_told_at_once(tmp_path: Path) -> None:
    server = Refused(tmp_path, "no such option", failures=2)
    with pytest.raises(NotReady, match="no such option"):
        server.start()
    assert len(server.tried) == 1


def test_a_start_that_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    seen: list[Process] = []

    class Interrupted(Refused):
        def started(self, process: Process) -> None:
            seen.append(process)

        def is_ready(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted(tmp_path, "", failures=0).start()
    assert len(seen) == 1 and not seen[0].alive


def test_no_proxy_and_no_profile_of_the_user_leads_away_from_loopback() -> None:
    environment = {"AWS_PROFILE": "mine", "http_proxy": "http://proxy:1", "NO_PROXY": "x", "PATH": "/bin"}
    stay_on_loopback(environment)
    assert not any(name.startswith("AWS_") for name in environment) and environment["PATH"] == "/bin"
    assert environment["NO_PROXY"] == environment["no_proxy"] == "127.0.0.1,localhost,::1"
