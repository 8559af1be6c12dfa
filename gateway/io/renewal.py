"""A new application certificate over the same key and the same names, before the old one expires.

It is a command and nothing that happens by itself: a server that trusts the exact certificate would refuse the
new one, and the plant would be cut off at a moment that nobody chose.

What it does not do: make keys, or renew what a certificate authority has issued.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.io.files import write_new
from mirror.errors import ConfigError

LIFE = timedelta(days=5 * 365)


class Renewed(NamedTuple):
    """The new certificate, where the former one is kept, and how long the new one is good."""

    file: Path
    kept: Path
    until: datetime


def renew(file: Path, key_file: Path, now: datetime) -> Renewed:
    """Replace a self-signed certificate by one with the same key, names and usages that is valid from now.

    The file always holds one of the two, whole.

    Raises:
        ConfigError: It is not self-signed, the key is not its key, or the folder cannot be written.
    """
    try:
        old = x509.load_der_x509_certificate(file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} or {key_file} cannot be read: {error}", hint="edgemirror check") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key().public_bytes(*form) != old.public_key().public_bytes(
        *form
    ):
        raise ConfigError(f"{key_file} is not the RSA key of {file}", hint="name the two files that belong together")
    if old.subject != old.issuer:
        raise ConfigError(f"{file} was issued by {old.issuer.rfc4514_string()}", hint="ask there for a new one")
    until = now + LIFE
    builder = (
        x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1)).not_valid_after(until)
    )  # fmt: skip
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    kept, part = (
        file.with_name(f"{file.name}.until-{old.not_valid_after_utc:%Y%m%d}"),
        file.with_name(file.name + ".part"),
    )
    try:
        part.unlink(missing_ok=True)
        write_new(part, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), 0o644)
        kept.unlink(missing_ok=True)
        os.link(file, kept)
        part.rename(file)
    except OSError as error:
        raise ConfigError(f"{file.parent} cannot be written: {error.strerror}", hint=f"ls -ld {file.parent}") from error
    return Renewed(file, kept, until)
