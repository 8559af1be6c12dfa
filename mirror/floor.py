"""The floor: the lowest segment that is still kept, and what the log said below it, signed.

Clean-up deletes the oldest segments, and with them what a reader begins with: who may write, the hash
that the first kept segment has to follow, what was promised and told. `floor.json` keeps that; it is the
verified prefix below the floor. The segments that would prove it are gone, so it counts by its signature
alone: the signer's key has to be one that the reader trusts already, from the part of the log that he
has verified himself or from elsewhere. A reader who knows nothing believes the keys that the file
itself names, as he would believe those of segment 0.

What this module does not do: choose a floor, write the file or delete anything, or compare it with what
the reader remembers (`mirror.chain`, `mirror.verify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror.header import (
    FLOOR,
    Finding,
    Flaw,
    canonical,
    check_claims,
    check_keys,
    check_numbers,
    is_signed,
    public_hex,
    rekeyed,
)
from mirror.prefix import Prefix, Saved

FORMAT = 1
FLOOR_BYTES_MAX = 64 * 1024 * 1024  # anybody with the bucket's keys can write one; a million gaps or claims fit

_DOMAIN = b"edgemirror floor 1\0"


class Floor(NamedTuple):
    """A floor that counts: the prefix below the lowest segment kept, `below.seq`, and who signed it."""

    below: Saved
    signer: str


class Known:
    """What a reader knows of the floor: the highest that counted. A floor never goes back.

    Attributes:
        floor: None before the first that counted.
        flaw: Why what stands in `floor.json` now does not count; None if it does, or nothing stands there.
    """

    def __init__(self) -> None:
        self.floor: Floor | None = None
        self.flaw: Finding | None = None
        self._data: bytes | None = None

    @property
    def seq(self) -> int:
        """The lowest segment kept."""
        return 0 if self.floor is None else self.floor.below.seq

    def learn(self, data: bytes | None, at: Saved) -> Finding | None:
        """Take in what stands in `floor.json`; what does not count changes nothing.

        Args:
            data: Its bytes; None if there is no such object.
            at: Whose keys are trusted: the end of what the reader has verified.

        Returns:
            What is wrong with it, if that is news.
        """
        if data is None or data == self._data:
            self.flaw = None
            return None
        found, before = examine_floor(data, at.group, at.keys, at.genesis), self.flaw
        if isinstance(found, Finding):
            self.flaw = found
            return None if found == before else found
        self._data, self.flaw = data, None
        if found.below.seq > self.seq:
            self.floor = found
        return None


class _Seal(msgspec.Struct, omit_defaults=True):
    """What `floor.json` has beside the members of `Saved`."""

    format: int = FORMAT
    signer: str = ""
    signature: str = ""


def sign_floor(below: Prefix, signer: str, key: Ed25519PrivateKey) -> bytes:
    """Return `floor.json` for a log of which segments are kept from `below.at.seq` on.

    Args:
        below: The verified prefix; not empty, and not the whole log: the newest segment is always kept.
        signer: Whose key it is. Readers accept it where that key is enrolled in what they have verified.
        key: The signing key.
    """
    bare = {**msgspec.json.decode(below.save()), "signer": signer}
    data = canonical({**bare, "signature": key.sign(_DOMAIN + canonical(bare)).hex()})
    found = examine_floor(data, below.at.group, {**below.at.keys, signer: public_hex(key)})
    assert isinstance(found, Floor), f"nobody could accept this floor: {found}"
    return data


def examine_floor(data: bytes, group: str, keys: Mapping[str, str], genesis: str = "") -> Floor | Finding:
    """Judge what stands in `floor.json`.

    Args:
        data: All of it.
        group: Whose log it should be of.
        keys: Replicas that the reader trusts -> public key in hex. Empty: he knows nobody, and believes
            the keys in the file.
        genesis: Chain hash of segment 0 if the reader knows it: a floor of another log does not count.

    Returns:
        The floor, or what is wrong with it.
    """
    parsed = _parse(data)
    if isinstance(parsed, str):
        return Finding(FLOOR, Flaw.UNREADABLE, parsed)
    bare, seal, below = parsed
    if seal.format != FORMAT:
        return Finding(FLOOR, Flaw.NEWER, f"format {seal.format}; this program knows {FORMAT}")
    if below.group != group:
        return Finding(FLOOR, Flaw.FOREIGN, f"it belongs to group {below.group!r}")
    if not seal.signature:
        return Finding(FLOOR, Flaw.UNSIGNED, f"no signature of {seal.signer!r}")
    trusted = keys or below.keys
    if (public := trusted.get(seal.signer)) is None:
        return Finding(FLOOR, Flaw.FOREIGN, f"its signer, {seal.signer!r}, is nobody whose key is trusted here")
    if not is_signed(_DOMAIN, bare, seal.signature, public):
        return Finding(FLOOR, Flaw.MIS_SIGNED, f"the signature does not fit the key of {seal.signer!r}")
    if (name := rekeyed(trusted, below.keys)) is not None:
        return Finding(FLOOR, Flaw.REKEYED, f"{seal.signer!r} gives another key to {name!r}")
    if genesis and below.genesis != genesis:
        told = f"its log begins with {below.genesis[:16]}, and this one with {genesis[:16]}"
        return Finding(FLOOR, Flaw.FOREIGN, told)
    return Floor(below, seal.signer)


def _parse(data: bytes) -> tuple[dict[str, Any], _Seal, Saved] | str:
    """Return the floor without its signature, in parts, or what is wrong with the text."""
    if len(data) > FLOOR_BYTES_MAX:
        return f"{len(data)} bytes; {FLOOR_BYTES_MAX} is the most"
    try:
        bare = msgspec.json.decode(data)
        if not isinstance(bare, dict) or canonical(bare) != data:
            return "it is not canonical JSON"
        seal = msgspec.convert(bare, _Seal)
        if seal.format != FORMAT:  # then nothing else may mean what it means here
            return bare, seal, Saved("")
        below = msgspec.convert(bare, Saved)
        check_numbers(bare)
        check_keys(below.keys)
        check_claims(below.claims)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"it cannot be read: {error}"
    if below.seq < 1 or below.epoch < 0 or {len(below.hash), len(below.genesis)} != {64}:
        return f"no log ends before segment {below.seq} with hash {below.hash[:16]!r}"
    bare.pop("signature", None)
    return bare, seal, below
