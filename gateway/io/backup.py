"""One file that makes an empty box the replica that a dead one was: configuration, keys, certificates, secrets.

The file is a tar that any tar unpacks: `backup.json` says of each file where it stood, whose it was and its
SHA-256, `backup.sha256` is the hash of that, and below `files/` the files stand as they stood on the box. Which
they are, the configuration says: itself, all that its settings ending in `_file` and `_dir` name, and from the
data directory the keys. A file that is named and missing is an error: the backup would not bring the box back.

Restoring writes nothing where anything stands already, and takes away what it wrote if it cannot write all.

What it does not do: samples, which are in the journal and in the bucket, and secrecy: the file holds private keys
and passwords in the clear, readable for its owner alone.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import io
import os
import pwd
import stat
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config, parse
from gateway.io.datadir import KEY_FILE
from gateway.io.keys import SIGNING_KEY, signing_key
from gateway.io.reader import JournalReader
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable
from mirror.header import public_hex

FORMAT = 1
MANIFEST, DIGEST, FILES = "backup.json", "backup.sha256", "files"
BYTES_MAX = 64 << 20  # of all files: certificates and secrets are small, and a journal is none of them
IN_DATA_DIR = (KEY_FILE, SIGNING_KEY, "pki")


class Place(msgspec.Struct, frozen=True):
    """Where a file or folder stood and whose it was: by name, since numbers differ between boxes."""

    path: str
    mode: int
    owner: str
    group: str


class Entry(Place, frozen=True):
    """A file."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds.

    Attributes:
        made: When, UTC.
        epoch: Of the journal; None if there was none, or it could not be read.
        public_key: Of the signing key in hex; None if there was none.
        config, data_dir: Absolute paths.
        folders: Those that files stood in, outer ones first.
    """

    format: int = FORMAT
    edgemirror: str
    made: datetime
    group: str
    replica: str
    epoch: int | None
    public_key: str | None
    config: str
    data_dir: str
    folders: list[Place]
    files: list[Entry]


def write(config_file: Path, config: Config, out: Path, *, version: str) -> Manifest:
    """Write a backup.

    Args:
        config_file: The configuration's file.
        config: What it says.
        out: The new file; appears when it is complete.
        version: Of this program.

    Raises:
        ConfigError: `out` exists, or a file that belongs to the backup is missing or may not be read.
        Unavailable: It cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} exists", hint=f"rm {out}, or choose another name")
    paths = [config_file.absolute(), *_named(config), *_of_data_dir(config)]
    bodies = {path: _read(path) for path in dict.fromkeys(paths)}
    if (size := sum(map(len, bodies.values()))) > BYTES_MAX:
        largest = max(bodies, key=lambda path: len(bodies[path]))
        raise ConfigError(
            f"the files are {size} bytes, and {BYTES_MAX} are allowed; the largest is {largest}",
            hint=f"ls -lR {largest.parent}; only certificates and secrets belong there",
        )
    data_dir = Path(config.replica.data_dir).absolute()
    parents = {path.parent for path in bodies} | ({data_dir} if data_dir.exists() else set())
    manifest = Manifest(
        edgemirror=version, made=datetime.now(UTC), group=config.group.name, replica=config.replica.name,
        epoch=_epoch(data_dir), public_key=_public_key(data_dir), config=str(paths[0]), data_dir=str(data_dir),
        folders=[Place(*_place(path)) for path in sorted(parents)],
        files=[Entry(*_place(path), len(body), hashlib.sha256(body).hexdigest()) for path, body in bodies.items()],
    )  # fmt: skip
    part = out.with_name(out.name + ".part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _pack(file, manifest, bodies)
            file.flush()
            os.fsync(file.fileno())
        part.rename(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unavailable(f"{out} cannot be written: {error.strerror}", hint=f"ls -ld {out.parent}") from error
    return manifest


def _named(config: Any) -> Iterator[Path]:
    """Yield the files that settings ending in `_file` name, and those in folders that settings in `_dir` name."""
    for name in config.__struct_fields__:
        value = getattr(config, name)
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, msgspec.Struct):
                yield from _named(table)
        if value and name.endswith("_file"):
            yield Path(value).absolute()
        if value and name.endswith("_dir") and name != "data_dir":
            yield from _inside(Path(value).absolute())


def _of_data_dir(config: Config) -> Iterator[Path]:
    for name in IN_DATA_DIR:
        path = Path(config.replica.data_dir).absolute() / name
        if path.is_dir():
            yield from _inside(path)
        elif path.exists():
            yield path


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder that can be read", hint=f"ls -ld {folder}")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise ConfigError(f"{path} may not be read by this user", hint="sudo edgemirror backup ...") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; a backup without it would not bring the box back",
            hint="make the file, or take out the setting that names it",
        ) from error


def _place(path: Path) -> tuple[str, int, str, str]:
    found = path.stat()
    return str(path), stat.S_IMODE(found.st_mode), _name_of(pwd.getpwuid, found.st_uid), _name_of(
        grp.getgrgid, found.st_gid
    )  # fmt: skip


def _name_of(look_up: Any, number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return ""


def _epoch(data_dir: Path) -> int | None:
    """Return the journal's epoch; a journal that cannot be read keeps nobody from backing the rest up."""
    try:
        reader = JournalReader.open(data_dir / "mirror.db")
    except MirrorError:
        return None
    try:
        return reader.epoch()[0]
    except MirrorError:
        return None
    finally:
        reader.close()


def _public_key(data_dir: Path) -> str | None:
    return public_hex(signing_key(data_dir)) if (data_dir / SIGNING_KEY).exists() else None


def _pack(file: io.BufferedWriter, manifest: Manifest, bodies: dict[Path, bytes]) -> None:
    head = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        now = int(manifest.made.timestamp())
        _add(tar, MANIFEST, head, mtime=now, mode=0o600)
        _add(tar, DIGEST, f"{hashlib.sha256(head).hexdigest()}  {MANIFEST}\n".encode(), mtime=now, mode=0o600)
        for entry in manifest.files:
            body = bodies[Path(entry.path)]
            _add(tar, FILES + entry.path, body, mtime=now, mode=entry.mode, uname=entry.owner, gname=entry.group)


def _add(tar: tarfile.TarFile, name: str, body: bytes, **facts: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    for fact, value in facts.items():
        setattr(member, fact, value)
    tar.addfile(member, io.BytesIO(body))


def read(file: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return what a backup holds, checked, and its files by path.

    Raises:
        ConfigError: It cannot be read, or was written by a newer program.
        Corrupt: It is not a backup, or not as it was written.
    """
    try:
        if file.stat().st_size > 2 * BYTES_MAX:
            raise Corrupt(f"{file} is larger than any backup", hint="a backup is what `edgemirror backup` has written")
        with tarfile.open(file, "r:") as tar:
            members = {m.name: handle.read() for m in tar if m.isreg() and (handle := tar.extractfile(m)) is not None}
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}", hint=f"ls -l {file}") from error
    except tarfile.TarError as error:
        raise Corrupt(f"{file} is no backup: {error}", hint="use another copy") from error
    head = members.get(MANIFEST, b"")
    if members.get(DIGEST, b"").decode("ascii", "replace").split(" ")[0] != hashlib.sha256(head).hexdigest():
        raise Corrupt(f"{file}: {MANIFEST} is missing or damaged", hint="use another copy")
    try:
        if msgspec.json.decode(head)["format"] > FORMAT:
            raise ConfigError(f"{file} was written by a newer edgemirror", hint="install that version or a later one")
        manifest = msgspec.json.decode(head, type=Manifest)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise Corrupt(f"{file}: {MANIFEST} is not understood: {error}", hint="use another copy") from error
    bodies = {entry.path: members.get(FILES + entry.path, b"") for entry in manifest.files}
    for entry in manifest.files:
        if hashlib.sha256(bodies[entry.path]).hexdigest() != entry.sha256:
            raise Corrupt(f"{file}: {entry.path} is missing or damaged", hint="use another copy")
        if not Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
            raise Corrupt(f"{file}: {entry.path} is no path of a backup", hint="use another copy")
    if manifest.config not in bodies:
        raise Corrupt(f"{file} has no configuration", hint="use another copy")
    return manifest, bodies


def restore(file: Path) -> Manifest:
    """Write the files of a backup where they stood, with their modes and, as root, their owners.

    Raises:
        ConfigError: Something stands there already, this program does not understand the configuration,
            an owner is unknown here, or this user may not write there. Nothing was written.
        Corrupt: See `read`. Nothing was written.
    """
    manifest, bodies = read(file)
    try:
        parse(bodies[manifest.config].decode("utf-8", "replace"))
    except ConfigError as error:
        raise ConfigError(
            f"{file} is of edgemirror {manifest.edgemirror}, and this one does not take its configuration: {error}",
            hint=f"install edgemirror {manifest.edgemirror} or later",
        ) from error
    for there in (*bodies, str(Path(manifest.data_dir) / "mirror.db")):
        if os.path.lexists(there):
            raise ConfigError(
                f"{there} exists; a backup is restored into an empty box and overwrites nothing",
                hint=f"if it is not needed: mv {there} {there}.old",
            )
    owners = {(p.owner, p.group): _ids(p) for p in (*manifest.folders, *manifest.files)}
    made: list[Path] = []
    try:
        for folder in manifest.folders:
            _make_folder(folder, owners[folder.owner, folder.group], made)
        for entry in manifest.files:
            _write_file(entry, bodies[entry.path], owners[entry.owner, entry.group], made)
    except OSError as error:
        for path in reversed(made):
            _take_away(path)
        raise ConfigError(
            f"{error.filename}: {error.strerror}; nothing was restored", hint=f"sudo edgemirror restore-config {file}"
        ) from error
    return manifest


def _ids(place: Place) -> tuple[int, int] | None:
    """Return whose a file shall be; None leaves it to whoever restores, who cannot give files away."""
    if os.geteuid() != 0 or not (place.owner and place.group):
        return None
    try:
        return pwd.getpwnam(place.owner).pw_uid, grp.getgrnam(place.group).gr_gid
    except KeyError as error:
        raise ConfigError(
            f"{place.path} belonged to {place.owner}:{place.group}, and this box knows no such user or group",
            hint="install edgemirror first, which makes its user, or useradd",
        ) from error


def _make_folder(folder: Place, ids: tuple[int, int] | None, made: list[Path]) -> None:
    path = Path(folder.path)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o755)
        made.append(each)
    if missing:
        if ids is not None:
            os.chown(path, *ids)
        path.chmod(folder.mode & 0o777)


def _write_file(entry: Entry, body: bytes, ids: tuple[int, int] | None, made: list[Path]) -> None:
    handle = os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    made.append(Path(entry.path))
    with os.fdopen(handle, "wb") as out:
        if ids is not None:
            os.fchown(handle, *ids)
        os.fchmod(handle, entry.mode & 0o777)
        out.write(body)
        out.flush()
        os.fsync(handle)


def _take_away(path: Path) -> None:
    """Remove what was made; a folder only if it is empty again."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()
