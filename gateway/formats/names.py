"""Topics and JSON keys of the unified name space, built once for each tag.

Names of devices and tags come from servers and may hold anything. A topic level is therefore escaped in
a way that gives different names different levels: the characters that MQTT reserves or forbids, the
percent sign and the control characters stand as `%XX`, an empty level as `_`, our own words (`_state`,
`_history`, `_gateway`, `_`) with `%5F` for their underscore, and a level that is too long as its beginning
and a hash. Since device topics all have the same depth and tag topics are deeper, no two names meet.

What this module does not do: look at samples (`gateway.formats.json_uns`) or choose what a setting means.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mirror.tags import Tag
from mirror.variant import Structure

LEVEL_BYTES_MAX = 200  # of one topic level after escaping
LEVELS_MAX = 16  # of a tag's name; brokers disconnect a client that publishes to a very deep topic
KEY_BYTES_MAX = 512  # of a key in a JSON object

#: Keys of a device object; in the flat shape a tag of the same name gets an underscore at its end.
RESERVED_KEYS = frozenset(
    {"timestamp", "epoch", "seq", "node", "device", "values", "timestamps", "errors", "quality", "historical"}
)
RESERVED_LEVELS = frozenset({"_", "_state", "_history", "_gateway"})

# Control characters, what MQTT reserves, our own escape, and code points that no UTF-8 may carry.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f%+#/\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device stands in the plant, and which of its tags have a topic of their own.

    Attributes:
        area: Topic level above the line.
        line: Topic level above the device.
        tag_topics: Patterns over tag names; `*` stands for anything within one level, `**` over several.
    """

    area: str = ""
    line: str = ""
    tag_topics: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """How the name space looks.

    Attributes:
        prefix: First levels of all topics; taken as it is, without slashes at its ends.
        enterprise: Next level.
        site: Next level.
        device_objects: Whether one object is published for each device and batch.
        tag_topics: Which tags have a retained topic: none, those selected by their place, all.
        payload: What a tag topic carries: an object, or the bare value.
        shape: Whether a device object holds its values under `values` or at its top level.
    """

    prefix: str = "uns/v1"
    enterprise: str = ""
    site: str = ""
    device_objects: bool = True
    tag_topics: Literal["none", "selected", "all"] = "selected"
    payload: Literal["object", "raw"] = "object"
    shape: Literal["nested", "flat"] = "nested"


@dataclass(frozen=True, slots=True)
class Device:
    """A device as MQTT sees it.

    Attributes:
        name: Its name as a JSON string can carry it.
        topic: Topic of its objects; `_state` and `_history` are levels below it.
        sources: ApplicationUris of the servers that its tags come from; nearly always one.
    """

    name: str
    topic: str
    sources: frozenset[str]

    @property
    def state_topic(self) -> str:
        """Where it is said whether the device is live."""
        return f"{self.topic}/_state"


class Names:
    """Topics and keys by handle. Built anew when tags are added; nothing in it changes.

    Attributes:
        options: As given.
        devices: All devices, ordered by their first handle.
        device_of: int32 by handle: index into `devices`, -1 for a handle that has no name here.
        keys: object by handle: the tag's key in its device's object.
        topics: By handle: the tag's own topic, empty where it has none.
        tagged: bool by handle: whether the tag has a topic of its own.
        source_of: By handle: ApplicationUri, empty for a handle that has no name here.
        structures: Definitions by ApplicationUri, then by the ExtensionObject's type.
        topic_bytes_max: Length of the longest topic of all.
    """

    def __init__(
        self,
        tags: Iterable[tuple[int, Tag]],
        options: Options,
        places: Mapping[str, Place] = {},
        structures: Mapping[str, Mapping[str, Structure]] = {},
    ) -> None:
        """Name the given tags.

        Args:
            tags: Handle and tag of all variables that are mirrored now, by rising handle. Tags that are
                only remembered from an older configuration do not belong here.
            options: How the name space looks.
            places: By name of the device.
            structures: Definitions by ApplicationUri, then by the ExtensionObject's type.
        """
        named = list(tags)
        size = 1 + max((handle for handle, _ in named), default=-1)
        self.options = options
        self.structures = structures
        self.root = "/".join([options.prefix, level(options.enterprise), level(options.site)])
        self.device_of: NDArray[np.int32] = np.full(size, -1, np.int32)
        self.keys: NDArray[np.object_] = np.full(size, "", object)
        self.topics = [""] * size
        self.source_of = [""] * size
        self.devices: list[Device] = []
        index: dict[str, int] = {}
        sources: list[set[str]] = []
        used: list[set[str]] = []
        topics: list[str] = []
        chosen: list[re.Pattern[str]] = []
        for handle, tag in named:
            device = index.setdefault(tag.device, len(index))
            if device == len(sources):
                sources.append(set())
                used.append(set(RESERVED_KEYS) if options.shape == "flat" else set())
            sources[device].add(tag.source)
            self.device_of[handle] = device
            self.source_of[handle] = tag.source
            self.keys[handle] = key = _unique(_text(tag.name, KEY_BYTES_MAX), tag, used[device])
            if device == len(topics):
                place = places.get(tag.device, Place())
                topics.append("/".join([self.root, level(place.area), level(place.line), level(tag.device)]))
                chosen.append(_matcher(options, place))
            if chosen[device].fullmatch(tag.name):
                self.topics[handle] = f"{topics[device]}/{_tag_levels(tag.name, key)}"
        for name, i in index.items():
            self.devices.append(Device(_text(name, KEY_BYTES_MAX), topics[i], frozenset(sources[i])))
        lengths = [len(d.topic.encode()) for d in self.devices] + [len(t.encode()) for t in self.topics]
        self.topic_bytes_max = max(lengths, default=0) + len("/_history")
        self.tagged: NDArray[np.bool_] = np.array([bool(t) for t in self.topics], np.bool_)

    def __len__(self) -> int:
        return len(self.topics)

    def gateway(self, node: str, leaf: str) -> str:
        """Return the topic of a fact about the gateway itself: `online`, `role`, `health`, `sync`."""
        return f"{self.root}/_gateway/{level(node)}/{leaf}"

    def retained(self) -> set[str]:
        """Return all topics whose messages the broker keeps, but for those about the gateway itself."""
        return {topic for topic in self.topics if topic} | {device.state_topic for device in self.devices}

    def known(self, handles: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Return the device of each handle, -1 for handles that have no name here."""
        if not len(self):
            return np.full(len(handles), -1, np.int32)
        inside = handles < len(self)
        if inside.all():
            return self.device_of[handles]
        return np.where(inside, self.device_of[np.where(inside, handles, 0)], np.int32(-1))

    def tagged_of(self, source: str) -> NDArray[np.uint32]:
        """Return the handles of a source that have a topic of their own."""
        return np.array([h for h in np.flatnonzero(self.tagged).tolist() if self.source_of[h] == source], np.uint32)


def level(name: str) -> str:
    """Return a name as one topic level, different for different names."""
    if not name:
        return "_"
    safe = _UNSAFE.sub(_escape, name)
    if safe in RESERVED_LEVELS:
        safe = "%5F" + safe[1:]
    return _shorten(safe, LEVEL_BYTES_MAX)


def _matcher(options: Options, place: Place) -> re.Pattern[str]:
    """Return the pattern that the names of all tags with a topic of their own match."""
    if options.tag_topics == "all":
        return re.compile(".*", re.DOTALL)
    patterns = place.tag_topics if options.tag_topics == "selected" else ()
    return re.compile("|".join(map(_regex, patterns)) or "(?!)", re.DOTALL)


def _regex(pattern: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(wild.get(m[0]) or re.escape(m[0]) for m in re.finditer(r"\*\*/?|\*|\?|[^*?]+", pattern))


def _tag_levels(name: str, key: str) -> str:
    """Return the topic levels below the device; `key` is taken where it had to differ from the name."""
    parts = (key if "~" in key else name).split("/", LEVELS_MAX - 1)
    return "/".join(map(level, parts))


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{b:02X}" for b in match[0].encode("utf-8", "surrogatepass"))


def _text(name: str, size_bytes_max: int) -> str:
    """Return a name that UTF-8 can carry, shortened with a hash where it is longer than the limit."""
    return _shorten(name.encode("utf-8", "backslashreplace").decode(), size_bytes_max)


def _shorten(text: str, size_bytes_max: int) -> str:
    data = text.encode()
    if len(data) <= size_bytes_max:
        return text
    head = data[: size_bytes_max - 17].decode("utf-8", "ignore")
    return f"{head}~{hashlib.sha256(data).hexdigest()[:16]}"


def _unique(key: str, tag: Tag, used: set[str]) -> str:
    """Return the key, changed where the device has it already, and note it as used."""
    if key in used and key in RESERVED_KEYS:
        key += "_"
    if key in used:
        identity = tag.identity.encode("utf-8", "surrogatepass")
        key = f"{key}~{hashlib.sha256(identity).hexdigest()[:16]}"
    used.add(key)
    return key
