"""What a look at the box found, judged: good, worth a look, or wrong, each with the next command.

Numbers come in, sentences go out; the bounds stand here, beside the reason for each.

What this module does not do: measure anything (`gateway.io.doctor`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.checkup import Finding
from mirror.header import Clock

DAY_S = 86_400.0
GIB = 1 << 30

FSYNC_MS_GOOD, FSYNC_MS_MAX = 10.0, 100.0  # an acknowledgement waits for one; queues bridge some seconds
CLOCK_ERROR_S_GOOD, CLOCK_ERROR_S_MAX = 0.1, 1.0
STORE_MS_GOOD = 1000.0  # a segment every second is the shortest push interval
DISK_DAYS_GOOD = 14.0
FREE_BYTES_MIN = 256 << 20


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


def judge_space(free_bytes: int, held_bytes: int, max_bytes: float, per_day: float | None) -> Found:
    """Judge how long the disk lasts at the present rate.

    Args:
        free_bytes: On the file system of the journal.
        held_bytes: Size of the journal's files.
        max_bytes: `journal.max_gib` in bytes.
        per_day: Growth at the present rate, in bytes; None where nothing was received lately.
    """
    room = min(free_bytes, max_bytes - held_bytes)
    text = f"{free_bytes / GIB:.1f} GiB free, the journal has {held_bytes / GIB:.2f} of {max_bytes / GIB:g} GiB"
    if free_bytes < FREE_BYTES_MIN:
        return Found("space", "fail", text, "free some space; below this the gateway stops asking its servers")
    if room <= 0:
        return Found("space", "fail", text, "raise journal.max_gib, or lower journal.keep_days")
    if per_day is None:
        return Found("space", "ok", f"{text}; nothing was received lately, so there is no forecast")
    days = room / per_day if per_day > 0 else math.inf
    text += f", which grows by {per_day / 2**20:,.0f} MiB a day: {'years' if days > 999 else f'{days:,.1f} days'} left"
    hint = (
        "" if days >= DISK_DAYS_GOOD else "see that the bucket takes everything; what it has is deleted after keep_days"
    )
    return Found("space", "ok" if days >= DISK_DAYS_GOOD else "warn", text, hint)


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
