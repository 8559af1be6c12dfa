"""From a notification's bytes to Parquet and back: what the server sent is what an analyst reads, or it is refused.

Random messages of every built-in type, and the same ones with bytes flipped, cut and lengths that lie. What the
decoder takes, every later stage carries unchanged: no value is refused only where it can no longer be declared.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from gateway.decode import decode, read_publish
from mirror import chunk, segment
from mirror.batch import Batch, canonical_order, concat, digest, take
from mirror.errors import Corrupt
from mirror.tags import Tag, TagTable
from tests.gateway.publish_bytes import data_change, publish
from tests.gateway.test_decode_oracle import random_items

LIMIT = 500
SEEDS = 60
HOSTILE = 25  # variants of each message
HEADER = b"{}"


@pytest.fixture(scope="module")
def tags() -> TagTable:
    table = TagTable()
    for n in range(LIMIT):
        table.add(Tag("urn:x", "urn:ns", f"i={n}", path=f"P/{n}", device="d", name=str(n)))
    return table


def content(batch: Batch, tags: TagTable) -> list[tuple[object, ...]]:
    """Return every row as what a reader may rely on, in canonical order."""
    rows = take(batch, canonical_order(batch, tags.rank)) if len(batch) else batch
    picoseconds = [
        np.zeros(len(rows), np.uint16) if column is None else column for column in (rows.source_ps, rows.server_ps)
    ]
    return [
        (
            tags.identities[int(rows.handle[i])], int(rows.source_ticks[i]), int(rows.server_ticks[i]),
            int(picoseconds[0][i]), int(picoseconds[1][i]), int(rows.status[i]), int(rows.kind[i]), int(rows.flags[i]),
            rows.value_bytes(i),
        )
        for i in range(len(rows))
    ]  # fmt: skip


def travel(batch: Batch, tags: TagTable) -> None:
    """Take rows through chunks and a segment; they come out as they went in."""
    before, of_content = content(batch, tags), digest(batch, tags.identities, tags.rank)
    cut = len(batch) // 3
    parts = [take(batch, np.arange(cut)), take(batch, np.arange(cut, len(batch)))]
    journaled = concat([chunk.decode(chunk.encode(part)) for part in parts if len(part)]) if len(batch) else batch
    file = segment.encode(journaled, tags, HEADER)
    rows, theirs = segment.decode(file)
    assert content(rows, theirs) == before
    assert digest(rows, theirs.identities, theirs.rank) == of_content


def test_what_a_server_sends_comes_out_of_parquet_byte_for_byte(tags: TagTable) -> None:
    seen: Counter[int] = Counter()
    for number in range(SEEDS):
        items = random_items(random.Random(number), Counter())
        batch = decode(read_publish(publish([data_change(items)])), handle_limit=LIMIT).batch
        assert len(batch) == len(items)
        travel(batch, tags)
        seen.update(batch.kind.tolist())
    assert len(seen) > 40, "every type, as scalar and as array"


def test_what_a_hostile_message_leaves_is_refused_whole_or_travels_as_well(tags: TagTable) -> None:
    refused = taken = 0
    for number in range(SEEDS):
        seed = random.Random(number)
        honest = publish([data_change(random_items(seed, Counter())[:120])])
        for _ in range(HOSTILE):
            body = bytearray(honest)
            for _ in range(seed.choice((1, 1, 2, 8))):
                at = seed.randrange(28, len(body))
                body[at] = seed.choice((0, 1, 0x7F, 0x80, 0xFF, seed.randrange(256)))
            if seed.random() < 0.2:
                del body[seed.randrange(28, len(body)) :]
            try:
                batch = decode(read_publish(bytes(body)), handle_limit=LIMIT).batch
            except Corrupt:
                refused += 1
                continue
            taken += 1
            travel(batch, tags)
    assert refused > 300 and taken > 300, (refused, taken)
