"""The lease's record in etcd, over its JSON gateway.

One key changes by transactions that compare its `mod_revision`; etcd's own leases, whose shortest life is seconds,
are not used. A member that cannot be reached is passed over; a lost answer is for the lease machine to settle.

What this module does not do: run etcd, or decide anything (`gateway.failover`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from gateway.config import Arbiter
from gateway.io.registers import ABSENT
from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from mirror.io.limit import Limit
from mirror.lease import Record, decode

WATCH_RETRY_S = 0.2
ANSWER_BYTES_MAX = 1 << 16


class EtcdRegister:
    """A record under one key of etcd, changed by transactions that compare `mod_revision`, without an etcd lease.

    It speaks JSON to one member at a time, and to the next one when that does not answer.

    Args:
        endpoints: URLs of the members.
        group: Name of the group; the key is `edgemirror/<group>/lease`.
        limit_s: Longest wait for an answer.
        tls: For `https`.
        transport: For tests.

    Source: etcd API v3.4, gRPC gateway: 64-bit integers are strings, zero values are left out.
    """

    def __init__(
        self, endpoints: Sequence[str], group: str, *, limit_s: float, tls: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._key = base64.b64encode(f"edgemirror/{group}/lease".encode()).decode()
        self._group = group
        how: dict[str, Any] = {"timeout": limit_s, "transport": transport, "verify": tls if tls is not None else True}
        self._members = [httpx.Client(base_url=url.rstrip("/"), **how) for url in endpoints]
        self._watchers = [httpx.Client(base_url=url.rstrip("/"), **how) for url in endpoints]
        self._at = 0
        self._cluster = ""
        self._limit, self._limit_s = Limit(limit_s), limit_s
        self._closed = threading.Event()
        self._watching: socket.socket | None = None

    @property
    def arbiter(self) -> str:
        """Kind, cluster and key; known from the first answer on."""
        return f"etcd:{self._cluster or 'unknown'}/edgemirror/{self._group}/lease"

    def read(self) -> tuple[Record | None, str]:
        """See `mirror.lease.Register`; linearizable."""
        answer = self._ask("/v3/kv/range", {"key": self._key}, again=True)
        return self._found(answer)

    def swap(self, record: Record, version: str) -> str:
        """See `mirror.lease.Register`."""
        revision = "0" if version == ABSENT else version
        value = base64.b64encode(record.encode()).decode()
        answer = self._ask("/v3/kv/txn", {
            "compare": [{"target": "MOD", "key": self._key, "result": "EQUAL", "mod_revision": revision}],
            "success": [{"request_put": {"key": self._key, "value": value}}],
        })  # fmt: skip
        if not answer.get("succeeded"):
            raise Conflict("another revision stands there")
        try:
            return str(int(answer["responses"][0]["response_put"]["header"]["revision"]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise Unavailable("etcd's answer to a transaction tells no revision") from None

    def watch(self, stirred: Callable[[], None]) -> None:
        """Call `stirred` whenever the record may have changed, until `close`; blocks. It may be silent all the same."""
        at = 0
        while not self._closed.is_set():
            client = self._watchers[at % len(self._watchers)]
            with contextlib.suppress(httpx.HTTPError, httpx.StreamError, ValueError, RuntimeError):
                self._follow(client, stirred)
            at += 1
            self._closed.wait(WATCH_RETRY_S)

    def close(self) -> None:
        """See `mirror.lease.Register`."""
        self._closed.set()
        if self._watching is not None:  # who waits there for a line does not look up otherwise
            with contextlib.suppress(OSError):
                self._watching.shutdown(socket.SHUT_RDWR)
        for client in (*self._members, *self._watchers):
            client.close()

    def _follow(self, client: httpx.Client, stirred: Callable[[], None]) -> None:
        request = {"create_request": {"key": self._key}}
        patient = httpx.Timeout(self._limit_s, read=None)
        with client.stream("POST", "/v3/watch", json=request, timeout=patient) as answer:
            self._watching = answer.extensions["network_stream"].get_extra_info("socket")
            for line in answer.iter_lines():
                told = json.loads(line)
                if not isinstance(told, dict) or "error" in told or self._closed.is_set():
                    return
                stirred()

    def _ask(self, path: str, body: dict[str, Any], *, again: bool = False) -> dict[str, Any]:
        """Ask one member; the next one where it was not even reached, or where asking again changes nothing."""
        failure = "no member"
        for _ in self._members:
            client = self._members[self._at]
            try:
                answer = self._limit(lambda client=client: client.post(path, json=body), f"etcd {client.base_url}")  # type: ignore[misc]
                return self._judged(answer)
            except httpx.ConnectError as error:
                failure = f"{client.base_url}: {error}"
            except (httpx.HTTPError, httpx.StreamError, RuntimeError, Unavailable) as error:
                failure = f"{client.base_url}: {error}"
                self._at = (self._at + 1) % len(self._members)
                if not again:
                    break
                continue
            self._at = (self._at + 1) % len(self._members)
        raise Unavailable(f"etcd does not answer: {failure}", hint="check arbiter.endpoints and the members of etcd")

    def _judged(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise Unavailable(f"etcd answers {answer.status_code}")
        if answer.status_code != 200:
            what = f"etcd refuses ({answer.status_code}): {answer.text[:200]!r}"
            raise ConfigError(what, hint="check arbiter.endpoints, arbiter.ca_file and arbiter.certificate_file")
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise Corrupt(f"etcd answers with {len(answer.content)} bytes")
        try:
            told = answer.json()
            cluster = f"{int(told['header']['cluster_id']):x}"
        except (ValueError, KeyError, TypeError) as error:
            what = f"what answers at {answer.url} is not etcd: {answer.text[:100]!r}"
            raise ConfigError(what, hint="check arbiter.endpoints") from error
        if self._cluster not in ("", cluster):
            what = f"the members are of two clusters, {self._cluster} and {cluster}"
            raise ConfigError(what, hint="arbiter.endpoints names the members of one etcd cluster")
        self._cluster = cluster
        return dict(told)

    def _found(self, answer: dict[str, Any]) -> tuple[Record | None, str]:
        entries = answer.get("kvs") or []
        if not entries:
            return None, ABSENT
        try:
            value = base64.b64decode(entries[0]["value"], validate=True)
            version = str(int(entries[0]["mod_revision"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"etcd's answer holds no value: {error!r}") from error
        return decode(value), version


def tls_context(arbiter: Arbiter) -> ssl.SSLContext | None:
    """Return how to speak to etcd by TLS; None where no file is named.

    Raises:
        ConfigError: A file cannot be used.
    """
    if not arbiter.ca_file and not arbiter.certificate_file:
        return None
    try:
        context = ssl.create_default_context(cafile=arbiter.ca_file or None)
        if arbiter.certificate_file:
            context.load_cert_chain(arbiter.certificate_file, arbiter.key_file or None, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"arbiter.ca_file, arbiter.certificate_file or arbiter.key_file cannot be used: {error}",
            hint="name files in PEM; the key without a password",
        ) from error
    return context
