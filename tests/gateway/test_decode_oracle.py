"""The decoder against asyncua's on random messages: the shapes of every type, in runs, in turn and at random.

What asyncua 2.1.0 reads against Part 6 is left out: source picoseconds beside a server time, a DiagnosticInfo
inside another, ExtensionObjects in XML, null where it knows none. `test_decode.py` has these by hand.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, variant_from_binary, variant_to_binary

from gateway.decode import decode, read_publish
from gateway.walk import RUN_MIN, Walk
from mirror.batch import NO_VALUE, SERVER_NULL, SOURCE_NULL
from tests.gateway.publish_bytes import data_change, double, item, numbers, publish

LIMIT = 1_000_000
CHANGES = 100_000  # MonitoredItemNotifications
TICKS = (1, 9, 116_444_736_000_000_000, 2_650_467_743_990_000_000, 2**63 - 1, -1, -(2**63))
DOUBLES = (0x7FF8000000000000, 0xFFF8000000000123, 0x7FF0000000000001, 0x7FF0000000000000, 0x8000000000000000, 1)
FLOATS = (0x7FC00000, 0xFFC00123, 0x7F800001, 0xFF800000, 0x80000000, 1)


def string(seed: random.Random, *, null: bool = True) -> bytes:
    text = seed.choice(("", "läuft", "stopped " * seed.randrange(20), None if null else "x"))
    data = (text or "").encode()
    return struct.pack("<i", -1 if text is None else len(data)) + data


def nodeid(seed: random.Random, flags: int = 0) -> bytes:
    form = seed.randrange(6)
    head = bytes((form | flags,))
    if form == 0:
        return head + seed.randbytes(1)
    if form == 1:
        return head + seed.randbytes(3)
    body = {2: seed.randbytes(4), 3: string(seed, null=False), 4: seed.randbytes(16), 5: string(seed, null=False)}
    return head + seed.randbytes(2) + body[form]


def expanded(seed: random.Random) -> bytes:
    flags = seed.choice((0, 0x40, 0x80, 0xC0))
    tail = struct.pack("<i", 3) + b"urn" if flags & 0x80 else b""
    return nodeid(seed, flags) + tail + (struct.pack("<I", seed.randrange(1, 9)) if flags & 0x40 else b"")


def structure(seed: random.Random) -> bytes:
    size = seed.randrange(1, 30)  # of a type that only the server knows
    head = struct.pack("<BBH", 1, seed.randrange(1, 9), seed.randrange(1, 2**16))
    return seed.choice((head + b"\x00", head + b"\x01" + struct.pack("<i", size) + seed.randbytes(size), bytes(3)))


def datavalue(seed: random.Random, depth: int) -> bytes:
    mask = seed.randrange(64)
    if mask & 0x18 == 0x18:
        mask &= ~0x10
    parts = [bytes((mask,)), variant(seed, depth + 1) if mask & 1 else b""]
    parts += [struct.pack("<I", seed.choice((0, 0x80310000, 0x40000480))) if mask & 2 else b""]
    parts += [struct.pack("<q", seed.choice(TICKS)) if mask & 4 else b"", seed.randbytes(2) if mask & 16 else b""]
    return b"".join([*parts, struct.pack("<q", 5) if mask & 8 else b"", seed.randbytes(2) if mask & 32 else b""])


def diagnostics(seed: random.Random) -> bytes:
    mask = seed.randrange(0x40)
    text = string(seed, null=False) if mask & 0x10 else b""
    return bytes((mask,)) + seed.randbytes(4 * (mask & 15).bit_count()) + text + (bytes(4) if mask & 0x20 else b"")


def localized(seed: random.Random) -> bytes:
    mask = seed.randrange(4)
    return bytes((mask,)) + b"".join(string(seed, null=False) for bit in (1, 2) if mask & bit)


WIDTHS = {2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 4, 8: 8, 9: 8, 14: 16}
BODIES: dict[int, Callable[[random.Random, int], bytes]] = {
    **{kind: lambda seed, _depth, width=width: seed.randbytes(width) for kind, width in WIDTHS.items()},  # type: ignore[misc]
    1: lambda seed, _: bytes((seed.choice((0, 1, 1, 2, 255)),)),
    10: lambda seed, _: struct.pack("<I", seed.choice((*FLOATS, seed.getrandbits(32)))),
    11: lambda seed, _: struct.pack("<Q", seed.choice((*DOUBLES, seed.getrandbits(64)))),
    13: lambda seed, _: struct.pack("<q", seed.choice((*TICKS, seed.getrandbits(63)))),
    19: lambda seed, _: struct.pack("<I", seed.choice((0, 0x80010000, seed.getrandbits(32)))),
    20: lambda seed, _: seed.randbytes(2) + string(seed, null=False),
    **dict.fromkeys((12, 15), lambda seed, _: string(seed)),
    **dict.fromkeys((16, *range(26, 32)), lambda seed, _: string(seed, null=False)),
    17: lambda seed, _: nodeid(seed), 18: lambda seed, _: expanded(seed), 21: lambda seed, _: localized(seed),
    22: lambda seed, _: structure(seed), 23: datavalue, 24: lambda seed, depth: variant(seed, depth + 1),
    25: lambda seed, _: diagnostics(seed),
}  # fmt: skip
NESTING = 3


def variant(seed: random.Random, depth: int = 0, kind: int | None = None) -> bytes:
    """Return a random Variant: null, a scalar, an array, a null array, or a matrix of any type."""
    roll = seed.random()
    if kind is None:
        kind = seed.choice([k for k in BODIES if depth < NESTING or k not in (23, 24)])
    if roll < 0.05:
        return b"\x00"
    if roll < 0.7 and kind != 24:  # a Variant holds no single Variant, only arrays of them
        return bytes((kind,)) + BODIES[kind](seed, depth)
    if roll < 0.75:
        return bytes((kind | 0x80,)) + struct.pack("<i", -1)
    n = seed.randrange(5)
    body = struct.pack("<i", n) + b"".join(BODIES[kind](seed, depth) for _ in range(n))
    if roll > 0.93 and n:
        return bytes((kind | 0xC0,)) + body + struct.pack("<iii", 2, 1, n)
    return bytes((kind | 0x80,)) + body


def random_items(seed: random.Random, uniform: Counter[str]) -> list[bytes]:
    """Return items in stretches: uniform runs, two shapes in turn, everything at random."""
    items: list[bytes] = []
    for _ in range(seed.randrange(1, 6)):
        style = seed.choice(("run", "run", "same bytes", "in turn", "random"))
        n = seed.choice((1, 5, RUN_MIN - 2, RUN_MIN - 1, RUN_MIN, RUN_MIN + 1, 64, 65, 200, 400))
        shape: dict[str, int | None] = seed.choice(
            ({}, {"status": 0}, {"server_ps": 2}, {"source": None}, {"source_ps": 1, "server": None})
        )
        kind = seed.choice((11, 11, 11, 6, 1, 10, 13, 19, 9, seed.choice(list(BODIES))))
        first, second = (None if seed.random() < 0.1 else variant(seed) for _ in range(2))
        for k in range(n):
            value = {"same bytes": first, "in turn": second if k % 2 else first, "random": None}[style] if (
                style != "run"
            ) else bytes((kind,)) + BODIES[kind](seed, 0)  # fmt: skip
            if style == "random" and seed.random() < 0.95:
                value = double(seed.gauss(0, 1e3)) if seed.random() < 0.4 else variant(seed)
            fields: dict[str, int | None] = {"source": ticks(seed), "server": ticks(seed)}
            if style != "run" and seed.random() < 0.02:
                fields["status"] = seed.choice((0x80310000, 0x40000480))
            items.append(item(seed.randrange(500), value, **{**fields, **shape}))
        uniform[style] += n
    return items


def ticks(seed: random.Random) -> int:
    return seed.choice(TICKS) if seed.random() < 0.05 else 133 * 10**15 + seed.getrandbits(40)


def theirs(moment: object) -> object:
    """Return a time as asyncua reads it: to the microsecond, and within its calendar."""
    return None if moment is None else ua.win_epoch_to_datetime(moment)


@pytest.mark.slow
def test_a_hundred_thousand_random_notifications_are_what_asyncua_reads() -> None:
    seed = random.Random(20)
    seen: Counter[str] = Counter()
    kinds: Counter[int] = Counter()
    while seen["changes"] < CHANGES:
        items = random_items(seed, seen)
        body = publish([data_change(items)])
        message = read_publish(body)
        batch = decode(message, handle_limit=LIMIT).batch
        walk = Walk(body)
        walk.items(*message.notifications[0][1:])
        seen["in runs"] += sum(run[1] for run in walk.runs)
        response = struct_from_binary(ua.PublishResponse, Buffer(body))
        asked = response.Parameters.NotificationMessage.NotificationData[0].MonitoredItems
        assert len(asked) == len(batch) == len(items)
        seen["changes"] += len(items)
        kinds.update(batch.kind.tolist())
        ours = zip(
            batch.handle.tolist(), batch.status.tolist(), batch.source_ticks.tolist(), batch.server_ticks.tolist(),
            batch.source_ps.tolist(), batch.server_ps.tolist(), batch.flags.tolist(), batch.kind.tolist(),
            batch.bits.tolist(), strict=True,
        )  # fmt: skip
        for row, (their, (handle, status, source, server, source_ps, server_ps, flags, kind, bits)) in enumerate(
            zip(asked, ours, strict=True)
        ):
            value = their.Value
            assert their.ClientHandle == handle
            assert (value.StatusCode.value if value.StatusCode else 0) == status
            assert value.SourceTimestamp == (None if flags & SOURCE_NULL else theirs(source))
            assert value.ServerTimestamp == (None if flags & SERVER_NULL else theirs(server))
            assert (value.SourcePicoseconds or 0, value.ServerPicoseconds or 0) == (source_ps, server_ps)
            if flags & NO_VALUE:
                assert value.Value is None or value.Value.VariantType is ua.VariantType.Null
                continue
            if 2 <= kind <= 9:
                assert bits - (bits >> 63 << 64 if kind % 2 == 0 else 0) == value.Value.Value, "kept as a number"
            mine, read = bytes((kind,)) + batch.value_bytes(row), variant_to_binary(value.Value)
            seen["to the byte"] += mine == read
            # It forgets what its types cannot hold: then it has to forget the same of our bytes.
            assert mine == read or variant_to_binary(variant_from_binary(Buffer(mine))) == read
    assert seen["in runs"] > CHANGES / 4 and seen["to the byte"] > CHANGES * 0.8, seen
    for kind in BODIES:
        assert min(kinds[kind] if kind != 24 else 9, kinds[kind | 0x80], kinds[kind | 0xC0]) > 3, (kind, kinds)


def test_the_envelope_is_what_asyncua_reads() -> None:
    body = publish([data_change([item(1, double(1))])], available=[4, 5], more=True, sequence=5, acks=[0])
    asked = struct_from_binary(ua.PublishResponse, Buffer(body)).Parameters
    ours = read_publish(body)
    assert asked.SubscriptionId == ours.subscription
    assert tuple(asked.AvailableSequenceNumbers) == ours.available
    assert asked.MoreNotifications == ours.more
    assert asked.NotificationMessage.SequenceNumber == ours.sequence
    assert tuple(r.value for r in asked.Results) == ours.ack_results


def test_a_null_list_of_numbers_is_one_to_asyncua_too() -> None:
    null = struct_from_binary(ua.PublishResponse, Buffer(publish(None, available=None)))
    assert null.Parameters.AvailableSequenceNumbers is None
    assert numbers([1]) == b"\x01\x00\x00\x00\x01\x00\x00\x00"
