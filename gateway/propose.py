"""From what a server shows to what the gateway should ask of it: devices, intervals, queue sizes.

One device for each object directly below Objects that leads to variables. What the specification itself
puts there (the Server object, namespace 0) belongs to no device; the well-known folders that only collect
devices (`DeviceSet`, `Machines`) are looked into instead. Variables directly below Objects are one device.

Rules: a proposal is a legal configuration; it asks for no more than the server says it can give; and where
that is less than the gateway would like, a note says what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.browse import split_node
from gateway.capabilities import Capabilities
from gateway.config import Device
from gateway.plain import name_of, plain
from gateway.plan import EVENT_RATE_HZ, queue_size
from gateway.tree import Tree
from mirror.tags import Tag, is_utf8

PUBLISHING_MS = 100.0
PUBLISHING_STEP_MS = 10.0  # apart, where one subscription may not hold all
SAMPLES_OF_A_DEVICE = 50  # variables whose MinimumSamplingInterval is read
OBJECTS = "i=85"
#: Namespace and identifier of folders that collect devices (OPC 10000-100, OPC 40001-1).
COLLECTIONS = {
    ("http://opcfoundation.org/UA/DI/", "i=5001"): "DeviceSet",
    ("http://opcfoundation.org/UA/Machinery/", "i=1001"): "Machines",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Variables that make a device.

    Attributes:
        root: As `source.device.browse` takes it.
        name: What the server calls it.
        variables: Their places in the tree.
    """

    root: str
    name: str
    variables: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceDraft:
    """A proposed device, and what a person should know of it."""

    device: Device
    notes: tuple[str, ...] = ()


def groups(tree: Tree, namespaces: Sequence[str]) -> list[Group]:
    """Return the devices of a tree that was walked from Objects, in the server's order."""
    found: list[Group] = []
    loose: list[int] = []
    for top, variables in tree.beneath().items():
        node = tree.nodes[top]
        index, identifier = split_node(node.node)
        if node.is_variable:
            loose += variables
        elif index and ((namespaces[index] if index < len(namespaces) else ""), identifier) in COLLECTIONS:
            found += _collected(tree, top, variables, namespaces)
        elif index:
            found += _group(tree, top, variables, namespaces)
    if loose:
        found.append(Group(f"{OBJECTS}/*", "Objects", tuple(loose)))
    return found


def _collected(tree: Tree, top: int, variables: Sequence[int], namespaces: Sequence[str]) -> list[Group]:
    """Return a device for each object in a collecting folder; what is no such object stays with the folder."""
    members: dict[int, list[int]] = {}
    for place in variables:
        at = place
        while tree.nodes[at].parent != top and at != top:
            at = tree.nodes[at].parent
        members.setdefault(at, []).append(place)
    if any(tree.nodes[m].is_variable for m in members):
        return _group(tree, top, variables, namespaces)
    return [g for member, below in members.items() for g in _group(tree, member, below, namespaces)]


def _group(tree: Tree, top: int, variables: Sequence[int], namespaces: Sequence[str]) -> list[Group]:
    node = tree.nodes[top]
    root = root_text(node.node, namespaces)
    return [Group(f"{root}/**", node.name, tuple(variables))] if root else []


def root_text(node: str, namespaces: Sequence[str]) -> str:
    """Return a node by its namespace URI, by index where the URI does not tell, empty where no file could hold it."""
    index, identifier = split_node(node)
    uri = namespaces[index] if index < len(namespaces) else ""
    if not is_utf8(node):
        return ""
    if index == 0 or not uri or not is_utf8(uri) or namespaces.index(uri) != index:
        return node
    return Tag("", uri, identifier).node


def devices(
    found: Sequence[Group], minimums: Mapping[int, float], limits: Capabilities, *, prefix: str = "",
    taken: Sequence[str] = (), area: str = "area", line: str = "line",
) -> list[DeviceDraft]:  # fmt: skip
    """Propose a device for each group.

    Args:
        found: From `groups`.
        minimums: MinimumSamplingInterval in ms of some variables, by place.
        limits: The server's.
        prefix: Put before each name, where several servers share a file.
        taken: Names that are in use.
        area, line: Of all of them.
    """
    names = set(taken)
    rows: list[tuple[Group, Device, list[str]]] = []
    for group in found:
        name = name_of(
            f"{prefix}{group.name}" if prefix and len(found) > 1 else prefix.rstrip("-") or group.name, names
        )
        names.add(name)
        sampling, publishing, notes = intervals([minimums[v] for v in group.variables if v in minimums], limits)
        device = Device(
            name=name, browse=[group.root], area=area, line=line, sampling_ms=sampling, publishing_ms=publishing
        )
        device, more = _queue(device, limits)
        many = len(group.variables)
        called = "" if group.name == name else f" ({plain(group.name, 60)})"
        rows.append((group, device, [f"{many:,} variable{'s' if many > 1 else ''}{called}", *notes, *more]))
    return _spread(rows, limits.items_per_subscription_max)


def intervals(minimums: Sequence[float], limits: Capabilities) -> tuple[float, float, list[str]]:
    """Return sampling and publishing interval in ms, and why.

    Args:
        minimums: MinimumSamplingInterval of variables; 0: reported on change, below 0: not known.
        limits: The server's.
    """
    positive = [m for m in minimums if m > 0 and math.isfinite(m)]
    if minimums and 2 * sum(m == 0 for m in minimums) >= len(minimums):
        sampling, why = 0.0, "0: the server says that it reports every change of these"
    elif positive:
        sampling, why = min(positive), f"the fastest that the server states for these is {min(positive):g} ms"
    elif limits.sample_ms_min:
        sampling, why = (
            limits.sample_ms_min,
            f"the fastest that the server states at all is {limits.sample_ms_min:g} ms",
        )
    else:
        sampling, why = 0.0, "0 asks for as fast as the server can; ask a small controller for less, such as 250"
    sampling = min(sampling, 3_600_000.0)
    return sampling, max(PUBLISHING_MS, sampling), [why]


def _queue(device: Device, limits: Capabilities) -> tuple[Device, list[str]]:
    """Keep the queue within the server's limit, and say how long an absence it bridges."""
    wanted = queue_size(device)
    most = limits.queue_size_max
    if not most or wanted <= most:
        return device, []
    rate_hz = 1000 / device.sampling_ms if device.sampling_ms else EVENT_RATE_HZ
    note = f"queue_size: the server keeps at most {most} samples, {most / rate_hz:.1f} s at {rate_hz:g} changes/s"
    return msgspec.structs.replace(device, queue_size=most), [note]


def _spread(rows: Sequence[tuple[Group, Device, list[str]]], most: int) -> list[DeviceDraft]:
    """Give devices publishing intervals that put no more tags into one subscription than the server allows."""
    drafts: list[DeviceDraft] = []
    used: dict[float, int] = {}
    for group, proposed, notes in rows:
        many, device = len(group.variables), proposed
        if most and many > most:
            notes.append(
                f"the server allows {most} items in a subscription: split this device by its branches, "
                "with publishing_ms that differ"
            )
        elif most:
            while used.get(device.publishing_ms, 0) + many > most:
                device = msgspec.structs.replace(device, publishing_ms=device.publishing_ms + PUBLISHING_STEP_MS)
            if device.publishing_ms != proposed.publishing_ms:
                notes.append(f"publishing_ms: another subscription, since the server allows {most} items in one")
        used[device.publishing_ms] = used.get(device.publishing_ms, 0) + many
        drafts.append(DeviceDraft(device, tuple(notes)))
    return drafts
