"""The replica's signing key: made once, readable for its owner alone, never sent anywhere.

Its public half is enrolled in the group's log; whoever has the private half can write segments in this
replica's name. What this module does not do: enrol, or keep keys of others.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from mirror.errors import ConfigError

SIGNING_KEY = "signing.pem"


def signing_key(directory: Path) -> Ed25519PrivateKey:
    """Return the key in a data directory, making it if there is none.

    A key appears whole or not at all: it is written beside its place, made durable, and moved.

    Raises:
        ConfigError: Others can read it, or it is not such a key.
    """
    file = directory / SIGNING_KEY
    if not file.exists():
        part = directory / (SIGNING_KEY + ".part")
        part.unlink(missing_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, pem)
            os.fsync(handle)
        finally:
            os.close(handle)
        part.rename(file)
    if file.stat().st_mode & 0o077:
        raise ConfigError(f"{file} can be read by others than its owner", hint=f"chmod 600 {file}")
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except ValueError as error:
        raise ConfigError(f"{file} holds no private key: {error}", hint=f"restore {file} from a backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file} holds no Ed25519 key", hint=f"restore {file} from a backup")
    return key
