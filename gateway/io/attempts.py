"""When a server is tried again, and how several tasks of one session end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from gateway.io.sessions import Gone
from gateway.server import Refused
from mirror.errors import MirrorError, Unavailable

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # after a server has refused so often
AWAY_S = 0.15  # between two attempts to reach a server that does not answer at all
STEADY_S = 2 * BACKOFF_S[-1]  # a session that stood this long begins the count of refusals anew


def pause_s(error: MirrorError, refusals: int) -> float:
    """Return how long to wait before the next attempt.

    A server that answers and refuses is asked less and less often. One that is away is tried steadily, since
    every moment between its return and the new subscription is lost, and an attempt costs it nothing.

    Args:
        error: What ended the last attempt.
        refusals: How many attempts before it were refused, one after the other.
    """
    return BACKOFF_S[min(refusals, len(BACKOFF_S) - 1)] if answered(error) else AWAY_S


def answered(error: MirrorError) -> bool:
    """Tell whether the server answered: it refused, or sent what cannot be used."""
    return isinstance(error, Refused | Gone) or not isinstance(error, Unavailable)


async def first_failure(tasks: list[Coroutine[Any, Any, None]]) -> None:
    """Run all until one fails, then end the others and raise its error."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
