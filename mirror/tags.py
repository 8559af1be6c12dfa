"""Tags: which variable a sample belongs to, and what is known about it.

A tag is identified by its source (the server's ApplicationUri), its namespace URI and its identifier,
never by a namespace index, which a server may renumber at any restart. Inside one box a tag is a small
integer handle; a handle never leaves the box.

Facts (path, type, unit, range, description) are what the server said at browse time. They may change;
the identity may not. Facts that are not UTF-8 are made so; an identity that is not has no place here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

_LONE = re.compile("[\ud800-\udfff]")
_FACTS = ("path", "device", "name", "data_type", "unit", "description")


def is_utf8(text: str) -> bool:
    """Tell whether a text was UTF-8 on the wire; bytes that were not stand in it as lone surrogates."""
    return text.isascii() or _LONE.search(text) is None


def legible(text: str) -> str:
    """Return a text that UTF-8 can carry: what was none on the wire becomes U+FFFD."""
    return text if is_utf8(text) else _LONE.sub("\ufffd", text)


class Tag(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mirrored variable: identity and facts.

    Attributes:
        source: ApplicationUri of the server.
        namespace: Namespace URI of the node.
        identifier: `i=85`, `s=Press7.Temp`, `g=...` or `b=<base64>`, as in Part 6, 5.3.1.10.
        path: Browse names from the browse root to the variable, joined by `/`.
        device: Name of the device, the configured subtree, that the tag belongs to.
        name: Name of the tag within its device, unique there; `/` separates levels.
        data_type: Name of the built-in or structured data type, such as `Double`.
        value_rank: As in Part 3, 5.6.2: -1 scalar, 1 one dimension, 0 and -2 as there.
        unit: Display name of the engineering unit, or empty.
        range_low: EURange low, or None; a bound that is not finite is none.
        range_high: EURange high, or None, as for `range_low`.
        description: Text of the node's Description, or empty.
        stamping: `S` the source stamps (two subscriptions give equal stamps), `U` the server stamps at
            sampling or the stamp is null, empty: not known yet. Only ever moves towards U.
    """

    source: str
    namespace: str
    identifier: str
    path: str = ""
    device: str = ""
    name: str = ""
    data_type: str = ""
    value_rank: int = -1
    unit: str = ""
    range_low: float | None = None
    range_high: float | None = None
    description: str = ""
    stamping: str = ""

    def __post_init__(self) -> None:
        for name in _FACTS:  # a unit in Latin-1 must not keep its tag, and with it a whole source, out
            if not is_utf8(getattr(self, name)):
                msgspec.structs.force_setattr(self, name, legible(getattr(self, name)))
        for name in ("range_low", "range_high"):  # JSON, in which facts travel, knows no infinity
            bound = getattr(self, name)
            if bound is not None and not math.isfinite(bound):
                msgspec.structs.force_setattr(self, name, None)

    @property
    def node(self) -> str:
        """The node as an ExpandedNodeId string: `nsu=<namespace URI>;<identifier>` (Part 6, 5.3.1.11)."""
        uri = self.namespace.replace("%", "%25").replace(";", "%3B")
        return f"nsu={uri};{self.identifier}"

    @property
    def identity(self) -> str:
        """Source and node in one string, unique over all sources; the first newline stands between the two."""
        source = self.source.replace("%", "%25").replace("\n", "%0A")
        return f"{source}\n{self.node}"


class TagTable:
    """Tags by handle, dense from 0, in the order in which they were first seen.

    Handles are given once and never reused, so that a chunk written last year still means the same tag.
    """

    def __init__(self, tags: Iterable[Tag] = ()) -> None:
        self.tags: list[Tag] = []
        self.identities: list[str] = []
        self._handle: dict[str, int] = {}
        self._rank: NDArray[np.uint32] | None = None
        for tag in tags:
            self.add(tag)

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, handle: int) -> Tag:
        return self.tags[handle]

    def add(self, tag: Tag) -> int:
        """Return the tag's handle, giving it the next free one if it is new; facts are replaced.

        What is known of the stamping is kept: it was learnt from samples, and only ever moves towards U.
        """
        identity = tag.identity
        handle = self._handle.get(identity)
        if handle is not None:
            known = self.tags[handle].stamping
            if known == "U" or not tag.stamping:
                tag = msgspec.structs.replace(tag, stamping=known)
            self.tags[handle] = tag
            return handle
        handle = self._handle[identity] = len(self.tags)
        self.tags.append(tag)
        self.identities.append(identity)
        self._rank = None
        return handle

    def find(self, identity: str) -> int | None:
        """Return the handle of an identity, or None."""
        return self._handle.get(identity)

    @property
    def rank(self) -> NDArray[np.uint32]:
        """uint32 by handle: the place of each tag among all tags sorted by identity."""
        if self._rank is None:
            order = sorted(range(len(self.identities)), key=self.identities.__getitem__)
            self._rank = np.empty(len(order), np.uint32)
            self._rank[order] = np.arange(len(order), dtype=np.uint32)
        return self._rank
