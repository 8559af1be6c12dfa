"""Tags that a server will not monitor: their state is Bad, they are told, and they are asked for again.

A refusal belongs to a subscription and is kept with it, so that it is known after a restart too. A node that
was not there when the subscription was made may come later, as when a PLC has loaded its program: so the
refused ones are asked for again, ever more seldom.

What it does not do: create subscriptions (`gateway.io.source`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

import msgspec
import numpy as np

from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.io.sessions import Held
from gateway.plan import Plan, monitored_items
from gateway.server import Refused
from mirror.errors import Corrupt

AGAIN_S, AGAIN_S_MAX = 60.0, 3600.0  # between two attempts; doubles

Keep = Callable[[str, Held], Awaitable[None]]


class Refusals:
    """What one source's subscriptions lack.

    Args:
        ingest: Takes the Bad rows.

    Attributes:
        held: By stream, its subscription with what was refused in it.
    """

    def __init__(self, ingest: Ingest) -> None:
        self.held: dict[str, Held] = {}
        self._ingest = ingest

    @property
    def handles(self) -> set[int]:
        """All tags that are not monitored."""
        return {handle for held in self.held.values() for handle in held.refused}

    def told(self) -> dict[str, str]:
        """Return by path what the server said, for people."""
        tags = self._ingest.journal.tags
        return {
            tags[h].path or tags[h].node: f"0x{code:08X}"
            for held in self.held.values()
            for h, code in held.refused.items()
        }

    def made(self, stream: str, held: Held, response_ticks: int) -> None:
        """Take note of a new subscription.

        Args:
            stream: Stream id.
            held: With what was refused.
            response_ticks: When the server said so, 0 if it did not tell.
        """
        self.held[stream] = held
        if held.refused:
            self._ingest.refused(stream, held.refused, response_ticks)
            log("stream.items_refused", stream=stream, tags=len(held.refused), first=self._first(held.refused))

    async def resumed(self, stream: str, held: Held) -> None:
        """Take note of a former subscription; say again what the state does not hold."""
        self.held[stream] = held
        if held.refused:
            unsaid = await asyncio.wrap_future(self._ingest.call(partial(_unsaid, held.refused)))
            if unsaid:
                self._ingest.refused(stream, unsaid, 0)

    async def retry(self, connection: Connection, streams: Mapping[str, Plan], keep: Keep) -> None:
        """Ask for what was refused again, until cancelled.

        Args:
            connection: A live session.
            streams: What is subscribed on it.
            keep: Makes durable what has become of a stream's subscription.
        """
        pause_s = AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S_MAX)
            for stream, held in list(self.held.items()):
                if held.refused and stream in streams:
                    await self._retry(connection, streams[stream], held, keep)

    async def _retry(self, connection: Connection, plan: Plan, held: Held, keep: Keep) -> None:
        items = [i for i in monitored_items(plan, self._ingest.journal.tags) if i.handle in held.refused]
        try:
            accepted, refused, ticks = await connection.monitor(held.id, items)
        except (Refused, Corrupt):
            return  # as before; what is monitored goes on
        queue_size = min([held.queue_size, *(item.queue_size for item in accepted.values())])
        self.held[plan.id] = msgspec.structs.replace(held, refused=refused, queue_size=queue_size)
        if refused != held.refused:
            changed = {h: code for h, code in refused.items() if held.refused.get(h) != code}
            if changed:
                self._ingest.refused(plan.id, changed, ticks)
            await keep(plan.id, self.held[plan.id])
        if accepted:
            log("stream.items_accepted", stream=plan.id, tags=len(accepted), first=self._first(accepted))

    def _first(self, handles: Collection[int]) -> str:
        tag = self._ingest.journal.tags[next(iter(handles))]
        return tag.path or tag.node


def _unsaid(refused: Mapping[int, int], journal: Journal) -> dict[int, int]:
    """Return the refusals that the state does not show; runs in the ingest thread."""
    rows = journal.state.batch(np.array(sorted(refused), np.uint32))
    said = dict(zip(rows.handle.tolist(), rows.status.tolist(), strict=True))
    return {handle: code for handle, code in refused.items() if said.get(handle) != code}
