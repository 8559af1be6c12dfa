"""The read-audit: what differs is suspected, what is merely late or newer is not, and every tag has its turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import READ_MAX, Rotation, suspects, unmoved
from mirror.batch import SERVER_NULL, SOURCE_NULL, Batch, Heap, Kind, concat, take
from mirror.state import State
from tests.mirror.batches import batches

T = 134_000_000_000_000_000
BAD_NODE_ID_UNKNOWN, BAD_NOT_READABLE, BAD_NO_COMMUNICATION = 0x80340000, 0x803A0000, 0x80310000


def rows(values: list[float], at: int = T, *, first: int = 0, status: int = 0) -> Batch:
    """Return one Double for each handle from `first` on."""
    batch = Batch.zeros(len(values))
    batch.handle[:] = np.arange(first, first + len(values))
    batch.kind[:] = Kind.DOUBLE
    batch.bits[:] = np.array(values, np.float64).view(np.uint64)
    batch.source_ticks[:] = batch.server_ticks[:] = at
    batch.status[:] = status
    return batch


def text(value: str, at: int = T) -> Batch:
    body = len(value).to_bytes(4, "little") + value.encode()
    batch = rows([0.0], at)
    batch.kind[:], batch.bits[:] = Kind.STRING, 0
    return Batch(**{n: getattr(batch, n) for n in Batch.__slots__} | {"heap": Heap.of([body])})


def state_of(*parts: Batch) -> State:
    state = State()
    for part in parts:
        state.apply(part)
    return state


def test_what_the_device_holds_and_the_state_too_is_no_suspect_whatever_the_stamps() -> None:
    state = state_of(rows([1.0, 2.0, 3.0]))
    assert suspects(rows([1.0, 2.0, 3.0]), state).tolist() == []
    assert suspects(rows([1.0, 2.0, 3.0], T + 99), state).tolist() == [], "a server that stamps when it is read"


def test_another_value_or_status_that_is_not_older_is_suspect() -> None:
    state = state_of(rows([1.0, 2.0, 3.0]))
    assert suspects(rows([1.0, 9.0, 3.0], T + 1), state).tolist() == [1]
    assert suspects(rows([1.0, 9.0, 3.0], T), state).tolist() == [1], "the same stamp and another value"
    assert suspects(rows([1.0, 2.0, 3.0], T + 1, status=BAD_NO_COMMUNICATION), state).tolist() == [0, 1, 2]
    assert suspects(rows([-0.0], T + 1), state_of(rows([0.0]))).tolist() == [0], "bit for bit"


def test_what_was_read_before_a_newer_value_came_is_no_suspect() -> None:
    assert suspects(rows([1.0], T), state_of(rows([2.0], T + 1))).tolist() == []


def test_without_source_times_the_servers_time_decides_and_without_any_nothing_is_older() -> None:
    held, read = rows([2.0], T + 5), rows([1.0], T)
    held.flags[:] = read.flags[:] = SOURCE_NULL
    held.source_ticks[:] = read.source_ticks[:] = 0
    assert suspects(read, state_of(held)).tolist() == []
    read.flags[:] = SOURCE_NULL | SERVER_NULL
    read.server_ticks[:] = 0
    assert suspects(read, state_of(held)).tolist() == [0]


def test_a_tag_without_a_value_is_suspect() -> None:
    assert suspects(rows([1.0, 2.0]), state_of(rows([1.0]))).tolist() == [1]
    assert suspects(rows([1.0]), State()).tolist() == [0]


def test_a_tag_that_cannot_be_read_is_no_suspect_and_one_that_is_gone_is() -> None:
    state = state_of(rows([1.0]))
    assert suspects(rows([0.0], T + 1, status=BAD_NOT_READABLE), state).tolist() == []
    assert suspects(rows([0.0], T + 1, status=BAD_NODE_ID_UNKNOWN), state).tolist() == [0]


def test_a_bad_row_needs_no_value_to_agree() -> None:
    state = state_of(rows([7.0], status=BAD_NO_COMMUNICATION))
    assert suspects(rows([0.0], T + 1, status=BAD_NO_COMMUNICATION), state).tolist() == []


def test_overflow_and_limit_bits_say_nothing_about_the_value() -> None:
    assert suspects(rows([1.0], T + 1), state_of(rows([1.0], status=0x0480))).tolist() == []


def test_another_type_is_suspect_and_texts_are_compared() -> None:
    assert suspects(text("a", T + 1), state_of(rows([0.0]))).tolist() == [0]
    assert suspects(text("a", T + 1), state_of(text("a"))).tolist() == []
    assert suspects(text("b", T + 1), state_of(text("a"))).tolist() == [0]


def test_a_state_that_has_moved_since_is_told() -> None:
    state = state_of(rows([1.0, 2.0]), text("a"))
    before = state.batch(np.array([0, 1], np.uint32))
    assert unmoved(before, state).tolist() == [0, 1]
    state.apply(rows([5.0], T + 1, first=1))
    assert unmoved(before, state).tolist() == [0]
    state.apply(text("b", T + 1))
    assert unmoved(before, state).tolist() == []


@given(batches(30, handles=8))
def test_always_nothing_is_suspect_where_the_state_itself_is_read(batch: Batch) -> None:
    state = state_of(batch)
    read = state.batch(state.handles)
    assert suspects(read, state).tolist() == []
    assert len(unmoved(read, state)) == len(read)


@given(st.integers(1, 5000), st.floats(10, 3600), st.floats(0, 1e6))
def test_always_every_tag_is_read_once_in_a_period_that_is_long_enough(n: int, period_s: float, now: float) -> None:
    rotation = Rotation(range(n), period_s, now)
    seen: list[int] = []
    while not rotation.turns:
        now = rotation.wake_at
        part = rotation.take(now)
        assert 0 < len(part) <= READ_MAX
        seen += part
    assert seen == list(range(n))
    assert now <= rotation.now + max(period_s, rotation.every_s) * 1.01 + n // READ_MAX + 1


def test_the_rotation_waits_for_its_time_and_makes_up_for_nothing() -> None:
    rotation = Rotation(range(10_000), 600.0, 0.0)
    assert (rotation.share, rotation.every_s) == (17, pytest.approx(1.02))
    assert list(rotation.take(0.5)) == []
    assert list(rotation.take(1.1)) == list(range(17))
    assert list(rotation.take(1.2)) == []
    assert list(rotation.take(500.0)) == list(range(17, 34)), "after a long pause one Read, not five hundred"
    assert list(rotation.take(500.1)) == []


def test_no_tags_are_never_read() -> None:
    assert list(Rotation([], 600.0, 0.0).take(1e9)) == []


def test_take_and_concat_keep_what_is_compared() -> None:
    both = concat([rows([1.0]), text("a")])
    assert suspects(take(both, np.array([1])), state_of(text("a"))).tolist() == []
