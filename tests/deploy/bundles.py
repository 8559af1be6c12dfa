"""Bundles to install in a second or two: the real installer around a program that does next to nothing.

The small program has the verbs that the installer uses. `version` tells version and schema. `run` does what
the real one does to a journal, reduced to a number in `mirror.db`: it raises a lower one to its own schema
and refuses a higher one; then it goes on, or ends as it is told here.
"""

from __future__ import annotations

import compileall
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode

import pip

ROOT = Path(__file__).parents[2]
MAIN = """
import json, os, pathlib, sys

def main():
    if sys.argv[1] == "version":
        print(json.dumps({{"edgemirror": "{version}", "schema": {schema}}}))
        return 0
    journal = pathlib.Path(os.environ["EDGEMIRROR_DATA"], "mirror.db")
    if journal.exists() and int(journal.read_text()) > {schema}:
        return 2
    journal.write_text("{schema}")
    return {code}
"""


class Bundles:
    """Makes bundles, each once.

    Args:
        folder: They are made and unpacked below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pip = folder / "pip-0-py3-none-any.whl"
        home = folder / "pip-source" / "pip"
        shutil.copytree(Path(pip.__file__).parent, home, ignore=shutil.ignore_patterns("__pycache__"))
        # Compiled beforehand, since pip runs out of the archive and would be compiled with each installation.
        mode = PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(home, quiet=2, legacy=True, invalidation_mode=mode)
        with zipfile.ZipFile(self._pip, "w") as archive:
            for path in home.rglob("*"):
                archive.write(path, path.relative_to(home.parent))

    def make(self, version: str, *, schema: int = 1, code: int = 0, imports: str = "") -> Path:
        """Return the folder of an unpacked bundle.

        Args:
            version: Of the program.
            schema: Of its journals.
            code: With which `run` ends; 0 for one that goes on.
            imports: A module that its runtime needs.
        """
        name = f"{version}-{schema}-{code}-{imports}"
        home, wheels = self.folder / name, self.folder / f"{name}-wheels"
        if not home.exists():
            wheels.mkdir()
            (wheels / self._pip.name).hardlink_to(self._pip)
            _wheel(wheels, version, schema, code, imports)
            command = [sys.executable, ROOT / "deploy" / "bundle.py", "--into", home, "--version", version]
            subprocess.run([*command, "--wheels", wheels], check=True, capture_output=True, timeout=60)
            [archive] = home.glob("*.tar.gz")
            subprocess.run(["tar", "xzf", archive], cwd=home, check=True, timeout=60)
        [bundle] = [path for path in home.iterdir() if path.is_dir()]
        return bundle


def _wheel(folder: Path, version: str, schema: int, code: int, imports: str) -> None:
    info = f"edgemirror-{version}.dist-info"
    files = {
        "gateway/__init__.py": "",
        "gateway/__main__.py": MAIN.format(version=version, schema=schema, code=code),
        "gateway/io/__init__.py": "",
        "gateway/io/runtime.py": f"import {imports}" if imports else "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgemirror\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgemirror = gateway.__main__:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"edgemirror-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def forged(bundle: Path, to: Path, **facts: str) -> Path:
    """Return a copy of a bundle that says other things of itself, with hashes that agree."""
    subprocess.run(["cp", "-r", bundle, to], check=True)
    told = to / "BUNDLE"
    lines = [line for line in told.read_text().splitlines() if line.split("=")[0] not in facts]
    told.write_text("\n".join([*lines, *(f"{name}={value}" for name, value in facts.items())]) + "\n")
    sums = to / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines() if not line.endswith("  BUNDLE")]
    sums.write_text("\n".join([*kept, f"{hashlib.sha256(told.read_bytes()).hexdigest()}  BUNDLE"]) + "\n")
    return to
