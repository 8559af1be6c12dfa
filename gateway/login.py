"""Which of a server's endpoints is used, and which of its ways to log in; some are never taken.

A server says in which policy a password is to be encrypted, and some say: in none. What it says first is no reason
to take it. A password goes out encrypted by its own policy or inside an encrypted channel, or not at all, unless
the configuration says in words that everybody may read it. A certificate's proof needs a policy to sign under.

What it does not do: talk to servers (`gateway.io.opcua`), or encrypt.

Source: OPC UA Part 4, 7.36 (UserIdentityToken) and 7.42 (UserTokenPolicy).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

from gateway.config import Source
from mirror.errors import ConfigError

_URI = "http://opcfoundation.org/UA/SecurityPolicy#"
#: Policies under which secrets are encrypted and proofs signed, the one to take first in front.
MODERN = tuple(_URI + name for name in ("Aes256_Sha256_RsaPss", "Aes128_Sha256_RsaOaep", "Basic256Sha256"))
NONE = _URI + "None"


class Mode(IntEnum):
    """MessageSecurityMode."""

    NONE = 1
    SIGN = 2
    SIGN_AND_ENCRYPT = 3


class User(IntEnum):
    """UserTokenType."""

    ANONYMOUS = 0
    NAME = 1
    CERTIFICATE = 2
    TOKEN = 3


class TokenPolicy(Protocol):
    """One way to log in, as asyncua holds it; without a policy of its own the channel's counts."""

    TokenType: int
    SecurityPolicyUri: str | None


class Endpoint(Protocol):
    """An endpoint as asyncua holds it."""

    EndpointUrl: str
    SecurityPolicyUri: str
    SecurityMode: int
    SecurityLevel: int


E = TypeVar("E", bound=Endpoint)
P = TypeVar("P", bound=TokenPolicy)


def endpoint(config: Source, policy: str, offered: Sequence[E]) -> E:
    """Return the endpoint of the configured policy and mode, the server's preferred one.

    Args:
        config: The source.
        policy: URI of the policy that it asks for.
        offered: What the server has.

    Raises:
        ConfigError: It has none such.
    """
    mode = {"": Mode.NONE, "Sign": Mode.SIGN, "SignAndEncrypt": Mode.SIGN_AND_ENCRYPT}[
        config.security.partition(":")[2]
    ]
    found = [e for e in offered if e.SecurityPolicyUri == policy and e.SecurityMode == mode]
    found = [e for e in found if e.EndpointUrl.startswith("opc.tcp")]
    if not found:
        names = {f"{e.SecurityPolicyUri.rpartition('#')[2]}:{_mode(e.SecurityMode)}" for e in offered}
        raise ConfigError(f"{config.endpoint} does not offer {config.security}; it offers {', '.join(sorted(names))}")
    return max(found, key=lambda e: e.SecurityLevel)


def way(config: Source, offered: Sequence[P], channel: str) -> list[P]:
    """Return the one way to log in that is to be used, or none where the server named none of its kind.

    Args:
        config: The source: who logs in, and under which security.
        offered: What the server's endpoint says.
        channel: URI of the channel's policy.

    Raises:
        ConfigError: The password would be readable on the network, or a certificate could not be proved.
    """
    kind = User.CERTIFICATE if config.user_certificate_file else User.NAME if config.user else User.ANONYMOUS
    ways = [p for p in offered if p.TokenType == kind]
    safe = sorted((p for p in ways if _policy(p, channel) in MODERN), key=lambda p: MODERN.index(_policy(p, channel)))
    if kind is User.CERTIFICATE:
        if not safe:
            raise ConfigError(
                f"{config.endpoint} lets nobody log in with a certificate under {config.security}; it offers "
                f"{', '.join(_told(offered, channel)) or 'nothing'}",
                hint="allow certificate users on the device, or set source.user and source.password_file",
            )
        return safe[:1]
    if kind is User.ANONYMOUS or config.security.endswith(":SignAndEncrypt"):
        return ways[:1]
    if not safe and (ways or channel not in MODERN) and not config.password_in_clear:
        raise ConfigError(
            f"{config.endpoint} takes the password of user {config.user!r} only so that everybody on the network can "
            "read it; it was not sent",
            hint='set source.security to "Basic256Sha256:SignAndEncrypt" or better, or, where nobody else can listen, '
            "source.password_in_clear to true (--password-in-clear)",
        )
    encrypted = [p for p in ways if _policy(p, channel) != NONE]  # a policy that is old is still better than none
    return (safe or encrypted or ways)[:1]


def _policy(way: TokenPolicy, channel: str) -> str:
    return way.SecurityPolicyUri or channel


def _told(offered: Sequence[TokenPolicy], channel: str) -> list[str]:
    names: dict[int, str] = {User.ANONYMOUS: "anonymous", User.NAME: "user name", User.CERTIFICATE: "certificate"}
    return sorted({
        f"{names.get(p.TokenType, 'token')} ({_policy(p, channel).rpartition('#')[2]})" for p in offered
    })  # fmt: skip


def _mode(mode: int) -> str:
    names: dict[int, str] = {Mode.NONE: "None", Mode.SIGN: "Sign", Mode.SIGN_AND_ENCRYPT: "SignAndEncrypt"}
    return names.get(mode, str(mode))
