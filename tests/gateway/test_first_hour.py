"""`browse`, `init`, `check --online` and `qualify` against servers in this process, hostile ones among them."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua

from gateway.__main__ import main
from gateway.config import Config, parse
from tests.gateway.opcua_server import Press, bounded, free_port, press, run

HOSTILE = [
    "<script>alert(1)</script>", 'quo"ted\\', "new\nline", "\x1b[2Jclear\x07", "right\u202eleft\u200f", "x" * 10_000,
    "same", "same", "", " ", "温度", "a/b%c;d", "= [[source]] #", "../../etc/passwd", "a/**", "\ufeffmark\u2028",
]  # fmt: skip


class Cli:
    """Runs verbs in a thread, beside servers of this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, [str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test stands in a folder of its own, as a person does."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


Test = Callable[[Callable[[Press], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def on_press() -> Iterator[Test]:
    """One server for most tests of this file; it runs in the loop in which they run."""
    yield from _shared(press(tags=30))


@pytest.fixture(scope="module")
def on_hostile() -> Iterator[Test]:
    """The same among hostile names."""
    yield from _shared(hostile())


def _shared(server: AbstractAsyncContextManager[Press]) -> Iterator[Test]:
    with asyncio.Runner() as runner:
        made = runner.run(server.__aenter__())
        yield lambda work: runner.run(bounded(work(made)))
        runner.run(server.__aexit__(None, None, None))


@asynccontextmanager
async def hostile() -> AsyncIterator[Press]:
    """A press among objects and variables with hostile names; identifiers are as hostile."""
    async with press() as made:
        objects = made.server.nodes.objects
        for number, name in enumerate(HOSTILE):
            node = await objects.add_object(ua.NodeId(f"{name}#{number}", 2), ua.QualifiedName(name, 2))
            await node.add_variable(ua.NodeId(f"{name}.v#{number}", 2), ua.QualifiedName(name, 2), float(number))
        yield made


def read(path: str | Path = "gateway.toml") -> Config:
    return parse(Path(path).read_text("utf-8"))


def is_safe(text: str) -> bool:
    return not {unicodedata.category(c) for c in text.replace("\n", "")} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


# ---- browse -----------------------------------------------------------------------------------------------


def test_a_tree_shows_types_units_ranges_and_nodes(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        code, out, _ = await cli("browse", made.url, "nsu=urn:press:test;s=Press")
        assert code == 0 and out.splitlines()[0] == "Press"
        (line,) = [line for line in out.splitlines() if "Pressure" in line]
        assert line.startswith("    Pressure") and "Double" in line and "bar 0 to 250" in line
        assert "nsu=urn:press:test;s=Press.Hydraulics.Pressure" in line and "SerialNumber" not in out
        assert "Server" not in (await cli("browse", made.url))[1]

    on_press(work)


def test_json_has_a_line_for_each_variable_up_to_the_limit(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url, "--json", "--max", "8")
        lines = [json.loads(line) for line in out.splitlines()]
        assert code == 0 and len(lines) == 8 and "--max" in err
        assert set(lines[0]) == {"path", "node", "type", "value_rank", "unit", "range", "description"}
        code, out, err = await cli("browse", made.url, "ns=2;s=Press", "--json")
        (pressure,) = [x for x in map(json.loads, out.splitlines()) if x["path"] == "Hydraulics/Pressure"]
        assert (pressure["unit"], pressure["range"], err) == ("bar", [0.0, 250.0], "")
        assert pressure["description"] == "behind the pump"

    on_press(work)


def test_hostile_names_reach_a_terminal_as_plain_text_and_json_as_they_are(cli: Cli, on_hostile: Test) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url)
        assert code == 0 and is_safe(out) and is_safe(err) and max(map(len, out.splitlines())) < 500
        code, out, _ = await cli("browse", made.url, "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        nodes = {line["node"] for line in lines}
        wanted = {f"nsu=urn:press:test;s={name}.v#{number}" for number, name in enumerate(HOSTILE)}
        assert code == 0 and wanted <= nodes and is_safe(out)

    on_hostile(work)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ns=2;s=Nothing"], "has no node"), (["nsu=urn:else;s=x"], "has no namespace"), (["Press"], "names no node"),
        (["i=85/**"], "is a pattern"), (["--max", "0"], "--max is 0"), (["--security", "TLS"], "--security is 'TLS'"),
        (["--security", "Basic256Sha256:Sign"], "needs --certificate-file"), (["--user", "a"], "--password-file"),
    ],
)  # fmt: skip
def test_what_cannot_be_browsed_is_named(cli: Cli, on_press: Test, arguments: list[str], complaint: str) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url, *arguments)
        assert code == 2 and complaint in err and out == ""

    on_press(work)


@pytest.mark.parametrize("verb", ["browse"])
def test_a_server_that_is_away_is_unreachable_and_no_address_is_usage(cli: Cli, verb: str, folder: Path) -> None:
    async def work() -> None:
        code, _, err = await cli(verb, f"opc.tcp://127.0.0.1:{free_port()}")
        assert code == 3 and "does not answer" in err and "try:" in err
        code, _, err = await cli(verb, "192.0.2.7")
        assert code == 2 and "opc.tcp://HOST:PORT" in err
        assert list(folder.iterdir()) == []

    run(work())
