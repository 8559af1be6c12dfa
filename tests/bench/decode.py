"""What the decoder costs for one change, by the shape of the items and their number. Best of 30 on one core."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from typing import Any

from gateway.decode import decode, read_publish
from tests.bench.rig import table
from tests.gateway.publish_bytes import T0, data_change, double, item, publish, string

REPEATS = 30


def doubles(n: int, _seed: random.Random) -> list[bytes]:
    return [item(h, double(h / 3), source=T0 + h) for h in range(n)]


def mixed(n: int, seed: random.Random) -> list[bytes]:
    """Return 70 % Double, 10 % each of Int32, Boolean, String, 2 % with a status, in random turns."""
    items = []
    for h in range(n):
        roll = seed.random()
        value = double(seed.gauss(0, 100))
        if roll < 0.1:
            value = struct.pack("<Bi", 6, seed.randrange(10**6))
        elif roll < 0.2:
            value = bytes((1, seed.randrange(2)))
        elif roll < 0.3:
            value = string(f"state {seed.randrange(1000)}")
        status = 0x40000000 if seed.random() < 0.02 else None
        items.append(item(h, value, status=status, source=T0 + seed.randrange(10**9)))
    return items


def strings(n: int, _seed: random.Random) -> list[bytes]:
    return [item(h, string(f"state {h % 1000}") if h % 2 else double(h)) for h in range(n)]


def arrays(n: int, _seed: random.Random) -> list[bytes]:
    return [item(h, double(h) if h % 10 else struct.pack("<Bi8d", 0x8B, 8, *range(8))) for h in range(n)]


def structures(n: int, _seed: random.Random) -> list[bytes]:
    return [item(h, b"\x16\x01\x02\x34\x12\x01" + struct.pack("<i", 12) + bytes(12)) for h in range(n)]


CASES: dict[str, Callable[[int, random.Random], list[bytes]]] = {
    "doubles": doubles, "mixed": mixed, "every second a string": strings, "every tenth an array": arrays,
    "structures": structures,
}  # fmt: skip


def run(_options: object = None) -> dict[str, Any]:
    """Return the time for one change of each case."""
    rows: list[tuple[object, ...]] = [("items", "in a message", "us/change", "us/message", "slow")]
    for name, make in CASES.items():
        for n in (10_000, 1_000, 50, 5):
            body = publish([data_change(make(n, random.Random(1)))])
            best = float("inf")
            for _ in range(REPEATS):
                start = time.perf_counter()
                got = decode(read_publish(body), handle_limit=n)
                best = min(best, time.perf_counter() - start)
            assert len(got.batch) == n
            rows.append((name, n, round(best / n * 1e6, 4), round(best * 1e6), got.slow))
    print(table(rows))
    large = {name: cost for name, n, cost, *_ in rows if n == 10_000}
    return {"name": "decode", "us_per_change": large["mixed"], "cases": large}
