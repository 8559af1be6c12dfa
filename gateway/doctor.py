"""What a look at the box found, judged: good, worth a look, or wrong, each with the next command.

Numbers come in, sentences go out; the bounds stand here, beside the reason for each.

What this module does not do: measure anything (`gateway.io.doctor`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.checkup import Finding
from gateway.room import FREE_BYTES_MIN, MAX_GIB, WAL_BYTES_MAX, Room
from mirror.header import Clock

FSYNC_MS_GOOD, FSYNC_MS_MAX = 10.0, 100.0  # an acknowledgement waits for one; queues bridge some seconds
CLOCK_ERROR_S_GOOD, CLOCK_ERROR_S_MAX = 0.1, 1.0
STORE_MS_GOOD = 1000.0  # a segment every second is the shortest push interval
DISK_DAYS_GOOD = 14.0


@dataclass(frozen=True, slots=True)
class Found:
    """One line of the report.

    Attributes:
        part: `clock`, `disk`, `journal`, `store`, `certificate press7`, ...
        level: `ok`, `warn` or `fail`; only `fail` makes the exit code 1.
        text: What was found, with its number and unit.
        hint: The next command or setting; empty where nothing is to be done.
    """

    part: str
    level: str
    text: str
    hint: str = ""


def judge_clock(clock: Clock | None) -> Found:
    """Judge what the kernel says of its clock; times of this box stand in each segment."""
    if clock is None:
        return Found("clock", "warn", "the kernel tells nothing of its clock", "timedatectl status")
    error_s = clock.error_max_us / 1e6
    text = f"{'disciplined' if clock.synchronized else 'free-running'}, at most {error_s:.3f} s off by its own estimate"
    if not clock.synchronized:
        return Found("clock", "warn", text, "set up NTP or PTP, such as: systemctl enable --now systemd-timesyncd")
    level = "ok" if error_s <= CLOCK_ERROR_S_GOOD else "warn" if error_s <= CLOCK_ERROR_S_MAX else "fail"
    return Found("clock", level, text, "" if level == "ok" else "chronyc tracking")


def judge_fsync(times_ms: Sequence[float], commit_ms: float) -> Found:
    """Judge how long the disk takes to say that data is safe.

    Args:
        times_ms: Of some writes of a few KiB, each with fdatasync; at least one.
        commit_ms: `journal.commit_ms`.
    """
    ordered = sorted(times_ms)
    middle, worst = ordered[len(ordered) // 2], ordered[-1]
    text = f"fsync takes {middle:.1f} ms (worst of {len(ordered)}: {worst:.1f} ms)"
    if middle > FSYNC_MS_MAX:
        return Found("disk", "fail", text, "use another disk; an SD card that is worn out gets slow first")
    if middle > max(FSYNC_MS_GOOD, commit_ms):
        return Found("disk", "warn", text, f"raise journal.commit_ms from {commit_ms:g} to {math.ceil(middle * 2)}")
    return Found("disk", "ok", text)


def judge_space(room: Room) -> Found:
    """Judge how long the room lasts at the present rate."""
    text = f"{room.text}; {room.forecast}"
    if room.free_bytes < FREE_BYTES_MIN:
        return Found("space", "fail", text, "free some space; below this the gateway stops asking its servers")
    days = room.days_left
    if days == 0:
        hint = "see that the bucket takes everything, or " if room.bucket else "set sync.bucket, or "
        return Found("space", "fail", text, hint + "raise journal.max_gib")
    if days is None or days >= DISK_DAYS_GOOD:
        return Found("space", "ok", text)
    return Found("space", "warn", text, "raise journal.max_gib" if room.limit == MAX_GIB else "use a larger disk")


def judge_wal(size_bytes: int, path: str) -> Found:
    """Judge the write-ahead log, which cannot be emptied past what a reader still looks at.

    Args:
        size_bytes: Of its file.
        path: The journal.
    """
    text = f"its write-ahead log has {size_bytes / 2**20:.0f} MiB"
    if size_bytes <= WAL_BYTES_MAX:
        return Found("readers", "ok", text)
    text += ", since some program does not end reading; the gateway goes on, but the file grows"
    return Found("readers", "warn", text, f"find and end that program: lsof {path}")


def judged(finding: Finding) -> Found:
    """Return what `check` finds as a line of this report."""
    level = {"ok": "ok", "warning": "warn", "failed": "fail", "away": "warn"}[finding.level]
    return Found(finding.part, level, finding.text, "" if level == "ok" else finding.hint)


def judge_store(times_ms: Sequence[float], failed: Sequence[str], warned: Sequence[str]) -> list[Found]:
    """Judge the bucket.

    Args:
        times_ms: Of some small writes.
        failed: Required properties that the store lacks.
        warned: Others.
    """
    ordered = sorted(times_ms)
    found = []
    if ordered:
        middle = ordered[len(ordered) // 2]
        slow = middle > STORE_MS_GOOD
        text = f"a small write takes {middle:.0f} ms (worst of {len(ordered)}: {ordered[-1]:.0f} ms)"
        found.append(Found("store", "warn" if slow else "ok", text, "raise sync.interval_s.min" if slow else ""))
    if failed:
        hint = "use a store with working conditional writes, such as Amazon S3 or SeaweedFS 4.48"
        found.append(Found("store", "fail", f"it cannot hold a log: {'; '.join(failed)}", hint))
    else:
        found.append(Found("store", "ok", "conditional writes work, so that nobody can overwrite the log"))
    found += [Found("store", "warn", text) for text in warned]
    return found


def worst(found: Iterable[Found]) -> str:
    """Return the worst level of a report; `ok` of an empty one."""
    levels = {f.level for f in found}
    return next((level for level in ("fail", "warn") if level in levels), "ok")
