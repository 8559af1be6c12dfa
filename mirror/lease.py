"""The lease record that says which replica of a group may act.

One small object per group, in an arbiter's register, changes only by compare-and-swap. Each change of
holder brings a higher epoch, the fencing token in every segment. The record is never deleted: a release
keeps the epoch, so that the token cannot run backwards. Every renewal changes the bytes (`beat`), or a
register whose versions are made of the content could not tell it from the one before. No time is stored:
who waits, counts by himself from what he has seen.

What this module does not do: count (`gateway.failover`), or speak to a register (`gateway.io.registers`).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from mirror.errors import Corrupt

RECORD_BYTES_MAX = 1024
EPOCH_MAX = (1 << 53) - 1  # what every JSON reader can hold
NAME_MAX = 200


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who acts.

    Attributes:
        epoch: Of the present holder, or of the last one; never falls.
        holder: Replica that acts; empty while nobody does.
        incarnation: Random name of the holder's process.
        beat: Differs from that of the record before.
        wish: Replica that asks to act next; empty for none.
    """

    epoch: int
    holder: str
    incarnation: str
    beat: int
    wish: str = ""

    def encode(self) -> bytes:
        """Return the bytes that stand in the register."""
        return msgspec.json.encode(self)

    def released(self) -> Record:
        """Return the record as whoever held it leaves it: free, with its epoch."""
        return Record(self.epoch, "", "", self.beat + 1, self.wish)


def decode(data: bytes) -> Record:
    """Read a register's bytes.

    Raises:
        Corrupt: They are not a record: nobody may act on them, and nobody may write over them.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise Corrupt(f"{len(data)} bytes stand in the register; a lease record has at most {RECORD_BYTES_MAX}")
    try:
        record = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"what stands in the register is no lease record: {error}") from error
    if not 0 <= record.epoch <= EPOCH_MAX or not 0 <= record.beat <= EPOCH_MAX:
        raise Corrupt(f"a lease record of epoch {record.epoch} and beat {record.beat} cannot be")
    if max(len(record.holder), len(record.incarnation), len(record.wish)) > NAME_MAX:
        raise Corrupt("a lease record with a name as long as that cannot be")
    return record


class Register(Protocol):
    """One place for one record, with compare-and-swap; each call blocks, for a stated time at the most.

    All that a lease needs: of two swaps from one version one succeeds; a swap that was answered is seen by
    every later read; a swap without an answer may take effect later, and then only from its version.
    """

    @property
    def arbiter(self) -> str:
        """What tells this register from all others: kind and identity."""
        ...

    def read(self) -> tuple[Record | None, str]:
        """Return the record and its version; None and a version of its own where there is none yet.

        Raises:
            Unavailable: Nobody answered in time.
            Corrupt: What stands there is no record.
            ConfigError: The operator has to change something.
        """
        ...

    def swap(self, record: Record, version: str) -> str:
        """Write the record where the version still stands; return the new version.

        Raises:
            Conflict: Another version stands there.
            Unavailable: Nobody answered in time: it may have happened, or happen yet.
            ConfigError: The operator has to change something.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


_DECODER = msgspec.json.Decoder(Record)
