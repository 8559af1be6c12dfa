"""The certificate and key with which a user logs in to a server, read anew for each connection.

So files that are replaced are taken at the next one. What it does not do: sign (asyncua does, under the policy that
`gateway.login` chose).
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mirror.errors import ConfigError


def load_pair(certificate_file: str, key_file: str) -> tuple[x509.Certificate, RSAPrivateKey]:
    """Return a certificate (DER or PEM) and its private key (PEM, without a password).

    Raises:
        ConfigError: One of them cannot be read or is none, or they do not belong together.
    """
    try:
        data = Path(certificate_file).read_bytes()
        pem = data.startswith(b"-----")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate_file} is no certificate: {error}", hint=f"ls -l {certificate_file}") from error
    try:
        key = load_pem_private_key(Path(key_file).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{key_file} is no private key in PEM without a password: {error}", hint=f"ls -l {key_file}"
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError(f"{key_file} is no RSA key; the security policies of OPC UA need one")
    if key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{key_file} is not the key of {certificate_file}", hint="name the two files that belong together"
        )
    return certificate, key
