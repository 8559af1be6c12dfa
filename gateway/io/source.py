"""One OPC UA server: connect, take the former subscription up again, pump, and start over when it breaks.

The order that loses least: take the former session up again; failing that, transfer its subscriptions
into a new session; failing that, subscribe anew, and the sampler declares the gap. Before the first
Publish everything is fetched again that the server still holds. From then on `publish_requests`
requests are always waiting at the server, unless the ingest is full: then nobody asks, and the server's
own queues hold the samples.

What it does not do: decide what is missing (`gateway.sampler`), or store anything (`gateway.io.ingest`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gateway import plan as plans
from gateway import sampler
from gateway.acks import Acks
from gateway.config import Source
from gateway.decode import Message, read_publish, read_republish
from gateway.io.attempts import STEADY_S, answered, first_failure, pause_s
from gateway.io.auditor import Auditor
from gateway.io.backfill import Backfiller
from gateway.io.ingest import Ingest, position_name, read_position
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.models import Model, Models
from gateway.io.opcua import Connection
from gateway.io.reader import JournalReader
from gateway.io.sessions import Gone, Held, Saved, Sessions, same_run
from gateway.pace import Pace
from gateway.plan import Plan
from gateway.sampler import Effect
from gateway.server import MonitoredItem, Refused, ServerFacts
from mirror.batch import Batch
from mirror.coverage import Axis, Reason, Stream
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable
from mirror.status import status_name

T = TypeVar("T")

RESUME_S = 30.0  # all that is fetched again before the first Publish has to come within
RESUME_REFUSALS_MAX = 2  # then the session is given up; one that is merely out of reach is not
LAST_RESPONSES = 2  # of a retiring stream: the first may have been made before its successor was
BAD_NODE_ID_UNKNOWN = 0x80340000
NO_SUBSCRIPTION = ("BadNoSubscription", "BadSubscriptionIdInvalid")
#: The server no longer has the message, or never sends one again.
NOT_AVAILABLE = ("BadMessageNotAvailable", "BadServiceUnsupported", "BadNotImplemented", "BadNotSupported")
REPUBLISH_AGAIN_S = (0.2, 1.0, 3.0)  # after any other refusal
DEADLY_MAX = 3  # connections lost over one message; then it counts as lost
REFUSED_S = 0.2  # after a refused Publish, where no other request waits at the server
BAD = 0x80000000
WATCH_S = 0.5  # between two looks for silence
SILENCE_FACTOR = 1.5  # of the keep-alive interval; then the subscription is suspected dead


@dataclass(frozen=True, slots=True)
class _Delete:
    """Work for a session: a subscription that is no longer needed."""

    subscription: int


@dataclass(slots=True)
class Status:
    """What can be told about a source; read by anyone, written in the event loop."""

    name: str
    endpoint: str
    uri: str = ""
    namespaces: tuple[str, ...] = ()
    connected: bool = False
    since: float = 0.0
    how: str = ""  # created | resumed | transferred
    connects: int = 0
    tags: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    last_error: str = ""
    last_message: float = 0.0
    publishing: int = 0
    fetched: int = 0  # messages asked for again and answered


class SourceRunner:
    """Keeps one source subscribed.

    Args:
        config: The server.
        ingest: Takes messages and events.
        journal_path: For reading what is held beside a gap.
        password: Of the configured user, or empty.
        on_tags: Called in the event loop when the tags of the source are known or have changed.
        on_state: Called in the event loop when the source is connected or lost.
        on_history: Called in the event loop with rows from the server's history, once they are durable.
    """

    def __init__(
        self,
        config: Source,
        ingest: Ingest,
        *,
        journal_path: Path,
        password: str,
        on_tags: Callable[[], None],
        on_state: Callable[[SourceRunner, bool], None],
        on_history: Callable[[Batch], None],
    ) -> None:
        self.config = config
        self.status = Status(config.name, config.endpoint)
        self.streams: dict[str, Plan] = {}
        self.retiring: dict[str, int] = {}  # former streams still subscribed, and responses to wait for
        self.handles: set[int] = set()
        self.pace = Pace()
        self._ingest = ingest
        self._journal_path = journal_path
        self._password = password
        self._on_tags = on_tags
        self._on_state = on_state
        self._backfiller = Backfiller(ingest, journal_path, enabled=config.history, on_rows=on_history)
        self._sessions = Sessions(ingest, config.name, config.endpoint)
        self._acks = Acks()
        self._room = asyncio.Event()
        self._room.set()
        self._pumps = config.publish_requests  # lowered where the server takes fewer
        self._pumps_of = 0  # StartTime of the run of the server that said so
        self._by_subscription: dict[int, str] = {}
        self._resuming: set[str] = set()
        self._resumed = asyncio.Event()
        self._work: asyncio.Queue[tuple[str, Effect | _Delete]] = asyncio.Queue()
        self._heard: dict[str, float] = {}
        self._silence_s: dict[str, float] = {}  # by stream, longer than which it must not be quiet
        self._mute: set[str] = set()  # taken up again, and nothing heard since
        self._vanished: set[int] = set()  # tags that the server had and has no more, to go Bad
        self._deadly: Counter[tuple[int, int]] = Counter()  # connections lost while a message was fetched again
        self._refusals = 0  # resumes in a row that failed on an open channel
        self._first = True
        self._models = Models(config, ingest, self._fact)
        self._refused: set[int] = set()  # tags that the server will not monitor
        self.auditor = Auditor(config.name, config.audit_s, ingest)

    async def run(self) -> None:
        """Keep the source subscribed until cancelled."""
        refusals = 0
        with contextlib.suppress(MirrorError):  # it is read again once there is a connection
            await self._recall()
        while True:
            began = time.monotonic()
            try:
                await self._session()
            except (Unavailable, ConfigError, Corrupt) as error:
                refusals = await self._again(error, refusals, time.monotonic() - began)
            except AssertionError:
                raise  # our own state is wrong: better to begin anew than to go on
            except Exception as error:  # whatever one server provokes, the others' sources live on
                odd = Corrupt(f"{type(error).__name__}: {error}", hint="please report this, with the server's product")
                refusals = await self._again(odd, refusals, time.monotonic() - began)

    async def _recall(self) -> None:
        """Tell which tags the source had, so that what was said of them is not left standing while it is away."""
        model = await self._models.recall()
        if model is not None:
            find = self._ingest.journal.tags.find
            self.handles = {h for identity in model.identities() if (h := find(identity)) is not None}
            self._on_tags()

    async def _again(self, error: MirrorError, refusals: int, lasted_s: float) -> int:
        """Tell what ended the session, wait, and return how often the server has refused in a row."""
        self._lost(error)
        if isinstance(error, Gone):
            await self._sessions.forget(error.streams)
        if not answered(error) or lasted_s > STEADY_S:
            refusals = 0
        await asyncio.sleep(pause_s(error, refusals) * random.uniform(0.7, 1.0))
        return refusals + answered(error)

    def room(self) -> None:
        """Look again whether the ingest takes more; call it in the event loop."""
        if self._ingest.full:
            self._room.clear()
        else:
            self._room.set()

    def durable(self, stream: str, effect: Effect) -> None:
        """Take an effect whose transaction is on disk; call it in the event loop."""
        match effect:
            case sampler.Acknowledge():
                self._acks.durable([(effect.subscription, effect.sequence)])
            case sampler.Resumed():
                self._resuming.discard(stream)
                if not self._resuming:
                    self._resumed.set()
            case sampler.Backfill():
                self._backfiller.add(stream, effect.gap)
            case _:
                self._work.put_nowait((stream, effect))

    # One session

    async def _session(self) -> None:
        """Connect, subscribe, and pump until something breaks; always ends with an error."""
        saved = await self._sessions.load()
        connection, alive, how = await self._connect(saved)
        kept = how == "resumed"  # else nobody could take the session up again, and the server would keep it in vain
        try:
            facts = await connection.server_facts()
            self.status.namespaces = facts.namespaces
            if how == "resumed" and not same_run(facts, saved):
                raise Gone("the server is not the one, or not in the run, that gave us the session", None)
            model, cached = await self._models.of(connection, facts)
            self._use(model, saved, alive)
            streams = await self._subscribe(connection, facts, saved, alive)
            await self._sessions.save(facts, connection.session_secret(), streams)
            kept = True
            await self._backfiller.begin(self.streams)
            self._connected(facts, how)
            backfill = self._backfiller.run(connection, self.streams)
            tasks = [backfill, self._worker(connection), self._fetched_then_pump(connection), self._watch()]
            if cached:
                tasks.append(self._browse_again(connection, facts))
            tasks.append(self._audited(connection))
            await first_failure(tasks)
        finally:
            await connection.close(keep_session=kept)

    async def _audited(self, connection: Connection) -> None:
        """Compare tags with their devices, once everything that the server had kept is here."""
        await self._resumed.wait()
        await self.auditor.run(connection, self.streams, self._monitored)

    def _monitored(self, stream: str) -> set[int]:
        """Return the tags of a stream that the server monitors, as far as this process knows."""
        find = self._ingest.journal.tags.find
        handles = {find(item.tag.identity) for item in self.streams[stream].items}
        return {handle for handle in handles if handle is not None} - self._refused

    def _connection(self) -> Connection:
        return Connection(self.config, password=self._password)

    async def _connect(self, saved: Saved | None) -> tuple[Connection, dict[int, tuple[int, ...] | None], str]:
        """Return a connection, the subscriptions it still has with what is available, and how it was made."""
        if saved is not None and self._refusals < RESUME_REFUSALS_MAX:
            connection = self._connection()
            try:
                await connection.resume(saved.secret)
                self._refusals = 0
                return connection, {held.id: None for held in saved.streams.values()}, "resumed"
            except (Refused, Corrupt):
                await connection.close(keep_session=True)
            except BaseException:
                self._refusals += connection.opened  # some servers hang up on a session that they do not know
                await connection.close(keep_session=True)
                raise
        self._refusals = 0
        connection = self._connection()
        try:
            await connection.connect()
            alive = await self._transfer(connection, saved)
        except BaseException:
            await connection.close()
            raise
        return connection, alive, "transferred" if alive else "created"

    async def _transfer(self, connection: Connection, saved: Saved | None) -> dict[int, tuple[int, ...] | None]:
        """Take former subscriptions into a new session, where the server lets us.

        In another run of the server the same ids may be somebody else's subscriptions.
        """
        if saved is None or not saved.streams or not same_run(await connection.server_facts(), saved):
            return {}
        return dict(await connection.transfer([held.id for held in saved.streams.values()]))

    async def _browse_again(self, connection: Connection, facts: ServerFacts) -> None:
        """A cached model was used: see whether the server still has just these tags."""
        await self._resumed.wait()
        before = self._models.known
        assert before is not None
        after = await self._models.browse(connection, facts, before.roots)
        if after.tags != before.tags:
            self._on_tags()
            gone = before.identities() - after.identities()
            find = self._ingest.journal.tags.find
            self._vanished |= {handle for identity in gone if (handle := find(identity)) is not None}
            if after.identities() != before.identities():
                raise Unavailable("the server's nodes have changed; subscribing to the new set")
        await asyncio.Event().wait()

    def _use(self, model: Model, saved: Saved | None, alive: Collection[int]) -> None:
        """Make plans of the tags; streams that are no longer planned and still subscribed retire."""
        journal = self._ingest.journal
        self.streams = {p.id: p for p in plans.plan(self.config, model.uri, model.tags)}
        for stream in self.streams:
            owner = self._ingest.owned(stream, self.config.name)
            if owner != self.config.name:
                what = (
                    f"sources {owner!r} and {self.config.name!r} are the same server, {model.uri}, with the same tags"
                )
                raise ConfigError(what, hint="leave one of them out; two addresses of one server are not two sources")
        former = saved.streams.items() if saved is not None else ()
        self.retiring = {s: LAST_RESPONSES for s, held in former if s not in self.streams and held.id in alive}
        handles = [journal.tags.find(i.tag.identity) for p in self.streams.values() for i in p.items]
        self.handles = {h for h in handles if h is not None}
        self.status.uri, self.status.tags = model.uri, len(self.handles)
        self._on_tags()

    async def _subscribe(
        self, connection: Connection, facts: ServerFacts, saved: Saved | None, alive: dict[int, tuple[int, ...] | None]
    ) -> dict[str, Held]:
        """Take over or create each stream's subscription, and tell its machine."""
        streams: dict[str, Held] = {}
        reason = Reason.GATEWAY_DOWN if self._first else Reason.DISCONNECTED
        self._by_subscription.clear()
        self._acks.reconnected()
        if facts.start_ticks != self._pumps_of:
            self._pumps, self._pumps_of = self.config.publish_requests, facts.start_ticks
        self._resuming, self._work = set(), asyncio.Queue()
        self.status.refused = {}
        self._mute = set()
        former = dict(saved.streams) if saved is not None else {}
        for p in self.streams.values():
            held = former.get(p.id)
            await self._machine(p.id)
            if held is not None and held.id in alive:
                resumed, available = True, alive.pop(held.id)
            else:
                held, resumed, available = await self._create(connection, p, facts), False, None
            streams[p.id] = held
            self._take_up(p.id, held, sampler.Subscribed(held.id, facts.start_ticks, resumed, reason, available))
            log("stream.resumed" if resumed else "stream.subscribed", stream=p.id, tags=len(p.items))
        for stream in list(self.retiring):  # after the new ones exist, so that nothing falls between the two
            held, position = former[stream], await self._machine(stream)
            if position is not None and position.subscription == held.id:
                streams[stream], available = held, alive.pop(held.id)
                self._take_up(stream, held, sampler.Subscribed(held.id, facts.start_ticks, True, reason, available))
            else:
                del self.retiring[stream]
        for left in [*alive, *(saved.dead if saved is not None else ())]:
            with contextlib.suppress(Refused):
                await connection.delete_subscription(left)
        if self._vanished and self.streams:
            self._ingest.refused(next(iter(self.streams)), dict.fromkeys(self._vanished, BAD_NODE_ID_UNKNOWN), 0)
            self._vanished = set()
        self._first = False
        self._resumed.clear()
        if not self._resuming:
            self._resumed.set()
        return streams

    async def _machine(self, stream: str) -> sampler.Position | None:
        """See that a stream has a machine; return where that stands once all that has arrived is carried out."""
        if self._ingest.sampler(stream) is None:
            position, tags = read_position(await self._fact(position_name(stream))), self._ingest.journal.tags
            handles = plans.handles(self.streams.get(stream), self.status.uri, tags)
            self._ingest.add_stream(stream, position, tags.identities.__getitem__, handles)
        machine = self._ingest.sampler(stream)
        assert machine is not None
        await self._call(lambda _journal: None)
        return machine.position

    def _take_up(self, stream: str, held: Held, event: sampler.Subscribed) -> None:
        self._by_subscription[held.id] = stream
        self._heard[stream] = time.monotonic()
        self._silence_s[stream] = SILENCE_FACTOR * held.keep_alive_count * held.publishing_ms / 1000 + 1.0
        if event.resumed:
            self._resuming.add(stream)
            self._mute.add(stream)
        self._ingest.event(stream, event)

    async def _create(self, connection: Connection, p: Plan, facts: ServerFacts) -> Held:
        """Create a subscription with its items; what the server refuses goes Bad and is reported."""
        tags = self._ingest.journal.tags
        items = []
        for item in p.items:
            handle = tags.find(item.tag.identity)
            assert handle is not None, "every planned tag has been added to the journal"
            items.append(MonitoredItem(handle, item.tag, item.sampling_ms, item.queue_size))
        made = await connection.subscribe(
            p.publishing_ms, items, keep_alive_count=p.keep_alive_count(),
            lifetime_count=p.lifetime_count(self.config.session_timeout_s),
        )  # fmt: skip
        if not made.items:
            await connection.delete_subscription(made.id)
            raise ConfigError(f"source {self.config.name!r}: the server monitors none of the {len(items)} tags")
        queue_size = made.queue_size_min
        detectable = queue_size > 1 and facts.flags_overflow
        stream = Stream(p.id, facts.uri, Axis.PUBLISH, made.publishing_ms, queue_size, detectable)

        def keep(journal: Journal) -> None:
            journal.save_stream(stream)

        await self._call(keep)
        self._acks.forget(made.id)  # in a new run of the server, ids and numbers begin anew
        if made.refused:
            self._refuse(p, made.refused, made.response_ticks)
        return Held(made.id, made.publishing_ms, made.keep_alive_count)

    def _refuse(self, p: Plan, refused: dict[int, int], ticks: int) -> None:
        """The server will not monitor some nodes: their state is Bad, with the server's own status."""
        tags = self._ingest.journal.tags
        self._refused |= refused.keys()
        self.status.refused |= {tags[h].path or tags[h].node: f"0x{code:08X}" for h, code in refused.items()}
        self._ingest.refused(p.id, refused, ticks)
        log("stream.items_refused", stream=p.id, tags=len(refused), first=next(iter(self.status.refused)))

    # Pumps

    async def _fetched_then_pump(self, connection: Connection) -> None:
        """Publish only when nothing more of the time before can be had."""
        while not self._resumed.is_set():
            fetched = self.status.fetched
            try:
                async with asyncio.timeout(RESUME_S):  # wait_for may take a cancellation for its own
                    await self._resumed.wait()
            except TimeoutError as error:
                if self.status.fetched == fetched:
                    raise Unavailable("the server did not send its kept messages again in time") from error
        now = time.monotonic()
        self._heard = dict.fromkeys(self._heard, now)
        await first_failure([self._pump(connection, number) for number in range(self._pumps)])

    async def _pump(self, connection: Connection, number: int) -> None:
        """Keep one Publish request at the server, unless there is no room for its answer."""
        while number < self._pumps:
            await self._room.wait()
            acks = self._acks.take()
            self.status.publishing += 1
            try:
                message = read_publish(await connection.publish(acks))
                if message.service_result & BAD:
                    raise Refused("Publish", message.service_result)
            except Refused as refused:
                self._acks.put_back(acks)
                self._publish_refused(refused)
                if self.status.publishing == 1:  # nobody else waits at the server: do not ask in a hot loop
                    await asyncio.sleep(REFUSED_S)
                continue
            except BaseException:
                self._acks.put_back(acks)
                raise
            finally:
                self.status.publishing -= 1
            self._take(message)
            if self._ingest.full:
                self._room.clear()
        await asyncio.Event().wait()

    def _publish_refused(self, refused: Refused) -> None:
        """A Publish request was answered with an error: fewer requests, again, or a new connection."""
        if refused.name == "BadTooManyPublishRequests":
            self._pumps = max(1, self._pumps - 1)
        elif refused.name in NO_SUBSCRIPTION:
            raise Gone(f"Publish was refused: {refused.name}", set(self._by_subscription.values())) from refused
        elif refused.name not in ("BadTimeout", "BadRequestTimeout"):
            raise Unavailable(f"Publish was refused: {refused.name}") from refused

    def _take(self, message: Message) -> None:
        stream = self._by_subscription.get(message.subscription)
        if stream is None:
            return  # not ours (yet): neither stored nor acknowledged
        self._acks.available(message.subscription, message.available)
        self._heard[stream] = self.status.last_message = time.monotonic()
        self.pace.heard(stream, self.status.last_message)
        self._mute.discard(stream)
        if message.status_change is not None:
            raise Gone(f"the server ended the subscription: {status_name(message.status_change)}", {stream})
        self._ingest.message(stream, message)
        if self.retiring.get(stream) and not message.more:
            self.retiring[stream] -= 1
            if not self.retiring[stream]:
                self._work.put_nowait((stream, _Delete(message.subscription)))

    async def _watch(self) -> None:
        """Suspect a subscription that is silent for longer than its keep-alive allows.

        A gateway that was frozen itself has heard nothing either: that says nothing about the server.
        """
        looked = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            before, looked = looked, time.monotonic()
            if looked - before > 2 * WATCH_S or not self._resumed.is_set() or not self._room.is_set():
                self._heard = dict.fromkeys(self._heard, looked)
                continue
            for stream, heard in self._heard.items():
                if stream not in self.streams:
                    continue
                limit = self._silence_s[stream]
                if time.monotonic() - heard > limit:
                    what = f"stream {stream} was silent for more than {limit:.1f} s"
                    raise Gone(what, {stream}) if stream in self._mute else Unavailable(what)

    # What machines ask for

    async def _worker(self, connection: Connection) -> None:
        """Carry out what the machines ask of the server, in order."""
        while True:
            stream, effect = await self._work.get()
            if isinstance(effect, sampler.Republish):
                await self._republish(connection, stream, effect)
            elif isinstance(effect, _Delete):
                await self._retire(connection, stream, effect.subscription)

    async def _retire(self, connection: Connection, stream: str, subscription: int) -> None:
        """Its successors deliver: give up the subscription of a stream that is no longer planned."""
        del self._by_subscription[subscription]
        await self._sessions.forget({stream})
        with contextlib.suppress(Refused):
            await connection.delete_subscription(subscription)
        self._ingest.event(stream, sampler.Stopped())
        log("stream.retired", stream=stream)

    async def _republish(self, connection: Connection, stream: str, effect: sampler.Republish) -> None:
        if effect.subscription not in self._by_subscription:
            return  # asked of a session that is gone
        asked = (effect.subscription, effect.sequence)
        if self._deadly[asked] >= DEADLY_MAX:  # each answer to it has ended the connection, as one that is too large
            self._ingest.event(stream, sampler.NotAvailable(effect.sequence))
            return
        try:
            message = await self._fetch(connection, effect)
        except Corrupt as error:
            log("message.undecodable", stream=stream, sequence=effect.sequence, error=str(error))
            message = None  # asked for again it would be the same: its loss is declared
        except Refused as refused:
            if refused.name in NO_SUBSCRIPTION:
                raise Gone(f"Republish was refused: {refused.name}", {stream}) from refused
            if refused.name not in NOT_AVAILABLE:
                raise Unavailable(f"Republish was refused: {refused.name}") from refused
            message = None
        except Unavailable:
            self._deadly[asked] += 1
            raise
        self._deadly.pop(asked, None)
        self.status.fetched += 1
        if message is None:
            self._ingest.event(stream, sampler.NotAvailable(effect.sequence))
        else:
            self._ingest.message(stream, message, republished=True)

    async def _fetch(self, connection: Connection, effect: sampler.Republish) -> Message:
        """Ask for a message again; a server that is busy for a moment is asked once more."""
        for wait_s in REPUBLISH_AGAIN_S:
            try:
                return read_republish(await connection.republish(effect.subscription, effect.sequence))
            except Refused as refused:
                if refused.name in (*NO_SUBSCRIPTION, *NOT_AVAILABLE):
                    raise
                await asyncio.sleep(wait_s)
        return read_republish(await connection.republish(effect.subscription, effect.sequence))

    async def _fact(self, name: str) -> bytes | None:
        def read() -> bytes | None:
            reader = JournalReader.open(self._journal_path)
            try:
                return reader.fact(name)
            finally:
                reader.close()

        return await asyncio.to_thread(read)

    # States

    def _connected(self, facts: ServerFacts, how: str) -> None:
        self.status.connected, self.status.how = True, how
        self.status.since = time.time()
        self.status.connects += 1
        self.status.last_error = ""
        log("source.connected", source=self.config.name, how=how, tags=self.status.tags)
        self._on_state(self, True)
        del facts

    def _lost(self, error: MirrorError) -> None:
        before, self.status.last_error = self.status.last_error, str(error)
        if self.status.connected:
            self.status.connected = False
            self.status.since = time.time()
            log("source.lost", source=self.config.name, error=str(error))
            self._on_state(self, False)
        elif before != str(error):  # said once, however often it is tried
            log("source.refused", source=self.config.name, error=str(error), hint=error.hint)

    async def _call(self, work: Callable[[Journal], T]) -> T:
        """Run work in the ingest thread's next transaction and wait until it is durable."""
        return await asyncio.wrap_future(self._ingest.call(work))
