"""State is the fold of all samples: checked against a fold of one row at a time that knows nothing of numpy."""

from __future__ import annotations

import math
import sqlite3
import struct
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mirror.batch import (
    AHEAD,
    CONTENT_FLAGS,
    IN_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
    concat,
    equal,
    take,
)
from mirror.state import State
from mirror.variant import encode
from tests.bench.mix import mix
from tests.mirror.batches import NOW_TICKS, batches, from_rows

Key = tuple[Any, ...]


def key(batch: Batch, row: int) -> Key:
    """What orders two rows of one tag, spelled out: time first, then the canonical order."""
    flags, kind = int(batch.flags[row]), int(batch.kind[row])
    source, server = int(batch.source_ticks[row]), int(batch.server_ticks[row])
    value: Any = batch.value_bytes(row) if IN_HEAP[kind] else int(batch.bits[row])
    return (
        server if flags & SOURCE_NULL else source, source, int(batch.source_ps[row]), int(batch.status[row]), kind,
        value, flags & CONTENT_FLAGS, server, int(batch.server_ps[row]),
    )  # fmt: skip


def loose(batch: Batch, row: int) -> bool:
    return bool(batch.flags[row] & AHEAD) or int(batch.flags[row]) & 3 == SOURCE_NULL | SERVER_NULL


def fold(batch: Batch, current: dict[int, int]) -> dict[int, int]:
    """Return the row that is current for each handle, taking rows one at a time."""
    for row in range(len(batch)):
        handle = int(batch.handle[row])
        old = current.get(handle)
        if old is None or loose(batch, old) or loose(batch, row) or key(batch, row) > key(batch, old):
            current[handle] = row
    return current


def snapshot(state: State) -> Batch:
    return state.batch(state.handles)


@given(st.lists(batches(max_size=12, handles=4), max_size=4))
def test_state_is_the_fold_of_its_rows_one_at_a_time(parts: list[Batch]) -> None:
    state, everything, done = State(), concat(parts), 0
    current: dict[int, int] = {}  # rows of `everything` by handle
    for part in parts:
        changed, before, done = state.apply(part).tolist(), current, done + len(part)
        current = fold(take(everything, np.arange(done)), {})
        assert len(changed) == len(set(changed))
        assert {h for h in current if current[h] != before.get(h)} <= set(changed)
    expected = take(everything, np.array([current[h] for h in sorted(current)], np.int64))
    assert equal(snapshot(state), expected)


@given(batches(max_size=30, handles=3, ahead=False, null_both=False), st.data())
def test_state_does_not_depend_on_the_order_of_arrival(batch: Batch, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    cut = data.draw(st.integers(0, len(batch)))
    one, two = State(), State()
    one.apply(batch)
    for part in (order[:cut], order[cut:]):
        two.apply(take(batch, np.array(part, np.int64)))
    assert equal(snapshot(one), snapshot(two))


@given(batches(max_size=20, handles=3, ahead=False, null_both=False))
def test_rows_that_are_known_already_change_nothing(batch: Batch) -> None:
    state = State()
    changed = state.apply(batch)
    assert set(changed.tolist()) == set(batch.handle.tolist())
    assert len(state.apply(batch)) == 0


@given(batches(max_size=20, handles=4), batches(max_size=20, handles=4))
def test_only_handles_whose_row_is_another_one_are_reported(first: Batch, second: Batch) -> None:
    state = State()
    state.apply(first)
    before = {h: state.batch(np.array([h], np.uint32)) for h in range(4)}
    changed = set(state.apply(second).tolist())
    for h in set(range(4)) - changed:
        assert equal(before[h], state.batch(np.array([h], np.uint32)))


@given(batches(max_size=20))
def test_a_state_rebuilt_from_its_own_batch_is_the_same(batch: Batch) -> None:
    one, two = State(), State()
    one.apply(batch)
    two.apply(snapshot(one))
    assert equal(snapshot(one), snapshot(two)) and one.heap == two.heap


def row(handle: int, ticks: int, value: int, flags: int = 0) -> tuple[Any, ...]:
    return (handle, ticks, 0 if flags & SERVER_NULL else ticks, 0, 0, 0, flags, int(Kind.INT32), value)


def test_a_clock_that_jumped_ahead_does_not_freeze_its_tag() -> None:
    state = State()
    hour = 36_000_000_000
    for r in (row(0, NOW_TICKS, 1), row(0, NOW_TICKS + hour, 2, AHEAD), row(0, NOW_TICKS + 1, 3)):
        state.apply(from_rows([r]))
    assert state.row(0) == (0, NOW_TICKS + 1, NOW_TICKS + 1, 0, Kind.INT32, 3)
    state.apply(from_rows([row(0, NOW_TICKS, 4)]))
    assert state.row(0) == (0, NOW_TICKS + 1, NOW_TICKS + 1, 0, Kind.INT32, 3)


def test_rows_without_any_time_count_in_the_order_of_arrival() -> None:
    state = State()
    null = SOURCE_NULL | SERVER_NULL
    state.apply(from_rows([row(1, 0, 5, null), row(1, 0, 3, null), row(1, 0, 4, null)]))
    assert state.row(1) == (1, None, None, 0, Kind.INT32, 4)


def test_a_row_that_only_the_server_stamped_is_ordered_by_that_time() -> None:
    state = State()
    server_only = (0, 0, NOW_TICKS + 5, 0, 0, 0, SOURCE_NULL, int(Kind.INT32), 7)
    assert state.apply(from_rows([row(0, NOW_TICKS, 1)])).tolist() == [0]
    assert state.apply(from_rows([server_only])).tolist() == [0]
    assert state.apply(from_rows([row(0, NOW_TICKS + 4, 1)])).tolist() == []
    assert state.row(0) == (0, None, NOW_TICKS + 5, 0, Kind.INT32, 7)


def test_a_permutation_of_handles_reaches_the_right_slots() -> None:
    n = 1000
    batch = Batch.zeros(n)
    batch.handle[[0, -1]] = [0, 999]
    batch.handle[1:-1] = np.random.default_rng(5).permutation(np.arange(1, 999))
    batch.kind[:] = Kind.UINT32
    batch.bits[:] = batch.handle
    state = State()
    assert state.apply(batch).tolist() == batch.handle.tolist()
    assert state.bits[:n].tolist() == list(range(n))


def test_a_tag_may_change_between_scalar_and_heap_values() -> None:
    state = State()
    text = int(Kind.STRING)
    for ticks, kind, value in ((1, text, encode(text, "a")), (2, 6, 5), (3, text, encode(text, "b"))):
        state.apply(from_rows([(0, ticks, ticks, 0, 0, 0, 0, kind, value)]))
    assert state.row(0) == (0, 3, 3, 0, text, "b")
    state.apply(from_rows([row(0, 4, 6)]))
    assert state.heap == {} and state.row(0) == (0, 4, 4, 0, Kind.INT32, 6)


def test_two_texts_of_the_same_moment_end_as_the_same_one_in_either_order() -> None:
    text = int(Kind.STRING)
    parts = [from_rows([(0, 1, 1, 0, 0, 0, 0, text, encode(text, value))]) for value in ("a", "b")]
    for arrival in (parts, parts[::-1]):
        state = State()
        for part in arrival:
            state.apply(part)
        assert state.row(0) == (0, 1, 1, 0, text, "b")


def test_the_slot_of_a_heap_value_holds_no_index() -> None:
    text = int(Kind.STRING)
    state = State()
    state.apply(from_rows([(h, 1, 1, 0, 0, 0, 0, text, encode(text, "a")) for h in range(3)]))
    assert state.bits[:3].tolist() == [0, 0, 0] and sorted(state.heap) == [0, 1, 2]


def test_values_are_typed_as_sql_binds_them() -> None:
    text, raw = int(Kind.STRING), struct.pack("<i", 2) + b"\xff\xfe"
    values: list[tuple[int, Any, Any]] = [
        (Kind.BOOLEAN, 1, 1), (Kind.SBYTE, 2**64 - 3, -3), (Kind.UINT64, 2**63 - 1, 2**63 - 1),
        (Kind.UINT64, 2**63, "9223372036854775808"), (Kind.UINT64, 2**64 - 1, "18446744073709551615"),
        (Kind.FLOAT, 0x3FC00000, 1.5),
        (Kind.DOUBLE, 0xC000000000000000, -2.0), (Kind.DATETIME, NOW_TICKS, NOW_TICKS), (text, encode(text, "ü"), "ü"),
        (text, encode(text, ""), ""), (text, encode(text, None), None), (text, raw, raw), (Kind.NULL, 0, None),
        (Kind.STATUSCODE, 0x80000000, 0x80000000), (0x86, encode(0x86, [1]), encode(0x86, [1])),
    ]  # fmt: skip
    batch = from_rows([(h, h + 1, 0, 0, 0, 0, SERVER_NULL, int(k), v) for h, (k, v, _) in enumerate(values)])
    state = State()
    state.apply(batch)
    got = list(state.rows(state.handles))
    assert got == [(h, h + 1, None, 0, int(k), expected) for h, (k, _, expected) in enumerate(values)]
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE state(node, src, srv, status, kind, value)")
    db.executemany("INSERT INTO state VALUES(?, ?, ?, ?, ?, ?)", got)
    assert db.execute("SELECT value FROM state ORDER BY node").fetchall() == [(r[5],) for r in got]


def test_nan_stays_a_float_and_its_payload_stays_in_the_batch() -> None:
    state = State()
    state.apply(from_rows([(0, 1, 1, 0, 0, 0, 0, int(Kind.DOUBLE), 0x7FF0000000000001)]))
    found = state.row(0)
    assert found is not None and isinstance(found[5], float) and math.isnan(found[5])
    assert snapshot(state).bits.tolist() == [0x7FF0000000000001]


def test_handles_without_a_value_are_left_out_and_never_invented() -> None:
    state = State()
    state.apply(from_rows([(3, 5, 5, 0, 0, 0, NO_VALUE, 0, 0)]))
    asked = np.array([9_999_999, 3, 0], np.uint32)
    assert [r[0] for r in state.rows(asked)] == [3] and state.batch(asked).handle.tolist() == [3]
    assert state.row(0) is None and len(state) == 1 and state.handles.tolist() == [3]


def test_the_reference_mix_ends_with_its_last_interval_but_for_stale_stamps() -> None:
    parts = list(mix(1000, 5))
    state = State()
    for part in parts:
        state.apply(part)
    everything = concat(parts)
    current = fold(everything, {})
    assert equal(snapshot(state), take(everything, np.array([current[h] for h in sorted(current)])))


def test_a_record_that_is_not_a_value_becomes_no_tags_current_value() -> None:
    state = State()
    rows = Batch.zeros(3)
    rows.kind[:] = [Kind.INT32, Kind.RESERVED_EVENT, 63]
    rows.bits[0] = 7
    rows.source_ticks[:] = [NOW_TICKS, NOW_TICKS + 1, NOW_TICKS + 2]
    rows = replace(rows, heap=Heap.of([b"an event", b"another"]), bits=np.array([7, 0, 1], np.uint64))
    assert state.apply(rows).tolist() == [0]
    assert state.batch(state.handles).kind.tolist() == [Kind.INT32]
    assert state.apply(take(rows, np.array([1, 2]))).tolist() == []
