"""Publishing never blocks, never grows, and leaves no retained topic telling what is no longer so."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.servers import Broker as Embedded
from gateway.formats.names import Names, Options, Place
from gateway.formats.retained import BAD_NO_COMMUNICATION
from gateway.io.mqtt import Broker
from gateway.io.publisher import Publisher
from mirror.batch import Batch, Heap, Kind
from mirror.tags import Tag
from tests.live.proxy import Proxy
from tests.live.servers import Mosquitto, until
from tests.live.subscriber import Subscriber

SOURCE = "urn:s"
T0 = 134_082_720_000_000_000


def names(tags: int = 4, devices: int = 1, **options: Any) -> Names:
    table = [
        Tag(SOURCE, "urn:n", f"s=d{d}.T{t}", device=f"d{d}", name=f"T{t}") for d in range(devices) for t in range(tags)
    ]
    return Names(enumerate(table), Options(enterprise="e", site="s", **options), {"d0": Place("a", "l", ["T0", "T1"])})


def numbers(*rows: tuple[int, int]) -> Batch:
    batch = Batch.zeros(len(rows))
    batch.handle[:], batch.bits[:] = zip(*rows, strict=True)
    batch.kind[:] = Kind.INT32
    batch.source_ticks[:] = batch.server_ticks[:] = T0
    return batch


def text(size: int) -> Batch:
    batch = numbers((0, 0))
    batch.kind[:] = Kind.STRING
    return replace(batch, heap=Heap.of([size.to_bytes(4, "little") + b"x" * size]))


class Events:
    """Keeps what the publisher reports and waits for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, facts: dict[str, Any]) -> None:
        self.seen.append((name, facts))

    def wait(self, name: str, count: int = 1) -> None:
        until(lambda: [n for n, _ in self.seen].count(name) >= count, f"{count} {name} in {self.seen}", 15)


@contextlib.contextmanager
def publishing(port: int, n: Names, **options: Any) -> Iterator[tuple[Publisher, Events]]:
    events = Events()
    settings = {"interval_s": 0.01, "retry_s_max": 0.3, **options}
    on_emptied = settings.pop("on_emptied", lambda topics: None)
    broker = Broker(f"mqtt://127.0.0.1:{port}", "test-edge01", "edge01", **settings)
    publisher = Publisher(broker, n, on_event=events, on_emptied=on_emptied)
    publisher.start(epoch=7)
    try:
        yield publisher, events
    finally:
        publisher.stop()
    assert publisher.status().failures == 0, events.seen


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as server:
        yield server


def test_values_arrive_as_device_objects_and_retained_tags(mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber, publishing(mosquitto.port, names()) as (publisher, _):
        publisher.offer(numbers((0, 5), (2, 6), (0, 7)))
        [first] = subscriber.on("/d0")
        assert first.topic == "uns/v1/e/s/a/l/d0"
        assert first.qos == 1
        assert (first.value["epoch"], first.value["seq"], first.value["values"]) == (7, 1, {"T0": 7, "T2": 6})
        [tag] = subscriber.on("/d0/T0")
        assert (tag.value["value"], tag.value["quality"]) == (7, "Good")
        with Subscriber(mosquitto.port) as later:
            assert [h.retain for h in later.on("/d0/T0")] == [True]
            assert not [h for h in later.heard if h.topic.endswith("/d0") or h.topic.endswith("/T2")]


def test_the_gateway_says_online_and_its_facts_and_offline_when_it_stops(mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber:
        with publishing(mosquitto.port, names()) as (publisher, _):
            publisher.tell("role", b"PRIMARY")
            publisher.source_live(SOURCE)
            subscriber.on("_gateway/edge01/online", b"online")
            subscriber.on("_gateway/edge01/role", b"PRIMARY")
            subscriber.on("/d0/_state", b"live")
        subscriber.on("_gateway/edge01/online", b"offline")
        assert subscriber.latest()["uns/v1/e/s/a/l/d0/_state"] == b"offline"


def test_a_gateway_that_dies_is_offline_by_its_will(mosquitto: Mosquitto) -> None:
    with (
        Proxy(mosquitto.port) as proxy,
        Subscriber(mosquitto.port) as subscriber,
        publishing(proxy.port, names()),
    ):
        subscriber.on("online", b"online")
        proxy.cut()
        subscriber.on("_gateway/edge01/online", b"offline")


def test_a_lost_source_turns_its_tags_bad_and_its_devices_stale_then_offline(mosquitto: Mosquitto) -> None:
    with (
        Subscriber(mosquitto.port) as subscriber,
        publishing(mosquitto.port, names(), offline_after_s=0.3) as (publisher, _),
    ):
        publisher.source_live(SOURCE)
        publisher.offer(numbers((0, 1), (1, 2), (2, 3)))
        subscriber.on("/d0/T1")
        publisher.source_lost(SOURCE)
        subscriber.on("/d0/_state", b"stale")
        subscriber.wait(lambda h: h.topic.endswith("/T0") and h.value.get("code") == BAD_NO_COMMUNICATION)
        subscriber.wait(lambda h: h.topic.endswith("/T1") and h.value.get("code") == BAD_NO_COMMUNICATION)
        subscriber.on("/d0/_state", b"offline")
        publisher.source_live(SOURCE, resumed=True)
        subscriber.wait(lambda h: h.topic.endswith("/T1") and h.value["value"] == 2, 2)
        subscriber.on("/d0/_state", b"live", 2)


def test_after_a_broker_restart_everything_retained_is_there_again(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, publishing(server.port, names()) as (publisher, events):
        publisher.source_live(SOURCE)
        publisher.tell("role", b"PRIMARY")
        publisher.offer(numbers((0, 1), (1, 2)))
        with Subscriber(server.port) as subscriber:
            subscriber.on("/d0/T1")
        server.kill()
        events.wait("mqtt.disconnected")
        server.start()  # it keeps nothing
        events.wait("mqtt.connected", 2)
        with Subscriber(server.port) as subscriber:
            subscriber.on("online", b"online")
            subscriber.on("role", b"PRIMARY")
            subscriber.on("/d0/_state", b"live")
            assert subscriber.on("/d0/T0")[0].value["value"] == 1
            assert subscriber.on("/d0/T1")[0].value["value"] == 2


def test_while_the_broker_is_away_only_the_last_value_of_each_tag_is_kept(mosquitto: Mosquitto) -> None:
    n = names(tags=1000, devices=1)
    with Subscriber(mosquitto.port) as subscriber, Proxy(mosquitto.port) as proxy:
        proxy.cut()  # the subscriber stays; the publisher finds nobody
        with publishing(proxy.port, n) as (publisher, events):
            events.wait("mqtt.connect_failed")
            slowest = 0.0
            for i in range(1, 301):
                batch = numbers(*((h, i) for h in range(1000)))
                start = time.perf_counter()
                publisher.offer(batch)
                slowest = max(slowest, time.perf_counter() - start)
                assert publisher.status().pending_rows <= 10_000
            assert slowest < 0.5
            proxy.heal()
            found = subscriber.wait(lambda h: h.topic.endswith("/d0") and not h.retain)
            assert len(found) == 1
            assert set(found[0].value["values"].values()) == {300}
            assert len(found[0].value["values"]) == 1000


def test_a_stalled_broker_holds_a_window_and_the_newest_values_follow(mosquitto: Mosquitto) -> None:
    n = names(tags=1, devices=50)
    with (
        Subscriber(mosquitto.port) as subscriber,
        Proxy(mosquitto.port) as proxy,
        publishing(proxy.port, n, window=10, keepalive_s=60) as (publisher, events),
    ):
        events.wait("mqtt.connected")
        until(lambda: publisher.status().inflight == 0, "all acknowledged")
        proxy.stall()
        for i in range(1, 201):
            publisher.offer(numbers(*((h, i) for h in range(50))))
            assert publisher.status().inflight <= 10
        until(lambda: publisher.status().inflight == 10, "a full window")
        proxy.flow()
        for d in range(50):
            subscriber.wait(lambda h, d=d: h.topic.endswith(f"/d{d}") and h.value["values"]["T0"] == 200)  # type: ignore[misc]
        seqs: dict[str, list[int]] = {}
        for h in subscriber.heard:
            if h.topic.endswith(tuple(f"/d{d}" for d in range(50))):
                seqs.setdefault(h.topic, []).append(h.value["seq"])
        assert all(s == list(range(1, len(s) + 1)) and len(s) < 100 for s in seqs.values())


def test_a_cut_in_the_middle_loses_no_tags_last_value(mosquitto: Mosquitto) -> None:
    n = names(tags=1, devices=60)
    with (
        Subscriber(mosquitto.port) as subscriber,
        Proxy(mosquitto.port) as proxy,
        publishing(proxy.port, n, window=5) as (publisher, events),
    ):
        events.wait("mqtt.connected")
        for i in range(1, 41):
            publisher.offer(numbers(*((h, i) for h in range(60))))
            if i % 8 == 0:
                subscriber.wait(lambda h: h.topic.endswith("/d0"), i // 8)
                proxy.reset()
                events.wait("mqtt.connected", i // 8 + 1)
        publisher.offer(numbers(*((h, 99) for h in range(60))))
        for d in range(60):
            subscriber.wait(lambda h, d=d: h.topic.endswith(f"/d{d}") and h.value["values"]["T0"] == 99)  # type: ignore[misc]
        for d in range(60):
            heard = [h.value["values"]["T0"] for h in subscriber.heard if h.topic.endswith(f"/d{d}")]
            assert heard == sorted(heard)


def test_a_taken_over_session_is_not_won_back(tmp_path: Path) -> None:
    from tests.gateway.test_mqtt import answering

    with (
        answering(lambda level: b"\x20\x03\x00\x00\x00\xe0\x02\x8e\x00") as port,
        publishing(port, names()) as (publisher, events),
    ):
        events.wait("mqtt.taken_over")
        publisher.offer(numbers((0, 1)))
        assert publisher.status().taken_over == 1
        publisher.resume(epoch=9)
        events.wait("mqtt.taken_over", 2)
        assert publisher.status().connects == 2


def test_a_broker_that_refuses_messages_is_told_of_and_the_others_go_on() -> None:
    from tests.gateway.test_mqtt import judging

    with (
        judging(lambda topic: 0x87 if topic.endswith("/T0") else 0) as port,
        publishing(port, names()) as (publisher, events),
    ):
        publisher.source_live(SOURCE)
        for i in range(3):
            publisher.offer(numbers((0, i), (1, i)))
            until(lambda i=i: publisher.status().refused > i, "refused")  # type: ignore[misc]
        until(lambda: publisher.status().inflight == 0, "all answered")
        status = publisher.status()
        assert (status.connected, status.acknowledged + status.refused) == (True, status.published)
        assert "uns/v1/e/s/a/l/d0/T0: Not authorized" in status.refusal
        told = [facts for name, facts in events.seen if name == "mqtt.message_refused"]
        assert told == [{"topic": "uns/v1/e/s/a/l/d0/T0", "reason": "Not authorized"}]


def test_a_broker_that_takes_no_large_messages_gets_smaller_ones(tmp_path: Path) -> None:
    with (
        Embedded(tmp_path) as server,  # it takes 20 KiB at most, and does not say so
        Subscriber(server.port) as subscriber,
        publishing(server.port, names(tags=4000)) as (publisher, events),
    ):
        publisher.offer(numbers(*((h, h) for h in range(4000))))
        events.wait("mqtt.payload_limited")
        values: dict[str, int] = {}

        def all_there() -> bool:
            for h in list(subscriber.heard):
                values.update(h.value["values"] if h.topic.endswith("/d0") else {})
            return len(values) == 4000

        until(all_there, "every value", 20)
        assert values == {f"T{i}": i for i in range(4000)}


def test_after_a_line_that_broke_often_large_values_are_whole_again(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.payload.RAISE_S", 0.3)
    large = text(9000)
    with (
        Subscriber(mosquitto.port) as subscriber,
        Proxy(mosquitto.port) as proxy,
        publishing(proxy.port, names(), keepalive_s=60) as (publisher, events),
    ):
        publisher.source_live(SOURCE)
        publisher.offer(large)
        subscriber.wait(lambda h: h.topic.endswith("/d0") and len(h.value["values"]["T0"]) == 9000)
        for i in range(3):
            until(lambda: publisher.status().inflight == 0, "all acknowledged")
            proxy.stall()
            publisher.offer(large)
            until(lambda: publisher.status().inflight > 0, "under way")
            proxy.cut()
            proxy.flow()
            proxy.heal()
            events.wait("mqtt.connected", i + 2)
        events.wait("mqtt.payload_limited")
        subscriber.wait(lambda h: h.topic.endswith("/d0/T0") and h.value["quality"] == "BadEncodingLimitsExceeded")
        until(lambda: b'"Good"' in subscriber.latest()["uns/v1/e/s/a/l/d0/T0"], "the retained value whole again")
        objects = [h for h in subscriber.heard if h.topic.endswith("/d0")]
        publisher.offer(large)
        assert subscriber.on("/d0", count=len(objects) + 1)[-1].value["values"] == {"T0": "x" * 9000}


def test_values_coalesce_for_longer_where_publishing_costs_more_than_its_share(mosquitto: Mosquitto) -> None:
    def rounds(cpu_share: float) -> int:
        with (
            Subscriber(mosquitto.port, "uns/v1/e/s/a/l/d0") as subscriber,
            publishing(mosquitto.port, names(tags=200), interval_s=0.001, cpu_share=cpu_share) as (publisher, _),
        ):
            start = time.monotonic()
            i = 0
            while time.monotonic() - start < 0.9:
                i += 1
                publisher.offer(numbers(*((h, i) for h in range(200))))
            subscriber.wait(lambda h: h.value["values"]["T0"] == i)
            return len(subscriber.heard)

    assert rounds(1e-6) <= 4 < 2 * 4 <= rounds(1.0)


def test_a_pause_leaves_without_a_word_and_a_new_epoch_counts_anew(mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber, publishing(mosquitto.port, names()) as (publisher, _):
        publisher.offer(numbers((0, 1)))
        subscriber.on("/d0")
        publisher.pause()  # whether or not the acknowledgement was read before
        until(lambda: not publisher.status().connected, "left")
        publisher.offer(numbers((0, 2)))
        publisher.resume(epoch=8)
        second = subscriber.on("/d0", count=2)[1]
        assert (second.value["epoch"], second.value["seq"], second.value["values"]) == (8, 1, {"T0": 2})
        assert not [h for h in subscriber.heard if h.payload == b"offline"]


def test_history_arrives_complete_beside_live_values(mosquitto: Mosquitto) -> None:
    with (
        Subscriber(mosquitto.port) as subscriber,
        publishing(mosquitto.port, names(tag_topics="all")) as (publisher, _),
    ):
        rows = numbers(*((0, i) for i in range(200)))
        rows.source_ticks[:] = T0 + np.arange(200) * 10_000
        assert publisher.offer_history(rows)
        publisher.offer(numbers((0, 1)))
        found = subscriber.on("/d0/_history", count=200)
        assert [h.value["values"]["T0"] for h in found] == list(range(200))
        assert subscriber.on("/d0/T0")[-1].value["value"] == 1
        assert len([h for h in subscriber.heard if h.topic.endswith("/d0/T0")]) == 1
        assert not any(h.retain for h in found)


def test_more_history_than_may_wait_is_refused_and_counted(tmp_path: Path) -> None:
    server = Mosquitto(tmp_path).start()
    server.stop()
    with publishing(server.port, names(), history_rows_max=10) as (publisher, _):
        assert publisher.offer_history(numbers(*((0, i) for i in range(8))))
        assert not publisher.offer_history(numbers(*((0, i) for i in range(3))))
        assert publisher.offer_history(numbers(*((0, i) for i in range(2))))
        assert publisher.status().history_refused_rows == 3


def test_hostile_names_and_values_reach_a_real_broker(mosquitto: Mosquitto) -> None:
    hostile = ["+", "#", "a/b", "a\0b", "", "//", "x" * 10_240, "/" * 10_240, "_state", "\udc80", "é" * 5000]
    tags = [Tag(SOURCE, "urn:n", f"i={i}", device=h, name=h) for i, h in enumerate(hostile)]
    n = Names(enumerate(tags), Options(tag_topics="all"))
    batch = numbers(*((i, 0) for i in range(len(tags))))
    heap = [len(v).to_bytes(4, "little") + v for v in (b"\xff\xfe\0" * 10 for _ in tags)]
    batch.kind[:], batch.bits[:] = Kind.STRING, np.arange(len(tags))
    batch = Batch(
        batch.handle, batch.source_ticks, batch.server_ticks, batch.source_ps, batch.server_ps, batch.status,
        batch.flags, batch.kind, batch.bits, Heap.of(heap),
    )  # fmt: skip
    with Subscriber(mosquitto.port) as subscriber, publishing(mosquitto.port, n) as (publisher, events):
        publisher.source_live(SOURCE)
        publisher.offer(batch)
        subscriber.wait(lambda h: h.topic in set(n.topics), len(tags))
        subscriber.wait(lambda h: h.topic in {d.topic for d in n.devices}, len(tags))
        assert publisher.status().connects == 1
        assert [name for name, _ in events.seen] == ["mqtt.connected"]
        for h in subscriber.heard:
            if h.payload[:1] == b"{":
                json.loads(h.payload)


def test_new_names_are_used_from_the_next_round_on(mosquitto: Mosquitto) -> None:
    with Subscriber(mosquitto.port) as subscriber, publishing(mosquitto.port, names()) as (publisher, _):
        publisher.offer(numbers((0, 1)))
        subscriber.on("/d0")
        publisher.use(names(devices=2))
        publisher.offer(numbers((4, 9)))
        assert subscriber.on("/d1")[0].value["values"] == {"T0": 9}


def test_a_tag_that_lost_its_topic_is_emptied_and_so_is_one_of_a_former_configuration(mosquitto: Mosquitto) -> None:
    emptied: list[str] = []
    with (
        Subscriber(mosquitto.port) as subscriber,
        publishing(mosquitto.port, names(), on_emptied=emptied.extend) as (publisher, _),
    ):
        publisher.source_live(SOURCE)
        publisher.offer(numbers((0, 5), (1, 6)))
        subscriber.on("/d0/T1")
        publisher.use(names(tags=1))
        subscriber.on("/d0/T1", b"")
        publisher.take_back(["uns/v1/e/s/a/l/d0/T0", "uns/v1/e/s/a/l/gone"])
        subscriber.on("/gone", b"")
        until(lambda: set(emptied) == {"uns/v1/e/s/a/l/d0/T1", "uns/v1/e/s/a/l/gone"}, "both taken")
    with Subscriber(mosquitto.port) as later:
        later.on("/d0/T0")
        assert not [topic for topic in later.latest() if topic.endswith(("/T1", "/gone"))]


def test_a_topic_is_emptied_again_where_the_broker_may_not_have_it(mosquitto: Mosquitto) -> None:
    emptied: list[str] = []
    with (
        Subscriber(mosquitto.port) as subscriber,
        Proxy(mosquitto.port) as proxy,
        publishing(proxy.port, names(), keepalive_s=60, on_emptied=emptied.extend) as (publisher, events),
    ):
        publisher.offer(numbers((0, 5), (1, 6)))
        subscriber.on("/d0/T1")
        until(lambda: publisher.status().inflight == 0, "all acknowledged")
        proxy.stall()
        publisher.use(names(tags=1))
        until(lambda: publisher.status().inflight > 0, "under way")
        assert emptied == []
        proxy.cut()
        proxy.flow()
        proxy.heal()
        events.wait("mqtt.connected", 2)
        subscriber.on("/d0/T1", b"")
        until(lambda: emptied == ["uns/v1/e/s/a/l/d0/T1"], "taken")


def test_stopping_without_a_broker_is_quick(tmp_path: Path) -> None:
    server = Mosquitto(tmp_path).start()
    server.stop()
    start = time.monotonic()
    with publishing(server.port, names()) as (_, events):
        events.wait("mqtt.connect_failed")
    assert time.monotonic() - start < 5


class Racing:
    """The end of the wake-up's socket that the thread reads; while it reads, somebody wakes it once more."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher, self._real = publisher, publisher._wake_r
        self.reads = 0

    def fileno(self) -> int:
        return self._real.fileno()

    def recv(self, size: int) -> bytes:
        self._publisher._wake()
        self.reads += 1
        return self._real.recv(size)

    def close(self) -> None:
        self._real.close()


def test_a_wake_up_while_another_is_read_does_not_silence_those_that_follow(mosquitto: Mosquitto) -> None:
    broker = Broker(url=mosquitto.url, client_id="racing", node="edge01")
    publisher = Publisher(broker, names())
    racing = Racing(publisher)
    publisher._wake_r = racing  # type: ignore[assignment]
    publisher.start()
    publisher.tell("role", b"{}")
    until(lambda: racing.reads > 0 and not publisher._woken, "the thread has read and waits again")
    publisher.resume(1)
    until(lambda: publisher.status().connected, "it connects at once", 5)
    publisher.stop()
