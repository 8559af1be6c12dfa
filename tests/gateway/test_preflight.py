"""What `check` finds on this box alone, and at a broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from demo.servers import Broker as BrokerServer
from gateway.checkup import Finding
from gateway.config import Config, parse
from gateway.io.drafting import own_certificate
from gateway.io.journal import Journal
from gateway.io.preflight import ask_broker, journal_tags, offline
from mirror.errors import ConfigError
from mirror.tags import Tag
from tests.gateway.opcua_server import free_port, make_certificate

SECURED = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "{here}/data"
[journal]
max_gib = 0.001
[[source]]
name = "s"
endpoint = "opc.tcp://h:1"
security = "Basic256Sha256:Sign"
certificate_file = "{here}/own/gateway.der"
key_file = "{here}/own/gateway.pem"
trust_dir = "{here}/trusted"
user = "op"
password_file = "{here}/secret"
[[source.device]]
name = "d"
browse = ["i=85"]
[mqtt]
url = "mqtts://b:1"
ca_file = "{here}/ca.pem"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with all that the configuration names, in order."""
    own_certificate(tmp_path / "own", "urn:a:edgemirror", "a")
    device, _ = make_certificate(tmp_path / "trusted", "device", "urn:d", server=True)
    (tmp_path / "trusted" / "device.pem").unlink()
    authority, _ = make_certificate(tmp_path / "ca", "ca", "urn:ca", server=True, is_ca=True)
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = x509.load_der_x509_certificate(authority.read_bytes()).public_bytes(Encoding.PEM)
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    assert device.exists()
    return tmp_path


def config(here: Path) -> Config:
    return parse(SECURED.replace("{here}", str(here)))


def findings(here: Path) -> dict[str, Finding]:
    return {f.part: f for f in offline(config(here)) if f.level != "ok"}


def test_what_is_in_order_is_told_so(here: Path) -> None:
    left = findings(here)
    assert set(left) == {"mqtt.ca_file", "source s, device.der"}  # made for ten days
    assert all(f.level == "warning" and "expires in" in f.text for f in left.values())


@pytest.mark.parametrize(
    ("harm", "part", "level", "told"),
    [
        (lambda h: (h / "secret").chmod(0o640), "source s, password_file", "warning", "mode 0640"),
        (lambda h: (h / "secret").unlink(), "source s, password_file", "failed", "is no file"),
        (lambda h: (h / "secret").write_text("\n"), "source s, password_file", "failed", "is empty"),
        (lambda h: (h / "own/gateway.pem").chmod(0o644), "source s, key_file", "warning", "chmod 600"),
        (lambda h: (h / "own/gateway.der").write_bytes(b"x"), "source s", "failed", "cannot be read"),
        (lambda h: (h / "own/gateway.pem").write_bytes((h / "ca/ca.pem").read_bytes()), "source s, key_file", "failed",
         "is not the key"),
        (lambda h: (h / "trusted/device.der").unlink(), "source s, trust_dir", "failed", "nobody is trusted"),
        (lambda h: (h / "trusted/b.der").write_bytes(b"x"), "source s, trust_dir", "failed", "is no certificate"),
        (lambda h: (h / "trusted").rename(h / "elsewhere"), "source s, trust_dir", "failed", "is no folder"),
        (lambda h: (h / "ca.pem").write_text("x"), "mqtt.ca_file", "failed", "no certificates in PEM"),
        (lambda h: (h / "data").write_text("x"), "replica.data_dir", "failed", "cannot be written"),
    ],
)  # fmt: skip
def test_what_is_not_in_order_is_named_with_what_to_do(
    here: Path, harm: Callable[[Path], object], part: str, level: str, told: str
) -> None:
    harm(here)
    found = findings(here)[part]
    assert found.level == level and told in found.text + found.hint and found.hint


def test_the_data_directory_is_tried_and_left_as_it_was(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "mirror.db").write_bytes(b"x")
    assert "replica.data_dir" not in findings(here)
    assert [p.name for p in (here / "data").iterdir()] == ["mirror.db"]


def test_a_disk_that_is_too_small_is_told(here: Path) -> None:
    text = SECURED.replace("{here}", str(here)).replace("max_gib = 0.001", "max_gib = 1e9")
    (found,) = [f for f in offline(parse(text)) if f.part == "replica.data_dir"]
    assert found.level == "warning" and "less than journal.max_gib" in found.text


def test_a_certificate_of_our_own_is_made_once_and_never_without_its_key(tmp_path: Path) -> None:
    first = own_certificate(tmp_path, "urn:a", "a")
    before = [p.read_bytes() for p in first]
    assert [p.read_bytes() for p in own_certificate(tmp_path, "urn:other", "b")] == before
    assert first[1].stat().st_mode & 0o777 == 0o600
    first[1].unlink()
    with pytest.raises(ConfigError, match="stands alone"):
        own_certificate(tmp_path, "urn:a", "a")


def test_tags_are_counted_where_a_journal_knows_them(here: Path) -> None:
    assert journal_tags(config(here)) == {}
    journal = Journal.open(here / "data" / "mirror.db", replica="a")
    with journal.transaction():
        journal.add_tags([Tag("urn:s", "urn:n", f"i={i}", device="d") for i in range(3)])
    journal.close()
    assert journal_tags(config(here)) == {"d": 3}


def test_a_broker_that_answers_and_one_that_does_not(here: Path, tmp_path: Path) -> None:
    plain = SECURED.replace("{here}", str(here)).partition("[mqtt]")[0]
    with BrokerServer(tmp_path / "broker") as broker:
        (found,) = ask_broker(parse(f'{plain}[mqtt]\nurl = "{broker.url}"\n'))
        assert found.level == "ok" and "MQTT 3.1.1, logged in" in found.text
    (found,) = ask_broker(parse(f'{plain}[mqtt]\nurl = "mqtt://127.0.0.1:{free_port()}"\n'))
    assert found.level == "away" and found.hint


def test_the_certificate_of_a_user_is_judged_with_its_key(here: Path) -> None:
    user = make_certificate(here / "user", "user", "urn:u", server=False)
    _, stranger = make_certificate(here / "user", "stranger", "urn:u", server=False)
    login = f'user_certificate_file = "{user[0]}"\nuser_key_file = "{{key}}"'
    told = {}
    for key in (user[1], stranger):
        key.chmod(0o600)
        text = SECURED.replace("{here}", str(here))
        text = text.replace(f'user = "op"\npassword_file = "{here}/secret"', login.replace("{key}", str(key)))
        told[key] = {f.part: f.level for f in offline(parse(text))}["source s, user_certificate_file"]
    assert told == {user[1]: "warning", stranger: "failed"}  # it is good for ten days
