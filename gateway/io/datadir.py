"""The data directory: one process holds it, and its key file encrypts what must not be read by others.

The lock is a file lock on `lock` in the directory: it ends with the process, whatever ends the process.
The key is a random file that only its owner may read; it protects copies of the database, not the box.
The reserve is a file of nothing, given up when the disk is full, so that this can still be written down.

What this module does not do: open the database (`gateway.io.journal`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from mirror.errors import ConfigError, Unavailable

KEY_FILE = "session.key"
KEY_BYTES = 32
RESERVE_BYTES = 256 << 10


def hold(directory: Path) -> int:
    """Return the lock on a directory, making it (for its owner alone) if it is missing.

    The lock is a file descriptor: closing it lets go.

    Raises:
        ConfigError: Another process holds it, or it cannot be written.
    """
    file = directory / "lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}", hint=f"ls -ld {directory}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise ConfigError(
            f"{directory} is in use by another gateway (process {holder})",
            hint="give each replica a replica.data_dir of its own, or stop the other one",
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def key(directory: Path, *, make: bool) -> bytes:
    """Return the key of a directory from its file `session.key`.

    Args:
        directory: The data directory.
        make: Make a key if there is none; otherwise FileNotFoundError.

    Raises:
        ConfigError: Others can read it, it is not a key, or it cannot be made.
        Unavailable: There is no room for it now.
    """
    file = directory / KEY_FILE
    if not file.exists() or not file.stat().st_size:  # an empty one is what a kill once left
        if not make:
            raise FileNotFoundError(file)
        try:
            _make(file)
        except OSError as error:
            what = f"{file} cannot be made: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Unavailable(what, hint=f"df -h {directory}") from error
            raise ConfigError(what, hint=f"ls -ld {directory}") from error
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"{file} can be read by others than its owner", hint=f"chmod 600 {file}")
    found = file.read_bytes()
    if len(found) != KEY_BYTES:
        raise ConfigError(f"{file} holds {len(found)} bytes, not {KEY_BYTES}", hint=f"rm {file}")
    return found


def _make(file: Path) -> None:
    """Make a key; it appears whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        written = os.write(handle, os.urandom(KEY_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)
    if written < KEY_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    part.replace(file)


def keep_reserve(directory: Path) -> None:
    """Take hold of some room on the disk, if there is any."""
    with contextlib.suppress(OSError):
        handle = os.open(directory / "reserve", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, RESERVE_BYTES)
        finally:
            os.close(handle)


def spend_reserve(directory: Path) -> None:
    """Give the room back to whoever writes next."""
    with contextlib.suppress(OSError):
        (directory / "reserve").unlink(missing_ok=True)
