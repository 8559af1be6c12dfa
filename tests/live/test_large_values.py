"""Values of a megabyte and values within values within values, from a server through journal, bucket and broker."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from asyncua import Server, ua

from demo.servers import Weed
from mirror import chunk
from mirror.batch import Batch
from mirror.io.s3 import S3Settings, S3Store
from mirror.layout import Layout
from mirror.tags import TagTable
from mirror.verify import verify_store
from tests.gateway.opcua_server import free_port
from tests.live.gateways import Rig
from tests.live.servers import Counters, Mosquitto, until
from tests.live.subscriber import Subscriber

MIB = 1 << 20
ROUNDS = 3
DEEP = 60
ANY = ua.NodeId(ua.ObjectIds.BaseDataType)
Large = dict[str, ua.Variant]


def nested(depth: int, leaf: ua.Variant) -> ua.Variant:
    for _ in range(depth):
        leaf = ua.Variant([leaf], ua.VariantType.Variant)
    return leaf


def large(n: int) -> Large:
    """Return one round of values; each is another one than in the round before."""
    matrix = np.full((256, 256), n / 3).tolist()
    return {
        "text": ua.Variant(f"{n}" + "\u00e4" * (MIB // 2), ua.VariantType.String),
        "bytes": ua.Variant(hashlib.sha256(b"%d" % n).digest() * (MIB // 32), ua.VariantType.ByteString),
        "matrix": ua.Variant(matrix, ua.VariantType.Double),
        "texts": ua.Variant([f"{n}-{i}" for i in range(50_000)], ua.VariantType.String),
        "deep": nested(DEEP, ua.Variant(n, ua.VariantType.Int32)),
        "empty": ua.Variant("" if n % 2 else " ", ua.VariantType.String),
    }


@contextmanager
def served(rounds: dict[int, Large]) -> Iterator[tuple[int, Any]]:
    """Serve large values from a thread; yield the port, and a function that writes a round."""
    loop, port = asyncio.new_event_loop(), free_port()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[Server, dict[str, Any]]:
        server = Server()
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
        index = await server.register_namespace("urn:edgemirror:test:counters")
        top = await server.nodes.objects.add_folder(ua.NodeId("Counters", index), ua.QualifiedName("Counters", index))
        nodes = {
            name: await top.add_variable(ua.NodeId(name, index), ua.QualifiedName(name, index), value, datatype=ANY)
            for name, value in rounds[0].items()
        }
        await server.start()
        return server, nodes

    def call(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def write(nodes: dict[str, Any], values: Large) -> None:
        for name, value in values.items():
            await nodes[name].write_value(value)

    server, nodes = call(start())
    try:
        yield port, lambda n: call(write(nodes, rounds[n]))
    finally:
        call(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def values(batch: Batch, tags: TagTable) -> dict[tuple[str, bytes], int]:
    """Count rows by tag and value."""
    found: dict[tuple[str, bytes], int] = {}
    for row in range(len(batch)):
        if batch.status[row] == 0:
            key = (tags.tags[int(batch.handle[row])].name, batch.value_bytes(row))
            found[key] = found.get(key, 0) + 1
    return found


def journaled(rig: Rig) -> dict[tuple[str, bytes], int]:
    found: dict[tuple[str, bytes], int] = {}
    tags = rig.reader.tags()
    for row in rig.reader.chunks_since(0):
        for key, n in values(chunk.decode(row.body), tags).items():
            found[key] = found.get(key, 0) + n
    return found


def sent(rounds: dict[int, Large]) -> set[tuple[str, bytes]]:
    """Return (tag, value bytes as on the wire) of what was written: what stands behind the Variant's mask."""
    from asyncua.ua.ua_binary import variant_to_binary

    return {(name, variant_to_binary(value)[1:]) for n in rounds for name, value in rounds[n].items()}


def test_a_megabyte_and_sixty_levels_arrive_byte_for_byte_in_journal_and_bucket_and_hurt_nobody(tmp_path: Path) -> None:
    rounds = {n: large(n) for n in range(ROUNDS)}
    with (
        Weed(tmp_path / "store") as store,
        Mosquitto(tmp_path / "broker") as broker,
        served(rounds) as (port, write),
        Subscriber(broker.port, "uns/v1/acme/live/#") as heard,
    ):
        server = cast("Counters", SimpleNamespace(port=port))
        with Rig(tmp_path / "rig", server, store=store, broker=broker, publishing_ms=50) as rig:
            for n in range(ROUNDS):
                if n:
                    write(n)
                wanted = {key for key in sent({n: rounds[n]})}
                rig.until(lambda wanted=wanted: wanted <= journaled(rig).keys(), f"round {n} in the journal")  # type: ignore[misc]
            assert journaled(rig).keys() == sent(rounds), "and nothing else"
            rig.drained()
            settings = S3Settings(
                bucket=store.bucket, endpoint=store.endpoint, access_key=store.access_key, secret_key=store.secret_key
            )
            held: dict[tuple[str, bytes], int] = {}

            def visit(_header: object, batch: Batch, table: TagTable) -> None:
                for key, count in values(batch, table).items():
                    held[key] = held.get(key, 0) + count

            report = verify_store(S3Store.open(settings), Layout("live", rig.group), visit=visit)
            assert report.verified, report.findings
            assert held == journaled(rig)
            assert rig.reader.gaps() == [] and not rig.events("source.lost") and not rig.events("mqtt.disconnected")
            until(lambda: any(h.topic.endswith("/empty") for h in heard.heard), "small values on the broker")
            assert max(len(h.payload) for h in heard.heard) <= 64 << 10, "what is too large is cut short, and said so"
