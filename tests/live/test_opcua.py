"""The connection against node-opcua: queues, Transfer, Republish and history as a server we did not write does them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.decode import Message, decode, read_publish, read_republish
from gateway.io import opcua
from gateway.io.identity import load_pair
from gateway.io.opcua import Connection
from gateway.server import Refused
from mirror.batch import Batch, concat, take
from mirror.errors import ConfigError
from mirror.tags import Tag
from tests.gateway.opcua_server import bounded, make_certificate, source
from tests.live.servers import NodeServer

NODES = 20
HISTORY = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeServer]:
    with NodeServer(tmp_path_factory.mktemp("node"), nodes=NODES, history=HISTORY) as server:
        yield server


def tags(server: NodeServer) -> list[tuple[int, Tag]]:
    return [(i, Tag(server.uri, server.namespace, f"s=c{i}")) for i in range(NODES)]


async def opened(server: NodeServer, **fields: Any) -> Connection:
    connection = Connection(source(server.endpoint, **fields), password=fields.get("user", ""))
    await connection.connect()
    return connection


async def subscribe(connection: Connection, server: NodeServer, queue_size: int = 1000) -> int:
    items = [(h, t, 0.0, queue_size) for h, t in tags(server)]
    made = await connection.subscribe(100, items, keep_alive_count=5, lifetime_count=1000)
    assert not made.refused and made.queue_size_min == queue_size
    return made.id


async def messages(connection: Connection, until: int) -> list[tuple[Message, Batch]]:
    """Return messages until every counter has reached a value."""
    found = []
    last = np.full(NODES, -1.0)
    while last.min() < until:
        message = read_publish(await connection.publish())
        batch = decode(message, handle_limit=NODES).batch
        if len(batch):
            found.append((message, batch))
            last[batch.handle] = batch.bits.view(np.float64)
    return found


def counters(batches: list[Batch]) -> list[list[int]]:
    """Return the values of each counter in the order in which they came."""
    whole = concat(batches)
    values = whole.bits.view(np.float64).astype(int)
    return [values[whole.handle == h].tolist() for h in range(NODES)]


def test_browse_and_read_agree_with_what_was_written(server: NodeServer) -> None:
    async def work() -> None:
        connection = await opened(server)
        found = await connection.browse("counters", [f"nsu={server.namespace};s=Counters/**"])
        assert [t.identifier for t in found] == [f"s=c{i}" for i in range(NODES)]
        assert found[3].name == "F0/c3" and found[3].data_type == "Double"
        batch = await connection.read(list(enumerate(found)))
        assert batch.bits.view(np.float64).tolist() == [server.last(i) for i in range(NODES)]
        facts = await connection.server_facts()
        assert facts.uri == server.uri and facts.start_ticks > 0 and facts.limits.monitor == 10_000
        await connection.close()

    asyncio.run(bounded(work()))


def test_every_write_arrives_and_publish_time_is_that_of_the_header(server: NodeServer) -> None:
    async def work() -> None:
        connection = await opened(server)
        await subscribe(connection, server)
        first = server.last(0)
        server.write(5)
        got = await messages(connection, first + 5)
        for values in counters([batch for _, batch in got]):
            assert values == list(range(first, first + 6))
        assert all(message.publish_ticks == 0 and message.response_ticks > 0 for message, _ in got)
        keepalive = read_publish(await connection.publish())
        assert keepalive.keepalive and keepalive.sequence == got[-1][0].sequence + 1
        await connection.close()

    asyncio.run(bounded(work()))


def test_subscription_of_a_dead_gateway_is_transferred_without_loss(server: NodeServer) -> None:
    async def work() -> None:
        dead = await opened(server, user="operator")
        subscription = await subscribe(dead, server)
        first = server.last(0)
        got = await messages(dead, first)
        server.write(3)
        lost = await messages(dead, first + 3)  # received, never stored
        dead.abort()
        server.write(3)

        heir = await opened(server, user="operator")
        refused: dict[int, int] = {}
        ours = await heir.transfer([subscription, 987654], refused)
        assert list(ours) == [subscription] and list(refused) == [987654]
        kept = [n for n in ours[subscription] if n > got[-1][0].sequence]
        assert kept[: len(lost)] == [m.sequence for m, _ in lost]
        again = [read_republish(await heir.republish(subscription, n)) for n in kept]
        batches = [decode(m, handle_limit=NODES).batch for m in again]
        if max(v[-1] for v in counters(batches)) < first + 6:
            batches += [b for _, b in await messages(heir, first + 6)]
        for values in counters([b for _, b in got] + batches):
            assert values == list(range(first, first + 7))
        with pytest.raises(Refused) as caught:
            await heir.republish(subscription, kept[-1] + 1000)
        assert caught.value.name == "BadMessageNotAvailable"
        await heir.close()

    asyncio.run(bounded(work()))


def test_publish_without_a_subscription_is_refused_by_name(server: NodeServer) -> None:
    async def work() -> None:
        connection = await opened(server)
        subscription = await subscribe(connection, server)
        for _ in range(2):  # one that is gone counts as deleted
            await connection.delete_subscription(subscription)
        with pytest.raises(Refused) as caught:
            await connection.publish()
        assert caught.value.name == "BadNoSubscription"
        await connection.close()

    asyncio.run(bounded(work()))


def test_transfer_for_another_user_is_refused_and_nothing_breaks(server: NodeServer) -> None:
    async def work() -> None:
        owner = await opened(server, user="operator")
        subscription = await subscribe(owner, server)
        other = await opened(server, user="stranger")
        refused: dict[int, int] = {}
        assert await other.transfer([subscription], refused) == {}
        assert list(refused) == [subscription]
        await other.close()
        await owner.close()

    asyncio.run(bounded(work()))


def test_session_is_resumed_without_loss(server: NodeServer) -> None:
    async def work() -> None:
        dead = await opened(server, user="operator")
        subscription = await subscribe(dead, server)
        first = server.last(0)
        got = await messages(dead, first)
        secret = dead.session_secret()
        dead.abort()
        server.write(4)
        heir = Connection(source(server.endpoint, user="operator"), password="operator")
        await heir.resume(secret)
        batches, sequence = [b for _, b in got], got[-1][0].sequence
        while True:  # there is no list of what is available after a resume
            sequence += 1
            try:
                message = read_republish(await heir.republish(subscription, sequence))
            except Refused as refused:
                assert refused.name == "BadMessageNotAvailable"
                break
            batches.append(decode(message, handle_limit=NODES).batch)
        if max(v[-1] for v in counters(batches)) < first + 4:
            batches += [b for _, b in await messages(heir, first + 4)]
        for values in counters(batches):
            assert values == list(range(first, first + 5))
        await heir.close()

    asyncio.run(bounded(work()))


def test_queue_that_ran_over_is_told_by_handle(server: NodeServer) -> None:
    async def work() -> None:
        connection = await opened(server)
        await subscribe(connection, server, queue_size=3)
        first = server.last(0)
        await messages(connection, first)
        server.write(10)
        message = read_publish(await connection.publish())
        got = decode(message, handle_limit=NODES)
        assert got.overflow.tolist() == list(range(NODES))
        for values in counters([got.batch]):
            assert values == [first + 8, first + 9, first + 10]
        await connection.close()

    asyncio.run(bounded(work()))


def test_history_comes_by_continuation_points_and_agrees_with_what_came_live(
    server: NodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.io.history.PAGE_ROWS", 7)
    monkeypatch.setattr("gateway.io.history.NODES_PER_CALL", 6)

    async def work() -> None:
        connection = await opened(server)
        await subscribe(connection, server)
        first = server.last(0)
        server.write(30)
        live = concat([b for _, b in await messages(connection, first + 30)])
        asked = tags(server)
        assert await connection.has_history(asked) == list(range(NODES))
        failed: dict[int, int] = {}
        start, end = int(live.source_ticks.min()), int(live.source_ticks.max())
        pages = [page async for page in connection.history(asked, start, end, failed)]
        assert failed == {}
        assert max(len(p) for p in pages) == 7
        history = concat(pages)

        def rows(batch: Batch) -> set[tuple[int, ...]]:
            columns = ("handle", "source_ticks", "server_ticks", "status", "kind", "bits")
            return set(zip(*(getattr(batch, c).tolist() for c in columns), strict=True))

        written = take(live, live.bits.view(np.float64) > first)  # the first value of each was there before
        assert len(rows(written)) == len(written) == 30 * NODES
        assert rows(written) <= rows(history)
        assert len(rows(history)) == len(history)
        for values in counters(pages):
            assert values == sorted(values)
        await connection.close()

    asyncio.run(bounded(work()))


def test_reader_who_stops_early_gives_continuation_points_back(
    server: NodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.io.history.PAGE_ROWS", 2)

    async def work() -> None:
        connection = await opened(server)
        server.write(10)
        for _ in range(30):  # more than the server has continuation points for
            pages = connection.history(tags(server)[:5], 131 * 10**15, 2 * 10**17)
            async for _page in pages:
                break
            await pages.aclose()
        failed: dict[int, int] = {}
        rows = sum([len(p) async for p in connection.history(tags(server)[:5], 131 * 10**15, 2 * 10**17, failed)])
        assert failed == {} and rows >= 50
        await connection.close()

    asyncio.run(bounded(work()))


def test_channel_is_renewed_while_samples_flow(server: NodeServer) -> None:
    async def work() -> None:
        connection = await opened(server)
        await subscribe(connection, server)
        first = server.last(0)
        got = await messages(connection, first)
        for turn in range(1, 4):
            waiting = asyncio.create_task(messages(connection, first + turn))
            await asyncio.sleep(0)  # the request is on its way before the renewal
            await connection._client.open_secure_channel(renew=True)
            server.write(1)
            got += await waiting
        for values in counters([batch for _, batch in got]):
            assert values == list(range(first, first + 4))
        await connection.close()

    asyncio.run(bounded(work()))


def test_secured_session_is_made_and_resumed_with_a_trusted_server(server: NodeServer, tmp_path: Path) -> None:
    ours = make_certificate(tmp_path, "us", "urn:edgemirror:gateway:test", server=False)
    trusted = tmp_path / "trust"
    trusted.mkdir()
    security = "Basic256Sha256:SignAndEncrypt"
    fields = {"security": security, "certificate_file": str(ours[0]), "key_file": str(ours[1]), "user": "operator",
              "trust_dir": str(trusted)}  # fmt: skip

    async def work() -> None:
        with pytest.raises(ConfigError, match="not trusted"):
            await opened(server, **fields)
        found = list(server.folder.rglob("own/certs/*.pem"))
        assert found, "the server keeps its certificate below its folder"
        (trusted / "server.pem").write_bytes(found[0].read_bytes())
        first = await opened(server, **fields)
        await subscribe(first, server)
        assert len((await messages(first, server.last(0)))[0][1]) == NODES
        secret = first.session_secret()
        first.abort()
        heir = Connection(source(server.endpoint, **fields), password="operator")
        await heir.resume(secret)
        assert (await heir.server_facts()).uri == server.uri
        await heir.close()

    asyncio.run(bounded(work()))


def test_a_user_is_known_by_certificate_and_key_and_not_with_another_key(
    server: NodeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make_certificate(tmp_path, "us", "urn:edgemirror:gateway:test", server=False)
    user, other = (make_certificate(tmp_path, name, f"urn:{name}", server=False) for name in ("user", "other"))
    trusted = tmp_path / "trust"
    trusted.mkdir()
    fields = {
        "security": "Basic256Sha256:SignAndEncrypt", "certificate_file": str(ours[0]), "key_file": str(ours[1]),
        "trust_dir": str(trusted), "user_certificate_file": str(user[0]), "user_key_file": str(user[1]),
    }  # fmt: skip

    async def work() -> None:
        with pytest.raises(ConfigError, match="not trusted"):
            await opened(server, **fields)
        (trusted / "server.pem").write_bytes(next(server.folder.rglob("own/certs/*.pem")).read_bytes())
        first = await opened(server, **fields)
        subscription = await subscribe(first, server)
        secret = first.session_secret()
        first.abort()
        with pytest.raises(Refused, match="BadInternalError"):  # node-opcua compares names and nothing else there
            await Connection(source(server.endpoint, **fields)).resume(secret)
        heir = await opened(server, **fields)
        assert list(await heir.transfer([subscription])) == [subscription]
        await heir.close()
        thief = load_pair(str(user[0]), str(user[1]))[0], load_pair(str(other[0]), str(other[1]))[1]
        monkeypatch.setattr(opcua, "load_pair", lambda *_: thief)  # who has the certificate, and a key of his own
        with pytest.raises(ConfigError, match="BadUserSignatureInvalid"):
            await opened(server, **fields)

    asyncio.run(bounded(work()))
