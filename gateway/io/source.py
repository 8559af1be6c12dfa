"""One OPC UA server: connect, take the former subscription up again, pump, and start over when it breaks.

The order that loses least: take the former session up again; failing that, transfer its subscriptions
into a new session; failing that, subscribe anew, and the sampler declares the gap. Before the first
Publish everything is fetched again that the server still holds. From then on requests are always waiting at
the server (`gateway.io.pump`).

What it does not do: decide what is missing (`gateway.sampler`), or store anything (`gateway.io.ingest`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from gateway import plan as plans
from gateway import sampler
from gateway.config import Source
from gateway.decode import Message
from gateway.io import trustlist
from gateway.io.attempts import STEADY_S, answered, first_failure, pause_s
from gateway.io.auditor import Auditor
from gateway.io.backfill import Backfiller
from gateway.io.canary import Canaries
from gateway.io.ingest import Ingest, position_name, read_position
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.models import Model, Models
from gateway.io.opcua import Connection
from gateway.io.pump import Pumps
from gateway.io.reader import JournalReader
from gateway.io.refetch import Refetch
from gateway.io.refusals import Refusals
from gateway.io.sessions import Gone, Held, Saved, Sessions, same_run
from gateway.pace import Pace
from gateway.plan import Plan
from gateway.sampler import Effect
from gateway.server import Refused, ServerFacts
from mirror.batch import Batch
from mirror.coverage import Axis, Reason, Stream
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable

T = TypeVar("T")

RESUME_S = 30.0  # within so long the server answers about one message of those that are fetched first
RESUME_REFUSALS_MAX = 2  # then the session is given up; one that is merely out of reach is not
LAST_RESPONSES = 2  # of a retiring stream: the first may have been made before its successor was
BAD_NODE_ID_UNKNOWN = 0x80340000


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


class SourceRunner:
    """Keeps one source subscribed.

    Args:
        config: The server.
        ingest: Takes messages and events.
        journal_path: For reading what is held beside a gap.
        password: Of the configured user, or empty; asked for at each connection.
        on_tags: Called in the event loop when the tags of the source are known or have changed.
        on_state: Called in the event loop when the source is connected or lost.
        on_history: Called in the event loop with rows from the server's history, once they are durable.
        clock: Monotonic seconds.
        peers: Whether the group has other replicas.
    """

    def __init__(
        self,
        config: Source,
        ingest: Ingest,
        *,
        journal_path: Path,
        password: Callable[[], str],
        on_tags: Callable[[], None],
        on_state: Callable[[SourceRunner, bool], None],
        on_history: Callable[[Batch], None],
        clock: Callable[[], float] = time.monotonic,
        peers: bool = False,
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
        self._backfiller = Backfiller(ingest, journal_path, enabled=config.history, on_rows=on_history, peers=peers)
        self._sessions = Sessions(ingest, config.name, config.endpoint)
        self._clock = clock
        self._pumps = Pumps(
            config.publish_requests, ingest, on_message=self._heard, on_stranger=self._stranger, clock=clock
        )
        self._refetch = Refetch(ingest)
        self._refusals = Refusals(ingest)
        self._resuming: set[str] = set()
        self._resumed = asyncio.Event()
        self._work: asyncio.Queue[tuple[str, Effect | _Delete]] = asyncio.Queue()
        self._failed_resumes = 0  # in a row, on an open channel
        self._first = True
        self._models = Models(config, ingest, self._fact)
        self.canaries = Canaries(config.name, ingest, clock=clock)
        self.auditor = Auditor(config.name, config.audit_s, ingest)

    async def run(self) -> None:
        """Keep the source subscribed until cancelled."""
        refusals = 0
        with contextlib.suppress(MirrorError):  # it is read again once there is a connection
            await self._recall()
        while True:
            began = self._clock()
            try:
                await self._session()
            except (Unavailable, ConfigError, Corrupt) as error:
                refusals = await self._again(error, refusals, self._clock() - began)
            except AssertionError:
                raise  # our own state is wrong: better to begin anew than to go on
            except Exception as error:  # whatever one server provokes, the others' sources live on
                odd = Corrupt(f"{type(error).__name__}: {error}", hint="please report this, with the server's product")
                refusals = await self._again(odd, refusals, self._clock() - began)

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
            for stream in error.streams or () if error.is_theirs else ():
                log("stream.taken_over", source=self.config.name, stream=stream)
            with contextlib.suppress(MirrorError):  # what keeps it from being written is met again, and told, at once
                await self._sessions.forget(error.streams, is_theirs=error.is_theirs)
        if not answered(error) or lasted_s > STEADY_S:
            refusals = 0
        await asyncio.sleep(pause_s(error, refusals) * random.uniform(0.7, 1.0))
        return refusals + answered(error)

    def room(self) -> None:
        """Look again whether the ingest takes more; call it in the event loop."""
        self._pumps.room()

    def durable(self, stream: str, effect: Effect) -> None:
        """Take an effect whose transaction is on disk; call it in the event loop."""
        match effect:
            case sampler.Acknowledge():
                self._pumps.durable(effect.subscription, effect.sequence)
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
            if how == "transferred" and saved is not None:  # closing this session would end what it has now
                ours = {stream: held for stream, held in saved.streams.items() if held.id in alive}
                await self._sessions.save(facts, connection.session_secret(), ours)
                kept = True
            model, cached = await self._models.of(connection, facts)
            self._use(model, saved, alive)
            streams = await self._subscribe(connection, facts, saved, alive)
            await self._sessions.save(facts, connection.session_secret(), streams)
            kept = True
            await self._backfiller.begin(self.streams)
            tasks = [
                self._backfiller.run(connection, self.streams), self._worker(connection),
                self._fetched_then_pump(connection, how), self._pumps.watch(self._resumed.is_set),
                self._refusals.retry(connection, self.streams, partial(self._keep, facts)), self._audited(connection),
                self.canaries.watch(self.streams, self._resumed.is_set), self._trusted(connection),
            ]  # fmt: skip
            if cached:
                tasks.append(self._browse_again(connection, facts))
            await first_failure(tasks)
        finally:
            await connection.close(keep_session=kept)

    async def _trusted(self, connection: Connection) -> None:
        """End the session when the server's certificate is taken out of the trust folder, or revoked there."""
        if self.config.security == "none":
            await asyncio.Event().wait()
        await trustlist.watch(Path(self.config.trust_dir), connection.check_trust)

    async def _audited(self, connection: Connection) -> None:
        """Compare tags with their devices, once everything that the server had kept is here."""
        await self._resumed.wait()
        await self.auditor.run(connection, self.streams, self._monitored)

    def _monitored(self, stream: str) -> set[int]:
        """Return the tags of a stream that the server monitors."""
        tags = self._ingest.journal.tags
        return set(plans.handles(self.streams[stream], self.status.uri, tags)) - self._refusals.handles

    def _connection(self) -> Connection:
        return Connection(self.config, password=self._password())

    async def _connect(self, saved: Saved | None) -> tuple[Connection, dict[int, tuple[int, ...] | None], str]:
        """Return a connection, the subscriptions it still has with what is available, and how it was made."""
        if saved is not None and self._failed_resumes < RESUME_REFUSALS_MAX:
            connection = self._connection()
            try:
                await connection.resume(saved.secret)
                self._failed_resumes = 0
                return connection, {held.id: None for held in saved.streams.values()}, "resumed"
            except (Refused, Corrupt):
                await connection.close(keep_session=True)
            except BaseException:
                self._failed_resumes += connection.opened  # some servers hang up on a session that they do not know
                await connection.close(keep_session=True)
                raise
        self._failed_resumes = 0
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
        self._vanish(before.identities() - after.identities())  # first: whoever knows the new model cannot tell
        await self._models.keep(connection, after)
        if after.tags != before.tags:
            self._on_tags()
            if after.identities() != before.identities():
                raise Unavailable("the server's nodes have changed; subscribing to the new set")
        await asyncio.Event().wait()

    def _vanish(self, identities: Collection[str]) -> None:
        """Tags that the server had and has no more go Bad."""
        find = self._ingest.journal.tags.find
        for stream, asked in self.streams.items():
            gone = [find(item.tag.identity) for item in asked.items if item.tag.identity in identities]
            if gone:
                self._ingest.refused(stream, {h: BAD_NODE_ID_UNKNOWN for h in gone if h is not None}, 0)

    def _use(self, model: Model, saved: Saved | None, alive: Collection[int]) -> None:
        """Make plans of the tags; streams that are no longer planned and still subscribed retire."""
        journal = self._ingest.journal
        planned = {p.id: p for p in plans.plan(self.config, model.uri, model.tags)}
        for stream in planned:
            owner = self._ingest.owned(stream, self.config.name)
            if owner != self.config.name:
                self.streams, self.retiring, self.handles = {}, {}, set()  # they are the owner's
                self._on_tags()
                what = (
                    f"sources {owner!r} and {self.config.name!r} are the same server, {model.uri}, with the same tags"
                )
                raise ConfigError(what, hint="leave one of them out; two addresses of one server are not two sources")
        self.streams = planned
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
        self._pumps.begin(facts.start_ticks)
        self._refusals.held = {}
        self._resuming, self._work = set(), asyncio.Queue()
        former = dict(saved.streams) if saved is not None else {}
        for p in self.streams.values():
            held = former.get(p.id)
            await self._machine(p.id)
            if held is not None and held.id in alive:
                resumed, available = True, alive.pop(held.id)
                await self._refusals.resumed(p.id, held)
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
        for stream in former.keys() - streams.keys():  # of a former configuration, and over
            await self._machine(stream)
            self._ingest.event(stream, sampler.Stopped())
        for left in [*alive, *(saved.dead if saved is not None else ())]:
            with contextlib.suppress(Refused):
                await connection.delete_subscription(left)
        self.status.refused = self._refusals.told()
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
        if event.resumed:
            self._resuming.add(stream)
        self._ingest.event(stream, event)
        self._pumps.take_up(stream, held, watched=stream in self.streams, resumed=event.resumed)

    async def _create(self, connection: Connection, p: Plan, facts: ServerFacts) -> Held:
        """Create a subscription with its items."""
        items = plans.monitored_items(p, self._ingest.journal.tags)
        made = await connection.subscribe(
            p.publishing_ms, items, keep_alive_count=p.keep_alive_count(),
            lifetime_count=p.lifetime_count(self.config.session_timeout_s),
        )  # fmt: skip
        if not made.items:
            await connection.delete_subscription(made.id)
            raise ConfigError(f"source {self.config.name!r}: the server monitors none of the {len(items)} tags")
        held = Held(
            made.id, made.publishing_ms, made.keep_alive_count, made.queue_size_min, made.refused, made.sampling_ms_max
        )
        await self._call(partial(_save_stream, p.id, held, facts))
        await self.canaries.put(connection, made.id)
        self._pumps.made(made.id)
        self._refetch.made(made.id)
        self._refusals.made(p.id, held, made.response_ticks)
        return held

    async def _keep(self, facts: ServerFacts, stream: str, held: Held) -> None:
        """Make durable what has become of a subscription."""
        await self._call(partial(_save_stream, stream, held, facts))
        await self._sessions.replace(stream, held)
        self.status.refused = self._refusals.told()

    # Messages

    async def _fetched_then_pump(self, connection: Connection, how: str) -> None:
        """Publish only when nothing more of the time before can be had; until then the source is not live."""
        while not self._resumed.is_set():
            answers = self._refetch.answered
            try:
                async with asyncio.timeout(RESUME_S):  # wait_for may take a cancellation for its own
                    await self._resumed.wait()
            except TimeoutError as error:
                if self._refetch.answered == answers:
                    raise Unavailable("the server did not send its kept messages again in time") from error
        self._connected(how)
        await self._pumps.run(connection)

    def _heard(self, stream: str, message: Message) -> None:
        """A message of a stream has come."""
        self.status.last_message = time.monotonic()
        self.pace.heard(stream, self.status.last_message)
        if self.retiring.get(stream) and not message.more:
            self.retiring[stream] -= 1
            if not self.retiring[stream]:
                self._work.put_nowait((stream, _Delete(message.subscription)))

    def _stranger(self, subscription: int) -> None:
        """A subscription sends that nobody knows: left behind in our session by a life that ended too early."""
        self._work.put_nowait(("", _Delete(subscription)))

    # What machines ask for

    async def _worker(self, connection: Connection) -> None:
        """Carry out what the machines ask of the server, in order."""
        while True:
            stream, effect = await self._work.get()
            if isinstance(effect, sampler.Republish):
                if effect.subscription in self._pumps.subscriptions:  # else it was asked of a session that is gone
                    await self._refetch.fetch(connection, stream, effect)
            elif isinstance(effect, _Delete):
                await self._retire(connection, stream, effect.subscription)

    async def _retire(self, connection: Connection, stream: str, subscription: int) -> None:
        """Give up the subscription of a stream that is no longer planned and whose successors deliver, or of none."""
        self._pumps.drop(subscription)
        if stream:
            await self._sessions.forget({stream})
        with contextlib.suppress(Refused):
            await connection.delete_subscription(subscription)
        if stream:
            self._ingest.event(stream, sampler.Stopped())
            log("stream.retired", stream=stream)
        else:
            log("stream.unknown", source=self.config.name, subscription=subscription)

    async def _fact(self, name: str) -> bytes | None:
        def read() -> bytes | None:
            reader = JournalReader.open(self._journal_path)
            try:
                return reader.fact(name)
            finally:
                reader.close()

        return await asyncio.to_thread(read)

    # States

    def _connected(self, how: str) -> None:
        self.status.connected, self.status.how = True, how
        self.status.since = time.monotonic()
        self.status.connects += 1
        self.status.last_error = ""
        log("source.connected", source=self.config.name, how=how, tags=self.status.tags)
        self._on_state(self, True)

    def _lost(self, error: MirrorError) -> None:
        before, self.status.last_error = self.status.last_error, str(error)
        if self.status.connected:
            self.status.connected = False
            self.status.since = time.monotonic()
            log("source.lost", source=self.config.name, error=str(error))
            self._on_state(self, False)
        elif before != str(error):  # said once, however often it is tried
            log("source.refused", source=self.config.name, error=str(error), hint=error.hint)

    async def _call(self, work: Callable[[Journal], T]) -> T:
        """Run work in the ingest thread's next transaction and wait until it is durable."""
        return await asyncio.wrap_future(self._ingest.call(work))


def _save_stream(stream: str, held: Held, facts: ServerFacts, journal: Journal) -> None:
    """Record what the server made of a stream's subscription; runs in the ingest thread."""
    detectable = held.queue_size > 1 and facts.flags_overflow
    journal.save_stream(
        Stream(stream, facts.uri, Axis.PUBLISH, held.publishing_ms, held.queue_size, detectable, held.sampling_ms)
    )
