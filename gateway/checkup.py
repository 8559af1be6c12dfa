"""What `edgemirror check` says: findings, each with what to do next, and what they come to.

A finding is about one part of the configuration. `failed` means the gateway would not do its work, `away`
that somebody did not answer, `warning` that it would, with a consequence that a person should know.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from gateway.config import Config
from gateway.forecast import CPU_SHARE_MAX, GIB, Prediction, cpu_share
from gateway.room import WITHOUT_BUCKET

Level = Literal["ok", "warning", "failed", "away"]
EXPIRY_DAYS = 30
RENEW = "edgemirror trust renew, or ask who issued it"


class Finding(NamedTuple):
    """One line of the report."""

    level: Level
    part: str
    text: str
    hint: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if anything failed, else 3 if anybody is away, else 0."""
    levels = {finding.level for finding in findings}
    return 1 if "failed" in levels else 3 if "away" in levels else 0


def validity(part: str, begin: datetime, end: datetime, now: datetime, hint: str) -> Finding:
    """Judge a certificate's dates."""
    span = f"valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if now < begin:
        return Finding("failed", part, f"{span}: not yet", "check the clock of this box")
    if now > end:
        return Finding("failed", part, f"{span}: it has expired", hint)
    days = (end - now).days
    if days < EXPIRY_DAYS:
        return Finding("warning", part, f"{span}: it expires in {days} days", hint)
    return Finding("ok", part, f"{span}, {days} days left")


def own_certificates(config: Config) -> dict[str, str]:
    """Return the files of the certificates by which this gateway and its users are known, by whose they are."""
    files = {f"source {source.name}": source.certificate_file for source in config.source}
    files |= {f"user of source {source.name}": source.user_certificate_file for source in config.source}
    files |= {"http": config.http.certificate_file, "mqtt": config.mqtt.certificate_file}
    return {name: file for name, file in files.items() if file}


def settings(config: Config) -> list[Finding]:
    """Return what the settings alone say that is legal and has consequences."""
    devices = sum(len(source.device) for source in config.source)
    found = [Finding("ok", "configuration", f"{len(config.source)} source(s), {devices} device(s)")]
    found += [
        Finding(
            "warning", f"source {source.name}",
            f"security is none: the password of user {source.user!r} can be intercepted on the network",
            f"edgemirror init {source.endpoint} --out FILE shows what security it offers",
        )
        for source in config.source
        if source.security == "none" and source.user
    ]  # fmt: skip
    if not config.sync.bucket:
        found.append(Finding(
            "warning", "sync", "no bucket: the journal is the only copy, and is never trimmed",
            "set sync.bucket to s3://BUCKET/PREFIX",
        ))  # fmt: skip
    if config.mqtt.url.startswith("mqtt://") and config.mqtt.user:
        found.append(Finding(
            "warning", "mqtt", f"the password of user {config.mqtt.user!r} can be read on the network",
            "set mqtt.url to mqtts://HOST:8883",
        ))  # fmt: skip
    return found


def judged(config: Config, prediction: Prediction) -> list[Finding]:
    """Return what the prediction says that a person should know."""
    found: list[Finding] = []
    for fit in prediction.fits:
        part = f"source {fit.source}, {fit.publishing_ms:g} ms"
        found += [Finding("warning", part, problem) for problem in fit.problems]
    most = cpu_share(sum(f.changes_per_s_max for f in prediction.fits))
    if prediction.cpu_share > 1:
        found.append(Finding(
            "failed", "load", f"{prediction.changes_per_s:,.0f} changes/s take {prediction.cpu_share:.1f} processors; "
            "one gateway uses little more than one", "spread the sources over several gateways",
        ))  # fmt: skip
    elif prediction.cpu_share > CPU_SHARE_MAX or most > 1:
        found.append(Finding(
            "warning", "load",
            f"{prediction.cpu_share:.0%} of a processor at the rate assumed, {most:.0%} if every tag changed at every "
            "sample", "ask for longer sampling_ms, or spread the sources over several gateways",
        ))  # fmt: skip
    size_max = config.journal.max_gib * GIB
    kept = prediction.journal_bytes_per_day * (config.journal.keep_days if config.sync.bucket else 30)
    if kept > size_max:
        days = size_max / prediction.journal_bytes_per_day
        then = "what the bucket has is then deleted before keep_days" if config.sync.bucket else WITHOUT_BUCKET
        found.append(Finding(
            "warning", "journal",
            f"journal.max_gib ({config.journal.max_gib:g}) is reached after {days:.1f} days; {then}",
            f"raise journal.max_gib, or {'lower journal.keep_days' if config.sync.bucket else 'set sync.bucket'}",
        ))  # fmt: skip
    return found
