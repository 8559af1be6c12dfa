"""The gateway as a process, with the log in the reference store: who may act, and what ends it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import pytest

from demo.servers import free_ports
from gateway.__main__ import main
from gateway.cli import verify
from gateway.config import Config, Sync, parse
from gateway.io import opening, publisher, push, runtime
from gateway.io.journal import Journal
from gateway.io.keys import SIGNING_KEY
from gateway.io.models import Model, roots
from gateway.io.reader import JournalReader
from gateway.io.runtime import Gateway
from gateway.io.verified import FILE
from mirror.coverage import Coverage, Promise, Stream
from mirror.errors import Unavailable
from mirror.tags import Tag
from tests.gateway.boxes import FaultyStore
from tests.gateway.journals import STREAM, TIMELINE, doubles
from tests.gateway.opcua_server import make_certificate
from tests.gateway.test_publisher import numbers
from tests.live.servers import Mosquitto, until
from tests.live.subscriber import Subscriber
from tests.mirror.batches import table

WAIT_S = 20.0


class Bucket(FaultyStore):
    """The reference store, opened as the runtime opens a bucket."""

    address = "http://127.0.0.1:9"

    def dialects(self) -> list[Bucket]:
        return [self]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket()
    monkeypatch.setattr(runtime, "open_store", lambda config: bucket)
    return bucket


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as server:
        yield server


def config(folder: Path, **how: Any) -> Config:
    return parse(text(folder, **how))


def text(folder: Path, *, broker: int = 0, bucket: bool = True, source: str = "", more: str = "") -> str:
    """Return a configuration with one source that nobody serves."""
    text = f"""
        [group]
        name = "g"
        enterprise = "e"
        site = "s"
        [replica]
        name = "a"
        data_dir = "{folder}"
        [[source]]
        name = "p7"
        endpoint = "opc.tcp://127.0.0.1:{free_ports(1)[0]}"
        security = "none"
        {source}
        [[source.device]]
        name = "press7"
        browse = ["i=85"]
        [http]
        listen = "127.0.0.1:0"
        {more}
    """
    if bucket:
        text += '[sync]\nbucket = "s3://b/plant"\ninterval_s = { min = 0.05, max = 0.2 }\nrequests_per_day = 10000000\n'
    if broker:
        text += f'[mqtt]\nurl = "mqtt://127.0.0.1:{broker}"\n'
    return text


class Running:
    """A gateway in a thread with an event loop of its own; a context manager."""

    def __init__(self, config: Config) -> None:
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self.gateway = Gateway(config)
        self.error: BaseException | None = None
        self._step = 0
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.gateway.run(self._stop, self._ready.set)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def get(self, path: str) -> httpx.Response:
        assert self.gateway.http is not None
        return httpx.get(f"http://127.0.0.1:{self.gateway.http.port}{path}", trust_env=False)

    def problem(self, part: str) -> Any:
        """Return the problem of a part that `/readyz` names; None if it names none."""
        return next((p for p in self.get("/readyz").json()["problems"] if p["part"] == part), None)

    def metric(self, series: str) -> float | None:
        """Return the value of a series of `/metrics`; None where it is absent."""
        lines = self.get("/metrics").text.splitlines()
        return next(
            (float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"edgemirror_{series} ")), None
        )

    def state(self) -> str:
        assert self.gateway.pusher is not None
        return self.gateway.pusher.status.state

    def receive(self) -> None:
        """Journal a chunk, as the sampler would, and wait until it is durable."""
        self._step += 1
        step = self._step * 10

        def keep(journal: Any) -> None:
            journal.add_tags(table(6).tags)
            journal.save_stream(Stream(STREAM, "urn:x"))

        def store(journal: Any) -> None:
            journal.append(STREAM, TIMELINE, step, step + 10, "a", doubles(self._step))
            journal.extend(Coverage(STREAM, TIMELINE, step, step + 10, "a"))

        self.gateway.ingest.call(keep).result(WAIT_S)
        self.gateway.ingest.call(store).result(WAIT_S)


def events(capsys: pytest.CaptureFixture[str], *names: str) -> list[dict[str, Any]]:
    """Return the events of these names that were logged since the last call."""
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in names]


def test_who_is_fenced_leaves_the_broker_to_the_other_and_goes_on_journaling(
    tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto
) -> None:
    with Running(config(tmp_path / "one", broker=mosquitto.port)) as one:
        until(lambda: one.state() == "leading", "one leads")
        (tmp_path / "two").mkdir()
        shutil.copy(tmp_path / "one" / SIGNING_KEY, tmp_path / "two")
        with (
            Running(config(tmp_path / "two", broker=mosquitto.port)) as two,
            Subscriber(mosquitto.port) as subscriber,
        ):
            until(lambda: two.state() == "leading", "two leads")
            one.receive()
            until(lambda: one.state() == "fenced", "one fenced")
            publisher, other = one.gateway.publisher, two.gateway.publisher
            assert publisher is not None and other is not None
            until(lambda: "another replica" in publisher.status().last_error, "one leaves the broker")
            until(lambda: not publisher.status().connected, "one has left the broker")
            until(lambda: other.status().connected, "two is at the broker")
            connects = publisher.status().connects, other.status().connects
            subscriber.on("_gateway/g/role", b'{"role":"PRIMARY","epoch":%d}' % two.gateway.epoch)
            told = one.get("/readyz")
            value = told.json()
            assert told.status_code == 503
            assert (value["role"], value["epoch"]) == ("STANDBY", one.gateway.epoch)
            problem = one.problem("role")
            assert problem["blocks"]
            assert "epoch 2 of 'a'" in problem["text"] and "edgemirror status" in problem["text"]
            assert 'edgemirror_role{role="STANDBY"} 1.0' in one.get("/metrics").text
            before = one.gateway.journal.committed
            one.receive()
            assert one.gateway.journal.committed == before + 1
            publisher.offer(doubles(1))
            assert (publisher.status().connects, other.status().connects) == connects
            assert other.status().connected
            assert subscriber.latest()["uns/v1/e/s/_gateway/g/online"] == b"online"


def test_a_gateway_that_stops_says_that_nobody_speaks(tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber:
        with Running(config(tmp_path / "one", broker=mosquitto.port)) as one:
            until(lambda: one.state() == "leading", "it leads")
            subscriber.on("_gateway/g/online", b"online")
        subscriber.on("_gateway/g/online", b"offline")


def test_a_log_that_knows_a_higher_epoch_raises_the_one_that_role_tells(
    tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto
) -> None:
    for _ in range(3):
        with Running(config(tmp_path / "one")) as one:
            until(lambda: one.state() == "leading", "it leads")
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / SIGNING_KEY, tmp_path / "two")  # the journal is lost, the key is not
    with Subscriber(mosquitto.port) as subscriber, Running(config(tmp_path / "two", broker=mosquitto.port)) as two:
        until(lambda: two.state() == "leading", "it leads again")
        assert two.gateway.epoch == 4
        subscriber.on("_gateway/g/role", b'{"role":"PRIMARY","epoch":4}')
        subscriber.wait(lambda h: h.topic.endswith("_gateway/g/health") and h.value["epoch"] == 4)


def test_a_task_that_takes_the_first_cancellation_for_its_own_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    running = Running(config(tmp_path / "one", bucket=False))
    monkeypatch.setattr(running.gateway.sources[0], "run", stubborn)
    with running:
        pass
    assert cancelled == 2


def test_a_failure_to_trim_is_told_once_and_tried_again(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, inner = 3, Gateway._promise

    def away_at_first(gateway: Gateway) -> Promise:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("the time is up")
        return inner(gateway)

    monkeypatch.setattr(runtime, "TRIM_S", 0.05)
    monkeypatch.setattr(Gateway, "_promise", away_at_first)
    with Running(config(tmp_path / "one", more="[journal]\nkeep_days = 0")) as one:
        one.receive()
        reader = JournalReader.open(one.gateway.path)
        until(lambda: not reader.chunks_since(0), "what the bucket has is trimmed")
        reader.close()
    assert one.error is None
    told = events(capsys, "journal.trim_failed", "journal.trimmed", "gateway.stopped")
    assert [(event["event"], event.get("error")) for event in told] == [
        ("journal.trim_failed", "the time is up"), ("journal.trimmed", None), ("gateway.stopped", None),
    ]  # fmt: skip


def test_an_error_that_ends_the_gateway_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken() -> None:
        raise AssertionError("our own state is wrong")

    running = Running(config(tmp_path / "one", bucket=False))
    monkeypatch.setattr(running.gateway.sources[0], "run", broken)
    with running:
        pass
    assert isinstance(running.error, AssertionError)
    [told] = events(capsys, "gateway.failed", "gateway.stopped")
    assert (told["event"], told["error"]) == ("gateway.failed", "our own state is wrong")


def test_a_bucket_that_accepts_and_never_answers_makes_the_gateway_unready_and_is_told(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.io.survey.LOOK_S", 0.05)
    answers, told = threading.Event(), []

    def silent(point: str, key: str) -> None:
        answers.wait(WAIT_S)

    def seen() -> bool:
        told.extend(events(capsys, "health.changed"))
        return any("sync: starting" in text for event in told for text in event["problems"])

    bucket.fault = silent
    with Running(config(tmp_path / "one")) as one:
        assert "starting" in one.problem("sync")["text"]
        assert "edgemirror_sync_ok 0.0" in one.get("/metrics").text
        until(seen, "the silence told")
        answers.set()
        until(lambda: one.problem("sync") is None, "the bucket as it should be")
        assert one.state() == "leading"


def test_the_topic_sync_tells_how_far_the_bucket_is(
    tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.io.survey.LOOK_S", 0.05)
    monkeypatch.setattr("gateway.io.survey.SYNC_TOLD_S", 0.2)
    with (
        Subscriber(mosquitto.port) as subscriber,
        Running(config(tmp_path / "one", broker=mosquitto.port)) as one,
    ):
        until(lambda: one.state() == "leading", "it leads")
        began = time.monotonic()
        one.receive()
        done = {"lag_s": 0.0, "backlog_samples": 0, "seq": 1, "epoch": 1}
        subscriber.wait(lambda h: h.topic == "uns/v1/e/s/_gateway/g/sync" and h.value == done)
        told = [h for h in subscriber.heard if h.topic.endswith("/sync")]
        assert len(told) <= 3 + (time.monotonic() - began) / 0.2
    with Subscriber(mosquitto.port) as later:
        assert later.on("_gateway/g/sync")[0].retain


def test_what_passes_to_and_from_the_bucket_is_counted(tmp_path: Path, bucket: Bucket) -> None:
    def away(point: str, key: str) -> None:
        raise Unavailable("away")

    with Running(config(tmp_path / "one")) as one:
        until(lambda: one.state() == "leading", "it leads")
        sent, errors = one.metric('sync_bytes_total{direction="out"}'), one.metric("sync_errors_total")
        assert sent is not None and sent > 0
        assert errors == 0
        bucket.fault = away
        one.receive()
        until(lambda: (one.metric("sync_errors_total") or 0) > 0, "an error counted")
        bucket.fault = lambda point, key: None
    with Running(config(tmp_path / "one")) as again:
        until(lambda: again.state() == "leading", "it leads again")
        received = again.metric('sync_bytes_total{direction="in"}')
        assert received is not None and received > 0


def test_certificates_that_the_configuration_names_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.io.survey.LOOK_S", 0.05)
    certificate, _ = make_certificate(tmp_path, "us", "urn:us", server=False)
    source = f'certificate_file = "{certificate}"'
    with Running(config(tmp_path / "one", bucket=False, source=source)) as one:
        series = 'cert_expiry_seconds{cert="source p7"}'
        until(lambda: one.metric(series) is not None, "the certificate read")
        left = one.metric(series)
        assert left is not None and 8.9 * 86_400 < left < 9 * 86_400
        make_certificate(tmp_path, "us", "urn:us", server=False, begin=timedelta(days=-3))
        until(lambda: (one.metric(series) or 0) < 7 * 86_400, "the new one read")


def test_a_verification_that_found_nothing_wrong_is_told_to_the_gateway_beside_it(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.io.survey.LOOK_S", 0.05)
    monkeypatch.setattr(verify, "open_store", lambda config: bucket)
    file = tmp_path / "gateway.toml"
    file.write_text(text(tmp_path / "one"))
    with Running(parse(file.read_text())) as one:
        until(lambda: one.state() == "leading", "it leads")
        assert main(["verify", "--config", str(file), "--alone"]) == 0
        assert not (tmp_path / "one" / FILE).exists(), "believing the bucket's own key proves less"
        assert one.metric("verify_last_ok_seconds") is None
        assert main(["verify", "--config", str(file)]) == 0
        until(lambda: one.metric("verify_last_ok_seconds") is not None, "the verification told")
        age = one.metric("verify_last_ok_seconds")
        assert age is not None and 0 <= age < 60
        (tmp_path / "one" / FILE).unlink()
        key = next(key for key in bucket.objects if key.endswith(".parquet"))
        bucket.objects[key] = replace(bucket.objects[key], body=b"rot")
        assert main(["verify", "--config", str(file)]) == 1
        assert not (tmp_path / "one" / FILE).exists()


def browsed(config: Config) -> None:
    """Write a journal as a gateway leaves it that has browsed its source."""
    [source] = config.source
    tags = [Tag("urn:plc", "urn:n", f"s={name}", device="press7", name=name) for name in ("T0", "T1")]
    journal = Journal.open(Path(config.replica.data_dir) / runtime.JOURNAL, replica="a")
    with journal.transaction():
        journal.add_tags(tags)
        journal.set_fact("model/p7", msgspec.json.encode(Model(roots(source), "urn:plc", {"press7": tags})))
    journal.close()


def test_of_a_source_that_is_away_at_the_start_it_is_said_that_it_is(tmp_path: Path, mosquitto: Mosquitto) -> None:
    known = config(tmp_path / "one", broker=mosquitto.port, bucket=False)
    browsed(known)  # and then killed: the broker keeps saying `live`
    with Subscriber(mosquitto.port) as subscriber, Running(known):
        subscriber.on("/press7/_state", b"stale")


def test_topics_of_a_former_configuration_are_emptied_also_where_the_broker_was_away(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    first = text(tmp_path / "one", broker=mosquitto.port, bucket=False) + 'tag_topics = "all"\n'
    second = first.replace('tag_topics = "all"', 'tag_topics = "none"')
    third = second.replace('site = "s"', 'site = "elsewhere"')
    browsed(parse(first))
    with Subscriber(mosquitto.port) as subscriber, Running(parse(first)) as one:
        subscriber.on("/press7/_state", b"stale")
        assert one.gateway.publisher is not None
        one.gateway.publisher.offer(numbers((0, 5), (1, 6)))
        subscriber.on("/press7/T1")
    mosquitto.stop()
    with Running(parse(second)):
        pass
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber, Running(parse(second)):
        subscriber.on("uns/v1/e/s/area/line/press7/T0", b"")
        subscriber.on("uns/v1/e/s/area/line/press7/T1", b"")
    with Subscriber(mosquitto.port) as subscriber, Running(parse(third)):
        subscriber.wait(lambda h: h.topic.startswith("uns/v1/e/s/") and not h.payload, 4)
    with Subscriber(mosquitto.port) as later:
        later.on("elsewhere/_gateway/g/online")
        assert not [topic for topic in later.latest() if topic.startswith("uns/v1/e/s/")]


def test_livez_turns_when_any_worker_thread_has_ended(tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto) -> None:
    with Running(config(tmp_path / "one", broker=mosquitto.port)) as one:
        gateway = one.gateway
        assert gateway.pusher is not None and gateway.publisher is not None
        assert one.get("/livez").status_code == 200
        gateway.publisher.stop()
        assert one.get("/livez").status_code == 503
        assert "thread mqtt has ended" in one.problem("process")["text"]
    with Running(config(tmp_path / "two")) as two:
        assert two.gateway.pusher is not None
        assert two.get("/livez").status_code == 200
        two.gateway.pusher.stop()
        assert two.get("/livez").status_code == 503


@pytest.mark.parametrize("name", ["push", "mqtt"])
def test_livez_turns_when_a_thread_stands_still_for_longer_than_any_turn_may(
    tmp_path: Path, bucket: Bucket, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stuck = threading.Event()
    with Running(config(tmp_path / "one", broker=mosquitto.port)) as one:
        gateway = one.gateway
        assert gateway.pusher is not None and gateway.publisher is not None
        if name == "push":
            monkeypatch.setattr(push, "HUNG_S", 0.3)
            gateway.pusher.turn = lambda: stuck.wait(WAIT_S) and 0.0  # type: ignore[method-assign]
        else:
            monkeypatch.setattr(publisher, "HUNG_S", 0.3)
            gateway.publisher._turn = lambda now: stuck.wait(WAIT_S)  # type: ignore[method-assign,assignment]
            gateway.publisher._wake()
        until(lambda: one.get("/livez").status_code == 503, "the standstill seen")
        assert f"thread {name} has ended or stands still" in one.problem("process")["text"]
        stuck.set()


# Secrets that are changed meanwhile


def test_the_keys_of_a_bucket_are_those_that_their_files_hold_now_and_never_half_of_a_new_pair(tmp_path: Path):
    access, secret = tmp_path / "access", tmp_path / "secret"
    access.write_text("A1\n")
    secret.write_text("S1\n")
    keys = opening.Keys(Sync(bucket="s3://b", access_key_file=str(access), secret_key_file=str(secret)))
    assert keys() == ("A1", "S1")
    access.write_text("")  # opened for writing
    assert keys() == ("A1", "S1")
    access.unlink()
    assert keys() == ("A1", "S1")
    access.write_text("A2\n")
    secret.write_text("S2\n")
    assert keys() == ("A2", "S2")
