"""Walk a server's address space below the configured roots and gather what is known of each variable.

Breadth first, many nodes in each request. Properties (HasProperty) are facts of their node and not tags,
unless a root names them. The Server object with its diagnostics is entered only from a root of its own.

What it does not do: keep anything, or decide how a tag is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.browse import (
    BUILTIN,
    BrowseResult,
    Definition,
    Reference,
    definition_of,
    excluder,
    level,
    parse_root,
    range_of,
    read_browse,
    resolve,
    split_node,
    structures_of,
    unique_names,
    unit_of,
)
from gateway.server import ServerFacts
from mirror.errors import ConfigError, Unavailable
from mirror.tags import Tag, is_utf8, legible
from mirror.variant import Structure

EMPTY_PAGES_MAX = 100  # one after the other: some are legal, no end is not
NODES_MAX = 2_000_000
TYPES_MAX = 10_000
NODES_PER_CALL = 1000
BAD_NO_CONTINUATION_POINTS, BAD_CONTINUATION_POINT = 0x804B0000, 0x804A0000
SERVER_OBJECT = "i=2253"
_VARIABLE = 2
_NODE_CLASS, _BROWSE_NAME, _DESCRIPTION, _VALUE, _DATA_TYPE, _VALUE_RANK, _DEFINITION = 2, 3, 5, 13, 14, 15, 23


class Space(Protocol):
    """What of a connection browsing needs."""

    async def browse_page(self, nodes: Sequence[str], *, types: bool) -> bytes:
        """Return the response to one Browse: children (objects and variables), or supertypes of types."""

    async def browse_next(self, points: Sequence[bytes]) -> bytes:
        """Return the response to one BrowseNext."""

    async def attributes(self, nodes: Sequence[str], attribute: int) -> list[Any]:
        """Return the attribute of each node as a plain value, None where it has none."""


async def references(
    space: Space, facts: ServerFacts, nodes: Sequence[str], *, types: bool = False
) -> list[list[Reference]]:
    """Return all references of each node: to its children, or with `types` to its supertypes.

    A server that runs out of continuation points is asked again for fewer nodes, down to one. A node that
    is not there any more has none.

    Raises:
        Unavailable: The server did not answer, or does not tell all references of a single node.
    """
    size = min(facts.limits.browse or NODES_PER_CALL, NODES_PER_CALL)
    found: dict[str, list[Reference]] = {}
    todo = list(dict.fromkeys(nodes))
    while todo:
        part, todo = todo[:size], todo[size:]
        body = await space.browse_page(part, types=types)
        points: dict[str, bytes] = {}
        short = _merge(read_browse(body, len(part), facts.namespaces), part, found, points)
        empty = 0
        while points:
            known = sum(map(len, found.values()))
            asked = list(points)
            body = await space.browse_next(list(points.values()))
            points = {}
            short += _merge(read_browse(body, len(asked), facts.namespaces, next_page=True), asked, found, points)
            empty = empty + 1 if sum(map(len, found.values())) <= known else 0
            if empty > EMPTY_PAGES_MAX:
                raise Unavailable(f"the server sends one empty page after the other for {asked[0]}")
        if short and size == 1:
            raise Unavailable(f"the server does not tell all references of {short[0]}")
        size = max(1, size // 2) if short else size
        todo = short + todo
    return [found[node] for node in nodes]


def _merge(
    results: Sequence[BrowseResult], nodes: Sequence[str], found: dict[str, list[Reference]], points: dict[str, bytes]
) -> list[str]:
    """Add a page to what was found; return the nodes for which the server had no continuation points."""
    short = []
    for node, result in zip(nodes, results, strict=True):
        if result.status in (BAD_NO_CONTINUATION_POINTS, BAD_CONTINUATION_POINT):
            found.pop(node, None)
            short.append(node)
            continue
        found.setdefault(node, []).extend(result.references)
        if len(found[node]) > NODES_MAX:
            raise ConfigError(f"{node} has more than {NODES_MAX} references", hint="source.device.browse")
        if result.continuation:
            points[node] = result.continuation
    return short


@dataclass(frozen=True, slots=True)
class Browsed:
    """What stands below the roots of one device.

    Attributes:
        tags: Its variables, in the order in which they were found.
        structures: Definitions by encoding, as it stands in an ExtensionObject of this server now.
        missing: Roots that the server does not have, and variables that cannot be named.
    """

    tags: list[Tag]
    structures: dict[str, Structure]
    missing: list[str]


@dataclass(slots=True)
class Found:
    """A variable whose facts are not read yet.

    Attributes:
        node: NodeId text of this session.
        path: Names from the root on.
        below: Names from below the root; the name of the tag, if no other has it.
        unit_node, range_node: Properties that hold its unit and range, or empty.
    """

    node: str
    path: str
    below: str
    unit_node: str = ""
    range_node: str = ""


async def browse(
    space: Space, facts: ServerFacts, device: str, roots: Sequence[str], exclude: Sequence[str] = ()
) -> Browsed:
    """Find the variables below roots, with their facts.

    Args:
        space: An open connection.
        facts: Of the server.
        device: Name that the tags get as their device.
        roots: See `gateway.browse.parse_root`.
        exclude: Patterns over the path below the root; what they match is left out with all below it.

    Raises:
        ConfigError: A root is not well formed, or there are more than NODES_MAX nodes below the roots.
        Unavailable: The server did not answer.
    """
    found, missing = await variables(space, facts, roots, excluder(exclude))
    described = await describe(space, facts, device, found)
    return Browsed(described.tags, described.structures, missing + described.missing)


async def describe(space: Space, facts: ServerFacts, device: str, found: Sequence[Found]) -> Browsed:
    """Read the facts of variables; those that cannot be named are `missing`."""
    namespaces = dict(enumerate(facts.namespaces))
    nameable = [is_nameable(facts, f.node) for f in found]
    missing = [
        f"{legible(f.node)} (its name is not UTF-8)" for f, good in zip(found, nameable, strict=True) if not good
    ]
    found = [f for f, good in zip(found, nameable, strict=True) if good]
    nodes = [f.node for f in found]
    data_types = [str(v or "") for v in await space.attributes(nodes, _DATA_TYPE)]
    ranks = await space.attributes(nodes, _VALUE_RANK)
    descriptions = await space.attributes(nodes, _DESCRIPTION)
    units = await _values(space, [f.unit_node for f in found])
    ranges = await _values(space, [f.range_node for f in found])
    type_names, structures = await _types(space, facts, data_types)
    names = unique_names([(f.below, split_node(f.node)[1]) for f in found])
    tags = []
    for i, f in enumerate(found):
        index, identifier = split_node(f.node)
        low, high = range_of(ranges[i]) or (None, None)
        description = descriptions[i]
        tags.append(Tag(
            source=facts.uri, namespace=namespaces.get(index, ""), identifier=identifier,
            path=f.path, device=device, name=names[i], data_type=type_names.get(data_types[i], data_types[i]),
            value_rank=ranks[i] if isinstance(ranks[i], int) else -1, unit=unit_of(units[i]),
            range_low=low, range_high=high,
            description=str(description["text"] or "") if isinstance(description, dict) else "",
        ))  # fmt: skip
    return Browsed(tags, structures, missing)


def is_nameable(facts: ServerFacts, node: str) -> bool:
    """Tell whether a node can be named: no identity, no key and no file could hold a name that is not UTF-8."""
    index = split_node(node)[0]
    return is_utf8(node) and (index >= len(facts.namespaces) or is_utf8(facts.namespaces[index]))


async def variables(
    space: Space, facts: ServerFacts, roots: Sequence[str], excluded: Callable[[str], bool]
) -> tuple[list[Found], list[str]]:
    """Return the variables below the roots, each once, and the roots that are not there."""
    parsed = [parse_root(text) for text in roots]
    resolved = [resolve(root, facts.namespaces) for root in parsed]
    there = [node for node in resolved if node is not None]
    classes = dict(zip(there, await space.attributes(there, _NODE_CLASS), strict=True))
    names = dict(zip(there, await space.attributes(there, _BROWSE_NAME), strict=True))
    found: dict[str, Found] = {}
    missing = []
    for text, root, node in zip(roots, parsed, resolved, strict=True):
        if node is None or classes[node] is None:
            missing.append(text)
            continue
        top = level(legible(str((names[node] or {}).get("name") or "")))
        prefix = f"{top}/" if len(roots) > 1 else ""
        if classes[node] == _VARIABLE and node not in found:
            found[node] = Found(node, top, top)
        if root.depth:
            await _descend(space, facts, node, top, prefix, root.depth, excluded, found)
        elif classes[node] == _VARIABLE:
            _properties(found[node], (await references(space, facts, [node]))[0])
    return list(found.values()), missing


async def _descend(
    space: Space,
    facts: ServerFacts,
    root: str,
    top: str,
    prefix: str,
    depth: int,
    excluded: Any,
    found: dict[str, Found],
) -> None:
    """Add the variables below one root to `found`."""
    seen = {root}
    frontier = [(root, "")]
    for below in range(depth + 1):  # one level more than asked for: the properties of the last variables
        following = []
        for (node, path), refs in zip(frontier, await references(space, facts, [n for n, _ in frontier]), strict=True):
            if node in found:
                _properties(found[node], refs)
            for ref in refs if below < depth else ():
                here = f"{path}/{level(ref.name)}" if path else level(ref.name)
                if ref.is_property or ref.node in seen or ref.node == SERVER_OBJECT or excluded(here):
                    continue
                seen.add(ref.node)
                following.append((ref.node, here))
                if ref.is_variable and ref.node not in found:
                    found[ref.node] = Found(ref.node, f"{top}/{here}", prefix + here)
        if len(seen) > NODES_MAX:
            raise ConfigError(
                f"more than {NODES_MAX} nodes below {root}; begin further down, or exclude branches",
                hint="source.device.browse",
            )
        frontier = following
        if not frontier:
            return


def _properties(found: Found, refs: Sequence[Reference]) -> None:
    for ref in refs:
        if ref.is_property and ref.name == "EngineeringUnits":
            found.unit_node = ref.node
        elif ref.is_property and ref.name == "EURange":
            found.range_node = ref.node


async def _values(space: Space, nodes: Sequence[str]) -> list[Any]:
    """Return the value of each node, None for the empty ones."""
    asked = [n for n in nodes if n]
    values = iter(await space.attributes(asked, _VALUE))
    return [next(values) if n else None for n in nodes]


async def _types(
    space: Space, facts: ServerFacts, data_types: Sequence[str]
) -> tuple[dict[str, str], dict[str, Structure]]:
    """Return the names of data types, and the structures that they and their fields are."""
    names: dict[str, str] = {}
    definitions: dict[str, Definition] = {}
    builtin = dict(BUILTIN)
    wanted = sorted({t for t in data_types if t})
    while wanted:
        if len(names) > TYPES_MAX:
            break
        for node, name in zip(wanted, await space.attributes(wanted, _BROWSE_NAME), strict=True):
            names[node] = str(name["name"] or node) if isinstance(name, dict) else node
        open_types = [n for n in wanted if n not in builtin]
        for node, value in zip(open_types, await space.attributes(open_types, _DEFINITION), strict=True):
            definition = definition_of(value)
            if definition is not None:
                definitions[node] = definition
        await _climb(space, facts, [n for n in open_types if n not in definitions], builtin)
        fields = {f.type for d in definitions.values() for f in d.fields if f.type}
        wanted = sorted(fields - names.keys())
    return names, structures_of(definitions, builtin, names)


async def _climb(space: Space, facts: ServerFacts, nodes: Sequence[str], builtin: dict[str, int]) -> None:
    """Add to `builtin` what simple types such as Duration come down to; a structure comes down to none."""
    at = {node: node for node in nodes}
    for _ in range(16):
        if not at:
            return
        above_all = await references(space, facts, list(at.values()), types=True)
        for node, refs in zip(list(at), above_all, strict=True):
            above = refs[0].node if refs else None
            kind = BUILTIN.get(above or "")
            if above is None or kind == BUILTIN["i=22"]:
                del at[node]
            elif kind is not None:
                builtin[node] = kind
                del at[node]
            else:
                at[node] = above
