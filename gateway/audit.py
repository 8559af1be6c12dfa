"""Whether the mirror holds what the devices hold: a rotating share of the tags is read and compared.

A subscription can stand, answer and deliver nothing, or leave out one tag of a thousand; neither sequence
numbers nor keep-alives tell. So each tag is read once in a period and the answer is compared with the
current state. What differs is only suspected: a change may be on its way. It counts as a mismatch when,
after a time of grace in which nothing came for the tag, the device is asked again and still says something
else than the state.

The rule that keeps the audit from crying wolf: a state that has moved since, or that is newer than what
was read, is never a mismatch. What it therefore does not find: a value that was left out between two
others. That is what queue sizes, overflow flags and sequence numbers are for.

What this module does not do: read anything, wait, or decide what follows from a mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mirror.batch import IN_HEAP, SERVER_NULL, SOURCE_NULL, Batch
from mirror.state import State

Rows = NDArray[np.int64]

READ_MAX = 500  # tags in one Read of the audit
READ_EVERY_S_MIN = 1.0
CODE_BITS = np.uint32(0xFFFF0000)  # of a StatusCode: severity and code; the rest says how a value came
#: Not about the value: the tag cannot be read (BadUserAccessDenied, BadNotReadable, BadNotSupported).
UNREADABLE = np.array([0x801F0000, 0x803A0000, 0x803D0000], np.uint32)


@dataclass(slots=True)
class Rotation:
    """Which tags are read when, so that each has its turn once in a period.

    Args:
        handles: The tags, in the order in which they are read.
        period_s: Each tag is read once in so long, if there is enough time between two Reads.
        now: Seconds that only go forward.
    """

    handles: Sequence[int]
    period_s: float
    now: float
    wake_at: float = 0.0
    turns: int = 0  # whole rotations done
    _next: int = 0

    def __post_init__(self) -> None:
        self.wake_at = self.now + self.every_s

    @property
    def every_s(self) -> float:
        """Seconds between two Reads."""
        return max(READ_EVERY_S_MIN, self.period_s * self.share / max(1, len(self.handles)))

    @property
    def share(self) -> int:
        """Tags in one Read: as few as one a second allows, READ_MAX at the most."""
        return min(READ_MAX, max(1, math.ceil(len(self.handles) * READ_EVERY_S_MIN / self.period_s)))

    def take(self, now: float) -> Sequence[int]:
        """Return the tags whose turn it is, none before `wake_at`."""
        if now < self.wake_at or not self.handles:
            return ()
        part = self.handles[self._next : self._next + self.share]
        self._next += len(part)
        if self._next >= len(self.handles):
            self._next, self.turns = 0, self.turns + 1
        self.wake_at += self.every_s
        if self.wake_at <= now:  # what was late is not made up for
            self.wake_at = now + self.every_s
        return part


def suspects(read: Batch, state: State) -> Rows:
    """Return the rows of what was read that say something else than the state.

    Not among them: rows that agree in value and code of the status whatever their times, rows older than
    the state's, and rows that say that the tag cannot be read.

    Args:
        read: One row a tag, as the server answered a Read.
        state: Current values; a tag without one is suspect.
    """
    handles = read.handle.astype(np.intp)
    known = np.zeros(len(read), np.bool_)
    inside = handles < len(state.known)
    known[inside] = state.known[handles[inside]]
    doubt = ~known & ~_unreadable(read)
    rows = np.flatnonzero(known)
    if len(rows):
        doubt[rows] = _differ(read, state.batch(read.handle[rows]), rows)
    return np.flatnonzero(doubt)


def unmoved(before: Batch, state: State) -> Rows:
    """Return the rows of what the state held that it still holds: nothing has come for these tags.

    Args:
        before: Rows of the state, one a tag.
        state: As it is now.
    """
    now = state.batch(before.handle)
    assert len(now) == len(before), "a tag does not lose its value"
    same = (now.status == before.status) & (now.kind == before.kind) & (now.flags == before.flags)
    for name in ("source_ticks", "server_ticks", "source_ps", "server_ps"):
        same &= getattr(now, name) == getattr(before, name)
    rows = np.flatnonzero(same)
    return rows[_equal_values(before, now, rows, rows)]


def _differ(read: Batch, held: Batch, rows: Rows) -> NDArray[np.bool_]:
    """Tell which of the rows read differ from the rows held, and are not older."""
    status = read.status[rows]
    same = (status & CODE_BITS) == (held.status & CODE_BITS)
    bad = status >= 0x80000000  # a Bad row may or may not carry the last value
    places = np.arange(len(rows))
    same &= bad | _equal_values(read, held, rows, places)
    doubt: NDArray[np.bool_] = ~same & ~_older(read, held, rows) & ~_unreadable(read)[rows]
    return doubt


def _older(read: Batch, held: Batch, rows: Rows) -> NDArray[np.bool_]:
    """Tell where what was read was stamped before what is held: the newer value overtook the answer."""
    either = (read.flags[rows] | held.flags) & np.uint8(SOURCE_NULL | SERVER_NULL)
    by_source = ((either & SOURCE_NULL) == 0) & (read.source_ticks[rows] < held.source_ticks)
    by_server = (either == SOURCE_NULL) & (read.server_ticks[rows] < held.server_ticks)
    older: NDArray[np.bool_] = by_source | by_server
    return older


def _unreadable(read: Batch) -> NDArray[np.bool_]:
    return np.isin(read.status & CODE_BITS, UNREADABLE)


def _equal_values(a: Batch, b: Batch, rows_a: Rows, rows_b: Rows) -> NDArray[np.bool_]:
    """Tell where values are the same, bit for bit."""
    same: NDArray[np.bool_] = a.kind[rows_a] == b.kind[rows_b]
    heaped = IN_HEAP[a.kind[rows_a]]
    same &= heaped | (a.bits[rows_a] == b.bits[rows_b])
    for i in np.flatnonzero(same & heaped).tolist():
        same[i] = a.value_bytes(int(rows_a[i])) == b.value_bytes(int(rows_b[i]))
    return same
