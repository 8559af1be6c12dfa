"""Ask a server what it offers, and what it says of itself, before anything is decided about it.

`discover` opens an unprotected channel, asks for the endpoints and leaves: no session, no user, no
password. So nothing that it returns is proven; it is shown to a person, who compares.
"""

from __future__ import annotations

from typing import Any

from gateway.capabilities import CAPABILITY_NODES, Capabilities, capabilities_of
from gateway.config import Device, Source
from gateway.io.opcua import Connection
from gateway.offer import Offer, Offered, best_first
from mirror.errors import MirrorError, Unavailable

_VALUE = 13
_MODES = {1: "None", 2: "Sign", 3: "SignAndEncrypt"}
_USERS = {0: "anonymous", 1: "user name", 2: "certificate", 3: "token"}


class _Channel(Connection):
    """A connection that asks one question over its channel and never makes a session."""

    async def offered(self) -> Offered:
        async with self._opening("discovery") as client:
            endpoints = await client.get_endpoints()
        await self.close(keep_session=True)
        return _offered(endpoints)


async def discover(endpoint: str, *, timeout_s: float = 10.0) -> Offered:
    """Return what a server offers.

    Args:
        endpoint: `opc.tcp://host:port`.
        timeout_s: For each answer.

    Raises:
        Unavailable: Nobody answers there as an OPC UA server does.
    """
    everything = Device(name="all", browse=["i=85/**"])
    channel = _Channel(
        Source(name="server", endpoint=endpoint, security="none", request_timeout_s=timeout_s, device=[everything])
    )
    try:
        offered = await channel.offered()
    except MirrorError as error:
        raise Unavailable(
            f"{endpoint} does not answer as an OPC UA server: {error}", hint="check address, port and firewall"
        ) from error
    return offered


async def capabilities(connection: Connection) -> Capabilities:
    """Return what a server says of its limits and of its present load."""
    return capabilities_of(await connection.attributes(CAPABILITY_NODES, _VALUE))


def _offered(endpoints: Any) -> Offered:
    usable = [e for e in endpoints or () if (e.EndpointUrl or "opc.tcp").startswith("opc.tcp")]
    offers = [Offer(_security(e), tuple(_user(t) for t in e.UserIdentityTokens or ())) for e in usable]
    chain = next((bytes(e.ServerCertificate) for e in usable if e.ServerCertificate), None)
    server = next((e.Server for e in usable if e.Server is not None), None)
    name = server.ApplicationName.Text if server is not None and server.ApplicationName is not None else ""
    uri, product = (server.ApplicationUri, server.ProductUri) if server is not None else ("", "")
    return Offered(name or "", uri or "", product or "", best_first(offers), _leaf(chain))


def _user(policy: Any) -> str:
    return _USERS.get(int(policy.TokenType), "token")


def _security(endpoint: Any) -> str:
    policy = (endpoint.SecurityPolicyUri or "").rpartition("#")[2].replace("_", "")
    mode = _MODES.get(int(endpoint.SecurityMode), "?")
    return "none" if policy == "None" else f"{policy or '?'}:{mode}"


def _leaf(chain: bytes | None) -> bytes | None:
    """Return the first certificate of a chain: DER begins with its own length."""
    if not chain or len(chain) < 4 or chain[0] != 0x30 or chain[1] & 0x80 == 0:
        return chain
    width = chain[1] & 0x7F
    return chain[: 2 + width + int.from_bytes(chain[2 : 2 + width], "big")]
