"""The reference signal mix: what this project means when it states bytes per change or a rate.

A plant of equal machines: every machine has 25 tags after one of four layouts, so that of 100 tags 30 are
ramps and 25 noise in Double, 12 noise in Float, 16 counters (four integer types), 14 booleans, 2 Strings
and 1 array. Every tag changes at every publish interval, noise in all bits of its mantissa.

Stamps have 100 ns resolution. 70 % of the machines stamp a whole scan with one source and one server time;
in the others each tag has its own of both, anywhere in the interval. 2 % of the samples carry a source time
one day old, and 0.5 % a status that is not Good. A batch is one publish interval, in the order of the tags.

Everything follows from the seed. A figure without its row count says little: quote both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mirror.batch import ARRAY, Batch, Heap, Kind
from mirror.tags import Tag

MACHINE_TAGS = 25
START_TICKS = 116_444_736_000_000_000 + 1_767_225_600 * 10_000_000  # 2026-01-01T00:00:00Z
DAY_TICKS = 864_000_000_000
STALE, ODD_STATUS, SHARED = 0.02, 0.005, 0.7


class Signal(NamedTuple):
    """One tag of a layout."""

    name: str
    shape: str
    kind: int
    unit: str = ""


RAMP, NOISE, COUNTER, FLAG, TEXT, CURVE = "ramp", "noise", "counter", "flag", "text", "curve"


def _layout(floats: int, counter: Kind, last: list[Signal]) -> list[Signal]:
    """Return 25 signals: ramps and noise in Double, `floats` Floats, 4 counters, booleans, and `last`."""
    ramps = [Signal(f"Axis{i}/Position", RAMP, Kind.DOUBLE, "mm") for i in range(7)]
    noise = [Signal(f"Zone{i}/Temperature", NOISE, Kind.DOUBLE, "degC") for i in range(6)]
    small = [Signal(f"Drive{i}/Current", NOISE, Kind.FLOAT, "A") for i in range(floats)]
    counters = [Signal(f"Count/Parts{i}", COUNTER, counter) for i in range(4)]
    rest = MACHINE_TAGS - len(ramps + noise + small + counters + last)
    flags = [Signal(f"Guard/Closed{i}", FLAG, Kind.BOOLEAN) for i in range(rest)]
    return ramps + noise + small + counters + flags + last


_RAMP = Signal("Spindle/Angle", RAMP, Kind.DOUBLE, "deg")
_STATE, _LOT = Signal("State", TEXT, Kind.STRING), Signal("Lot", TEXT, Kind.STRING)
_FORCE = Signal("Force/Curve", CURVE, Kind.DOUBLE | ARRAY, "kN")
_OIL = Signal("Oil/Pressure", NOISE, Kind.DOUBLE, "bar")
LAYOUTS = (
    _layout(3, Kind.UINT32, [_RAMP, _STATE]),
    _layout(3, Kind.INT32, [_RAMP, _OIL]),
    _layout(3, Kind.INT64, [_FORCE]),
    _layout(3, Kind.UINT16, [_LOT]),
)
_WORDS = [b"RUNNING", b"IDLE", b"SET-UP", b"STOPPED", b"FAULT: GUARD OPEN"]
_TYPES = {
    Kind.BOOLEAN: "Boolean", Kind.UINT16: "UInt16", Kind.INT32: "Int32", Kind.UINT32: "UInt32", Kind.INT64: "Int64",
    Kind.FLOAT: "Float", Kind.DOUBLE: "Double", Kind.STRING: "String",
}  # fmt: skip
_BITS = {Kind.UINT16: np.uint16, Kind.INT32: np.int32, Kind.UINT32: np.uint32, Kind.INT64: np.int64}


def signals(n: int) -> list[Signal]:
    """Return the signal of each of n tags."""
    return [LAYOUTS[i // MACHINE_TAGS % len(LAYOUTS)][i % MACHINE_TAGS] for i in range(n)]


def tags(n: int) -> list[Tag]:
    """Return n tags; the place in the list is the handle that `mix` uses."""
    made = []
    for i, signal in enumerate(signals(n)):
        machine, rank = f"press{i // MACHINE_TAGS:04d}", 1 if signal.kind & ARRAY else -1
        low, high = (0.0, 500.0) if signal.unit else (None, None)
        identifier = f"s={machine}.{signal.name.replace('/', '.')}"
        made.append(
            Tag(
                "urn:plant:press-shop", "urn:maker:press", identifier, path=f"Objects/{machine}/{signal.name}",
                device=machine, name=signal.name, data_type=_TYPES[Kind(signal.kind & 0x3F)], value_rank=rank,
                unit=signal.unit, range_low=low, range_high=high,
            )
        )  # fmt: skip
    return made


def mix(
    n_tags: int, intervals: int, *, seed: int = 1, interval_ticks: int = 1_000_000, start_ticks: int = START_TICKS,
    shared_share: float = SHARED,
) -> Iterator[Batch]:  # fmt: skip
    """Yield one batch of n_tags rows for each publish interval.

    Args:
        n_tags: Tags, and so rows per batch; handles are 0 to n_tags - 1.
        intervals: Batches to yield.
        seed: Of everything that looks random.
        interval_ticks: Length of a publish interval; 100 ms unless said otherwise.
        start_ticks: Start of the first interval.
        shared_share: Share of the machines that stamp a whole scan at once; the reference mix has SHARED.
    """
    rng = np.random.default_rng(seed)
    plant = signals(n_tags)
    kind = np.array([s.kind for s in plant], np.uint8)
    where = {shape: _of(plant, shape) for shape in (RAMP, NOISE, COUNTER, FLAG, TEXT, CURVE)}
    machine = np.arange(n_tags) // MACHINE_TAGS
    shared = (rng.random(int(machine[-1]) + 1) < shared_share)[machine]
    ramp, slope = rng.uniform(0, 500, len(where[RAMP])), rng.uniform(0.001, 3, len(where[RAMP]))
    level = rng.uniform(20, 400, len(where[NOISE]))
    count = rng.integers(0, 60_000, len(where[COUNTER]))
    for k in range(intervals):
        ramp = (ramp + slope) % 500
        count = count + rng.integers(0, 4, len(count))
        noise = level + rng.normal(0, 1, len(level))
        batch = Batch.zeros(n_tags)
        batch.handle[:] = np.arange(n_tags)
        batch.kind[:] = kind
        _stamp(batch, rng, machine, shared, start_ticks + k * interval_ticks, interval_ticks)
        bits = batch.bits
        bits[where[RAMP]] = ramp.view(np.uint64)
        small = kind[where[NOISE]] == Kind.FLOAT
        bits[where[NOISE]] = np.where(small, noise.astype(np.float32).view(np.uint32), noise.view(np.uint64))
        bits[where[COUNTER]] = _wrapped(count, kind[where[COUNTER]])
        bits[where[FLAG]] = rng.integers(0, 2, len(where[FLAG]))
        yield _with_heap(batch, rng, where[TEXT], where[CURVE], k)


def _of(plant: list[Signal], shape: str) -> NDArray[np.int64]:
    return np.array([i for i, s in enumerate(plant) if s.shape == shape], np.int64)


def _stamp(
    batch: Batch,
    rng: np.random.Generator,
    machine: NDArray[np.int64],
    shared: NDArray[np.bool_],
    start: int,
    width: int,
) -> None:
    """Fill the times and the status of one scan."""
    n = len(batch)
    scan, answer = rng.integers(0, width, int(machine[-1]) + 1), rng.integers(20_000, 200_000, int(machine[-1]) + 1)
    source = start + np.where(shared, scan[machine], rng.integers(0, width, n))
    lag = np.where(shared, answer[machine], rng.integers(20_000, 200_000, n))
    batch.server_ticks[:] = source + lag
    batch.source_ticks[:] = source - np.where(rng.random(n) < STALE, DAY_TICKS, 0)
    odd = rng.random(n) < ODD_STATUS
    batch.status[odd] = rng.choice(np.array([0x80310000, 0x40900000, 0x00000480], np.uint32), int(odd.sum()))


def _wrapped(count: NDArray[np.int64], kind: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return counters as bit patterns of their integer types, sign-extended."""
    bits = np.zeros(len(count), np.uint64)
    for builtin, dtype in _BITS.items():
        rows = kind == builtin
        bits[rows] = count[rows].astype(dtype).astype(np.int64).view(np.uint64)
    return bits


def _with_heap(
    batch: Batch, rng: np.random.Generator, text: NDArray[np.int64], curve: NDArray[np.int64], k: int
) -> Batch:
    """Return the batch with its Strings and arrays, in row order."""
    bodies: dict[int, bytes] = {}
    for row, draw in zip(text.tolist(), rng.integers(0, 1 << 30, len(text)).tolist(), strict=True):
        lot = row // MACHINE_TAGS % len(LAYOUTS) == 3
        word = b"LOT-%05d-%04d" % (row, k + draw % 3) if lot else _WORDS[draw % len(_WORDS)]
        bodies[row] = struct.pack("<i", len(word)) + word
    for row, points in zip(curve.tolist(), rng.normal(80, 5, (len(curve), 8)), strict=True):
        bodies[row] = struct.pack("<i", 8) + points.astype("<f8").tobytes()
    if not bodies:
        return batch
    rows = sorted(bodies)
    batch.bits[rows] = np.arange(len(rows), dtype=np.uint64)
    columns = {name: getattr(batch, name) for name in batch.__slots__ if name != "heap"}
    return Batch(**columns, heap=Heap.of([bodies[row] for row in rows]))
