"""Hypothesis strategies for batches: everything that OPC UA lets a server send, and what hurts most.

`batches()` draws any batch. Its rows cover each built-in type as scalar, array and matrix, null and
empty Strings, signalling NaNs, -0.0, the extremes of every integer and of DateTime, picoseconds, all 32
bits of a status, and stamps that are null, stale, far ahead or run backwards. Few distinct handles and
times are preferred, so that equal keys, the hard case of every order, are common.
"""

from __future__ import annotations

import struct
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mirror.batch import (
    AHEAD,
    ARRAY,
    DIMENSIONS,
    FIXED_WIDTH,
    IN_HEAP,
    NO_HEAP,
    NO_VALUE,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Heap,
    Kind,
)
from mirror.tags import Tag, TagTable
from mirror.variant import encode

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UNIX_EPOCH_TICKS = 116_444_736_000_000_000
NOW_TICKS = UNIX_EPOCH_TICKS + 1_790_000_000 * 10_000_000  # some day in 2026
SECOND, DAY = 10_000_000, 864_000_000_000
MAX_DATETIME_TICKS = 2_650_467_743_999_999_999  # 9999-12-31T23:59:59.9999999Z

SCALARS = tuple(Kind(k) for k in np.flatnonzero(FIXED_WIDTH).tolist())
HEAPED = tuple(k for k in Kind if k < 32 and IN_HEAP[k])

#: Bit patterns of floats that some road or other spoils: signalling and quiet NaNs with payload, -0.0, subnormals.
FLOATS = (0x7F800001, 0xFFA00001, 0x7FC00123, 0x80000000, 0x7F800000, 0xFF800000, 1, 0x3DCCCCCD)
DOUBLES = (
    0x7FF0000000000001, 0xFFF4000000000001, 0x7FF8000000000123, 0x8000000000000000, 0x7FF0000000000000,
    0xFFF0000000000000, 1, 0x3FB999999999999A,
)  # fmt: skip


@cache
def stamps() -> st.SearchStrategy[int]:
    """Ticks: mostly near NOW_TICKS and few distinct, else stale, far ahead, out of any calendar."""
    near = st.integers(0, 5).map(lambda i: NOW_TICKS + i * SECOND // 10)
    stale = st.integers(1, 40).map(lambda days: NOW_TICKS - days * DAY)
    odd = st.sampled_from(
        (0, 1, -1, MAX_DATETIME_TICKS, INT64_MIN, INT64_MAX, NOW_TICKS + 3650 * DAY, UNIX_EPOCH_TICKS)
    )
    return st.one_of(near, near, stale, odd, st.integers(INT64_MIN, INT64_MAX))


@cache
def statuses() -> st.SearchStrategy[int]:
    """Status codes: mostly Good, else known ones, one single bit of the 32, any."""
    known = st.sampled_from((0x80310000, 0x408F0000, 0x00000480, 0x80050000, 0x40930000))
    return st.one_of(st.just(0), st.just(0), known, st.integers(0, 31).map(lambda b: 1 << b), st.integers(0, 2**32 - 1))


@cache
def scalar_bits(kind: int) -> st.SearchStrategy[int]:
    """The `bits` of a fixed-width kind: 0 to 2**64 - 1, sign-extended where the type has a sign."""
    width = 8 * int(FIXED_WIDTH[kind])
    if kind == Kind.BOOLEAN:
        return st.integers(0, 1)
    if kind == Kind.FLOAT:
        return st.one_of(st.sampled_from(FLOATS), st.integers(0, 2**32 - 1))
    if kind == Kind.DOUBLE:
        return st.one_of(st.sampled_from(DOUBLES), st.integers(0, 2**64 - 1))
    if kind in (Kind.SBYTE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.DATETIME):
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        return st.one_of(st.sampled_from((low, high, -1, 0)), st.integers(low, high)).map(lambda v: v % 2**64)
    return st.one_of(st.sampled_from((0, 2**width - 1)), st.integers(0, 2**width - 1))


@cache
def texts() -> st.SearchStrategy[str | None]:
    """Null, empty, short, long, beyond the basic plane, and (as lone surrogates) bytes that are not UTF-8."""
    odd = st.sampled_from((None, "", "läuft", "\U0001f3ed", "a\0b", "\udcff\udc80", "x" * 300))
    return st.one_of(odd, st.text(max_size=8))


@cache
def nodeids() -> st.SearchStrategy[str]:
    """Text of NodeIds of all forms."""
    numeric = st.sampled_from((0, 255, 256, 65535, 65536, 2**32 - 1)).map(lambda i: f"i={i}")
    text = st.text(st.characters(codec="utf-8"), max_size=6).map(lambda s: f"s={s}")
    identifier = st.one_of(numeric, text, st.uuids().map(lambda u: f"g={u}"), st.just("b=/wA="))
    namespace = st.sampled_from(("", "", "ns=1;", "ns=255;", "ns=65535;"))
    return st.builds(str.__add__, namespace, identifier)


@cache
def _expanded() -> st.SearchStrategy[str]:
    head = st.sampled_from(("", "svr=7;", "nsu=urn:a%3Bb%25;", "svr=4294967295;nsu=urn:x;"))
    return st.builds(
        lambda h, n: h + (n.split(";", 1)[-1] if "nsu=" in h and n.startswith("ns=") else n), head, nodeids()
    )


@cache
def values(builtin: int, depth: int = 2) -> st.SearchStrategy[Any]:
    """Plain Python values of a built-in type, as `mirror.variant.decode` returns them."""
    if builtin == Kind.BOOLEAN:
        return st.booleans()
    if builtin in (Kind.FLOAT, Kind.DOUBLE):
        return st.floats(width=32 if builtin == Kind.FLOAT else 64, allow_nan=False)
    if FIXED_WIDTH[builtin]:
        signed = builtin in (Kind.SBYTE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.DATETIME)
        return scalar_bits(builtin).map(lambda v: v - 2**64 if signed and v >= 2**63 else v)
    if builtin == Kind.LOCALIZEDTEXT:
        return st.fixed_dictionaries({"locale": texts(), "text": texts()})
    if builtin == Kind.QUALIFIEDNAME:
        return st.fixed_dictionaries({"namespace": st.integers(0, 65535), "name": texts()})
    if builtin == Kind.EXTENSIONOBJECT:
        body = st.one_of(st.none(), st.binary(max_size=12))
        xml = st.fixed_dictionaries({"type": nodeids(), "body": st.binary(max_size=5), "xml": st.just(True)})
        return st.one_of(st.fixed_dictionaries({"type": nodeids(), "body": body}), xml)
    if builtin == Kind.VARIANT:
        return variants(depth - 1)
    if builtin == Kind.DATAVALUE:
        stamp, ps = values(Kind.DATETIME), st.integers(0, 65535)
        parts = {"value": variants(depth - 1), "status": statuses(), "source_ticks": stamp, "source_ps": ps}
        return st.fixed_dictionaries({}, optional={**parts, "server_ticks": stamp, "server_ps": ps})
    if builtin == Kind.DIAGNOSTICINFO:
        number = values(Kind.INT32)
        parts = dict.fromkeys(("symbolic_id", "namespace_uri", "locale", "localized_text"), number)
        parts |= {"additional_info": texts(), "inner_status": statuses()}
        if depth > 0:
            parts["inner"] = values(Kind.DIAGNOSTICINFO, depth - 1)
        return st.fixed_dictionaries({}, optional=parts)
    simple: dict[int, st.SearchStrategy[Any]] = {
        Kind.NULL: st.none(), Kind.STRING: texts(), Kind.XMLELEMENT: texts(), Kind.GUID: st.uuids().map(str),
        Kind.BYTESTRING: st.one_of(st.none(), st.binary(max_size=20)), Kind.NODEID: nodeids(),
        Kind.EXPANDEDNODEID: _expanded(),
    }  # fmt: skip
    return simple[builtin]


@cache
def kinds_and_values(depth: int = 2) -> st.SearchStrategy[tuple[int, Any]]:
    """An encoding byte and a value of it: scalar, array, null array or matrix of any built-in type."""
    builtins = [k for k in Kind if k < (Kind.DATAVALUE if depth <= 0 else Kind.RESERVED_EVENT)]
    scalars = [st.tuples(st.just(int(k)), values(k, depth)) for k in builtins]
    arrays, matrices = [], []
    for kind in builtins[1:]:
        item = values(kind, min(depth, 1))
        array = st.one_of(st.none(), st.lists(item, max_size=4))
        arrays.append(st.tuples(st.just(kind | ARRAY), array))
        row = [st.lists(item, min_size=columns, max_size=columns) for columns in (1, 3)]
        matrix = st.one_of([st.lists(r, min_size=1, max_size=2) for r in row])
        matrices.append(st.tuples(st.just(kind | ARRAY | DIMENSIONS), matrix))
    return st.one_of(st.one_of(scalars), st.one_of(arrays), st.one_of(matrices))


@cache
def variants(depth: int = 1) -> st.SearchStrategy[dict[str, Any]]:
    """A Variant inside another value."""
    return kinds_and_values(depth).map(lambda kv: {"kind": kv[0], "value": kv[1]})


@cache
def heap_bodies() -> st.SearchStrategy[tuple[int, bytes]]:
    """An encoding byte of the heap and a body of it, well formed."""
    text = texts().map(lambda s: (int(Kind.STRING), encode(Kind.STRING, s)))
    drawn = kinds_and_values().map(lambda kv: (kv[0], encode(*kv)))
    fallback = (int(Kind.STRING), struct.pack("<i", -1))
    return st.one_of(text, drawn.map(lambda kb: kb if IN_HEAP[kb[0]] else fallback))


@cache
def rows(handles: int = 6, *, ahead: bool = True, null_both: bool = True) -> st.SearchStrategy[tuple[Any, ...]]:
    """One row: (handle, source, server, source_ps, server_ps, status, flags, kind, bits or bytes)."""
    nulls = [0, 0, 0, SOURCE_NULL, SERVER_NULL] + [SOURCE_NULL | SERVER_NULL] * null_both
    flags = st.sampled_from([*nulls, *nulls, *nulls] + [n | AHEAD for n in nulls] * ahead)
    # Mapped, since one_of within one_of would give each of the 13 types as much weight as all of the heap.
    fixed = st.one_of([st.tuples(st.just(int(k)), scalar_bits(k)) for k in SCALARS]).map(tuple)
    no_value = st.sampled_from([(0, 0), (NO_VALUE, 0)])
    picoseconds = st.sampled_from((0, 0, 0, 1, 9999, 65535))
    value = st.one_of(no_value.map(lambda v: (0, *v)), fixed, fixed, heap_bodies())
    columns = (st.integers(0, handles - 1), stamps(), stamps(), picoseconds, picoseconds, statuses(), flags, value)
    return st.tuples(*columns).map(_row)


def _row(drawn: tuple[Any, ...]) -> tuple[Any, ...]:
    handle, source, server, source_ps, server_ps, status, flags, value = drawn
    source, server = 0 if flags & SOURCE_NULL else source, 0 if flags & SERVER_NULL else server
    if len(value) == 3:  # a null value, perhaps without any Variant around it
        flags, value = flags | value[1], (0, 0)
    return (handle, source, server, source_ps, server_ps, status, flags, *value)


def from_rows(drawn: list[tuple[Any, ...]]) -> Batch:
    """Lay rows such as `rows` draws into a batch."""
    if not drawn:
        return Batch.zeros(0)
    entries = [r[8] for r in drawn if isinstance(r[8], bytes)]
    place = iter(range(len(entries)))
    bits = [next(place) if isinstance(r[8], bytes) else r[8] for r in drawn]
    dtypes = (np.uint32, np.int64, np.int64, np.uint16, np.uint16, np.uint32, np.uint8, np.uint8)
    columns: list[Any] = [np.array([r[i] for r in drawn], d) for i, d in enumerate(dtypes)]
    columns += [np.array(bits, np.uint64), Heap.of(entries) if entries else NO_HEAP]
    return Batch(*columns)


def _hard_values() -> list[tuple[int, Any]]:
    """Values that somebody once got wrong: (kind, bits or body)."""
    found: list[tuple[int, Any]] = [(0, 0), (1, 0), (1, 1)]
    found += [(int(Kind.FLOAT), bits) for bits in FLOATS] + [(int(Kind.DOUBLE), bits) for bits in DOUBLES]
    for kind in SCALARS:
        top = 1 << 8 * int(FIXED_WIDTH[kind]) - 1  # its sign bit, where the type has a sign
        signed = kind in (Kind.SBYTE, Kind.INT16, Kind.INT32, Kind.INT64, Kind.DATETIME)
        if kind not in (Kind.BOOLEAN, Kind.FLOAT, Kind.DOUBLE):
            found += [(int(kind), v % 2**64) for v in ((-top, -1, 0, top - 1) if signed else (0, top, 2 * top - 1))]
    plain: dict[int, tuple[Any, ...]] = {
        Kind.STRING: (None, "", "läuft", "\udcff"), Kind.GUID: ("72962b91-fa75-4ae6-8d28-b404dc7daf63",),
        Kind.BYTESTRING: (None, b"", b"\0\xff" * 200), Kind.XMLELEMENT: ("<a/>",), Kind.NODEID: ("ns=2;s=a", "i=85"),
        Kind.EXPANDEDNODEID: ("svr=1;nsu=urn:x;i=5",), Kind.QUALIFIEDNAME: ({"namespace": 1, "name": None},),
        Kind.LOCALIZEDTEXT: ({"locale": "de", "text": "x"},), Kind.DATAVALUE: ({"value": {"kind": 6, "value": 5}},),
        Kind.EXTENSIONOBJECT: ({"type": "ns=2;i=5001", "body": b"\1"}, {"type": "i=0", "body": None}),
        Kind.VARIANT: ({"kind": 12, "value": "v"},), Kind.DIAGNOSTICINFO: ({"symbolic_id": 3},),
        Kind.DOUBLE: (1.5, -0.0),
    }  # fmt: skip
    for builtin, items in plain.items():
        found += [(builtin, encode(builtin, item)) for item in items if IN_HEAP[builtin]]
        array, matrix = builtin | ARRAY, builtin | ARRAY | DIMENSIONS
        found += [(array, encode(array, value)) for value in (None, [], list(items))]
        found.append((matrix, encode(matrix, [list(items)] * 2)))
    return found


HARD_VALUES = _hard_values()
HARD_STAMPS = (
    0,
    1,
    -1,
    INT64_MIN,
    INT64_MAX,
    MAX_DATETIME_TICKS,
    UNIX_EPOCH_TICKS,
    NOW_TICKS - DAY,
    NOW_TICKS + 3650 * DAY,
)


def random_batch(seed: int, size: int, handles: int, *, ahead: bool, null_both: bool) -> Batch:
    """Return `size` rows full of hard values; Hypothesis alone draws two or three rows and seldom those."""
    dice, drawn = Random(seed), []
    nulls = [0, 0, 0, SOURCE_NULL, SERVER_NULL] + [SOURCE_NULL | SERVER_NULL] * null_both
    for _ in range(size):
        source, server = (
            dice.choice(HARD_STAMPS) if dice.random() < 0.2 else NOW_TICKS + dice.randrange(6) * SECOND
            for _ in range(2)
        )
        status = 0 if dice.random() < 0.6 else 1 << dice.randrange(32) if dice.random() < 0.5 else dice.getrandbits(32)
        kind, value = dice.choice(HARD_VALUES)
        flags = dice.choice(nulls) | (AHEAD if ahead and dice.random() < 0.1 else 0)
        ps = [dice.choice((0, 0, 0, 1, 65535)) for _ in range(2)]
        drawn_value = (0, dice.choice((0, NO_VALUE)), 0) if kind == 0 else (kind, value)
        drawn.append(_row((dice.randrange(handles), source, server, *ps, status, flags, drawn_value)))
    return from_rows(drawn)


@cache
def batches(
    max_size: int = 24, handles: int = 6, *, min_size: int = 0, ahead: bool = True, null_both: bool = True
) -> st.SearchStrategy[Batch]:
    """Any batch of up to `max_size` rows over `handles` tags.

    Args:
        max_size: Most rows.
        handles: Handles are drawn from 0 to handles - 1; `table(handles)` has tags for them.
        min_size: Fewest rows.
        ahead: Whether rows may be flagged AHEAD.
        null_both: Whether a row may have neither time stamp.
    """
    drawn = st.lists(rows(handles, ahead=ahead, null_both=null_both), min_size=min_size, max_size=max_size)
    make = partial(random_batch, handles=handles, ahead=ahead, null_both=null_both)
    sizes = st.sampled_from(sorted({min_size, (min_size + max_size) // 2, max_size}))
    return st.one_of(drawn.map(from_rows), st.builds(make, st.integers(0, 2**32), sizes))


def table(handles: int = 6) -> TagTable:
    """Tags for the handles of `batches`, whose identities do not sort in the order of the handles."""
    sources = ("urn:plant:b", "urn:plant:a")
    return TagTable(
        Tag(
            sources[h % 2],
            f"urn:maker:{h % 3}",
            f"s=Tag{handles - h}",
            device=f"d{h % 3}",
            name=f"tag{h}",
            path=f"d/{h}",
        )
        for h in range(handles)
    )
