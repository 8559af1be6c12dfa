"""The decoder against hostile bytes."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from gateway.decode import Decoded, decode, read_publish, read_republish
from mirror.batch import IN_HEAP
from mirror.errors import Corrupt
from mirror.variant import readable
from tests.gateway.publish_bytes import (
    HEAP_BODIES,
    SCALARS,
    data_change,
    double,
    header,
    item,
    notification,
    publish,
    republish,
    string,
)

LIMIT = 1_000_000


def decoded(*items: bytes) -> Decoded:
    return decode(read_publish(publish([data_change(items)])), handle_limit=LIMIT)


@pytest.mark.parametrize("count", [2, 3, 100, 2**31 - 1])
def test_count_beyond_the_items_is_corrupt(count: int) -> None:
    with pytest.raises(Corrupt):
        decode(read_publish(publish([data_change([item(1, double(1))], count=count)])), handle_limit=9)


def test_count_below_the_items_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        decode(read_publish(publish([data_change([item(1, double(1))] * 3, count=2)])), handle_limit=9)


@pytest.mark.parametrize(
    ("kind", "length"),
    [(k, n) for k in (12, 15, 16, 0x8B, 0x81) for n in (-2, -(2**31), 2**31 - 1, 1000)]
    + [(k, n) for k in (0x8C, 0x96) for n in (2**31 - 1, 1000)],
)
def test_length_that_cannot_be_is_corrupt(kind: int, length: int) -> None:
    hostile = item(1, struct.pack("<Bi", kind, length))
    for items in ([hostile], [hostile, item(2, double(0))], [item(h, double(0)) for h in range(100)] + [hostile]):
        with pytest.raises(Corrupt):
            decoded(*items)


@pytest.mark.parametrize("kind", [0x20, 0x3F, 0x4B, 0x4C, 0xA0, 0xFF])
def test_encoding_byte_that_is_none_is_corrupt(kind: int) -> None:
    with pytest.raises(Corrupt):
        decoded(item(1, bytes((kind,)) + bytes(8)))


@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1, 10**6])
def test_notification_longer_than_its_message_is_corrupt(size: int) -> None:
    part = bytearray(data_change([item(1, double(1))]))
    part[5:9] = struct.pack("<i", size)
    with pytest.raises(Corrupt):
        read_publish(publish([bytes(part)]))


@pytest.mark.parametrize("n", [2, 2**31 - 1])
def test_number_of_notifications_beyond_the_message_is_corrupt(n: int) -> None:
    body = bytearray(republish([data_change([item(1, double(1))])]))
    at = len(header(835)) + 12
    body[at : at + 4] = struct.pack("<i", n)
    with pytest.raises(Corrupt):
        read_republish(bytes(body))


@pytest.mark.parametrize("n", [3, 2**31 - 1])
def test_number_of_available_sequence_numbers_beyond_the_message_is_corrupt(n: int) -> None:
    body = header(829) + struct.pack("<I", 7) + struct.pack("<i", n) + bytes(8)
    with pytest.raises(Corrupt):
        read_publish(body)


def everything() -> bytes:
    """Return a message with every shape in it."""
    items = [item(h, double(h)) for h in range(40)]
    items += [item(1, bytes((kind,)) + body) for kind, body in HEAP_BODIES.values()]
    items += [item(2, bytes((kind,)) + body, status=1) for kind, body, _ in SCALARS.values()]
    items += [item(3, None), item(4, b"\x00", source_ps=5, server_ps=6), item(5, None, source=None, server=None)]
    return publish([notification(820, bytes(5)), data_change(items), data_change(items[:30])], acks=[0, 1])


def test_every_truncation_is_corrupt_or_lacks_only_what_follows_the_samples() -> None:
    body = everything()
    whole = decode(read_publish(body), handle_limit=LIMIT).batch
    for size in range(len(body)):
        try:
            got = decode(read_publish(body[:size]), handle_limit=LIMIT).batch
        except Corrupt:
            continue
        assert size >= len(body) - 4  # only the null array of diagnostics at the end is never looked at
        assert (got.bits == whole.bits).all()


def test_mutated_messages_give_a_batch_or_corrupt_and_nothing_else() -> None:
    seed = random.Random(4)
    bodies = [everything(), publish([data_change([item(h, double(h)) for h in range(60)])])]
    outcomes = {"batch": 0, "corrupt": 0}
    for _ in range(6000):
        body = bytearray(seed.choice(bodies))
        for _ in range(seed.choice((1, 1, 2, 8))):
            at = seed.randrange(28, len(body))
            body[at] = seed.choice((0, 1, 0x7F, 0x80, 0xFF, seed.randrange(256)))
        try:
            got = decode(read_publish(bytes(body)), handle_limit=50).batch
        except Corrupt:
            outcomes["corrupt"] += 1
            continue
        outcomes["batch"] += 1
        assert (got.handle < 50).all()
        heap_rows = np.flatnonzero(IN_HEAP[got.kind])
        assert got.bits[heap_rows].tolist() == list(range(len(got.heap)))
        assert int(got.heap.ends[-1] if len(got.heap) else 0) == len(got.heap.data)
        for row in heap_rows.tolist()[:3]:
            readable(int(got.kind[row]), got.value_bytes(row))
    assert min(outcomes.values()) > 500, outcomes


def test_noise_after_an_honest_beginning_is_never_anything_but_corrupt_or_a_batch() -> None:
    noise = np.random.default_rng(8)
    for n in range(400):
        junk = noise.integers(0, 256, 3000, dtype=np.uint8).tobytes()
        part = data_change([item(1, double(1))] * (n % 40) + [junk], count=n % 40 + n % 7 * 80)
        try:
            decode(read_publish(publish([part])), handle_limit=LIMIT)
        except Corrupt:
            continue


@pytest.mark.parametrize("shape", ["five bytes", "strings", "arrays"])
def test_memory_is_bounded_by_a_small_multiple_of_the_message(shape: str) -> None:
    make = {
        "five bytes": lambda h: item(h, None, source=None, server=None),
        "strings": lambda h: item(h, string("s" * (h % 64)), source=None, server=None),
        "arrays": lambda h: item(h, struct.pack("<Bi", 0x83, 500) + bytes(500)),
    }[shape]
    message = read_publish(publish([data_change([make(h) for h in range(20_000)])]))
    tracemalloc.start()
    decode(message, handle_limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * len(message.body), peak / len(message.body)


def test_time_for_many_short_broken_runs_grows_with_the_message_alone() -> None:
    def cost(n: int) -> float:
        run = [item(h, double(h)) for h in range(30)] + [item(1, b"\x00")]
        message = read_publish(publish([data_change(run * n)]))
        best = 1e9
        for _ in range(3):
            start = time.perf_counter()
            decode(message, handle_limit=LIMIT)
            best = min(best, time.perf_counter() - start)
        return best

    assert cost(1600) < 40 * cost(100) + 0.05  # 16 times the items; 256 times if each run looked at the rest
