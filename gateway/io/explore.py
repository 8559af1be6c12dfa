"""Walk a server's address space to show it: bounded, with progress, in small steps.

`gateway.io.browse` finds what is to be mirrored and may not stop early; this finds what a person wants to
see, stops at a limit and says so.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.browse import DEPTH_MAX, Reference
from gateway.io.browse import SERVER_OBJECT, Found, Space, describe, is_nameable, references
from gateway.server import ServerFacts
from gateway.tree import Tree, TreeNode
from mirror.errors import ConfigError
from mirror.tags import Tag, legible

STEP = 500  # nodes browsed, or variables described, between two reports
NODES_PER_VARIABLE = 20  # a server of folders alone ends too
NODES_MIN = 10_000
_NODE_CLASS, _BROWSE_NAME, _VARIABLE = 2, 3, 2

Progress = Callable[[int, int], None]


def _silent(nodes: int, variables: int) -> None:
    del nodes, variables


async def explore(
    space: Space, facts: ServerFacts, root: str, *, variables_max: int, progress: Progress = _silent
) -> Tree:
    """Return what is below a node, breadth first.

    Args:
        space: An open connection.
        facts: Of the server.
        root: NodeId text.
        variables_max: The walk ends when so many variables are found, or NODES_PER_VARIABLE times as many
            nodes; the tree is then not complete.
        progress: Told the nodes and variables found so far.

    Raises:
        ConfigError: The server has no such node.
        Unavailable: It did not answer.
    """
    node_class = (await space.attributes([root], _NODE_CLASS))[0]
    if node_class is None:
        raise ConfigError(f"the server has no node {root}", hint="look from the top: leave NODE out")
    name = ((await space.attributes([root], _BROWSE_NAME))[0] or {}).get("name") or ""
    tree = Tree([TreeNode(root, legible(str(name)), -1, node_class == _VARIABLE)])
    walk = _Walk(tree, variables_max)
    at = 0
    while at < len(tree.nodes):
        full = not tree.complete  # then only the properties of the variables that were found are still read
        part = [i for i in range(at, min(at + STEP, len(tree.nodes))) if not full or tree.nodes[i].is_variable]
        at = min(at + STEP, len(tree.nodes))
        for place, refs in zip(part, await references(space, facts, [tree.nodes[i].node for i in part]), strict=True):
            walk.take(place, refs)
        progress(len(tree.nodes), walk.variables)
    return tree


class _Walk:
    """Adds what is found to a tree, up to its limits."""

    def __init__(self, tree: Tree, variables_max: int) -> None:
        self.tree = tree
        self.variables = len(tree.variables)
        self._variables_max = variables_max
        self._nodes_max = max(NODES_MIN, NODES_PER_VARIABLE * variables_max)
        self._known = {tree.nodes[0].node, SERVER_OBJECT}
        self._depth = [0]

    def take(self, place: int, refs: list[Reference]) -> None:
        """Add the children of a node, and note its properties."""
        nodes = self.tree.nodes
        for ref in refs:
            if ref.is_property:
                _property(nodes[place], ref)
            elif ref.node not in self._known and self.tree.complete:
                if (
                    self.variables + ref.is_variable > self._variables_max
                    or len(nodes) >= self._nodes_max
                    or self._depth[place] >= DEPTH_MAX
                ):
                    self.tree.complete = False
                    continue
                self._known.add(ref.node)
                self.variables += ref.is_variable
                self._depth.append(self._depth[place] + 1)
                nodes.append(TreeNode(ref.node, ref.name, place, ref.is_variable))


async def facts_of(space: Space, facts: ServerFacts, tree: Tree, progress: Progress = _silent) -> dict[int, Tag]:
    """Return the facts of a tree's variables by their place; one whose name is not UTF-8 has none."""
    tags: dict[int, Tag] = {}
    places = tree.variables
    for at in range(0, len(places), STEP):
        part = places[at : at + STEP]
        part = [i for i in part if is_nameable(facts, tree.nodes[i].node)]
        found = [Found(tree.nodes[i].node, tree.path(i), tree.path(i)) for i in part]
        for f, i in zip(found, part, strict=True):
            f.unit_node, f.range_node = tree.nodes[i].unit_node, tree.nodes[i].range_node
        tags |= dict(zip(part, (await describe(space, facts, "", found)).tags, strict=True))
        progress(min(at + STEP, len(places)), len(places))
    return tags


def _property(node: TreeNode, ref: Reference) -> None:
    if ref.name == "EngineeringUnits":
        node.unit_node = ref.node
    elif ref.name == "EURange":
        node.range_node = ref.node
