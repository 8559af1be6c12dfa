"""The unit is one that systemd understands, that exposes little, and that the gateway can live with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.servers import Weed
from tests.deploy.confine import allowed
from tests.live.gateways import Rig
from tests.live.servers import Mosquitto, NodeServer, needs
from tests.tools import Tool

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "deploy" / "edge" / "edgemirror.service").read_text()
EXPOSURE_MAX = 1.5  # of 10; what is left is the network, which is what the gateway is for, and asking the clock

CLOCK = "from gateway.io.clock import clock; import sys; sys.exit(clock() is None)"
SET_CLOCK = "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())"
WRITE_AND_RUN = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"
PACKETS = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"


@pytest.fixture
def analyze() -> Tool:
    return needs("systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it is installed below a folder in which the program is."""
    program = tmp_path / "current" / "bin" / "edgemirror"
    program.parent.mkdir(parents=True)
    program.symlink_to(sys.executable)
    path = tmp_path / "edgemirror.service"
    path.write_text(UNIT.replace("@PREFIX@", str(tmp_path)).replace("@ETC@", "/etc"))
    return path


def ask(analyze: Tool, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert analyze.path is not None
    command = [analyze.path, *arguments]
    env = {**os.environ, **analyze.env}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def test_systemd_has_nothing_to_say_against_the_unit(analyze: Tool, unit: Path) -> None:
    done = ask(analyze, "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_with_a_mistake_is_found(analyze: Tool, unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchDogSec="))
    assert "WatchDogSec" in ask(analyze, "verify", unit).stderr


def test_the_unit_exposes_little(analyze: Tool, unit: Path) -> None:
    arguments = ("security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", "--no-pager", unit)
    done = ask(analyze, *arguments)
    assert done.returncode == 0, done.stdout
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=no"))
    assert ask(analyze, *arguments).returncode != 0  # the bound is a bound


def narrow(analyze: Tool, filters: list[str]) -> list[str]:
    """Return what runs a command under `SystemCallFilter=` lines and what stands beside them in the unit."""
    return [sys.executable, "-m", "tests.deploy.confine", ",".join(allowed(filters, analyze))]


def test_under_the_unit_the_clock_can_be_asked_but_nothing_set_run_or_sniffed(analyze: Tool) -> None:
    filters = values("SystemCallFilter")

    def run(code: str, filters: list[str] = filters) -> subprocess.CompletedProcess[str]:
        command = [*narrow(analyze, filters), sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert run(CLOCK).returncode == 0
    assert run(CLOCK, filters[:-1]).returncode == 1  # without the line that is there for it
    assert "PermissionError" in run(PACKETS).stderr
    if os.getuid() == 0:  # the capability is what forbids it to others
        assert "PermissionError" in run(SET_CLOCK).stderr
    kernel = tuple(int(n) for n in os.uname().release.split(".")[:2])
    if kernel >= (6, 3):
        assert "PermissionError" in run(WRITE_AND_RUN).stderr


def test_a_gateway_lives_within_its_unit(analyze: Tool, tmp_path: Path) -> None:
    with (
        NodeServer(tmp_path / "server", nodes=5) as server, Weed(tmp_path / "store") as store,
        Mosquitto(tmp_path / "broker") as broker,
    ):  # fmt: skip
        server.run(10.0)
        rig = Rig(tmp_path / "gateway", server, store=store, broker=broker)
        rig.before = narrow(analyze, values("SystemCallFilter"))
        with rig:
            rig.live()
            rig.settle()
            rig.drained()
            report, rows = rig.bucket()
            assert report.verified and rows == rig.look().rows
            rig.until(lambda: bool(rig.events("mqtt.connected")), "the broker")
            assert rig.stop() == 0
