"""What a server says of itself and grants us, in plain types.

The connection (`gateway.io.opcua`) speaks in these; nothing here knows how they came.

Source: OPC UA Part 4, 5.13.2 (monitored items), 5.14.2 (subscriptions); Part 5, 6.3.11 (operation limits).
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

from mirror.errors import Corrupt, Unavailable
from mirror.status import status_name
from mirror.tags import Tag


class Refused(Unavailable):
    """The server answered, with a bad status; what to do depends on `code`.

    Args:
        what: The service that was asked for.
        code: The StatusCode.
    """

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        self.name = status_name(code)
        super().__init__(f"{what}: {self.name}")


#: Names of statuses that say that a subscription is not there.
NO_SUBSCRIPTION = ("BadNoSubscription", "BadSubscriptionIdInvalid")

#: Parts of product names, in lower case, of servers that overwrite without a word: asyncua's.
NO_OVERFLOW_BIT = ("freeopcua", "asyncua", "opcua-asyncio")

#: Names of statuses that an operator has to mend when they come while a connection is opened.
OPERATOR_MENDS = frozenset((
    "BadUserAccessDenied", "BadIdentityTokenInvalid", "BadIdentityTokenRejected", "BadSecurityChecksFailed",
    "BadSecurityPolicyRejected", "BadSecurityModeRejected", "BadApplicationSignatureInvalid",
    "BadCertificateInvalid", "BadCertificateUntrusted", "BadCertificateTimeInvalid",
    "BadCertificateUriInvalid", "BadCertificateUseNotAllowed", "BadCertificateRevoked",
    "BadCertificateHostNameInvalid", "BadCertificateChainIncomplete", "BadCertificateRevocationUnknown",
    "BadCertificateIssuerTimeInvalid", "BadCertificateIssuerUseNotAllowed", "BadCertificateIssuerRevoked",
    "BadCertificateIssuerRevocationUnknown", "BadCertificatePolicyCheckFailed", "BadUserSignatureInvalid",
    "BadTcpEndpointUrlInvalid",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How many nodes one call may name; 0 where the server states no limit."""

    read: int = 0
    browse: int = 0
    monitor: int = 0
    history: int = 0


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        uri: ApplicationUri.
        namespaces: NamespaceArray.
        start_ticks: StartTime; 0 if it does not say.
        product: Product name and software version, for people.
        limits: OperationLimits.
    """

    uri: str
    namespaces: tuple[str, ...]
    start_ticks: int
    product: str
    limits: Limits

    @property
    def flags_overflow(self) -> bool:
        """Whether the server sets the Overflow bit when a queue runs over, as far as its product is known."""
        return not any(name in self.product.lower() for name in NO_OVERFLOW_BIT)


#: ServerArray, NamespaceArray, StartTime, product name and version, limits of Read, Browse,
#: CreateMonitoredItems and HistoryRead.
FACT_NODES = tuple(f"i={n}" for n in (2254, 2255, 2257, 2261, 2264, 11705, 11710, 11714, 12165))


def facts_of(values: Sequence[Any]) -> ServerFacts:
    """Return the facts from the values of FACT_NODES, None for what could not be read.

    Raises:
        Corrupt: The server does not say who it is.
    """
    servers, namespaces, start, product, version, *limits = values
    uris = tuple(str(u or "") for u in namespaces or ())
    uri = str((servers or [""])[0] or "") or (uris[1] if len(uris) > 1 else "")
    if not uri or not uris:
        raise Corrupt("the server tells no ApplicationUri or no namespaces")
    stated = [n if isinstance(n, int) else 0 for n in limits]
    start_ticks = start if isinstance(start, int) else 0
    return ServerFacts(uri, uris, start_ticks, f"{product or ''} {version or ''}".strip(), Limits(*stated))


def complete(what: str, results: Sized, asked: Sized) -> None:
    """Raise Corrupt if a service answered for more or fewer things than it was asked for."""
    if len(results) != len(asked):
        raise Corrupt(f"{what}: {len(results)} results where {len(asked)} were asked for")


class MonitoredItem(NamedTuple):
    """A tag to subscribe; its handle becomes the ClientHandle.

    Attributes:
        sampling_ms: 0 for every change that the server knows of, -1 for the publishing interval.
        queue_size: Samples that the server shall keep between two publishes.
    """

    handle: int
    tag: Tag
    sampling_ms: float
    queue_size: int


@dataclass(frozen=True, slots=True)
class Revised:
    """What the server made of one item that it accepted."""

    item_id: int
    sampling_ms: float
    queue_size: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as the server revised it.

    Attributes:
        items: By handle, the accepted items.
        refused: By handle, the StatusCode of those it did not accept.
        response_ticks: The server's time when it answered for the last item.
    """

    id: int
    publishing_ms: float
    keep_alive_count: int
    lifetime_count: int
    items: dict[int, Revised]
    refused: dict[int, int]
    response_ticks: int

    @property
    def queue_size_min(self) -> int:
        """The smallest queue that any accepted item got; 0 without items."""
        return min((item.queue_size for item in self.items.values()), default=0)

    @property
    def sampling_ms_max(self) -> float:
        """The longest sampling interval that any accepted item got; 0 without items."""
        return max((item.sampling_ms for item in self.items.values()), default=0.0)
