"""The verified beginning of a log, folded: where it ends, who may write, what it promises.

"Pushed" is nothing but this: an interval of publish time is pushed when it lies in the promise of the
verified prefix. No row carries a mark and no counter says how far pushing has come, so there is nothing
that could disagree with the log. A prefix is a function of the headers absorbed and of nothing else;
it may be saved, and lost, and read again from the log.

What it does not do: read the log (`mirror.chain`) or judge a header by itself (`mirror.header`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mirror.coverage import Coverage, Promise
from mirror.errors import Corrupt
from mirror.header import Finding, Flaw, Header, canonical, examine, rekeyed

SOLO = "solo"  # the arbiter of a replica that is alone


class Saved(msgspec.Struct, omit_defaults=True):
    """A `Prefix` on disk, or in `floor.json`, where `seq` is the lowest sequence still kept.

    `genesis` is the chain hash of segment 0: it tells this log from another of the same group and keys.
    """

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
    genesis: str = ""


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

    def barred(
        self, replica: str, public: str, arbiter: str, keys: Mapping[str, str], replaces: str = ""
    ) -> tuple[str, str] | None:
        """Return why a replica may not lead this log, and what to do about it; None if it may.

        Args:
            replica: Its name.
            public: Its key, in hex.
            arbiter: Who says that it leads.
            keys: Those that its first segment would enrol.
            replaces: An arbiter whose place that one has taken; `solo` may always be followed by another, since
                who led so is fenced for good.
        """
        at = self.at
        if at.seq and at.keys.get(replica) != public:
            owners = ", ".join(sorted(at.keys))
            return (
                f"the log belongs to {owners}; the key of {replica!r} is not enrolled in it",
                "set another group.name or prefix, or enrol this replica's key",
            )
        if at.arbiter not in ("", SOLO, arbiter, replaces):
            return (
                f"the log was led under arbiter {at.arbiter!r}, and this replica has {arbiter!r}",
                "give all replicas of the group the same [arbiter]; where the former one is gone for good, say so: "
                f'arbiter.replaces = "{at.arbiter}"',
            )
        if (name := rekeyed(at.keys, keys)) is not None:
            return f"{name!r} has another key in the log", "give all replicas of the group the same keys"
        return None

    def altered(self, header: Header) -> Finding | None:
        """Return a finding if the next header names other bytes than those that stand under the last name."""
        file = self.at.file
        if not header.prev_file or not file or header.prev_file == file:
            return None
        return Finding(header.seq - 1, Flaw.ALTERED, "its bytes are not those that its successor names")

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
        at.genesis = at.genesis if header.seq else digest
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
        """Step over segments that cannot be used: the hash of the last one is known from its genuine successor.

        What they claimed and told was never taken in, so it counts as neither pushed nor told.
        """
        assert successor.seq >= self.at.seq
        if successor.seq == 1:
            self.at.genesis = successor.prev
        self.at.seq, self.at.hash, self.at.file = successor.seq, successor.prev, successor.prev_file
