"""A session with one OPC UA server: the only place that knows asyncua.

asyncua carries sockets, secure channels and services; the publish loop is ours, because it keeps one
request outstanding and acknowledges before anything is stored. So its loop is switched off, and Publish,
Republish, Read and HistoryRead hand out the response as bytes, which `gateway.decode` turns into columns.

Rules. Private names of asyncua are used, so its version is pinned and every name is checked at import. A
secured server's certificate is checked against the trust folder before anything is sent to it, also when
a session is resumed, where asyncua would not. Nothing here reconnects: a lost connection fails all that
is under way with Unavailable, and the owner makes a new one.

What it does not do: judge sequence numbers, keep state across connections, or decide what to subscribe.

Source: OPC UA Part 4, 5.5 to 5.14 and 6.7.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import make_dataclass, replace
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from asyncua import Client, ua
from asyncua.client.ua_client import UASocketProtocol
from asyncua.client.ua_session import UaSession
from asyncua.common.utils import Buffer
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties, der_from_x509, x509_from_der
from asyncua.ua.ua_binary import Primitives, nodeid_from_binary, nodeid_to_binary

from gateway import login, monitor, server
from gateway.browse import node_text
from gateway.config import Source
from gateway.decode import read_republish, read_values
from gateway.io import history, trustlist
from gateway.io.browse import browse
from gateway.io.identity import load_pair
from gateway.io.trust import application_uri
from gateway.server import FACT_NODES, OPERATOR_MENDS, MonitoredItem, Refused, Revised, ServerFacts, Subscription
from mirror.batch import Batch, Kind, concat
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable
from mirror.status import status_name
from mirror.tags import Tag
from mirror.variant import Structure
from mirror.wire import decode, encode

MESSAGE_BYTES_MAX = 64 << 20  # a longer response is refused and ends the connection
NODES_PER_CALL = 1000  # or fewer, where the server says so
CLOSE_S = 2.0
_BAD = 0x80000000
_VALUE, _USER_ACCESS_LEVEL = 13, 18
_NOWHERE = "ns=65535;i=0"  # what no server has: the row then says BadNodeIdUnknown
_HISTORY_READ = 0x04  # bit of AccessLevel


class _Secret(msgspec.Struct, frozen=True):
    token: bytes
    nonce: bytes


class Connection:
    """One channel and session. Use once: connect or resume, then close.

    Args:
        config: The server: endpoint, security, files, user, timeouts.
        password: Of the configured user.

    Attributes:
        missing: Roots of the last `browse` that the server does not have.
        opened: Whether the server has opened a channel, so that it is there.
    """

    def __init__(self, config: Source, *, password: str = "") -> None:
        self.url = config.endpoint
        self.session_timeout_s = config.session_timeout_s
        self.missing: list[str] = []
        self.opened = False
        self._config = config
        self._password = password
        self._client: Any = None
        self._facts: ServerFacts | None = None
        self._shown: tuple[bytes, str] | None = None  # the server's certificate and URI
        self._structures: dict[str, Structure] = {}

    async def connect(self) -> None:
        """Open a channel, create a session and activate it.

        Raises:
            Unavailable: Nobody answers, or not now.
            ConfigError: The server does not trust us, we do not trust it, or the user is refused.
        """
        async with self._opening("connect") as client:
            await client.create_session()
            await self._log_in(client)
            self.session_timeout_s = client.session_timeout / 1000

    async def resume(self, secret: bytes) -> None:
        """Open a channel and take up a former session with it; its subscriptions live on.

        Args:
            secret: From `session_secret`, of a session of the same user and security.

        Raises:
            Refused: The server no longer has the session, or not for us.
            Unavailable, ConfigError: As for `connect`.
        """
        try:
            former = msgspec.msgpack.decode(secret, type=_Secret)
            token = nodeid_from_binary(Buffer(former.token))
        except (msgspec.MsgspecError, ua.UaError, ValueError, TypeError, IndexError) as error:
            raise Corrupt(f"the stored session of {self.url} is not one: {error}") from error
        async with self._opening("resume") as client:
            endpoints = await client.get_endpoints()
            # asyncua learns these two only in create_session; passwords are encrypted with them.
            client._policy_ids = self._endpoint(endpoints).UserIdentityTokens
            chain = next((e.ServerCertificate for e in endpoints if e.ServerCertificate), None)
            if chain is not None and not client.security_policy.peer_certificate:
                client.security_policy.peer_certificate = _first(chain)
            client.uaclient.session.restore_authentication_token(token)
            client._server_nonce = former.nonce
            try:
                await self._log_in(client)
            except ua.UaStatusCodeError as error:
                raise Refused("resume", error.code) from error

    def session_secret(self) -> bytes:
        """Return what `resume` needs. Whoever holds it can take over the session: store it encrypted."""
        client = self._ready()
        token = nodeid_to_binary(client.uaclient.session.authentication_token)
        return msgspec.msgpack.encode(_Secret(token, client._server_nonce or b""))

    async def close(self, *, keep_session: bool = False) -> None:
        """Close session, subscriptions and channel; or drop the socket alone, to `resume` the session later."""
        client, self._client = self._client, None
        if client is None:
            return
        if not keep_session:  # some servers end the session with its channel: to keep it, only the socket goes
            with contextlib.suppress(Exception):  # what a dying connection says on its way out changes nothing
                async with asyncio.timeout(CLOSE_S):
                    await client.close_session()
                    await client.close_secure_channel()
        self._abort(client)

    def abort(self) -> None:
        """Drop the socket at once; all that is under way fails with Unavailable."""
        if self._client is not None:
            self._abort(self._client)

    async def check(self) -> None:
        """Ask the server whether it runs; raise Unavailable if it does not say so in time."""
        if (state := (await self.attributes(["i=2259"], _VALUE))[0]) != 0:
            raise Unavailable(f"{self.url} is in state {state}; a running server is in state 0")

    @contextlib.asynccontextmanager
    async def _opening(self, what: str) -> AsyncIterator[Any]:
        """Open a channel and give it to the block, which makes a session on it; close it if either fails."""
        assert self._client is None, "a connection is used once"
        client: Any = Client(self.url, timeout=self._config.request_timeout_s)
        client.name = client.description = "edgemirror"
        client.session_timeout = int(self.session_timeout_s * 1000)
        client.max_messagesize = MESSAGE_BYTES_MAX
        client.set_max_concurrent_requests(1000)
        client.uaclient.session.ensure_publish_loop = lambda: None
        client.uaclient.pre_request_hook = None
        self._client = client
        try:
            with _reactions(f"{what} to {self.url}", operator=True):
                await self._secure(client)
                await client.connect_socket()
                _fail_at_once(client.uaclient.protocol)
                await client.send_hello()
                client.uaclient.protocol._connection._limits.max_message_size = MESSAGE_BYTES_MAX
                await client.open_secure_channel()
                self.opened = True
                yield client
                client._start_renew_loop()
        except BaseException:
            await self.close(keep_session=what == "resume")
            raise

    async def _secure(self, client: Any) -> None:
        """Choose endpoint and policy, and check the server's certificate before it gets to see ours.

        The channel is opened with the certificate checked here and proves that the server has its key, so
        that a resumed session, for which asyncua checks nothing, is as safe as a new one.
        """
        config = self._config
        client.application_uri = application_uri(config.certificate_file)
        if config.user:
            client.set_user(config.user)
            client.set_password(self._password)
        if config.user_certificate_file:
            pair = load_pair(config.user_certificate_file, config.user_key_file)
            client.user_certificate, client.user_private_key = pair
        if config.security == "none":
            return
        endpoint = self._endpoint(await client.connect_and_get_server_endpoints())
        der, uri = _first(endpoint.ServerCertificate), endpoint.Server.ApplicationUri or ""
        self._shown = (der, uri)
        self.check_trust()
        await client.set_security(
            _policy(config.security), config.certificate_file, config.key_file,
            server_certificate=CertProperties(der, "der"), mode=endpoint.SecurityMode,
        )  # fmt: skip

    def check_trust(self) -> None:
        """Check the certificate that the server has shown; ConfigError if it is not trusted, or not any more."""
        if self._shown is not None:
            trustlist.check(*self._shown, self._config.name, self._config.trust_dir)

    def _endpoint(self, endpoints: Sequence[Any]) -> Any:
        return login.endpoint(self._config, _policy(self._config.security).URI, endpoints)

    async def _log_in(self, client: Any) -> None:
        """Activate the session in one chosen way: asyncua would take the first, also one that shows a password."""
        client._policy_ids = login.way(self._config, client._policy_ids, client.security_policy.URI)
        await client._activate_with_credentials()

    def _abort(self, client: Any) -> None:
        task, protocol = client._renew_channel_task, client.uaclient.protocol
        if task is not None:
            task.cancel()
        if protocol is not None and protocol.transport is not None:
            protocol.transport.abort()
            protocol._fail_all_pending(ConnectionError("connection dropped"))

    def _ready(self) -> Any:
        if self._client is None:
            raise Unavailable(f"not connected to {self.url}")
        return self._client

    def _session(self) -> Any:
        return self._ready().uaclient.session

    async def _ask(self, what: str, request: object, timeout: float | None = None) -> bytes:
        """Send a request and return the whole response."""
        with _reactions(what):
            buffer = await self._session()._send_request(request, timeout)
        body: bytes = buffer._data[buffer._cur_pos :]
        return body

    async def publish(self, acknowledge: Sequence[tuple[int, int]] = ()) -> bytes:
        """Wait for the next message; give it to `gateway.decode.read_publish`.

        Args:
            acknowledge: (subscription, sequence number) pairs whose samples are durable.

        Raises:
            Refused: A fault, such as BadNoSubscription or BadTooManyPublishRequests.
            Unavailable: The connection is lost; nothing is known of the acknowledgements.
        """
        request = ua.PublishRequest()
        request.Parameters.SubscriptionAcknowledgements = [ua.SubscriptionAcknowledgement(s, n) for s, n in acknowledge]
        return await self._ask("Publish", request, 0)

    async def republish(self, subscription: int, sequence: int) -> bytes:
        """Fetch a message again; give it to `gateway.decode.read_republish`, which may find it Corrupt.

        Some servers answer Good for numbers that they do not have, with an empty message or another one:
        an answer with another number counts as not there.

        Raises:
            Refused: Mostly BadMessageNotAvailable: the server no longer has it.
        """
        request = ua.RepublishRequest()
        request.Parameters.SubscriptionId = subscription
        request.Parameters.RetransmitSequenceNumber = sequence
        body = await self._ask("Republish", request)
        with contextlib.suppress(Corrupt):
            message = read_republish(body)
            if message.service_result & _BAD:
                raise Refused("Republish", message.service_result)
            if message.sequence != sequence or not message.notifications:
                raise Refused("Republish", ua.StatusCodes.BadMessageNotAvailable)
        return body

    async def subscribe(
        self, publishing_ms: float, items: Sequence[tuple[int, Tag, float, int]], *,
        keep_alive_count: int, lifetime_count: int,
    ) -> Subscription:  # fmt: skip
        """Create a subscription that reports every item, with both times, oldest discarded first.

        Items that the server refuses are listed in the result; the others are subscribed.

        Args:
            publishing_ms: Publishing interval asked for.
            items: Each a `gateway.server.MonitoredItem`.
            keep_alive_count, lifetime_count: Asked for, in publishing intervals.

        Raises:
            Unavailable: Nothing is left behind on the server if it still answers.
        """
        parameters = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=publishing_ms, RequestedLifetimeCount=lifetime_count,
            RequestedMaxKeepAliveCount=keep_alive_count, MaxNotificationsPerPublish=0, PublishingEnabled=True,
        )  # fmt: skip
        with _reactions("CreateSubscription"):
            made = await self._session().create_subscription(parameters, lambda _result: None)
        try:
            revised, refused, ticks = await self.monitor(made.SubscriptionId, [MonitoredItem(*i) for i in items])
        except Unavailable:
            with contextlib.suppress(Unavailable):
                await self.delete_subscription(made.SubscriptionId)
            raise
        return Subscription(
            made.SubscriptionId, made.RevisedPublishingInterval, made.RevisedMaxKeepAliveCount,
            made.RevisedLifetimeCount, revised, refused, ticks,
        )  # fmt: skip

    async def monitor(
        self, subscription: int, items: Sequence[MonitoredItem]
    ) -> tuple[dict[int, Revised], dict[int, int], int]:
        """Add items to a subscription; return by handle the accepted, the refused, and the server's time."""
        nodes = await self._nodes([(item.handle, item.tag) for item in items])
        refused = {item.handle: ua.StatusCodes.BadNodeIdUnknown for item in items if item.handle not in nodes}
        todo = [item for item in items if item.handle in nodes]
        size, start = min((await self.server_facts()).limits.monitor or NODES_PER_CALL, NODES_PER_CALL), 0
        revised, ticks = {}, 0
        while start < len(todo):
            part = todo[start : start + size]
            wanted = monitor.items([(item, nodes[item.handle]) for item in part])
            both = ua.TimestampsToReturn.Both
            request = _CreateMonitoredItems(_node_id("i=751"), ua.RequestHeader(), subscription, both, wanted)
            try:
                codes, accepted, ticks = monitor.results(await self._ask("CreateMonitoredItems", request))
            except Refused as error:
                if error.code != ua.StatusCodes.BadTooManyOperations or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            server.complete("CreateMonitoredItems", codes, part)
            for item, code, result in zip(part, codes, accepted, strict=True):
                if code & _BAD:
                    refused[item.handle] = code
                else:
                    revised[item.handle] = result
            start += size
        return revised, refused, ticks

    async def delete_subscription(self, subscription: int) -> None:
        """Delete a subscription; one that is not there counts as deleted."""
        with _reactions("DeleteSubscriptions"):
            await self._session().delete_subscriptions([subscription])

    async def transfer(
        self, subscriptions: Sequence[int], refused: dict[int, int] | None = None
    ) -> dict[int, tuple[int, ...]]:
        """Take over subscriptions of another session, without having all values sent again.

        Args:
            subscriptions: Their ids.
            refused: Gets the StatusCode of those that were not transferred; a server without the service
                refuses all with the same.

        Returns:
            By id, those that are ours now, with the sequence numbers that can be fetched again.
        """
        refused = {} if refused is None else refused
        parameters = ua.TransferSubscriptionsParameters(SubscriptionIds=list(subscriptions), SendInitialValues=False)
        try:
            with _reactions("TransferSubscriptions"):
                results = await self._session().transfer_subscriptions(parameters)
        except Refused as error:
            refused.update(dict.fromkeys(subscriptions, error.code))
            return {}
        server.complete("TransferSubscriptions", results, subscriptions)
        ours = {}
        for subscription, result in zip(subscriptions, results, strict=True):
            if result.StatusCode.value & _BAD:
                refused[subscription] = result.StatusCode.value
            else:
                ours[subscription] = tuple(result.AvailableSequenceNumbers or ())
        return ours

    async def server_facts(self) -> ServerFacts:
        """Return what the server says of itself; asked once for each connection."""
        if self._facts is None:
            self._facts = server.facts_of(await self.attributes(FACT_NODES, _VALUE))
        return self._facts

    async def browse(self, device: str, roots: Sequence[str], exclude: Sequence[str] = ()) -> list[Tag]:
        """Return the variables of a device; see `gateway.io.browse.browse`. Sets `missing`."""
        found = await browse(self, await self.server_facts(), device, roots, exclude)
        self.missing = found.missing
        self._structures |= found.structures
        return found.tags

    async def structures(self, _tags: Sequence[Tag] = ()) -> dict[str, Structure]:
        """Return the definitions met while browsing, by the encoding that an ExtensionObject carries."""
        return dict(self._structures)

    async def read(self, tags: Sequence[tuple[int, Tag]]) -> Batch:
        """Return the value that each tag has now, by (handle, tag); a failure is the status of its row."""
        known = await self._nodes(tags)
        nodes = [known.get(handle, _NOWHERE) for handle, _ in tags]
        handles = np.array([handle for handle, _ in tags], np.uint32)
        return replace(await self._read(nodes, _VALUE), handle=handles)

    async def attributes(self, nodes: Sequence[str], attribute: int) -> list[Any]:
        """Return an attribute of each node as `mirror.wire.decode` gives it; None where it is bad."""
        batch = await self._read(nodes, attribute)
        bad = (batch.status & np.uint32(_BAD)) != 0
        return [None if bad[row] else decode(int(batch.kind[row]), batch.value_bytes(row)) for row in range(len(batch))]

    async def _read(self, nodes: Sequence[str], attribute: int) -> Batch:
        size = min((self._facts.limits.read if self._facts else 0) or NODES_PER_CALL, NODES_PER_CALL)
        pages = []
        for start in range(0, len(nodes), size):
            part = nodes[start : start + size]
            request = ua.ReadRequest()
            request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
            request.Parameters.NodesToRead = [
                ua.ReadValueId(NodeId=_node_id(n), AttributeId=ua.AttributeIds(attribute)) for n in part
            ]
            pages.append(read_values(await self._ask("Read", request), len(part)))
        return concat(pages)

    async def browse_page(self, nodes: Sequence[str], *, types: bool) -> bytes:
        """Return the response to one Browse: children (objects and variables), or supertypes of types."""
        reference = _node_id("i=45" if types else "i=33")  # HasSubtype, HierarchicalReferences
        direction = ua.BrowseDirection.Inverse if types else ua.BrowseDirection.Forward
        classes = 0 if types else ua.NodeClass.Object | ua.NodeClass.Variable
        request = ua.BrowseRequest()
        request.Parameters.NodesToBrowse = [
            ua.BrowseDescription(_node_id(n), direction, reference, True, classes, ua.BrowseResultMask.All)
            for n in nodes
        ]
        return await self._ask("Browse", request)

    async def browse_next(self, points: Sequence[bytes]) -> bytes:
        """Return the response to one BrowseNext."""
        parameters = ua.BrowseNextParameters(ContinuationPoints=list(points))
        return await self._ask("BrowseNext", ua.BrowseNextRequest(Parameters=parameters))

    async def has_history(self, tags: Sequence[tuple[int, Tag]]) -> list[int]:
        """Return the handles of the tags whose history this user may read."""
        nodes = await self._nodes(tags)
        levels = await self.attributes(list(nodes.values()), _USER_ACCESS_LEVEL)
        return [handle for handle, level in zip(nodes, levels, strict=True) if (level or 0) & _HISTORY_READ]

    async def history(
        self, tags: Sequence[tuple[int, Tag]], start_ticks: int, end_ticks: int, failed: dict[int, int] | None = None
    ) -> AsyncGenerator[Batch, None]:
        """Yield what the server's historian has of (handle, tag) pairs, oldest first for each tag.

        Args:
            tags: (handle, tag) pairs.
            start_ticks, end_ticks: Bounds in source time; the server is asked to the microsecond, rounded
                outwards, so that a few rows outside may come too.
            failed: Gets the StatusCode of each handle whose history could not be read to its end.
        """
        failed = {} if failed is None else failed
        nodes = await self._nodes(tags)
        failed.update({handle: ua.StatusCodes.BadNodeIdUnknown for handle, _ in tags if handle not in nodes})
        size = min((await self.server_facts()).limits.history or history.NODES_PER_CALL, history.NODES_PER_CALL)
        known = list(nodes.items())
        for start in range(0, len(known), size):
            pages = history.pages(self, dict(known[start : start + size]), start_ticks, end_ticks, failed)
            async with contextlib.aclosing(pages):
                async for batch in pages:
                    yield batch

    async def history_page(
        self, points: Mapping[str, bytes], start_ticks: int, end_ticks: int, *, release: bool
    ) -> bytes:
        """Send one HistoryRead for nodes with their continuation points and return the response."""
        request = ua.HistoryReadRequest()
        request.Parameters.HistoryReadDetails = ua.ReadRawModifiedDetails(
            IsReadModified=False, StartTime=history.time_of(start_ticks), EndTime=history.time_of(end_ticks + 9),
            NumValuesPerNode=history.PAGE_ROWS, ReturnBounds=False,
        )  # fmt: skip
        request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Both
        # True, asyncua's default, makes some servers refuse every node of a call with several.
        request.Parameters.ReleaseContinuationPoints = release
        request.Parameters.NodesToRead = [
            ua.HistoryReadValueId(NodeId=_node_id(node), ContinuationPoint=point or None)
            for node, point in points.items()
        ]
        return await self._ask("HistoryRead", request)

    async def _nodes(self, tags: Sequence[tuple[int, Tag]]) -> dict[int, str]:
        """Return by handle the node that each tag has today, without those whose namespace is unknown."""
        namespaces = (await self.server_facts()).namespaces
        index = {uri: i for i, uri in enumerate(namespaces)}
        return {h: node_text(index[t.namespace], t.identifier) for h, t in tags if t.namespace in index}


# ---- asyncua, at arm's length ---------------------------------------------------------------------------


@contextlib.contextmanager
def _reactions(what: str, *, operator: bool = False) -> Iterator[None]:
    """Turn what asyncua raises into our five errors."""
    try:
        yield
    except MirrorError:
        raise
    except ua.UaStatusCodeError as error:
        if operator and status_name(error.code) in OPERATOR_MENDS:
            raise ConfigError(
                f"{what}: the server says {status_name(error.code)}", hint="check user and certificates"
            ) from error
        raise Refused(what, error.code) from error
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"{what}: {str(error) or type(error).__name__}") from error
    except Exception as error:  # asyncua raises whatever its parser stumbled over
        raise Corrupt(f"{what}: the answer cannot be read: {error!r}") from error


def _fail_at_once(protocol: Any) -> None:
    """Let nothing be sent on a lost connection: asyncua would wait for the answer, to a Publish for ever."""
    send = protocol._send_request

    def send_if_open(*arguments: Any, **named: Any) -> Any:
        if protocol.is_closed:
            raise ConnectionError("connection lost")
        return send(*arguments, **named)

    protocol._send_request = send_if_open
    if protocol.is_closed:
        raise ConnectionError("connection lost")


def _policy(security: str) -> Any:
    """Return asyncua's policy for a configured `none` or `Basic256Sha256:SignAndEncrypt`."""
    name = security.partition(":")[0]
    return getattr(security_policies, f"SecurityPolicy{'None' if name == 'none' else name}")


def _node_id(node: str) -> Any:
    return nodeid_from_binary(Buffer(encode(Kind.NODEID, node)))


def _first(chain: bytes | None) -> bytes:
    """Return the first certificate of a chain of DER certificates."""
    certificate = x509_from_der(chain)  # type: ignore[no-untyped-call]
    if certificate is None:
        raise ConfigError("the server's endpoint has no certificate")
    return bytes(der_from_x509(certificate))  # type: ignore[no-untyped-call]


class _Ready(bytes):
    """Bytes that stand in a request as they are."""


Primitives._Ready = SimpleNamespace(pack=bytes)  # type: ignore[attr-defined]  # asyncua looks here by a type's name
_CreateMonitoredItems: Any = make_dataclass("_CreateMonitoredItems", (
    ("TypeId", ua.NodeId), ("RequestHeader", ua.RequestHeader), ("SubscriptionId", ua.UInt32),
    ("TimestampsToReturn", ua.TimestampsToReturn), ("ItemsToCreate", _Ready),
))  # fmt: skip


ASYNCUA = "2.1.0"
_METHODS: dict[Any, dict[str, tuple[str, ...]]] = {
    UaSession: {
        "_send_request": ("self", "request", "timeout", "message_type"), "ensure_publish_loop": ("self",),
        "create_subscription": ("self", "params", "callback"), "restore_authentication_token": ("self", "token"),
    },
    Client: dict.fromkeys(("_activate_with_credentials", "_start_renew_loop", "create_session"), ("self",)),
    UASocketProtocol: {
        "_fail_all_pending": ("self", "exc"), "_send_request": ("self", "request", "timeout", "message_type"),
    },
}  # fmt: skip
_NAMES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Client("opc.tcp://127.0.0.1"), ("_server_nonce", "_policy_ids", "_renew_channel_task", "max_messagesize")),
    (Client("opc.tcp://127.0.0.1"), ("user_certificate", "user_private_key")),
    (UASocketProtocol(), ("_connection", "transport", "is_closed")),
    (UASocketProtocol()._connection, ("_limits",)),
    (UASocketProtocol()._connection._limits, ("max_message_size",)),
    (Buffer(b""), ("_data", "_cur_pos")),
)


def _broken_contract() -> list[str]:
    """Return what of asyncua is not as this module needs it."""
    broken = [] if version("asyncua") == ASYNCUA else [f"version {version('asyncua')} instead of {ASYNCUA}"]
    for owner, methods in _METHODS.items():
        for name, parameters in methods.items():
            method = getattr(owner, name, None)
            if method is None or tuple(inspect.signature(method).parameters) != parameters:
                broken.append(f"{owner.__name__}.{name}{parameters}")
    for instance, names in _NAMES:
        broken += [f"{type(instance).__name__}.{name}" for name in names if not hasattr(instance, name)]
    return broken


_broken = _broken_contract()
if _broken:
    raise ConfigError(f"asyncua is not as needed: {', '.join(_broken)}", hint=f"pip install asyncua=={ASYNCUA}")
