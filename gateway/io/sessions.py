"""What takes a source's subscriptions up again after its connection, or this process, has died.

The session and its subscriptions live on at the server for a while, so their names are kept in the journal:
encrypted, since whoever knows a session's token can take it over.

Two rules keep others safe and this gateway alive. Tokens and ids mean something only in the run of the
server that gave them; in another one they may be somebody else's. And what could not be taken up again is
struck off, so that it is not tried for ever.

What it does not do: talk to servers (`gateway.io.source`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from gateway.io.ingest import Ingest
from gateway.io.log import log
from gateway.server import ServerFacts
from mirror.errors import Corrupt, Unavailable


class Held(msgspec.Struct, frozen=True):
    """A stream's subscription as the server revised it.

    Attributes:
        queue_size: The smallest that any of its items got.
        sampling_ms: The longest that any of its items got.
        refused: By handle, the StatusCode of the tags that the server would not monitor in it.
    """

    id: int
    publishing_ms: float
    keep_alive_count: int
    queue_size: int = 0
    refused: dict[int, int] = {}
    sampling_ms: float = 0.0


class Saved(msgspec.Struct, frozen=True):
    """What takes subscriptions up again after this process has died. The secret is a bearer token.

    Attributes:
        uri: ApplicationUri of the server.
        endpoint: Where it was.
        start_ticks: Its StartTime: of another run of the server, a session with that token is somebody else's.
        secret: The session, as `Connection.session_secret` gives it.
        streams: By stream id.
        dead: Subscriptions in that session that are not to be taken up again.
    """

    uri: str
    endpoint: str
    start_ticks: int
    secret: bytes
    streams: dict[str, Held]
    dead: list[int] = []


class Gone(Unavailable):
    """Subscriptions are not to be taken up again, though their session can be.

    Args:
        what: Why.
        streams: Which; None: the session itself is somebody else's.
        is_theirs: Whether somebody else has these subscriptions now: then they are left alone.
    """

    def __init__(self, what: str, streams: Collection[str] | None, *, is_theirs: bool = False) -> None:
        super().__init__(what)
        self.streams = streams
        self.is_theirs = is_theirs


def same_run(facts: ServerFacts, saved: Saved | None) -> bool:
    """Tell whether the server is the one, and in the run, that something was saved of."""
    return saved is not None and (facts.uri, facts.start_ticks) == (saved.uri, saved.start_ticks)


class Sessions:
    """What is kept of one source's session, in the journal.

    Args:
        ingest: Its thread writes.
        name: The source's.
        endpoint: Where it is; what was saved of another endpoint is not used.
    """

    def __init__(self, ingest: Ingest, name: str, endpoint: str) -> None:
        self._ingest, self._name, self._endpoint = ingest, name, endpoint

    async def load(self) -> Saved | None:
        """Return what was saved last, if it is of use."""
        try:
            data = await asyncio.wrap_future(self._ingest.call(lambda journal: journal.load_session(self._name)))
        except Corrupt as error:  # the replica was renamed, or the key is gone: a new session is made
            log("source.session_unreadable", source=self._name, error=str(error), hint=error.hint)
            await asyncio.wrap_future(self._ingest.call(lambda journal: journal.drop_session(self._name)))
            return None
        try:
            saved = msgspec.msgpack.decode(data, type=Saved) if data else None
        except msgspec.MsgspecError:
            return None  # written by another version; the next session replaces it
        return saved if saved is not None and saved.endpoint == self._endpoint else None

    async def save(self, facts: ServerFacts, secret: bytes, streams: dict[str, Held]) -> None:
        """Keep a session with its streams; durable on return."""
        await self._write(Saved(facts.uri, self._endpoint, facts.start_ticks, secret, streams))

    async def replace(self, stream: str, held: Held) -> None:
        """Keep what has become of one subscription of the session that was saved last."""
        saved = await self.load()
        if saved is not None and stream in saved.streams:
            await self._write(msgspec.structs.replace(saved, streams={**saved.streams, stream: held}))

    async def forget(self, streams: Collection[str] | None, *, is_theirs: bool = False) -> None:
        """Take subscriptions, or with None the whole session, not up again.

        Args:
            streams: Which.
            is_theirs: Somebody else has them: they are not deleted either.
        """
        saved = await self.load()
        if saved is None or streams is None:
            await asyncio.wrap_future(self._ingest.call(lambda journal: journal.drop_session(self._name)))
            return
        gone = [held.id for stream, held in saved.streams.items() if stream in streams]
        left = {stream: held for stream, held in saved.streams.items() if stream not in streams}
        dead = saved.dead if is_theirs else [*saved.dead, *gone]
        await self._write(msgspec.structs.replace(saved, streams=left, dead=dead))

    async def _write(self, saved: Saved) -> None:
        data = msgspec.msgpack.encode(saved)
        await asyncio.wrap_future(self._ingest.call(lambda journal: journal.save_session(self._name, data)))
