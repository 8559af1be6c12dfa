"""What the plant wrote, as a batch, and the comparison of a mirror with it, sample by sample.

Two rows are the same sample when tag, both times, picoseconds, status, null flags, encoding byte and
value bytes are the same: nothing is rounded, nothing is forgiven.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mirror.batch import CONTENT_FLAGS, FIXED_WIDTH, IN_HEAP, SERVER_NULL, SOURCE_NULL, Batch, Heap, Kind
from mirror.tags import Tag, TagTable

SIGNED = {Kind.SBYTE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.DATETIME}

Key = tuple[object, ...]


@dataclass(frozen=True)
class Verdict:
    """How a mirror compares with the plant.

    Attributes:
        produced: Rows that the plant wrote.
        missing: Places of those that the mirror does not have.
        duplicates: Further copies of rows in the mirror.
        foreign: Rows of the mirror that the plant never wrote.
    """

    produced: int
    missing: frozenset[int]
    duplicates: int
    foreign: int

    @property
    def lost(self) -> int:
        """How many rows the mirror does not have."""
        return len(self.missing)

    @property
    def clean(self) -> bool:
        """Whether nothing is lost and nothing invented; copies are no harm."""
        return self.lost == 0 and self.foreign == 0


def read(log: Path, source: str, tags: TagTable) -> Batch:
    """Return the plant's log as a batch in the order of writing; unknown tags are added to the table.

    Args:
        log: The file that `demo.plant --log` writes; a torn last line is left out.
        source: The plant's ApplicationUri.
        tags: Gives the handles; shared with the batch to compare with.
    """
    lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    batch = Batch.zeros(len(lines))
    handles = {node: _handle(node, source, tags) for node in {line["node"] for line in lines}}
    heap: list[bytes] = []
    for row, line in enumerate(lines):
        kind, body = line["kind"], bytes.fromhex(line["body"])
        batch.handle[row] = handles[line["node"]]
        batch.source_ticks[row] = line["source_ticks"] or 0
        batch.server_ticks[row] = line["server_ticks"] or 0
        batch.source_ps[row] = line["source_ps"]
        batch.status[row], batch.kind[row] = line["status"], kind
        nulls = (line["source_ticks"] is None) * SOURCE_NULL + (line["server_ticks"] is None) * SERVER_NULL
        batch.flags[row] = nulls
        if IN_HEAP[kind]:
            batch.bits[row] = len(heap)
            heap.append(body)
        elif FIXED_WIDTH[kind]:
            signed = kind in SIGNED
            batch.bits[row] = int.from_bytes(body, "little", signed=signed) & 0xFFFFFFFFFFFFFFFF
    return replace(batch, heap=Heap.of(heap))


def _handle(node: str, source: str, tags: TagTable) -> int:
    namespace, _, identifier = node.removeprefix("nsu=").partition(";")
    tag = Tag(source, namespace, identifier)
    known = tags.find(tag.identity)
    return tags.add(tag) if known is None else known  # add would replace the facts that are known


def compare(plant: Batch, mirror: Iterable[Batch]) -> Verdict:
    """Compare what was written with what a mirror holds, in batches with the same handles."""
    copies: Counter[Key] = Counter(key for batch in mirror for key in keys(batch))
    written = list(keys(plant))
    own = set(written)
    assert len(own) == len(written), "two writes of the plant cannot be told apart"
    missing = frozenset(place for place, key in enumerate(written) if key not in copies)
    return Verdict(
        produced=len(written), missing=missing, duplicates=sum(n - 1 for n in copies.values()),
        foreign=sum(key not in own for key in copies),
    )  # fmt: skip


def keys(batch: Batch) -> Iterator[Key]:
    """Yield all that makes a sample, row by row; the handle stands first."""
    columns: Sequence[list[int]] = [
        c.tolist()
        for c in (
            batch.handle, batch.source_ticks, batch.server_ticks, batch.source_ps, batch.server_ps, batch.status,
            batch.flags & np.uint8(CONTENT_FLAGS), batch.kind,
        )
    ]  # fmt: skip
    for row, key in enumerate(zip(*columns, strict=True)):
        yield (*key, batch.value_bytes(row))
