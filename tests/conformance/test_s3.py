"""What the S3 adapter puts on the wire, how long it waits, and which settings it does not take."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.awsrequest import AWSResponse

from demo.servers import free_ports
from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from mirror.io.s3 import S3Settings, S3Store
from mirror.store import cut, get_bounded
from tests.conformance import loopback
from tests.live import certificates

SLACK_S = 3.0  # of a machine that is busy with other things

OPENERS = pytest.mark.parametrize("opened", [S3Store.open, S3Store.quick])
Opener = Callable[[S3Settings], S3Store]


# On the wire


class Raw(io.BytesIO):
    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


@pytest.fixture(params=[S3Store.open, S3Store.quick])
def wire(request: pytest.FixtureRequest) -> tuple[S3Store, list[Any]]:
    """A store over TLS that is nowhere, and what would have been sent to it."""
    settings = S3Settings(bucket="b-b", endpoint="https://store.invalid", access_key="a", secret_key="b")
    store = request.param(settings)
    sent: list[Any] = []

    def hook(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {"ETag": '"0"', "Content-Length": "0"}, Raw())

    store.client.meta.events.register_last("before-send.s3", hook)
    return store, sent


def headers(request: Any) -> dict[str, str]:
    return {k.lower(): v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}


def assert_plain(request: Any, body: bytes) -> None:
    """Nothing that some servers cannot read: no chunks, no trailer, no signature of a stream."""
    told = headers(request)
    assert request.body.getvalue() == body
    assert told["content-length"] == str(len(body))
    assert not {"x-amz-trailer", "content-encoding", "transfer-encoding", "x-amz-decoded-content-length"} & set(told)
    assert not told["x-amz-content-sha256"].startswith("STREAMING")


def test_an_upload_is_sent_plainly_under_its_own_checksum(wire: tuple[S3Store, list[Any]]):
    store, sent = wire
    store.put("k", b"body", if_none_match=True, metadata={"chain": "0a"})
    [request] = sent
    assert_plain(request, b"body")
    told = headers(request)
    assert [name for name in told if "checksum" in name] == ["x-amz-checksum-sha256"]
    assert (told["if-none-match"], told["x-amz-meta-chain"]) == ("*", "0a")


def test_lease_records_are_sent_without_asking_first_as_often_as_need_be():
    """A proxy that swallows the question would cost a second for each."""
    with loopback.serve(loopback.accepting) as place:
        store = S3Store.quick(msgspec.structs.replace(place.settings, quick_timeout_s=10.0))
        for _ in range(12):
            store.put("k", b"x", if_match='"0"')
    assert len(place.headers) == 12
    assert all("Expect" not in told for told in place.headers)


def test_the_client_adds_no_checksum_of_its_own(wire: tuple[S3Store, list[Any]]):
    store, sent = wire
    store.client.put_object(Bucket="b-b", Key="k", Body=b"body")
    assert_plain(sent[0], b"body")
    store.client.get_object(Bucket="b-b", Key="k")
    store.get("k", (0, 5))
    store.head("k")
    assert len(sent) == 4
    assert [name for request in sent for name in headers(request) if "checksum" in name] == []


def test_keys_that_change_meanwhile_sign_the_next_request():
    now = ["first", "secret"]
    with loopback.serve(loopback.accepting) as place:
        store = S3Store.open(msgspec.structs.replace(place.settings, keys=lambda: (now[0], now[1])))
        store.put("k", b"x", if_none_match=True)
        now[0] = "second"
        store.put("k", b"x", if_none_match=True)
    assert ["Credential=first/" in told["Authorization"] for told in place.headers] == [True, False]
    assert "Credential=second/" in place.headers[1]["Authorization"]


# Time


def listen(store: S3Store) -> list[str]:
    """Return the methods of the requests that the store will have sent."""
    sent: list[str] = []
    store.client.meta.events.register_last("before-send.s3", lambda request, **_: sent.append(request.method))
    return sent


@OPENERS
def test_a_server_that_never_answers_is_unavailable_within_the_timeout(opened: Opener):
    with loopback.serve(loopback.silent) as place:
        store = opened(place.settings)
        sent, began = listen(store), time.monotonic()
        with pytest.raises(Unavailable):
            store.put("k", b"x", if_none_match=True)
        assert time.monotonic() - began < 1.5 + SLACK_S, "boto3 waits a second before it sends the body"
        assert sent == ["PUT"], "nothing that writes is repeated"


def test_a_read_of_the_log_is_repeated_and_one_of_a_lease_record_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.s3._READ_PAUSE_S", 0.0)
    with loopback.serve(loopback.silent) as place:
        for opened, tries in ((S3Store.open, 3), (S3Store.quick, 1)):
            store = opened(place.settings)
            sent = listen(store)
            with pytest.raises(Unavailable):
                store.get("k")
            assert sent == ["GET"] * tries


def test_a_lease_record_is_not_waited_for_while_its_answer_drips():
    with loopback.serve(loopback.dripping) as place:
        store = S3Store.quick(place.settings)
        for ask in (
            lambda: store.get("k"), lambda: store.head("k"), lambda: list(store.list("k")), store.server,
            lambda: store.put("k", b"x", if_match='"0"'), lambda: store.delete("k"),
        ):  # fmt: skip
            began = time.monotonic()
            with pytest.raises(Unavailable):
                ask()
            assert time.monotonic() - began < 0.5 + SLACK_S


def test_answers_that_nobody_waits_for_any_more_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.limit.CALLS_MAX", 2)
    with loopback.serve(loopback.dripping) as place:
        store = S3Store.quick(place.settings)
        sent = listen(store)
        for _ in range(2):
            with pytest.raises(Unavailable, match="no answer within"):
                store.head("k")
        with pytest.raises(Unavailable, match="2 earlier requests"):
            store.head("k")
        assert len(sent) == 2


@OPENERS
def test_a_write_that_lands_after_its_client_has_given_up_is_found_by_reading_back(opened: Opener):
    late = loopback.Late()
    with loopback.serve(late) as place:
        store = opened(msgspec.structs.replace(place.settings, read_timeout_s=1.0, quick_timeout_s=1.5))
        with pytest.raises(Unavailable):
            store.put("k", b"mine", if_none_match=True)
        assert store.get("k") is None, "not yet"
        late.gate.set()
        assert late.landed.wait(loopback.PATIENCE_S)
        found = store.get("k")
        assert found is not None
        assert found.body == b"mine"
        with pytest.raises(Conflict):
            store.put("k", b"another's", if_none_match=True)


def test_lease_records_have_a_client_of_their_own_with_short_timeouts():
    place = S3Settings(bucket="b-b", access_key="a", secret_key="b")
    patient, quick = S3Store.open(place), S3Store.quick(place)
    assert quick.client is not patient.client
    assert quick.client.meta.config.read_timeout == place.quick_timeout_s < patient.client.meta.config.read_timeout
    assert quick.client.meta.config.retries["total_max_attempts"] == 1


def test_nobody_listening_is_unavailable_for_reads_and_writes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.io.s3._READ_PAUSE_S", 0.0)
    store = S3Store.open(
        S3Settings(bucket="b-b", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", access_key="a", secret_key="b")
    )
    with pytest.raises(Unavailable):
        store.put("k", b"x", if_none_match=True)
    with pytest.raises(Unavailable):
        store.head("k")


# Servers that do not know ranges


@pytest.mark.parametrize("range", [(0, 3), (3, None), (-3, None), (-99, None), (8, 99), (10, None), (20, 30)])
def test_a_server_that_ignores_ranges_is_cut_here(range: Any):
    with loopback.serve(loopback.rangeless) as place:
        found = S3Store.open(place.settings).get("k", range)
        assert found is not None
        assert (found.body, found.size) == (cut(b"0123456789", range), 10)


def test_a_limit_holds_even_if_the_server_sends_everything():
    endless = loopback.Endless()
    with loopback.serve(endless) as place:
        store = S3Store.open(msgspec.structs.replace(place.settings, read_timeout_s=5.0))
        with pytest.raises(Corrupt, match="1000000000000 bytes"):
            get_bounded(store, "k", 2**22)
        store.close()
    assert endless.sent < 2**26


# Settings


def test_an_endpoint_or_bucket_that_is_none_is_refused_with_an_example():
    with pytest.raises(ConfigError, match=r"sync\.endpoint"):
        S3Store.open(S3Settings(bucket="b-b", endpoint="nonsense"))
    for url in ("acme-mirror/plantA", "http://x/y", "s3://"):
        with pytest.raises(ConfigError, match="s3://acme-mirror/plantA"):
            S3Settings.parse(url)
    assert S3Settings.parse("s3://acme/plantA/x/", region="eu").prefix == "plantA/x"


@OPENERS
@pytest.mark.parametrize("keys", [{"access_key": "a"}, {"secret_key": "b"}])
def test_one_key_without_the_other_is_for_the_operator(opened: Opener, keys: dict[str, str]):
    with pytest.raises(ConfigError) as raised:
        opened(S3Settings(bucket="b-b", **keys))
    assert "sync.access_key_file and sync.secret_key_file" in raised.value.hint


def test_half_a_key_in_the_environment_is_for_the_operator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ConfigError) as raised:
        S3Store.open(S3Settings(bucket="b-b"))
    assert "AWS_" in raised.value.hint


def test_a_region_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"sync\.region is 'eu west'"):
        S3Store.open(S3Settings(bucket="b-b", region="eu west"))


@OPENERS
def test_a_file_of_certificates_that_cannot_be_used_is_for_the_operator(opened: Opener, tmp_path: Path):
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for path in (tmp_path / "absent.pem", garbage, tmp_path):
        with pytest.raises(ConfigError, match=r"sync\.ca_file") as raised:
            opened(S3Settings(bucket="b-b", endpoint="https://127.0.0.1:1", ca_file=str(path)))
        assert str(path) in str(raised.value)
        assert raised.value.hint


def test_a_file_of_certificates_that_goes_away_is_for_the_operator(tmp_path: Path):
    ca = certificates.make(tmp_path).ca
    with loopback.serve(loopback.silent) as place:
        endpoint = place.settings.endpoint.replace("http:", "https:")
        store = S3Store.open(msgspec.structs.replace(place.settings, endpoint=endpoint, ca_file=str(ca)))
        ca.unlink()
        with pytest.raises(ConfigError, match=r"sync\.ca_file"):
            store.head("k")


# A proxy on the way


def test_a_proxy_is_asked_for_the_store_and_is_where_connections_go() -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            with listener.accept()[0] as client:
                asked.append(client.recv(65536))
                client.sendall(b"HTTP/1.1 200 OK\r\nServer: far\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        serving = threading.Thread(target=answer, daemon=True)
        serving.start()
        settings = S3Settings(bucket="b-b", endpoint="http://store.invalid", access_key="a", secret_key="b",
                              proxy=f"http://127.0.0.1:{port}")  # fmt: skip
        store = S3Store.open(settings)
        assert store.server() == "far"
        serving.join()
        assert store.address == f"http://127.0.0.1:{port}"
    assert asked[0].startswith(b"HEAD http://store.invalid/b-b")
