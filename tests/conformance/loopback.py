"""Tiny HTTP servers on loopback for what real stores do only on their worst days: silence, drips, lateness."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mirror.errors import Conflict
from mirror.io.s3 import S3Settings
from mirror.store import MemoryStore

BUCKET = "mirror-test"
PATIENCE_S = 20.0


class Loopback:
    """What a test and its server share.

    Attributes:
        settings: How to reach the server, with short timeouts.
        headers: Of each request, in order of arrival.
        over: Set when the test ends; whoever waits in the server waits for it at most.
    """

    def __init__(self, endpoint: str) -> None:
        self.settings = S3Settings(
            bucket=BUCKET, endpoint=endpoint, access_key="a", secret_key="b", connect_timeout_s=5.0, read_timeout_s=0.3,
            quick_timeout_s=0.5,
        )  # fmt: skip
        self.headers: list[Message] = []
        self.over = threading.Event()


@contextmanager
def serve(
    answer: Callable[[BaseHTTPRequestHandler, bytes, Loopback], None], *, tls: tuple[Path, Path] | None = None
) -> Iterator[Loopback]:
    """Let `answer` have every request, each in a thread of its own; a client that hangs up is no error.

    Args:
        answer: Answers.
        tls: Certificate and key, with which HTTPS is spoken.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            shared.headers.append(self.headers)
            with contextlib.suppress(OSError):
                answer(self, body, shared)

        do_GET = do_PUT = do_HEAD = do_DELETE = handle_any

        def setup(self) -> None:
            with contextlib.suppress(OSError):  # a client that likes the certificate not has no more to say
                if isinstance(self.request, ssl.SSLSocket):
                    self.request.do_handshake()
            super().setup()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shared = Loopback(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield shared
        finally:
            shared.over.set()
            server.shutdown()
            thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send a whole answer."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def accepting(handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
    """Take everything."""
    reply(handler, 200, ETag='"1"')


def silent(handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
    """Take the request and never answer."""
    shared.over.wait(PATIENCE_S)
    handler.close_connection = True


def dripping(handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
    """Answer byte by byte, each well within every timeout of a socket."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    drops = 0
    while not shared.over.wait(0.05) and drops < PATIENCE_S / 0.05:
        handler.wfile.write(b".")
        drops += 1
    handler.close_connection = True


class Late:
    """A store whose writes land when the test says so, long after the client has given up."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.gate, self.landed = threading.Event(), threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
        if handler.command != "PUT":
            found = self.store.get(handler.path)
            if found is None:
                reply(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                reply(handler, 200, found.body, ETag=found.etag)
            return
        self.gate.wait(PATIENCE_S)
        try:
            etag = self.store.put(handler.path, body, if_none_match=handler.headers.get("If-None-Match") == "*")
        except Conflict:
            reply(handler, 412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.landed.set()
        reply(handler, 200, ETag=etag)


class Endless:
    """Knows no ranges, and has one object of a terabyte.

    Attributes:
        sent: Bytes that got away before the client hung up.
    """

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.send_header("ETag", '"0"')
        handler.end_headers()
        while not shared.over.is_set():
            handler.wfile.write(bytes(65536))
            self.sent += 65536


def rangeless(handler: BaseHTTPRequestHandler, body: bytes, shared: Loopback) -> None:
    """Answer every range of an object of ten bytes with all of it."""
    reply(handler, 200, b"0123456789", ETag='"0"')
