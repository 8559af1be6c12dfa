"""The text of a configuration file that `edgemirror init` proposes: commented, legal, and safe to look at.

Only settings that differ from their defaults are written, and for each part the few that a person is
likely to change next, as comments. Whatever servers call their things goes through `gateway.plain`.

What it does not do: decide anything (`gateway.propose`), or write a file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.config import Source
from gateway.offer import Offered
from gateway.plain import plain, toml_string
from gateway.propose import DeviceDraft

COMMENT_MAX = 1_000  # characters of a note
COMMENT_WIDTH = 116

#: What stands behind a setting that is written.
_REMARKS = {
    "session_timeout_s": "a restart within this time loses nothing",
    "browse": 'exclude = ["**/Diagnostics/**"] leaves branches out',
    "sampling_ms": "0 asks for every change the server knows of",
    "trust_dir": "certificates of servers that are accepted; nothing else is",
    "certificate_file": "this gateway's own; accept it on the device",
}


@dataclass(frozen=True, slots=True)
class SourceDraft:
    """A proposed source with its devices, and what a person should know of both."""

    source: Source
    devices: tuple[DeviceDraft, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heading:
    """The tables of a file that have no repetition."""

    group: str
    enterprise: str
    site: str
    replica: str
    data_dir: str


def text(heading: Heading, sources: Sequence[SourceDraft]) -> str:
    """Return the whole file."""
    lines = [*_head(heading)]
    for draft in sources:
        lines += ["", *_source(draft)]
    return "\n".join([*lines, *_TAIL]) + "\n"


def _head(heading: Heading) -> Iterator[str]:
    yield "# edgemirror gateway. Every setting that is left out has its default; `edgemirror schema` lists all."
    yield "# Check it with `edgemirror check --online`, then `edgemirror run`."
    yield ""
    yield "[group]"
    yield f"name = {toml_string(heading.group)}"
    yield f"enterprise = {toml_string(heading.enterprise)}  # levels of the topic name space"
    yield f"site = {toml_string(heading.site)}"
    yield ""
    yield "[replica]"
    yield f"name = {toml_string(heading.replica)}"
    yield f"data_dir = {toml_string(heading.data_dir)}  # mirror.db and the keys; one gateway at a time"


def _source(draft: SourceDraft) -> Iterator[str]:
    yield from (line for note in draft.notes for line in comments(note))
    yield "[[source]]"
    fields = changed(draft.source, always=("name", "endpoint", "security"))
    fields.pop("device", None)
    yield from _settings(fields)
    for device in draft.devices:
        yield ""
        yield from (line for note in device.notes for line in comments(note))
        yield "[[source.device]]"
        yield from _settings(changed(device.device, always=("name", "browse", "sampling_ms", "publishing_ms")))


def security_notes(source: Source, offered: Offered | None) -> list[str]:
    """Return what a file should say of how a source is protected."""
    if source.security != "none":
        return []
    told = [
        'security = "none" means: anybody on the network can read and alter what the server says, and intercept the '
        "password of a user. Nothing proves that it is the device that answers.",
    ]
    better = offered.best if offered is not None else ""
    if better and better != "none":
        told.append(f"This server offers better: edgemirror init {source.endpoint} --security {better} --out FILE")
    return told


def changed(table: msgspec.Struct, always: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a table that differ from their defaults, in the table's order."""
    found = {}
    for field in msgspec.structs.fields(type(table)):
        value = getattr(table, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if field.name in always or value != default:
            found[field.name] = value
    return found


def _settings(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        remark = _REMARKS.get(name)
        yield f"{name} = {toml_value(value)}" + (f"  # {remark}" if remark else "")


def toml_value(value: Any) -> str:
    """Return a text, number, truth or list of them as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return toml_string(value)
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(toml_value(v) for v in value)}]"
    raise TypeError(f"no setting is a {type(value).__name__}")


def comments(note: str) -> list[str]:
    """Return a note as lines of comment."""
    return [f"# {line}" for line in textwrap.wrap(plain(note, COMMENT_MAX), COMMENT_WIDTH)]


_TAIL = """

[journal]
keep_days = 7  # kept here even after the bucket has it

# The bucket. Until it is set nothing leaves this box, and the journal is the only copy.
# [sync]
# bucket = "s3://acme-mirror/plantA"
# endpoint = "https://s3.example"  # leave out for Amazon S3
# access_key_file = "/etc/edgemirror/secrets/s3-access"
# secret_key_file = "/etc/edgemirror/secrets/s3-secret"
# requests_per_day = 20000

# The plant's broker. Until it is set nothing is published.
# [mqtt]
# url = "mqtt://broker.plant:1883"

[http]
listen = "127.0.0.1:8480"  # /livez /readyz /metrics
""".rstrip("\n").split("\n")
