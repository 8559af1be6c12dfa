"""One suite for every register that a lease can stand in: compare-and-swap, answers in time, nothing believed."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest

from demo.servers import free_ports
from gateway.io.etcd import EtcdRegister
from gateway.io.registers import ABSENT, SoloRegister, StoreRegister
from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from mirror.io.s3 import S3Settings, S3Store
from mirror.lease import Record, Register, decode
from mirror.store import MemoryStore
from tests.conformance import servers
from tests.live.etcd import Etcd
from tests.live.proxy import Proxy

LIMIT_S = 1.0
Open = Callable[[], Register]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    with servers.weed(tmp_path_factory.mktemp("weed")) as (plain, _):
        yield plain


_groups = iter(range(1_000_000))


@pytest.fixture(params=["solo", "memory", "weed", "etcd"])
def opens(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Yield what opens one and the same fresh register again and again."""
    group, made = f"g{next(_groups)}", list[Register]()
    solo, memory = SoloRegister(), MemoryStore()

    def fresh() -> Register:
        match request.param:
            case "solo":
                return solo
            case "memory":
                return StoreRegister(memory, f"{group}/lease.json", "memory")
            case "weed":
                settings = msgspec.structs.replace(request.getfixturevalue("weed"), quick_timeout_s=LIMIT_S)
                register: Register = StoreRegister(S3Store.quick(settings), f"{group}/lease.json", "weed")
            case _:
                register = EtcdRegister(request.getfixturevalue("etcd").endpoints, group, limit_s=LIMIT_S)
        made.append(register)
        return register

    yield fresh
    for register in made:
        register.close()


def record(epoch: int, holder: str = "a", beat: int = 0) -> Record:
    return Record(epoch, holder, f"{holder}-1", beat)


# Compare and swap


def test_an_empty_register_says_so_and_is_filled_once(opens: Open) -> None:
    register = opens()
    assert register.read() == (None, ABSENT)
    version = register.swap(record(1), ABSENT)
    with pytest.raises(Conflict):
        opens().swap(record(2, "b"), ABSENT)
    assert opens().read() == (record(1), version)


def test_a_swap_needs_the_version_that_stands_there(opens: Open) -> None:
    register = opens()
    first = register.swap(record(1), ABSENT)
    second = register.swap(record(1, beat=1), first)
    assert second != first
    for stale in (first, ABSENT):
        with pytest.raises(Conflict):
            register.swap(record(2, "b"), stale)
    assert register.read() == (record(1, beat=1), second)


def test_of_many_rivals_one_wins_each_round_and_the_others_know_it(opens: Open) -> None:
    rivals = [opens() for _ in range(6)]
    version = rivals[0].swap(record(0), ABSENT)
    with ThreadPoolExecutor(len(rivals)) as pool:
        for epoch in range(1, 13):
            start = threading.Barrier(len(rivals))

            def compete(at: int, epoch: int = epoch, version: str = version, start: threading.Barrier = start) -> str:
                start.wait()
                mine = record(epoch, f"r{at}")
                try:
                    return rivals[at].swap(mine, version)
                except Conflict:
                    return ""
                except Unavailable:  # a busy machine: what became of it?
                    found, now = rivals[at].read()
                    return now if found == mine else ""

            won = [(at, v) for at, v in enumerate(pool.map(compete, range(len(rivals)))) if v]
            ((winner, version),) = won
            assert rivals[winner - 1].read() == (record(epoch, f"r{winner}"), version)


def test_what_identifies_the_register_is_the_same_for_all_of_its_users(opens: Open) -> None:
    first, second = opens(), opens()
    first.swap(record(1), ABSENT)
    second.read()
    assert first.arbiter == second.arbiter
    assert first.arbiter.startswith(("solo", "s3:", "etcd:"))
    assert "unknown" not in first.arbiter


# Answers in time


def etcd_behind(proxy: Proxy) -> EtcdRegister:
    return EtcdRegister([f"http://127.0.0.1:{proxy.port}"], f"g{next(_groups)}", limit_s=LIMIT_S)


def store_behind(proxy: Proxy, weed: S3Settings) -> StoreRegister:
    far = msgspec.structs.replace(weed, endpoint=f"http://127.0.0.1:{proxy.port}", quick_timeout_s=LIMIT_S)
    return StoreRegister(S3Store.quick(far), f"g{next(_groups)}/lease.json", "weed")


@pytest.fixture(params=["etcd", "weed"])
def far(request: pytest.FixtureRequest) -> Iterator[tuple[Register, Proxy]]:
    """Yield a register and the way to it."""
    if request.param == "etcd":
        port = request.getfixturevalue("etcd").members[0].port
    else:
        port = int(request.getfixturevalue("weed").endpoint.rpartition(":")[2])
    with Proxy(port) as proxy:
        register = (
            etcd_behind(proxy) if request.param == "etcd" else store_behind(proxy, request.getfixturevalue("weed"))
        )
        yield register, proxy
        register.close()


@pytest.mark.parametrize("way", ["cut", "stall"])
def test_who_is_not_heard_of_in_time_is_unavailable_for_reads_and_swaps(far: tuple[Register, Proxy], way: str) -> None:
    register, proxy = far
    version = register.swap(record(1), ABSENT)
    getattr(proxy, way)()
    for act in (register.read, lambda: register.swap(record(1, beat=1), version)):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            act()
        assert time.monotonic() - began < 2 * LIMIT_S + 0.5
    proxy.heal()
    found, _ = register.read()
    assert found is not None
    assert found.epoch == 1


def test_an_answer_that_was_lost_is_found_by_reading_and_a_late_swap_only_lands_where_it_was_meant(
    far: tuple[Register, Proxy],
) -> None:
    register, proxy = far
    version = register.swap(record(1), ABSENT)
    proxy.stall()
    with pytest.raises(Unavailable):
        register.swap(record(1, beat=1), version)
    proxy.heal()
    found, now = register.read()
    assert found in (record(1), record(1, beat=1)), "it did not happen, or it did"
    if found == record(1):
        try:
            now = register.swap(record(2, "b"), now)
        except Conflict:  # it came late, between the two
            return
        assert register.read() == (record(2, "b"), now)
    with pytest.raises(Conflict):
        register.swap(record(3), version)


def test_etcd_answers_through_any_member_and_not_without_a_majority(etcd: Etcd) -> None:
    register = EtcdRegister(etcd.endpoints, f"g{next(_groups)}", limit_s=LIMIT_S)
    version = register.swap(record(1), ABSENT)
    etcd.members[0].kill()
    deadline = time.monotonic() + 20
    while True:
        try:
            version = register.swap(record(2), register.read()[1])
            break
        except (Unavailable, Conflict):
            assert time.monotonic() < deadline
    etcd.members[1].kill()
    with pytest.raises(Unavailable):
        register.swap(record(3), version)
    etcd.members[0].start()
    etcd.members[1].start()
    while True:
        try:
            found, _ = register.read()
            break
        except Unavailable:
            assert time.monotonic() < deadline + 20
    assert found in (record(2), record(3))
    register.close()


def test_who_watches_etcd_hears_of_a_change_at_once(etcd: Etcd) -> None:
    group = f"g{next(_groups)}"
    writer, watcher = (EtcdRegister(etcd.endpoints, group, limit_s=LIMIT_S) for _ in range(2))
    heard = threading.Semaphore(0)
    thread = threading.Thread(target=watcher.watch, args=(heard.release,), daemon=True)
    thread.start()
    assert heard.acquire(timeout=10), "it says that it watches"
    began = time.monotonic()
    writer.swap(record(1), ABSENT)
    assert heard.acquire(timeout=5)
    assert time.monotonic() - began < 1.0
    watcher.close()
    thread.join(10)
    assert not thread.is_alive()
    writer.close()


# Nothing is believed


def answering(status: int, body: object) -> EtcdRegister:
    def answer(request: httpx.Request) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=content)

    return EtcdRegister(["http://etcd.invalid:1"], "g", limit_s=LIMIT_S, transport=httpx.MockTransport(answer))


HEADER = {"header": {"cluster_id": "7", "revision": "9"}}


def with_value(data: bytes) -> dict[str, object]:
    return {**HEADER, "kvs": [{"mod_revision": "9", "value": base64.b64encode(data).decode()}]}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"<html>", ConfigError), (200, {}, ConfigError), (200, {"header": 3}, ConfigError),
        (404, {}, ConfigError), (401, {}, ConfigError), (503, {}, Unavailable),
        (500, b"context deadline exceeded", Unavailable),
        (200, {**HEADER, "kvs": [{}]}, Corrupt),
        (200, {**HEADER, "kvs": [{"mod_revision": "x", "value": ""}]}, Corrupt),
        (200, with_value(b"nonsense"), Corrupt), (200, with_value(b'{"epoch":-1}'), Corrupt),
        (200, b" " * 100_000, Corrupt),
    ],
)  # fmt: skip
def test_an_etcd_that_answers_nonsense_grants_nothing(status: int, body: object, error: type[Exception]) -> None:
    register = answering(status, body)
    with pytest.raises(error):
        register.read()
    with pytest.raises((ConfigError, Unavailable, Conflict, Corrupt)):
        register.swap(record(1), "9")


def test_members_of_two_clusters_are_refused() -> None:
    clusters = iter("78")

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"header": {"cluster_id": next(clusters)}})

    register = EtcdRegister(["http://e.invalid:1"], "g", limit_s=LIMIT_S, transport=httpx.MockTransport(answer))
    register.read()
    with pytest.raises(ConfigError, match="two clusters"):
        register.read()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"epoch":1}',
        b'{"epoch":"1","holder":"a","incarnation":"","beat":0}',
        b'{"epoch":-1,"holder":"a","incarnation":"","beat":0}',
        b'{"epoch":1e300,"holder":"a","incarnation":"","beat":0}',
        b'{"epoch":1,"holder":"a","incarnation":"","beat":0,"more":1}', b"[" * 900, b" " * 2000,
        b'{"epoch":9007199254740993,"holder":"a","incarnation":"","beat":0}',
        b'{"epoch":1,"holder":"' + b"a" * 300 + b'","incarnation":"","beat":0}',
    ],
)  # fmt: skip
def test_bytes_that_are_no_record_are_refused_in_the_bucket_too(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data)
    store = MemoryStore()
    store.put("k", data)
    register = StoreRegister(store, "k", "memory")
    with pytest.raises(Corrupt):
        register.read()


def test_a_record_is_what_it_was() -> None:
    for one in (record(1), Record(3, "", "", 9, "b"), Record(0, "ä/", "x", 2**53 - 1)):
        assert decode(one.encode()) == one


def test_nobody_listening_is_unavailable() -> None:
    register = EtcdRegister([f"http://127.0.0.1:{free_ports(1)[0]}"], "g", limit_s=LIMIT_S)
    with pytest.raises(Unavailable, match="does not answer"):
        register.read()
