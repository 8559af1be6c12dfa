"""Waiting for an answer only so long, whatever keeps it: for leases, where a late answer is worth nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from mirror.errors import Unavailable

T = TypeVar("T")

CALLS_MAX = 8  # under way at the most, those included that nobody waits for any more


class Limit:
    """Waits for an answer only so long, whatever keeps it: a name server, a proxy, bytes that drip.

    A call that nobody waits for any more goes on in its thread until the socket gives up; what it asked
    for may still happen, as after every `Unavailable`.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._free = threading.BoundedSemaphore(CALLS_MAX)

    def __call__(self, act: Callable[[], T], what: str) -> T:
        """Return what `act` returns, or raise Unavailable in time."""
        if not self._free.acquire(blocking=False):
            raise Unavailable(f"{what}: {CALLS_MAX} earlier requests are still without an answer")
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(act())
            except BaseException as error:
                answer.set_exception(error)
            finally:
                self._free.release()

        threading.Thread(target=run, name="lease", daemon=True).start()
        try:
            return answer.result(self._limit_s)
        except TimeoutError as error:
            raise Unavailable(f"{what}: no answer within {self._limit_s} s") from error
