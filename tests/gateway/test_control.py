"""The socket on which commands of this box reach the running gateway."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.io.control import CLIENTS_MAX, SOCKET, Control, ask
from mirror.errors import ConfigError, Unavailable


def answer(do: str) -> dict[str, Any]:
    if do == "role":
        return {"role": "PRIMARY", "epoch": 3}
    raise ConfigError(f"this gateway knows no command {do!r}", hint="use another")


def on(directory: Path, work: Callable[[], Any]) -> Any:
    """Run blocking work beside a gateway that answers."""

    async def main() -> Any:
        control = Control(directory, answer)
        await control.start()
        try:
            return await asyncio.to_thread(work)
        finally:
            await control.stop()

    return asyncio.run(main())


def test_a_command_is_answered_and_a_refusal_comes_with_its_hint(tmp_path: Path) -> None:
    assert on(tmp_path, lambda: ask(tmp_path, "role")) == {"role": "PRIMARY", "epoch": 3}
    with pytest.raises(ConfigError, match="no command 'dance'") as refused:
        on(tmp_path, lambda: ask(tmp_path, "dance"))
    assert refused.value.hint == "use another"


def test_only_the_owner_reaches_it_and_nothing_is_left_behind(tmp_path: Path) -> None:
    mode = on(tmp_path, lambda: (tmp_path / SOCKET).stat().st_mode & 0o777)
    assert mode == 0o600
    assert not (tmp_path / SOCKET).exists()


def test_where_no_gateway_runs_the_next_command_is_told(tmp_path: Path) -> None:
    for leave in (lambda: None, lambda: dead(tmp_path)):
        leave()
        with pytest.raises(Unavailable) as nobody:
            ask(tmp_path, "role")
        assert "edgemirror run" in nobody.value.hint
    with pytest.raises(Unavailable):
        ask(tmp_path / "nowhere", "role")


def dead(directory: Path) -> None:
    """Leave the socket of a process that has ended."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(directory / SOCKET))
    left.close()


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    dead(tmp_path)
    assert on(tmp_path, lambda: ask(tmp_path, "role"))["epoch"] == 3


def test_a_directory_with_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    assert on(deep, lambda: ask(deep, "role"))["epoch"] == 3


@pytest.mark.parametrize(
    "line", [b"\n", b"nonsense\n", b"[]\n", b'{"do": 3}\n', b'"x"\n', b"[" * 3000 + b"\n", b"x" * 9000]
)
def test_nonsense_is_not_answered_or_refused_and_the_next_one_is_served(tmp_path: Path, line: bytes) -> None:
    def badly() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(tmp_path / SOCKET))
            client.sendall(line)
            client.shutdown(socket.SHUT_WR)
            try:
                return client.recv(1000)
            except ConnectionError:
                return b""

    def work() -> bytes:
        told = badly()
        assert ask(tmp_path, "role")["epoch"] == 3
        return told

    told = on(tmp_path, work)
    assert told == b"" or "error" in json.loads(told)


def test_who_connects_and_says_nothing_keeps_nobody_out_for_long(tmp_path: Path) -> None:
    def work() -> None:
        mute = [socket.socket(socket.AF_UNIX) for _ in range(CLIENTS_MAX - 1)]
        for client in mute:
            client.connect(str(tmp_path / SOCKET))
        try:
            assert ask(tmp_path, "role")["epoch"] == 3
        finally:
            for client in mute:
                client.close()

    on(tmp_path, work)
