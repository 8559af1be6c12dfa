"""Keeping the journal small: a turn every minute that deletes what the cloud has and gives pages back.

What is older than `journal.keep_days` goes first. Where the file has nearly reached `journal.max_gib`, or the end
of its disk, more goes before its time, the oldest first. All of it happens in small transactions of the ingest
thread, between those of samples. What the cloud does not have is never deleted: if that alone is too much, an
event says so.

What this module does not do: say what the cloud has (the verified log), or delete by itself (`gateway.io.trimming`).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gateway.config import Config
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.reader import size_bytes
from gateway.room import DAY_S, FULL_SHARE, GIB, GOAL_SHARE, KEPT, WITHOUT_BUCKET, room_bytes
from mirror.coverage import Pushed


class Upkeep:
    """Looks after one journal.

    Args:
        config: The gateway's.
        path: The journal.
        ingest: Owns its writer.
        promise: Reads what the verified log has; runs in a thread.
    """

    def __init__(self, config: Config, path: Path, ingest: Ingest, promise: Callable[[], Pushed]) -> None:
        self._path, self._ingest, self._promise = path, ingest, promise
        self._keep_s = config.journal.keep_days * DAY_S
        self._max_bytes = config.journal.max_gib * GIB
        self._has_bucket = bool(config.sync.bucket)
        self._failure = ""
        self._outgrown = False

    async def turn(self) -> None:
        """Delete and give back all that may go now; a failure is told once and tried again with the next turn."""
        try:
            await self._turn()
        except Exception as error:  # the top of this work: the mirror goes on
            before, self._failure = self._failure, str(error) or repr(error)
            if self._failure != before:
                log("journal.trim_failed", error=self._failure)
        else:
            self._failure = ""

    async def _turn(self) -> None:
        promise = await asyncio.to_thread(self._promise)
        old = early = 0
        chunks, more = 1, True
        while chunks and more:  # samples come in between
            chunks, more = await self._call(partial(by_age, promise, self._keep_s))
            old += chunks
        if old:
            log("journal.trimmed", chunks=old, early=0)
        room = room_bytes(self._max_bytes, size_bytes(self._path), shutil.disk_usage(self._path.parent).free)
        used = await self._call(_used_bytes)
        if used > room * FULL_SHARE:
            while chunks := await self._call(partial(by_size, promise, int(room * GOAL_SHARE))):
                early += chunks
            if early:
                log("journal.trimmed", chunks=early, early=early)
            used = await self._call(_used_bytes)
        while await self._call(partial(_give_back, int(room * FULL_SHARE))):
            pass
        self._tell(used, room)

    def _tell(self, used_bytes: int, room: int) -> None:
        """Say when what may not be deleted has become too much, and when that is over."""
        outgrown = used_bytes > room * (FULL_SHARE if self._outgrown else 1.0)
        if outgrown == self._outgrown:
            return
        self._outgrown = outgrown
        if outgrown:
            why = KEPT if self._has_bucket else WITHOUT_BUCKET
            log("journal.outgrown", used_bytes=used_bytes, room_bytes=room, reason=why)
        else:
            log("journal.fits", used_bytes=used_bytes, room_bytes=room)

    async def _call(self, work: Callable[[Journal], Any]) -> Any:
        return await asyncio.wrap_future(self._ingest.call(work))


def by_age(promise: Pushed, keep_s: float, journal: Journal) -> tuple[int, bool]:
    """Delete some of what is old; tell how many chunks, and whether there is more to look at."""
    return journal.trim(promise, keep_s=keep_s), journal.is_trimming


def by_size(promise: Pushed, size_bytes: int, journal: Journal) -> int:
    """Delete some of what is too much; tell how many chunks."""
    return journal.trim_to(size_bytes, promise)


def _give_back(size_bytes: int, journal: Journal) -> int:
    return journal.give_back(size_bytes)


def _used_bytes(journal: Journal) -> int:
    return journal.used_bytes
