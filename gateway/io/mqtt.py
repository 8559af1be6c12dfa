"""The connection to the plant's broker. The only module that knows paho.

One thread owns it: it waits here for the socket and for a wake-up at once, so that paho's own thread, its
queue and its reconnection are not used. MQTT 5 is tried first, and 3.1.1 where a broker leaves before it
answers. The window of messages under way is counted here and never exceeds what the broker allows.

What this module does not do: decide when to connect again, or what to send (`gateway.io.publisher`).
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.config import Mqtt
from gateway.formats.json_uns import PAYLOAD_BYTES_MAX, Message
from mirror.errors import ConfigError
from mirror.tls import hint

SESSION_TAKEN_OVER = 0x8E
UNSUPPORTED_VERSION = 0x84
REFUSED_TOPICS_MAX = 20  # told one by one; a broker that refuses more than that is told of by these


@dataclass(frozen=True, slots=True)
class Broker:
    """Where and how to publish.

    Attributes:
        url: `mqtt://host[:1883]` or `mqtts://host[:8883]`, without credentials.
        client_id: Client identifier; the replicas of a group share one, so that the broker itself ends
            the session of a predecessor.
        node: Name of the gateway in topics and objects.
        user: User name, empty for none.
        password_file: File with the password; read at each connection.
        ca_file: Certificates to trust, empty for the system's.
        certificate_file: Certificate of this client (PEM), empty for none; read at each connection.
        key_file: Its key (PEM).
        keepalive_s: Keep-alive; a broker that is silent for twice as long is away.
        window: Most messages under way, not yet acknowledged.
        interval_s: Least time between two rounds of live values.
        cpu_share: Share of one processor that live values may take before they coalesce for longer.
        offline_after_s: How long a lost source is `stale` before it is `offline`.
        connect_timeout_s: Most time for each of: connection, TLS handshake, the broker's answer.
        retry_s_max: Longest pause between two attempts to connect.
        history_rows_max: Most back-filled rows that wait.
        payload_bytes_max: Longest payload; the broker's own limit, where it states one, counts as well.
    """

    url: str
    client_id: str
    node: str
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    keepalive_s: int = 5
    window: int = 100
    interval_s: float = 0.05
    cpu_share: float = 0.1
    offline_after_s: float = 30.0
    connect_timeout_s: float = 5.0
    retry_s_max: float = 30.0
    history_rows_max: int = 100_000
    payload_bytes_max: int = PAYLOAD_BYTES_MAX

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.url)
            port = url.port
        except ValueError as error:
            raise ConfigError(f"mqtt.url is {self.url!r}: {error}; use mqtt://host:1883") from error
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname or port == 0:
            raise ConfigError(f"mqtt.url is {self.url!r}; use mqtt://host:1883 or mqtts://host:8883")
        if url.username is not None or url.password is not None:
            raise ConfigError("mqtt.url holds credentials; use mqtt.user and mqtt.password_file")
        if not 1 <= self.window <= 65_535:
            raise ConfigError(f"mqtt.window is {self.window}; use 1 to 65535, such as 100")
        if not 0 < self.cpu_share <= 1:
            raise ConfigError(f"mqtt.cpu_share is {self.cpu_share}; use more than 0 and at most 1, such as 0.1")
        for name in ("password_file", "ca_file", "certificate_file", "key_file"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise ConfigError(f"mqtt.{name} is {path!r}, which is no file")

    @staticmethod
    def of(mqtt: Mqtt, client_id: str, node: str) -> Broker:
        """Return the broker of a configuration."""
        return Broker(
            url=mqtt.url, client_id=client_id, node=node, user=mqtt.user, password_file=mqtt.password_file,
            ca_file=mqtt.ca_file, certificate_file=mqtt.certificate_file, key_file=mqtt.key_file,
            keepalive_s=mqtt.keepalive_s, window=mqtt.window,
        )  # fmt: skip

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = urlsplit(self.url)
        return url.hostname or "", url.port or (8883 if url.scheme == "mqtts" else 1883)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"


@dataclass(slots=True)
class Status:
    """Counters and states of a publisher, for metrics and for people.

    Attributes:
        connected: Whether the broker has accepted this client and the connection stands.
        protocol: `5` or `3.1.1`, empty before the first connection.
        inflight: Messages under way.
        pending_rows: Rows that wait; while many come, some of them are already out of date.
        published: Messages handed to the connection.
        acknowledged: Messages that the broker took.
        refused: Messages that the broker answered with a reason against them (MQTT 5).
        connects: Connections that the broker accepted.
        taken_over: Times that another client took over the session.
        history_refused_rows: Back-filled rows that were not taken because too many waited.
        failures: Rounds given up because of an error in this program.
        refusal: What the broker refuses now; empty if nothing.
        last_error: Why the last connection ended or failed; empty while connected.
    """

    connected: bool = False
    protocol: str = ""
    inflight: int = 0
    pending_rows: int = 0
    published: int = 0
    acknowledged: int = 0
    refused: int = 0
    connects: int = 0
    taken_over: int = 0
    history_refused_rows: int = 0
    failures: int = 0
    refusal: str = ""
    last_error: str = ""


class Phase(Enum):
    """Where a connection stands; UP is after the broker's consent."""

    CLOSED = 0
    CONNECTING = 1
    UP = 2


def tls_hint(said: str, broker: Broker) -> str:
    """Return what to do about a failed TLS handshake; empty if that was not the reason."""
    if not broker.tls:
        return ""
    if "KEY_VALUES_MISMATCH" in said:
        return "set mqtt.certificate_file and mqtt.key_file to two files that belong together"
    return hint(said, ca_setting="mqtt.ca_file", address_setting="mqtt.url", whose="broker")


class Link:
    """One connection to the broker after the other; used by the publisher's thread alone.

    Attributes:
        phase: Where the connection stands.
        sent: Messages handed to this connection.
        answered: How many of them the broker took or refused; it answers in their order (MQTT 5, 4.6.0-2).
        refusals: Topic and reason of refused messages, each once until its reason changes; whoever reads
            them takes them away.
        taken_over: Whether the last connection ended because another client has this client's id.
        packet_bytes_max: Longest packet that the broker says it takes.
        largest_bytes: Longest payload that was not acknowledged when the last connection ended.
        taken_bytes: Longest payload that the broker took on this connection.
        idle_s: Longest time between two calls of `wait` that keeps the connection alive.
    """

    def __init__(self, broker: Broker, will: Message, status: Status) -> None:
        self._broker, self._will, self._status = broker, will, status
        self._version = MQTTProtocolVersion.MQTTv5
        self._client: paho.Client | None = None
        self._window = broker.window
        self._unanswered, self._ever_up, self._refusal = 0, False, ""
        self._under_way: dict[int, tuple[str, int]] = {}  # topic and size, by the message's number
        self._refused: dict[str, str] = {}  # reasons by topic
        self.refusals: deque[tuple[str, str]] = deque()
        self.phase = Phase.CLOSED
        self.sent, self.answered, self.largest_bytes, self.taken_bytes = 0, 0, 0, 0
        self.taken_over = False
        self.packet_bytes_max = _PACKET_BYTES_MAX
        self.idle_s = min(1.0, broker.keepalive_s / 4)

    @property
    def inflight(self) -> int:
        """Messages that the broker has not acknowledged; what becomes of them ends with the connection."""
        return len(self._under_way)

    def open(self) -> None:
        """Begin to connect. On failure the phase is CLOSED again and the status says why."""
        broker = self._broker
        self.sent, self.answered, self.taken_bytes = 0, 0, 0
        self.phase, self.taken_over, self._refusal = Phase.CONNECTING, False, ""
        try:
            self._client = client = self._new_client()  # a new one each time: it would send the old messages again
            if broker.user:
                password = Path(broker.password_file).read_text().rstrip("\r\n") if broker.password_file else None
                client.username_pw_set(broker.user, password)
            clean: dict[str, Any] = {"clean_start": True} if self._version is MQTTProtocolVersion.MQTTv5 else {}
            client.connect(*broker.address, keepalive=broker.keepalive_s, **clean)
            connection = client.socket()
            if isinstance(connection, socket.socket):  # a message shall not wait for the answer to the one before
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._unanswered += 1  # until the CONNACK is read
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError, a bad host name a ValueError
            said = str(error) or repr(error)
            mend = tls_hint(said, broker)
            self._ended(f"{said}; {mend}" if mend else said)

    def _new_client(self) -> paho.Client:
        broker = self._broker
        client = paho.Client(
            CallbackAPIVersion.VERSION2, broker.client_id, protocol=self._version, reconnect_on_failure=False
        )
        client.connect_timeout = broker.connect_timeout_s
        client.max_inflight_messages_set(0)  # counted here; paho would search all messages for each PUBACK
        client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if broker.tls:
            context = ssl.create_default_context(cafile=broker.ca_file or None)
            if broker.certificate_file:
                context.load_cert_chain(broker.certificate_file, broker.key_file or None, password="")  # never asks
            client.tls_set_context(context)
        return client

    def close(self, reason: str, *, polite: bool = False) -> None:
        """End the connection, if there is one.

        Args:
            reason: Noted as the reason of the end.
            polite: Say DISCONNECT, so that the broker does not publish the will.
        """
        if self.phase is Phase.CLOSED or self._client is None:
            return
        self._ended(reason)
        if polite:
            self._client.disconnect()
        connection = self._client.socket()
        if connection is not None:
            connection.close()
            self._client.loop_read()  # lets paho find out

    def other_version(self) -> bool:
        """Change to the other version of MQTT if the broker may have left because of this one.

        Returns:
            Whether to try again at once. Only once in a round, or two refusals would chase each other.
        """
        if self._unanswered < (3 if self._ever_up else 1):
            return False
        old = self._version is MQTTProtocolVersion.MQTTv311
        self._version = MQTTProtocolVersion.MQTTv5 if old else MQTTProtocolVersion.MQTTv311
        self._unanswered = 0
        return not old

    def room(self) -> bool:
        """Tell whether a message may be sent now."""
        client = self._client
        return (
            self.phase is Phase.UP and self.inflight < self._window and client is not None and not client.want_write()
        )

    def publish(self, message: Message) -> None:
        """Send a message; call only where there is room."""
        assert self._client is not None
        self.sent += 1
        self._status.published += 1
        info = self._client.publish(*message)
        while info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # the number is that of a message still under way
            info = self._client.publish(*message)
        if self.phase is Phase.UP:  # sending may have found that the connection is lost
            self._under_way[info.mid] = (message.topic, len(message.payload))

    def wait(self, wake: socket.socket, timeout_s: float | None) -> None:
        """Wait for the broker or for a wake-up, and read and write what there is."""
        client, poll = self._client, select.poll()
        connection = client.socket() if client is not None and self.phase is not Phase.CLOSED else None
        poll.register(wake, select.POLLIN)
        if client is None or connection is None:
            poll.poll(_poll_ms(timeout_s))
            return
        poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        unread = isinstance(connection, ssl.SSLSocket) and connection.pending() > 0  # decrypted: poll sees nothing
        events = dict(poll.poll(0 if unread else _poll_ms(timeout_s))).get(connection.fileno(), 0)
        try:
            if unread or events & ~select.POLLOUT:
                client.loop_read()
            if events & select.POLLOUT:
                client.loop_write()
            client.loop_misc()
        except _PARSER_ERRORS as error:
            self.close(f"the broker's answer could not be read: {error!r}")
        if client.socket() is None:
            self._ended("the connection was lost")

    def _ended(self, reason: str) -> None:
        if self.phase is not Phase.CLOSED:
            if self.phase is Phase.CONNECTING and self._broker.tls and "was lost" in reason:  # a TLS alert looks so
                mine = "may not accept" if self._broker.certificate_file else "may ask for a client certificate:"
                reason = f"{reason}, before the broker answered: it {mine} mqtt.certificate_file"
            self.phase = Phase.CLOSED
            self.largest_bytes = max((size for _, size in self._under_way.values()), default=0)
            self._under_way.clear()
            self._status.connected, self._status.last_error = False, self._refusal or reason

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"the broker refused the connection: {reason}"
            if reason.value != UNSUPPORTED_VERSION:
                self._unanswered = 0
            return
        self._unanswered, self._ever_up = 0, True
        self._window = min(self._broker.window, getattr(properties, "ReceiveMaximum", 65_535))
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", _PACKET_BYTES_MAX)
        self.phase = Phase.UP
        status = self._status
        status.connected, status.last_error, status.connects = True, "", status.connects + 1
        status.protocol = "5" if self._version is MQTTProtocolVersion.MQTTv5 else "3.1.1"

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        told = flags.is_disconnect_packet_from_server
        if told and reason.value == SESSION_TAKEN_OVER and self.phase is not Phase.CLOSED:
            self.taken_over = True
            self._status.taken_over += 1
        self._ended(f"the broker ended the connection: {reason}" if told else f"the connection was lost: {reason}")

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        topic, size = self._under_way.pop(mid, ("", 0))
        self.answered += 1
        if reason.is_failure:
            self._status.refused += 1
            self._note_refusal(topic, str(reason))
            return
        self._status.acknowledged += 1
        self.taken_bytes = max(self.taken_bytes, size)
        if self._refused.pop(topic, None) is not None:
            self._tell_refused()

    def _note_refusal(self, topic: str, reason: str) -> None:
        known = self._refused.get(topic)
        if known != reason and (known is not None or len(self._refused) < REFUSED_TOPICS_MAX):
            self._refused[topic] = reason
            self.refusals.append((topic, reason))
            self._tell_refused()

    def _tell_refused(self) -> None:
        n, first = len(self._refused), next(iter(self._refused.items()), ("", ""))
        many = f"{n} topics or more" if n == REFUSED_TOPICS_MAX else f"{n} topics" if n > 1 else "a topic"
        self._status.refusal = f"{many}, such as {first[0]}: {first[1]}" if n else ""


_PACKET_BYTES_MAX = 268_435_455  # what MQTT itself allows

#: What paho raises when bytes are not what its parser expects.
_PARSER_ERRORS = (
    OSError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError, struct.error, MQTTException,
)  # fmt: skip


def _poll_ms(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else max(0, int(timeout_s * 1000 + 0.999))
