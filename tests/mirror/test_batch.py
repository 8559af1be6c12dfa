"""Batches: what is laid end to end, taken apart or ordered holds the same rows, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from mirror.batch import (
    AHEAD,
    ARRAY,
    CONTENT_FLAGS,
    DIMENSIONS,
    FIXED_WIDTH,
    IN_HEAP,
    NO_HEAP,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
    canonical_order,
    concat,
    digest,
    equal,
    ordered_digest,
    subtract,
    take,
)
from tests.mirror.batches import (
    DAY,
    DOUBLES,
    FLOATS,
    INT64_MAX,
    INT64_MIN,
    NOW_TICKS,
    batches,
    from_rows,
    table,
)

COLUMNS = ("handle", "source_ticks", "server_ticks", "source_ps", "server_ps", "status", "flags", "kind")
TABLE = table()


def listed(batch: Batch) -> list[tuple[Any, ...]]:
    """Rows as plain tuples, values as bytes on the wire."""
    values = [batch.value_bytes(row) for row in range(len(batch))]
    return list(zip(*(getattr(batch, c).tolist() for c in COLUMNS), values, strict=True))


def permuted(data: st.DataObject, batch: Batch) -> Batch:
    return take(batch, np.array(data.draw(st.permutations(range(len(batch)))), np.int64))


@given(st.lists(batches(max_size=8), max_size=4))
def test_concat_keeps_all_rows_in_order(parts: list[Batch]) -> None:
    assert listed(concat(parts)) == list(itertools.chain.from_iterable(map(listed, parts)))


@given(batches(), st.data())
def test_take_gives_the_rows_asked_for_with_a_heap_of_their_own(batch: Batch, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=12)) if len(batch) else []
    taken, rows = take(batch, np.array(index, np.int64)), listed(batch)
    assert listed(taken) == [rows[i] for i in index]
    assert len(taken.heap) == IN_HEAP[taken.kind].sum()


@given(batches(), st.data())
def test_take_by_mask_is_take_by_index(batch: Batch, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch))), np.bool_)
    assert equal(take(batch, mask), take(batch, np.flatnonzero(mask)))


@given(batches(max_size=10), batches(max_size=10))
def test_equal_says_what_the_rows_say(a: Batch, b: Batch) -> None:
    assert equal(a, b) == (listed(a) == listed(b))
    assert equal(a, take(concat([b, a]), np.arange(len(b), len(b) + len(a))))


@pytest.mark.parametrize("column", [*COLUMNS, "bits"])
def test_equal_sees_a_change_in_any_column(column: str) -> None:
    def batch() -> Batch:
        return from_rows([(1, 2, 3, 4, 5, 6, 0, int(Kind.INT32), 8), (1, 2, 3, 4, 5, 6, 0, int(Kind.INT32), 8)])

    other = batch()
    getattr(other, column)[1] ^= 1
    assert equal(batch(), batch()) and not equal(batch(), other)


def test_equal_tells_neighbours_in_the_heap_apart() -> None:
    def texts(*entries: bytes) -> Batch:
        return from_rows([(0, 0, 0, 0, 0, 0, 0, int(Kind.STRING), e) for e in entries])

    assert not equal(texts(b"ab", b"c"), texts(b"a", b"bc")) and not equal(texts(b"a"), texts(b"b"))


def plain_key(batch: Batch, row: int) -> tuple[Any, ...]:
    """The canonical key of one row, as the documentation says it."""
    kind, flags = int(batch.kind[row]), int(batch.flags[row])
    value: Any = batch.value_bytes(row) if IN_HEAP[kind] else int(batch.bits[row])
    return (
        TABLE.identities[batch.handle[row]], int(batch.source_ticks[row]), int(batch.source_ps[row]),
        int(batch.status[row]), kind, value, flags & CONTENT_FLAGS, int(batch.server_ticks[row]),
        int(batch.server_ps[row]), flags & AHEAD,
    )  # fmt: skip


@given(batches(max_size=30, handles=3))
def test_canonical_order_sorts_by_the_documented_key(batch: Batch) -> None:
    order = canonical_order(batch, TABLE.rank).tolist()
    assert sorted(order) == list(range(len(batch)))
    keys = [plain_key(batch, row) for row in order]
    assert keys == sorted(keys)


@given(batches(max_size=12, handles=2), st.data())
def test_canonical_order_of_any_arrival_is_the_same_batch(batch: Batch, data: st.DataObject) -> None:
    doubled = concat([batch, batch])
    shuffled = permuted(data, doubled)
    ordered = [take(b, canonical_order(b, TABLE.rank)) for b in (doubled, shuffled)]
    assert equal(*ordered)


def test_rows_that_differ_in_one_key_only_are_ordered_by_it() -> None:
    base = (0, 9, 9, 9, 9, 9, 0, int(Kind.UINT32), 9)
    rows = [(*base[:i], base[i] + 1, *base[i + 1 :]) for i in (0, 1, 2, 3, 4, 5, 8)]
    rows.append((*base[:6], AHEAD, *base[7:]))
    heap = [(0, 9, 9, 9, 9, 9, 0, int(Kind.STRING), text) for text in (b"b", b"a", b"ab", b"a")]
    batch = from_rows([base, *rows, *heap])
    for trial in range(20):
        shuffled = take(batch, np.random.default_rng(trial).permutation(len(batch)))
        order = canonical_order(shuffled, TABLE.rank)
        keys = [plain_key(shuffled, row) for row in order.tolist()]
        assert keys == sorted(keys)


@given(batches(max_size=16, handles=3), st.data())
def test_the_digest_knows_content_not_order_handles_or_ahead(batch: Batch, data: st.DataObject) -> None:
    shuffled = permuted(data, batch)
    shuffled.flags[:] ^= AHEAD
    # The same tags under other handles: the table in reverse.
    other = type(TABLE)(reversed(TABLE.tags))
    shuffled.handle[:] = [len(TABLE) - 1 - h for h in shuffled.handle.tolist()]
    assert digest(batch, TABLE.identities, TABLE.rank) == digest(shuffled, other.identities, other.rank)


@given(batches(min_size=1, max_size=8), st.data())
def test_the_digest_sees_every_change_of_content(batch: Batch, data: st.DataObject) -> None:
    before = digest(batch, TABLE.identities, TABLE.rank)
    altered = take(batch, np.arange(len(batch)))
    row = data.draw(st.integers(0, len(batch) - 1))
    column = data.draw(st.sampled_from(("source_ticks", "server_ticks", "source_ps", "server_ps", "status")))
    getattr(altered, column)[row] ^= 1
    assert digest(altered, TABLE.identities, TABLE.rank) != before
    fewer = np.delete(np.arange(len(batch)), row)
    assert digest(take(batch, fewer), TABLE.identities, TABLE.rank) != before


def test_the_digest_is_the_hash_that_its_documentation_describes() -> None:
    text = b"\2\0\0\0hi"
    batch = from_rows([(4, 5, 6, 7, 8, 9, AHEAD, int(Kind.BYTE), 3), (2, 1, 6, 7, 8, 9, 0, int(Kind.STRING), text)])
    identities = ["", "", "b", "", "a"]
    parts = [
        (1, 8, 1, 8), b"ab", (0, 4, 1, 4), (5, 8, 1, 8), (6, 8, 6, 8), (7, 2, 7, 2), (8, 2, 8, 2), (9, 4, 9, 4),
        b"\0\0", bytes([Kind.BYTE, Kind.STRING]), (3, 8), (len(text), 8), text,
    ]  # fmt: skip
    sha = hashlib.sha256(b"edgemirror batch 1")
    for part in parts:
        pairs = zip(part[::2], part[1::2], strict=True) if isinstance(part, tuple) else ()
        data = part if isinstance(part, bytes) else b"".join(v.to_bytes(width, "little") for v, width in pairs)
        sha.update(len(data).to_bytes(8, "little") + data)
    assert digest(batch, identities, np.array([0, 1, 4, 2, 3], np.uint32)) == sha.digest()
    assert ordered_digest(batch, identities) == sha.digest()


def test_tags_whose_names_join_to_the_same_text_have_different_digests() -> None:
    batch = from_rows([(0, 1, 1, 0, 0, 0, 0, 0, 0), (1, 1, 1, 0, 0, 0, 0, 0, 0)])
    assert ordered_digest(batch, ["a\0b", "c"]) != ordered_digest(batch, ["a", "b\0c"])


def test_an_empty_batch_has_a_digest_and_an_order() -> None:
    empty = Batch.zeros(0)
    assert len(digest(empty, [], np.zeros(0, np.uint32))) == 32
    assert len(canonical_order(empty, np.zeros(0, np.uint32))) == 0
    assert equal(concat([]), empty) and equal(take(empty, np.zeros(0, np.int64)), empty)


@given(st.lists(st.binary(max_size=9)), st.data())
def test_a_heap_gives_back_what_it_was_made_of(entries: list[bytes], data: st.DataObject) -> None:
    heap = Heap.of(entries)
    assert [heap[i] for i in range(len(heap))] == entries
    index = data.draw(st.lists(st.integers(0, len(entries) - 1))) if entries else []
    taken = heap.take(np.array(index, np.int64))
    assert [taken[i] for i in range(len(taken))] == [entries[i] for i in index]


def test_a_heap_of_long_entries_is_taken_apart_like_one_of_short_ones() -> None:
    entries = [bytes([i]) * (100 + i) for i in range(5)]
    taken = Heap.of(entries).take(np.array([4, 0, 0, 2]))
    assert [taken[i] for i in range(4)] == [entries[i] for i in (4, 0, 0, 2)] and taken.ends[-1] == len(taken.data)
    assert len(NO_HEAP) == 0 and NO_HEAP.data == b""


def test_a_fixed_value_takes_its_width_on_the_wire_and_arrays_lie_in_the_heap() -> None:
    batch = from_rows([(0, 0, 0, 0, 0, 0, 0, int(Kind.INT16), 2**64 - 2), (0, 0, 0, 0, 0, 0, 0, int(Kind.NULL), 0)])
    assert batch.value_bytes(0) == b"\xfe\xff" and batch.value_bytes(1) == b""
    for kind in range(1, 26):
        assert IN_HEAP[kind] == (FIXED_WIDTH[kind] == 0)
        assert IN_HEAP[kind | ARRAY] and IN_HEAP[kind | ARRAY | DIMENSIONS]
    assert not IN_HEAP[Kind.NULL]


def hard_cases(batch: Batch) -> set[object]:
    """Name the cases that a batch holds and that somebody once got wrong."""
    found: set[object] = set()
    for *times, source_ps, server_ps, status, flags, kind, value in listed(batch):
        found |= {kind & 0x3F, ("shape", kind & 0xC0), ("flags", flags)}
        found |= {("status bit", bit) for bit in range(32) if status >> bit & 1}
        found |= {("ps", source_ps > 0, server_ps > 0), *(("time", t) for t in times[1:])}
        if not kind & (ARRAY | DIMENSIONS):
            found.add((kind, value))
    return found


def test_the_strategies_reach_the_hard_cases() -> None:
    found: set[object] = set()

    @settings(max_examples=400, database=None, phases=[Phase.generate])
    @seed(1)
    @given(batches())
    def collect(batch: Batch) -> None:
        found.update(hard_cases(batch))
        steps = np.diff(batch.source_ticks[batch.flags & SOURCE_NULL == 0].astype(np.float64))
        found.add(("backwards", bool((steps < 0).any())))

    collect()
    wanted: set[object] = {*range(26), *(("shape", shape) for shape in (0, ARRAY, ARRAY | DIMENSIONS))}
    wanted |= {("flags", f) for f in (0, 1, 2, 3, 4, AHEAD, AHEAD | 3)} | {("ps", True, True), ("backwards", True)}
    wanted |= {("status bit", bit) for bit in range(32)}
    wanted |= {("time", t) for t in (INT64_MIN, INT64_MAX, 0, NOW_TICKS + 3650 * DAY, NOW_TICKS - DAY)}
    wanted |= {(Kind.STRING, b"\xff" * 4), (Kind.STRING, b"\0" * 4), (Kind.UINT64, b"\xff" * 8)}
    wanted |= {(Kind.DATETIME, (2**63).to_bytes(8, "little")), (Kind.DATETIME, (2**63 - 1).to_bytes(8, "little"))}
    wanted |= {(Kind.FLOAT, bits.to_bytes(4, "little")) for bits in FLOATS}
    wanted |= {(Kind.DOUBLE, bits.to_bytes(8, "little")) for bits in DOUBLES}
    assert wanted <= found, wanted - found


@given(batches(max_size=12, handles=2), batches(max_size=12, handles=2))
def test_what_the_other_batch_holds_is_left_out_whatever_its_server_times(batch: Batch, other: Batch) -> None:
    both = concat([batch, other])
    some = np.arange(len(batch) // 2, len(both))
    other = dataclasses.replace(take(both, some), server_ticks=some)

    def samples(rows: Batch) -> list[tuple[object, ...]]:
        null = rows.flags & SOURCE_NULL
        columns = (rows.handle, rows.source_ticks, rows.source_ps, rows.status, rows.kind, null)
        return [(*row, rows.value_bytes(i)) for i, row in enumerate(zip(*(c.tolist() for c in columns), strict=True))]

    known = set(samples(other))
    keep = np.array([sample not in known for sample in samples(batch)], np.bool_)
    assert equal(subtract(batch, other), take(batch, keep))


def test_a_long_history_is_compared_in_columns() -> None:
    batch = Batch.zeros(100_000)
    batch.source_ticks[:] = NOW_TICKS + np.arange(len(batch))
    batch.bits[:] = np.arange(len(batch)) << 40
    half = take(batch, np.arange(len(batch) // 2))
    tracemalloc.start()
    assert len(subtract(batch, half)) == len(batch) // 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 180 * len(batch), f"{peak / len(batch):.0f} bytes a row"
