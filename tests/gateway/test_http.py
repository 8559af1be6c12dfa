"""The three endpoints over a real socket, and what they answer when something is wrong."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.health import Figures, SourceFigures
from gateway.io.http import HttpServer
from mirror.errors import ConfigError

GOOD = Figures("1.0", "press-shop", "a", sources=[SourceFigures("p7", "live")], threads={"journal": True})


@asynccontextmanager
async def serving(figures: Callable[[], Figures]) -> AsyncIterator[httpx.AsyncClient]:
    server = HttpServer("127.0.0.1:0", figures)
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
        server = HttpServer("127.0.0.1:0", lambda: GOOD)
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
        server = HttpServer(f"127.0.0.1:{taken.getsockname()[1]}", lambda: GOOD)
        with pytest.raises(ConfigError, match="use another port"):
            asyncio.run(server.start())


@pytest.mark.parametrize("listen", ["0.0.0.0:8480", "192.0.2.1:80", "8480", "127.0.0.1:x", "", "127.0.0.1:70000"])
def test_anything_but_loopback_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8480"):
        HttpServer(listen, lambda: GOOD)


def test_the_other_loopback_spellings_are_accepted() -> None:
    HttpServer("localhost:0", lambda: GOOD)
    HttpServer("[::1]:0", lambda: GOOD)
