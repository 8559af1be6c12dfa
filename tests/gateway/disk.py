"""A disk under SQLite that remembers, fills up, and loses power: for tests of what a crash leaves.

`Recorder` is an SQLite VFS. It notes every write, truncation and sync, can refuse writes as a full disk
does, to all files, to one, or beyond what its folder may hold, and syncs as a dying disk does; it calls `on_step`
before each act, where a test may end the process.

`cut` makes the files that a power cut at one moment may leave: everything synced is there; of what was
written later any part may be, sector by sector. What a sync failed for is as good as never written, whatever
later syncs say: the kernel has forgotten that it was to be written. It assumes that the disk keeps what it said
is synced, and does not model directory entries.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


@dataclass
class Act:
    """Something that reached the disk; `what` is write, truncate, sync, unsynced, delete or note."""

    what: str
    file: str = ""
    offset: int = 0
    data: bytes = b""


@dataclass
class Recorder:
    """A registered VFS of this name; close it when the database is closed."""

    name: str
    acts: list[Act] = field(default_factory=list)
    full: bool = False
    full_file: str = ""
    capacity: int | None = None  # bytes of all files in the folder
    sync_fails: Callable[[str], bool] = lambda file: False
    on_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._vfs = _Vfs(self)

    def note(self, text: str) -> None:
        """Put a mark of the test's own between the acts."""
        self.acts.append(Act("note", text))

    def close(self) -> None:
        """Unregister the VFS."""
        self._vfs.unregister()

    def did(self, act: Act) -> None:
        """Remember an act that is about to happen."""
        self.on_step()
        self.acts.append(act)


class _Vfs(apsw.VFS):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__(recorder.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(self.recorder, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.recorder.did(Act("delete", Path(filename).name))
        super().xDelete(filename, syncdir)


class _File(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name: Any, flags: list[int]) -> None:
        self.recorder = recorder
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.path = Path(filename) if filename else Path()
        self.name = self.path.name
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.recorder.full or self.name == self.recorder.full_file or not self._fits(offset + len(data)):
            raise apsw.FullError("no space left")
        self.recorder.did(Act("write", self.name, offset, bytes(data)))
        super().xWrite(data, offset)

    def _fits(self, end: int) -> bool:
        if self.recorder.capacity is None:
            return True
        used = {file: file.stat().st_size for file in self.path.parent.iterdir()}
        return sum(used.values()) + max(0, end - used[self.path]) <= self.recorder.capacity

    def xTruncate(self, size: int) -> None:
        self.recorder.did(Act("truncate", self.name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if self.recorder.sync_fails(self.name):
            self.recorder.did(Act("unsynced", self.name))
            raise apsw.IOError("the disk failed")
        super().xSync(flags)
        self.recorder.did(Act("sync", self.name))


def cut(start: dict[str, bytes], acts: list[Act], at: int, chance: random.Random) -> dict[str, bytes]:
    """Return the files that may be left when the power goes right before `acts[at]`.

    Args:
        start: Contents of the files before the first act, all of it durable.
        acts: What a Recorder noted.
        at: Index into `acts`.
        chance: Decides about every sector that was not synced.
    """
    files = {name: bytearray(data) for name, data in start.items()}
    kept, ends = [False] * at, dict[str, bool]()
    for i in reversed(range(at)):
        if acts[i].what in ("sync", "unsynced"):
            ends[acts[i].file] = acts[i].what == "sync"
        kept[i] = ends.get(acts[i].file, False)
    keep = chance.choice((0.0, 0.5, 0.9, 1.0))
    for act, durable in zip(acts[:at], kept, strict=True):
        if act.what == "write":
            _write(files.setdefault(act.file, bytearray()), act, 1.0 if durable else keep, chance)
        elif act.what == "truncate" and (durable or chance.random() < keep):
            del files.setdefault(act.file, bytearray())[act.offset :]
        elif act.what == "delete":
            files.pop(act.file, None)
    return {name: bytes(data) for name, data in files.items()}


def _write(file: bytearray, act: Act, keep: float, chance: random.Random) -> None:
    """Write the sectors of an act that are kept; what lies between is zero, as on a fresh disk."""
    done = act.offset
    while done < act.offset + len(act.data):
        end = min((done // SECTOR + 1) * SECTOR, act.offset + len(act.data))
        if keep == 1.0 or chance.random() < keep:
            if len(file) < end:
                file.extend(bytes(end - len(file)))
            file[done:end] = act.data[done - act.offset : end - act.offset]
        done = end
