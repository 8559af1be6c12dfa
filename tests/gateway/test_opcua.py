"""The connection against asyncua's server: contract, browsing, publishing, resuming, failing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from asyncua import ua
from asyncua.client.ua_session import UaSession

from gateway.decode import Message, decode, read_publish, read_republish
from gateway.io import opcua
from gateway.io.opcua import Connection
from gateway.server import MonitoredItem, Refused, ServerFacts, Subscription
from mirror.batch import Batch, Kind
from mirror.errors import ConfigError, Corrupt, Unavailable
from mirror.tags import Tag
from mirror.variant import readable
from tests.gateway.opcua_server import NAMESPACE, PASSWORD, URI, Press, bounded, free_port, press, run, source

WAIT_S = 10.0
Test = Callable[[Callable[[Press], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def on_press() -> Iterator[Test]:
    """One server for the tests of this file; it runs in the loop in which they run."""
    with asyncio.Runner() as runner:
        server = press(tags=50)
        made = runner.run(server.__aenter__())
        yield lambda work: runner.run(bounded(work(made)))
        runner.run(server.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def connected(made: Press, **fields: Any) -> AsyncIterator[Connection]:
    connection = Connection(source(made.url, **fields))
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


def tag(name: str) -> Tag:
    return Tag(URI, NAMESPACE, f"s={name}")


async def subscribe(connection: Connection, *names: str) -> Subscription:
    items = [MonitoredItem(h, tag(name), 0.0, 100) for h, name in enumerate(names)]
    return await connection.subscribe(50, items, keep_alive_count=4, lifetime_count=400)


async def next_data(connection: Connection, acknowledge: tuple[tuple[int, int], ...] = ()) -> tuple[Message, Batch]:
    """Return the next message that carries samples."""
    async with asyncio.timeout(WAIT_S):
        while True:
            message = read_publish(await connection.publish(acknowledge))
            acknowledge = ()
            if not message.keepalive:
                return message, decode(message, handle_limit=1000).batch


def numbers(batch: Batch) -> list[float]:
    return [struct.unpack("<d", batch.value_bytes(row))[0] for row in range(len(batch))]


# ---- the contract with asyncua --------------------------------------------------------------------------


def test_installed_asyncua_is_as_this_module_needs_it() -> None:
    assert opcua._broken_contract() == []


def test_changed_private_method_of_asyncua_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UaSession, "ensure_publish_loop", lambda self, more: None)
    monkeypatch.delattr(UaSession, "restore_authentication_token")
    broken = opcua._broken_contract()
    assert len(broken) == 2 and "ensure_publish_loop" in broken[0] and "restore_authentication_token" in broken[1]


def test_other_version_of_asyncua_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcua, "version", lambda _name: "2.2.0")
    assert opcua._broken_contract() == ["version 2.2.0 instead of 2.1.0"]


# ---- facts and browsing ---------------------------------------------------------------------------------


def test_server_says_who_it_is_and_when_it_started(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            facts = await connection.server_facts()
            assert facts.uri == URI
            assert facts.namespaces[2] == NAMESPACE
            started = await made.server.get_node(ua.ObjectIds.Server_ServerStatus_StartTime).read_value()
            assert abs(facts.start_ticks // 10 - int(started.timestamp() * 1e6) - 11644473600 * 10**6) < 10
            assert facts.limits.read == 10_000
            await connection.check()

    on_press(work)


def test_browsing_finds_variables_with_their_facts(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            tags = {t.name: t for t in await connection.browse("press", ["ns=2;s=Press/**"])}
            assert sorted(tags) == [
                "Axis", "Cycle", "Diagnostics/Raw", "Hydraulics/Oil%2FLevel", "Hydraulics/Pressure",
                "Hydraulics/Samples", "Mode", "Program", "Running",
            ]  # fmt: skip
            pressure = tags["Hydraulics/Pressure"]
            assert (pressure.source, pressure.namespace) == (URI, NAMESPACE)
            assert pressure.identifier == "s=Press.Hydraulics.Pressure"
            assert (pressure.path, pressure.device) == ("Press/Hydraulics/Pressure", "press")
            assert (pressure.data_type, pressure.value_rank) == ("Double", -1)
            assert (pressure.unit, pressure.range_low, pressure.range_high) == ("bar", 0.0, 250.0)
            assert pressure.description == "behind the pump"
            assert tags["Cycle"].data_type == "Duration"
            assert tags["Mode"].data_type == "Mode"
            assert connection.missing == []

    on_press(work)


def test_exclusion_namespace_by_uri_and_single_roots(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            roots = [
                f"nsu={NAMESPACE};s=Press.Hydraulics/*",
                "ns=2;s=Press.Program",
                "nsu=urn:gone;s=x/**",
                "ns=2;s=no",
            ]
            tags = await connection.browse("press", roots, ["**Level", "Samples"])
            assert [t.name for t in tags] == ["Hydraulics/Pressure", "Program"]
            assert tags[0].unit == "bar"
            assert connection.missing == ["nsu=urn:gone;s=x/**", "ns=2;s=no"]

    on_press(work)


def test_all_objects_are_browsed_without_the_server_s_own(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            tags = await connection.browse("all", ["i=85/**"])
            assert len(tags) == 59
            assert {t.namespace for t in tags} == {NAMESPACE}

    on_press(work)


def test_browsing_in_many_small_calls_finds_the_same(on_press: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            whole = await connection.browse("press", ["ns=2;s=Press/**", "ns=2;s=Many/**"])
        monkeypatch.setattr("gateway.io.opcua.NODES_PER_CALL", 3)
        monkeypatch.setattr("gateway.io.browse.NODES_PER_CALL", 2)
        async with connected(made) as connection:
            assert await connection.browse("press", ["ns=2;s=Press/**", "ns=2;s=Many/**"]) == whole
        assert len(whole) == 59

    on_press(work)


def test_structure_is_readable_by_its_definition(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            tags = await connection.browse("press", ["ns=2;s=Press/**"])
            structures = await connection.structures()
            axis = next(t for t in tags if t.name == "Axis")
            batch = await connection.read([(5, axis)])
            assert int(batch.handle[0]) == 5
            text = readable(int(batch.kind[0]), batch.value_bytes(0), structures)
            assert text == '{"Name":"slide","Mode":"Auto_1","Where":{"X":2.5},"Trace":[1,2,3]}'

    on_press(work)


def test_reading_tells_the_failure_of_each_tag_in_its_row(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            unknown = Tag(URI, "urn:other", "s=x")
            batch = await connection.read([(4, tag("Press.Cycle")), (2, tag("Press.No")), (9, unknown)])
            assert batch.handle.tolist() == [4, 2, 9]
            assert batch.status.tolist() == [0, 0x80340000, 0x80340000]
            assert batch.kind.tolist()[0] == Kind.DOUBLE
            assert batch.source_ticks[0] > 0

    on_press(work)


# ---- publishing -----------------------------------------------------------------------------------------


def test_changes_arrive_with_the_tag_s_handle_and_both_times(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            made_subscription = await subscribe(connection, "Press.Cycle", "Press.Program", "Press.Hydraulics.Samples")
            assert made_subscription.refused == {}
            assert sorted(made_subscription.items) == [0, 1, 2]
            assert made_subscription.queue_size_min >= 1
            assert made_subscription.response_ticks > 0
            message, batch = await next_data(connection)
            assert message.subscription == made_subscription.id
            assert sorted(batch.handle.tolist()) == [0, 1, 2]
            assert (batch.server_ticks > 0).all() and (batch.source_ticks > 0).all()
            await made.write("Press.Cycle", 99.25)
            _, batch = await next_data(connection, ((made_subscription.id, message.sequence),))
            assert (batch.handle.tolist(), numbers(batch)) == ([0], [99.25])

    on_press(work)


def test_items_that_the_server_refuses_are_told_and_the_others_are_subscribed(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            tags = {7: tag("Press.Cycle"), 8: tag("Press.Gone"), 9: Tag(URI, "urn:x", "i=1")}
            items = [(handle, t, 0.0, 10) for handle, t in tags.items()]
            result = await connection.subscribe(50, items, keep_alive_count=4, lifetime_count=400)
            assert list(result.items) == [7]
            assert result.refused == {8: 0x80340000, 9: 0x80340000}
            _, batch = await next_data(connection)
            assert batch.handle.tolist() == [7]

    on_press(work)


def test_items_are_created_in_as_many_calls_as_the_server_wants(
    on_press: Test, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opcua, "NODES_PER_CALL", 7)

    async def work(made: Press) -> None:
        async with connected(made) as connection:
            items = [(i, tag(f"Many.t{i}"), 0.0, 10) for i in range(40)]
            result = await connection.subscribe(50, items, keep_alive_count=4, lifetime_count=400)
            assert sorted(result.items) == list(range(40))
            seen: set[int] = set()
            while len(seen) < 40:
                seen |= set((await next_data(connection))[1].handle.tolist())

    on_press(work)


def test_what_is_not_acknowledged_can_be_fetched_again(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            subscription = await subscribe(connection, "Press.Cycle")
            first, _ = await next_data(connection)
            await made.write("Press.Cycle", 2.5)
            second, _ = await next_data(connection)
            assert second.available == (first.sequence, second.sequence)
            again = read_republish(await connection.republish(subscription.id, second.sequence))
            assert again.sequence == second.sequence
            assert numbers(decode(again, handle_limit=10).batch) == [2.5]

    on_press(work)


def test_acknowledged_message_is_no_longer_available(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            subscription = await subscribe(connection, "Press.Cycle")
            first, _ = await next_data(connection)
            await made.write("Press.Cycle", 3.5)
            second, _ = await next_data(connection, ((subscription.id, first.sequence),))
            assert second.available == (second.sequence,)
            assert second.ack_results == (0,)

    on_press(work)


def test_republish_of_a_number_that_the_server_does_not_have_is_refused_though_it_says_good(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            subscription = await subscribe(connection, "Press.Cycle")
            with pytest.raises(Refused) as caught:
                await connection.republish(subscription.id, 4711)
            assert caught.value.name == "BadMessageNotAvailable"
            with pytest.raises(Refused) as caught:
                await connection.republish(subscription.id + 1, 1)

    on_press(work)


def test_asyncua_publishes_nothing_on_its_own(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            await subscribe(connection, "Press.Cycle")
            assert connection._client.uaclient.session._publish_task is None
            _, batch = await next_data(connection)  # the first values are still there for us
            assert len(batch) == 1

    on_press(work)


# ---- taking up a session again --------------------------------------------------------------------------


def test_resumed_session_goes_on_where_the_dead_gateway_stopped() -> None:
    async def work() -> None:
        async with press() as made:
            dead = Connection(source(made.url))
            await dead.connect()
            subscription = await subscribe(dead, "Press.Cycle")
            first, _ = await next_data(dead)
            await made.write("Press.Cycle", 1001)
            lost, _ = await next_data(dead)  # received, never stored
            secret = dead.session_secret()
            dead.abort()
            for value in (1002, 1003):
                await made.write("Press.Cycle", value)
                await asyncio.sleep(0.1)

            heir = Connection(source(made.url))
            await heir.resume(secret)
            kept = read_republish(await heir.republish(subscription.id, lost.sequence))
            found = numbers(decode(kept, handle_limit=10).batch)
            sequences = [kept.sequence]
            while len(found) < 3:
                message, batch = await next_data(heir)
                assert message.subscription == subscription.id
                sequences.append(message.sequence)
                found += numbers(batch)
            assert found == [1001, 1002, 1003]
            assert sequences == list(range(first.sequence + 1, first.sequence + 1 + len(sequences)))
            await heir.close()

    run(work())


def test_session_that_was_closed_on_leaving_can_not_be_resumed_and_a_kept_one_can() -> None:
    async def work() -> None:
        async with press() as made:
            for keep in (True, False):
                connection = Connection(source(made.url))
                await connection.connect()
                await subscribe(connection, "Press.Cycle")  # asyncua's server keeps no session without one
                secret = connection.session_secret()
                await connection.close(keep_session=keep)
                heir = Connection(source(made.url))
                if keep:
                    await heir.resume(secret)
                    assert (await heir.server_facts()).uri == URI
                else:
                    with pytest.raises(Unavailable):
                        await heir.resume(secret)
                    with pytest.raises(Unavailable, match="not connected"):
                        await heir.server_facts()
                await heir.close()

    run(work())


@pytest.mark.parametrize("secret", [b"", b"nonsense", b"\x82\xa5token\xc4\x01\x09\xa5nonce\xc4\x00"])
def test_stored_session_that_is_none_is_corrupt(secret: bytes) -> None:
    async def work() -> None:
        with pytest.raises(Corrupt):
            await Connection(source("opc.tcp://127.0.0.1:1")).resume(secret)

    run(work())


# ---- history --------------------------------------------------------------------------------------------


def test_history_is_read_page_by_page_with_its_exact_times(on_press: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.io.history.PAGE_ROWS", 7)

    async def work(made: Press) -> None:
        async with connected(made) as connection:
            cycle = made.nodes["Press.Cycle"]
            await made.server.historize_node_data_change(cycle, count=1000)
            subscription = await subscribe(connection, "Press.Cycle")
            live, rows = [], 0
            for value in range(20):
                await made.write("Press.Cycle", value)
                await asyncio.sleep(0.001)  # its historian is a dictionary by time
            while rows < 20:
                batch = (await next_data(connection))[1]
                rows += len(batch)
                live += list(zip(numbers(batch), batch.source_ticks.tolist(), strict=True))
            times = [t for _, t in live]
            asked = [(3, tag("Press.Cycle")), (4, tag("Press.Program")), (5, Tag(URI, "urn:x", "i=1"))]
            assert await connection.has_history(asked) == [3]
            failed: dict[int, int] = {}
            found: list[tuple[float, int]] = []
            async with asyncio.timeout(10):  # its historian hears of a value later than we do
                while not set(found) >= set(live[1:]):
                    found.clear()
                    async for page in connection.history(asked, min(times), max(times), failed):
                        assert set(page.handle.tolist()) == {3}
                        found += list(zip(numbers(page), page.source_ticks.tolist(), strict=True))
            assert len(set(found)) == len(found), "where a page was cut off nothing comes twice"
            assert failed[5] == 0x80340000
            await connection.delete_subscription(subscription.id)

    on_press(work)


# ---- losing the connection ------------------------------------------------------------------------------


def test_waiting_publish_fails_when_the_connection_is_dropped(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            await subscribe(connection, "Press.Cycle")
            await next_data(connection)
            waiting = asyncio.create_task(connection.publish())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            connection.abort()
            with pytest.raises(Unavailable):
                async with asyncio.timeout(1):
                    await waiting
            with pytest.raises(Unavailable):
                await connection.check()

    on_press(work)


def test_publish_on_a_connection_that_is_gone_fails_at_once(on_press: Test) -> None:
    async def work(made: Press) -> None:
        async with connected(made) as connection:
            await subscribe(connection, "Press.Cycle")
            connection.abort()
            await asyncio.sleep(0.05)  # until the transport has said so; nobody waits for anything meanwhile
            with pytest.raises(Unavailable):
                async with asyncio.timeout(1):
                    await connection.publish()

    on_press(work)


def test_waiting_publish_fails_when_the_server_goes_away() -> None:
    async def work() -> None:
        async with press() as made:
            connection = Connection(source(made.url))
            await connection.connect()
            await subscribe(connection, "Press.Cycle")
            await next_data(connection)
            waiting = asyncio.create_task(connection.publish())
            await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            async with asyncio.timeout(WAIT_S):
                while True:
                    await waiting
                    waiting = asyncio.create_task(connection.publish())
        await connection.close()

    run(work())


def test_nobody_listening_is_unavailable() -> None:
    async def work() -> None:
        with pytest.raises(Unavailable):
            await Connection(source(f"opc.tcp://127.0.0.1:{free_port()}")).connect()

    run(work())


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", random.Random(1).randbytes(4000), b"ACKF\xff\xff\xff\xff" + bytes(100)],
)
def test_server_that_is_none_is_unavailable_or_corrupt_within_the_timeout(answer: bytes) -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(WAIT_S):
            with pytest.raises((Unavailable, Corrupt)):
                await Connection(source(f"opc.tcp://127.0.0.1:{port}", request_timeout_s=1.0)).connect()
        server.close()

    run(work())


# ---- users ----------------------------------------------------------------------------------------------


def test_only_the_right_user_is_let_in_and_may_resume() -> None:
    async def work() -> None:
        async with press(users=True) as made:
            for user, password in (("operator", "wrong"), ("nobody", PASSWORD), ("", "")):
                with pytest.raises(ConfigError, match=r"BadUserAccessDenied|BadIdentityToken"):
                    await Connection(source(made.url, user=user, password_in_clear=True), password=password).connect()
            connection = Connection(source(made.url, user="operator", password_in_clear=True), password=PASSWORD)
            await connection.connect()
            facts = await connection.server_facts()
            assert isinstance(facts, ServerFacts)
            await subscribe(connection, "Press.Cycle")
            secret = connection.session_secret()
            connection.abort()
            heir = Connection(source(made.url, user="operator", password_in_clear=True), password=PASSWORD)
            await heir.resume(secret)
            assert await heir.server_facts() == facts
            await heir.close()

    run(work())
