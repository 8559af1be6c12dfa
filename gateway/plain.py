"""Words of strangers, made safe to show and to write: on a terminal, in a comment, as a TOML string, as a name.

Browse names, server names and subjects of certificates come from whoever answers. Whatever they hold, a
terminal gets no control character, no line break and nothing that turns its reading direction; a file gets
legal TOML that means exactly the text; and a name of ours gets only the letters that names may have.

What it does not do: change an identity. What is shown may be cut; what is written as a value never is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

SHOWN_MAX = 120  # characters of one text, for people
NAME_MAX = 63  # as gateway.config.Name
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))  # controls, directions, halves, unassigned, breaks
_SHORT = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def plain(text: str, limit: int = SHOWN_MAX) -> str:
    """Return a text for a terminal or a comment: what is not a visible character is spelled out.

    Args:
        text: Anything.
        limit: Most characters of it; what is cut off is shown as an ellipsis.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSAFE else c for c in cut)


def toml_string(text: str) -> str:
    """Return a text as a basic string of TOML that reads back as itself and is safe to look at.

    Args:
        text: Without lone surrogates, for which TOML has no form.
    """
    return '"' + "".join(_escaped(c) if c in _SHORT or unicodedata.category(c) in _UNSAFE else c for c in text) + '"'


def name_of(text: str, taken: Container[str] = (), *, otherwise: str = "device") -> str:
    """Return a name for a group, source or device as `gateway.config.Name` allows it, and not yet taken.

    Args:
        text: What a stranger calls it.
        taken: Names that are in use.
        otherwise: The name if nothing of the text can stand in one.
    """
    letters = unicodedata.normalize("NFKD", text[: 4 * NAME_MAX])
    ascii_only = "".join(c for c in letters if not unicodedata.combining(c))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).strip("-._")[:NAME_MAX].rstrip("-._") or otherwise
    unique, serial = name, 2
    while unique in taken:
        tail = f"-{serial}"
        unique, serial = name[: NAME_MAX - len(tail)] + tail, serial + 1
    return unique


def _escaped(char: str) -> str:
    code = ord(char)
    return _SHORT.get(char) or (f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}")
