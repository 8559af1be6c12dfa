"""One suite for every store: what `ObjectStore` promises, held against the reference and real servers."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo.servers import free_ports
from gateway.io.traffic import Counted, Traffic
from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from mirror.io.s3 import S3Settings, S3Store, together
from mirror.probe import probe
from mirror.store import MemoryStore, ObjectStore, get_bounded
from tests.conformance import servers

STORES = ["memory", "counted", "moto", "weed", "weed-tls"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], S3Settings]]:
    """Start each server once, when it is first asked for."""
    with ExitStack() as running:
        known: dict[str, S3Settings] = {}

        def place(kind: str) -> S3Settings:
            if kind not in known:
                folder = tmp_path_factory.mktemp(kind)
                if kind.startswith("weed"):
                    known["weed"], known["weed-tls"] = running.enter_context(servers.weed(folder))
                elif kind == "moto":
                    known[kind] = running.enter_context(servers.moto())
                else:
                    known[kind] = running.enter_context(servers.localbucket(folder))
            return known[kind]

        yield place


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, places: Callable[[str], S3Settings]) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    if request.param == "counted":
        yield Counted(MemoryStore(), Traffic(), "probe/")
        return
    opened = S3Store.open(places(request.param))
    yield opened
    opened.close()


@pytest.fixture
def at() -> str:
    return f"{uuid.uuid4().hex}/"


def test_an_object_comes_back_with_its_metadata_and_an_absent_one_is_none(store: ObjectStore, at: str):
    etag = store.put(f"{at}k", b"body", metadata={"chain": "0a", "sha256": "ff"})
    found = store.get(f"{at}k")
    assert found is not None
    assert (found.body, found.size, found.etag) == (b"body", 4, etag)
    assert dict(found.metadata) == {"chain": "0a", "sha256": "ff"}
    head = store.head(f"{at}k")
    assert head is not None
    assert (head.body, head.size, head.etag, dict(head.metadata)) == (b"", 4, etag, dict(found.metadata))
    assert store.get(f"{at}absent") is None
    assert store.head(f"{at}absent") is None
    assert store.get(f"{at}absent", (-4, None)) is None


@pytest.mark.parametrize("body", [b"0123456789", b""])
@pytest.mark.parametrize(
    "range",
    [(0, 3), (3, None), (-3, None), (-99, None), (8, 99), (10, None), (20, None), (20, 30), (0, 0), (2, 2), (5, 2)],
)
def test_a_range_is_cut_as_a_slice_is(store: ObjectStore, at: str, range: Any, body: bytes):
    etag = store.put(f"{at}k", body, metadata={"chain": "0a"})
    found = store.get(f"{at}k", range)
    assert found is not None
    assert (found.body, found.size, found.etag) == (body[slice(*range)], len(body), etag)
    assert found.metadata == {"chain": "0a"}
    assert store.get(f"{at}absent", range) is None


def test_a_range_that_no_store_knows_is_a_mistake_of_the_caller(store: ObjectStore, at: str):
    store.put(f"{at}k", b"0123456789")
    for range in ((-5, -2), (-5, 2), (2, -1)):
        with pytest.raises(AssertionError):
            store.get(f"{at}k", range)


def test_an_object_is_fetched_whole_up_to_a_limit(store: ObjectStore, at: str):
    for size in (0, 5, 2**20, 2**20 + 1):
        body = bytes(size)
        store.put(f"{at}k", body)
        for limit in (size, size + 1, 2**21):
            found = get_bounded(store, f"{at}k", limit)
            assert found is not None
            assert found.body == body
        if size:
            with pytest.raises(Corrupt, match=f"{size} bytes; {size - 1} is the most"):
                get_bounded(store, f"{at}k", size - 1)
    assert get_bounded(store, f"{at}absent", 5) is None


def test_a_store_says_what_it_is(store: ObjectStore):
    told = store.server()
    assert told
    assert store.server() == told


def test_a_name_is_created_once(store: ObjectStore, at: str):
    store.put(f"{at}k", b"first", if_none_match=True)
    with pytest.raises(Conflict):
        store.put(f"{at}k", b"second", if_none_match=True)
    found = store.get(f"{at}k")
    assert found is not None
    assert found.body == b"first"


def test_a_record_is_replaced_only_by_who_saw_its_last_state(store: ObjectStore, at: str):
    first = store.put(f"{at}k", b"1", if_none_match=True)
    second = store.put(f"{at}k", b"2", if_match=first)
    for stale in (first, '"00000000000000000000000000000000"'):
        with pytest.raises(Conflict):
            store.put(f"{at}k", b"3", if_match=stale)
    with pytest.raises(Conflict):
        store.put(f"{at}absent", b"4", if_match=second)
    found = store.get(f"{at}k")
    assert found is not None
    assert (found.body, found.etag) == (b"2", second)
    assert store.get(f"{at}absent") is None


def test_a_delete_by_a_stale_etag_deletes_nothing(store: ObjectStore, at: str):
    stale = store.put(f"{at}k", b"1")
    fresh = store.put(f"{at}k", b"2")
    with pytest.raises(Conflict):
        store.delete(f"{at}k", if_match=stale)
    assert store.head(f"{at}k") is not None
    store.delete(f"{at}k", if_match=fresh)
    assert store.head(f"{at}k") is None
    store.delete(f"{at}k")  # an absent object is no error


def test_of_racing_creates_exactly_one_wins(store: ObjectStore, at: str):
    for turn in range(5):
        key = f"{at}{turn}"
        bodies = [f"racer {i}" for i in range(12)]
        answers = together(
            [lambda body=body, key=key: (store.put(key, body.encode(), if_none_match=True), body)[1] for body in bodies]
        )
        won = [a for a in answers if isinstance(a, str)]
        assert all(isinstance(a, Conflict) for a in answers if not isinstance(a, str))
        found = store.get(key)
        assert found is not None
        assert [found.body.decode()] == won


def test_of_racing_replaces_none_is_lost(store: ObjectStore, at: str):
    store.put(f"{at}n", b"0")

    def count() -> str:
        accepted = 0
        while accepted < 3:
            found = store.get(f"{at}n")
            assert found is not None
            try:
                store.put(f"{at}n", str(int(found.body) + 1).encode(), if_match=found.etag)
                accepted += 1
            except Conflict:
                continue
        return str(accepted)

    answers = together([count] * 8)
    found = store.get(f"{at}n")
    assert found is not None
    assert int(found.body) == sum(int(str(a)) for a in answers) == 24


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text("ab0-.Z_~", min_size=1, max_size=4).filter(lambda n: n.strip(".")), max_size=8), st.data())
def test_listing_is_in_byte_order_after_a_name_up_to_a_limit(store: ObjectStore, names: set[str], data: st.DataObject):
    at = f"{uuid.uuid4().hex}/"
    for name in names:
        store.put(at + name, b"x")
    ordered = sorted(names, key=str.encode)
    assert [o.key for o in store.list(at)] == [at + n for n in ordered]
    if ordered:
        after = data.draw(st.sampled_from(ordered))
        limit = data.draw(st.integers(0, 5))
        wanted = [at + n for n in ordered if n.encode() > after.encode()][:limit]
        assert [o.key for o in store.list(at, start_after=at + after, limit=limit)] == wanted


def test_a_listing_longer_than_a_page_has_every_name_once(store: ObjectStore, at: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.s3._PAGE", 3)
    keys = [f"{at}{i:020d}" for i in range(10)]
    for key in keys:
        store.put(key, b"x")
    assert [o.key for o in store.list(at)] == keys
    assert [o.key for o in store.list(at, limit=7)] == keys[:7]
    assert [o.key for o in store.list(at, start_after=keys[4])] == keys[5:]


def test_a_rightful_checksum_is_accepted(store: ObjectStore, at: str):
    store.put(f"{at}k", b"body", sha256=hashlib.sha256(b"body").digest())


def test_the_probe_finds_nothing_against_the_store_and_leaves_nothing_behind(store: ObjectStore, at: str):
    dialects = store.dialects() if isinstance(store, S3Store) else [store]
    report = probe(dialects, at, "token", together)
    report.refuse()
    unmet = {c.name for c in report.checks if not c.ok}
    assert unmet <= {"upload-checksum"}, report
    assert report.dialect == 0
    assert list(store.list(at)) == []


@pytest.mark.parametrize("kind", ["weed", "weed-tls"])
def test_a_wrong_checksum_is_refused_by_a_store_that_checks(places: Callable[[str], S3Settings], kind: str, at: str):
    store = S3Store.open(places(kind))
    with pytest.raises(Corrupt):
        store.put(f"{at}k", b"body", sha256=hashlib.sha256(b"other").digest())
    assert store.head(f"{at}k") is None


@pytest.mark.parametrize("kind", ["weed", "weed-tls"])
def test_wrong_credentials_and_buckets_are_for_the_operator(places: Callable[[str], S3Settings], kind: str, at: str):
    right = places(kind)
    for wrong in ({"secret_key": "wrongwrong"}, {"access_key": "nobody"}, {"bucket": "no-such-bucket"}):
        store = S3Store.open(msgspec.structs.replace(right, **wrong))
        for act in (
            lambda s=store: s.put(f"{at}k", b"x", if_none_match=True),
            lambda s=store: s.put(f"{at}k", b"x"),
            lambda s=store: list(s.list(at)),
            lambda s=store: s.head(f"{at}k"),
            lambda s=store: s.get(f"{at}k"),
            lambda s=store: s.get(f"{at}k", (2, 2)),
            lambda s=store: s.delete(f"{at}k"),
            lambda s=store: s.server(),
        ):
            with pytest.raises(ConfigError) as raised:
                act()
            assert raised.value.hint
    stranger = S3Store.open(msgspec.structs.replace(right, secret_key="wrongwrong"))
    assert probe([S3Store.open(right)], at, "token", together, stranger).ok("authenticates")


def test_a_missing_bucket_is_for_the_operator_whatever_is_asked(places: Callable[[str], S3Settings], at: str):
    store = S3Store.open(msgspec.structs.replace(places("moto"), bucket="no-such-bucket"))
    for act in (store.server, lambda: store.head(at), lambda: store.get(at), lambda: list(store.list(at))):
        with pytest.raises(ConfigError, match="no-such-bucket"):
            act()


def test_a_certificate_of_an_unknown_authority_is_for_the_operator(places: Callable[[str], S3Settings]):
    store = S3Store.open(msgspec.structs.replace(places("weed-tls"), ca_file=""))
    with pytest.raises(ConfigError) as raised:
        store.head("k")
    assert "ca_file" in raised.value.hint


def test_nobody_listening_is_unavailable_for_reads_and_writes():
    store = S3Store.open(
        S3Settings(bucket="b-b", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", access_key="a", secret_key="b")
    )
    with pytest.raises(Unavailable):
        store.put("k", b"x", if_none_match=True)
    with pytest.raises(Unavailable):
        store.head("k")


def test_the_probe_refuses_a_store_that_ignores_conditions(places: Callable[[str], S3Settings], at: str):
    store = S3Store.open(places("localbucket"))
    report = probe(store.dialects(), at, "token", together)
    assert not report.ok("replace-if-match")
    with pytest.raises(ConfigError) as raised:
        report.refuse()
    assert "stale ETag was accepted" in str(raised.value)
    assert raised.value.hint


# Faults between here and the server, injected below the signature.


@pytest.fixture
def faulty(places: Callable[[str], S3Settings]) -> Iterator[tuple[S3Store, Callable[..., list[str]]]]:
    """A store on moto, and a function that makes one operation fail."""
    store = S3Store.open(places("moto"))

    def inject(operation: str, fault: Callable[[Any], Any]) -> list[str]:
        sent: list[str] = []

        def hook(request: Any, **_: Any) -> Any:
            sent.append(request.url)
            return fault(request)

        store.client.meta.events.register_last(f"before-send.s3.{operation}", hook)
        return sent

    yield store, inject
    store.close()


def answer(status: int, code: str) -> Callable[[Any], AWSResponse]:
    class Raw:
        def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
            yield f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()

    return lambda request: AWSResponse(request.url, status, {}, Raw())


def conditional(request: Any) -> bool:
    return bool({"If-Match", "If-None-Match"} & set(request.headers))


def lost(request: Any) -> None:
    """The server does it; its answer never arrives."""
    URLLib3Session().send(request)
    raise ReadTimeoutError(endpoint_url=request.url)


def unsent(request: Any) -> None:
    raise ConnectTimeoutError(endpoint_url=request.url)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (answer(409, "ConditionalRequestConflict"), Unavailable),
        (answer(412, "PreconditionFailed"), Conflict),
        (answer(429, "TooManyRequests"), Unavailable),
        (answer(500, "InternalError"), Unavailable),
        (answer(503, "SlowDown"), Unavailable),
        (answer(400, "RequestTimeout"), Unavailable),
        (answer(400, "BadDigest"), Corrupt),
        (answer(403, "AccessDenied"), ConfigError),
        (answer(403, "RequestTimeTooSkewed"), ConfigError),
        (answer(404, "NoSuchBucket"), ConfigError),
        (answer(501, "NotImplemented"), ConfigError),
        (unsent, Unavailable),
        (lost, Unavailable),
    ],
)
def test_each_answer_to_a_create_is_one_reaction_and_nothing_is_repeated(faulty: Any, at: str, fault: Any, error: Any):
    store, inject = faulty
    sent = inject("PutObject", fault)
    with pytest.raises(error):
        store.put(f"{at}k", b"x", if_none_match=True)
    assert len(sent) == 1


def test_a_store_without_conditional_writes_is_for_the_operator(faulty: Any, at: str):
    store, inject = faulty
    refuse = answer(501, "NotImplemented")
    inject("PutObject", lambda request: refuse(request) if conditional(request) else None)
    with pytest.raises(ConfigError) as raised:
        probe(store.dialects(), at, "token", together)
    assert "conditional writes" in raised.value.hint
    assert list(store.list(at)) == []


def test_the_probe_does_not_refuse_a_store_that_calls_off_concurrent_writes(faulty: Any, at: str):
    store, inject = faulty
    call_off, turns = answer(409, "ConditionalRequestConflict"), itertools.count(1)
    raced = ("/race", "/swaps")

    def every_other(request: Any) -> Any:
        met = conditional(request) and any(race in request.url for race in raced) and next(turns) % 2 == 0
        return call_off(request) if met else None

    inject("PutObject", every_other)
    probe(store.dialects(), at, "token", together).refuse()
    assert next(turns) > 8


def test_an_object_that_changes_while_a_range_is_read_is_read_again(
    faulty: Any, at: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mirror.io.s3._READ_PAUSE_S", 0.0)
    store, inject = faulty
    store.put(f"{at}k", b"0123456789")
    faults: list[Any] = [answer(416, "InvalidRange")]
    sent = inject("GetObject", lambda request: faults.pop()(request) if faults else None)
    found = store.get(f"{at}k", (-3, None))
    assert found is not None
    assert (found.body, len(sent)) == (b"789", 2)


def test_a_create_whose_answer_was_lost_is_found_by_reading_back(faulty: Any, at: str):
    store, inject = faulty
    inject("PutObject", lost)
    with pytest.raises(Unavailable):
        store.put(f"{at}k", b"mine", if_none_match=True)
    found = store.get(f"{at}k")
    assert found is not None
    assert found.body == b"mine"


def test_a_replace_of_a_record_that_is_gone_is_a_conflict(faulty: Any, at: str):
    store, inject = faulty
    inject("PutObject", answer(404, "NoSuchKey"))
    with pytest.raises(Conflict):
        store.put(f"{at}k", b"x", if_match='"00"')


def test_a_read_is_repeated_until_the_answer_comes(faulty: Any, at: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.s3._READ_PAUSE_S", 0.0)
    store, inject = faulty
    store.put(f"{at}k", b"x")
    faults: list[Any] = [answer(500, "InternalError"), unsent]
    sent = inject("GetObject", lambda request: faults.pop()(request) if faults else None)
    found = store.get(f"{at}k")
    assert found is not None
    assert (found.body, len(sent)) == (b"x", 3)


def test_a_read_that_is_never_answered_is_unavailable_in_the_end(faulty: Any, at: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.s3._READ_PAUSE_S", 0.0)
    store, inject = faulty
    sent = inject("HeadObject", answer(503, ""))
    with pytest.raises(Unavailable):
        store.head(f"{at}k")
    assert len(sent) == 3
