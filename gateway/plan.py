"""From the configuration and the browsed tags to subscriptions: which tag is asked for how.

Devices of one source with equal publishing intervals share a subscription; a subscription with its items
is a *stream*, named by the hash of all that decides which samples it yields. So the same plan on another
replica, or after a restart, is the same stream, and a plan that changed is another one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.config import Device, Source
from gateway.server import MonitoredItem
from mirror.coverage import StreamItem, StreamSpec
from mirror.tags import Tag, TagTable

ABSENCE_MS = 10_000  # how long the server's queues shall bridge a gateway that restarts
EVENT_RATE_HZ = 20  # changes per second assumed of a tag that is not sampled but reported on change
QUEUE_MIN, QUEUE_MAX = 10, 10_000
KEEP_ALIVE_MS = 1_000  # a quiet subscription says so this often; coverage grows with it


@dataclass(frozen=True, slots=True)
class Item:
    """One tag as asked for.

    Attributes:
        tag: The variable.
        sampling_ms: 0 asks for every change the server knows of.
        queue_size: Samples the server shall keep between two publishes.
    """

    tag: Tag
    sampling_ms: float
    queue_size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One subscription as asked for."""

    publishing_ms: float
    items: tuple[Item, ...]
    spec: StreamSpec

    @property
    def id(self) -> str:
        """The stream's id."""
        return self.spec.id

    def keep_alive_count(self) -> int:
        """Publishing intervals without a change after which the server says that it lives."""
        return max(1, round(KEEP_ALIVE_MS / self.publishing_ms))

    def lifetime_count(self, session_timeout_s: float) -> int:
        """Publishing intervals without a request after which the server may drop the subscription."""
        return max(3 * self.keep_alive_count(), math.ceil(session_timeout_s * 1000 / self.publishing_ms))


def queue_size(device: Device) -> int:
    """Return the queue size to ask for: what changes while a restarted gateway is away."""
    if device.queue_size:
        return device.queue_size
    rate_hz = 1000 / device.sampling_ms if device.sampling_ms else EVENT_RATE_HZ
    return max(QUEUE_MIN, min(QUEUE_MAX, math.ceil(rate_hz * (device.publishing_ms + ABSENCE_MS) / 1000)))


def plan(source: Source, uri: str, tags: Mapping[str, Sequence[Tag]]) -> list[Plan]:
    """Group tags into subscriptions.

    Args:
        source: The configured server.
        uri: Its ApplicationUri.
        tags: By name of the device, the tags found below its roots. A tag that is found for two devices
            belongs to the first.

    Returns:
        One plan for each publishing interval, shortest first; none without items.
    """
    items: dict[float, list[Item]] = defaultdict(list)
    taken: set[str] = set()
    for device in source.device:
        for tag in tags.get(device.name, ()):
            if tag.identity not in taken:
                taken.add(tag.identity)
                items[device.publishing_ms].append(Item(tag, device.sampling_ms, queue_size(device)))
    plans = []
    for publishing_ms, group in sorted(items.items()):
        spec = StreamSpec(
            uri, publishing_ms, tuple(StreamItem(i.tag.identity, i.sampling_ms, i.queue_size) for i in group)
        )
        plans.append(Plan(publishing_ms, tuple(group), spec))
    return plans


def handles(asked: Plan | None, uri: str, known: TagTable) -> list[int]:
    """Return the handles that a server may write through one stream.

    Args:
        asked: What it is asked for; None for a stream of a former configuration: then all tags of the source.
        uri: The source's ApplicationUri.
        known: All tags, those of other sources too.
    """
    if asked is None:
        return [handle for handle, tag in enumerate(known.tags) if tag.source == uri]
    found = (known.find(item.tag.identity) for item in asked.items)
    return [handle for handle in found if handle is not None]


def monitored_items(asked: Plan, known: TagTable) -> list[MonitoredItem]:
    """Return what a server is asked to monitor for a stream, all of whose tags are known."""
    found = []
    for item in asked.items:
        handle = known.find(item.tag.identity)
        assert handle is not None, "every planned tag has been added to the journal"
        found.append(MonitoredItem(handle, item.tag, item.sampling_ms, item.queue_size))
    return found
