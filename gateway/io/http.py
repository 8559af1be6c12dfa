"""Health and metrics over HTTP. The only module that knows Starlette and uvicorn.

`/livez` answers 200 while the process can do its work, `/readyz` 200 while devices, journal and bucket are
all as they should be and otherwise 503 with what is not, `/metrics` the figures in Prometheus' text format.
The server lives in the event loop that also serves the devices: a loop that hangs does not answer, which is
what `/livez` is for. Nothing can be changed here and nothing here is secret; there is no authentication,
and therefore only loopback addresses are accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Generator

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.health import Figures, document, exposition, is_alive, is_ready
from mirror.errors import ConfigError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS_MAX = 64  # at once; more are answered 503
STOP_S = 1


class HttpServer:
    """Serves figures, asked for anew with each request, from the running event loop."""

    def __init__(self, listen: str, figures: Callable[[], Figures]) -> None:
        """Prepare.

        Args:
            listen: `address:port` on loopback; port 0 takes any free one.
            figures: Called in the event loop with each request; must be quick.
        """
        self._address = _loopback(listen)
        self._figures = figures
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. ConfigError if the port is taken."""
        host, port = self._address
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ConfigError(f"http.listen is '{host}:{port}': {error}; use another port, such as 8481") from error
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app(), log_config=None, access_log=False, lifespan="off", http="h11", ws="none", server_header=False,
            limit_concurrency=CONNECTIONS_MAX, timeout_keep_alive=10, timeout_graceful_shutdown=STOP_S,
        )  # fmt: skip
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")

    async def stop(self) -> None:
        """Answer what is being asked, at most for a second, and end."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[Route("/livez", self._livez), Route("/readyz", self._readyz), Route("/metrics", self._metrics)],
            exception_handlers={HTTPException: _problem},
        )

    async def _livez(self, request: Request) -> Response:
        alive = is_alive(self._figures())
        return _json({"alive": alive}, 200 if alive else 503)

    async def _readyz(self, request: Request) -> Response:
        figures = self._figures()
        return _json(document(figures), 200 if is_ready(figures) else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(exposition(self._figures()), media_type=METRICS_TYPE)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: when to end is decided elsewhere."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _json(value: object, status: int, media_type: str = "application/json") -> Response:
    return Response(msgspec.json.encode(value), status, media_type=media_type, headers={"cache-control": "no-store"})


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    value = {"type": "about:blank", "title": error.detail, "status": error.status_code}
    return _json(value, error.status_code, "application/problem+json")


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    try:
        good = ipaddress.ip_address(host).is_loopback and 0 <= int(port) <= 65_535
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"http.listen is {listen!r}; use a loopback address such as 127.0.0.1:8480")
    return host, int(port)
