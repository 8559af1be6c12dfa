"""The source tree as syntax trees, and the questions that the tidy tests ask of it.

Modules are read from the files that git knows or would know, so that what lies about unsaved or ignored
does not count. Questions take a `Module`, so that each test can show with a snippet that it can fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mirror", "gateway", "cloud")
OURS = {*PACKAGES, "demo", "tests"}
SHELL_FOLDERS = {"io", "cli"}


@dataclass(frozen=True)
class Import:
    """One imported module, with the line and whether only a type checker sees it."""

    module: str
    line: int
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One Python file: its path below the root, with `/`, and its text."""

    path: str
    text: str

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def is_shell(self) -> bool:
        """Whether it may touch the world: it stands in io/ or cli/ or is a __main__."""
        parts = self.path.split("/")
        return bool(SHELL_FOLDERS & set(parts[:-1])) or parts[-1] == "__main__.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def imports(self) -> list[Import]:
        """All imports, in functions too; `from a import b` gives `a.b`, relative names made absolute."""
        typing_only = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                names = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [Import(name, node.lineno, id(node) in typing_only) for name in names]
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        here = self.name.split(".") if self.path.endswith("/__init__.py") else self.name.split(".")[:-1]
        return ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@lru_cache
def tracked() -> list[str]:
    """Return the paths of all files that git holds or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # not a clone: a source archive
        return [p.relative_to(ROOT).as_posix() for p in _files(ROOT)]
    return sorted({p for p in done.stdout.splitlines() if (ROOT / p).is_file()})


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and path.name != ".ci":
            continue
        if path.is_dir() and path.name not in {"node_modules", "__pycache__", "build", "dist"}:
            yield from _files(path)
        elif path.is_file():
            yield path


@lru_cache
def modules(*packages: str) -> list[Module]:
    """Return the Python files of packages, all of ours if none is named."""
    wanted = packages or tuple(sorted(OURS))
    return [
        Module(path, (ROOT / path).read_text())
        for path in tracked()
        if path.endswith(".py") and path.split("/")[0] in wanted
    ]


def resolve(name: str, known: set[str]) -> str | None:
    """Return the module of ours that an imported name stands for: `a.b.c` may be module a.b and name c."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def third_party(module: Module) -> list[Import]:
    """Return the imports that are neither ours nor of the standard library."""
    return [
        i for i in module.imports if (top := i.module.split(".")[0]) not in OURS and top not in sys.stdlib_module_names
    ]
