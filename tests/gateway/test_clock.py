"""The clock's own judgement, as the kernel gives it."""

from __future__ import annotations

from gateway.io.clock import clock


def test_the_kernel_tells_how_wrong_the_clock_may_be() -> None:
    now = clock()
    assert now is not None and 0 <= now.error_us <= now.error_max_us
    assert now.synchronized or now.error_max_us > 0
