"""Whether somebody listens again where nobody did: a knock costs no request, and comes sooner than a backoff ends.

A store that is asked ever more rarely would otherwise be found back half a minute late, with a backlog that
the plant's dashboards of the cloud wait for. A store that listens and refuses is left to the backoff.

What it does not do: ask anything of the store.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

KNOCK_S = 0.25  # between two knocks while nobody listens, and for so long one is waited for
PORTS = {"http": 80, "https": 443}


class Knock:
    """Knocks at most every quarter of a second, and only for as long as nobody listens.

    Args:
        listens: Whether somebody takes a connection now.
    """

    def __init__(self, listens: Callable[[], bool]) -> None:
        self._listens = listens
        self._away = False
        self._next = -math.inf

    def is_back(self, now: float) -> bool:
        """Tell whether somebody listens who did not at the knock before; ask it only while an answer is waited for."""
        if now < self._next:
            return False
        was_away, self._away = self._away, not self._listens()
        self._next = now + KNOCK_S
        return was_away and not self._away

    @property
    def pause_s(self) -> float:
        """How long to wait at the most before asking again."""
        return KNOCK_S if self._away else math.inf


def listens(url: str) -> bool:
    """Tell whether a TCP connection to a URL's host and port is taken at once."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or PORTS[parts.scheme]), KNOCK_S):
            return True
    except (OSError, KeyError):
        return False
