"""Which certificates of servers are trusted, and that nothing else is told to an untrusted server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.io.opcua import Connection
from gateway.io.trust import DEFAULT_URI, application_uri, check, expires_at
from mirror.errors import ConfigError
from tests.gateway.opcua_server import PASSWORD, URI, bounded, make_certificate, press, source, subscribe_one

OURS = "urn:edgemirror:gateway:test"


def trust(folder: Path, *paths: Path) -> str:
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def verdict(path: Path, folder: str, uri: str = URI) -> None:
    check(path.read_bytes(), uri, folder, datetime.now(UTC))


def test_certificate_in_the_folder_is_trusted_and_another_of_the_same_name_is_not(tmp_path: Path) -> None:
    known, _ = make_certificate(tmp_path / "a", "server", URI, server=True)
    twin, _ = make_certificate(tmp_path / "b", "server", URI, server=True)
    folder = trust(tmp_path / "trust", known)
    verdict(known, folder)
    with pytest.raises(ConfigError, match="not trusted"):
        verdict(twin, folder)


def test_empty_or_missing_folder_trusts_nobody(tmp_path: Path) -> None:
    known, _ = make_certificate(tmp_path, "server", URI, server=True)
    for folder in (trust(tmp_path / "trust"), str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match="not trusted"):
            verdict(known, folder)


def test_certificate_signed_by_a_ca_in_the_folder_is_trusted(tmp_path: Path) -> None:
    ca = make_certificate(tmp_path, "ca", "urn:ca", server=False, is_ca=True)
    other = make_certificate(tmp_path, "other", "urn:ca", server=False, is_ca=True)
    issued, _ = make_certificate(tmp_path, "server", URI, server=True, ca=ca)
    verdict(issued, trust(tmp_path / "trust", ca[0]))
    with pytest.raises(ConfigError, match="not trusted"):
        verdict(issued, trust(tmp_path / "wrong", other[0]))


def test_certificate_signed_by_a_trusted_server_that_is_no_ca_is_not_trusted(tmp_path: Path) -> None:
    leaf = make_certificate(tmp_path, "leaf", URI, server=True)
    issued, _ = make_certificate(tmp_path, "server", URI, server=True, ca=leaf)
    with pytest.raises(ConfigError, match="not trusted"):
        verdict(issued, trust(tmp_path / "trust", leaf[0]))


def test_certificate_on_the_ca_s_revocation_list_is_not_trusted(tmp_path: Path) -> None:
    ca = make_certificate(tmp_path, "ca", "urn:ca", server=False, is_ca=True)
    issued, _ = make_certificate(tmp_path, "server", URI, server=True, ca=ca)
    folder = trust(tmp_path / "trust", ca[0])
    key = serialization.load_pem_private_key(ca[1].read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    now = datetime.now(UTC)
    serial = x509.load_der_x509_certificate(issued.read_bytes()).serial_number
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_der_x509_certificate(ca[0].read_bytes()).subject)
        .last_update(now).next_update(now + timedelta(days=1)).add_revoked_certificate(entry).sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "trust" / "ca.crl").write_bytes(crl.public_bytes(serialization.Encoding.DER))
    with pytest.raises(ConfigError, match="not trusted"):
        verdict(issued, folder)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"begin": timedelta(days=-20)}, "valid from"), ({"begin": timedelta(days=5)}, "valid from"),
        ({"server": False}, "not meant for servers"),
    ],
)  # fmt: skip
def test_trusted_certificate_out_of_date_or_of_another_kind_is_refused(
    tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    path, _ = make_certificate(tmp_path, "server", URI, **{"server": True, **fields})
    with pytest.raises(ConfigError, match=why):
        verdict(path, trust(tmp_path / "trust", path))


def test_trusted_certificate_of_another_application_is_refused(tmp_path: Path) -> None:
    path, _ = make_certificate(tmp_path, "server", "urn:other", server=True)
    with pytest.raises(ConfigError, match="made out to urn:other"):
        verdict(path, trust(tmp_path / "trust", path))


def test_bytes_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check(b"\x30\x03abc", URI, str(tmp_path), datetime.now(UTC))
    path, _ = make_certificate(tmp_path, "server", URI, server=True)
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "broken.der").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"broken\.der is no certificate"):
        verdict(path, str(tmp_path / "trust"))


def test_our_application_uri_is_that_of_our_certificate(tmp_path: Path) -> None:
    path, _ = make_certificate(tmp_path, "us", OURS, server=False)
    assert application_uri(str(path)) == OURS
    assert application_uri("") == DEFAULT_URI


def test_a_file_expires_with_the_first_of_its_certificates(tmp_path: Path) -> None:
    later, _ = make_certificate(tmp_path, "later", OURS, server=False)
    sooner, _ = make_certificate(tmp_path, "sooner", OURS, server=False, begin=timedelta(days=-5))
    loaded = [x509.load_der_x509_certificate(path.read_bytes()) for path in (later, sooner)]
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in loaded))
    assert expires_at(str(later)) == loaded[0].not_valid_after_utc.timestamp()
    assert expires_at(str(both)) == loaded[1].not_valid_after_utc.timestamp()
    with pytest.raises(ConfigError, match="no certificate"):
        expires_at(str(tmp_path / "later.pem"))


# ---- over the wire --------------------------------------------------------------------------------------


def test_secured_server_is_spoken_to_only_when_trusted(tmp_path: Path) -> None:
    theirs = make_certificate(tmp_path, "server", URI, server=True)
    ours = make_certificate(tmp_path, "us", OURS, server=False)
    trusted, empty = trust(tmp_path / "trust", theirs[0]), trust(tmp_path / "empty")

    async def work() -> None:
        async with press(certificate=theirs, users=True) as made:

            def connection(security: str, folder: str = trusted, password: str = PASSWORD) -> Connection:
                config = source(
                    made.url, security=security, certificate_file=str(ours[0]), key_file=str(ours[1]), trust_dir=folder,
                    user="operator",
                )  # fmt: skip
                return Connection(config, password=password)

            asked: list[str] = []
            get_user = made.users.get_user
            made.users.get_user = lambda *a, **k: asked.append(str(k or a)) or get_user(*a, **k)  # type: ignore[method-assign,func-returns-value]
            with pytest.raises(ConfigError, match="not trusted"):
                await connection("Basic256Sha256:SignAndEncrypt", empty).connect()
            assert asked == []  # the password never left
            with pytest.raises(ConfigError, match="it offers"):
                await connection("Aes128Sha256RsaOaep:Sign").connect()
            with pytest.raises(ConfigError, match="BadUserAccessDenied"):
                await connection("Basic256Sha256:SignAndEncrypt", password="wrong").connect()
            for security in ("Basic256Sha256:SignAndEncrypt", "Aes256Sha256RsaPss:Sign"):
                first = connection(security)
                await first.connect()
                assert (await first.server_facts()).uri == URI
                await subscribe_one(first)
                secret = first.session_secret()
                first.abort()
                with pytest.raises(ConfigError, match="not trusted"):
                    await connection(security, empty).resume(secret)
                heir = connection(security)
                await heir.resume(secret)
                assert (await heir.server_facts()).uri == URI
                await heir.close()

    asyncio.run(bounded(work()))
