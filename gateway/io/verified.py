"""When the log was last proved: `edgemirror verify` tells the gateway on its box, by a file in the data directory.

The gateway owns the journal, so the verb cannot write there. The file names the log that was proved; what it
says of another bucket counts for nothing. It is replaced whole, or not at all.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.config import Config

FILE = "verified.json"


class Verified(msgspec.Struct, frozen=True):
    """The last verification that found nothing wrong.

    Attributes:
        log: Store, bucket and group.
        at: Unix seconds.
        next: Number of the segment after the last one.
    """

    log: str
    at: float
    next: int


def log_name(config: Config) -> str:
    """Return what tells the configured log from others."""
    return f"{config.sync.endpoint} {config.sync.bucket} {config.group.name}".strip()


def note(directory: Path, verified: Verified) -> None:
    """Replace what is known; OSError where the directory cannot be written."""
    part = directory / f"{FILE}.part"
    part.write_bytes(msgspec.json.encode(verified) + b"\n")
    part.replace(directory / FILE)


def last(directory: Path, log: str) -> Verified | None:
    """Return the last verification of a log; None if none is known."""
    try:
        found = msgspec.json.decode((directory / FILE).read_bytes(), type=Verified)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.log == log else None
