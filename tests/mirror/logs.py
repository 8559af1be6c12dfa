"""A small real log in a store: what tests of verification damage."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror import segment
from mirror.batch import Batch, Kind, digest
from mirror.coverage import Coverage, Stream
from mirror.facts import encode_facts
from mirror.floor import sign_floor
from mirror.header import Header, canonical, chain_hash, key_id, public_hex, sign
from mirror.layout import Layout
from mirror.prefix import Prefix, Saved
from mirror.store import MemoryStore
from mirror.tags import Tag, TagTable

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
LAYOUT = Layout("plant", "g")
TAGS = TagTable([Tag("urn:x", "urn:ns", f"s=T{i}", unit="bar") for i in range(3)])
TICKS = 133_000_000_000_000_000


def rows(start: int, n: int) -> Batch:
    batch = Batch.zeros(n)
    batch.handle[:] = np.arange(n) % len(TAGS)
    batch.source_ticks[:] = TICKS + np.arange(start, start + n)
    batch.server_ticks[:] = batch.source_ticks
    batch.kind[:] = Kind.DOUBLE
    batch.bits[:] = np.arange(start, start + n, dtype=np.float64).view(np.uint64)
    return batch


class LogWriter:
    """Writes segments one after the other, as a leader would."""

    def __init__(self, store: MemoryStore | None = None, layout: Layout = LAYOUT, key: Ed25519PrivateKey = KEY) -> None:
        self.store, self.layout, self.key = store or MemoryStore(), layout, key
        self.seq, self.prev, self.file = 0, "", ""
        self.hashes: dict[int, str] = {}

    def write(self, n: int = 0, *, epoch: int = 1, facts: bool = False, signed_by: Ed25519PrivateKey | None = None,
              signed: bool = True, **fields: object) -> bytes:  # fmt: skip
        """Append a segment of n rows covering (10 seq, 10 seq + 10]."""
        batch = rows(100 * self.seq, n)
        told = encode_facts(TAGS.tags, {}) if facts else b""
        start = {
            "group": self.layout.group, "seq": self.seq, "epoch": epoch, "holder": "a", "incarnation": f"i{epoch}",
            "arbiter": "solo", "prev": self.prev, "prev_file": self.file, "rows": n,
            "body_digest": digest(batch, TAGS.identities, TAGS.rank).hex(),
            "intervals": (Coverage("s", "1-1", 10 * self.seq, 10 * self.seq + 10, "a"),) if n else (),
            "streams": (Stream("s", "urn:x"),) if n else (),
            "facts_sha256": hashlib.sha256(told).hexdigest() if facts else "",
            "keys": {} if self.seq else {"a": public_hex(self.key)},
        }  # fmt: skip
        header = sign(Header(**{**start, **fields}), signed_by or self.key)  # type: ignore[arg-type]
        if not signed:
            header = unsign(header)
        claims = len(msgspec.json.decode(header).get("intervals", ()))
        places = np.zeros(n, np.int32) if claims else None
        data = segment.encode(batch, TAGS, header, facts=told, intervals=places)
        self.file = hashlib.sha256(data).hexdigest()
        self.prev = self.hashes[self.seq] = chain_hash(header)
        self.store.put(
            self.layout.segment(self.seq), data, if_none_match=True, metadata={"chain": self.prev, "sha256": self.file}
        )
        self.seq += 1
        return data


def unsign(header: bytes) -> bytes:
    """Return the header without its signature."""
    bare = msgspec.json.decode(header)
    return canonical({k: v for k, v in bare.items() if k not in ("signature", "key_id")})


def resign(header: bytes, key: Ed25519PrivateKey = KEY, **members: object) -> bytes:
    """Return the header with other members under a genuine signature, whether our own code would write it or not."""
    bare = {k: v for k, v in {**msgspec.json.decode(header), **members}.items() if k not in ("signature", "key_id")}
    signature = key.sign(b"edgemirror header 1\0" + canonical(bare)).hex()
    return canonical({**bare, "key_id": key_id(public_hex(key)), "signature": signature})


def reseal(floor: bytes, key: Ed25519PrivateKey = KEY, **members: object) -> bytes:
    """Return a floor with other members under a genuine signature; None takes a member out."""
    changed = {**msgspec.json.decode(floor), **members}
    bare = {k: v for k, v in changed.items() if k != "signature" and v is not None}
    return canonical({**bare, "signature": key.sign(b"edgemirror floor 1\0" + canonical(bare)).hex()})


def below(writer: LogWriter, seq: int) -> Prefix:
    """Return the verified prefix of the first segments."""
    prefix = Prefix(Saved(writer.layout.group))
    for number in range(seq):
        data = segment.read_header(writer.store.objects[writer.layout.segment(number)].body)
        found = prefix.judge(data)
        assert isinstance(found, Header), found
        prefix.absorb(found, chain_hash(data), "")
    return prefix


def clean_up(writer: LogWriter, seq: int, floor: bytes | None = None) -> bytes:
    """Delete what is below a floor and put it there, that of the log itself where none is given; return it."""
    floor = sign_floor(below(writer, seq), "a", writer.key) if floor is None else floor
    for number in range(seq):
        writer.store.delete(writer.layout.segment(number))
    writer.store.put(writer.layout.floor, floor)
    return floor


def log(segments: int = 5, rows_each: int = 6) -> LogWriter:
    """Return a log of a fence and some segments."""
    writer = LogWriter()
    writer.write()
    for i in range(1, segments):
        writer.write(rows_each, facts=i == 1)
    return writer
