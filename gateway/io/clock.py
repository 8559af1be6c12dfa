"""The kernel's opinion of this box's clock.

The wall clock decides nothing here; what it says is published and written into each segment, so that a
reader can judge the times that this box has added.

Source: adjtimex(2). The kernel counts in microseconds; a clock that nobody disciplines is reported as such.
"""

from __future__ import annotations

import ctypes

from mirror.header import Clock

_TIME_ERROR = 5
_LIBC = ctypes.CDLL(None)  # opened once: each opening leaves something behind


class _Timex(ctypes.Structure):
    """`struct timex` as far as it is read here; `rest` is more than what follows."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("rest", ctypes.c_byte * 512),
    )


def clock() -> Clock | None:
    """Return estimated and maximum error and whether anything disciplines the clock; None if it is not told."""
    timex = _Timex()  # modes 0 only reads
    state = _LIBC.adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    return Clock(error_us=timex.esterror, error_max_us=timex.maxerror, synchronized=state != _TIME_ERROR)
