"""Forty servers from one list: a CSV of servers, and templates that say once what a type of machine holds.

The list has one server a row. A template is a fragment of TOML with `[[device]]` tables as in
`[[source.device]]`; in its strings `{name}` (and `{area}`, `{line}`, `{endpoint}`) stand for what the row
says, so that one definition makes as many devices as there are machines. Values are put into strings that
are already read, never into text that is still to be read: no cell can add a setting.

Every mistake is named by row and column, all of them at once, with a legal value.
"""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.browse import parse_root
from gateway.config import Device
from gateway.offer import SECURITIES, is_endpoint
from gateway.plain import NAME_MAX, name_of, plain
from mirror.errors import ConfigError

COLUMNS = ("name", "endpoint", "area", "line", "security", "user", "password_file", "template")
REQUIRED = ("name", "endpoint")
PLACEHOLDERS = ("name", "endpoint", "area", "line")
ROWS_MAX = 10_000
TOLD_MAX = 20  # mistakes in one message
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Row:
    """One server of the list; `row` counts as a spreadsheet does, the heading being 1."""

    row: int
    name: str
    endpoint: str
    area: str = "area"
    line: str = "line"
    security: str = "none"
    user: str = ""
    password_file: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """What a type of machine holds: devices whose strings have placeholders."""

    file: str
    devices: tuple[Mapping[str, Any], ...]


def read_list(text: str, file: str, *, security: str = "none", template: str = "") -> list[Row]:
    """Read the list of servers.

    Args:
        text: CSV with a heading; separated by commas, semicolons or tabs; cells are stripped.
        file: Its name, for messages.
        security, template: For rows that say nothing else.

    Raises:
        ConfigError: Something is wrong; all mistakes are told, each with row, column and a legal value.
    """
    lines = text.removeprefix("\ufeff")
    heading = lines.partition("\n")[0]
    separator = next((s for s in ("\t", ";") if s in heading and "," not in heading), ",")
    try:
        table = list(csv.reader(io.StringIO(lines, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{file} is not CSV: {error}", hint=_HINT) from error
    columns = [cell.strip().lower() for cell in table[0]] if table else []
    _check_heading(columns, file)
    if len(table) > ROWS_MAX:
        raise ConfigError(f"{file} has {len(table):,} rows; use at most {ROWS_MAX:,}, in several files")
    rows: list[Row] = []
    wrong: list[str] = []
    names: set[str] = set()
    for number, cells in enumerate(table[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            wrong.append(f"row {number} has {len(cells)} cells; the heading has {len(columns)} columns")
            continue
        given = {c: cell.strip() for c, cell in zip(columns, cells, strict=False) if cell.strip()}
        row = Row(number, **{"name": "", "endpoint": "", "security": security, "template": template, **given})
        wrong += [f"row {number}, column {column}: {what}" for column, what in _mistakes(row, names)]
        names.add(row.name)
        rows.append(row)
    if not rows and not wrong:
        wrong.append("there is no row below the heading")
    _refuse(file, wrong)
    return rows


_HINT = "the first line is: " + ",".join(COLUMNS)


def _check_heading(columns: Sequence[str], file: str) -> None:
    unknown = [c for c in columns if c not in COLUMNS]
    missing = [c for c in REQUIRED if c not in columns]
    twice = sorted({c for c in columns if columns.count(c) > 1})
    told = [f"unknown column {plain(c, 40)!r}" for c in unknown] + [f"no column {c!r}" for c in missing]
    told += [f"column {c!r} twice" for c in twice if c not in unknown]
    if told:
        raise ConfigError(f"{file}, row 1: {', '.join(told)}; columns are {', '.join(COLUMNS)}", hint=_HINT)


def _mistakes(row: Row, taken: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield column and what is wrong there."""
    for column in ("name", "area", "line"):
        value = getattr(row, column)
        if not _NAME.fullmatch(value):
            legal = name_of(value, otherwise="press7")
            yield column, f"{plain(value, 40)!r} is no name; use letters, digits, '.', '_', '-', such as {legal}"
    if row.name in taken:
        yield "name", f"{row.name!r} stands in two rows; names are unique"
    if not is_endpoint(row.endpoint):
        yield "endpoint", f"{plain(row.endpoint, 80)!r} is no address; use opc.tcp://host:port"
    if row.security not in SECURITIES:
        yield "security", f"{plain(row.security, 40)!r} is not known; use {', '.join(SECURITIES)}"
    if row.user and not row.password_file:
        yield "password_file", f"is empty; user {plain(row.user, 40)!r} needs a file that holds the password"
    if row.password_file and not row.user:
        yield "user", "is empty; password_file needs a user name"


def read_template(text: str, file: str) -> Template:
    """Read a template.

    Raises:
        ConfigError: It is not TOML, has no `[[device]]`, or a device is not as `[[source.device]]` wants it.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    devices = raw.pop("device", None)
    if raw or not isinstance(devices, list) or not devices:
        what = f"unknown table {plain(next(iter(raw)), 40)!r}" if raw else "no [[device]] table"
        raise ConfigError(f"{file}: {what}; a template holds [[device]] tables alone", hint=_TEMPLATE_HINT)
    template = Template(file, tuple(devices))
    instances(template, Row(0, "name", "opc.tcp://host:4840", "area", "line"))
    return template


_TEMPLATE_HINT = '[[device]] name = "{name}" browse = ["ns=2;s={name}/**"]'


def instances(template: Template, row: Row) -> list[Device]:
    """Return the devices that a template makes of a row.

    Raises:
        ConfigError: A placeholder is not known, or what comes out is no device.
    """
    values = {name: getattr(row, name) for name in PLACEHOLDERS}
    made = []
    for place, raw in enumerate(template.devices):
        where = f"{template.file}, device {place + 1}" + (f", for row {row.row} ({row.name})" if row.row else "")
        filled = _filled(raw, values, where)
        try:
            device = msgspec.convert({"area": row.area, "line": row.line, **filled}, Device)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            raise ConfigError(f"{where}: {path.rstrip('`').lstrip('.') or 'device'}: {what}", hint=_HELP) from error
        for root in device.browse:
            try:
                parse_root(root)
            except ConfigError as error:
                raise ConfigError(f"{where}: browse: {error}", hint=_HELP) from error
        made.append(device)
    return made


_HELP = "docs/config.md lists every setting of source.device and its bounds"


def _filled(value: Any, values: Mapping[str, str], where: str) -> Any:
    """Replace the placeholders in all strings of a value."""
    if isinstance(value, dict):
        return {key: _filled(inner, values, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, where) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        if name not in values:
            legal = ", ".join(f"{{{p}}}" for p in PLACEHOLDERS)
            raise ConfigError(f"{where}: {{{plain(name, 40)}}} stands for nothing; use {legal}, or {{{{ for a brace")
        return values[name]

    return _PLACEHOLDER.sub(replace, value)


def check_names(devices: Sequence[tuple[Row, Device]], file: str) -> None:
    """Raise ConfigError where two devices have one name."""
    owner: dict[str, Row] = {}
    wrong = []
    for row, device in devices:
        first = owner.setdefault(device.name, row)
        if first is not row:
            wrong.append(
                f"row {row.row}, column template: device {device.name!r} exists by row {first.row} already; "
                "put {name} into the template's device name"
            )
    _refuse(file, wrong)


def _refuse(file: str, wrong: Sequence[str]) -> None:
    if wrong:
        more = [f"and {len(wrong) - TOLD_MAX} more"] if len(wrong) > TOLD_MAX else []
        told = [*wrong[:TOLD_MAX], *more]
        what = f"{file}: {told[0]}" if len(told) == 1 else f"{file}: {len(wrong)} mistakes\n  " + "\n  ".join(told)
        raise ConfigError(what, hint=_HINT)
