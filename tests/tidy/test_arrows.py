"""Who may import whom: mirror <- gateway, mirror <- cloud; core <- io <- cli <- __main__; no cycle.

And which file may import which package of other people: a library that stands in one file can be
replaced in one file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.metadata import packages_distributions

import pytest

from tests.tidy.tree import PACKAGES, ROOT, Import, Module, modules, resolve, third_party

MAY_IMPORT = {
    "mirror": {"mirror"},
    "gateway": {"gateway", "mirror"},
    "cloud": {"cloud", "mirror"},
    "demo": {"demo", "gateway", "mirror", "cloud"},
}
#: The one verb that shows the others; it imports the demo when it runs.
EXTRA = {"gateway/cli/demo.py": {"demo"}}

ANYWHERE = ("",)
CLI = ("gateway/cli/", "cloud/cli/")
#: Package -> the files, or folders ending in `/`, that may import it.
THIRD_PARTY: dict[str, Sequence[str]] = {
    "numpy": ANYWHERE,
    "msgspec": ANYWHERE,
    "cryptography": ANYWHERE,
    "zstandard": ANYWHERE,
    "pyarrow": ("mirror/segment.py", "mirror/footer.py", "mirror/io/", "cloud/", "demo/"),
    "boto3": ("mirror/io/s3.py", "demo/servers.py"),
    "botocore": ("mirror/io/s3.py", "demo/servers.py"),
    "apsw": ("mirror/io/sqlite.py", "gateway/io/journal.py"),
    "sqlite_utils": ("mirror/io/sqlite.py", "gateway/io/journal.py"),
    "asyncua": ("gateway/io/opcua.py", "demo/"),
    "paho": ("gateway/io/mqtt.py", "demo/"),
    "httpx": ("gateway/io/etcd.py",),
    "starlette": ("gateway/io/http.py",),
    "uvicorn": ("gateway/io/http.py",),
    "rich": (*CLI, "demo/"),
    "duckdb": ("cloud/io/catalog.py",),
    "deltalake": ("cloud/io/catalog.py",),
}


def against_the_arrows(module: Module) -> list[str]:
    """Return the imports that point the wrong way between packages or layers."""
    allowed = MAY_IMPORT[module.package] | EXTRA.get(module.path, set())
    return [
        f"{module.path}:{i.line} imports {i.module}"
        for i in module.imports
        if (i.module.split(".")[0] in {*MAY_IMPORT, "tests"} and i.module.split(".")[0] not in allowed)
        or _outward(module, i)
    ]


def _outward(module: Module, item: Import) -> bool:
    """Tell whether an import points from an inner layer to an outer one."""
    if module.package not in PACKAGES or item.module.split(".")[0] not in PACKAGES:
        return False
    return _layer(module.path.split("/")) < _layer([*item.module.split("."), ""])


def _layer(parts: list[str]) -> int:
    """0 core, 1 io, 2 cli, 3 __main__; the last part is a file or nothing."""
    if "__main__" in parts or parts[-1] == "__main__.py":
        return 3
    return 2 if "cli" in parts[:-1] else 1 if "io" in parts[:-1] else 0


def unlisted(module: Module) -> list[str]:
    """Return the imports of other people's packages that the list above does not allow there."""
    return [
        f"{module.path}:{i.line} imports {i.module}"
        for i in third_party(module)
        if not any(
            module.path == place or ((place.endswith("/") or not place) and module.path.startswith(place))
            for place in THIRD_PARTY.get(i.module.split(".")[0], ())
        )
    ]


def cycle(found: Sequence[Module]) -> list[str]:
    """Return the names along one import cycle; empty if there is none."""
    known = {m.name for m in found}
    edges = {
        m.name: {t for i in m.imports if not i.typing_only and (t := resolve(i.module, known)) and t != m.name}
        for m in found
    }
    done: set[str] = set()
    path: list[str] = []

    def walk(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in sorted(edges[name]):
            if ring := walk(target):
                return ring
        path.pop()
        done.add(name)
        return []

    return next((ring for name in sorted(edges) if (ring := walk(name))), [])


def test_imports_follow_the_arrows() -> None:
    assert [found for module in modules(*MAY_IMPORT) for found in against_the_arrows(module)] == []


def test_each_library_stands_where_the_list_says() -> None:
    assert [found for module in modules(*MAY_IMPORT) for found in unlisted(module)] == []


def test_there_is_no_import_cycle() -> None:
    assert cycle(modules(*MAY_IMPORT)) == []


def test_what_the_product_imports_is_a_core_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {_plain(d) for d in project["dependencies"]}
    cloud = {_plain(d) for d in project["optional-dependencies"]["cloud"]}
    makers = packages_distributions()
    missing = []
    for module in modules(*PACKAGES):
        declared = core | (cloud if module.package == "cloud" else set())
        for i in third_party(module):
            top = i.module.split(".")[0]
            if not {_plain(d) for d in makers.get(top, [top])} & (declared | {"botocore"}):
                missing.append(f"{module.path}:{i.line} imports {i.module}")
    assert missing == []


def _plain(requirement: str) -> str:
    """Return the name of a requirement in its normal form: `boto3>=1.36` is boto3."""
    name = requirement
    for mark in "<>=!~[; ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mirror/a.py", "import gateway.plan"),
        ("gateway/a.py", "from cloud import fleet"),
        ("cloud/a.py", "def f():\n    from gateway import plan"),
        ("gateway/a.py", "import demo.plant"),
        ("mirror/a.py", "import tests.tools"),
        ("gateway/a.py", "from gateway.io import log"),
        ("gateway/a.py", "from gateway.io.log import log"),
        ("gateway/a.py", "from .io import log"),
        ("gateway/formats/a.py", "from ..io.log import log"),
        ("gateway/a.py", "from mirror.io.s3 import S3Store"),
        ("gateway/io/a.py", "from gateway.cli import parser"),
        ("gateway/cli/a.py", "from gateway.__main__ import main"),
    ],
)
def test_an_import_against_the_arrows_is_found(path: str, text: str) -> None:
    assert against_the_arrows(Module(path, text)) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("gateway/io/http.py", "import gateway.plan"),
        ("gateway/io/a.py", "from mirror.io import s3"),
        ("gateway/a.py", "import io"),
    ],
)
def test_an_import_along_the_arrows_is_not_found(path: str, text: str) -> None:
    assert against_the_arrows(Module(path, text)) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mirror/store.py", "import boto3"),
        ("gateway/io/mqtt.py", "from asyncua import ua"),
        ("gateway/io/runtime.py", "import requests"),
        ("mirror/io/sqlite.py.py", "import apsw"),
    ],
)
def test_a_library_in_the_wrong_file_is_found(path: str, text: str) -> None:
    assert unlisted(Module(path, text)) != []


def test_a_cycle_is_found_and_a_diamond_is_none() -> None:
    a, b, c = Module("mirror/a.py", "from mirror import b"), Module("mirror/b.py", "import mirror.c"), "mirror/c.py"
    assert cycle([a, b, Module(c, "from .a import x")]) == ["mirror.a", "mirror.b", "mirror.c", "mirror.a"]
    assert cycle([a, b, Module(c, "import numpy")]) == []
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mirror.a import x"
    assert cycle([a, b, Module(c, late)]) == []
