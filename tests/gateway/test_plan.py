"""Plans: which tags share a subscription, and what makes a stream the same stream."""

from __future__ import annotations

from gateway.config import Device, Source
from gateway.plan import Plan, plan, queue_size
from mirror.tags import Tag


def device(name: str, **more: object) -> Device:
    return Device(name=name, browse=["ns=2;s=x/**"], **more)  # type: ignore[arg-type]


def source(*devices: Device) -> Source:
    return Source(name="plc", endpoint="opc.tcp://h:4840", security="none", device=list(devices))


def tags(device: str, *names: str) -> list[Tag]:
    return [Tag("urn:plc", "urn:ns", f"s={n}", device=device, name=n) for n in names]


def test_devices_of_one_publishing_interval_share_a_subscription() -> None:
    a, b, c = device("a"), device("b"), device("c", publishing_ms=500.0)
    plans = plan(source(a, b, c), "urn:plc", {"a": tags("a", "1"), "b": tags("b", "2"), "c": tags("c", "3")})
    assert [(p.publishing_ms, [i.tag.name for i in p.items]) for p in plans] == [(100.0, ["1", "2"]), (500.0, ["3"])]


def test_a_tag_of_two_devices_is_monitored_once_and_belongs_to_the_first() -> None:
    plans = plan(source(device("a"), device("b")), "urn:plc", {"a": tags("a", "1"), "b": tags("b", "1")})
    assert [[i.tag.device for i in p.items] for p in plans] == [["a"]]


def test_the_stream_is_the_same_whatever_the_order_and_another_with_another_queue() -> None:
    def one(order: list[Tag], **more: object) -> Plan:
        return plan(source(device("a", **more)), "urn:plc", {"a": order})[0]

    two = tags("a", "1", "2")
    assert one(two).id == one(two[::-1]).id
    assert one(two).id != one(two, queue_size=7).id != one(two[:1], queue_size=7).id


def test_queues_bridge_a_restart_at_the_sampling_rate() -> None:
    assert queue_size(device("a", sampling_ms=50.0)) == 202
    assert queue_size(device("a", sampling_ms=60_000.0)) == 10
    assert queue_size(device("a", sampling_ms=0.0)) == 202
    assert queue_size(device("a", queue_size=3)) == 3


def test_the_subscription_outlives_the_session() -> None:
    (p,) = plan(source(device("a")), "urn:plc", {"a": tags("a", "1")})
    assert p.keep_alive_count() == 10
    assert p.lifetime_count(600) * p.publishing_ms >= 600_000
    assert p.lifetime_count(1) >= 3 * p.keep_alive_count()
