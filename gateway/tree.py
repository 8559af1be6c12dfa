"""A part of a server's address space, as it was walked: for people to look at and for proposals.

Nodes stand in the order in which they were found, breadth first; the root is the first. A node that is
reached by several roads stands once, on the shortest. A tree that is not complete ended at its limit.

What it does not do: ask a server (`gateway.io.explore`), or become part of a mirror (`gateway.io.browse`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.browse import level


@dataclass(slots=True)
class TreeNode:
    """One object or variable.

    Attributes:
        node: NodeId text of this session.
        name: BrowseName.
        parent: Place of the node above; -1 for the root.
        is_variable: NodeClass Variable.
        unit_node, range_node: Its properties, where it has them.
    """

    node: str
    name: str
    parent: int
    is_variable: bool
    unit_node: str = ""
    range_node: str = ""


@dataclass(slots=True)
class Tree:
    """What was found below one node."""

    nodes: list[TreeNode] = field(default_factory=list)
    complete: bool = True

    @property
    def variables(self) -> list[int]:
        """Places of all variables."""
        return [place for place, node in enumerate(self.nodes) if node.is_variable]

    def path(self, place: int) -> str:
        """Return the names from below the root to a node, joined by `/`; the root's own name for the root."""
        if place == 0:
            return level(self.nodes[0].name)
        names = []
        while place > 0:
            names.append(level(self.nodes[place].name))
            place = self.nodes[place].parent
        return "/".join(reversed(names))

    def outline(self) -> Iterator[tuple[int, int]]:
        """Yield (depth, place) of each variable and of what leads to one, parents before their children."""
        useful = set()
        for place in self.variables:
            at = place
            while at >= 0 and at not in useful:
                useful.add(at)
                at = self.nodes[at].parent
        children: dict[int, list[int]] = {}
        for place in sorted(useful):
            children.setdefault(self.nodes[place].parent, []).append(place)
        stack = [(0, place) for place in reversed(children.get(-1, []))]
        while stack:
            depth, place = stack.pop()
            yield depth, place
            stack += [(depth + 1, child) for child in reversed(children.get(place, []))]

    def beneath(self) -> dict[int, list[int]]:
        """Return the variables by the node directly below the root that leads to them; its own included."""
        tops: dict[int, list[int]] = {}
        top_of: list[int] = []
        for place, node in enumerate(self.nodes):  # a parent stands before its children
            top_of.append(place if node.parent <= 0 else top_of[node.parent])
            if node.is_variable and place > 0:
                tops.setdefault(top_of[place], []).append(place)
        return tops
