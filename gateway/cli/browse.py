"""`edgemirror browse`: look at a server's variables before anything is configured."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from gateway.browse import parse_root, resolve
from gateway.cli import server, terminal
from gateway.io.discover import discover
from gateway.io.explore import explore, facts_of
from gateway.io.opcua import Connection
from gateway.plain import plain
from gateway.tree import Tree
from mirror.errors import ConfigError
from mirror.tags import Tag

NAME_SHOWN = 60


def browse(options: argparse.Namespace) -> int:
    """Print the variables below a node, as a tree or as lines of JSON."""
    if options.max < 1:
        raise ConfigError(f"--max is {options.max}; use 1 or more, such as 1000")
    source = server.source_of(options)
    root = parse_root(options.node)
    if root.depth:
        raise ConfigError(f"{options.node!r} is a pattern; name a node, such as ns=2;s=Press7")

    async def look() -> tuple[Tree, dict[int, Tag]]:
        (await discover(source.endpoint)).require(
            source.endpoint, source.security, source.user, certificate=bool(source.user_certificate_file)
        )
        connection = Connection(source, password=server.password_of(source))
        try:
            await connection.connect()
            facts = await connection.server_facts()
            node = resolve(root, facts.namespaces)
            if node is None:
                raise ConfigError(
                    f"the server has no namespace of {options.node!r}; it has "
                    + ", ".join(f"{i}: {plain(uri, 60)}" for i, uri in enumerate(facts.namespaces))
                )
            tree = await explore(
                connection, facts, node, variables_max=options.max,
                progress=lambda nodes, found: progress.show(f"{nodes:,} nodes, {found:,} variables"),
            )  # fmt: skip
            return tree, await facts_of(
                connection, facts, tree, lambda done, all_: progress.show(f"facts of {done:,} of {all_:,} variables")
            )
        finally:
            await connection.close()

    with terminal.Progress(options) as progress:
        tree, tags = server.run(look())
    if options.json:
        for place in tree.variables:
            if place in tags:
                print(json.dumps(_line(tree, place, tags[place])))
    else:
        _print(tree, tags)
    unnamed = len(tree.variables) - len(tags)
    if unnamed:
        terminal.note(f"{unnamed} variables are left out: their names are not UTF-8, and nothing could hold them")
    if not tree.complete:
        terminal.note(f"there is more: the walk ended at its limit of {options.max:,} variables (--max)")
    return 0


def _line(tree: Tree, place: int, tag: Tag) -> dict[str, Any]:
    told = [n for n in (tag.range_low, tag.range_high) if n is not None and math.isfinite(n)]
    bounds = told if len(told) == 2 else None
    return {
        "path": tree.path(place), "node": tag.node, "type": tag.data_type, "value_rank": tag.value_rank,
        "unit": tag.unit, "range": bounds, "description": tag.description,
    }  # fmt: skip


def _print(tree: Tree, tags: dict[int, Tag]) -> None:
    rows = []
    for depth, place in tree.outline():
        name = "  " * depth + plain(tree.nodes[place].name or "(no name)", NAME_SHOWN)
        tag = tags.get(place)
        if tag is None:
            rows.append((name, "", "", ""))
        else:
            kind = tag.data_type + ("[]" if tag.value_rank > 0 else "")
            low_high = "" if tag.range_low is None else f" {tag.range_low:g} to {tag.range_high:g}"
            rows.append((name, kind, f"{tag.unit}{low_high}".strip(), tag.node))
    terminal.table(rows or [(f"no variables below {tree.nodes[0].name}",)])
