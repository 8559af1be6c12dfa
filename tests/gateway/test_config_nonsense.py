"""Every setting with every kind of nonsense: taken as legal, or refused by name with a legal value; never a crash.

What is taken goes on to what `check` and `run` do with a configuration before anything is connected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import checkup
from gateway.config import Config, parse, settings
from gateway.io import preflight
from gateway.io.mqtt import Broker
from gateway.io.opening import log_layout, open_store
from gateway.io.runtime import Gateway
from mirror.errors import MirrorError

NONSENSE: dict[str, Any] = {
    "empty": "",
    "blank": " ",
    "newline": "a\nb",
    "nul": "a\0b",
    "long": "x" * 10_000,
    "escape": "\x1b[31mred",
    "right to left": "a\u202eb",
    "slash": "../../etc",
    "hash": "a#b",
    "plus": "+",
    "percent": "%2e",
    "a thing": "thing",
    "zero": 0,
    "minus": -1,
    "huge": 2**63 - 1,
    "fraction": 0.5,
    "tiny": 1e-300,
    "vast": 1e300,
    "infinite": math.inf,
    "no number": math.nan,
    "true": True,
    "list": [],
    "strings": ["a", ""],
    "numbers": [1],
    "nested": [[]],
    "table": {"a": 1},
    "url": "http://h:99999/x",
    "port": "opc.tcp://h:0",
    "brackets": "opc.tcp://[::1",
    "no host": "s3://",
    "directory": "/",
    "nowhere": "/nowhere/at/all",
    "glob": "**",
    "node": "ns=0;i=99999999999999999999",
}


def whole(folder: Path) -> dict[str, Any]:
    """Return a configuration with every table, legal as it stands."""
    for name in ("secret", "token"):
        (folder / name).write_text("x" * 40)
    device = {"name": "d", "browse": ["ns=2;s=P/**"]}
    source = {"name": "s", "endpoint": "opc.tcp://192.0.2.7:4840", "security": "none", "device": [device]}
    return {
        "group": {"name": "g"},
        "replica": {"name": "a", "data_dir": str(folder / "data")},
        "source": [source],
        "arbiter": {"kind": "etcd", "endpoints": ["http://192.0.2.9:2379"]},
        "peer": [{"name": "b", "public_key": "0" * 64}], "journal": {},
        "mqtt": {"url": "mqtt://h:1883"}, "http": {"listen": "127.0.0.1:0"},
        "sync": {"bucket": "s3://b/p", "endpoint": "https://192.0.2.8:9000", "interval_s": {},
                 "access_key_file": str(folder / "secret"), "secret_key_file": str(folder / "secret")},
    }  # fmt: skip


def toml(table: dict[str, Any]) -> str:
    """Write a configuration, keys first; tables within lists as arrays of tables inline."""

    def value(v: Any) -> str:
        if isinstance(v, bool):
            return str(v).lower()
        if isinstance(v, float):
            return repr(v).replace("e+", "e")
        if isinstance(v, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return "[" + ", ".join(value(x) for x in v) + "]"
        return json.dumps(v).replace("\\u007f", "\\u007F") if isinstance(v, str) else str(v)

    return "\n".join(f"{name} = {value(v)}" for name, v in table.items())


def put(raw: dict[str, Any], setting: str, value: Any) -> None:
    at: Any = raw
    *tables, key = setting.split(".")
    for table in tables:
        at = at[table]
        at = at[0] if isinstance(at, list) else at
    at[key] = value


def cases(folder: Path) -> Iterator[tuple[str, str, Callable[[], Config]]]:
    """Yield setting, kind of nonsense, and what parses a file with it."""
    for setting in settings():
        for kind, value in NONSENSE.items():
            raw = whole(folder)
            put(raw, setting, value)
            text = toml(raw)
            yield setting, kind, lambda text=text: parse(text)  # type: ignore[misc]


def use(config: Config, *, bucket: bool = True) -> None:
    """Do what is done with a configuration before anybody is connected; `bucket` takes a fiftieth of a second."""
    checkup.settings(config)
    preflight.offline(config)
    log_layout(config)
    if bucket and config.sync.bucket:
        open_store(config.sync)
    if config.mqtt.url:
        Broker.of(config.mqtt, "client", "node")


def test_the_configuration_that_nonsense_is_put_into_is_legal(tmp_path: Path) -> None:
    use(parse(toml(whole(tmp_path))))


def test_each_setting_takes_nonsense_or_refuses_it_by_name(tmp_path: Path) -> None:
    refused = taken = 0
    for setting, kind, parsed in cases(tmp_path):
        try:
            use(parsed(), bucket=setting.startswith("sync."))
            taken += 1
        except MirrorError as error:
            refused += 1
            text = f"{error} {error.hint}"
            name = setting.rpartition(".")[2]
            assert name in text or setting.split(".")[0] in text, f"{setting} as {kind}: {text[:300]}"
            assert len(text) < 2000, f"{setting} as {kind}: {len(text)} characters of complaint"
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text), f"{setting} as {kind}: {text[:300]!r}"
        except Exception as error:
            raise AssertionError(f"{setting} as {kind}: {error!r}") from error
    assert refused > 1200 and taken > 150, (refused, taken)


@pytest.mark.parametrize(
    "setting", [s for s in settings() if s.startswith(("replica.", "group.", "http.")) or s.endswith("_file")]
)
def test_a_gateway_of_nonsense_starts_or_says_why_not(
    tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, value in NONSENSE.items():
        raw = whole(tmp_path)
        put(raw, setting, value)
        if setting == "replica.data_dir" and kind in ("directory", "slash", "nowhere"):
            continue  # legal for whoever may write there
        try:
            gateway = Gateway(parse(toml(raw)))
        except MirrorError:
            continue
        except Exception as error:
            raise AssertionError(f"{setting} as {kind}: {error!r}") from error
        gateway.journal.close()
