"""The tools say where they are or why not, and the lock file names no host."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tools import find
from tests.tools.__main__ import lock_digest, main


def test_a_tool_that_nobody_has_comes_with_a_reason() -> None:
    tool = find("no-such-program")
    assert tool.path is None
    assert "no-such-program" in tool.reason


def test_a_tool_that_is_here_is_a_program() -> None:
    tool = find("weed")
    assert tool.path is not None and tool.path.exists() and tool.reason == ""


def test_an_unknown_name_is_refused() -> None:
    assert main(["no-such-tool"]) == 2


def test_npm_packages_are_pinned_by_digest_and_from_no_host_in_particular() -> None:
    lock = json.loads((Path(__file__).parent / "node" / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert "node_modules/node-opcua" in packages
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert [name for name, entry in packages.items() if not entry.get("integrity", "").startswith("sha")] == []
    assert len(lock_digest()) == 64
