"""The Publish requests at one server: how many wait there, what becomes of the answers, and what silence means.

As many requests wait at the server as are configured, or as it takes; none is sent while the ingest is full,
so that the server's own queues hold the samples. An answer goes to the stream of its subscription. One of a
subscription that nobody knows (yet) is held and not acknowledged, so that the server keeps it too.

What it does not do: connect or subscribe (`gateway.io.source`), or judge sequence numbers (`gateway.sampler`).

Source: OPC UA Part 4, 5.14.1 and 5.14.5.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gateway.acks import Acks
from gateway.decode import DATA_CHANGE, Message, read_publish
from gateway.io.attempts import first_failure
from gateway.io.ingest import Ingest
from gateway.io.opcua import Connection
from gateway.io.sessions import Gone, Held
from gateway.server import NO_SUBSCRIPTION, Refused
from mirror.errors import Unavailable
from mirror.status import status_name

BAD = 0x80000000
TRANSFERRED = 0x002D0000  # GoodSubscriptionTransferred
REFUSED_S = 0.2  # after a refused Publish, so that no server is asked in a hot loop
SILENCE_FACTOR = 1.5  # of the keep-alive interval; then the subscription is suspected dead
WATCH_S = 0.2  # between two looks at how long subscriptions have been silent
FROZEN_S = 1.0  # between two looks: this process stood still, and nobody else need have
UNKNOWN_MESSAGES_MAX = 64  # held of subscriptions that nobody knows; the server keeps those that are dropped
UNKNOWN_BYTES_MAX = 8 << 20
STRANGER_MESSAGES = 8  # so many of one subscription: nobody will know it any more


class Pumps:
    """Keeps Publish requests at one server, session after session.

    Args:
        requests: How many, where the server takes them.
        ingest: Takes the messages.
        on_message: Called with each message and its stream, before the ingest gets it.
        on_stranger: Called with the id of a subscription that sends messages and that nobody knows.
        clock: Monotonic seconds.

    Attributes:
        requests: How many are kept there now.
        subscriptions: Streams by subscription id.
    """

    def __init__(
        self,
        requests: int,
        ingest: Ingest,
        *,
        on_message: Callable[[str, Message], None],
        on_stranger: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = requests
        self.subscriptions: dict[int, str] = {}
        self._asked_for, self._of_run = requests, 0
        self._ingest, self._on_message, self._on_stranger, self._clock = ingest, on_message, on_stranger, clock
        self._acks = Acks()
        self._room = asyncio.Event()
        self._room.set()
        self._heard: dict[str, float] = {}
        self._silence_s: dict[str, float] = {}  # by stream, longer than which it must not be quiet
        self._mute: set[str] = set()  # taken up again, and nothing heard since
        self._unknown: deque[Message] = deque()
        self._unknown_bytes = 0
        self._strangers: dict[int, int] = {}  # by subscription that nobody knows: messages so far
        self._dropped: set[int] = set()

    # What the source tells

    def begin(self, start_ticks: int) -> None:
        """Begin a session: nothing is known of its subscriptions yet.

        Args:
            start_ticks: StartTime of the server; in another run it may take more requests.
        """
        self.subscriptions.clear()
        self._acks.reconnected()
        for forgotten in (self._heard, self._silence_s, self._mute, self._unknown, self._strangers, self._dropped):
            forgotten.clear()
        self._unknown_bytes = 0
        if start_ticks != self._of_run:
            self.requests, self._of_run = self._asked_for, start_ticks

    def made(self, subscription: int) -> None:
        """Take note of a new subscription: in a new run of the server, ids and numbers begin anew."""
        self._acks.forget(subscription)

    def take_up(self, stream: str, held: Held, *, watched: bool, resumed: bool) -> None:
        """Give a subscription's messages to a stream from now on, and those that came before.

        Args:
            stream: Its machine has been told of the subscription.
            held: As the server revised it: that decides how long it may be silent.
            watched: Whether its silence matters.
            resumed: Whether it was made by an earlier session.
        """
        self.subscriptions[held.id] = stream
        if watched:
            self._heard[stream] = self._clock()
            self._silence_s[stream] = SILENCE_FACTOR * held.keep_alive_count * held.publishing_ms / 1000 + 1.0
        if resumed:
            self._mute.add(stream)
        self._strangers.pop(held.id, None)
        self._dropped.discard(held.id)
        waited = [m for m in self._unknown if m.subscription == held.id]
        self._unknown = deque(m for m in self._unknown if m.subscription != held.id)
        self._unknown_bytes -= sum(len(m.body) for m in waited)
        for message in waited:
            self._take(message)

    def drop(self, subscription: int) -> None:
        """Take nothing more of a subscription that is given up."""
        stream = self.subscriptions.pop(subscription, "")
        for known in (self._heard, self._silence_s):
            known.pop(stream, None)
        self._strangers.pop(subscription, None)
        self._dropped.add(subscription)

    def durable(self, subscription: int, sequence: int) -> None:
        """A message is on disk: acknowledge it with the next request."""
        self._acks.durable([(subscription, sequence)])

    def room(self) -> None:
        """Look again whether the ingest takes more; call it in the event loop."""
        if self._ingest.full:
            self._room.clear()
        else:
            self._room.set()

    # In a session

    async def run(self, connection: Connection) -> None:
        """Keep requests at the server until something breaks."""
        self._heard_all()
        await first_failure([self._pump(connection, number) for number in range(self.requests)])

    async def watch(self, is_live: Callable[[], bool]) -> None:
        """Suspect a subscription that is silent for longer than its keep-alive allows.

        A gateway that was frozen itself has heard nothing either: that says nothing about the server.

        Args:
            is_live: Whether requests are sent at all.
        """
        looked = self._clock()
        while True:
            await asyncio.sleep(WATCH_S)
            before, looked = looked, self._clock()
            if looked - before > FROZEN_S or not is_live() or not self._room.is_set():
                self._heard_all()
                continue
            for stream, heard in self._heard.items():
                limit_s = self._silence_s[stream]
                if looked - heard > limit_s:
                    what = f"stream {stream} was silent for more than {limit_s:.1f} s"
                    raise Gone(what, {stream}) if stream in self._mute else Unavailable(what)

    def _heard_all(self) -> None:
        self._heard = dict.fromkeys(self._heard, self._clock())

    async def _pump(self, connection: Connection, number: int) -> None:
        """Keep one request at the server, unless there is no room for its answer."""
        while number < self.requests:
            await self._room.wait()
            acks = self._acks.take()
            try:
                message = read_publish(await connection.publish(acks))
                if message.service_result & BAD:
                    raise Refused("Publish", message.service_result)
            except Refused as refused:
                self._acks.put_back(acks)
                self._refused(refused)
                await asyncio.sleep(REFUSED_S)
                continue
            except BaseException:
                self._acks.put_back(acks)
                raise
            self._take(message)
            if self._ingest.full:
                self._room.clear()
        await asyncio.Event().wait()

    def _refused(self, refused: Refused) -> None:
        """A request was answered with an error: fewer requests, again, or a new connection."""
        if refused.name == "BadTooManyPublishRequests":
            self.requests = max(1, self.requests - 1)
        elif refused.name in NO_SUBSCRIPTION:
            raise Gone(f"Publish was refused: {refused.name}", set(self.subscriptions.values())) from refused
        elif refused.name not in ("BadTimeout", "BadRequestTimeout"):
            raise refused

    def _take(self, message: Message) -> None:
        """Give a message to its stream."""
        stream = self.subscriptions.get(message.subscription)
        if stream is None:
            self._hold(message)
            return
        self._acks.available(message.subscription, message.available)
        if stream in self._heard:
            self._heard[stream] = self._clock()
        self._mute.discard(stream)
        self._on_message(stream, message)
        if message.status_change is None:
            self._ingest.message(stream, message)
            return
        if any(kind == DATA_CHANGE for kind, _, _ in message.notifications):
            self._ingest.message(stream, message)  # its last samples, in the same message
        taken = message.status_change == TRANSFERRED
        what = "another client has taken the subscription over" if taken else "the server ended the subscription"
        raise Gone(f"{what}: {status_name(message.status_change)}", {stream}, is_theirs=taken)

    def _hold(self, message: Message) -> None:
        """Keep a message until its subscription is known; the oldest ones go when there are too many."""
        subscription = message.subscription
        if subscription in self._dropped:
            return
        self._unknown.append(message)
        self._unknown_bytes += len(message.body)
        while len(self._unknown) > UNKNOWN_MESSAGES_MAX or self._unknown_bytes > UNKNOWN_BYTES_MAX:
            self._unknown_bytes -= len(self._unknown.popleft().body)
        self._strangers[subscription] = self._strangers.get(subscription, 0) + 1
        if self._strangers[subscription] == STRANGER_MESSAGES:
            self._on_stranger(subscription)
