"""How much room a journal has: measured for `status` and `doctor`, whether its gateway runs or not."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from gateway.config import Config
from gateway.io.reader import JournalReader, size_bytes
from gateway.room import DAY_S, GIB, Room

RATE_S = 3600.0  # the growth of so long a time is taken for the present rate


def measure(path: Path, config: Config) -> Room:
    """Return the room of a journal that may not exist yet.

    Raises:
        MirrorError: It cannot be read.
    """
    per_s, unpushed = None, 0
    if path.exists():
        reader = JournalReader.open(path)
        try:
            per_s = reader.growth_per_s(time.time() - RATE_S)
            unpushed = reader.backlog(reader.settled()).size_bytes
        finally:
            reader.close()
    return Room(
        max_bytes=config.journal.max_gib * GIB, held_bytes=size_bytes(path),
        free_bytes=shutil.disk_usage(path.parent).free, unpushed_bytes=unpushed,
        per_day=None if per_s is None else per_s * DAY_S, bucket=bool(config.sync.bucket),
    )  # fmt: skip
