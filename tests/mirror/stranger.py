"""A verifier of logs written from docs/segment-format.md alone: nothing of ours is imported here.

Row by row and slow, so that it shares no idea with the code it checks. It refuses by raising.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIXED = {*range(1, 12), 13, 19}
Row = tuple[Any, ...]


def rows(data: bytes) -> list[Row]:
    """Return the rows in the order of the file; as tuples they sort in canonical order."""
    table = pq.read_table(io.BytesIO(data))
    columns = {name: table[name].to_pylist() for name in table.column_names if name not in ("time", "f32", "f64")}
    columns["time"] = table["time"].cast("int64").to_pylist()
    for name, code in (("f32", "u4"), ("f64", "u8")):  # bit patterns: a NaN is more than a NaN
        columns[name] = table[name].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False).view(code).tolist()
    return [_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _row(r: dict[str, Any]) -> Row:
    flags, kind = r["flags"], r["kind"]
    assert flags & ~0x87 == 0, "an unknown flag"
    source = 0
    if not flags & 1:
        near = r["time"] is not None
        source = 116_444_736_000_000_000 + r["time"] * 10 + r["time_100ns"] if near else r["source_ticks"]
    server = 0
    if not flags & 2:
        server = r["server_ticks"] if flags & 1 else (source + r["lag"] + 2**63) % 2**64 - 2**63
    value: Any = 0
    if kind in FIXED:
        column = {1: "bool", 9: "u64", 10: "f32", 11: "f64"}.get(kind, "i64")
        value = int(r[column]) % 2**64
    elif kind != 0:
        value = r["bytes"]
        if value is None:
            text = r["text"]
            value = b"\xff" * 4 if text is None else struct.pack("<i", len(text.encode())) + text.encode()
    identity = r["source"].replace("%", "%25").replace("\n", "%0A") + "\n" + r["tag"]
    return (
        identity, source, r["source_ps"], r["status"], kind, value, flags & 7, server, r["server_ps"], flags,
    )  # fmt: skip


def digest(found: list[Row]) -> str:
    names = sorted({row[0] for row in found})
    place = {name: i for i, name in enumerate(names)}
    bodies = [row[5] for row in found if isinstance(row[5], bytes)]

    def pack(code: str, numbers: Iterable[int]) -> bytes:
        return b"".join(struct.pack(f"<{code}", number) for number in numbers)

    sha = hashlib.sha256(b"edgemirror batch 1")
    for block in (
        pack("Q", (len(name.encode()) for name in names)), "".join(names).encode(),
        pack("I", (place[row[0]] for row in found)), pack("q", (row[1] for row in found)),
        pack("q", (row[7] for row in found)), pack("H", (row[2] for row in found)),
        pack("H", (row[8] for row in found)), pack("I", (row[3] for row in found)),
        bytes(row[6] for row in found), bytes(row[4] for row in found),
        pack("Q", (row[5] for row in found if not isinstance(row[5], bytes))),
        pack("Q", map(len, bodies)), b"".join(bodies),
    ):  # fmt: skip
        sha.update(struct.pack("<Q", len(block)) + block)
    return sha.hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def numbers_fit(value: Any) -> None:
    if isinstance(value, int):
        assert -(2**63) <= value < 2**63
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            numbers_fit(part)


def read_floor(data: bytes, group: str, trusted: dict[str, str] | None = None) -> dict[str, Any]:
    """Check a floor by keys that are trusted, or else by its own; return it."""
    floor: dict[str, Any] = json.loads(data)
    assert floor.get("format", 1) == 1 and canonical(floor) == data
    numbers_fit(floor)
    assert floor["group"] == group and floor["seq"] >= 1 and floor.get("epoch", 0) >= 0
    trusted = trusted or floor["keys"]
    signed = canonical({k: v for k, v in floor.items() if k != "signature"})
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(trusted[floor["signer"]])).verify(
        bytes.fromhex(floor["signature"]), b"edgemirror floor 1\0" + signed
    )
    assert all(trusted.get(name, public) == public for name, public in floor["keys"].items())
    return floor


def verify(segments: Iterable[bytes], floor: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Check a log from segment 0 on, or from a floor; return its headers."""
    start = floor or {}
    keys: dict[str, str] = dict(start.get("keys", {}))
    headers: list[dict[str, Any]] = []
    before, hash_before, epoch = b"", start.get("hash", ""), start.get("epoch", 0)
    for seq, data in enumerate(segments, start.get("seq", 0)):
        footer = pq.read_metadata(io.BytesIO(data)).metadata
        raw = footer[b"edgemirror.header"]
        header = json.loads(raw)
        assert header.get("format", 1) == 1 and canonical(header) == raw
        numbers_fit(header)
        assert header.get("seq", 0) == seq and header.get("epoch", 0) >= 0
        keys = keys or dict(header["keys"])
        public = bytes.fromhex(keys[header["holder"]])
        assert hashlib.sha256(public).hexdigest()[:16] == header["key_id"]
        signed = canonical({k: v for k, v in header.items() if k not in ("key_id", "signature")})
        Ed25519PublicKey.from_public_bytes(public).verify(
            bytes.fromhex(header["signature"]), b"edgemirror header 1\0" + signed
        )
        assert header.get("prev", "") == hash_before
        if header.get("prev_file") and before:
            assert header["prev_file"] == hashlib.sha256(before).hexdigest()
        assert header["epoch"] >= epoch
        assert footer[b"edgemirror.format"] == b"1"
        found = rows(data)
        assert found == sorted(found)
        places = pq.read_table(io.BytesIO(data), columns=["interval"])["interval"].to_pylist()
        assert all(place in range(len(header.get("intervals", []))) for place in places)
        assert len(found) == header.get("rows", 0) and digest(found) == header["body_digest"]
        facts = base64.b64decode(footer.get(b"edgemirror.facts", b""), validate=True)
        assert (hashlib.sha256(facts).hexdigest() if facts else "") == header.get("facts_sha256", "")
        if facts:
            header["facts"] = json.loads(zstandard.decompress(facts))
        for name, public in header.get("keys", {}).items():
            assert keys.setdefault(name, public) == public
        headers.append(header)
        before, hash_before, epoch = data, hashlib.sha3_256(raw).hexdigest(), header["epoch"]
    return headers
