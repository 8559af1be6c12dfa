"""Look at what a configuration names: files, rights, certificates, the data directory, and who answers.

Nothing is changed anywhere. In the data directory a scratch file is written and removed; in the bucket the
probe's scratch objects are; at the broker another client id is used, so that a running gateway keeps its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.browse import excluder
from gateway.capabilities import Capabilities
from gateway.checkup import RENEW, Finding, validity
from gateway.config import Config, Source
from gateway.formats.json_uns import Message
from gateway.io.browse import variables
from gateway.io.discover import capabilities, discover
from gateway.io.identity import load_pair
from gateway.io.mqtt import Broker, Link, Phase, Status, tls_hint
from gateway.io.opcua import Connection
from gateway.io.opening import log_layout, open_store, read_secret
from gateway.io.reader import JournalReader
from gateway.io.runtime import JOURNAL
from gateway.io.trust import application_uri
from gateway.offer import SECURITIES
from mirror.errors import ConfigError, MirrorError, Unavailable
from mirror.io.s3 import together
from mirror.probe import probe

PUBLIC_FILES = (
    "ca_file",
    "certificate_file",
    "user_certificate_file",
)  # all other files that settings name are secrets
CERTIFICATE_SUFFIXES = (".der", ".cer", ".crt", ".pem")
CONNECT_S = 10.0
ROUND_TRIPS = 5
TOGETHER = 8  # servers asked at once
_VALUE = 13
_SERVER_STATE = "i=2259"


def offline(config: Config) -> list[Finding]:
    """Return what this box alone can tell."""
    found: list[Finding] = []
    for part, name, path in named_files(config):
        found += _file(part, name, path)
    for source in config.source:
        if source.security != "none":
            found += _certificates(source)
        if source.user_certificate_file:
            found += _user_certificate(source)
    return found + _data_dir(config)


def named_files(table: Any, part: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (part, setting, path) of every file that a setting names."""
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if name.endswith("_file") and isinstance(value, str) and value:
            yield part, name, value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, msgspec.Struct):
                yield from named_files(inner, f"{name} {inner.name}" if hasattr(inner, "name") else name)


def _file(part: str, name: str, path: str) -> list[Finding]:
    """Check that a file is there, can be read and is not empty; a secret, that nobody else can read it."""
    where = f"{part}.{name}" if " " not in part else f"{part}, {name}"
    file = Path(path)
    try:
        if not file.is_file():
            return [Finding("failed", where, f"{path} is no file", f"ls -l {path}")]
        data = file.read_bytes()
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        return [Finding("failed", where, f"{path}: {error.strerror}", f"ls -l {path}; the gateway's user must read it")]
    if not data.strip():
        return [Finding("failed", where, f"{path} is empty", f"write the secret into {path}")]
    if name not in PUBLIC_FILES and mode & 0o077:
        return [Finding("warning", where, f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}")]
    if name == "ca_file":
        return _authorities(where, path, data)
    return []


def _authorities(where: str, path: str, data: bytes) -> list[Finding]:
    """Judge the certificates of a CA file: it serves as long as one of them does."""
    now = datetime.now(UTC)
    try:
        loaded = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        return [Finding("failed", where, f"{path} holds no certificates in PEM: {error}", f"file {path}")]
    judged = [validity(where, c.not_valid_before_utc, c.not_valid_after_utc, now, "ask for a new one") for c in loaded]
    order = {"ok": 0, "warning": 1, "failed": 2, "away": 3}
    return [min(judged, key=lambda finding: order[finding.level])]


def _certificates(source: Source) -> list[Finding]:
    """Check this gateway's certificate and key for a source, and the certificates that it trusts."""
    found: list[Finding] = []
    where, now = f"source {source.name}", datetime.now(UTC)
    with contextlib.suppress(OSError):  # told by _file
        try:
            certificate = x509.load_der_x509_certificate(Path(source.certificate_file).read_bytes())
            application_uri(source.certificate_file)
            found.append(validity(f"{where}, certificate_file", certificate.not_valid_before_utc,
                                  certificate.not_valid_after_utc, now, RENEW))  # fmt: skip
            key = load_pem_private_key(Path(source.key_file).read_bytes(), None)
            form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
                found.append(Finding("failed", f"{where}, key_file", "is not the key of certificate_file",
                                     "name the two files that belong together"))  # fmt: skip
        except (ValueError, TypeError) as error:
            found.append(Finding("failed", where, f"certificate_file or key_file cannot be read: {error}",
                                 "use a certificate in DER and a key in PEM without a password"))  # fmt: skip
        except ConfigError as error:
            found.append(Finding("failed", f"{where}, certificate_file", str(error), error.hint))
    return found + _trusted(where, Path(source.trust_dir), now)


def _user_certificate(source: Source) -> list[Finding]:
    """Check the certificate and key with which the source's user logs in."""
    part = f"source {source.name}, user_certificate_file"
    try:
        certificate, _ = load_pair(source.user_certificate_file, source.user_key_file)
    except ConfigError as error:
        return [Finding("failed", part, str(error), error.hint)]
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return [validity(part, begin, end, datetime.now(UTC), "ask for a new one")]


def _trusted(where: str, folder: Path, now: datetime) -> list[Finding]:
    if not folder.is_dir():
        return [Finding("failed", f"{where}, trust_dir", f"{folder} is no folder", f"mkdir -p {folder}")]
    try:
        files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in CERTIFICATE_SUFFIXES]
        if not files:
            return [Finding("failed", f"{where}, trust_dir", f"{folder} holds no certificate: nobody is trusted",
                            "edgemirror init shows the server's certificate and how to accept it")]  # fmt: skip
        found = []
        for file in files:
            data = file.read_bytes()
            pem = data.startswith(b"-----")
            certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
            finding = validity(f"{where}, {file.name}", certificate.not_valid_before_utc,
                               certificate.not_valid_after_utc, now, "the device needs a new certificate")  # fmt: skip
            found += [finding] if finding.level != "ok" else []
        return found or [Finding("ok", f"{where}, trust_dir", f"{len(files)} certificates, none about to expire")]
    except OSError as error:
        return [Finding("failed", f"{where}, trust_dir", f"{folder}: {error.strerror}", f"ls -ld {folder}")]
    except ValueError as error:
        return [Finding("failed", f"{where}, trust_dir", f"{file} is no certificate: {error}", f"rm {file}")]


def _data_dir(config: Config) -> list[Finding]:
    """Check that the data directory can be made or written, and has the room that it may need."""
    folder, part = Path(config.replica.data_dir), "replica.data_dir"
    at = folder
    while not at.exists() and at != at.parent:
        at = at.parent
    try:
        if at == folder:
            scratch = folder / f".check-{secrets.token_hex(4)}"
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.close(handle)
            scratch.unlink()
        elif not at.is_dir() or not os.access(at, os.W_OK | os.X_OK):
            return [Finding("failed", part, f"{folder} cannot be made: {at} cannot be written",
                            f"mkdir -p {folder} and give it to the gateway's user")]  # fmt: skip
        free = shutil.disk_usage(at).free
    except OSError as error:
        hint = f"ls -ld {folder}; the gateway's user must write there"
        return [Finding("failed", part, f"{folder} cannot be written: {error.strerror}", hint)]
    journal = folder / JOURNAL
    used = journal.stat().st_size if journal.exists() else 0
    need = config.journal.max_gib * 2**30
    if free + used < need:
        room = f"{(free + used) / 2**30:.1f} GiB are free, less than journal.max_gib ({config.journal.max_gib:g})"
        return [Finding("warning", part, room, "lower journal.max_gib, or give it a larger disk")]
    return [Finding("ok", part, f"{folder}, {free / 2**30:.1f} GiB free")]


def journal_tags(config: Config) -> dict[str, int]:
    """Return the tags of each device that the journal knows; empty without one."""
    path = Path(config.replica.data_dir) / JOURNAL
    if not path.exists():
        return {}
    try:
        reader = JournalReader.open(path)
        try:
            return dict(Counter(tag.device for tag in reader.tags().tags))
        finally:
            reader.close()
    except MirrorError:
        return {}  # a journal that cannot be read is for `run` and `status` to tell


@dataclass(slots=True)
class Answers:
    """What the online checks found.

    Attributes:
        findings: In the order of the configuration.
        tags: By device, of the servers that answered.
        limits: By source.
    """

    findings: list[Finding] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    limits: dict[str, Capabilities] = field(default_factory=dict)


async def ask_sources(sources: Sequence[Source], progress: Callable[[str], None]) -> Answers:
    """Connect to each server as the gateway would, several at a time, count the tags of its devices and leave."""
    gate, done = asyncio.Semaphore(TOGETHER), 0

    async def one(source: Source) -> Answers:
        nonlocal done
        answers = Answers()
        async with gate:
            await _ask(source, answers)
        done += 1
        progress(f"{done} of {len(sources)} sources")
        return answers

    found = Answers()
    for answers in await asyncio.gather(*map(one, sources)):
        found.findings += answers.findings
        found.tags |= answers.tags
        found.limits |= answers.limits
    return found


async def _ask(source: Source, answers: Answers) -> None:
    part = f"source {source.name}"
    try:
        offered = await discover(source.endpoint, timeout_s=source.request_timeout_s)
        offered.require(source.endpoint, source.security, source.user, certificate=bool(source.user_certificate_file))
        connection = Connection(source, password=read_secret(source.password_file))
        try:
            await connection.connect()
            answers.findings += await _asked(connection, source, part, answers)
        finally:
            await connection.close()
        better = offered.best
        if source.security == "none" and better in SECURITIES and better != "none":
            answers.findings.append(Finding(
                "warning", part, f"security is none although the server offers {better}",
                f"edgemirror init {source.endpoint} --security {better} --out FILE shows what it takes",
            ))  # fmt: skip
    except Unavailable as error:
        answers.findings.append(Finding("away", part, str(error), error.hint or f"edgemirror browse {source.endpoint}"))
    except MirrorError as error:
        hint = error.hint or f"edgemirror init {source.endpoint} --out FILE shows what the server offers"
        answers.findings.append(Finding("failed", part, str(error), hint))


async def _asked(connection: Connection, source: Source, part: str, answers: Answers) -> list[Finding]:
    facts = await connection.server_facts()
    limits = answers.limits[source.name] = await capabilities(connection)
    found: list[Finding] = []
    count = 0
    for device in source.device:
        tags, missing = await variables(connection, facts, device.browse, excluder(device.exclude))
        answers.tags[device.name] = len(tags)
        count += len(tags)
        look = f"edgemirror browse {source.endpoint}"
        found += [Finding("failed", f"device {device.name}", f"the server has no {root}", look) for root in missing]
        if not tags and not missing:
            found.append(Finding("warning", f"device {device.name}", "there are no variables below its roots", look))
    took_ms = await _round_trip_ms(connection)
    reach = source.publish_requests * min(device.publishing_ms for device in source.device)
    if took_ms > reach:
        found.append(Finding(
            "warning", part, f"a round trip takes {took_ms:.0f} ms, {source.publish_requests} requests reach for "
            f"{reach:g} ms", "raise source.publish_requests or source.device.publishing_ms",
        ))  # fmt: skip
    if limits.sessions_left == 0:
        found.append(Finding("warning", part, f"the server has no session left beside this one ({limits.sessions_max})",
                             "end other clients, or allow more sessions on the device"))  # fmt: skip
    if not count:
        found.append(
            Finding("failed", part, "nothing to mirror below its roots", f"edgemirror browse {source.endpoint}")
        )
    name = f"{limits.product} {limits.version}".strip() or facts.uri
    return [Finding("ok", part, f"{name}: {count:,} tags, round trip {took_ms:.1f} ms"), *found]


async def _round_trip_ms(connection: Connection) -> float:
    began = time.monotonic()
    for _ in range(ROUND_TRIPS):
        await connection.attributes([_SERVER_STATE], _VALUE)
    return (time.monotonic() - began) / ROUND_TRIPS * 1000


def ask_bucket(config: Config) -> list[Finding]:
    """Probe the bucket with scratch objects that are deleted again."""
    part = "sync"
    try:
        store = open_store(config.sync)
        try:
            report = probe(store.dialects(), log_layout(config).probe, secrets.token_hex(8), together)
        finally:
            store.close()
        report.refuse()
    except Unavailable as error:
        return [Finding("away", part, str(error), error.hint or "check sync.endpoint, and the way to it")]
    except MirrorError as error:
        return [Finding("failed", part, str(error), error.hint)]
    weak = [f"{c.name} ({c.detail})" for c in report.checks if not c.ok]
    told = f"{report.store}: conditional writes work" + (f"; without: {', '.join(weak)}" if weak else "")
    return [Finding("ok", part, told)]


def ask_broker(config: Config) -> list[Finding]:
    """Log in at the broker under an id of its own and leave; nothing is published."""
    mqtt, part = config.mqtt, "mqtt"
    status = Status()
    try:
        broker = Broker.of(mqtt, f"edgemirror-check-{secrets.token_hex(4)}", config.group.name)
        will = Message(f"{mqtt.prefix}/_check", b"", 0, False)
        link = Link(broker, will, status)
        up = _logs_in(link)
    except MirrorError as error:
        return [Finding("failed", part, str(error), error.hint)]
    if up:
        return [Finding("ok", part, f"{mqtt.url}: MQTT {status.protocol}, logged in")]
    refused = "the broker refused" in status.last_error
    hint = (
        "check mqtt.user, mqtt.password_file and the broker's rights" if refused else "check mqtt.url and the way to it"
    )
    if mend := tls_hint(status.last_error, broker):
        refused, hint = True, mend
    return [Finding("failed" if refused else "away", part, f"{mqtt.url}: {status.last_error}", hint)]


def _logs_in(link: Link, clock: Callable[[], float] = time.monotonic) -> bool:
    """Connect, in the other version of MQTT if the broker does not answer the first, and leave in order."""
    wake, other = socket.socketpair()
    try:
        until = clock() + CONNECT_S
        link.open()
        while clock() < until:
            if link.phase is Phase.UP:
                link.close("checked", polite=True)
                return True
            if link.phase is Phase.CLOSED:
                if not link.other_version():
                    return False
                link.open()
            else:
                link.wait(wake, 0.2)
        link.close(f"no answer within {CONNECT_S:g} s")
        return False
    finally:
        wake.close()
        other.close()
