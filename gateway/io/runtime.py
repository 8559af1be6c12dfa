"""The gateway as a process: open the journal, start the threads, keep the sources subscribed, stop in order.

Threads, and what each one owns: the event loop (sources, HTTP), `ingest` (samplers, the journal's writer),
`push` (the log in the bucket), `mqtt` (the broker). They meet only in queues with limits; what one of them
waits for never stops another. The order of stopping is the order of the flow: stop asking, store what has
arrived, leave the log and the broker, close the file.

A session is not closed on the way out: whoever starts next takes its subscriptions up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from gateway import sampler
from gateway.config import Config
from gateway.failover import Role
from gateway.formats.names import Names, Options, Place
from gateway.io.acting import Acting
from gateway.io.clock import clock
from gateway.io.control import Control
from gateway.io.http import HttpServer
from gateway.io.ingest import Durable, Ingest
from gateway.io.journal import Journal
from gateway.io.keys import signing_key
from gateway.io.knock import listens
from gateway.io.log import log
from gateway.io.mqtt import Broker
from gateway.io.opening import log_layout, open_register, open_store, read_secret, secret_files
from gateway.io.publisher import Publisher
from gateway.io.reader import JournalReader
from gateway.io.source import SourceRunner
from gateway.io.supervise import Announcer
from gateway.io.survey import Survey
from gateway.io.topics import FACT as TOPICS
from gateway.io.topics import Topics
from gateway.io.traffic import Counted, Traffic
from gateway.io.upkeep import Upkeep
from gateway.sync import Policy, Status
from mirror.batch import Batch
from mirror.coverage import Pushed
from mirror.errors import MirrorError, Unavailable
from mirror.lease import Record

if TYPE_CHECKING:  # pyarrow and boto3 take a quarter of a second: the devices do not wait for them
    from gateway.io.push import Pusher

JOURNAL = "mirror.db"
LEAVES = frozenset({"online", "role", "health", "sync"})  # what is told of the gateway itself
TRIM_S = 60.0
PROCESS_FACT = "process"  # the incarnation that opened the journal last
CANCEL_AGAIN_S = 0.5
FIT_LOOK_S = 0.1
UNFIT_S = 5.0  # for so long a disk may refuse before another replica should act
PATIENCE_S = 15.0  # then a replica competes although not everything of it is well: a poor leader is better than none
SOURCES_LOOK_S = 0.01
SOURCES_FIRST_S = 1.0  # for so long the log in the bucket waits for the devices


class Gateway:
    """One running gateway.

    Args:
        config: Checked.

    Raises:
        ConfigError: The data directory cannot be used, or a file that a setting names cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        for setting, path in secret_files(config):  # before anything is written
            read_secret(path, setting)
        self.started = time.monotonic()
        self.path = Path(config.replica.data_dir) / JOURNAL
        self.journal = Journal.open(self.path, replica=config.replica.name)
        self.incarnation = secrets.token_hex(8)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ingest = Ingest(
            self.journal,
            replica=config.replica.name,
            commit_s=config.journal.commit_ms / 1000,
            inbox_bytes_max=config.journal.inbox_mib << 20,
            on_durable=self._durable,
            on_room=lambda: self._post(self._room),
        )
        self.sources = [
            SourceRunner(
                source, self.ingest, journal_path=self.path, password=partial(read_secret, source.password_file),
                on_tags=self._tags_changed, on_state=self._source_state, on_history=self._recovered,
                peers=bool(config.peer),
            )
            for source in config.source
        ]  # fmt: skip
        self._of_stream: dict[str, SourceRunner] = {}
        self._topics = Topics(self._fact(TOPICS), self.ingest.call)
        self.acting = Acting(
            config, open_register(config), self.incarnation, self.journal.epoch()[0],
            lambda epoch: self.ingest.call(lambda journal: journal.save_epoch(epoch, self.incarnation)),
            Announcer.of(os.environ) or _nobody,
        )  # fmt: skip
        self.publisher = self._publisher() if config.mqtt.url else None
        self.traffic = Traffic()
        self.pusher: Pusher | None = None
        self._key = signing_key(self.path.parent) if config.sync.bucket else None
        self.push_since = time.monotonic()  # since when pushing has been in its present state
        self._push_state = ""
        self.stopping = False
        self.survey = Survey(self)
        self.control = Control(self.path.parent, self.acting.ask)
        self.http = None
        if config.http.listen:
            self.http = HttpServer(config.http, self.survey.figures, token=read_secret(config.http.token_file))

    async def run(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Mirror until `stop` is set.

        Raises:
            MirrorError: Something ended that must not end.
        """
        self._loop = asyncio.get_running_loop()
        self.ingest.start()
        tasks: list[asyncio.Task[None]] = []
        failed: Exception | None = None
        try:
            if self.http is not None:
                await self.http.start()  # first, so that it can tell why the rest waits
            await self.control.start()
            if not await self._can_write(stop):
                return
            if self.publisher is not None:
                self.publisher.start()
                self.acting.attach(publisher=self.publisher)
            self.acting.leading.start()
            log("gateway.started", replica=self.config.replica.name, epoch=self.epoch)
            tasks = [asyncio.create_task(source.run(), name=source.config.name) for source in self.sources]
            if self._key is not None:
                await self._sources_first(stop)
                self.pusher = await asyncio.to_thread(self._pusher, self._key)
                self.pusher.start()
                self.acting.attach(pusher=self.pusher)
            works = (self._trim(), self._guard(), self.survey.run(), self._stay_fit())
            tasks += [asyncio.create_task(work) for work in works]
            ready()
            stopping = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in done - {stopping}:
                task.result()
        except Exception as error:
            failed = error
            log("gateway.failed", error=str(error) or repr(error), hint=getattr(error, "hint", ""))
            raise
        finally:
            self.stopping = True
            await self.control.stop()
            await _end(tasks)
            if self.http is not None:
                await self.http.stop()
            await asyncio.to_thread(self._close)
            if failed is None:
                log("gateway.stopped", replica=self.config.replica.name)

    async def _can_write(self, stop: asyncio.Event) -> bool:
        """Wait until the journal takes something; tell False if that was never possible before it shall end."""
        saved = asyncio.wrap_future(self.ingest.call(lambda j: j.set_fact(PROCESS_FACT, self.incarnation.encode())))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([saved, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not saved.done():
            saved.cancel()
            return False
        saved.result()
        return True

    async def _sources_first(self, stop: asyncio.Event) -> None:
        """Wait until the devices are mirrored, but not for long: each tenth of a second counts there alone."""
        end = time.monotonic() + SOURCES_FIRST_S
        while time.monotonic() < end and not stop.is_set() and not all(s.status.connected for s in self.sources):
            await asyncio.sleep(SOURCES_LOOK_S)

    async def _stay_fit(self) -> None:
        """Say whether this replica may act: subscribe first, read the log second, compete for the lease last."""
        said: tuple[bool, str] | None = None
        began = time.monotonic()
        while True:
            told = self._fitness(time.monotonic() - began)
            if told != said:
                said = told
                self.acting.fit(ready=told[0], reason=told[1])
            await asyncio.sleep(FIT_LOOK_S)

    def _fitness(self, age_s: float) -> tuple[bool, str]:
        stalled = self.ingest.stalled_since
        if stalled is not None and time.monotonic() - stalled > UNFIT_S:
            return False, "its disk refuses"
        if self.config.arbiter.kind == "solo":
            return True, ""
        if self.pusher is not None and self.pusher.barred:
            return False, self.pusher.barred
        if self.acting.role is Role.LEADER or age_s > PATIENCE_S:
            return True, ""
        if not all(source.status.connected for source in self.sources):
            return False, "its sources are not live yet"
        if self._key is not None and (self.pusher is None or not self.pusher.has_read):
            return False, "it has not read the log yet"
        return True, ""

    def _close(self) -> None:
        self.acting.stop()
        if self.pusher is not None:
            self.pusher.stop()
        self.ingest.stop()
        if self.publisher is not None:
            self.publisher.stop()
        self.journal.close()

    # From other threads

    def _post(self, work: Callable[[], None]) -> None:
        """Run work in the event loop; nothing happens once that has ended."""
        with contextlib.suppress(RuntimeError):
            assert self._loop is not None
            self._loop.call_soon_threadsafe(work)

    def _durable(self, durable: Durable) -> None:
        """Runs in the ingest thread, after the fsync."""
        if self.publisher is not None:
            for _, batch in durable.batches:
                self.publisher.offer(batch)
        if durable.effects:
            self._post(partial(self._effects, durable.effects))

    # In the event loop

    def _effects(self, effects: list[tuple[str, sampler.Effect]]) -> None:
        for stream, effect in effects:
            source = self._of_stream.get(stream)
            if source is not None:
                source.durable(stream, effect)

    def _room(self) -> None:
        for source in self.sources:
            source.room()

    def _tags_changed(self) -> None:
        self._of_stream = {stream: source for source in self.sources for stream in (*source.streams, *source.retiring)}
        if self.publisher is not None:
            names, leaves = self._names(), LEAVES if self._key is not None else LEAVES - {"sync"}
            used = names.retained() | {names.gateway(self.config.group.name, leaf) for leaf in leaves}
            gone = self._topics.use(used, complete=all(source.handles for source in self.sources))
            self.publisher.use(names)
            self.publisher.take_back(gone)

    def _source_state(self, source: SourceRunner, connected: bool) -> None:
        if self.publisher is None or not source.status.uri:
            return
        if connected:
            resumed = source.status.how != "created"
            self.publisher.source_live(source.status.uri, resumed=resumed)
            if resumed:  # what has not changed since does not come again, and the broker may have forgotten it
                handles = np.array(sorted(source.handles), np.uint32)
                self.ingest.call(partial(_current, handles)).add_done_callback(self._offer)
        else:
            self.publisher.source_lost(source.status.uri)

    def _offer(self, rows: Future[Batch]) -> None:
        """Publish rows that were asked of the ingest thread; runs there."""
        if self.publisher is not None and rows.exception() is None:
            self.publisher.offer(rows.result())

    def _recovered(self, rows: Batch) -> None:
        """Publish rows that came from a server's history."""
        if self.publisher is not None:
            self.publisher.offer_history(rows)

    async def _trim(self) -> None:
        """Delete what the cloud has and nobody needs here any more, a little at a time."""
        upkeep = Upkeep(self.config, self.path, self.ingest, self._promise)
        while True:
            await asyncio.sleep(TRIM_S)
            await upkeep.turn()

    def _fact(self, name: str) -> bytes | None:
        reader = JournalReader.open(self.path)
        try:
            return reader.fact(name)
        finally:
            reader.close()

    def _promise(self) -> Pushed:
        """Return what the bucket has."""
        reader = JournalReader.open(self.path)
        try:
            return reader.settled()
        finally:
            reader.close()

    async def _guard(self) -> None:
        """End the process when the ingest thread has: without it nothing is mirrored."""
        while self.ingest.failure is None:
            await asyncio.sleep(0.2)
        failure = self.ingest.failure
        raise failure if isinstance(failure, MirrorError) else Unavailable(f"the ingest thread failed: {failure!r}")

    # Parts

    def _names(self) -> Names:
        config = self.config
        options = Options(
            config.mqtt.prefix, config.group.enterprise, config.group.site, config.mqtt.device_objects,
            config.mqtt.tag_topics, config.mqtt.payload, config.mqtt.shape,
        )  # fmt: skip
        places = {d.name: Place(d.area, d.line, tuple(d.tag_topics)) for source in config.source for d in source.device}
        handles = sorted(h for source in self.sources for h in source.handles)
        return Names([(h, self.journal.tags[h]) for h in handles], options, places, self.journal.structures)

    def _pusher(self, key: Ed25519PrivateKey) -> Pusher:
        from gateway.io.push import FOLLOW_S, Pusher  # noqa: PLC0415
        from gateway.io.sealing import Surroundings  # noqa: PLC0415
        from mirror.io.s3 import together  # noqa: PLC0415

        config = self.config
        store = open_store(config.sync)
        policy = Policy(
            config.sync.segment_rows, config.sync.segment_mib << 20, config.sync.interval_s.min,
            config.sync.interval_s.max, config.sync.requests_per_day,
        )  # fmt: skip
        layout = log_layout(config)
        return Pusher(
            [Counted(dialect, self.traffic, layout.probe) for dialect in store.dialects()],
            partial(JournalReader.open, self.path), self.ingest, layout=layout,
            replica=config.replica.name, key=key, policy=policy, incarnation=self.incarnation,
            arbiter=lambda: self.acting.register.arbiter, on_known=self.acting.known,
            on_overruled=self.acting.overruled, on_status=self._pushing, together=together,
            listens=partial(listens, store.address), members={p.name: p.public_key for p in config.peer},
            replaces=config.arbiter.replaces, follow_s=max(FOLLOW_S, config.arbiter.lease_s / 4),
            surroundings=lambda: Surroundings(self._namespaces(), clock()),
        )  # fmt: skip

    def _namespaces(self) -> dict[str, tuple[str, ...]]:
        """Runs in the push thread."""
        return {s.status.uri: s.status.namespaces for s in self.sources if s.status.uri}

    @property
    def role(self) -> str:
        """PRIMARY while this gateway acts, STANDBY while another one may."""
        return "STANDBY" if self.acting.role is Role.STANDBY else "PRIMARY"

    @property
    def stands_by(self) -> bool:
        """Whether another replica may act, and this one is ready to take over."""
        acting = self.acting
        is_fit = acting.leading.machine.ready and acting.trouble is None
        return acting.role is Role.STANDBY and is_fit and self.config.arbiter.kind != "solo"

    @property
    def epoch(self) -> int:
        """Under which this gateway acts, or acted last."""
        return self.acting.epoch

    def _pushing(self, status: Status) -> None:
        """Runs in the push thread."""
        if status.state != self._push_state:
            self._push_state, self.push_since = status.state, time.monotonic()

    def _publisher(self) -> Publisher:
        mqtt, group = self.config.mqtt, self.config.group
        broker = Broker.of(mqtt, f"edgemirror-{group.name}", group.name)
        return Publisher(
            broker, self._names(), on_event=_Told(self.acting.heard), may=self.acting.leading.may_act,
            on_emptied=lambda topics: self._post(partial(self._topics.emptied, topics)),
        )  # fmt: skip


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library on the way may take one cancellation for its own."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


def _current(handles: NDArray[np.uint32], journal: Journal) -> Batch:
    known = journal.state.handles
    return journal.state.batch(known[np.isin(known, handles)])


def _nobody(record: Record) -> None:
    """No parent issues certificates."""


class _Told:
    """Writes the publisher's events, each failure once however often it is met again."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        self._failure: tuple[str, object] | None = None
        self._heard = heard

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        self._heard(name)
        failure = (name, facts.get("error")) if name == "mqtt.connect_failed" else None
        if failure is None or failure != self._failure:
            log(name, **facts)
        self._failure = failure
