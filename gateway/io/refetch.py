"""Ask a server once more for messages that did not come: Republish, one after the other.

Each is asked for until it is there, or until the server says that it no longer has it. A server that refuses for
another reason is asked again, in this session and in the next ones. What cannot be read is set aside: asked
for again it would be the same. And no single message keeps a source from going on: one over which sessions
have ended several times, since it is too large or for whatever reason, counts as lost, and is declared.

What it does not do: decide what to ask for (`gateway.sampler`).

Source: OPC UA Part 4, 5.14.6.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway import sampler
from gateway.decode import read_republish
from gateway.io.ingest import QUARANTINE_MAX, Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.io.sessions import Gone
from gateway.server import NO_SUBSCRIPTION, Refused
from mirror.errors import Corrupt, Unavailable

#: The server no longer has the message, never sends one again, or not one of this size.
NOT_AVAILABLE = (
    "BadMessageNotAvailable", "BadServiceUnsupported", "BadNotImplemented", "BadNotSupported", "BadResponseTooLarge",
    "BadEncodingLimitsExceeded",
)  # fmt: skip
#: What it says is about the session, not about the message.
SESSION_OVER = ("BadSessionIdInvalid", "BadSessionClosed", "BadSessionNotActivated", "BadSecureChannelIdInvalid")
AGAIN_S = (0.2, 1.0, 3.0)  # after any other refusal
ENDED_MAX = 5  # sessions that ended over one message; then it counts as lost


class Refetch:
    """Fetches the messages of one server that are missing.

    Args:
        ingest: Takes them.

    Attributes:
        answered: How many the server has sent, or said not to have.
    """

    def __init__(self, ingest: Ingest) -> None:
        self.answered = 0
        self._ingest = ingest
        self._ended: Counter[tuple[int, int]] = Counter()  # sessions that ended, by subscription and number
        self._set_aside = 0

    def made(self, subscription: int) -> None:
        """Take note of a new subscription: in a new run of the server, ids and numbers begin anew."""
        self._ended = Counter({asked: n for asked, n in self._ended.items() if asked[0] != subscription})

    async def fetch(self, connection: Connection, stream: str, asked: sampler.Republish) -> None:
        """Ask for one message, and tell the stream's machine what came of it.

        Raises:
            Gone: The server does not know the subscription.
            Unavailable: The session has to end; the message is asked for again in the next one.
        """
        key = (asked.subscription, asked.sequence)
        try:
            body = None if self._ended[key] >= ENDED_MAX else await self._ask(connection, asked)
        except Refused as refused:
            if refused.name in NO_SUBSCRIPTION:
                raise Gone(f"Republish was refused: {refused.name}", {stream}) from refused
            if refused.name not in SESSION_OVER:
                self._ended[key] += 1
            raise
        except Unavailable:
            self._ended[key] += 1
            raise
        except Corrupt as error:  # not even its bytes are known
            await self._aside(stream, asked, b"", error)
            body = None
        message = None
        if body is not None:
            try:
                message = read_republish(body)
            except Corrupt as error:
                await self._aside(stream, asked, body, error)
        self._ended.pop(key, None)
        self.answered += 1
        if message is None:
            self._ingest.event(stream, sampler.NotAvailable(asked.sequence))
        else:
            self._ingest.message(stream, message, republished=True)

    async def _ask(self, connection: Connection, asked: sampler.Republish) -> bytes | None:
        """Return the response, None if the server does not have the message any more."""
        pauses = iter(AGAIN_S)
        while True:
            try:
                return await connection.republish(asked.subscription, asked.sequence)
            except Refused as refused:
                if refused.name in NOT_AVAILABLE:
                    return None
                pause_s = next(pauses, None)
                if pause_s is None or refused.name in (*NO_SUBSCRIPTION, *SESSION_OVER):
                    raise
                await asyncio.sleep(pause_s)

    async def _aside(self, stream: str, asked: sampler.Republish, body: bytes, error: Corrupt) -> None:
        """Keep a response that cannot be read, and tell it."""

        def keep(journal: Journal) -> None:
            journal.set_fact(f"quarantine/{stream}/{asked.sequence}", body)

        self._set_aside += 1
        if body and self._set_aside <= QUARANTINE_MAX:
            await asyncio.wrap_future(self._ingest.call(keep))
        log("message.undecodable", stream=stream, sequence=asked.sequence, error=str(error))
