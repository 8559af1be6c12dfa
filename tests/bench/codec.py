"""What a chunk and the state cost: bytes and microseconds per change, on the reference mix and on Doubles.

Run `python -m tests.bench.codec`. Times are the median of many calls on one core, with the minimum beside
it: on a machine that does other things too, compare minima.
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


def times_ms(function: Callable[[Any], object], arguments: Sequence[Any]) -> str:
    """Call the function with each argument and return "median (minimum)" in milliseconds."""
    taken = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        taken.append((time.perf_counter() - start) * 1e3)
    return f"{statistics.median(taken):7.3f} ({min(taken):6.3f})"


def main() -> None:
    print("rows       signals   bytes/change   encode ms          decode ms          state ms")
    for name in ("mix", "doubles"):
        for n in (10, 100, 1_000, 10_000, 100_000):
            batches = list(mix(n, 20)) if name == "mix" else [doubles(n, k) for k in range(20)]
            chunks = [chunk.encode(b) for b in batches]
            assert all(equal(chunk.decode(c), b) for c, b in zip(chunks, batches, strict=True))
            size = sum(map(len, chunks)) / n / len(chunks)
            state = State()
            state.apply(batches[0])
            encode, decode = times_ms(chunk.encode, batches), times_ms(chunk.decode, chunks)
            print(f"{n:<10} {name:<9} {size:<14.2f} {encode:<18} {decode:<18} {times_ms(state.apply, batches[1:])}")


if __name__ == "__main__":
    main()
