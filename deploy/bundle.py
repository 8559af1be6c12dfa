"""Make the offline bundle: all that a box without internet needs, in one file; `make bundle` runs this.

The bundle holds the wheels of edgemirror and of its core dependencies, for this machine's platform and this
Python's version, in the versions that are installed beside this Python: after `make test` those that were
tested. pip comes along as a wheel, because a box may have none. `SHA256SUMS` lists every file; the installer
checks it first. That finds a damaged copy. Against a forged one, compare the bundle's own hash, which is
printed here, over another way.

The last line printed is one JSON object: file, size_bytes, sha256, wheels.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mirror", "gateway", "cloud", "demo")
OF_EDGE = ("install.sh", "edgemirror.service", "journald.conf", "gateway.toml")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PLATFORM = sysconfig.get_platform().replace("-", "_")
GLIBC = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}  # names from before they were numbers


def main() -> int:
    options = argparse.ArgumentParser(description="Make the offline bundle.")
    options.add_argument("--into", type=Path, default=ROOT / "dist", help="folder; default: dist")
    options.add_argument("--version", help="another version than pyproject.toml says, to try an upgrade")
    options.add_argument("--wheels", type=Path, help="a folder with wheels, instead of fetching them")
    given = options.parse_args()
    version = given.version or tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    name = f"edgemirror-{version}-{PLATFORM}-py{PYTHON.replace('.', '')}"
    with tempfile.TemporaryDirectory(prefix="edgemirror-bundle-") as folder:
        bundle = Path(folder) / name
        wheels = bundle / "wheels"
        if given.wheels:
            shutil.copytree(given.wheels, wheels)
        else:
            wheels.mkdir(parents=True)
        own = build(wheels, version, Path(folder))
        if not given.wheels:
            gather(wheels, own, Path(folder))
        furnish(bundle, version)
        given.into.mkdir(parents=True, exist_ok=True)
        out = given.into / f"{name}.tar.gz"
        pack(bundle, out)
        count = len(list(wheels.iterdir()))
    facts = {"file": str(out), "size_bytes": out.stat().st_size, "sha256": digest(out), "wheels": count}
    print(json.dumps(facts))
    return 0


def build(wheels: Path, version: str, scratch: Path) -> Path:
    """Return edgemirror's own wheel of a version, made unless it is there; there is no other one then."""
    for wheel in wheels.glob("edgemirror-*.whl"):
        if wheel.name.startswith(f"edgemirror-{version}-"):
            return wheel
        wheel.unlink()
    say(f"building edgemirror {version}")
    source = scratch / "source"
    for package in PACKAGES:  # a copy: what an earlier build left in the tree must not come along
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    project = re.sub(r'^version = ".*"$', f'version = "{version}"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    (source / "pyproject.toml").write_text(project)
    subprocess.run([*pip_wheel(wheels), "--no-deps", str(source)], check=True)
    [wheel] = wheels.glob("edgemirror-*.whl")
    return wheel


def gather(wheels: Path, own: Path, scratch: Path) -> None:
    """Fetch the wheels of what edgemirror needs, and pip's."""
    say("gathering the wheels that it needs")
    tested = scratch / "versions.txt"
    others = {d.name.lower(): d.version for d in distributions() if d.name.lower() not in ("edgemirror", "pip")}
    tested.write_text("".join(f"{name}=={number}\n" for name, number in sorted(others.items())))
    command = [*pip_wheel(wheels), "--prefer-binary", "--constraint", str(tested), str(own), "pip"]
    subprocess.run(command, check=True)


def pip_wheel(wheels: Path) -> list[str]:
    quietly = ["--disable-pip-version-check", "--quiet"]
    return [sys.executable, "-m", "pip", *quietly, "wheel", "--wheel-dir", str(wheels)]


def furnish(bundle: Path, version: str) -> None:
    """Put beside the wheels what installs them, the pages to read, and the list of all files."""
    for file in OF_EDGE:
        shutil.copy(ROOT / "deploy" / "edge" / file, bundle)
    shutil.copy(ROOT / "LICENSE", bundle)
    shutil.copytree(ROOT / "docs", bundle / "docs")
    facts = {"version": version, "python": PYTHON, "platform": PLATFORM, "glibc": glibc(bundle / "wheels")}
    (bundle / "BUNDLE").write_text("".join(f"{name}={value}\n" for name, value in facts.items()))
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    lines = [f"{digest(path)}  {path.relative_to(bundle)}\n" for path in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def glibc(wheels: Path) -> str:
    """Return the lowest glibc with which each of the wheels runs."""
    needed = [(0, 0)]
    for wheel in wheels.glob("*.whl"):
        platforms = [p for p in wheel.stem.split("-")[-1].split(".") if p.startswith("manylinux")]
        named = [GLIBC.get(p.split("_")[0], ".".join(p.split("_")[1:3])) for p in platforms]
        versions = [(int(major), int(minor)) for major, minor in (number.split(".") for number in named)]
        needed.append(min(versions, default=(0, 0)))
    return "{}.{}".format(*max(needed))


def pack(bundle: Path, out: Path) -> None:
    """Write the archive; equal contents give equal bytes."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() or member.name.endswith(".sh") else 0o644
        return member

    part = out.with_name(out.name + ".part")
    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, 0) as packed,  # wheels are packed already
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(bundle.rglob("*")):
            tar.add(path, str(path.relative_to(bundle.parent)), recursive=False, filter=plain)
    part.rename(out)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    print(f"bundle: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
