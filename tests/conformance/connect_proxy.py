"""An HTTP proxy as plants have them: CONNECT alone, for who shows the right user and password if it asks for one."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IDLE_S = 5.0


@dataclass
class ConnectProxy:
    """What a test and its proxy share.

    Attributes:
        url: Of the proxy.
        asked: Address that each CONNECT named.
    """

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def connect_proxy(*, login: str = "", forbids: bool = False) -> Iterator[ConnectProxy]:
    """Run a proxy.

    Args:
        login: `user:password` that it asks for; empty for none.
        forbids: It lets nobody through.
    """
    wanted = "Basic " + base64.b64encode(login.encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            shared.asked.append(self.path)
            self.close_connection = True
            if login and self.headers.get("Proxy-Authorization") != wanted:
                self.send_error(407)
            elif forbids:
                self.send_error(403)
            else:
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port)), IDLE_S) as there:
                    self.send_response(200)
                    self.end_headers()
                    with contextlib.suppress(OSError):
                        _join(self.connection, there)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shared = ConnectProxy(f"http://127.0.0.1:{server.server_port}")
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield shared
        finally:
            server.shutdown()
            thread.join()


def _join(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side is done or nothing comes any more."""
    while ready := select.select([one, other], [], [], IDLE_S)[0]:
        for end in ready:
            data = end.recv(65536)
            if not data:
                return
            (other if end is one else one).sendall(data)
