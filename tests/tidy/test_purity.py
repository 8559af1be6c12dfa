"""The core is pure: outside io/, cli/ and __main__ no clock, await, file, socket, log, randomness or thread.

That is what lets a simulator drive the real core, and what makes a failing run repeatable.
"""

from __future__ import annotations

import ast

import pytest

from tests.tidy.tree import PACKAGES, Module, modules

BANNED = {
    "asyncio", "concurrent", "ctypes", "fcntl", "getpass", "glob", "http", "logging", "mmap", "multiprocessing", "os",
    "platform", "queue", "random", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "socketserver", "sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile", "threading", "time", "warnings",
}  # fmt: skip
BANNED_NAMES = {"pathlib.Path", "urllib.request", "uuid.uuid1", "uuid.uuid4"}
#: Calls that read a clock, a file or chance through a module that is otherwise welcome; matched at their end.
BANNED_CALLS = {
    "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "uuid.uuid1", "uuid.uuid4",
    "np.random", "np.load", "np.save", "np.savez", "np.fromfile", "np.memmap", "np.loadtxt", "np.savetxt",
    "Ed25519PrivateKey.generate", "AESGCM.generate_key",
}  # fmt: skip
BANNED_BUILTINS = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}

#: (file, import or call) -> why it stands there all the same.
EXCEPTIONS = {
    ("mirror/store.py", "threading"): "MemoryStore is the reference of a store that several threads race for",
}


def impurities(module: Module) -> list[str]:
    """Return what a module of the core does that only a shell may."""
    found: list[tuple[int, str]] = []
    for item in module.imports:
        parts = item.module.split(".")
        names = {parts[0]} & BANNED or {".".join(parts[:2])} & BANNED_NAMES
        found += [(item.line, name) for name in names]
    for node in ast.walk(module.tree):
        found += [(getattr(node, "lineno", 0), what) for what in _acts(node)]
    return [f"{module.path}:{line} {what}" for line, what in found if (module.path, what) not in EXCEPTIONS]


def _acts(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
        return ["await"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_BUILTINS:
        return [f"{node.func.id}()"]
    if isinstance(node, ast.Attribute):
        dotted = ast.unparse(node)
        return [call for call in BANNED_CALLS if dotted == call or dotted.endswith(f".{call}")]
    return []


def core() -> list[Module]:
    """Return the modules that must be pure."""
    return [m for m in modules(*PACKAGES) if not m.is_shell]


def test_the_core_does_not_touch_the_world() -> None:
    assert [found for module in core() for found in impurities(module)] == []


def test_every_exception_is_still_needed() -> None:
    used = set()
    for module in core():
        tops = {i.module.split(".")[0] for i in module.imports}
        used |= {(module.path, what) for path, what in EXCEPTIONS if path == module.path and what in tops}
    assert used == set(EXCEPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "import time", "from time import monotonic", "import os.path", "from pathlib import Path", "import asyncio",
        "async def f(): ...", "def f(): return open('x')", "print(1)", "from datetime import datetime\ndatetime.now()",
        "import datetime\nx = datetime.datetime.now(datetime.UTC)", "import numpy as np\nnp.random.default_rng()",
        "import logging", "import sqlite3", "import uuid\nuuid.uuid4()", "from urllib.request import urlopen",
        "def f():\n    import random",
    ],
)  # fmt: skip
def test_an_impurity_is_found(text: str) -> None:
    assert impurities(Module("mirror/a.py", text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "from datetime import datetime, timedelta", "import hashlib", "import numpy as np\nnp.zeros(3)",
        "from uuid import UUID", "def wake_at(self): return self.now", "import urllib.parse",
    ],
)  # fmt: skip
def test_what_is_pure_is_not_found(text: str) -> None:
    assert impurities(Module("mirror/a.py", text)) == []
