"""The last row of each tag, and never more rows than a bound."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.coalesce import HEAP_BYTES_FREE, ROWS_FREE, Latest, bad_rows, last_rows
from mirror.batch import Batch, Heap, Kind


def numbers(handles: list[int], values: list[int]) -> Batch:
    batch = Batch.zeros(len(handles))
    batch.handle[:], batch.bits[:], batch.kind[:] = handles, values, Kind.UINT64
    return batch


def texts(handles: list[int], values: list[bytes]) -> Batch:
    batch = numbers(handles, list(range(len(handles))))
    batch.kind[:] = Kind.STRING
    return replace(batch, heap=Heap.of([len(v).to_bytes(4, "little") + v for v in values]))


batches = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=8), max_size=8)


@given(batches)
def test_the_last_row_of_each_tag_is_kept(parts: list[list[tuple[int, int]]]) -> None:
    latest = Latest()
    want: dict[int, int] = {}
    for part in parts:
        latest.add(numbers([h for h, _ in part], [v for _, v in part]))
        want |= dict(part)
    kept = latest.pop()
    assert dict(zip(kept.handle.tolist(), kept.bits.tolist(), strict=True)) == want
    assert len(kept) == len(want)
    assert len(latest.pop()) == 0


@given(st.lists(st.sampled_from([0, 1, 2**31, 2**32 - 1]), max_size=12))
def test_far_handles_need_no_large_table(handles: list[int]) -> None:
    found = last_rows(np.array(handles, np.uint32)).tolist()
    assert found == sorted({h: i for i, h in enumerate(handles)}.values())


def test_an_older_batch_put_before_does_not_win() -> None:
    latest = Latest()
    latest.add(numbers([1], [20]))
    latest.add_before(numbers([1, 2], [10, 11]))
    kept = latest.pop()
    assert dict(zip(kept.handle.tolist(), kept.bits.tolist(), strict=True)) == {1: 20, 2: 11}


def test_rows_stay_bounded_while_nobody_asks() -> None:
    latest = Latest()
    for i in range(200):
        latest.add(numbers(list(range(1000)), [i] * 1000))
        assert len(latest) <= ROWS_FREE + 2 * 1000
    assert set(latest.pop().bits.tolist()) == {199}


def test_heap_bytes_stay_bounded_while_nobody_asks() -> None:
    latest = Latest()
    for i in range(100):
        latest.add(texts([1, 2], [bytes([i]) * 500_000] * 2))
        held = sum(len(p.heap.data) for p in latest._parts)
        assert held <= HEAP_BYTES_FREE + 2 * 2 * 500_004
    kept = latest.pop()
    assert kept.value_bytes(0)[4:] == bytes([99]) * 500_000


def test_last_rows_of_nothing_is_nothing() -> None:
    assert len(last_rows(np.zeros(0, np.uint32))) == 0


def test_a_tag_whose_source_is_gone_has_a_code_and_no_value() -> None:
    batch = bad_rows(np.array([4, 7], np.uint32), 0x80310000, 123)
    assert batch.handle.tolist() == [4, 7]
    assert batch.status.tolist() == [0x80310000] * 2
    assert batch.server_ticks.tolist() == [123] * 2
