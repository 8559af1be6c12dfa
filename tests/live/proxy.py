"""A TCP proxy that breaks connections on command: the floor of fault injection that needs no root.

It forwards bytes between its own port and a target, both on loopback. `cut` resets what is connected
and refuses what comes; `stall` keeps connections open and moves nothing, as a dead peer behind a
stateful firewall; `strand` does so to those that are open and lets new ones work, as after a router's
failover; `delay_s` holds each piece of data for a while and keeps the order, `bytes_per_s` lets only so
much through. It knows nothing of the protocol inside.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

CALL_S = 10.0
PIECE_BYTES = 65536
SLICE_BYTES = 1024
QUEUE_PIECES = 64


class Proxy:
    """A proxy with a thread and a loop of its own; a context manager.

    Args:
        target: Port of 127.0.0.1 that it forwards to.
        delay_s: Added to each direction; may be changed at any time, for data that comes after.
        bytes_per_s: Of each direction of each connection at the most; may be changed at any time.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        self.target = target
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.port = 0
        self.accepted = 0
        self.forwarded_bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._call(self._break())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def cut(self) -> None:
        """Reset all connections and refuse new ones until `heal`."""
        self._call(self._break())

    def reset(self) -> None:
        """Reset all connections; new ones are welcome at once."""
        self._call(self._drop())

    def heal(self) -> None:
        """Accept connections again, on the same port, and let data flow."""
        self._loop.call_soon_threadsafe(self._flowing.set)
        if self._server is None:
            self._call(self._listen())

    def stall(self) -> None:
        """Move no more bytes, in either direction, on any connection; nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def strand(self) -> None:
        """Let the open connections move nothing ever again; new ones are not concerned."""

        async def leave() -> None:
            former, self._flowing = self._flowing, asyncio.Event()
            self._flowing.set()
            former.clear()

        self._call(leave())

    def flow(self) -> None:
        """End `stall`: what waited goes on its way."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _break(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop()

    async def _drop(self) -> None:
        tasks = list(self._open)
        for task, writers in self._open.items():
            for writer in writers:
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._open[task] = [writer]
        try:
            await self._join(task, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the target is away or a fault was asked for: the client sees its connection end
        finally:
            for each in self._open.pop(task):
                each.transport.abort()

    async def _join(self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._open[task].append(far_writer)
        flowing = self._flowing
        async with asyncio.TaskGroup() as group:
            for source, sink in ((reader, far_writer), (far_reader, writer)):
                pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_PIECES)
                group.create_task(self._take(source, pieces, flowing))
                group.create_task(self._give(pieces, sink, flowing))

    async def _take(
        self, source: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]], flowing: asyncio.Event
    ) -> None:
        data = b"first"
        while data:
            await flowing.wait()
            try:
                data = await source.read(PIECE_BYTES)
            except ConnectionError:
                data = b""
            await pieces.put((self._loop.time() + self.delay_s, data))

    async def _give(
        self, pieces: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            for _ in range(max(1, len(data) // SLICE_BYTES)):  # looks again now and then whether the limit is gone
                await asyncio.sleep(min(len(data), SLICE_BYTES) / self.bytes_per_s)
            await flowing.wait()
            try:
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()
            except (OSError, RuntimeError):
                return  # that side has gone; the other direction ends by its own end of file
            self.forwarded_bytes += len(data)
