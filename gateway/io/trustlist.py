"""The trust folder and the one of the refused beside it: who is in them, and how a person moves one over.

A server's certificate that is refused is kept in `rejected`, beside the trust folder, with the reason in words,
so that a person can compare it with the device and accept it. The folder is bounded: whoever can make this
gateway connect could otherwise fill the disk. The certificate that was refused last stays.

What it does not do: decide who is trusted (`gateway.io.trust`); nobody is ever trusted by this module alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.io import trust
from gateway.io.files import write_new
from gateway.io.trust import SUFFIXES
from gateway.offer import CertificateFacts, certificate_facts
from mirror.errors import ConfigError, Corrupt, MirrorError

REJECTED = "rejected"
REJECTED_MAX = 64
CERTIFICATE_BYTES_MAX = 64 << 10  # a longer one is not kept
LOOK_S = 2.0  # between two looks at the folder while a session stands
PREFIX_MIN = 4  # characters of a thumbprint that a person types at least


class Refusal(msgspec.Struct, frozen=True):
    """Why and when a certificate was refused; `source` is its name in the configuration."""

    reason: str = ""
    source: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A certificate in one of the two folders.

    Attributes:
        state: `trusted` or `rejected`.
        file: Where it stands.
        trust_dir: The trust folder that it belongs to.
        facts: What a person compares.
        refusal: Of a rejected one; empty where nobody told.
    """

    state: str
    file: Path
    trust_dir: Path
    facts: CertificateFacts
    refusal: Refusal


def rejected(trust_dir: Path) -> Path:
    """Return the folder of the refused that belongs to a trust folder."""
    return trust_dir.with_name(REJECTED)


def check(der: bytes, uri: str, source: str, trust_dir: str) -> None:
    """Check the certificate of a server; one that is refused is kept beside the trust folder.

    Raises:
        ConfigError: It is not trusted, and why.
    """
    now = datetime.now(UTC)
    try:
        trust.check(der, uri, trust_dir, now)
    except ConfigError as error:
        note(der, source, str(error), Path(trust_dir), now)
        raise


def note(der: bytes, source: str, reason: str, trust_dir: Path, now: datetime) -> None:
    """Keep a refused certificate and why; a disk that refuses stops nobody."""
    if len(der) > CERTIFICATE_BYTES_MAX:
        return
    folder = rejected(trust_dir)
    file = folder / f"{hashlib.sha1(der, usedforsecurity=False).hexdigest()}.der"
    refusal = Refusal(reason, source, now.isoformat(timespec="seconds"))
    with contextlib.suppress(OSError, MirrorError):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not file.exists():
            others = sorted(folder.glob("*.der"), key=lambda f: f.stat().st_mtime)
            for old in others[: max(0, len(others) - REJECTED_MAX + 1)]:
                _remove(old)
            write_new(file, der, 0o644)
        known = _refusal(file)
        if (known.reason, known.source) != (reason, source):
            file.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(refusal)))


def entries(trust_dirs: Iterable[Path]) -> list[Entry]:
    """Return all certificates in trust folders and the folders of the refused beside them, trusted ones first."""
    found: list[Entry] = []
    for trust_dir in sorted(set(trust_dirs)):
        for state, folder in (("trusted", trust_dir), (REJECTED, rejected(trust_dir))):
            for file in sorted(folder.glob("*")):
                if file.suffix.lower() in SUFFIXES:
                    with contextlib.suppress(OSError, Corrupt):  # `check` tells of files that are none
                        facts = certificate_facts(_der(file.read_bytes()))
                        found.append(Entry(state, file, trust_dir, facts, _refusal(file)))
    return found


def find(known: Iterable[Entry], thumbprint: str, state: str = "") -> list[Entry]:
    """Return the entries whose SHA-1 or SHA-256 thumbprint begins so; all of them are the same certificate.

    Raises:
        ConfigError: None does, several certificates do, or the text is too short to be meant.
    """
    wanted = "".join(c for c in thumbprint if c.isalnum()).upper()
    if len(wanted) < PREFIX_MIN:
        raise ConfigError(f"{thumbprint!r} is too short; type at least {PREFIX_MIN} digits of the thumbprint")
    found = [e for e in known if e.facts.sha1.startswith(wanted) or e.facts.sha256.startswith(wanted)]
    if len({e.facts.sha256 for e in found}) > 1:
        raise ConfigError(f"{thumbprint} is the beginning of several thumbprints; type more of it",
                          hint="edgemirror trust list")  # fmt: skip
    chosen = [e for e in found if not state or e.state == state]
    if not chosen:
        where = f" among the {state}" if state else ""
        already = f", it is {found[0].state}" if found else ""
        raise ConfigError(f"no certificate{where} has the thumbprint {thumbprint}{already}",
                          hint="edgemirror trust list")  # fmt: skip
    return chosen


def accept(entry: Entry) -> Path:
    """Put a refused certificate into its trust folder; return its file there."""
    return _move(entry, entry.trust_dir)


def reject(entry: Entry, now: datetime) -> Path:
    """Take a trusted certificate out of its folder; return its file among the refused."""
    file = _move(entry, rejected(entry.trust_dir))
    refusal = Refusal("taken out of the trust folder by hand", "", now.isoformat(timespec="seconds"))
    with contextlib.suppress(OSError):
        file.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(refusal)))
    return file


def _move(entry: Entry, folder: Path) -> Path:
    """Write the certificate under its thumbprint where it shall be, durable, and only then take it away."""
    file = folder / f"{entry.facts.sha1.lower()}.der"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            write_new(file, _der(entry.file.read_bytes()), 0o644)
        _remove(entry.file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint=f"ls -ld {folder}") from error
    return file


def fingerprint(trust_dir: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what tells one state of a trust folder from another."""
    with contextlib.suppress(OSError), os.scandir(trust_dir) as found:
        return tuple(sorted((f.name, (s := f.stat()).st_mtime_ns, s.st_size) for f in found))
    return ()


async def watch(trust_dir: Path, check: Callable[[], None]) -> None:
    """Check again whenever the trust folder has changed, until cancelled.

    Raises:
        ConfigError: From `check`: the server is not trusted any more.
    """
    seen = await asyncio.to_thread(fingerprint, trust_dir)
    while True:
        await asyncio.sleep(LOOK_S)
        now = await asyncio.to_thread(fingerprint, trust_dir)
        if now != seen:
            await asyncio.to_thread(check)
            seen = now


def _refusal(file: Path) -> Refusal:
    try:
        return msgspec.json.decode(file.with_suffix(".json").read_bytes(), type=Refusal)
    except (OSError, msgspec.MsgspecError):
        return Refusal()


def _remove(file: Path) -> None:
    file.unlink()
    file.with_suffix(".json").unlink(missing_ok=True)


def _der(data: bytes) -> bytes:
    """Return the DER of a certificate that may be PEM; Corrupt if it is neither."""
    if not data.startswith(b"-----"):
        return data
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError as error:
        raise Corrupt(f"no certificate: {error}") from error
