"""The connection: versions, TLS, passwords, limits, and the ways in which it ends."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from demo.servers import Broker as Embedded
from gateway.formats.json_uns import Message
from gateway.io.mqtt import REFUSED_TOPICS_MAX, Broker, Link, Phase, Status
from mirror.errors import ConfigError
from tests.live.certificates import make
from tests.live.servers import Mosquitto
from tests.live.subscriber import Subscriber

WILL = Message("uns/will", b"offline", 1, True)


def broker(port: int, scheme: str = "mqtt", **options: Any) -> Broker:
    return Broker(f"{scheme}://127.0.0.1:{port}", "edgemirror-test", "edge01", **options)


class Driven:
    """A link and what drives it, as the publisher's thread would."""

    def __init__(self, settings: Broker) -> None:
        self.status = Status()
        self.link = Link(settings, WILL, self.status)
        self._wake, self._other = socket.socketpair()

    def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.status
            self.link.wait(self._wake, 0.05)

    def connect(self) -> str:
        """Try to connect, with either version; return why it failed, empty if it did not."""
        for _ in range(4):
            self.link.open()
            self.until(lambda: self.link.phase is not Phase.CONNECTING)
            if self.link.phase is Phase.UP or not self.link.other_version():
                break
        return self.status.last_error

    def close(self) -> None:
        self.link.close("test ended", polite=True)
        self._wake.close()
        self._other.close()


@contextlib.contextmanager
def driven(settings: Broker) -> Iterator[Driven]:
    d = Driven(settings)
    try:
        yield d
    finally:
        d.close()


@contextlib.contextmanager
def answering(answer: Callable[[int], bytes | None]) -> Iterator[int]:
    """Run a listener that reads a CONNECT and answers by its protocol level; None hangs up at once."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                level = connection.recv(4096)[8]
                data = answer(level)
                if data is not None:
                    connection.sendall(data)
                    held.append(connection)
                else:
                    connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in held:
            connection.close()


@contextlib.contextmanager
def judging(reason: Callable[[str], int]) -> Iterator[int]:
    """Run a broker of MQTT 5 that answers each PUBLISH with the reason code for its topic."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError, IndexError):  # IndexError: it left in the middle of a packet
            while True:
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as stream:
                    while head := stream.read(1):
                        size = shift = 0
                        while True:
                            byte = stream.read(1)[0]
                            size, shift = size | (byte & 127) << shift, shift + 7
                            if not byte & 128:
                                break
                        body = stream.read(size)
                        connection.sendall(_answer(head[0] >> 4, body, reason))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def _answer(kind: int, body: bytes, reason: Callable[[str], int]) -> bytes:
    if kind == 3:
        end = 2 + int.from_bytes(body[:2])
        return b"\x40\x03" + body[end : end + 2] + bytes([reason(body[2:end].decode())])
    return {1: b"\x20\x03\x00\x00\x00", 12: b"\xd0\x00"}.get(kind, b"")


def test_mqtt_5_is_spoken_where_the_broker_knows_it(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as server, driven(broker(server.port)) as d:
        assert d.connect() == ""
        assert (d.status.connected, d.status.protocol) == (True, "5")


def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_3_1_1(tmp_path: Path) -> None:
    with Embedded(tmp_path) as server, driven(broker(server.port)) as d:
        assert d.connect() == ""
        assert d.status.protocol == "3.1.1"


@pytest.mark.parametrize("refusal", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", None])
def test_any_refusal_of_version_5_leads_to_3_1_1(refusal: bytes | None) -> None:
    with answering(lambda level: refusal if level == 5 else b"\x20\x02\x00\x00") as port, driven(broker(port)) as d:
        assert d.connect() == ""
        assert d.status.protocol == "3.1.1"


def test_two_refused_versions_are_not_tried_in_turn_for_ever() -> None:
    with answering(lambda level: None) as port, driven(broker(port)) as d:
        assert d.connect() != ""
        assert d.link.phase is Phase.CLOSED


def test_a_refused_password_is_no_reason_to_change_the_version() -> None:
    with answering(lambda level: b"\x20\x03\x00\x87\x00") as port, driven(broker(port)) as d:
        assert "Not authorized" in d.connect()
        assert not d.link.other_version()


def test_an_unreadable_answer_ends_the_connection() -> None:
    with answering(lambda level: b"\x20\xff\xff\xff\xff\xff") as port, driven(broker(port)) as d:
        d.link.open()
        d.until(lambda: d.link.phase is Phase.CLOSED)
        assert d.status.last_error


def test_nobody_listening_is_an_error_and_no_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with driven(broker(port)) as d:
        assert "refused" in d.connect()
        assert d.link.phase is Phase.CLOSED


def test_tls_connects_with_the_right_authority_and_not_without(tmp_path: Path) -> None:
    made = make(tmp_path / "pki")
    other = make(tmp_path / "other")
    with Mosquitto(tmp_path, certificate=(made.ca, made.certificate, made.key)) as server:
        with driven(broker(server.port, "mqtts", ca_file=str(made.ca))) as d:
            assert d.connect() == ""
            d.link.publish(Message("uns/x", b"1", 1, False))
            d.until(lambda: d.link.inflight == 0)
        with driven(broker(server.port, "mqtts", ca_file=str(other.ca))) as d:
            assert "certificate verify failed" in d.connect()


@pytest.mark.parametrize(
    ("fields", "told", "mend"),
    [
        ({"host": "elsewhere.plant"}, "mismatch", "set mqtt.url to a name that stands in the certificate"),
        ({"life": timedelta(minutes=-5)}, "expired", "give the broker a new certificate"),
        ({}, "certificate", "set mqtt.ca_file to the certificate authority of the broker"),
    ],
)
def test_a_broker_that_is_not_the_one_meant_is_refused_with_what_to_do(
    tmp_path: Path, fields: dict[str, Any], told: str, mend: str
) -> None:
    made = make(tmp_path / "pki", **fields)
    ca = made.ca if fields else make(tmp_path / "other", **fields).ca
    with (
        Mosquitto(tmp_path, certificate=(made.ca, made.certificate, made.key)) as server,
        driven(broker(server.port, "mqtts", ca_file=str(ca))) as d,
    ):
        said = d.connect()
    assert "certificate verify failed" in said and told in said and mend in said


def test_a_broker_that_asks_for_a_certificate_gets_one_and_who_has_none_or_another_is_told(tmp_path: Path) -> None:
    made, other = make(tmp_path / "pki"), make(tmp_path / "other")
    with Mosquitto(tmp_path, certificate=(made.ca, made.certificate, made.key), clients=True) as server:

        def said(certificate: Path | None, key: Path | None = None) -> str:
            mine = {"certificate_file": str(certificate), "key_file": str(key)} if certificate else {}
            with driven(broker(server.port, "mqtts", ca_file=str(made.ca), **mine)) as d:
                return d.connect()

        assert said(made.certificate, made.key) == ""
        assert "it may ask for a client certificate: mqtt.certificate_file" in said(None)
        assert "it may not accept mqtt.certificate_file" in said(other.certificate, other.key)
        assert "two files that belong together" in said(made.certificate, other.key)
        locked = tmp_path / "locked.key"
        key = load_pem_private_key(made.key.read_bytes(), None)
        locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
        assert said(made.certificate, locked) != ""  # and nobody is asked for the word at a terminal


def test_user_and_password_come_from_their_file(tmp_path: Path) -> None:
    seen: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        seen.append(connection.recv(4096))
        connection.sendall(b"\x20\x03\x00\x00\x00")
        seen.append(connection.recv(4096))
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    with driven(broker(server.getsockname()[1], user="edge", password_file=str(secret))) as d:
        assert d.connect() == ""
    thread.join()
    server.close()
    assert seen[0].endswith(b"\x00\x04edge\x00\x06s3cret")
    assert seen[1][0] == 0xE0  # DISCONNECT, so that the will is not published


def test_the_brokers_own_limits_hold() -> None:
    properties = b"\x21\x00\x03" + b"\x27\x00\x00\x10\x00"  # receive maximum 3, maximum packet size 4096
    answer = b"\x20" + bytes([3 + len(properties)]) + b"\x00\x00" + bytes([len(properties)]) + properties
    with answering(lambda level: answer) as port, driven(broker(port)) as d:
        assert d.connect() == ""
        assert d.link.packet_bytes_max == 4096
        sent = 0
        while d.link.room():
            d.link.publish(Message("uns/x", b"1", 1, False))
            sent += 1
        assert sent == 3


def test_a_refused_message_is_answered_and_not_taken_and_each_refusal_is_told_once() -> None:
    reasons = {"uns/a": 0x87, "uns/b": 0x00}

    with judging(lambda topic: reasons[topic]) as port, driven(broker(port)) as d:

        def send(*topics: str) -> list[tuple[str, str]]:
            for topic in topics:
                d.link.publish(Message(topic, b"1", 1, False))
            d.until(lambda: d.link.inflight == 0)
            told = list(d.link.refusals)
            d.link.refusals.clear()
            return told

        assert d.connect() == ""
        assert send("uns/a", "uns/b", "uns/a") == [("uns/a", "Not authorized")]
        assert (d.status.published, d.status.acknowledged, d.status.refused, d.link.answered) == (3, 1, 2, 3)
        assert d.status.refusal == "a topic, such as uns/a: Not authorized"
        assert send("uns/a") == []
        reasons["uns/a"] = 0x97
        assert send("uns/a") == [("uns/a", "Quota exceeded")]
        reasons["uns/a"] = 0x00
        assert send("uns/a") == []
        assert d.status.refusal == ""
        reasons["uns/a"] = 0x87
        assert send("uns/a") == [("uns/a", "Not authorized")]


def test_a_broker_that_refuses_very_many_topics_is_told_of_by_some() -> None:
    with judging(lambda topic: 0x87) as port, driven(broker(port)) as d:
        assert d.connect() == ""
        for i in range(50):
            d.link.publish(Message(f"uns/{i}", b"1", 1, False))
        d.until(lambda: d.link.inflight == 0)
        assert len(d.link.refusals) == REFUSED_TOPICS_MAX
        assert d.status.refusal == "20 topics or more, such as uns/0: Not authorized"
        assert d.status.refused == 50


def test_the_will_is_published_when_the_connection_breaks_and_not_when_it_is_closed(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as server, Subscriber(server.port) as subscriber, driven(broker(server.port)) as d:
        d.connect()
        d.link.publish(Message("uns/first", b"", 1, False))
        d.until(lambda: d.link.inflight == 0)
        d.link.close("over", polite=True)
        d.connect()
        d.link.publish(Message("uns/second", b"", 1, False))
        d.until(lambda: d.link.inflight == 0)
        subscriber.on("second")
        assert "uns/will" not in subscriber.latest()
        d.link.close("broken")
        subscriber.on("will", b"offline")


def test_a_session_that_was_taken_over_says_so() -> None:
    with answering(lambda level: b"\x20\x03\x00\x00\x00\xe0\x02\x8e\x00") as port, driven(broker(port)) as d:
        d.link.open()
        d.until(lambda: d.link.phase is Phase.CLOSED)
        assert d.link.taken_over
        assert "taken over" in d.status.last_error


def test_a_second_client_of_the_same_id_ends_the_first_ones_session(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as server, driven(broker(server.port)) as d, driven(broker(server.port)) as other:
        d.connect()
        other.connect()
        d.until(lambda: d.link.phase is Phase.CLOSED)  # mosquitto 2.0.11 gives no reason
        assert other.link.phase is Phase.UP


def test_what_was_under_way_is_forgotten_with_the_connection_and_its_size_is_told(tmp_path: Path) -> None:
    server = Mosquitto(tmp_path).start()
    with driven(broker(server.port)) as d:
        d.connect()
        server.process.freeze()  # type: ignore[union-attr]
        for i in range(20):
            d.link.publish(Message("uns/x", b"." * i, 1, False))
        assert (d.link.inflight, d.link.sent, d.link.answered) == (20, 20, 0)
        server.kill()
        d.until(lambda: d.link.phase is Phase.CLOSED)
        assert (d.link.inflight, d.link.largest_bytes) == (0, 19)
        server.start()
        with Subscriber(server.port) as subscriber:
            d.connect()
            d.link.publish(Message("uns/x", b"new", 1, False))
            d.until(lambda: d.link.answered == 1)
            assert [h.payload for h in subscriber.on("uns/x")] == [b"new"]
    server.stop()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("tcp://host", "mqtts://host:8883"),
        ("mqtt://", "mqtt://host:1883"),
        ("mqtt://host:99999", "mqtt://host:1883"),
        ("mqtt://me:secret@host", "password_file"),
    ],
)
def test_a_wrong_url_is_told_with_a_right_one(url: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Broker(url, "id", "node")


def test_default_ports_follow_the_scheme() -> None:
    assert Broker("mqtt://host", "id", "node").address == ("host", 1883)
    assert Broker("mqtts://[::1]", "id", "node").address == ("::1", 8883)


def test_a_missing_file_and_values_out_of_bounds_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        Broker("mqtts://host", "id", "node", ca_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="window"):
        Broker("mqtt://host", "id", "node", window=0)
    with pytest.raises(ConfigError, match="cpu_share"):
        Broker("mqtt://host", "id", "node", cpu_share=0)
