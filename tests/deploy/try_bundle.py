"""The whole life of the real bundle in a folder, without network: `python -m tests.deploy.try_bundle`.

It takes about a minute, so that `make test` has only the short one: `test_install` does the same and more
with bundles around a program that does next to nothing.

The box is a folder; its programs see no variable of this process and no network: a network name space of
their own where that is allowed, else an index that is forbidden and a proxy that nobody is. The gateway
runs for real, against a server that is not there. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.servers import Process

ROOT = Path(__file__).parents[2]
BASE_PYTHON = Path(sys.base_prefix) / "bin"
NEXT = "99.0"
FORBIDDEN = {"PIP_NO_INDEX": "1", **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")}
EVERY_MODULE = """
import importlib, pkgutil, gateway, mirror
for package in (gateway, mirror):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
REACHES = "import socket; socket.create_connection(('192.0.2.1', 9), 3)"
CONFIG = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "{data}"
[[source]]
name = "nobody"
endpoint = "opc.tcp://127.0.0.1:1"
security = "none"
[[source.device]]
name = "d"
browse = ["i=85"]
[http]
listen = ""
"""


class Box:
    """A box without network below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / "opt"
        self.env = {"PATH": f"{BASE_PYTHON}:/usr/bin:/bin", "HOME": str(folder), **FORBIDDEN}
        self.alone = next(filter(_works, (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])), [])

    def run(self, *command: str | Path) -> str:
        """Run a command to its good end and return what it printed."""
        done = subprocess.run(
            [*self.alone, *command], env=self.env, cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def edgemirror(self, *arguments: str | Path) -> str:
        return self.run(self.prefix / "current" / "bin" / "edgemirror", *arguments)

    def mirror(self, config: Path) -> None:
        """Run the gateway until it says that it has started, then stop it."""
        command = [*self.alone, "env", "-i", *(f"{k}={v}" for k, v in self.env.items())]
        command += [str(self.prefix / "current" / "bin" / "edgemirror"), "run", "--config", str(config)]
        gateway = Process(command, self.folder, "gateway")
        gateway.ready(lambda: '"started": true' in gateway.log())
        assert gateway.stop() == 0, gateway.log()
        gateway.log_path.unlink()


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make(into: Path, *arguments: str | Path) -> tuple[dict[str, Any], Path]:
    """Make a bundle; return what was said of it and the folder into which it was unpacked."""
    command = [sys.executable, ROOT / "deploy" / "bundle.py", "--into", into, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    with tarfile.open(facts["file"]) as archive:
        archive.extractall(into, filter="data")
    return facts, into / Path(facts["file"]).name.removesuffix(".tar.gz")


def live(box: Box, first: Path, second: Path) -> None:
    """Install, run, upgrade, go back, uninstall."""
    if box.alone:
        reached = subprocess.run([*box.alone, sys.executable, "-c", REACHES], capture_output=True, check=False)
        assert reached.returncode != 0, "there is a network"
    box.run("sh", first / "install.sh", "install", "--prefix", box.prefix, "--no-systemd")
    version = json.loads(box.edgemirror("version", "--json"))
    assert "not installed" not in version.values(), version
    box.run(box.prefix / "current" / "bin" / "python", "-I", "-c", EVERY_MODULE)
    data = box.prefix / "data"
    config = box.prefix / "etc" / "edgemirror" / "gateway.toml"
    config.write_text(CONFIG.format(data=data))
    box.mirror(config)
    box.run("sh", second / "install.sh", "upgrade", "--prefix", box.prefix)
    assert json.loads(box.edgemirror("version", "--json"))["edgemirror"] == NEXT
    box.mirror(config)
    box.edgemirror("backup", "--config", config, box.folder / "a.backup")
    box.run("sh", box.prefix / "current" / "install.sh", "rollback")
    assert json.loads(box.edgemirror("version", "--json")) == version
    box.mirror(config)
    assert json.loads(box.edgemirror("status", "--config", config, "--json"))["epoch"] == 3  # one for each start
    box.run("sh", box.prefix / "current" / "install.sh", "uninstall")
    assert {path.name for path in box.prefix.iterdir()} == {"data", "etc"} and (data / "mirror.db").exists()


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgemirror-box-") as name:
        folder = Path(name)
        facts, first = make(folder / "first")
        _, second = make(folder / "second", "--version", NEXT, "--wheels", first / "wheels")
        made_s = time.monotonic() - began
        box = Box(folder / "box")
        box.folder.mkdir()
        live(box, first, second)
    network = "a name space without any" if box.alone else "an index and a proxy that are not there"
    print(json.dumps({
        "size_bytes": facts["size_bytes"], "wheels": facts["wheels"], "network": network, "cores": os.cpu_count(),
        "made_s": round(made_s, 1), "lived_s": round(time.monotonic() - began - made_s, 1),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
