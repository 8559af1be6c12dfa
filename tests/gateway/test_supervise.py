"""The parent that certifies a death: exactly what was announced, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from gateway.io.registers import ABSENT, SoloRegister
from gateway.io.supervise import ANNOUNCE, Announcer, Supervisor, certify
from mirror.errors import Conflict, Unavailable
from mirror.lease import Record

DEAD = Record(7, "a", "a-1", 0)


def holding(record: Record) -> SoloRegister:
    register = SoloRegister()
    register.swap(record, ABSENT)
    return register


def test_the_announced_holder_epoch_and_incarnation_are_freed_and_the_epoch_stays() -> None:
    register = holding(Record(7, "a", "a-1", 33))
    assert certify(register, DEAD)
    found, _ = register.read()
    assert found == Record(7, "", "", 34)


@pytest.mark.parametrize(
    "stands", [Record(8, "a", "a-1", 0), Record(7, "b", "a-1", 0), Record(7, "a", "a-2", 0), Record(7, "", "", 0)]
)
def test_a_certificate_for_anything_else_changes_nothing(stands: Record) -> None:
    register = holding(stands)
    assert not certify(register, DEAD)
    assert register.read()[0] == stands


def test_an_empty_register_is_left_empty() -> None:
    register = SoloRegister()
    assert not certify(register, DEAD)
    assert register.read() == (None, ABSENT)


class Racing(SoloRegister):
    """A last renewal of the dead lands between reading and writing; and once nobody answers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def swap(self, record: Record, version: str) -> str:
        self.calls += 1
        if self.calls == 2:
            raise Unavailable("no answer")
        if self.calls == 3:
            super().swap(Record(7, "a", "a-1", 2), version)
            raise Conflict("another version stands there")
        return super().swap(record, version)


def test_a_renewal_that_lands_first_and_a_lost_answer_do_not_save_the_dead() -> None:
    register = Racing()
    register.swap(Record(7, "a", "a-1", 1), ABSENT)
    assert certify(register, DEAD)
    found, _ = register.read()
    assert found is not None
    assert (found.holder, found.epoch) == ("", 7)


class Away(SoloRegister):
    def read(self) -> tuple[Record | None, str]:
        raise Unavailable("away")


def test_a_register_that_is_away_is_not_waited_for_longer_than_a_lease_could_last() -> None:
    now = iter([0.0, 0.0, 10.0])
    assert not certify(Away(), DEAD, clock=lambda: next(now))


def test_each_epoch_is_announced_once_and_a_parent_that_is_gone_stops_nothing() -> None:
    read, write = os.pipe()
    announce = Announcer.of({ANNOUNCE: str(write)})
    assert announce is not None
    for beat in range(3):
        announce(Record(7, "a", "a-1", beat))
    announce(Record(8, "a", "a-1", 9))
    told = [json.loads(line) for line in os.read(read, 4096).splitlines()]
    assert [t["epoch"] for t in told] == [7, 8]
    os.close(read)
    announce(Record(9, "a", "a-1", 9))
    os.close(write)
    assert Announcer.of({}) is None
    assert Announcer.of({ANNOUNCE: "x"}) is None
    assert Announcer.of({ANNOUNCE: "987654"}) is None


CHILD = """
import json, os, signal, sys, time
fd = int(os.environ["EDGEMIRROR_ANNOUNCE"])
if not os.path.exists({flag!r}):
    open({flag!r}, "w").close()
    os.write(fd, b'{{"epoch": 6, "holder": "a", "incarnation": "a-1"}}\\n')
    os.write(fd, b'{{"epoch": 7, "holder": "a", "incarnation": "a-1"}}\\nnonsense\\n{{"epoch": 8')
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 2])
def test_who_is_killed_is_certified_and_started_again_until_it_ends_in_order(
    tmp_path: Path, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    register = holding(Record(7, "a", "a-1", 5))
    program = CHILD.format(flag=str(tmp_path / "flag"), code=code)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        supervisor = Supervisor([sys.executable, "-c", program], lambda: register)
        assert supervisor.run() == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [event["event"] for event in told] == ["supervisor.certified", "supervisor.restarting"]
    assert told[1]["code"] == -signal.SIGKILL
    found, _ = register.read()
    assert found is not None
    assert (found.holder, found.epoch) == ("", 7)


def test_being_told_to_stop_is_passed_on_and_nothing_is_started_again(tmp_path: Path) -> None:
    program = f"import time; open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(60)"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    try:
        supervisor = Supervisor([sys.executable, "-c", program], SoloRegister)
        thread.start()
        assert supervisor.run() == 128 + signal.SIGTERM
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_it_loads_no_heavy_library_before_it_has_to() -> None:
    import subprocess

    code = (
        "import sys, gateway.cli.supervise; "
        "print([m for m in ('asyncua', 'pyarrow', 'boto3', 'httpx', 'apsw', 'paho') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
