"""A small press on asyncua's server, in the process of the test, with everything that browsing meets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from asyncua import Server, ua
from asyncua.common.node import Node
from asyncua.common.structures104 import new_enum, new_struct, new_struct_field
from asyncua.crypto.permission_rules import SimpleRoleRuleset
from asyncua.server.user_managers import User, UserManager, UserRole
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.config import Device, Source
from gateway.io.opcua import Connection
from gateway.server import Subscription
from mirror.tags import Tag

NAMESPACE = "urn:press:test"
URI = "urn:edgemirror:test:press"
PASSWORD = "open sesame"
DEFAULT_DEVICE = [Device(name="press", browse=["ns=2;s=Press/**"])]


async def bounded(work: Coroutine[Any, Any, None]) -> None:
    """Run a test; nothing in it may take longer than half a minute."""
    async with asyncio.timeout(30):
        await work


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test that starts servers of its own."""
    asyncio.run(bounded(work))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def source(url: str, **fields: Any) -> Source:
    """Return the configuration of a source."""
    return Source(**{"name": "press", "endpoint": url, "security": "none", "device": DEFAULT_DEVICE, **fields})


@dataclass
class Press:
    """The running server and its nodes by name."""

    server: Server
    url: str
    users: Users
    nodes: dict[str, Node] = field(default_factory=dict)

    async def write(self, name: str, value: object, kind: ua.VariantType = ua.VariantType.Double) -> None:
        now = datetime.now(UTC)
        data = ua.DataValue(ua.Variant(value, kind), SourceTimestamp=now, ServerTimestamp=now)
        await self.server.write_attribute_value(self.nodes[name].nodeid, data)


class Users(UserManager):
    """One user with a password, and those whose certificates are known; nobody is let in without."""

    certificates: frozenset[bytes] = frozenset()

    def get_user(
        self, iserver: Any, username: Any = None, password: Any = None, certificate: Any = None
    ) -> User | None:
        known = (username, password) == ("operator", PASSWORD) if username else certificate in self.certificates
        return User(role=UserRole.User, name=username) if known else None


@contextlib.asynccontextmanager
async def press(
    *, port: int = 0, certificate: tuple[Path, Path] | None = None, users: bool = False, tags: int = 0
) -> AsyncIterator[Press]:
    """Start the server; with a certificate it offers only secured endpoints."""
    known = Users()
    server = Server(user_manager=known if users else None)
    await server.init()
    await server.set_application_uri(URI)
    url = f"opc.tcp://127.0.0.1:{port or free_port()}"
    server.set_endpoint(url)
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    if users:
        server.set_identity_tokens([ua.UserNameIdentityToken, *([ua.X509IdentityToken] if certificate else [])])
    if certificate is not None:
        policies = [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Aes256Sha256RsaPss_Sign]
        server.set_security_policy(policies, permission_ruleset=SimpleRoleRuleset())
        await server.load_certificate(str(certificate[0]))
        await server.load_private_key(str(certificate[1]))
    made = Press(server, url, known)
    await _build(made, tags)
    async with server:
        yield made


async def _build(made: Press, tags: int) -> None:
    server = made.server
    index = await server.register_namespace(NAMESPACE)
    assert index == 2

    async def folder(parent: Node, name: str) -> Node:
        return await parent.add_folder(
            ua.NodeId(name, index), ua.QualifiedName(name.rsplit(".", maxsplit=1)[-1], index)
        )

    async def variable(parent: Node, name: str, value: object, kind: ua.VariantType) -> Node:
        node = await parent.add_variable(
            ua.NodeId(name, index), ua.QualifiedName(name.rsplit(".", maxsplit=1)[-1], index), value, kind
        )
        made.nodes[name] = node
        return node

    top = await folder(server.nodes.objects, "Press")
    hydraulics = await folder(top, "Press.Hydraulics")
    pressure = await variable(hydraulics, "Press.Hydraulics.Pressure", 1.5, ua.VariantType.Double)
    unit = ua.EUInformation("http://www.opcfoundation.org/UA/units/un/cefact", 4338743, ua.LocalizedText("bar"))
    await pressure.add_property(0, "EngineeringUnits", unit)
    await pressure.add_property(0, "EURange", ua.Range(0.0, 250.0))
    await pressure.write_attribute(ua.AttributeIds.Description, ua.DataValue(ua.LocalizedText("behind the pump")))
    await variable(hydraulics, "Press.Hydraulics.Oil/Level", 7, ua.VariantType.Int32)
    await variable(hydraulics, "Press.Hydraulics.Samples", [1.0, 2.0], ua.VariantType.Double)
    await variable(top, "Press.Program", "part-17", ua.VariantType.String)
    await variable(top, "Press.Running", True, ua.VariantType.Boolean)
    diagnostics = await folder(top, "Press.Diagnostics")
    await variable(diagnostics, "Press.Diagnostics.Raw", 0, ua.VariantType.UInt16)
    duration = await variable(top, "Press.Cycle", 12.5, ua.VariantType.Double)
    await duration.write_attribute(ua.AttributeIds.DataType, ua.DataValue(ua.NodeId(ua.ObjectIds.Duration)))
    await hydraulics.add_reference(top, ua.ObjectIds.HasNotifier, bidirectional=False)  # a loop, as real ones have
    await top.add_property(index, "SerialNumber", "4711")
    await _structures(made, top, index)
    if tags:
        many = await folder(server.nodes.objects, "Many")
        for i in range(tags):
            await variable(many, f"Many.t{i}", float(i), ua.VariantType.Double)


async def _structures(made: Press, top: Node, index: int) -> None:
    server = made.server
    mode, _ = (await new_enum(server, index, "Mode", ["Off", "Auto"]), None)
    point, _ = await new_struct(
        server, index, "Point",
        [new_struct_field("X", ua.VariantType.Double), new_struct_field("Y", ua.VariantType.Double, optional=True)],
    )  # fmt: skip
    await new_struct(
        server, index, "Axis",
        [
            new_struct_field("Name", ua.VariantType.String), new_struct_field("Mode", mode),
            new_struct_field("Where", point), new_struct_field("Trace", ua.VariantType.Int32, array=True),
        ],
    )  # fmt: skip
    await server.load_data_type_definitions()
    axis = ua.Axis()  # type: ignore[attr-defined]
    axis.Name, axis.Mode, axis.Trace = "slide", ua.Mode.Auto, [1, 2, 3]  # type: ignore[attr-defined]
    axis.Where.X = 2.5
    made.nodes["Press.Axis"] = await top.add_variable(
        ua.NodeId("Press.Axis", index),
        ua.QualifiedName("Axis", index),
        ua.Variant(axis, ua.VariantType.ExtensionObject),
    )
    made.nodes["Press.Mode"] = await top.add_variable(
        ua.NodeId("Press.Mode", index), ua.QualifiedName("Mode", index), ua.Variant(1, ua.VariantType.Int32),
        datatype=mode.nodeid,
    )  # fmt: skip


async def subscribe_one(connection: Connection) -> Subscription:
    """Subscribe to one tag: asyncua's server keeps no session without a subscription when its socket goes."""
    items = [(0, Tag(URI, NAMESPACE, "s=Press.Cycle"), 0.0, 100)]
    return await connection.subscribe(50, items, keep_alive_count=4, lifetime_count=400)


# ---- certificates ---------------------------------------------------------------------------------------


def make_certificate(
    folder: Path, name: str, uri: str, *, server: bool, ca: tuple[Path, Path] | None = None, is_ca: bool = False,
    begin: timedelta = timedelta(days=-1), usage: bool = True,
) -> tuple[Path, Path]:  # fmt: skip
    """Write a certificate (DER) and key (PEM), self-signed or signed by a CA; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(65537, 2048)
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key
    if ca is not None:
        issuer = x509.load_der_x509_certificate(ca[0].read_bytes()).subject
        loaded = serialization.load_pem_private_key(ca[1].read_bytes(), None)
        assert isinstance(loaded, rsa.RSAPrivateKey)
        signer = loaded
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), x509.DNSName("localhost")]
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now + begin)
        .not_valid_after(now + begin + timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), True)
        .add_extension(x509.KeyUsage(True, True, True, True, False, is_ca, is_ca, False, False), True)
    )  # fmt: skip
    if usage:
        role = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([role]), False)
    certificate = builder.sign(signer, hashes.SHA256())
    paths = folder / f"{name}.der", folder / f"{name}.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
