"""The JSON Schema of the configuration, for editors and for machines that write configurations.

msgspec derives types, bounds and defaults from the structures; what each setting means is taken from the
`Attributes:` of their docstrings, so that it is written once.

What it does not do: say what one field alone cannot (`gateway.config.parse` checks that).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway import config
from gateway.config import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ATTRIBUTE = re.compile(r"^ {4}((?:\w+, )*\w+): (.*)$")


def schema() -> dict[str, Any]:
    """Return the schema as a document."""
    made = msgspec.json.schema(Config)
    for name, definition in made.get("$defs", {}).items():
        summary, attributes = documented(getattr(config, name))
        definition["description"] = summary
        for setting, described in definition.get("properties", {}).items():
            if setting in attributes:
                described["description"] = attributes[setting]
    return {"$schema": DIALECT, "title": "edgemirror gateway.toml", **made}


def documented(table: type) -> tuple[str, Mapping[str, str]]:
    """Return the first paragraph of a structure's docstring, and what it says of each attribute."""
    text = inspect.getdoc(table) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    attributes: dict[str, str] = {}
    names: list[str] = []
    for line in text.partition("Attributes:\n")[2].splitlines():
        match = _ATTRIBUTE.match(line)
        if match:
            names = match.group(1).split(", ")
            attributes |= dict.fromkeys(names, match.group(2))
        elif line.startswith("        "):
            attributes |= {name: f"{attributes[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return summary, attributes
