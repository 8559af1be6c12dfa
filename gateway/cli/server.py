"""The server that a verb names on the command line: options in, a source and its password out.

The same rules as for `[[source]]`, told in terms of options.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from gateway.cli.terminal import quiet
from gateway.config import Device, Source, check_user
from gateway.offer import SECURITIES, CertificateFacts, Offered, certificate_facts, is_endpoint
from mirror.errors import ConfigError, Corrupt

T = TypeVar("T")
EVERYTHING = Device(name="all", browse=["i=85/**"])


def source_of(options: argparse.Namespace, *, certificate_file: str = "", key_file: str = "") -> Source:
    """Return the source that options describe, checked.

    Raises:
        ConfigError: An option has no legal value, or others are missing with it.
    """
    if not is_endpoint(options.endpoint):
        raise ConfigError(
            f"{options.endpoint!r} is no address of an OPC UA server",
            hint="write opc.tcp://HOST:PORT, such as opc.tcp://192.0.2.7:4840",
        )
    security = options.security or "none"
    if security not in SECURITIES:
        raise ConfigError(f"--security is {security!r}; use {', '.join(SECURITIES)}")
    if options.user and not options.password_file:
        raise ConfigError("--user needs --password-file: a file that holds the password", hint="chmod 600 it")
    certificate, key = options.certificate_file or certificate_file, options.key_file or key_file
    if security != "none":
        given = {"--certificate-file": certificate, "--key-file": key, "--trust-dir": options.trust_dir}
        missing = [name for name, value in given.items() if not value]
        if missing:
            raise ConfigError(f"--security {security} needs {', '.join(missing)}")
    source = Source(
        name="server", endpoint=options.endpoint, security=security,  # type: ignore[arg-type]  # checked above
        user=options.user or "", password_file=options.password_file or "", certificate_file=certificate,
        key_file=key, trust_dir=options.trust_dir or "", device=[EVERYTHING],
        password_in_clear=options.password_in_clear, user_certificate_file=options.user_certificate_file or "",
        user_key_file=options.user_key_file or "",
    )  # fmt: skip
    check_user(source, options.endpoint)
    return source


def absolute(path: str | None) -> str:
    """Return a path that does not depend on where the command was typed; empty for none."""
    return str(Path(path).resolve()) if path else ""


def password_of(source: Source) -> str:
    """Return the password in the source's file; empty for none."""
    if not source.password_file:
        return ""
    try:
        return Path(source.password_file).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source.password_file} cannot be read: {error}") from error


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run work that talks to servers."""
    quiet()
    return asyncio.run(work)


def describe(offered: Offered) -> list[tuple[str, str]]:
    """Return what a person should see of a server before trusting it, as rows of name and value."""
    rows = [
        ("server", offered.name or "(unnamed)"), ("application URI", offered.uri or "(none)"),
        ("product URI", offered.product_uri or "(none)"),
    ]  # fmt: skip
    rows += [
        (f"offers {o.security}", f"log in by {' or '.join(o.users) or 'no way that is told'}") for o in offered.offers
    ]
    facts = facts_of(offered)
    if facts is None:
        return [*rows, ("certificate", "none that can be read" if offered.certificate else "none")]
    now = datetime.now(UTC)
    valid = "" if facts.begin <= now <= facts.end else "  NOT VALID NOW"
    return [
        *rows, ("certificate of", facts.subject), ("  issued by", "itself" if facts.self_signed else facts.issuer),
        ("  for URI", ", ".join(facts.uris) or "(none)"), ("  for hosts", ", ".join(facts.hosts) or "(none)"),
        ("  valid", f"{facts.begin:%Y-%m-%d} to {facts.end:%Y-%m-%d}{valid}"), ("  key", facts.key),
        ("  thumbprint", grouped(facts.sha1)), ("  SHA-256", grouped(facts.sha256)),
    ]  # fmt: skip


def facts_of(offered: Offered) -> CertificateFacts | None:
    """Return the facts of the certificate that was offered, None where there is none or none that can be read."""
    try:
        return certificate_facts(offered.certificate) if offered.certificate else None
    except Corrupt:
        return None


def document(offered: Offered) -> dict[str, Any]:
    """Return the same for JSON."""
    facts = facts_of(offered)
    certificate = None if facts is None else {
        "subject": facts.subject, "issuer": facts.issuer, "uris": facts.uris, "hosts": facts.hosts,
        "not_before": facts.begin.isoformat(), "not_after": facts.end.isoformat(), "key": facts.key,
        "sha1": facts.sha1, "sha256": facts.sha256,
    }  # fmt: skip
    return {
        "name": offered.name, "uri": offered.uri, "product_uri": offered.product_uri,
        "offers": [{"security": o.security, "users": o.users} for o in offered.offers], "certificate": certificate,
    }  # fmt: skip


def grouped(thumbprint: str) -> str:
    """Return hex in groups of four, as people compare it."""
    return " ".join(thumbprint[i : i + 4] for i in range(0, len(thumbprint), 4))
