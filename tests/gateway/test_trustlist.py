"""The folders of trusted and refused certificates, the verb that moves them, and a gateway that looks at them."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.__main__ import main
from gateway.io import trustlist
from gateway.io.renewal import renew
from gateway.offer import certificate_facts
from mirror.errors import ConfigError
from tests.gateway.opcua_server import URI, make_certificate

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A folder with a configuration that checks certificates."""
    own, key = make_certificate(tmp_path / "own", "gateway", "urn:edgemirror:gateway:test", server=False)
    (tmp_path / "pki" / "trusted").mkdir(parents=True)
    (tmp_path / "gateway.toml").write_text(f"""
group = {{ name = "g" }}
replica = {{ name = "a", data_dir = "{tmp_path}/data" }}
[[source]]
name = "press"
endpoint = "opc.tcp://127.0.0.1:4840"
security = "Basic256Sha256:SignAndEncrypt"
certificate_file = "{own}"
key_file = "{key}"
trust_dir = "{tmp_path}/pki/trusted"
device = [{{ name = "press7", browse = ["ns=1;s=A/**"] }}]
""")
    return tmp_path


def refused(box: Path, name: str = "plc") -> tuple[bytes, str]:
    """Let a server be refused; return its certificate and thumbprint."""
    certificate, _ = make_certificate(box / name, name, URI, server=True)
    der = certificate.read_bytes()
    with pytest.raises(ConfigError):
        trustlist.check(der, URI, "press", str(box / "pki" / "trusted"))
    return der, certificate_facts(der).sha1.lower()


def verb(box: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["trust", *arguments, "--config", str(box / "gateway.toml")])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_refused_certificate_is_kept_with_its_reason_and_the_error_names_the_command_that_trusts_it(
    box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    der, sha1 = refused(box)
    with pytest.raises(ConfigError) as raised:
        trustlist.check(der, URI, "press", str(box / "pki" / "trusted"))
    assert raised.value.hint.endswith(f"edgemirror trust accept {sha1[:12]}")
    code, out, _ = verb(box, capsys, "list", "--json")
    (entry,) = json.loads(out)
    assert code == 0 and (entry["state"], entry["sha1"], entry["source"]) == ("rejected", sha1, "press")
    assert "is not trusted" in entry["reason"] and entry["refused_at"]
    code, out, _ = verb(box, capsys, *raised.value.hint.split()[-2:])
    assert code == 0 and "trusted from now on" in out
    trustlist.check(der, URI, "press", str(box / "pki" / "trusted"))
    assert [e.state for e in trustlist.entries([box / "pki" / "trusted"])] == ["trusted"]


def test_one_that_is_rejected_again_is_refused_from_then_on(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    der, sha1 = refused(box)
    assert verb(box, capsys, "accept", sha1.upper())[0] == 0
    assert verb(box, capsys, "reject", sha1[:8])[0] == 0
    with pytest.raises(ConfigError, match="not trusted"):
        trustlist.check(der, URI, "press", str(box / "pki" / "trusted"))
    code, out, _ = verb(box, capsys, "show", sha1)
    assert code == 0 and "rejected" in out and sha1 in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("accept", "ab"), "too short"),
        (("accept", "0123456789"), "no certificate"),
        (("reject", "{sha1}"), "it is rejected"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_to_do(
    box: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], told: str
) -> None:
    _, sha1 = refused(box)
    code, _, err = verb(box, capsys, arguments[0], arguments[1].format(sha1=sha1))
    assert code == 2 and told in err


def test_the_folder_of_the_refused_does_not_grow_for_ever_and_keeps_the_last(box: Path) -> None:
    trust_dir = box / "pki" / "trusted"
    folder = trustlist.rejected(trust_dir)
    for i in range(trustlist.REJECTED_MAX + 10):
        trustlist.note(b"certificate %d" % i, "press", "why", trust_dir, NOW)
        for file in folder.glob("*.der"):
            os.utime(file, (i, i)) if file.stat().st_mtime > 1e9 else None
    assert len(list(folder.glob("*.der"))) == trustlist.REJECTED_MAX == len(list(folder.glob("*.json")))
    assert any(file.read_bytes() == b"certificate %d" % (trustlist.REJECTED_MAX + 9) for file in folder.glob("*.der"))
    trustlist.note(b"x" * (trustlist.CERTIFICATE_BYTES_MAX + 1), "press", "why", trust_dir, NOW)
    assert len(list(folder.glob("*.der"))) == trustlist.REJECTED_MAX


def test_a_disk_that_refuses_keeps_nobody_from_being_refused(box: Path) -> None:
    (box / "pki" / "rejected").write_text("no folder")
    with pytest.raises(ConfigError, match="not trusted"):
        refused(box)
        certificate, _ = make_certificate(box / "b", "b", URI, server=True)
        trustlist.check(certificate.read_bytes(), URI, "press", str(box / "pki" / "trusted"))


def test_a_session_is_checked_again_when_the_folder_changes(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trustlist, "LOOK_S", 0.02)
    trust_dir = box / "pki" / "trusted"
    der, sha1 = refused(box)
    trustlist.accept(trustlist.find(trustlist.entries([trust_dir]), sha1)[0])
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        trustlist.check(der, URI, "press", str(trust_dir))

    async def run() -> None:
        watching = asyncio.create_task(trustlist.watch(trust_dir, check))
        await asyncio.sleep(0.1)
        assert checks == [], "nothing has changed"
        (trust_dir / "other.der").write_bytes(der)
        while not checks:
            await asyncio.sleep(0.01)
        assert not watching.done(), "it is trusted still"
        for file in trust_dir.iterdir():
            file.unlink()
        with pytest.raises(ConfigError, match="not trusted"):
            await asyncio.wait_for(watching, 5)

    asyncio.run(run())


def test_a_renewed_certificate_has_the_same_key_and_names_and_the_former_one_is_kept(
    box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((box / "own").glob("*.der"))
    key = load_pem_private_key(next((box / "own").glob("*.pem")).read_bytes(), None)
    before = file.read_bytes()
    old = x509.load_der_x509_certificate(before)
    code, out, _ = verb(box, capsys, "renew")
    new = x509.load_der_x509_certificate(file.read_bytes())
    assert code == 0 and "have to be given the new one" in out
    assert new.public_key() == old.public_key() == key.public_key()
    assert new.subject == old.subject and [e.value for e in new.extensions] == [e.value for e in old.extensions]
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365 * 4)
    (kept,) = (box / "own").glob("*.until-*")
    assert kept.read_bytes() == before


def test_only_ones_own_certificate_is_renewed(box: Path) -> None:
    ca = make_certificate(box, "ca", "urn:ca", server=False, is_ca=True)
    issued, key = make_certificate(box, "issued", URI, server=False, ca=ca)
    with pytest.raises(ConfigError, match="was issued by"):
        renew(issued, key, NOW)
    own, _ = make_certificate(box / "other", "own", URI, server=False)
    with pytest.raises(ConfigError, match="is not the RSA key"):
        renew(own, key, NOW)


def test_without_a_trust_folder_the_verb_says_that_nobody_is_checked(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(
        'group = { name = "g" }\nreplica = { name = "a", data_dir = "d" }\n[[source]]\nname = "p"\n'
        'endpoint = "opc.tcp://h:1"\nsecurity = "none"\ndevice = [{ name = "d", browse = ["i=85"] }]\n'
    )
    assert main(["trust", "list", "--config", str(tmp_path / "gateway.toml")]) == 2
