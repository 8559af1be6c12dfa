"""Whom a connection to a server is meant for, and whether the certificate that answers is trusted.

A certificate is trusted when the operator has put it into the trust folder, or when a CA certificate in
that folder has signed it directly and no revocation list of that CA in the folder names it. Whoever is
not trusted gets nothing: no password, no session. Nothing is ever trusted because it came first.

What it does not do: build chains over certificates that are not in the folder, or fetch anything.

Source: OPC UA Part 4, 6.1.3; Part 6, 6.2.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from mirror.errors import ConfigError

_T = TypeVar("_T", bound=x509.ExtensionType)
DEFAULT_URI = "urn:edgemirror:gateway"
SUFFIXES = frozenset({".der", ".cer", ".crt", ".pem"})


def application_uri(certificate_file: str) -> str:
    """Return the URI of our certificate, which is our ApplicationUri; a default without a certificate."""
    if not certificate_file:
        return DEFAULT_URI
    for certificate in _load(Path(certificate_file)):
        uris = _uris(certificate)
        if uris:
            return uris[0]
    raise ConfigError(f"{certificate_file} holds no certificate with an application URI")


def dates(path: Path) -> tuple[datetime, datetime]:
    """Return from when to when the first certificate of a file is valid, aware times."""
    for certificate in _load(path):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    raise ConfigError(f"{path} holds no certificate")


def check(der: bytes, uri: str, trust_dir: str, now: datetime) -> None:
    """Check the certificate of a server.

    Args:
        der: The certificate; what follows the first one of a chain is not looked at.
        uri: ApplicationUri that the server's description gives.
        trust_dir: The trust folder.
        now: Aware time.

    Raises:
        ConfigError: It is not trusted, and why.
    """
    name = f"certificate {hashlib.sha256(der).hexdigest()[:16]} of {uri}"
    try:
        certificate = x509.load_der_x509_certificate(der)
        uris = _uris(certificate)
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        usage = _extension(certificate, x509.ExtendedKeyUsage)
    except ValueError as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error
    if not begin <= now <= end:
        raise ConfigError(f"{name} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}", hint="check the clocks")
    if uri not in uris:
        raise ConfigError(f"{name} is made out to {', '.join(uris) or 'nobody'}")
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise ConfigError(f"{name} is not meant for servers")
    if not _is_trusted(certificate, Path(trust_dir), now):
        sha1 = hashlib.sha1(der, usedforsecurity=False).hexdigest()
        raise ConfigError(
            f"{name} is not trusted",
            hint=f"compare thumbprint {sha1} with the device's own display; if it is the same:"
            f" edgemirror trust accept {sha1[:12]}",
        )


def expires_at(file: str) -> float:
    """Return when the first of a file's certificates expires, in Unix seconds; ConfigError if it holds none."""
    found = [certificate.not_valid_after_utc.timestamp() for certificate in _load(Path(file))]
    if not found:
        raise ConfigError(f"{file} holds no certificate")
    return min(found)


def _is_trusted(certificate: x509.Certificate, folder: Path, now: datetime) -> bool:
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        for trusted in _load(path):
            if trusted == certificate:
                return True
            if _has_issued(trusted, certificate, now) and not _is_revoked(certificate, trusted, folder):
                return True
    return False


def _has_issued(ca: x509.Certificate, certificate: x509.Certificate, now: datetime) -> bool:
    constraints = _extension(ca, x509.BasicConstraints)
    if constraints is None or not constraints.ca or not ca.not_valid_before_utc <= now <= ca.not_valid_after_utc:
        return False
    usage = _extension(ca, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return False
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_revoked(certificate: x509.Certificate, ca: x509.Certificate, folder: Path) -> bool:
    for path in sorted(folder.glob("*.crl")):
        data = path.read_bytes()
        try:
            crl = x509.load_pem_x509_crl(data) if data.startswith(b"-----") else x509.load_der_x509_crl(data)
        except ValueError as error:
            raise ConfigError(f"{path} is no revocation list: {error}") from error
        if (
            crl.issuer == ca.subject
            and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
            and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        ):
            return True
    return False


def _load(path: Path) -> Iterator[x509.Certificate]:
    try:
        data = path.read_bytes()
        if data.startswith(b"-----"):
            yield from x509.load_pem_x509_certificates(data)
        else:
            yield x509.load_der_x509_certificate(data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no certificate: {error}") from error


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
