"""What a server offers, and what its certificate says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.offer import Offer, Offered, best_first, certificate_facts
from mirror.errors import ConfigError, Corrupt
from tests.gateway.opcua_server import make_certificate

URL = "opc.tcp://h:1"


def offered(*offers: Offer) -> Offered:
    return Offered("Press", "urn:press", "", best_first(offers), None)


def test_the_best_offer_stands_first_and_each_security_once() -> None:
    found = best_first([
        Offer("none", ("anonymous",)), Offer("Basic256:Sign", ()), Offer("Basic256Sha256:Sign", ("anonymous",)),
        Offer("Basic256Sha256:SignAndEncrypt", ()), Offer("none", ("user name",)),
    ])  # fmt: skip
    names = [o.security for o in found]
    assert names == ["Basic256Sha256:SignAndEncrypt", "Basic256Sha256:Sign", "none", "Basic256:Sign"]
    assert found[2].users == ("anonymous", "user name")


def test_what_is_not_offered_is_refused_with_what_is() -> None:
    server = offered(Offer("Basic256Sha256:Sign", ("anonymous",)), Offer("Basic256:Sign", ()))
    server.require(URL, "Basic256Sha256:Sign", "")
    with pytest.raises(ConfigError, match="offers Basic256Sha256:Sign") as error:
        server.require(URL, "none", "")
    assert error.value.hint == "add --security Basic256Sha256:Sign"
    with pytest.raises(ConfigError, match="none of these can be used"):
        offered(Offer("Basic256:Sign", ())).require(URL, "none", "")
    assert server.best == "Basic256Sha256:Sign" and offered().best == ""


def test_a_login_that_is_not_offered_is_refused_with_the_option_to_add() -> None:
    with pytest.raises(ConfigError, match="only by user name") as error:
        offered(Offer("none", ("user name",))).require(URL, "none", "")
    assert "--user" in error.value.hint
    with pytest.raises(ConfigError, match="only by anonymous"):
        offered(Offer("none", ("anonymous",))).require(URL, "none", "operator")


def test_a_certificate_says_what_a_person_compares(tmp_path: Path) -> None:
    file, _ = make_certificate(tmp_path, "press", "urn:press", server=True)
    facts = certificate_facts(file.read_bytes())
    assert facts.subject == "CN=press" and facts.uris == ("urn:press",) and facts.hosts == ("localhost",)
    assert facts.self_signed and facts.key == "RSA 2048" and facts.begin < facts.end
    grouped = ":".join(facts.sha1[i : i + 2] for i in range(0, 40, 2)).lower()
    assert facts.is_named(grouped) and facts.is_named(facts.sha256) and not facts.is_named("") and len(facts.sha1) == 40


def test_bytes_that_are_no_certificate_are_corrupt() -> None:
    with pytest.raises(Corrupt):
        certificate_facts(b"0\x03abc")
