"""Visit a server to draft its part of a configuration; make what the drafts need on this box.

Visiting changes nothing on a server. On the box only three things are ever made, and nothing is written over:
this gateway's own certificate and key, a copy of a certificate that a person accepted by its thumbprint, and a
copy of one that waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.capabilities import Capabilities
from gateway.config import Source
from gateway.io.discover import capabilities
from gateway.io.explore import explore
from gateway.io.files import write_new
from gateway.io.opcua import Connection
from gateway.io.trust import check
from gateway.offer import CertificateFacts, Offered, certificate_facts
from gateway.propose import OBJECTS, SAMPLES_OF_A_DEVICE, DeviceDraft, devices, groups
from mirror.errors import ConfigError

YEARS = 5
_MINIMUM_SAMPLING_INTERVAL = 19


@dataclass(frozen=True, slots=True)
class Visit:
    """What was found on a server.

    Attributes:
        drafts: Proposed devices.
        variables: Number of variables found.
        complete: Whether the walk saw everything.
        limits: What the server says of itself.
    """

    drafts: list[DeviceDraft]
    variables: int
    complete: bool
    limits: Capabilities


async def visit(
    source: Source, password: str, *, prefix: str = "", taken: Collection[str] = (), area: str = "area",
    line: str = "line", variables_max: int, progress: Callable[[int, int], None],
) -> Visit:  # fmt: skip
    """Browse a server and propose its devices; see `gateway.propose.devices`.

    Raises:
        Unavailable, ConfigError: As of a connection.
    """
    connection = Connection(source, password=password)
    try:
        await connection.connect()
        facts = await connection.server_facts()
        limits = await capabilities(connection)
        tree = await explore(connection, facts, OBJECTS, variables_max=variables_max, progress=progress)
        found = groups(tree, facts.namespaces)
        some = [place for group in found for place in group.variables[:SAMPLES_OF_A_DEVICE]]
        values = await connection.attributes([tree.nodes[i].node for i in some], _MINIMUM_SAMPLING_INTERVAL)
        minimums = {i: float(v) for i, v in zip(some, values, strict=True) if isinstance(v, int | float)}
    finally:
        await connection.close()
    drafts = devices(found, minimums, limits, prefix=prefix, taken=list(taken), area=area, line=line)
    return Visit(drafts, len(tree.variables), tree.complete, limits)


def own_certificate(folder: Path, uri: str, host: str) -> tuple[Path, Path]:
    """Return this gateway's certificate and key in a folder, making both if there is neither.

    Raises:
        ConfigError: There is one without the other, or they cannot be written.
    """
    certificate_file, key_file = folder / "gateway.der", folder / "gateway.pem"
    there = [certificate_file.exists(), key_file.exists()]
    if all(there):
        return certificate_file, key_file
    if any(there):
        lone = certificate_file if there[0] else key_file
        raise ConfigError(f"{lone} stands alone; certificate and key belong together", hint=f"rm {lone}, or restore")
    key = rsa.generate_private_key(65537, 2048)
    certificate = _certificate(key, uri, host)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(key_file, pem, 0o600)
        write_new(certificate_file, certificate, 0o644)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}", hint=f"ls -ld {folder}") from error
    return certificate_file, key_file


def _certificate(key: rsa.RSAPrivateKey, uri: str, host: str) -> bytes:
    """Return a self-signed application certificate.

    Source: OPC UA Part 6, 6.2.2: names, key usages and basic constraints.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgemirror@{host}"[:64])])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), x509.DNSName(host)])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
        key_cert_sign=True, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS)).add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def refusal(offered: Offered, trust_dir: Path) -> ConfigError | None:
    """Return why the server's certificate is refused, None if it is trusted; the folder is made if it is missing."""
    trust_dir.mkdir(parents=True, exist_ok=True)
    if offered.certificate is None:
        return ConfigError("the server shows no certificate", hint="give the device one")
    try:
        check(offered.certificate, offered.uri, str(trust_dir), datetime.now(UTC))
    except ConfigError as error:
        return error
    return None


def keep(offered: Offered, folder: Path) -> tuple[Path, CertificateFacts]:
    """Store the server's certificate in a folder under its thumbprint; return file and facts.

    Raises:
        Corrupt: It is no certificate.
        ConfigError: It cannot be written.
    """
    assert offered.certificate is not None
    facts = certificate_facts(offered.certificate)
    file = folder / f"{facts.sha1.lower()}.der"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not file.exists():
            write_new(file, offered.certificate, 0o644)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}", hint=f"ls -ld {folder}") from error
    return file, facts
