"""A batch as plain JSON in the unified name space: one object for each device, one for each chosen tag.

A device object carries the last value of every tag of the device that changed in the batch; `epoch` and
`seq` let a consumer drop what a predecessor still sends and see what it missed. JSON is narrower than
OPC UA, and the rule is to say so instead of rounding: a Bad value is absent and its code stands in
`errors`; an Uncertain one is present and its code stands in `quality`; NaN and the infinities are null
and stand in `errors` as BadEncodingError; integers beyond 2**53 are strings.

Numbers are converted in columns and encoded by one call for each device. Python looks at single values
only where they are not numbers, or not good.

What this module does not do: send anything, keep anything (the caller owns the sequence numbers), or
know the time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.formats.coalesce import last_rows
from gateway.formats.names import Names
from mirror.batch import AHEAD, SERVER_NULL, SOURCE_NULL, Batch, Kind
from mirror.errors import Corrupt
from mirror.status import status_name
from mirror.variant import Structure, decode, iso, readable

BAD_ENCODING = 0x80060000  # BadEncodingError: the value exists and JSON has no form for it
BAD_TOO_LARGE = 0x80080000  # BadEncodingLimitsExceeded: the value is larger than a message may be

PAYLOAD_BYTES_MAX = 64 << 10  # about two thousand numbers; brokers allow between 20 KiB and 256 MiB

_UNIX_EPOCH_MS = 11_644_473_600_000  # milliseconds from 1601 to 1970
_NO_TIME = np.iinfo(np.int64).min
_EXACT = 2**53

_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """One MQTT message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


def encode(
    batch: Batch, names: Names, *, epoch: int, seqs: dict[str, int], node: str,
    payload_bytes_max: int = PAYLOAD_BYTES_MAX,
) -> list[Message]:  # fmt: skip
    """Return all messages of a batch; see `messages`."""
    return list(messages(batch, names, epoch=epoch, seqs=seqs, node=node, payload_bytes_max=payload_bytes_max))


def messages(
    batch: Batch, names: Names, *, epoch: int, seqs: dict[str, int], node: str,
    payload_bytes_max: int = PAYLOAD_BYTES_MAX,
) -> Iterator[Message]:  # fmt: skip
    """Yield each device's object and then its tags' own messages, QoS 1, one device after the other.

    Args:
        batch: Samples in order of arrival; only the last row of each tag is published. Tags without a
            name here are left out.
        names: Topics and keys by handle.
        epoch: Fencing epoch of this gateway.
        seqs: Last sequence number by device topic; counted up here as objects are yielded. The caller
            empties it with each new epoch.
        node: Name of the gateway in the objects.
        payload_bytes_max: A device object that would be longer is split; a single value that is longer
            is left out and stands in `errors` as BadEncodingLimitsExceeded.
    """
    rows = _rows(batch, names, *_live_order(batch, names))
    for start, end in rows.groups():
        device = names.devices[rows.device[start]]
        head = {"node": node, "device": device.name}
        for a, b, payload in _objects(rows, start, end, names, device.topic, epoch, seqs, head, payload_bytes_max):
            if names.options.device_objects:
                yield Message(device.topic, payload, 1, False)
            yield from _tags(rows, a, b, names, epoch, seqs[device.topic], payload_bytes_max)


def tag_messages(
    batch: Batch, names: Names, *, epoch: int, seqs: dict[str, int], payload_bytes_max: int = PAYLOAD_BYTES_MAX
) -> Iterator[Message]:
    """Yield the retained messages of the batch's tags again, with their devices' present numbers."""
    rows = _rows(batch, names, *_live_order(batch, names))
    for start, end in rows.groups():
        seq = seqs.get(names.devices[rows.device[start]].topic, 0)
        yield from _tags(rows, start, end, names, epoch, seq, payload_bytes_max)


def history(
    batch: Batch, names: Names, *, epoch: int, seqs: dict[str, int], node: str,
    payload_bytes_max: int = PAYLOAD_BYTES_MAX,
) -> Iterator[Message]:  # fmt: skip
    """Yield back-filled samples, every one of them, on the `_history` topics of their devices.

    An object holds the values of one device at one millisecond. Nothing is retained, no tag topic is
    touched, and `seqs` counts by `_history` topic, apart from the live objects.
    """
    rows = _rows(batch, names, *_history_order(batch, names))
    for start, end in rows.groups():
        device = names.devices[rows.device[start]]
        head = {"node": node, "device": device.name, "historical": True}
        topic = f"{device.topic}/_history"
        for _, _, payload in _objects(rows, start, end, names, topic, epoch, seqs, head, payload_bytes_max):
            yield Message(topic, payload, 1, False)


# --- order --------------------------------------------------------------------------------------------


def _live_order(batch: Batch, names: Names) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the last row of each named tag, device by device, and where each device starts."""
    index = last_rows(batch.handle)
    device = names.known(batch.handle[index])
    if len(device) and device.min() < 0:
        index, device = index[device >= 0], device[device >= 0]
    if (device[1:] < device[:-1]).any():
        small = device.astype(np.uint16) if len(names.devices) <= 0xFFFF else device  # sorted by radix
        order = np.argsort(small, kind="stable")
        index, device = index[order], device[order]
    return index, _starts(device)


def _history_order(batch: Batch, names: Names) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all rows of named tags by device and millisecond, and where each object starts.

    Where a tag has several rows in one millisecond, the second goes to a second object, and so on.
    """
    index = np.flatnonzero(names.known(batch.handle) >= 0)
    handle = batch.handle[index]
    device, ms = names.device_of[handle], _milliseconds(batch, index)
    order = np.lexsort((handle, ms, device))
    index, handle, device, ms = index[order], handle[order], device[order], ms[order]
    place = np.arange(len(index))
    repeat = place - np.maximum.accumulate(np.where(_edges(handle, ms), place, 0))
    order = np.lexsort((repeat, ms, device))
    return index[order], _starts(device[order], ms[order], repeat[order])


def _edges(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell for each row whether it differs from the row before it; the first one does."""
    edge = np.ones(len(columns[0]), np.bool_)
    if len(edge):
        edge[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return edge


def _starts(*columns: NDArray[Any]) -> NDArray[np.int64]:
    return np.flatnonzero(_edges(*columns))


# --- columns ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows in publishing order, those of one object next to each other.

    Attributes:
        starts: First row of each object.
        device: By row: index of the device.
        handles: By row.
        keys: By row: key in the device object.
        values: By row: JSON value; not to be shown where `bad`.
        ms: int64[n], milliseconds since 1970; _NO_TIME where the sample has none.
        code: uint32[n], the status to show.
        bad: bool[n], whether the row's value is left out.
        odd: Rows with an entry in `errors` or `quality`, rising.
        tagged: Rows of tags with a topic of their own, rising.
    """

    starts: list[int]
    device: list[int]
    handles: list[int]
    keys: list[str]
    values: list[Any]
    ms: NDArray[np.int64]
    code: NDArray[np.uint32]
    bad: NDArray[np.bool_]
    odd: list[int]
    tagged: list[int]

    def groups(self) -> Iterator[tuple[int, int]]:
        return pairwise([*self.starts, len(self.keys)])


def _rows(batch: Batch, names: Names, index: NDArray[np.int64], starts: NDArray[np.int64]) -> _Rows:
    """Gather the rows at `index` and turn them into what JSON takes."""
    handle, status = batch.handle[index], batch.status[index]
    values, unfit = _values(batch, index, names)
    bad = status >= 0x80000000
    return _Rows(
        starts.tolist(), names.device_of[handle].tolist(), handle.tolist(), names.keys[handle].tolist(), values,
        _milliseconds(batch, index), np.where(unfit & ~bad, np.uint32(BAD_ENCODING), status), bad,
        np.flatnonzero((status >= 0x40000000) | unfit).tolist(), np.flatnonzero(names.tagged[handle]).tolist(),
    )  # fmt: skip


def _milliseconds(batch: Batch, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the time to show: the source's, or the server's where that is absent or too far ahead."""
    flags, ticks = batch.flags[index], batch.source_ticks[index]
    if flags.any():
        server = ((flags & (SOURCE_NULL | AHEAD)) != 0) & ((flags & SERVER_NULL) == 0)
        ticks = np.where(server, batch.server_ticks[index], ticks)
    ms = ticks // 10_000 - _UNIX_EPOCH_MS
    ms[(flags & (SOURCE_NULL | SERVER_NULL)) == SOURCE_NULL | SERVER_NULL] = _NO_TIME
    return ms


# --- values -------------------------------------------------------------------------------------------


def _values(batch: Batch, index: NDArray[np.int64], names: Names) -> tuple[list[Any], NDArray[np.bool_]]:
    """Return the rows' values as JSON takes them, and where JSON has no form for the value."""
    kinds, bits = batch.kind[index], batch.bits[index]
    unfit = np.zeros(len(index), np.bool_)
    if len(index) and (kinds == kinds[0]).all() and kinds[0] in _SCALARS:
        values = _SCALARS[kinds[0]](bits)
    else:
        values = [None] * len(index)
        for kind in np.unique(kinds).tolist():
            where = np.flatnonzero(kinds == kind)
            scalars = _SCALARS.get(kind)
            found = scalars(bits[where]) if scalars else _heap_values(batch, index[where], kind, names)
            for i, value in zip(where.tolist(), found, strict=True):
                values[i] = value
    # An exponent of all ones is NaN or an infinity.
    for kind, exponent in ((Kind.DOUBLE, 0x7FF0000000000000), (Kind.FLOAT, 0x7F800000)):
        unfit |= (kinds == kind) & ((bits & np.uint64(exponent)) == exponent)
    return values, unfit


def _integers(bits: NDArray[np.uint64]) -> list[Any]:
    values: list[Any] = bits.view(np.int64).tolist()
    return values


def _wide(numbers: NDArray[Any]) -> list[Any]:
    """Return 64-bit integers, as strings where a reader with doubles would round them."""
    values: list[Any] = numbers.tolist()
    if len(values) and (numbers.max() > _EXACT or numbers.min() < -_EXACT):
        return [_exact(v) for v in values]
    return values


def _exact(value: Any) -> Any:
    """Return an integer, a list of them or lists of lists with all that exceed 2**53 as strings."""
    if isinstance(value, list):
        return [_exact(v) for v in value]
    return value if value is None or -_EXACT <= value <= _EXACT else str(value)


def _floats(bits: NDArray[np.uint64]) -> list[Any]:
    values: list[Any] = shortest(bits.astype(np.uint32).view(np.float32)).tolist()
    return values


def _dates(bits: NDArray[np.uint64]) -> list[Any]:
    return [str(iso(t)) for t in bits.view(np.int64).tolist()]


_SCALARS: dict[int, Callable[[NDArray[np.uint64]], list[Any]]] = {
    Kind.NULL: lambda bits: [None] * len(bits),
    Kind.BOOLEAN: lambda bits: (bits != 0).tolist(),
    Kind.SBYTE: _integers, Kind.BYTE: _integers, Kind.INT16: _integers, Kind.UINT16: _integers,
    Kind.INT32: _integers, Kind.UINT32: _integers,
    Kind.INT64: lambda bits: _wide(bits.view(np.int64)),
    Kind.UINT64: _wide,
    Kind.FLOAT: _floats,
    Kind.DOUBLE: lambda bits: bits.view(np.float64).tolist(),
    Kind.DATETIME: _dates,
    Kind.STATUSCODE: lambda bits: [status_name(v) for v in bits.tolist()],
}  # fmt: skip

_TENS = np.array([float(10**k) for k in range(23)])  # powers of ten that a double holds exactly


def shortest(singles: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return doubles that print as the shortest decimals that give the same singles back.

    0.1 as a single is 0.10000000149011612 as a double; here it becomes the double 0.1. Singles outside
    1e-13 to 1e13, where the scaling would not be exact, and those that are not finite, stay as they are.

    Args:
        singles: float32[n].

    Returns:
        float64[n], each of which rounds to the single that it stands for.
    """
    exact = singles.astype(np.float64)
    size = np.abs(exact)
    todo = np.flatnonzero((size > 1e-13) & (size < 1e13))
    for digits in range(6, 10):
        x = exact[todo]
        shift = digits - 1 - np.floor(np.log10(np.abs(x))).astype(np.int64)
        scale = _TENS[np.abs(shift)]
        # Integer and scale are exact, so that one correctly rounded operation gives the nearest double.
        found = np.where(shift >= 0, np.rint(x * scale) / scale, np.rint(x / scale) * scale)
        good = found.astype(np.float32) == singles[todo]
        exact[todo[good]] = found[good]
        todo = todo[~good]
        if not len(todo):
            break
    return exact


def _heap_values(batch: Batch, index: NDArray[np.int64], kind: int, names: Names) -> list[Any]:
    entries, data = batch.bits[index].astype(np.int64), batch.heap.data
    ends = batch.heap.ends[entries].tolist()
    starts = np.where(entries > 0, batch.heap.ends[entries - 1], 0).tolist()
    bodies = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    if kind == Kind.STRING:
        return [None if b[3:4] >= b"\x80" else b[4:].decode("utf-8", "replace") for b in bodies]
    sources = [names.source_of[h] for h in batch.handle[index].tolist()]
    return [_heap_value(kind, b, names.structures.get(s, {})) for b, s in zip(bodies, sources, strict=True)]


def _heap_value(kind: int, body: bytes, structures: Mapping[str, Structure]) -> Any:
    """Return any other value: the text of a LocalizedText, integers within JSON's reach, or ready JSON."""
    try:
        if kind == Kind.LOCALIZEDTEXT:
            text: str | None = decode(kind, body)["text"]
            return text and text.encode("utf-8", "replace").decode()
        if kind & 0x3F in (Kind.INT64, Kind.UINT64):
            return _exact(decode(kind, body))
    except Corrupt:
        pass  # shown as its bytes below
    return msgspec.Raw(readable(kind, body, structures).encode())


# --- messages -----------------------------------------------------------------------------------------


def _objects(
    rows: _Rows, start: int, end: int, names: Names, topic: str, epoch: int, seqs: dict[str, int],
    head: dict[str, Any], payload_bytes_max: int,
) -> Iterator[tuple[int, int, bytes]]:  # fmt: skip
    """Yield the objects of one device with the rows that each holds; one, unless it would be too large."""
    parts = [(start, end)]
    while parts:
        a, b = parts.pop()
        seq = seqs.get(topic, 0) + 1
        payload = b""
        if names.options.device_objects or "historical" in head:
            flat = names.options.shape == "flat"
            payload = _object(rows, a, b, {"epoch": epoch, "seq": seq, **head}, flat=flat, fits=True)
            if len(payload) > payload_bytes_max and b - a > 1:
                middle = (a + b) // 2
                parts += [(middle, b), (a, middle)]
                continue
            if len(payload) > payload_bytes_max:
                payload = _object(rows, a, b, {"epoch": epoch, "seq": seq, **head}, flat=flat, fits=False)
        seqs[topic] = seq
        yield a, b, payload


def _object(rows: _Rows, a: int, b: int, head: dict[str, Any], *, flat: bool, fits: bool) -> bytes:
    keys = rows.keys[a:b]
    values = dict(zip(keys, rows.values[a:b], strict=True))
    extra: dict[str, Any] = {}
    ms = rows.ms[a:b]
    newest, oldest = int(ms.max()), int(ms.min())
    if newest != oldest:
        times: list[int | None] = ms.tolist() if oldest != _NO_TIME else [_time(t) for t in ms.tolist()]
        extra["timestamps"] = {k: t for k, t in zip(keys, times, strict=True) if t != newest}
    odd = rows.odd[bisect_left(rows.odd, a) : bisect_left(rows.odd, b)]
    if odd or not fits:
        errors: dict[str, int] = {}
        quality: dict[str, int] = {}
        for i in odd:
            code = int(rows.code[i])
            (errors if code >= 0x80000000 else quality)[rows.keys[i]] = code
            if rows.bad[i]:
                del values[rows.keys[i]]
        if not fits:
            values, quality = {}, {}
            errors = {keys[0]: errors.get(keys[0], BAD_TOO_LARGE)}
        extra |= ({"errors": errors} if errors else {}) | ({"quality": quality} if quality else {})
    body = values if flat else {"values": values}
    return _encode({"timestamp": _time(newest), **head, **body, **extra})


def _time(ms: int) -> int | None:
    return None if ms == _NO_TIME else ms


def _tags(rows: _Rows, a: int, b: int, names: Names, epoch: int, seq: int, payload_bytes_max: int) -> Iterator[Message]:
    """Yield the retained messages of those rows that have a topic of their own."""
    raw = names.options.payload == "raw"
    for i in rows.tagged[bisect_left(rows.tagged, a) : bisect_left(rows.tagged, b)]:
        code, bad = int(rows.code[i]), bool(rows.bad[i])
        value, ms = None if bad else rows.values[i], int(rows.ms[i])
        payload = _raw(value) if raw else _tag(value, code, ms, epoch, seq)
        if len(payload) > payload_bytes_max:
            payload = _raw(None) if raw else _tag(None, BAD_TOO_LARGE, ms, epoch, seq)
        yield Message(names.topics[rows.handles[i]], payload, 1, True)


def _tag(value: Any, code: int, ms: int, epoch: int, seq: int) -> bytes:
    if code == 0:
        return _encode({"value": value, "quality": "Good", "timestamp": _time(ms), "epoch": epoch, "seq": seq})
    head = {"value": value, "quality": status_name(code), "code": code}
    return _encode({**head, "timestamp": _time(ms), "epoch": epoch, "seq": seq})


def _raw(value: Any) -> bytes:
    """Return the bare value: text as it stands, everything else as JSON; `null` where there is none."""
    return value.encode() if isinstance(value, str) else _encode(value)
