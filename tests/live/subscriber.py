"""An MQTT subscriber that keeps what it hears and can be waited on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

WAIT_S = 20.0


class Heard(NamedTuple):
    """One message as it arrived."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    at: float = 0.0  # when it was heard, Unix seconds

    @property
    def value(self) -> Any:
        """The payload as JSON."""
        return json.loads(self.payload)


class Subscriber:
    """Hears everything below a topic filter; a context manager, subscribed when entered."""

    def __init__(self, port: int, topic: str = "uns/#", **options: Any) -> None:
        self.port, self.topic = port, topic
        self.heard: list[Heard] = []
        self._news = threading.Condition()
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311, **options)
        self._client.on_connect = lambda client, *_: client.subscribe(self.topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self.port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        with self._news:
            self.heard.append(Heard(message.topic, bytes(message.payload), message.qos, message.retain, time.time()))
            self._news.notify_all()

    def wait(self, condition: Callable[[Heard], bool], count: int = 1, since: int = 0) -> list[Heard]:
        """Return the messages, from a place in `heard` on, that meet a condition once there are so many of them."""
        found: list[Heard] = []
        looked = since

        def enough() -> bool:
            nonlocal looked
            found.extend(h for h in self.heard[looked:] if condition(h))
            looked = len(self.heard)
            return len(found) >= count

        with self._news:
            if not self._news.wait_for(enough, WAIT_S):
                last = [(h.topic, h.payload[:80]) for h in self.heard[-10:]]
                raise AssertionError(f"{len(found)} of {count} among {len(self.heard)} messages, the last {last}")
            return found

    def on(self, topic_end: str, payload: bytes | None = None, count: int = 1) -> list[Heard]:
        """Wait for messages on topics that end so, with that payload if one is given."""
        return self.wait(lambda h: h.topic.endswith(topic_end) and payload in (None, h.payload), count)

    def latest(self) -> dict[str, bytes]:
        """Return the last payload by topic."""
        with self._news:
            return {h.topic: h.payload for h in self.heard}
