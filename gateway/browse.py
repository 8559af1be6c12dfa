"""What to look for in a server's address space, and what was found there, in plain types.

A node is the text of its NodeId (`ns=2;s=Press7`, `i=85`) while a session lasts: an index may change at
the next start of the server, so whatever is kept carries the namespace URI (`mirror.tags.Tag`).

Rules: exclusion cuts off the branch below; a name within a device is unique and, for an unchanged address
space, always the same; a structure that cannot be described completely is not described at all, since
half a definition would misread the bytes.

What it does not do: talk to a server (`gateway.io.browse`).

Source: OPC UA Part 3, 8.48 to 8.52 (definitions); Part 6, 5.3.1.10 (NodeId as text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.decode import open_answer
from mirror.batch import Kind
from mirror.errors import ConfigError, Corrupt
from mirror.tags import legible
from mirror.variant import Structure, StructureField
from mirror.wire import Reader

DEPTH_MAX = 64
FIELDS_MAX = 100_000  # of all structures of a server together, each nested one counted where it stands
_VARIABLE = 2  # NodeClass
_HAS_PROPERTY = "i=46"
_IDENTIFIER = re.compile(r"^(?:i=\d{1,10}|s=.+|g=[0-9a-fA-F-]{36}|b=[A-Za-z0-9+/=]+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Root:
    """Where to begin, and how deep to go.

    Attributes:
        namespace: Index, or URI.
        identifier: `i=85`, `s=Press7`, `g=...` or `b=...`.
        depth: 0 the node itself, 1 (`/*`) what is directly below too, DEPTH_MAX (`/**`) all that is below.
    """

    namespace: int | str
    identifier: str
    depth: int


class Reference(NamedTuple):
    """One forward reference of a node.

    Attributes:
        node: The target.
        name: The name part of its BrowseName.
        is_variable: NodeClass Variable.
        is_property: The reference is HasProperty.
    """

    node: str
    name: str
    is_variable: bool
    is_property: bool


class BrowseResult(NamedTuple):
    """What a Browse or BrowseNext said of one node.

    Attributes:
        status: StatusCode of this node's part.
        continuation: Where the server goes on when asked with it; empty at the end.
        references: Those that lead to this server's own nodes.
    """

    status: int
    continuation: bytes
    references: list[Reference]


def read_browse(body: bytes, count: int, namespaces: Sequence[str], *, next_page: bool = False) -> list[BrowseResult]:
    """Decode a BrowseResponse, or a BrowseNextResponse.

    Args:
        body: The response from its TypeId on.
        count: Number of nodes in the request.
        namespaces: Where targets are named by URI: the server's NamespaceArray; others are left out.

    Raises:
        Corrupt: The bytes are no such response.
    """
    pos = open_answer(body, *((536, "BrowseNextResponse") if next_page else (530, "BrowseResponse")))
    reader = Reader(body)
    reader.pos = pos
    told = reader.count(Kind.BYTE)
    if told != count:
        raise Corrupt(f"{told} browse results where {count} were asked for")
    results = []
    for _ in range(count):
        status, continuation = reader.number(Kind.STATUSCODE), reader.bytestring() or b""
        references = [_reference(reader, namespaces) for _ in range(reader.count(Kind.BYTE))]
        results.append(BrowseResult(status, continuation, [r for r in references if r is not None]))
    return results


def _reference(reader: Reader, namespaces: Sequence[str]) -> Reference | None:
    reference_type = reader.nodeid()
    reader.boolean()
    target = reader.expanded()
    name = reader.qualified()["name"] or ""
    reader.localized()
    node_class = reader.number(Kind.INT32)
    reader.expanded()
    if target.startswith("svr="):
        return None
    if target.startswith("nsu="):
        uri, _, identifier = target[4:].partition(";")
        if _unescaped(uri) not in namespaces:
            return None
        target = node_text(namespaces.index(_unescaped(uri)), identifier)
    return Reference(target, legible(name), node_class == _VARIABLE, reference_type == _HAS_PROPERTY)


def _unescaped(uri: str) -> str:
    return uri.replace("%3B", ";").replace("%3b", ";").replace("%25", "%")


def parse_root(text: str) -> Root:
    """Read `ns=2;s=Press7/**`, `nsu=http://example.org/press/;s=Press7/*` or `i=85/**`.

    Raises:
        ConfigError: The text is none of these.
    """
    node, depth = text, 0
    for suffix, levels in (("/**", DEPTH_MAX), ("/*", 1)):
        if text.endswith(suffix):
            node, depth = text[: -len(suffix)], levels
            break
    head, _, rest = node.partition(";")
    namespace: int | str = 0
    if head.startswith("ns=") and head[3:].isdigit():
        namespace = int(head[3:])
    elif head.startswith("nsu=") and len(head) > 4:
        namespace = _unescaped(head[4:])
    else:
        rest = node
    if not _IDENTIFIER.match(rest):
        raise ConfigError(
            f"{text!r} names no node; write ns=2;s=Press7/** or nsu=http://example.org/press/;s=Press7/**",
            hint="source.device.browse",
        )
    return Root(namespace, rest, depth)


def resolve(root: Root, namespaces: Sequence[str]) -> str | None:
    """Return the root as a node of a server with these namespaces, or None if it has no such namespace."""
    index = root.namespace
    if isinstance(index, str):
        if index not in namespaces:
            return None
        index = namespaces.index(index)
    return node_text(index, root.identifier) if index < len(namespaces) else None


def node_text(index: int, identifier: str) -> str:
    """Return a NodeId as text."""
    return f"ns={index};{identifier}" if index else identifier


def split_node(node: str) -> tuple[int, str]:
    """Return namespace index and identifier of a NodeId's text."""
    if node.startswith("ns="):
        head, _, identifier = node.partition(";")
        return int(head[3:]), identifier
    return 0, node


def excluder(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a test of paths below a root: `*` stands for any part of a name, `**` for any part of a path."""
    parts = []
    for pattern in patterns:
        tokens = re.split(r"(\*\*|\*|\?)", pattern)
        parts.append("".join({"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(t, re.escape(t)) for t in tokens))
    if not parts:
        return lambda _path: False
    compiled = re.compile("|".join(f"(?:{p})" for p in parts), re.DOTALL)
    return lambda path: compiled.fullmatch(path) is not None


def level(name: str) -> str:
    """Return a BrowseName as one level of a path."""
    return name.replace("%", "%25").replace("/", "%2F") or "%"


def unique_names(paths: Sequence[tuple[str, str]]) -> list[str]:
    """Return for each (path, identifier) a name that no other has: the path, with the identifier where needed."""
    taken: set[str] = set()
    names = []
    for path, identifier in paths:
        name = path if path not in taken else f"{path}~{level(identifier)}"
        serial = 2
        while name in taken:
            name, serial = f"{path}~{level(identifier)}~{serial}", serial + 1
        taken.add(name)
        names.append(name)
    return names


# ---- facts ----------------------------------------------------------------------------------------------

_KINDS = ("structure", "with-optional-fields", "union")  # StructureType 0 to 2; 3 and 4 nest ExtensionObjects


def unit_of(value: object) -> str:
    """Return the display name of an EUInformation, or empty."""
    match value:
        case {"type": "i=889", "body": bytes(body)}:
            try:
                reader = Reader(body)
                reader.string()
                reader.number(Kind.INT32)
                return str(reader.localized()["text"] or "")
            except Corrupt:
                return ""
    return ""


def range_of(value: object) -> tuple[float, float] | None:
    """Return low and high of a Range, or None."""
    match value:
        case {"type": "i=886", "body": bytes(body)} if len(body) == 16:
            reader = Reader(body)
            return reader.number(Kind.DOUBLE), reader.number(Kind.DOUBLE)
    return None


class Field(NamedTuple):
    """A field of a definition before its type is known: the type is a node."""

    name: str
    type: str
    value_rank: int
    optional: bool
    value: int


class Definition(NamedTuple):
    """A DataTypeDefinition; `encoding` is the NodeId text that an ExtensionObject of it carries."""

    kind: str
    encoding: str
    fields: tuple[Field, ...]


def definition_of(value: object) -> Definition | None:
    """Return what a DataTypeDefinition attribute says, or None for what cannot be followed."""
    match value:
        case {"type": "i=122" | "i=123" as kind, "body": bytes(body)}:
            try:
                return _structure_definition(Reader(body)) if kind == "i=122" else _enum(Reader(body))
            except Corrupt:
                return None
    return None


def _structure_definition(reader: Reader) -> Definition | None:
    encoding = reader.nodeid()
    reader.nodeid()  # the base type; its fields are listed here too
    kind = reader.number(Kind.INT32)
    fields = []
    for _ in range(reader.count(Kind.BYTE)):
        name = reader.string() or ""
        reader.localized()
        data_type = reader.nodeid()
        rank = reader.number(Kind.INT32)
        reader.array(Kind.UINT32)
        reader.number(Kind.UINT32)
        fields.append(Field(name, data_type, rank, reader.boolean(), 0))
    return Definition(_KINDS[kind], encoding, tuple(fields)) if 0 <= kind < len(_KINDS) else None


def _enum(reader: Reader) -> Definition:
    fields = []
    for _ in range(reader.count(Kind.BYTE)):
        value = reader.number(Kind.INT64)
        reader.localized()
        reader.localized()
        fields.append(Field(reader.string() or "", "", -1, False, value))
    return Definition("enum", "", tuple(fields))


#: Built-in id by DataType node: the built-in types themselves, and abstract types that carry a Variant.
BUILTIN = {f"i={k}": k for k in range(1, 26)} | {"i=26": 24, "i=27": 24, "i=28": 24, "i=29": 6}


def structures_of(
    definitions: Mapping[str, Definition], builtin: Mapping[str, int], names: Mapping[str, str]
) -> dict[str, Structure]:
    """Put definitions together into structures, nested ones inside.

    Args:
        definitions: By DataType node.
        builtin: Built-in id by DataType node, for types without a definition.
        names: Name by DataType node.

    Returns:
        By encoding, as it stands in an ExtensionObject; without those that nest themselves or anything
        unknown, and without those that would be too many (FIELDS_MAX): twenty types, each of two of the
        next, are a million fields.
    """
    built: dict[str, tuple[int | Structure | None, int]] = {}

    def build(node: str, above: tuple[str, ...]) -> tuple[int | Structure | None, int]:
        """Return a type and the number of its fields; None where it cannot be described."""
        definition = definitions.get(node)
        if definition is None:
            return builtin.get(node), 1
        if node in built:
            return built[node]
        if node in above or len(above) > DEPTH_MAX:
            return None, 0
        fields, size = [], 1
        for f in definition.fields:
            kind, parts = (0, 1) if definition.kind == "enum" else build(f.type, (*above, node))
            if kind is None:
                return None, 0
            size += parts + len(f.name) // 32
            if size > FIELDS_MAX:
                built[node] = None, 0
                return built[node]
            fields.append(StructureField(f.name, kind, f.value_rank, f.optional, f.value))
        structure = Structure(names.get(node, node), definition.kind, tuple(fields))  # type: ignore[arg-type]
        built[node] = structure, size
        return built[node]

    found, left = {}, FIELDS_MAX
    for node, definition in definitions.items():
        structure, size = build(node, ())
        if isinstance(structure, Structure) and definition.kind != "enum" and definition.encoding and size <= left:
            found[definition.encoding] = structure
            left -= size
    return found
