"""The first hour with a server that this project did not write: the commands as a person types them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import parse
from tests.live.servers import AsyncuaServer, Counters, NodeServer, needs
from tests.tidy.tree import ROOT

NODES = 5
WAIT_S = 60.0


@pytest.fixture(params=[NodeServer, AsyncuaServer], ids=["node-opcua", "asyncua"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counters]:
    """Counters that count, so that there is something to hear."""
    with request.param(tmp_path_factory.mktemp("server"), nodes=NODES, history=1000) as made:
        made.run(10)
        yield made


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gateway", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def edgemirror(folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=WAIT_S, check=False)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def at_terminal(folder: Path, answer: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a verb as a person does: at a terminal, typing an answer; return its exit code and all that was shown."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command(*arguments), cwd=folder, env=environment(), stdin=follower, stdout=follower,
                               stderr=follower)  # fmt: skip
    os.close(follower)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(leader, 4096):
                shown.append(data)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    os.write(leader, answer.encode())
    code = process.wait(WAIT_S)
    reader.join(WAIT_S)
    os.close(leader)
    return code, b"".join(shown).decode()


def test_from_an_address_to_mirrored_samples(server: Counters, tmp_path: Path) -> None:
    code, out, err = edgemirror(tmp_path, "init", server.endpoint)
    assert code == 0 and err == "", err
    following = out.splitlines()[-1].removeprefix("next: edgemirror ").split()
    code, out, err = edgemirror(tmp_path, *following)
    assert code == 0 and err == "" and f"{NODES} tags" in out, out
    assert out.splitlines()[-1] == "next: edgemirror run"
    text = (tmp_path / "gateway.toml").read_text().replace("127.0.0.1:8480", "127.0.0.1:0")
    (tmp_path / "gateway.toml").write_text(text)
    gateway = subprocess.Popen(command("run"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert gateway.stdout is not None and json.loads(gateway.stdout.readline())["started"]
        code, out, _ = edgemirror(tmp_path, "tail", "-n", "20", "--json")
        assert code == 0 and {json.loads(line)["status"] for line in out.splitlines()} == {"Good"}
    finally:
        gateway.terminate()
        gateway.wait(WAIT_S)
    code, out, _ = edgemirror(tmp_path, "check")
    assert code == 0 and f"{NODES} tags: 1 devices by the journal" in out


def test_a_trial_finds_what_is_known_of_the_server_and_leaves_nothing_behind(server: Counters, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("operator\n")
    login = ("--user", "operator", "--password-file", "password", "--password-in-clear")
    before = server.facts() if isinstance(server, NodeServer) else {}
    code, out, err = edgemirror(tmp_path, "qualify", server.endpoint, "--seconds", "2", "--json", *login)
    assert code == 0 and err == "", err
    facts = json.loads(out)
    trial, product = facts["trial"], facts["profile"]["product"]
    assert product == ("node-opcua" if isinstance(server, NodeServer) else "asyncua")
    assert trial["stamping"] == "S" and trial["compared"] > NODES  # counters that moved, stamped at the source
    assert (trial["variables"], trial["history_readable"], trial["historizing"]) == (NODES, NODES, NODES)
    works = {name: trial[name]["works"] for name in ("second_session", "republish", "resume", "transfer", "overflow")}
    real = isinstance(server, NodeServer)
    assert works == {"second_session": True, "republish": True, "resume": True, "transfer": real, "overflow": real}
    assert trial["publish_time"] is (not real) and trial["queue_got"] == 202
    if isinstance(server, NodeServer):
        assert facts["sessions_left"] == 50 - before["sessions"] - 1 and server.facts() == before
        code, out, _ = edgemirror(tmp_path, "qualify", server.endpoint, "--seconds", "1")
        assert code == 0 and "take-over" in out and f"known of {product}" in out and "try --user" in out


def test_a_server_with_one_session_is_told_apart(tmp_path: Path) -> None:
    with NodeServer(tmp_path / "server", nodes=NODES, options={"max-sessions": 1}) as server:
        code, out, _ = edgemirror(tmp_path, "qualify", server.endpoint, "--seconds", "1", "--json")
        facts = json.loads(out)
        assert code == 0 and facts["trial"]["second_session"]["works"] is False and facts["sessions_left"] == 0
        assert facts["trial"]["transfer"]["works"] is None and facts["trial"]["resume"]["works"] is True
        assert facts["mode"].startswith("take-over")


def test_a_person_at_a_terminal_may_say_yes_to_a_certificate_and_sees_progress(tmp_path: Path) -> None:
    needs("node-opcua")
    with NodeServer(tmp_path / "server", nodes=NODES) as server:
        secured = ("init", server.endpoint, "--security", "Basic256Sha256:SignAndEncrypt")
        code, shown = at_terminal(tmp_path, "no\n", *secured)
        assert code == 2 and "Type yes" in shown and "--accept" in shown and not (tmp_path / "gateway.toml").exists()
        code, shown = at_terminal(tmp_path, "yes\n", *secured)
        assert code == 0 and "\rasking" in shown, shown
        source = parse((tmp_path / "gateway.toml").read_text()).source[0]
        assert source.security == "Basic256Sha256:SignAndEncrypt"
        code, out, err = edgemirror(tmp_path, "check", "--online")
        assert code == 0 and err == "", out
