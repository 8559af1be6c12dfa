"""The three endpoints over a real socket, and what they answer when something is wrong."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import Http
from gateway.health import Figures, SourceFigures
from gateway.io import http
from gateway.io.http import CONNECTIONS_MAX, HttpServer
from mirror.errors import ConfigError
from tests.live.certificates import make

GOOD = Figures("1.0", "press-shop", "a", sources=[SourceFigures("p7", "live")], threads={"journal": True})


@asynccontextmanager
async def serving(figures: Callable[[], Figures]) -> AsyncIterator[httpx.AsyncClient]:
    server = HttpServer(Http("127.0.0.1:0"), figures)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            yield client
    finally:
        await server.stop()


def get(path: str, figures: Figures = GOOD, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with serving(lambda: figures) as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def test_a_ready_gateway_answers_200() -> None:
    answer = get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    assert answer.headers["cache-control"] == "no-store"


def test_an_unready_gateway_answers_503_and_says_why() -> None:
    answer = get("/readyz", replace(GOOD, sources=[SourceFigures("p7", "stale", since_s=3)]))
    assert answer.status_code == 503
    assert answer.json()["problems"] == [{"part": "source p7", "text": "stale for 3 s", "blocks": True}]


def test_livez_turns_only_when_a_thread_has_ended() -> None:
    assert get("/livez", replace(GOOD, sources=[])).status_code == 200
    assert get("/livez", replace(GOOD, threads={"journal": False})).status_code == 503


def test_metrics_are_prometheus_text() -> None:
    answer = get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {m.name for m in text_string_to_metric_families(answer.text)}
    assert "edgemirror_ready" in names


@pytest.mark.parametrize(("path", "method", "code"), [("/other", "GET", 404), ("/livez", "POST", 405)])
def test_errors_are_problem_documents(path: str, method: str, code: int) -> None:
    answer = get(path, method=method)
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == code


def test_figures_are_asked_for_with_each_request() -> None:
    async def ask() -> list[int]:
        now = replace(GOOD)
        async with serving(lambda: now) as client:
            first = (await client.get("/readyz")).status_code
            now.sources = []
            return [first, (await client.get("/readyz")).status_code]

    assert asyncio.run(ask()) == [200, 503]


def test_signals_stay_with_whoever_had_them() -> None:
    async def ask() -> object:
        async with serving(lambda: GOOD) as client:
            await client.get("/livez")
            return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert asyncio.run(ask()) == before == signal.getsignal(signal.SIGTERM)


def test_a_client_that_says_nothing_does_not_hold_the_end_up() -> None:
    async def ask() -> float:
        server = HttpServer(Http("127.0.0.1:0"), lambda: GOOD)
        await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await writer.drain()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await server.stop()
        writer.close()
        return loop.time() - start

    assert asyncio.run(ask()) < 3


def test_a_taken_port_is_told_with_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HttpServer(Http(f"127.0.0.1:{taken.getsockname()[1]}"), lambda: GOOD)
        with pytest.raises(ConfigError, match="use another port"):
            asyncio.run(server.start())


@pytest.mark.parametrize("listen", ["0.0.0.0:8480", "192.0.2.1:80", "8480", "127.0.0.1:x", "", "127.0.0.1:70000"])
def test_anything_but_loopback_is_refused_without_a_token(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8480|http\.token_file"):
        HttpServer(Http(listen), lambda: GOOD)


def test_the_other_loopback_spellings_are_accepted() -> None:
    HttpServer(Http("localhost:0"), lambda: GOOD)
    HttpServer(Http("[::1]:0"), lambda: GOOD)


TOKEN = "0123456789abcdef"


@asynccontextmanager
async def guarded(config: Http) -> AsyncIterator[HttpServer]:
    server = HttpServer(config, lambda: GOOD, token=TOKEN)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def test_with_a_token_only_livez_answers_everybody() -> None:
    shown = {"right": f"Bearer {TOKEN}", "wrong": f"Bearer {TOKEN}x", "basic": f"Basic {TOKEN}", "odd": "Bearer \xe9"}

    async def ask() -> dict[tuple[str, str], int]:
        found = {}
        async with guarded(Http("0.0.0.0:0")) as server, httpx.AsyncClient(trust_env=False) as client:
            for path in ("/livez", "/readyz", "/metrics"):
                url = f"http://127.0.0.1:{server.port}{path}"
                found[path, "none"] = (await client.get(url)).status_code
                for name, value in shown.items():
                    headers = {"authorization": value.encode("latin-1")}
                    found[path, name] = (await client.get(url, headers=headers)).status_code
        return found

    for (path, name), code in asyncio.run(ask()).items():
        assert code == (200 if path == "/livez" or name == "right" else 401), (path, name)


def test_who_is_refused_is_told_what_to_show_and_nothing_else() -> None:
    async def ask() -> httpx.Response:
        async with guarded(Http("127.0.0.1:0")) as server, httpx.AsyncClient(trust_env=False) as client:
            return await client.get(f"http://127.0.0.1:{server.port}/readyz")

    answer = asyncio.run(ask())
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.json()) == {"type", "title", "status"}


@pytest.mark.parametrize("token", ["short", "0123456789abcde", "0123456789\nabcdef", "0123456789abcdéf"])
def test_a_token_that_is_easily_guessed_or_cannot_be_shown_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="16 printable") as raised:
        HttpServer(Http("127.0.0.1:0", "token"), lambda: GOOD, token=token)
    assert raised.value.hint == "openssl rand -hex 32 > token"


def test_with_a_certificate_it_speaks_https_alone(tmp_path: Path) -> None:
    made = make(tmp_path)

    async def ask() -> int:
        config = Http("127.0.0.1:0", certificate_file=str(made.certificate), key_file=str(made.key))
        context = ssl.create_default_context(cafile=str(made.ca))
        async with guarded(config) as server, httpx.AsyncClient(trust_env=False, verify=context) as client:
            assert server.url == f"https://127.0.0.1:{server.port}"
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{server.port}/livez")
            return (await client.get(f"{server.url}/readyz", headers={"authorization": f"Bearer {TOKEN}"})).status_code

    assert asyncio.run(ask()) == 200


def test_a_certificate_that_cannot_be_used_is_told_and_the_port_is_free_again(tmp_path: Path) -> None:
    certificate, key = make(tmp_path / "one").certificate, make(tmp_path / "two").key
    server = HttpServer(Http("127.0.0.1:0", certificate_file=str(certificate), key_file=str(key)), lambda: GOOD)
    with pytest.raises(ConfigError, match=r"http\.certificate_file"):
        asyncio.run(server.start())


# ---- clients that mean no good ----------------------------------------------------------------------------


async def idle(port: int, count: int, text: bytes = b"") -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect so often and say only this."""
    found = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        found.append((reader, writer))
    return found


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\n"])
def test_however_many_connect_and_say_nothing_the_next_one_who_asks_is_answered(said: bytes) -> None:
    async def ask() -> tuple[int, int]:
        async with guarded(Http("127.0.0.1:0")) as server, httpx.AsyncClient(trust_env=False) as client:
            mute = await idle(server.port, 3 * CONNECTIONS_MAX, said)
            code = (await client.get(f"{server.url}/livez")).status_code
            held = server.connections
            for _, writer in mute:
                writer.close()
            return code, held

    code, held = asyncio.run(ask())
    assert code == 200 and held <= CONNECTIONS_MAX


@pytest.mark.parametrize(
    "said", [b"", b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET"]
)
def test_who_does_not_finish_a_request_is_hung_up_on(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_S", 0.3)

    async def ask() -> None:
        async with guarded(Http("127.0.0.1:0")) as server:
            ((reader, writer),) = await idle(server.port, 1, said)

            async def drip() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        writer.write(b"x" if said else b"")
                        await writer.drain()
                        await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            with contextlib.suppress(OSError):
                await asyncio.wait_for(reader.read(), 5)  # to its end
            dripping.cancel()
            assert not server.connections

    asyncio.run(ask())


def test_who_asks_again_and_again_on_one_connection_is_answered_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_S", 0.1)

    async def ask() -> set[int]:
        async with guarded(Http("127.0.0.1:0")) as server:
            transport = httpx.AsyncHTTPTransport(retries=1)
            async with httpx.AsyncClient(trust_env=False, transport=transport) as client:
                codes = set()
                for _ in range(8):
                    codes.add((await client.get(f"{server.url}/livez")).status_code)
                    await asyncio.sleep(0.03)
                return codes

    assert asyncio.run(ask()) == {200}


def test_who_does_not_finish_a_handshake_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HANDSHAKE_S", 0.3)
    made = make(tmp_path)

    async def ask() -> bytes:
        config = Http("127.0.0.1:0", certificate_file=str(made.certificate), key_file=str(made.key))
        async with guarded(config) as server:
            ((reader, writer),) = await idle(server.port, 1, b"\x16\x03")
            try:
                return await asyncio.wait_for(reader.read(), 5)
            finally:
                writer.close()

    assert asyncio.run(ask()) == b""
