"""The answers to Read and HistoryRead: DataValues without handles, each in its place."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from gateway.decode import read_history, read_values
from mirror.batch import Batch
from mirror.errors import Corrupt
from tests.gateway.publish_bytes import HEAP_BODIES, SCALARS, T0, double, header, item, string


def data_values(items: list[bytes]) -> bytes:
    """Return an array of DataValues: items without their handles."""
    return struct.pack("<i", len(items)) + b"".join(i[4:] for i in items)


def read_response(items: list[bytes]) -> bytes:
    return header(634) + data_values(items) + struct.pack("<i", -1)


def history_response(*pages: tuple[int, bytes, list[bytes] | None]) -> bytes:
    parts = [header(667), struct.pack("<i", len(pages))]
    for status, continuation, items in pages:
        parts.append(struct.pack("<Ii", status, len(continuation) or -1) + continuation)
        if items is None:
            parts.append(b"\x00\x00\x00")
        else:
            body = data_values(items)
            parts.append(struct.pack("<BBHBi", 1, 0, 658, 1, len(body)) + body)
    return b"".join(parts) + struct.pack("<i", -1)


def everything() -> list[bytes]:
    """Return items of every shape, in runs and alternating."""
    items = [item(0, double(h), source=T0 + h) for h in range(40)]
    items += [item(0, bytes((kind,)) + body, server_ps=3) for kind, body in HEAP_BODIES.values()]
    items += [item(0, bytes((kind,)) + body, status=1, source_ps=4) for kind, body, _ in SCALARS.values()]
    items += [item(0, None), item(0, b"\x00"), item(0, None, source=None, server=None), item(0, string("end"))]
    random.Random(3).shuffle(items)
    return items + [item(0, None, source=None, server=None)] * 30


def same(batch: Batch, items: list[bytes]) -> None:
    """Check each row against the item read alone."""
    assert len(batch) == len(items)
    for row, one in enumerate(items):
        alone = read_values(read_response([one]), 1)
        assert alone.value_bytes(0) == batch.value_bytes(row)
        for name in ("handle", "source_ticks", "server_ticks", "source_ps", "server_ps", "status", "flags", "kind"):
            assert getattr(alone, name)[0] == getattr(batch, name)[row], (row, name)


def test_values_read_come_in_the_order_of_the_request() -> None:
    items = everything()
    same(read_values(read_response(items), len(items)), items)


@pytest.mark.parametrize("n", [1, 2, 23, 24, 25, 64, 65, 300])
def test_read_of_one_shape_is_read_whatever_its_length(n: int) -> None:
    batch = read_values(read_response([item(9, double(h), server=T0 + h) for h in range(n)]), n)
    assert batch.bits.view(np.float64).tolist() == list(range(n))
    assert batch.server_ticks.tolist() == [T0 + h for h in range(n)]
    assert not batch.handle.any()


def test_answer_with_another_number_of_values_than_asked_for_is_corrupt() -> None:
    for count in (1, 3):
        with pytest.raises(Corrupt):
            read_values(read_response([item(0, double(1))] * 2), count)


def test_history_of_several_nodes_keeps_pages_apart() -> None:
    items = everything()
    body = history_response((0, b"go on", items), (0x803A0000, b"", None), (0, b"", items[:7]), (0, b"", []))
    first, second, third, fourth = read_history(body, 4, 1000)
    assert (first.status, first.continuation) == (0, b"go on")
    same(first.batch, items)
    assert (second.status, second.continuation, len(second.batch)) == (0x803A0000, b"", 0)
    same(third.batch, items[:7])
    assert len(fourth.batch) == 0


def test_page_that_ends_without_anything_after_it_is_not_read_past() -> None:
    shortest = [item(0, None, source=None, server=None)]
    for n in (1, 2, 24, 100):
        (result,) = read_history(history_response((0, b"", shortest * n)), 1, 100)
        assert len(result.batch) == n


def test_more_history_than_asked_for_is_corrupt() -> None:
    body = history_response((0, b"", [item(0, double(1))] * 11))
    assert len(read_history(body, 1, 11)[0].batch) == 11
    with pytest.raises(Corrupt):
        read_history(body, 1, 10)
    with pytest.raises(Corrupt):
        read_history(body, 2, 11)


def test_bad_service_result_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        read_values(header(634, result=0x80010000) + struct.pack("<ii", 0, -1), 0)
    with pytest.raises(Corrupt):
        read_history(header(667, result=0x80010000) + struct.pack("<ii", 0, -1), 0, 1)


def test_truncated_and_mutated_answers_are_corrupt_or_read_and_nothing_else() -> None:
    items = everything()
    seed = random.Random(6)
    bodies = [read_response(items), history_response((0, b"x", items), (0, b"", items[:3]))]
    for body in bodies:
        for size in range(0, len(body) - 4, 3):
            with pytest.raises(Corrupt):
                read_values(body[:size], len(items)) if body is bodies[0] else read_history(body[:size], 2, 1000)
    for _ in range(1500):
        body = bytearray(seed.choice(bodies))
        for _ in range(seed.choice((1, 3))):
            body[seed.randrange(28, len(body))] = seed.choice((0, 0x7F, 0x80, 0xFF, seed.randrange(256)))
        try:
            if body[2:4] == b"\x7a\x02":
                read_values(bytes(body), len(items))
            else:
                read_history(bytes(body), 2, 1000)
        except Corrupt:
            continue
