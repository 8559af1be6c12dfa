"""The installer on a box without internet: what it lays where, what it takes back, what it leaves alone.

The bundles here hold a program that does next to nothing (`bundles`); `test_bundle` installs the real one.
systemd, useradd and chown are small scripts that write down what was asked of them: they are the box's, and
a test must not change the machine. The scripts answer as systemd does: `restart` ends well only if the service
has come up.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.bundles import Bundles, forged

BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >> "$BOX/asked"
case $1 in
    is-active) [ -e "$BOX/active" ] ;;
    start | restart)
        rm -f "$BOX/active"
        "$BOX/opt/current/bin/edgemirror" run || exit 1
        touch "$BOX/active"
        ;;
    stop | disable) rm -f "$BOX/active" ;;
    show) if [ -e "$BOX/crashes" ]; then date +%s%N; else echo 0; fi ;;
esac
"""
WRITES_DOWN = """#!/bin/sh
echo "${0##*/} $*" >> "$BOX/asked"
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


class Box:
    """A box below a folder: its own /opt, /etc, data and commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix, self.etc, self.data, self.bin = (folder / name for name in ("opt", "etc", "data", "bin"))
        commands = folder / "commands"
        commands.mkdir(parents=True)
        for name in ("systemctl", "useradd", "userdel", "chown"):
            script = commands / name
            script.write_text(SYSTEMCTL if name == "systemctl" else WRITES_DOWN)
            script.chmod(0o755)
        path = os.pathsep.join([str(commands), str(BASE_PYTHON.parent), "/usr/bin", "/bin"])
        self.env = {
            "PATH": path, "HOME": str(folder), "BOX": str(folder), "EDGEMIRROR_DATA": str(self.data),
            "EDGEMIRROR_HOLD_S": "0.1", "PIP_INDEX_URL": "http://127.0.0.1:1/", "https_proxy": "http://127.0.0.1:1",
        }  # fmt: skip

    def call(self, script: Path, *arguments: str | Path) -> Done:
        command = ["sh", str(script), *map(str, arguments)]
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=100
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def install(self, bundle: Path, *more: str | Path) -> Done:
        """Install with systemd, everything below the box's folder."""
        places = ("--prefix", self.prefix, "--etc", self.etc, "--data", self.data, "--bin", self.bin)
        return self.call(bundle / "install.sh", "install", *places, *more)

    def upgrade(self, bundle: Path, *more: str) -> Done:
        return self.call(bundle / "install.sh", "upgrade", "--prefix", self.prefix, *more)

    def ask(self, verb: str, *more: str) -> Done:
        """Call the script that was installed."""
        return self.call(self.prefix / "current" / "install.sh", verb, *more)

    def start(self) -> None:
        subprocess.run([self.folder / "commands" / "systemctl", "start", "edgemirror"], env=self.env, check=True)

    @property
    def asked(self) -> list[str]:
        """Return what was asked of the box's commands, and forget it."""
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    @property
    def active(self) -> bool:
        return (self.folder / "active").exists()

    @property
    def links(self) -> tuple[str, str]:
        """Return which versions are current and previous."""
        named = (self.prefix / "current", self.prefix / "previous")
        current, previous = (str(p.readlink()) if p.is_symlink() else "" for p in named)
        return current, previous

    @property
    def versions(self) -> set[str]:
        return {path.parent.name for path in self.prefix.glob("*/pyvenv.cfg") if not path.parent.is_symlink()}

    @property
    def runs(self) -> str:
        """Return the version that the command is."""
        command = [self.prefix / "current" / "bin" / "edgemirror", "version"]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    @property
    def unit(self) -> Path:
        return self.etc / "systemd" / "system" / "edgemirror.service"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def test_without_systemd_everything_stays_below_the_prefix_from_install_to_purge(bundles: Bundles, box: Box) -> None:
    first, second = bundles.make("1.0"), bundles.make("2.0")
    done = box.call(first / "install.sh", "install", "--prefix", box.prefix, "--no-systemd")
    assert done.code == 0, done.err
    assert f"{box.prefix}/current/bin/edgemirror run --config {box.prefix}/etc/edgemirror/gateway.toml" in done.out
    example = (box.prefix / "etc" / "edgemirror" / "gateway.toml.example").read_text()
    assert f'data_dir = "{box.prefix}/data"' in example and f'"{box.prefix}/etc/edgemirror/secrets/' in example
    assert {path.name for path in box.folder.iterdir()} == {"commands", "opt"} and box.asked == []
    config = box.prefix / "etc" / "edgemirror" / "gateway.toml"
    config.write_text("mine")
    (box.prefix / "data").mkdir()
    (box.prefix / "data" / "mirror.db").write_text("1")

    assert '"1.0"' in box.runs and box.links == ("1.0", "")
    assert "installed already" in box.call(first / "install.sh", "install", "--prefix", box.prefix, "--no-systemd").out
    done = box.call(second / "install.sh", "install", "--prefix", box.prefix, "--no-systemd")
    assert done.code == 1 and "try:" in done.err and "upgrade" in done.err

    assert box.upgrade(second).code == 0
    assert '"2.0"' in box.runs and box.links == ("2.0", "1.0")
    assert box.ask("rollback").code == 0
    assert '"1.0"' in box.runs and box.links == ("1.0", "2.0")
    assert box.ask("rollback").code == 0
    assert '"2.0"' in box.runs and box.links == ("2.0", "1.0")

    done = box.ask("uninstall")
    assert done.code == 0 and f"kept: {box.prefix}/etc/edgemirror and {box.prefix}/data" in done.out
    assert {path.name for path in box.prefix.iterdir()} == {"etc", "data"}
    assert config.read_text() == "mine" and (box.prefix / "data" / "mirror.db").read_text() == "1"

    assert box.call(second / "install.sh", "install", "--prefix", box.prefix, "--no-systemd").code == 0
    assert config.read_text() == "mine"
    assert box.ask("uninstall", "--purge").code == 0
    assert not box.prefix.exists()


def test_with_systemd_unit_user_and_command_are_there_and_nothing_is_started(bundles: Bundles, box: Box) -> None:
    done = box.install(bundles.make("1.0"))
    assert done.code == 0, done.err
    command = f"sudo -u edgemirror {box.prefix}/current/bin/edgemirror"
    assert (
        f"next: {command} init opc.tcp://HOST:PORT --out {box.etc}/edgemirror/gateway.toml --data-dir {box.data}"
        in done.out
    )
    assert f"{command} check --online" in done.out and "systemctl enable --now edgemirror" in done.out
    asked = box.asked
    assert [line for line in asked if line.startswith("useradd --system") and line.endswith(" edgemirror")]
    assert f"chown edgemirror:edgemirror {box.etc}/edgemirror/secrets" in asked
    assert f"chown edgemirror:edgemirror {box.data}" in asked
    assert "systemctl daemon-reload" in asked and not box.active
    unit = box.unit.read_text()
    assert f"ExecStart={box.prefix}/current/bin/edgemirror run --config {box.etc}/edgemirror/gateway.toml\n" in unit
    assert (
        f"ReadWritePaths={box.data}\n" in unit
        and "StateDirectory" not in unit
        and "@" not in unit.split("[Unit]")[1][:300]
    )
    assert (box.etc / "systemd" / "journald.conf.d" / "edgemirror.conf").exists()
    assert (
        '"1.0"'
        in subprocess.run([box.bin / "edgemirror", "version"], capture_output=True, text=True, check=True).stdout
    )
    done = box.ask("uninstall", "--purge")
    assert done.code == 0, done.err
    assert "systemctl disable --now edgemirror" in box.asked
    left = {str(p.relative_to(box.folder)) for p in box.folder.rglob("*") if p.is_file() or p.is_symlink()}
    assert {name for name in left if not name.startswith("commands/")} == set()


def test_an_upgrade_restarts_the_service_and_a_third_one_leaves_two_versions(bundles: Bundles, box: Box) -> None:
    box.install(bundles.make("1.0"))
    box.start()
    _ = box.asked
    for version in ("2.0", "3.0"):
        done = box.upgrade(bundles.make(version))
        assert done.code == 0, done.err
        assert "systemctl restart edgemirror" in box.asked and box.active
    assert box.links == ("3.0", "2.0") and box.versions == {"2.0", "3.0"}


@pytest.mark.parametrize("how", ["does not start", "crashes after a while"])
def test_a_version_that_does_not_come_up_is_taken_back_by_itself(bundles: Bundles, box: Box, how: str) -> None:
    box.install(bundles.make("1.0"))
    box.start()
    bad = bundles.make("2.0", code=1) if how == "does not start" else bundles.make("2.0")
    if how != "does not start":
        (box.folder / "crashes").touch()
    done = box.upgrade(bad)
    assert done.code == 1 and "1.0 is in its place again" in done.err and "journalctl" in done.err
    assert box.links == ("1.0", "") and '"1.0"' in box.runs and box.active


def test_a_service_that_does_not_run_is_not_started_by_an_upgrade(bundles: Bundles, box: Box) -> None:
    box.install(bundles.make("1.0"))
    _ = box.asked
    assert box.upgrade(bundles.make("2.0", code=1)).code == 0
    assert [line for line in box.asked if "start" in line] == [] and not box.active


def test_a_journal_that_a_failed_upgrade_has_changed_comes_back_and_what_it_wrote_stays(
    bundles: Bundles, box: Box
) -> None:
    box.install(bundles.make("1.0"))
    box.start()
    assert (box.data / "mirror.db").read_text() == "1"
    done = box.upgrade(bundles.make("2.0", schema=2, code=1))
    assert done.code == 1 and box.active and box.links == ("1.0", "")
    assert (box.data / "mirror.db").read_text() == "1"
    [aside] = [path for path in box.data.iterdir() if path.is_dir()]
    assert aside.name.startswith("of-2.0-") and (aside / "mirror.db").read_text() == "2"


def test_an_upgrade_of_the_schema_goes_back_only_with_a_new_journal(bundles: Bundles, box: Box) -> None:
    box.install(bundles.make("1.0"))
    box.start()
    assert box.upgrade(bundles.make("2.0", schema=2)).code == 0
    assert (box.data / "mirror.db").read_text() == "2" and [p.name for p in box.data.iterdir()] == ["mirror.db"]
    done = box.ask("rollback")
    assert done.code == 1 and "cannot read the journal" in done.err and "--new-journal" in done.err
    assert box.links == ("2.0", "1.0") and box.active
    with (box.data / "lock").open("w") as lock:  # as a gateway holds it that somebody has started by hand
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = box.ask("rollback", "--new-journal")
    assert done.code == 1 and "a gateway uses" in done.err
    assert box.links == ("2.0", "1.0") and box.active and (box.data / "mirror.db").read_text() == "2"
    assert box.ask("rollback", "--new-journal").code == 0
    assert box.links == ("1.0", "2.0") and box.active and (box.data / "mirror.db").read_text() == "1"
    [aside] = [path for path in box.data.iterdir() if path.is_dir()]
    assert (aside / "mirror.db").read_text() == "2"


def test_what_the_operator_has_changed_stays_and_the_other_one_is_laid_beside_it(bundles: Bundles, box: Box) -> None:
    box.install(bundles.make("1.0"))
    mine = box.unit.read_text() + "# mine\n"
    box.unit.write_text(mine)
    done = box.upgrade(bundles.make("2.0"))
    assert done.code == 0 and f"{box.unit} was changed here and stays" in done.out
    assert box.unit.read_text() == mine and (box.unit.with_name("edgemirror.service.new")).exists()


def test_a_bundle_that_is_not_as_it_was_made_installs_nothing(bundles: Bundles, box: Box, tmp_path: Path) -> None:
    whole = bundles.make("1.0")

    def refused(name: str, change: str) -> None:
        copy = tmp_path / name
        subprocess.run(["cp", "-r", whole, copy], check=True)
        subprocess.run(["sh", "-c", change], cwd=copy, check=True)
        done = box.install(copy)
        assert done.code == 1 and "damaged" in done.err and "try:" in done.err
        assert not box.prefix.exists() and box.asked == []

    refused("flipped", "printf x | dd of=wheels/edgemirror-1.0-py3-none-any.whl bs=1 seek=99 conv=notrunc 2>/dev/null")
    refused("missing", "rm wheels/edgemirror-1.0-py3-none-any.whl")
    refused("more", "cp wheels/edgemirror-1.0-py3-none-any.whl wheels/edgemirror-9.0-py3-none-any.whl")


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        ("python", "3.99", "this bundle is for Python 3.99"),
        ("platform", "linux_other", "this bundle is for linux_other"),
        ("glibc", "9.99", "this bundle needs glibc 9.99"),
    ],
)
def test_a_bundle_for_another_box_says_what_it_is_for(
    bundles: Bundles, box: Box, tmp_path: Path, fact: str, value: str, words: str
) -> None:
    done = box.install(forged(bundles.make("1.0"), tmp_path / "other", **{fact: value}))
    assert done.code == 1 and words in done.err and not box.prefix.exists()


def test_a_program_that_does_not_run_on_the_box_is_never_the_current_one(bundles: Bundles, box: Box) -> None:
    bad = bundles.make("2.0", imports="not_in_the_bundle")
    done = box.install(bad)
    assert done.code == 1 and "does not run on this box" in done.err and box.versions == set()
    assert box.install(bundles.make("1.0")).code == 0
    done = box.upgrade(bad)
    assert done.code == 1 and box.links == ("1.0", "") and box.versions == {"1.0"}


def test_an_installation_that_was_cut_off_is_done_again(bundles: Bundles, box: Box) -> None:
    (box.prefix / "1.0" / "bin").mkdir(parents=True)
    (box.prefix / "1.0" / "bin" / "edgemirror").write_text("half")
    (box.prefix / ".current.new").symlink_to("nowhere")
    done = box.install(bundles.make("1.0"))
    assert done.code == 0 and '"1.0"' in box.runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reinstall"], "reinstall is no verb"),
        (["install", "--force"], "--force is no option"),
        (["install", "--prefix"], "--prefix needs a value"),
        (["install", "--prefix", "opt"], "use an absolute path"),
        (["install", "--prefix", "/opt/edge mirror"], "use an absolute path"),
        (["install", "--data", "/data/../etc"], "use an absolute path"),
        (["upgrade", "--prefix", "/nowhere/edgemirror"], "not installed below /nowhere/edgemirror"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(bundles: Bundles, box: Box, arguments: list[str], words: str) -> None:
    done = box.call(bundles.make("1.0") / "install.sh", *arguments)
    assert done.code == 2 and words in done.err


def test_help_shows_every_option_that_there_is(bundles: Bundles, box: Box) -> None:
    script = bundles.make("1.0") / "install.sh"
    shown = box.call(script, "--help").out
    known = {word.rstrip(")") for word in script.read_text().split() if word.startswith("--") and word.endswith(")")}
    assert "--no-systemd" in known and [o for o in known - {"--help"} if o not in shown] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(bundles: Bundles, box: Box) -> None:
    box.folder.joinpath("closed").mkdir(mode=0o500)
    done = box.call(bundles.make("1.0") / "install.sh", "install", "--prefix", box.folder / "closed" / "opt")
    assert done.code == 1 and "cannot be written" in done.err and "--no-systemd" in done.err
