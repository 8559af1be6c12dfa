"""What the service manager is told: started, at work, stopping, and in words how it goes.

systemd names a datagram socket in the environment and, where it watches, how long it waits for a sign of
life. A sign is given only when the whole way from the event loop to the disk was walked since the sign
before: the loop has run this, no thread has ended, and the ingest thread has answered a call. A disk that
refuses is no reason to withhold it: the gateway waits for the disk, and a new process could do no better.

Nothing here may stop the gateway: a manager that is gone or does not read is not waited for.
What it does not do: fork, or speak for another process.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from gateway.health import Figures, is_alive, sentence

BEAT_S_MAX = 10.0  # the words are never older
SIGNS_PER_LIMIT = 4  # so many are given in the time after which the manager ends the process
TEXT_CHARACTERS_MAX = 1_000


class Notifier:
    """Speaks to the service manager.

    Attributes:
        watchdog_s: The manager ends this process after so long without a sign of life; 0 for never.
    """

    def __init__(self, address: str, watchdog_s: float = 0.0) -> None:
        """Prepare.

        Args:
            address: Path of the datagram socket, or `@` and its name in the abstract name space.
            watchdog_s: See the class.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Notifier | None:
        """Return the manager that the environment names, if any. A watchdog over another process is none of ours."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        ours = limit.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(limit) / 1e6 if ours else 0.0)

    def send(self, **facts: str) -> bool:
        """Send facts in one message and tell whether it was taken.

        What a server's error text brings along cannot become another fact.
        """
        lines = (f"{name}={' '.join(text.split())[:TEXT_CHARACTERS_MAX]}" for name, text in facts.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            try:
                out.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return False
            return True


async def keep_told(notifier: Notifier, figures: Callable[[], Figures], call: Callable[[], Future[Any]]) -> None:
    """Say that the gateway has started, then that it works and how it is, until cancelled.

    Args:
        notifier: To whom.
        figures: Called in the event loop with each message.
        call: Asks something of the ingest thread, to see whether it answers.
    """
    beat_s = min(BEAT_S_MAX, notifier.watchdog_s / SIGNS_PER_LIMIT or BEAT_S_MAX)
    asked: Future[Any] | None = None
    started = False
    while True:
        now = figures()
        facts = {"STATUS": sentence(now)}
        if not started:
            facts["READY"] = "1"
        answered = asked is None or asked.done()
        if is_alive(now) and (answered or now.journal.error):
            facts["WATCHDOG"] = "1"
        started = notifier.send(**facts) or started
        if answered:
            asked = call()
        await asyncio.sleep(beat_s)
