"""Every object key is spelled here, and nowhere else.

Segment names are twenty decimal digits, so that byte order, in which stores list, is sequence order.
Nothing below `log/` is ever written twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.errors import ConfigError

#: Twenty digits hold every 64-bit sequence number; SQLite and JSON readers hold those below 2**63.
SEQUENCE_DIGITS = 20
SEQUENCES_END = 2**63

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SEGMENT = re.compile(rf"log/([0-9]{{{SEQUENCE_DIGITS}}})\.parquet")


@dataclass(frozen=True, slots=True)
class Layout:
    """Keys of one group below a prefix of the bucket.

    Args:
        prefix: Path in the bucket without slashes at its ends; may be empty.
        group: Name of the group: a letter or digit, then letters, digits, `.`, `_`, `-`; at most 63.
    """

    prefix: str
    group: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.group):
            raise ConfigError(
                f"group.name is {self.group!r}; use letters, digits, '.', '_' and '-', at most 63, such as 'press-shop'"
            )
        if self.prefix != self.prefix.strip("/") or "//" in self.prefix:
            raise ConfigError(f"bucket prefix is {self.prefix!r}; use a path such as 'plantA', no slash at its ends")

    @property
    def root(self) -> str:
        """Everything of the group is below this key prefix; ends with a slash."""
        return f"{self.prefix}/{self.group}/" if self.prefix else f"{self.group}/"

    @property
    def log(self) -> str:
        """Prefix of all segments."""
        return f"{self.root}log/"

    @property
    def lease(self) -> str:
        """The lease record of arbiter `s3`; compare-and-swap, never deleted."""
        return f"{self.root}lease.json"

    @property
    def floor(self) -> str:
        """The lowest sequence still kept."""
        return f"{self.root}floor.json"

    @property
    def probe(self) -> str:
        """Scratch prefix of the start-up probe."""
        return f"{self.root}probe/"

    def segment(self, seq: int) -> str:
        """Key of the segment with this sequence number."""
        assert 0 <= seq < 10**SEQUENCE_DIGITS
        return f"{self.log}{seq:0{SEQUENCE_DIGITS}d}.parquet"

    def checkpoint(self, seq: int, suffix: str) -> str:
        """Key of the checkpoint at a sequence; `suffix` is `parquet` or `json`."""
        return f"{self.root}checkpoints/{seq:0{SEQUENCE_DIGITS}d}.{suffix}"

    def desired(self, revision: int) -> str:
        """Key of a desired-state record."""
        return f"{self.root}desired/{revision:0{SEQUENCE_DIGITS}d}.json"

    def sequence(self, key: str) -> int | None:
        """Return the sequence number in a segment's key, or None for any other key."""
        if not key.startswith(self.root):
            return None
        match = _SEGMENT.fullmatch(key, len(self.root))
        return int(match[1]) if match and int(match[1]) < SEQUENCES_END else None


def table(prefix: str, name: str) -> str:
    """Key prefix of a Delta table, shared by all groups."""
    assert name in ("samples", "tags", "gaps", "coverage")
    return f"{prefix}/tables/{name}/" if prefix else f"tables/{name}/"
