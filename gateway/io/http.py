"""Health and metrics over HTTP. The only module that knows Starlette and uvicorn.

`/livez` answers 200 while the process can do its work, `/readyz` 200 while devices, journal and bucket are
all as they should be and otherwise 503 with what is not, `/metrics` the figures in Prometheus' text format.
The server lives in the event loop that also serves the devices: a loop that hangs does not answer, which is
what `/livez` is for. Nothing can be changed here. Where there is a token, whoever reads more than `/livez` has to
show it; an address that others can reach is not served without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Callable, Generator, Mapping

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.config import Http, address
from gateway.health import Figures, document, exposition, is_alive, is_ready
from mirror.errors import ConfigError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS_MAX = 64  # at once; for one more the oldest is hung up on
CONNECTION_S = 10.0  # after this long a connection is ended, unless it is just being answered
HANDSHAKE_S = 5.0
STOP_S = 1
TOKEN_MIN = 16  # characters


class HttpServer:
    """Serves figures, asked for anew with each request, from the running event loop."""

    def __init__(self, config: Http, figures: Callable[[], Figures], *, token: str = "") -> None:
        """Prepare.

        Args:
            config: Where, and with which certificate; port 0 takes any free one.
            figures: Called in the event loop with each request; must be quick.
            token: What readers have to show; empty for nothing.

        Raises:
            ConfigError: The address is none, others can reach it and there is no token, or the token is short.
        """
        found = address(config.listen)
        if found is None:
            raise ConfigError(f"http.listen is {config.listen!r}; use 127.0.0.1:8480")
        if not token and not ipaddress.ip_address(found[0]).is_loopback:
            raise ConfigError(f"http.listen is {config.listen!r}, which others can reach; set http.token_file")
        if token and not (token.isascii() and token.isprintable() and len(token) >= TOKEN_MIN):
            raise ConfigError(
                f"{config.token_file} holds no token of at least {TOKEN_MIN} printable ASCII characters",
                hint=f"openssl rand -hex 32 > {config.token_file}",
            )
        self._address, self._config, self._token = found, config, token
        self._figures = figures
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is served, once it is."""
        host = f"[{self._address[0]}]" if ":" in self._address[0] else self._address[0]
        return f"{'https' if self._config.certificate_file else 'http'}://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections) if self._server is not None else 0

    async def start(self) -> None:
        """Listen. ConfigError if the port is taken."""
        host, port = self._address
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ConfigError(f"http.listen is '{host}:{port}': {error}; use another port, such as 8481") from error
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app(), log_config=None, access_log=False, lifespan="off", http=_Bounded, ws="none",
            server_header=False, timeout_keep_alive=10, timeout_graceful_shutdown=STOP_S,
            ssl_certfile=self._config.certificate_file or None, ssl_keyfile=self._config.key_file or None,
        )  # fmt: skip
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            listener.close()
            raise ConfigError(
                f"http.certificate_file or http.key_file cannot be used: {error}",
                hint="use PEM files that belong together",
            ) from error
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

    def _lets(self, request: Request) -> None:
        """Raise the answer to who does not show the token."""
        shown = request.headers.get("authorization", "").encode("latin-1")
        if self._token and not hmac.compare_digest(shown, b"Bearer " + self._token.encode()):
            raise HTTPException(401, headers={"www-authenticate": "Bearer"})

    async def _livez(self, request: Request) -> Response:
        alive = is_alive(self._figures())
        return _json({"alive": alive}, 200 if alive else 503)

    async def _readyz(self, request: Request) -> Response:
        self._lets(request)
        figures = self._figures()
        return _json(document(figures), 200 if is_ready(figures) else 503)

    async def _metrics(self, request: Request) -> Response:
        self._lets(request)
        return Response(exposition(self._figures()), media_type=METRICS_TYPE)


class _Bounded(H11Protocol):
    """A connection that cannot be kept by saying nothing, or little: uvicorn alone would wait for ever.

    Who comes is let in at the cost of whoever has been there longest, so that a probe of a service manager is
    answered though others hold on to all the connections that there are.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._end = self.loop.call_later(CONNECTION_S, self._late)
        if len(self.connections) > CONNECTIONS_MAX:
            oldest = min((c for c in self.connections if isinstance(c, _Bounded)), key=lambda c: c._since)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        self._end = self.loop.call_later(STOP_S, self.transport.abort)  # who does not read keeps nothing either


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, and with a bound on handshakes: when to end is decided elsewhere."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        ssl_context = self.config.ssl
        self.servers = []
        for listener in sockets or []:
            server = await asyncio.get_running_loop().create_server(
                lambda: _Bounded(self.config, self.server_state, {}), sock=listener, ssl=ssl_context,
                ssl_handshake_timeout=HANDSHAKE_S if ssl_context else None, backlog=CONNECTIONS_MAX,
            )  # fmt: skip
            self.servers.append(server)
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _json(
    value: object, status: int, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status, media_type=media_type, headers=headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    value = {"type": "about:blank", "title": error.detail, "status": error.status_code}
    return _json(value, error.status_code, "application/problem+json", error.headers)
