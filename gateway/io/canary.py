"""Watches the canaries of one source: where one has fallen silent, the subscription is declared dead and made anew.

What was claimed since it was last heard is taken back by a gap row, since keep-alives had claimed it. A
subscription whose canary falls silent again and again is made anew ever more seldom.

What it does not do: judge (`gateway.canary`), or subscribe (`gateway.io.source`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from functools import partial

from gateway import canary
from gateway.canary import Canary
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.io.sessions import Gone
from gateway.server import Refused
from mirror.coverage import Gap, Reason
from mirror.status import status_name

LOOK_S = 0.5
FROZEN_S = 4 * LOOK_S  # between two looks: this process stood still, and nobody else need have
AGAIN_S, AGAIN_S_MAX = 10.0, 3600.0  # between two new subscriptions of one stream: doubles while it falls silent


class Canaries:
    """The canaries of one source.

    Args:
        name: Of the source.
        ingest: Hears them.
        clock: Monotonic seconds.

    Attributes:
        refused: Why the server monitors no canary; empty if it does, or was not asked yet.
        deaths: Subscriptions declared dead so far.
    """

    def __init__(self, name: str, ingest: Ingest, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.refused = ""
        self.deaths = 0
        self._name, self._ingest, self._clock = name, ingest, clock
        self._again: dict[str, tuple[float, float]] = {}  # by stream: when it may be made anew, and the pause then

    async def put(self, connection: Connection, subscription: int) -> None:
        """Put a canary into a new subscription; a server that will not have it is watched without one."""
        try:
            _, refused, _ = await connection.monitor(subscription, [canary.ITEM])
            why = status_name(refused[canary.HANDLE]) if refused else ""
        except Refused as error:
            why = error.name
        if why and why != self.refused:
            log("canary.refused", source=self._name, error=why)
        self.refused = why

    def of(self, streams: Collection[str]) -> list[Canary]:
        """Return those of some streams that have been heard in this session."""
        return [found for stream in streams if (found := self._ingest.canaries.get(stream)) is not None]

    async def watch(self, streams: Collection[str], is_listening: Callable[[], bool]) -> None:
        """Watch until cancelled, or until one is silent.

        Args:
            streams: Of the session that begins.
            is_listening: Whether messages are asked for.

        Raises:
            Gone: The stream whose canary is silent; subscribe anew.
        """
        for stream in streams:
            self._ingest.canaries.pop(stream, None)
        looked = since = self._clock()
        while True:
            await asyncio.sleep(LOOK_S)
            before, looked = looked, self._clock()
            if looked - before > FROZEN_S or not is_listening() or self._ingest.full:
                since = looked
                continue
            for stream in streams:
                found = self._ingest.canaries.get(stream)
                if found is not None and found.silent(looked, since_s=since):
                    await self._dead(stream, found, looked)

    async def _dead(self, stream: str, found: Canary, now: float) -> None:
        at, pause_s = self._again.get(stream, (now, AGAIN_S))
        if now < at:
            return
        self._again[stream] = (now + pause_s, min(2 * pause_s, AGAIN_S_MAX))
        self.deaths += 1
        silent_s = round(now - found.at_s, 1)
        log("canary.silent", source=self._name, stream=stream, silent_s=silent_s)
        await asyncio.wrap_future(self._ingest.call(partial(self._declare, stream, found)))
        raise Gone(f"the clock of the server stands still in stream {stream} for {silent_s} s", {stream})

    def _declare(self, stream: str, found: Canary, journal: Journal) -> None:
        """Open the gap row; runs in the ingest thread."""
        machine = self._ingest.sampler(stream)
        position = None if machine is None else machine.position
        if position is None:
            return
        start = found.covered if found.timeline == position.timeline else position.start
        end = max(position.covered, start + 1)
        gap = Gap.opened(stream, position.timeline, start, Reason.MUTE, end=end, found=end)
        journal.open_gap(gap)
        self._ingest.note_before(stream, gap)
