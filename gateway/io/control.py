"""A socket in the data directory by which commands on this box speak to the running gateway.

Only the directory's owner can reach it. One line of JSON asks, one answers. A gateway that does not run has none that
answers, and a socket that a dead one left behind is replaced.

What this module does not do: let anybody in from elsewhere, or change a configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mirror.errors import ConfigError, Unavailable

SOCKET = "control.sock"
LINE_BYTES_MAX = 4096
ANSWER_S = 5.0
CLIENTS_MAX = 8

Answer = Callable[[str], dict[str, Any]]


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Yield a path to the socket that is short whatever the directory is called: the kernel takes 107 bytes."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


class Control:
    """The gateway's end.

    Args:
        directory: The data directory, which this process has locked.
        answer: Called in the event loop with what is asked; ConfigError says that nobody knows that.
    """

    def __init__(self, directory: Path, answer: Answer) -> None:
        self._directory, self._answer = directory, answer
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Listen; where that is not possible the gateway runs without."""
        with contextlib.suppress(OSError), _short(self._directory) as path:
            (self._directory / SOCKET).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                listening.bind(path)
                (self._directory / SOCKET).chmod(0o600)
                self._server = await asyncio.start_unix_server(self._serve, sock=listening.dup(), limit=LINE_BYTES_MAX)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                (self._directory / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= CLIENTS_MAX:
                async with asyncio.timeout(ANSWER_S):
                    writer.write(json.dumps(self._answered(await reader.readline())).encode() + b"\n")
                    await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # who asks badly, or leaves, is not answered
        finally:
            self._clients -= 1
            writer.close()

    def _answered(self, line: bytes) -> dict[str, Any]:
        asked = json.loads(line)
        do = asked.get("do") if isinstance(asked, dict) else None
        try:
            return self._answer(do if isinstance(do, str) else "")
        except ConfigError as error:
            return {"error": str(error), "hint": error.hint}


def ask(directory: Path, do: str) -> dict[str, Any]:
    """Ask the gateway of a data directory.

    Raises:
        Unavailable: None runs there, or it does not answer.
        ConfigError: It refuses, and says why.
    """
    try:
        with _short(directory) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            client.connect(path)
            client.sendall(json.dumps({"do": do}).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and (piece := client.recv(1 << 16)):
                data += piece
        answer = json.loads(data)
    except (OSError, ValueError) as error:
        what = f"no gateway answers in {directory}: {error}"
        raise Unavailable(what, hint="edgemirror run, as the user that owns the directory") from error
    if not isinstance(answer, dict):
        raise Unavailable(f"no gateway answers in {directory}: {data[:80]!r}")
    if "error" in answer:
        raise ConfigError(str(answer["error"]), hint=str(answer.get("hint", "")))
    return answer
