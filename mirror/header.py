"""The header of a segment: what it holds, who wrote it, and where it stands in the log.

A header is canonical JSON (keys sorted, no spaces, UTF-8) in the segment's footer. The writer signs it
with its Ed25519 key, and the next header carries its hash; so each header proves all before it. The
samples are named by a digest of their content, not of the file, so that a copy in another encoding can
still be proved equal; the file's own bytes are named by the next header (`prev_file`).

`examine` is the one judge of a header: the machine that appends, the walk that verifies and a reader
all ask it. What it does not do: look at the samples, or at the neighbours in the log (`mirror.chain`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mirror.coverage import Closure, Coverage, Gap, Stream
from mirror.errors import Corrupt

FORMAT = 1
HEADER_BYTES_MAX = 16 * 1024 * 1024
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FLOOR = -1  # stands for floor.json where a finding has a segment's number

_DOMAIN = b"edgemirror header 1\0"
_SIGNATURE_FIELDS = ("key_id", "signature")


class Flaw(StrEnum):
    """What can be wrong with a segment."""

    MISSING = "missing"  # no object has its name
    UNREADABLE = "unreadable"  # cut off, or not a segment at all
    ALTERED = "altered"  # its bytes are not those that were written
    MISPLACED = "misplaced"  # a genuine segment of this log under another's name: swapped or replayed
    UNSIGNED = "unsigned"
    MIS_SIGNED = "mis-signed"  # the signature does not fit: altered or forged
    FOREIGN = "foreign"  # of another log, or signed by a key that is not enrolled
    REKEYED = "re-keyed"  # gives another key to a name that has one
    FORK = "fork"  # genuine, but the successor of another segment than the one before
    EPOCH = "epoch"  # of an older leader, or of a second one in the same epoch
    NEWER = "newer"  # of a format that this program does not know


class Finding(NamedTuple):
    """One flaw of one segment, or of `floor.json` where `seq` is FLOOR."""

    seq: int
    flaw: Flaw
    detail: str

    @property
    def place(self) -> str:
        """What it is about, in words."""
        return "floor.json" if self.seq == FLOOR else f"segment {self.seq}"

    def __str__(self) -> str:
        return f"{self.place} is {self.flaw}: {self.detail}"


class Closing(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a gap ended: its id, by what, and the publish time at which it ended."""

    gap: str
    by: Closure
    reason: str = ""
    end: int | None = None


class Handover(msgspec.Struct, frozen=True):
    """One stream goes on as another: the old one's last covered publish time, and the new one's timeline."""

    old: str
    timeline: str
    at: int
    new: str
    new_timeline: str


class Clock(msgspec.Struct, frozen=True):
    """The kernel's own judgement of the writer's clock: microseconds, and whether it is disciplined."""

    error_us: int
    error_max_us: int
    synchronized: bool


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a segment says of itself.

    Attributes:
        format: 1.
        group: Name of the group.
        seq: Its number, also in its name.
        epoch: The leader's fencing token; never falls along the log.
        holder: Name of the replica that wrote it.
        incarnation: Random name of that process: one epoch has one.
        arbiter: Who decided that it leads, such as `solo`.
        prev: `chain_hash` of the header before; empty in segment 0.
        prev_file: SHA-256 of the bytes of the object before; empty where the writer did not know it.
        body_digest: `mirror.batch.digest` of the rows.
        rows: How many there are; 0 in a fence segment.
        intervals: What it claims to complete (`Coverage`).
        streams: Each stream that `intervals` or `gaps` name.
        gaps: Gaps found or ended since the last segment.
        closures: Gaps closed since.
        handovers: Streams that go on as others.
        classes: Identity of a tag -> `S` or `U`, where it became known.
        facts_sha256: Of the facts in the footer; empty if it has none.
        sources: ApplicationUri -> namespace array.
        clock: Of the writer, if it could be read.
        keys: Replicas enrolled by this segment -> raw Ed25519 public key in hex. Segment 0 enrols its
            own writer; later keys count because an enrolled writer signed them. A name keeps its key.
        key_id: See `key_id`; not under the signature.
        signature: Ed25519 over everything else, in hex.
    """

    format: int = FORMAT
    group: str = ""
    seq: int = 0
    epoch: int = 0
    holder: str = ""
    incarnation: str = ""
    arbiter: str = ""
    prev: str = ""
    prev_file: str = ""
    body_digest: str = ""
    rows: int = 0
    intervals: tuple[Coverage, ...] = ()
    streams: tuple[Stream, ...] = ()
    gaps: tuple[Gap, ...] = ()
    closures: tuple[Closing, ...] = ()
    handovers: tuple[Handover, ...] = ()
    classes: dict[str, str] = {}
    facts_sha256: str = ""
    sources: dict[str, tuple[str, ...]] = {}
    clock: Clock | None = None
    keys: dict[str, str] = {}
    key_id: str = ""
    signature: str = ""


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces."""
    return msgspec.json.encode(value, order="sorted")


def chain_hash(header: bytes) -> str:
    """Return the SHA3-256 of a signed header, in hex: what the next header carries as `prev`."""
    return hashlib.sha3_256(header).hexdigest()


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the raw public key in hex, as `Header.keys` holds it."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """Return the short name of a public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def sign(header: Header, key: Ed25519PrivateKey) -> bytes:
    """Return the signed header as it stands in the footer."""
    bare = msgspec.to_builtins(msgspec.structs.replace(header, key_id="", signature=""))
    signature = key.sign(_DOMAIN + canonical(bare)).hex()
    data = canonical({**bare, "key_id": key_id(public_hex(key)), "signature": signature})
    assert header.format != FORMAT or not isinstance(_parse(data), str), "a header that cannot be read again"
    assert len(data) <= HEADER_BYTES_MAX, f"a header of {len(data)} bytes; tell fewer gaps at a time"
    return data


def examine(data: bytes, group: str, keys: Mapping[str, str], seq: int) -> Header | Finding:
    """Judge a header by itself.

    Args:
        data: As it stands in the footer.
        group: Whose log it should be in.
        keys: Enrolled replicas -> public key in hex. Empty: segment 0 may enrol its own writer.
        seq: The number in the object's name.

    Returns:
        The header if it is genuine and in its place, else what is wrong with it.
    """
    parsed = _parse(data)
    if isinstance(parsed, str):
        return Finding(seq, Flaw.ALTERED, parsed)
    bare, header = parsed
    if header.format != FORMAT:
        return Finding(seq, Flaw.NEWER, f"format {header.format}; this program knows {FORMAT}")
    if header.group != group:
        return Finding(seq, Flaw.FOREIGN, f"it belongs to group {header.group!r}")
    if not header.signature:
        return Finding(seq, Flaw.UNSIGNED, f"no signature of {header.holder!r}")
    if not keys and header.seq == 0:
        keys = header.keys
    public = keys.get(header.holder)
    if public is None:
        return Finding(seq, Flaw.FOREIGN, f"replica {header.holder!r} is not enrolled")
    if header.key_id != key_id(public):
        return Finding(seq, Flaw.FOREIGN, f"key {header.key_id} is not the one enrolled for {header.holder!r}")
    if not is_signed(_DOMAIN, bare, header.signature, public):
        return Finding(seq, Flaw.MIS_SIGNED, f"the signature of {header.holder!r} does not fit")
    if header.seq != seq:
        return Finding(seq, Flaw.MISPLACED, f"it is segment {header.seq} of this log")
    if (name := rekeyed(keys, header.keys)) is not None:
        return Finding(seq, Flaw.REKEYED, f"{header.holder!r} gives another key to {name!r}")
    return header


def rekeyed(known: Mapping[str, str], keys: Mapping[str, str]) -> str | None:
    """Return the first name that has another key in `keys` than it has in `known`; None if there is none."""
    return next((name for name, public in sorted(keys.items()) if known.get(name, public) != public), None)


def check(data: bytes, group: str, keys: Mapping[str, str], seq: int) -> Header:
    """Return a genuine header; see `examine`.

    Raises:
        Corrupt: It is not genuine, or not in its place.
    """
    found = examine(data, group, keys, seq)
    if isinstance(found, Finding):
        raise Corrupt(str(found))
    return found


def _parse(data: bytes) -> tuple[dict[str, Any], Header] | str:
    """Return the header without its signature and the header, or what is wrong with the text."""
    if len(data) > HEADER_BYTES_MAX:
        return f"a header of {len(data)} bytes; {HEADER_BYTES_MAX} is the most"
    try:
        bare = msgspec.json.decode(data)
        if not isinstance(bare, dict) or canonical(bare) != data:
            return "the header is not canonical JSON"
        # Fields that a later program added stay in `bare`: they are under its signature.
        if bare.get("format", FORMAT) != FORMAT:  # then nothing else may mean what it means here
            return bare, msgspec.convert({"format": bare["format"]}, Header)
        header = msgspec.convert(bare, Header)
        check_numbers(bare)
        _check_members(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"the header cannot be read: {error}"
    for name in _SIGNATURE_FIELDS:
        bare.pop(name, None)
    return bare, header


def check_numbers(value: Any) -> None:
    """Raise ValueError if an integer in a decoded JSON text does not fit into an int64: SQLite could not hold it."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
        elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
            raise ValueError(f"{value} is no 64-bit integer")


def check_keys(keys: Mapping[str, str]) -> None:
    """Raise ValueError if a value is not 32 bytes in the one spelling of hex."""
    for name, public in keys.items():
        if len(raw := bytes.fromhex(public)) != 32 or raw.hex() != public:
            raise ValueError(f"the key of {name!r} is not 32 bytes in hex")


def check_claims(claims: Iterable[Coverage]) -> None:
    """Raise ValueError if an interval is empty."""
    if any(claim.end <= claim.start for claim in claims):
        raise ValueError("an interval ends before it begins")


def _check_members(header: Header) -> None:
    if header.seq < 0 or header.epoch < 0:
        raise ValueError("seq and epoch begin at 0")
    check_keys(header.keys)
    check_claims(header.intervals)


def is_signed(domain: bytes, bare: Mapping[str, Any], signature: str, public: str) -> bool:
    """Tell whether a signature in hex fits what it is cut out of: the canonical JSON of `bare` behind its domain."""
    try:
        raw = bytes.fromhex(signature)
        if raw.hex() != signature:  # the same 64 bytes in another spelling would be another header
            return False
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(raw, domain + canonical(bare))
    except (InvalidSignature, ValueError):
        return False
    return True
