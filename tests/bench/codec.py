"""What a chunk and the state cost: bytes and microseconds per change, on the reference mix and on Doubles.

Times are the median of many calls on one core, with the minimum beside it: on a machine that does other
things too, compare minima. The last line's figures are the minima for 10,000 rows of the mix.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mirror import chunk
from mirror.batch import Batch, Kind, equal
from mirror.state import State
from tests.bench.mix import START_TICKS, mix
from tests.bench.rig import table


def doubles(n: int, interval: int) -> Batch:
    """Return n Doubles full of noise, 25 to a source time."""
    rng = np.random.default_rng(interval)
    batch = Batch.zeros(n)
    batch.handle[:] = np.arange(n)
    batch.kind[:] = Kind.DOUBLE
    start = START_TICKS + interval * 1_000_000
    batch.source_ticks[:] = start + np.repeat(rng.integers(0, 1_000_000, n // 25 + 1), 25)[:n]
    batch.server_ticks[:] = batch.source_ticks + rng.integers(20_000, 200_000, n)
    batch.bits[:] = rng.normal(50, 3, n).view(np.uint64)
    return batch


def times_ms(function: Callable[[Any], object], arguments: Sequence[Any]) -> tuple[float, float]:
    """Call the function with each argument and return median and minimum in milliseconds."""
    taken = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken), min(taken)


def run(_options: object = None) -> dict[str, Any]:
    """Return bytes and times of chunk and state."""
    rows: list[tuple[object, ...]] = [("rows", "signals", "bytes/change", "encode ms", "decode ms", "state ms")]
    figures: dict[str, Any] = {"name": "codec"}
    for name in ("doubles", "mix"):
        for n in (10, 100, 1_000, 10_000, 100_000):
            batches = list(mix(n, 20)) if name == "mix" else [doubles(n, k) for k in range(20)]
            chunks = [chunk.encode(b) for b in batches]
            assert all(equal(chunk.decode(c), b) for c, b in zip(chunks, batches, strict=True))
            size = sum(map(len, chunks)) / n / len(chunks)
            state = State()
            state.apply(batches[0])
            encode, decode = times_ms(chunk.encode, batches), times_ms(chunk.decode, chunks)
            apply = times_ms(state.apply, batches[1:])
            rows.append((n, name, size, *(f"{median:.3f} ({least:.3f})" for median, least in (encode, decode, apply))))
            if n == 10_000:
                figures |= {
                    "bytes_per_change": round(size, 2), "us_per_change": round((encode[1] + apply[1]) / n * 1e3, 3),
                    "encode_ms": round(encode[1], 3), "decode_ms": round(decode[1], 3), "state_ms": round(apply[1], 3),
                }  # fmt: skip
    print(table(rows))
    return figures
