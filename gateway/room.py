"""How much room the journal has, and how long that lasts: one reckoning for trimming, `status` and `doctor`.

What the bucket has may be deleted here, so it takes no room that is needed; what the bucket lacks is never deleted.
Without a bucket nothing is. The room is `journal.max_gib` or the disk, whichever is smaller.

What this module does not do: measure or delete anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY_S = 86_400.0
GIB = 1 << 30
FREE_BYTES_MIN = 256 << 20  # what others on the box may need
FULL_SHARE = 0.95  # of the room: from here on what the bucket has goes before its time,
GOAL_SHARE = 0.90  # until so much is in use; in between, free pages are used again
WAL_BYTES_MAX = 64 << 20  # it is emptied from 4 MiB on, unless somebody reads
MAX_GIB = "journal.max_gib"
WITHOUT_BUCKET = "without a bucket nothing is ever deleted"
KEPT = "what the bucket lacks is never deleted"


def room_bytes(max_bytes: float, held_bytes: int, free_bytes: int) -> int:
    """Return how large the journal may become.

    Args:
        max_bytes: `journal.max_gib` in bytes.
        held_bytes: Size of its files now.
        free_bytes: Left on their file system.
    """
    return max(0, int(min(max_bytes, held_bytes + free_bytes - FREE_BYTES_MIN)))


@dataclass(frozen=True, slots=True)
class Room:
    """The journal and its disk at one moment.

    Attributes:
        max_bytes: `journal.max_gib` in bytes.
        held_bytes: Size of the journal's files.
        free_bytes: Left on their file system.
        unpushed_bytes: Of chunks that the bucket lacks.
        per_day: Bytes received a day at the present rate; None where nothing was received lately.
        bucket: Whether there is one.
    """

    max_bytes: float
    held_bytes: int
    free_bytes: int
    unpushed_bytes: int
    per_day: float | None
    bucket: bool

    @property
    def limit(self) -> str:
        """What ends the room first."""
        on_disk = self.held_bytes + self.free_bytes - FREE_BYTES_MIN
        return MAX_GIB if self.max_bytes <= on_disk else "the disk"

    @property
    def days_left(self) -> float | None:
        """Days until it is full of what may not be deleted, if nothing of it is pushed meanwhile; None: unknown."""
        kept = self.unpushed_bytes if self.bucket else self.held_bytes
        left = room_bytes(self.max_bytes, self.held_bytes, self.free_bytes) - kept
        if left <= 0:
            return 0.0
        if self.per_day is None:
            return None
        return left / self.per_day if self.per_day > 0 else math.inf

    @property
    def forecast(self) -> str:
        """The same as a sentence."""
        days = self.days_left
        if days is None:
            return "nothing was received lately, so there is no forecast"
        if days == 0:
            return f"full ({self.limit}): {KEPT if self.bucket else WITHOUT_BUCKET}"
        grown = f"{(self.per_day or 0.0) / 2**20:,.0f} MiB a day"
        when = "in years" if days > 999 else f"in {days:,.1f} days"
        if self.bucket:
            return f"full {when} at the present rate ({grown}) if the bucket took nothing any more ({self.limit})"
        return f"full {when} at the present rate ({grown}; {self.limit}); {WITHOUT_BUCKET}"

    @property
    def text(self) -> str:
        """How much of what there is, for people."""
        told = f"{self.free_bytes / GIB:.1f} GiB free, the journal has {self.held_bytes / GIB:.2f} of "
        told += f"{self.max_bytes / GIB:g} GiB"
        return f"{told}, {self.unpushed_bytes / GIB:.2f} of them not in the bucket" if self.bucket else told
