"""The verified beginning of a log, folded: where it ends, who may write, what it promises.

"Pushed" is nothing but this: an interval of publish time is pushed when it lies in the promise of the
verified prefix. No row carries a mark and no counter says how far pushing has come, so there is nothing
that could disagree with the log. A prefix is a function of the headers absorbed and of nothing else;
it may be saved, and lost, and read again from the log.

What it does not do: read the log (`mirror.chain`) or judge a header by itself (`mirror.header`).
"""

from __future__ import annotations

import msgspec

from mirror.coverage import Coverage, Promise
from mirror.errors import Corrupt
from mirror.header import Finding, Flaw, Header, canonical, examine

#: Of `floor.json`, which anybody with the bucket's keys can write; a million gaps or claims fit.
FLOOR_BYTES_MAX = 64 * 2**20


class Saved(msgspec.Struct, omit_defaults=True):
    """A `Prefix` on disk, or in `floor.json`, where `seq` is the lowest sequence still kept."""

    group: str
    seq: int = 0
    hash: str = ""
    file: str = ""
    epoch: int = 0
    holder: str = ""
    incarnation: str = ""
    arbiter: str = ""
    keys: dict[str, str] = {}
    facts: str = ""
    told: dict[str, str] = {}
    claims: list[Coverage] = []


class Prefix:
    """The verified beginning of the log: segments 0 to `seq - 1`.

    Attributes:
        at: Where it ends and what is known there; `at.claims` is empty, see `promise`.
        promise: What its segments promise together.
    """

    def __init__(self, at: Saved, promise: Promise | None = None) -> None:
        self.promise = Promise(at.claims) if promise is None else promise
        self.at = msgspec.structs.replace(at, keys=dict(at.keys), told=dict(at.told), claims=[])

    @staticmethod
    def load(data: bytes, promise: Promise | None = None) -> Prefix:
        """Return what `save` returned; `promise` if that was kept elsewhere. Raises Corrupt."""
        try:
            return Prefix(msgspec.json.decode(data, type=Saved), promise)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Corrupt(f"the saved end of the log cannot be read: {error}") from error

    def save(self, *, claims: bool = True) -> bytes:
        """Return the prefix as bytes; without the promise if that is kept elsewhere."""
        return canonical(msgspec.structs.replace(self.at, claims=self.promise.claims() if claims else []))

    def judge(self, data: bytes) -> Header | Finding:
        """Judge what stands under the name after the prefix."""
        at = self.at
        found = examine(data, at.group, at.keys, at.seq)
        if isinstance(found, Finding):
            return found
        if found.prev != at.hash:
            return Finding(
                at.seq, Flaw.FORK, f"it follows {found.prev[:16] or 'nothing'}, not {at.hash[:16] or 'nothing'}"
            )
        if found.epoch < at.epoch:
            return Finding(at.seq, Flaw.EPOCH, f"epoch {found.epoch} after epoch {at.epoch}")
        if found.epoch == at.epoch and (found.holder, found.incarnation) != (at.holder, at.incarnation):
            return Finding(at.seq, Flaw.EPOCH, f"{found.holder!r} and {at.holder!r} both wrote in epoch {at.epoch}")
        return found

    def absorb(self, header: Header, digest: str, file: str) -> None:
        """Take in a segment that `judge` found good.

        Args:
            header: Its header.
            digest: Its `chain_hash`.
            file: SHA-256 of the object's bytes in hex, or empty if unknown.
        """
        at = self.at
        assert header.seq == at.seq
        assert header.prev == at.hash
        assert header.epoch >= at.epoch
        at.seq, at.hash, at.file = header.seq + 1, digest, file
        at.epoch, at.holder, at.incarnation, at.arbiter = (
            header.epoch,
            header.holder,
            header.incarnation,
            header.arbiter,
        )
        at.keys.update(header.keys)
        at.facts = header.facts_sha256 or at.facts
        for gap in header.gaps:
            at.told[gap.id] = gap.extent
        for closing in header.closures:
            at.told[closing.gap] = "closed"
        for claim in header.intervals:
            self.promise.add(claim)

    def skip(self, successor: Header) -> None:
        """Step over segments that cannot be used: the hash of the last one is known from its genuine successor."""
        assert successor.seq >= self.at.seq
        self.at.seq, self.at.hash, self.at.file = successor.seq, successor.prev, successor.prev_file
