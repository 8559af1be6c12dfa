"""The schema says of every setting what it means, and accepts what the gateway accepts."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.__main__ import main
from gateway.config import parse, settings
from gateway.config_schema import documented, schema
from mirror.errors import ConfigError
from tests.gateway.test_config import MINIMAL

EXAMPLE = (Path(__file__).parents[2] / "deploy/edge/gateway.toml").read_text()
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
}  # fmt: skip


def wrong(value: Any, rule: dict[str, Any], defs: dict[str, Any], at: str = "$") -> list[str]:
    """Return what a value breaks of a rule: as much of JSON Schema as msgspec writes."""
    if "$ref" in rule:
        return wrong(value, defs[rule["$ref"].rpartition("/")[2]], defs, at)
    kind = rule.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at} is no {kind}"]
    found = [f"{at} is not one of {rule['enum']}"] if "enum" in rule and value not in rule["enum"] else []
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        found.append(f"{at} does not match {rule['pattern']}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        bounds = {"minimum": value.__ge__, "maximum": value.__le__, "exclusiveMinimum": value.__gt__}
        found += [f"{at} breaks {name}" for name, holds in bounds.items() if name in rule and not holds(rule[name])]
    if isinstance(value, list):
        found += [f"{at} is too short"] if len(value) < rule.get("minItems", 0) else []
        found += [w for i, inner in enumerate(value) for w in wrong(inner, rule.get("items", {}), defs, f"{at}[{i}]")]
    if isinstance(value, dict):
        known = rule.get("properties", {})
        found += [f"{at} lacks {name}" for name in rule.get("required", ()) if name not in value]
        for name, inner in value.items():
            if name in known:
                found += wrong(inner, known[name], defs, f"{at}.{name}")
            elif rule.get("additionalProperties") is False:
                found.append(f"{at} knows no {name}")
    return found


def verdict(text: str) -> list[str]:
    document = schema()
    return wrong(tomllib.loads(text), document, document["$defs"])


def test_the_example_that_is_shipped_validates() -> None:
    assert verdict(EXAMPLE) == [] and verdict(MINIMAL) == []


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL.replace('"none"', '"None"'), MINIMAL + "publishing_ms = 1", MINIMAL + "publising_ms = 100",
        MINIMAL.replace('"press-shop"', '"press/shop"'), MINIMAL.replace("browse = [", "browse = []#"),
        MINIMAL + "[journal]\nmax_gib = 0", MINIMAL + "[mqtt]\nwindow = 10_001", MINIMAL + "[mqtt]\nwindow = true",
        MINIMAL.replace('name = "a"\n', ""), MINIMAL + "[http]\nlisten = 3",
    ],
)  # fmt: skip
def test_what_the_gateway_refuses_by_one_field_the_schema_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
    assert verdict(text) != []


def test_every_setting_stands_in_the_schema_with_what_it_means() -> None:
    document = schema()
    missing = []
    for name in settings():
        at = document
        for part in name.split("."):
            at = document["$defs"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
            at = at["properties"][part]
            at = at.get("items", at) if "$ref" in at.get("items", {}) else at
        if not at.get("description"):
            missing.append(name)
    assert missing == []


def test_a_docstring_gives_each_attribute_its_words() -> None:
    class Table:
        """A table
        of two lines.

        Attributes:
            one, two: Both
                of them.
            three: Last.

        Source: nowhere.
        """

    assert documented(Table) == (
        "A table of two lines.", {"one": "Both of them.", "two": "Both of them.", "three": "Last."},
    )  # fmt: skip


def test_the_verb_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert main(["schema", "--json"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
