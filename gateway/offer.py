"""What a server offers before anybody has a session: names, security policies, users, its certificate.

Everything here was said over an unprotected channel by whoever answered. It is for a person to compare
with what the device itself shows; nothing here makes a certificate trusted (`gateway.io.trust` does that).

Source: OPC UA Part 4, 5.5.4 (GetEndpoints), 7.14 (EndpointDescription), 7.41 (UserTokenPolicy).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, get_args
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.config import Security
from mirror.errors import ConfigError, Corrupt

SECURITIES: tuple[str, ...] = get_args(Security)
#: From the one to take first; Aes256Sha256RsaPss is the newest, Basic256Sha256 the one most devices have.
PREFERENCE = (
    "Aes256Sha256RsaPss:SignAndEncrypt", "Basic256Sha256:SignAndEncrypt", "Aes128Sha256RsaOaep:SignAndEncrypt",
    "Aes256Sha256RsaPss:Sign", "Basic256Sha256:Sign", "Aes128Sha256RsaOaep:Sign",
)  # fmt: skip


def is_endpoint(text: str) -> bool:
    """Tell whether a text is `opc.tcp://host:port`."""
    try:
        url = urlsplit(text)
        return url.scheme == "opc.tcp" and bool(url.hostname) and bool(url.port) and text.isprintable()
    except ValueError:
        return False


class Offer(NamedTuple):
    """One endpoint.

    Attributes:
        security: As the setting spells it: `none`, `Basic256Sha256:SignAndEncrypt`; also policies that are too
            old for the setting.
        users: Ways to log in: `anonymous`, `user name`, `certificate`, `token`.
    """

    security: str
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Offered:
    """A server's answer to GetEndpoints.

    Attributes:
        name: ApplicationName, for people.
        uri: ApplicationUri, the source's identity.
        product_uri: As stated.
        offers: Endpoints over opc.tcp, best first, each security once.
        certificate: The server's certificate (DER), if it has one.
    """

    name: str
    uri: str
    product_uri: str
    offers: tuple[Offer, ...]
    certificate: bytes | None

    @property
    def securities(self) -> tuple[str, ...]:
        """All securities offered, best first."""
        return tuple(offer.security for offer in self.offers)

    @property
    def best(self) -> str:
        """The best of what is offered that the gateway can do; empty if none can be used."""
        return next((s for s in self.securities if s in SECURITIES), "")

    def require(self, endpoint: str, security: str, user: str, *, certificate: bool = False) -> None:
        """Raise ConfigError if this security, or logging in like this, is not offered."""
        offer = next((o for o in self.offers if o.security == security), None)
        if offer is None:
            usable = [s for s in self.securities if s in SECURITIES]
            if not usable:
                told = ", ".join(self.securities) or "nothing"
                raise ConfigError(f"{endpoint} offers only {told}; none of these can be used", hint=_ENABLE)
            raise ConfigError(
                f"{endpoint} does not offer security {security!r}; it offers {', '.join(self.securities)}",
                hint=f"add --security {usable[0]}",
            )
        wanted = "certificate" if certificate else "user name" if user else "anonymous"
        if offer.users and wanted not in offer.users:
            hint = "leave --user out" if user else "add --user NAME --password-file FILE"
            hint = (
                "use --user NAME --password-file FILE, or allow certificate users on the device"
                if certificate
                else hint
            )
            raise ConfigError(
                f"{endpoint} does not let anybody in by {wanted} with security {security!r}, "
                f"only by {' or '.join(offer.users)}",
                hint=hint,
            )


_ENABLE = f"enable {PREFERENCE[1]} on the device"


def best_first(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Return the offers in order of preference, each security once with all its ways to log in."""
    users: dict[str, dict[str, None]] = {}
    for offer in offers:
        users.setdefault(offer.security, {}).update(dict.fromkeys(offer.users))
    rank = {name: place for place, name in enumerate((*PREFERENCE, "none"))}
    order = sorted(users, key=lambda s: (rank.get(s, len(rank)), s))
    return tuple(Offer(s, tuple(users[s])) for s in order)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a person compares.

    Attributes:
        sha1, sha256: Thumbprints in upper-case hex; devices and most tools show the first.
        subject, issuer: As RFC 4514 text.
        uris, hosts: Subject alternative names.
        begin, end: Validity, aware.
        key: Such as `RSA 2048`.
        self_signed: Whether subject and issuer are the same.
    """

    sha1: str
    sha256: str
    subject: str
    issuer: str
    uris: tuple[str, ...]
    hosts: tuple[str, ...]
    begin: datetime
    end: datetime
    key: str
    self_signed: bool

    def is_named(self, thumbprint: str) -> bool:
        """Tell whether a text is one of the two thumbprints, however it is grouped."""
        given = "".join(c for c in thumbprint if c.isalnum()).upper()
        return given in (self.sha1, self.sha256)


def certificate_facts(der: bytes) -> CertificateFacts:
    """Read a certificate.

    Raises:
        Corrupt: It is none.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = _names(certificate)
        key = certificate.public_key()
        subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except ValueError as error:
        raise Corrupt(f"the server's certificate cannot be read: {error}") from error
    if isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA {key.key_size}"
    else:
        kind = f"EC {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    uris = tuple(n.value for n in names if isinstance(n, x509.UniformResourceIdentifier))
    hosts = tuple(str(n.value) for n in names if isinstance(n, x509.DNSName | x509.IPAddress))
    sha1 = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
    sha256 = hashlib.sha256(der).hexdigest().upper()
    return CertificateFacts(sha1, sha256, subject, issuer, uris, hosts, begin, end, kind, subject == issuer)


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
