"""What a server says of its limits and of its present load, in plain types.

`gateway.server.Limits` has what every call needs; this is what decides how much may be asked of a server at
all. Few servers state everything, and 0 or nothing means "no limit stated", never "none".

Source: OPC UA Part 5, 6.3.2 (ServerCapabilities), 6.3.6 (diagnostics summary), 7.7 (BuildInfo).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A server's own word on itself; 0 where it states nothing.

    Attributes:
        product, manufacturer, product_uri, version: For people and for `gateway.profiles`.
        sample_ms_min: MinSupportedSampleRate: the shortest sampling interval.
        sessions_max, subscriptions_max, items_max: Of the whole server.
        subscriptions_per_session_max, items_per_subscription_max: As named.
        queue_size_max: MaxMonitoredItemsQueueSize.
        sessions, subscriptions: Present load; None where the server does not tell.
    """

    product: str = ""
    manufacturer: str = ""
    product_uri: str = ""
    version: str = ""
    sample_ms_min: float = 0.0
    sessions_max: int = 0
    subscriptions_max: int = 0
    items_max: int = 0
    subscriptions_per_session_max: int = 0
    items_per_subscription_max: int = 0
    queue_size_max: int = 0
    sessions: int | None = None
    subscriptions: int | None = None

    @property
    def sessions_left(self) -> int | None:
        """Sessions that are free, the asking one not counted; None where it cannot be told."""
        if self.sessions is None or not self.sessions_max:
            return None
        return max(0, self.sessions_max - self.sessions)


#: Nodes in the order in which `capabilities_of` takes their values.
CAPABILITY_NODES = tuple(
    f"i={n}" for n in (2261, 2263, 2262, 2264, 2272, 24095, 24096, 24097, 24098, 24104, 31916, 2277, 2285)
)


def capabilities_of(values: Sequence[Any]) -> Capabilities:
    """Return what the values of CAPABILITY_NODES say; None, and what is of another type, says nothing."""
    product, manufacturer, uri, version, sample, *counts = values
    limits = [n if _is_count(n) else 0 for n in counts[:6]]
    present = [n if _is_count(n) else None for n in counts[6:]]
    sample_ms = float(sample) if isinstance(sample, int | float) and 0 < sample < 1e9 else 0.0
    texts = [v if isinstance(v, str) else "" for v in (product, manufacturer, uri, version)]
    return Capabilities(
        texts[0], texts[1], texts[2], texts[3], sample_ms, limits[0], limits[1], limits[2], limits[3], limits[4],
        limits[5], present[0], present[1],
    )  # fmt: skip


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
