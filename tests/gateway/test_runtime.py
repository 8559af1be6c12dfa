"""The gateway as a process, with the log in the reference store: who may act, and what ends it."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest

from demo.servers import free_ports
from gateway.config import Config, parse
from gateway.io import runtime
from gateway.io.runtime import Gateway
from tests.gateway.boxes import FaultyStore

WAIT_S = 20.0


class Bucket(FaultyStore):
    """The reference store, opened as the runtime opens a bucket."""

    def dialects(self) -> list[Bucket]:
        return [self]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket()
    monkeypatch.setattr(runtime, "open_store", lambda config: bucket)
    return bucket


def config(folder: Path, *, broker: int = 0, bucket: bool = True, more: str = "") -> Config:
    """Return a configuration with one source that nobody serves."""
    text = f"""
        [group]
        name = "g"
        enterprise = "e"
        site = "s"
        [replica]
        name = "a"
        data_dir = "{folder}"
        [[source]]
        name = "p7"
        endpoint = "opc.tcp://127.0.0.1:{free_ports(1)[0]}"
        security = "none"
        [[source.device]]
        name = "press7"
        browse = ["i=85"]
        [http]
        listen = "127.0.0.1:0"
        {more}
    """
    if bucket:
        text += '[sync]\nbucket = "s3://b/plant"\ninterval_s = { min = 0.05, max = 0.2 }\nrequests_per_day = 10000000\n'
    if broker:
        text += f'[mqtt]\nurl = "mqtt://127.0.0.1:{broker}"\n'
    return parse(text)


class Running:
    """A gateway in a thread with an event loop of its own; a context manager."""

    def __init__(self, config: Config) -> None:
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self.gateway = Gateway(config)
        self.error: BaseException | None = None
        self._step = 0
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.gateway.run(self._stop, self._ready.set)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def get(self, path: str) -> httpx.Response:
        assert self.gateway.http is not None
        return httpx.get(f"http://127.0.0.1:{self.gateway.http.port}{path}", trust_env=False)


def test_a_task_that_takes_the_first_cancellation_for_its_own_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    running = Running(config(tmp_path / "one", bucket=False))
    monkeypatch.setattr(running.gateway.sources[0], "run", stubborn)
    with running:
        pass
    assert cancelled == 2
