"""What a service manager hears over a real datagram socket, and when it hears nothing."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.servers import Process, until
from gateway.health import Figures, JournalFigures, SourceFigures, SyncFigures, sentence
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.notify import Notifier, keep_told

GOOD = Figures("1.0", "g", "a", sources=[SourceFigures("p7", "live")], threads={"ingest": True})
LIMIT_S = 0.2  # the manager's patience; a sign every 50 ms
WAIT_S = 20.0
ROOT = Path(__file__).parents[2]


class Manager:
    """Listens as systemd does.

    Attributes:
        name: What goes into NOTIFY_SOCKET.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.settimeout(WAIT_S)

    def hear(self) -> dict[str, str]:
        """Return the next message."""
        lines = self._socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def until(self, fact: str) -> dict[str, str]:
        """Return the next message that has a fact."""
        while fact not in (message := self.hear()):
            pass
        return message

    def waiting(self) -> list[dict[str, str]]:
        """Return what has come and was not heard yet."""
        self._socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.hear())
        except BlockingIOError:
            self._socket.settimeout(WAIT_S)
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@edgemirror-{secrets.token_hex(8)}")
    yield manager
    manager.close()


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    journal = Journal.open(tmp_path / "data" / "mirror.db", replica="a")
    ingest = Ingest(
        journal, replica="a", commit_s=0.0, inbox_bytes_max=1 << 20, on_durable=lambda _: None, on_room=lambda: None
    )
    ingest.start()
    yield ingest
    ingest.stop()
    journal.close()


def answered() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


class Telling:
    """`keep_told` in an event loop of its own thread, as long as the block lasts."""

    def __init__(
        self,
        manager: Manager,
        figures: Callable[[], Figures] = lambda: GOOD,
        call: Callable[[], Future[Any]] = answered,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        notifier = Notifier(manager.name, LIMIT_S)
        self._task = self.loop.create_task(keep_told(notifier, figures, call))
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with pytest.raises(asyncio.CancelledError):
            self.loop.run_until_complete(self._task)
        self.loop.close()

    def __enter__(self) -> Telling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()


def test_a_gateway_that_has_started_says_so_and_then_that_it_works(manager: Manager) -> None:
    with Telling(manager):
        first = manager.hear()
        assert first["READY"] == "1" and first["STATUS"] == "ready: 1 of 1 sources live"
        assert "READY" not in manager.until("WATCHDOG")


def test_a_frozen_event_loop_gives_no_sign_of_life(manager: Manager) -> None:
    frozen, thaw = threading.Event(), threading.Event()

    def freeze() -> None:
        frozen.set()
        thaw.wait(WAIT_S)

    with Telling(manager) as telling:
        manager.until("WATCHDOG")
        telling.loop.call_soon_threadsafe(freeze)
        assert frozen.wait(WAIT_S)
        manager.waiting()
        time.sleep(LIMIT_S)  # the time in which a manager would end it
        assert manager.waiting() == []
        thaw.set()
        manager.until("WATCHDOG")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_ended_ingest_thread_gives_no_sign_of_life(manager: Manager, ingest: Ingest) -> None:
    def figures() -> Figures:
        return replace(GOOD, threads={"ingest": ingest.failure is None})

    def fail(_journal: Journal) -> None:
        raise AssertionError("an invariant is broken")

    with Telling(manager, figures, lambda: ingest.call(lambda _journal: None)):
        manager.until("WATCHDOG")
        ingest.call(fail)
        while "the thread ingest has ended" not in manager.hear()["STATUS"]:
            pass
        assert "WATCHDOG" not in manager.hear()


def test_an_ingest_thread_that_hangs_gives_no_sign_of_life(manager: Manager, ingest: Ingest) -> None:
    hangs, let_go = threading.Event(), threading.Event()

    def hang(_journal: Journal) -> None:
        hangs.set()
        let_go.wait(WAIT_S)

    with Telling(manager, call=lambda: ingest.call(lambda _journal: None)):
        manager.until("WATCHDOG")
        ingest.call(hang)
        assert hangs.wait(WAIT_S)
        manager.waiting()
        manager.hear()  # the call before may have been answered just now
        assert all("WATCHDOG" not in manager.hear() for _ in range(4))
        let_go.set()
        manager.until("WATCHDOG")


def test_a_disk_that_refuses_is_waited_for(manager: Manager) -> None:
    never: Future[Any] = Future()
    full = replace(GOOD, journal=JournalFigures(error="the disk has refused for 9 s"))
    with Telling(manager, lambda: full, lambda: never):
        for _ in range(3):
            message = manager.until("WATCHDOG")
        assert message["STATUS"] == "not ready: 1 of 1 sources live; journal: the disk has refused for 9 s"


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager) -> None:
    notifier = Notifier(manager.name)
    while notifier.send(STATUS="x" * 500):
        pass
    assert not notifier.send(READY="1")
    with Telling(manager):
        assert manager.until("READY")["READY"] == "1"  # said again when the queue has room


def test_a_manager_that_is_gone_stops_nobody(manager: Manager) -> None:
    manager.close()
    assert not Notifier(manager.name).send(READY="1")


def test_a_text_with_line_ends_stays_one_fact(manager: Manager) -> None:
    Notifier(manager.name).send(STATUS="refused:\nWATCHDOG=1\r\nMAINPID=1")
    assert manager.hear() == {"STATUS": "refused: WATCHDOG=1 MAINPID=1"}


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"NOTIFY_SOCKET": "/run/x"}, 0.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_environment_names_the_manager_and_its_patience(environment: dict[str, str], watchdog_s: float) -> None:
    notifier = Notifier.of(environment)
    assert notifier is not None and notifier.watchdog_s == watchdog_s


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_manager_there_is_nobody_to_tell(environment: dict[str, str]) -> None:
    assert Notifier.of(environment) is None


def test_the_words_say_what_waits_for_the_bucket_and_what_is_wrong() -> None:
    figures = replace(
        GOOD, sources=[SourceFigures("p7", "stale", since_s=12, error="timed out")], sync=SyncFigures(),
        journal=JournalFigures(backlog_samples=17),
    )  # fmt: skip
    assert sentence(figures) == (
        "not ready: 0 of 1 sources live; 17 samples not in the bucket yet; source p7: stale for 12 s: timed out"
    )


CONFIG = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "{folder}/data"
[[source]]
name = "silent"
endpoint = "opc.tcp://127.0.0.1:{port}"
security = "none"
[[source.device]]
name = "d"
browse = ["i=85"]
[http]
listen = ""
"""


def test_the_command_run_starts_works_freezes_and_stops_in_the_eyes_of_its_manager(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    (tmp_path / "gateway.toml").write_text(CONFIG.format(folder=tmp_path, port=silent.getsockname()[1]))
    command: list[str | Path] = [sys.executable, "-m", "gateway", "run", "--config", tmp_path / "gateway.toml"]
    environment = {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "400000"}
    process = Process(command, tmp_path, "gateway", environment)
    try:
        assert manager.hear()["READY"] == "1"
        manager.until("WATCHDOG")
        process.freeze()
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "it stands")
        manager.waiting()
        time.sleep(0.4)
        assert manager.waiting() == []
        process.thaw()
        assert "not ready: 0 of 1 sources live; source silent" in manager.until("WATCHDOG")["STATUS"]
        assert process.stop() == 0
        assert [m for m in manager.waiting() if "STOPPING" in m] == [{"STOPPING": "1"}]
    finally:
        process.kill()
        manager.close()
        silent.close()
