"""Which way to log in is taken, that no password is readable unless somebody wrote so, and users by certificate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Source
from gateway.io import opcua
from gateway.io.identity import load_pair
from gateway.io.opcua import Connection
from gateway.login import MODERN, NONE, User, endpoint, way
from mirror.errors import ConfigError
from tests.gateway.opcua_server import PASSWORD, URI, make_certificate, press, run, source, subscribe_one

PSS, OAEP, SHA256 = MODERN
OLD = NONE.replace("None", "Basic128Rsa15")


@dataclass(frozen=True)
class Offer:
    """A way to log in as a server names it."""

    TokenType: int
    SecurityPolicyUri: str | None


def asked(security: str = "none", **fields: Any) -> Source:
    files = {"certificate_file": "c", "key_file": "k", "trust_dir": "t"} if security != "none" else {}
    return source("opc.tcp://h:1", security=security, **files, **fields)


def names(*policies: str | None) -> list[Offer]:
    return [Offer(User.NAME, policy) for policy in policies]


@pytest.mark.parametrize("channel", [NONE, SHA256])
@pytest.mark.parametrize("order", list(permutations([NONE, OLD, SHA256, PSS])))
def test_a_password_is_encrypted_in_the_best_way_whatever_the_server_names_first(
    channel: str, order: tuple[str, ...]
) -> None:
    security = "none" if channel == NONE else "Basic256Sha256:Sign"
    assert way(asked(security, user="u"), names(*order), channel) == names(PSS)


@pytest.mark.parametrize("offered", [names(NONE), names(None), names(""), names(NONE, OLD), []])
def test_a_password_that_everybody_could_read_is_sent_only_if_somebody_wrote_so(offered: list[Offer]) -> None:
    with pytest.raises(ConfigError, match="it was not sent") as raised:
        way(asked(user="u"), offered, NONE)
    assert "source.password_in_clear" in raised.value.hint and "SignAndEncrypt" in raised.value.hint
    chosen = way(asked(user="u", password_in_clear=True), offered, NONE)
    assert chosen == (names(OLD) if OLD in [o.SecurityPolicyUri for o in offered] else offered[:1])


def test_a_signed_channel_hides_nothing_and_an_encrypted_one_everything() -> None:
    with pytest.raises(ConfigError, match="it was not sent"):
        way(asked("Basic256Sha256:Sign", user="u"), names(NONE), SHA256)
    assert way(asked("Basic256Sha256:SignAndEncrypt", user="u"), names(NONE), SHA256) == names(NONE)
    assert way(asked("Basic256Sha256:Sign", user="u"), names(None), SHA256) == names(None)  # the channel's own policy
    assert way(asked("Basic256Sha256:Sign", user="u"), [], SHA256) == []  # asyncua takes the channel's


def test_who_is_anonymous_has_nothing_to_hide() -> None:
    offered = [Offer(User.NAME, NONE), Offer(User.ANONYMOUS, NONE)]
    assert way(asked(), offered, NONE) == offered[1:]


def test_a_certificate_is_proved_under_a_policy_or_not_at_all() -> None:
    config = asked("Basic256Sha256:Sign", user_certificate_file="c", user_key_file="k")
    offered = [Offer(User.ANONYMOUS, None), Offer(User.CERTIFICATE, OLD), Offer(User.CERTIFICATE, OAEP)]
    assert way(config, offered, SHA256) == offered[2:]
    assert way(config, [Offer(User.CERTIFICATE, None)], SHA256) == [Offer(User.CERTIFICATE, None)]
    for refused in ([Offer(User.CERTIFICATE, NONE)], [Offer(User.ANONYMOUS, None)], [Offer(9, None)], []):
        with pytest.raises(ConfigError, match="lets nobody log in with a certificate"):
            way(config, refused, SHA256)


@dataclass(frozen=True)
class Place:
    """An endpoint."""

    SecurityPolicyUri: str
    SecurityMode: int
    SecurityLevel: int = 0
    EndpointUrl: str = "opc.tcp://h:1"


def test_the_endpoint_is_the_one_asked_for_and_the_server_s_preferred_one_of_several() -> None:
    offered = [Place(SHA256, 3, 1), Place(SHA256, 3, 9), Place(SHA256, 2, 99), Place(SHA256, 3, 50, "https://h")]
    assert endpoint(asked("Basic256Sha256:SignAndEncrypt"), SHA256, offered) == offered[1]
    with pytest.raises(ConfigError, match="it offers Basic256Sha256:Sign, Basic256Sha256:SignAndEncrypt, None:9"):
        endpoint(asked(), NONE, [*offered, Place(NONE, 9)])


def test_two_files_that_do_not_belong_together_are_told_by_name(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "user", "urn:user", server=False)
    _, other = make_certificate(tmp_path, "other", "urn:user", server=False)
    assert load_pair(str(certificate), str(key))[1].key_size == 2048
    for pair, told in (
        ((certificate, other), r"other\.pem is not the key of .*user\.der"),
        ((key, key), r"user\.pem is no certificate"),
        ((certificate, certificate), r"user\.der is no private key"), ((tmp_path / "no", key), "no is no certificate"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            load_pair(*map(str, pair))


# ---- over the wire --------------------------------------------------------------------------------------


def test_no_byte_of_the_password_reaches_a_server_that_would_have_it_readable() -> None:
    async def work() -> None:
        async with press(users=True) as made:
            asked_for: list[object] = []
            get_user = made.users.get_user
            made.users.get_user = lambda *a, **k: asked_for.append(k) or get_user(*a, **k)  # type: ignore[method-assign,func-returns-value]
            with pytest.raises(ConfigError, match="it was not sent"):
                await Connection(source(made.url, user="operator"), password=PASSWORD).connect()
            assert asked_for == []

    run(work())


def test_a_user_is_let_in_by_certificate_and_key_and_resumes_by_them_and_not_with_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_certificate(tmp_path, "server", URI, server=True)
    ours = make_certificate(tmp_path, "us", "urn:edgemirror:gateway:test", server=False)
    user, other = (make_certificate(tmp_path, name, f"urn:{name}", server=False) for name in ("user", "other"))
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "server.der").write_bytes(theirs[0].read_bytes())

    async def work() -> None:
        async with press(certificate=theirs, users=True) as made:
            made.users.certificates = frozenset([user[0].read_bytes()])

            def connection(security: str, who: tuple[Path, Path] = user) -> Connection:
                return Connection(source(
                    made.url, security=security, certificate_file=str(ours[0]), key_file=str(ours[1]),
                    trust_dir=str(tmp_path / "trust"), user_certificate_file=str(who[0]), user_key_file=str(who[1]),
                ))  # fmt: skip

            for security in ("Basic256Sha256:SignAndEncrypt", "Aes256Sha256RsaPss:Sign"):
                first = connection(security)
                await first.connect()
                await subscribe_one(first)
                secret = first.session_secret()
                first.abort()
                heir = connection(security)
                await heir.resume(secret)
                assert (await heir.server_facts()).uri == URI
                await heir.close()
                with pytest.raises(ConfigError, match="BadUserAccessDenied"):
                    await connection(security, other).connect()
                with monkeypatch.context() as patched:  # a thief who has the certificate, and a key of his own
                    patched.setattr(
                        opcua, "load_pair", lambda *_: (load_pair(*map(str, user))[0], load_pair(*map(str, other))[1])
                    )
                    with pytest.raises(ConfigError, match="BadIdentityTokenInvalid"):
                        await connection(security).connect()

    run(work())
