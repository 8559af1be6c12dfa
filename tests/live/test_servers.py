"""Each server of the live tests does what the tests rely on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asyncua import Client, ua

from demo.servers import Process
from tests.live import certificates
from tests.live.proxy import Proxy
from tests.live.servers import AsyncuaServer, Broker, Counters, Mosquitto, NodeServer, Weed, needs, until

NODES = 5


@pytest.fixture(params=[NodeServer, AsyncuaServer])
def counters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Counters]:
    with request.param(tmp_path, nodes=NODES, history=1000) as server:
        yield server


class Seen:
    """Subscription handler that keeps what it is told and wakes the test."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}
        self.changed = asyncio.Event()

    def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
        self.values.setdefault(node.nodeid.Identifier, []).append(value)
        self.changed.set()

    async def until(self, name: str, value: Any) -> None:
        while value not in self.values.get(name, []):
            await self.changed.wait()
            self.changed.clear()


async def watch(client: Client, seen: Seen) -> None:
    subscription = await client.create_subscription(20, seen)
    nodes = [client.get_node(f"ns=2;s=c{i}") for i in range(NODES)]
    await subscription.subscribe_data_change(nodes, queuesize=1000, sampling_interval=0.0)


def test_every_count_of_a_counter_server_arrives_and_its_log_agrees(counters: Counters) -> None:
    async def go() -> dict[str, list[Any]]:
        seen = Seen()
        async with Client(counters.endpoint) as client:
            await watch(client, seen)
            await seen.until("c4", 0.0)
            await asyncio.to_thread(counters.run, 100)
            await asyncio.wait_for(seen.until("c0", 30.0), 10)
            await asyncio.to_thread(counters.pause)
            for i in range(NODES):
                await asyncio.wait_for(seen.until(f"c{i}", float(counters.last(i))), 10)
            return seen.values

    values = asyncio.run(go())
    for i in range(NODES):
        assert values[f"c{i}"] == [float(v) for v in range(counters.last(i) + 1)]


def test_a_crashed_counter_server_goes_on_counting_on_the_same_port(counters: Counters) -> None:
    counters.write(3)
    endpoint = counters.endpoint
    counters.crash()
    assert counters.process is not None and counters.process.popen.returncode == 9
    counters.restart()
    assert counters.endpoint == endpoint
    assert counters.write(1) == 4 * NODES
    assert [counters.last(i) for i in range(NODES)] == [4] * NODES

    async def read() -> Any:
        async with Client(counters.endpoint) as client:
            return await client.get_node("ns=2;s=c0").read_value()

    assert asyncio.run(read()) == 4.0


def test_a_counter_server_keeps_history_and_bends_and_deletes_nodes(counters: Counters) -> None:
    start = datetime.now(UTC).replace(tzinfo=None)
    counters.write(5)
    counters.set_status(1, ua.StatusCodes.BadNoCommunication)
    counters.delete(2)

    async def read() -> tuple[list[Any], int, int]:
        async with Client(counters.endpoint) as client:
            rows = await client.get_node("ns=2;s=c0").read_raw_history(start, start + timedelta(hours=1), 1000)
            bent = await client.get_node("ns=2;s=c1").read_data_value(raise_on_bad_status=False)
            gone = await client.get_node("ns=2;s=c2").read_data_value(raise_on_bad_status=False)
            return [row.Value.Value for row in rows], bent.StatusCode.value, gone.StatusCode.value

    history, bent, gone = asyncio.run(read())
    assert history[-5:] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert bent == ua.StatusCodes.BadNoCommunication
    assert gone == ua.StatusCodes.BadNodeIdUnknown


def test_node_opcua_refuses_sessions_above_its_limit(tmp_path: Path) -> None:
    async def go(endpoint: str) -> None:
        async with Client(endpoint):
            with pytest.raises(ua.UaStatusCodeError):
                async with Client(endpoint):
                    pass

    with NodeServer(tmp_path, options={"max-sessions": 1}) as server:
        asyncio.run(go(server.endpoint))


def test_a_counter_server_ends_with_its_test(tmp_path: Path) -> None:
    server = AsyncuaServer(tmp_path, nodes=1).start()
    assert server.process is not None
    server.process.stdin.close()
    assert server.process.popen.wait(10) == 0


def test_weed_keeps_objects_over_a_kill_and_checks_signatures(tmp_path: Path) -> None:
    from botocore.exceptions import ClientError

    needs("weed")
    with Weed(tmp_path) as store:
        store.client().put_object(Bucket=store.bucket, Key="k", Body=b"v", IfNoneMatch="*")
        with pytest.raises(ClientError, match=r"PreconditionFailed|412"):
            store.client().put_object(Bucket=store.bucket, Key="k", Body=b"w", IfNoneMatch="*")
        with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|403"):
            store.client(secret_key="wrong").get_object(Bucket=store.bucket, Key="k")
        with pytest.raises(ClientError, match="NoSuchBucket"):
            store.client().put_object(Bucket="misspelt", Key="k", Body=b"v")
        store.kill()
        store.start()
        assert store.client().get_object(Bucket=store.bucket, Key="k")["Body"].read() == b"v"


def test_weed_speaks_tls_with_a_certificate_of_our_own_ca(tmp_path: Path) -> None:
    needs("weed")
    made = certificates.make(tmp_path / "tls")
    with Weed(tmp_path / "store", certificate=(made.certificate, made.key)) as store:
        client = store.client(tls_ca=made.ca)
        client.put_object(Bucket=store.bucket, Key="k", Body=b"v")
        assert client.get_object(Bucket=store.bucket, Key="k")["Body"].read() == b"v"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{store.tls_endpoint}/healthz")


def test_two_stores_run_side_by_side_and_listen_on_loopback_alone(tmp_path: Path) -> None:
    needs("weed")
    with Weed(tmp_path / "a") as a, Weed(tmp_path / "b") as b:
        assert not set(a.ports) & set(b.ports)
        for store in (a, b):
            assert store.process is not None
            assert listeners(store.process.pid) == {"0100007F"}


def listeners(pid: int) -> set[str]:
    """Return the local IPv4 addresses, as the kernel writes them, on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.parametrize("kind", [Mosquitto, Broker])
def test_a_broker_passes_a_retained_message_on(kind: type[Mosquitto] | type[Broker], tmp_path: Path) -> None:
    from paho.mqtt import publish, subscribe

    needs("mosquitto" if kind is Mosquitto else "iotcore")
    with kind(tmp_path) as broker:
        publish.single("t", b"v", qos=1, retain=True, hostname="127.0.0.1", port=broker.port)
        message: Any = subscribe.simple("t", qos=1, hostname="127.0.0.1", port=broker.port)
        assert message.payload == b"v" and message.retain


def test_mosquitto_keeps_retained_messages_over_a_restart(tmp_path: Path) -> None:
    from paho.mqtt import publish, subscribe

    with Mosquitto(tmp_path) as broker:
        publish.single("t", b"v", qos=1, retain=True, hostname="127.0.0.1", port=broker.port)
        broker.stop()
        broker.start()
        message: Any = subscribe.simple("t", qos=1, hostname="127.0.0.1", port=broker.port)
        assert message.payload == b"v"


def test_mosquitto_speaks_tls_to_who_trusts_its_ca(tmp_path: Path) -> None:
    from paho.mqtt import publish

    made = certificates.make(tmp_path / "tls")
    with Mosquitto(tmp_path / "broker", certificate=(made.ca, made.certificate, made.key)) as broker:
        tls: Any = {"ca_certs": str(made.ca)}
        publish.single("t", b"v", qos=1, hostname="127.0.0.1", port=broker.port, tls=tls)


class Echo:
    """A TCP server that sends back what it gets, in a thread."""

    def __init__(self) -> None:
        import socketserver
        import threading

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while data := self.request.recv(4096):
                    self.request.sendall(data)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    echo = Echo()
    with Proxy(echo.port) as made:
        yield made
    echo.close()


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def test_the_proxy_forwards_and_delays(proxy: Proxy) -> None:
    with dial(proxy) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        proxy.delay_s = 0.1
        start = time.monotonic()
        s.sendall(b"b")
        assert s.recv(1) == b"b"
        assert time.monotonic() - start >= 0.2


def test_a_cut_proxy_resets_and_refuses_until_healed(proxy: Proxy) -> None:
    with dial(proxy) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        proxy.cut()
        with pytest.raises(ConnectionError):
            if s.recv(1) == b"":
                raise ConnectionResetError
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.heal()
    with dial(proxy) as s:
        s.sendall(b"b")
        assert s.recv(1) == b"b"


def test_a_stalled_proxy_keeps_connections_open_and_loses_nothing(proxy: Proxy) -> None:
    with dial(proxy) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        proxy.stall()
        s.settimeout(0.2)
        with pytest.raises(TimeoutError):
            s.sendall(b"b")
            s.recv(1)
        proxy.flow()
        s.settimeout(5)
        assert s.recv(1) == b"b"
        until(lambda: proxy.connections == 1, "one connection")


def test_a_frozen_process_thaws_and_a_killed_one_is_gone(tmp_path: Path) -> None:
    process = Process(["sleep", "60"], tmp_path, "sleeper")
    state = Path(f"/proc/{process.pid}/stat")
    process.freeze()
    until(lambda: state.read_text().split()[2] == "T", "frozen")
    process.thaw()
    until(lambda: state.read_text().split()[2] == "S", "thawed")
    assert process.kill() == -9
    assert not process.alive
