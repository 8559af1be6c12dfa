"""The object store as the log sees it: whole objects, conditional writes, listing in byte order.

The log is safe because a name can be created only once and a record be replaced only by somebody who
has seen its last state. Both rest on the store's conditional writes, so the port has no way to hide an
answer: a write either happened, did not because its condition was not met (`Conflict`), or nobody
knows (`Unavailable`), and then the caller reads back. No implementation repeats a conditional write by
itself: a repeated create that had succeeded would be refused because of itself.

`MemoryStore` is the reference; every other store must pass the same suite. `mirror.probe` finds out
whether a store does what it says before anything depends on it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mirror.errors import Conflict, Corrupt

#: (start, stop) in bytes as in a slice; (-n, None) for the last n bytes, and nothing else counts from the end.
Range = tuple[int, int | None]

NO_METADATA: Mapping[str, str] = {}
_FIRST_BYTES = 2**20  # of an object whose size is not known; most are smaller


@dataclass(frozen=True, slots=True)
class Object:
    """An object, or the asked range of it.

    Attributes:
        key: Its name.
        body: The bytes; empty from `head` and `list`.
        size: Bytes of the whole object.
        etag: Opaque; equal bytes may have an equal one, so a record that is swapped must always change.
        metadata: As written, keys in lower case; empty from `list`.
    """

    key: str
    body: bytes
    size: int
    etag: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """What a bucket can do. Calls block, and may come from several threads at once.

    Every call may raise `Unavailable` (nothing is known, a write may or may not have happened, even
    later) and `ConfigError` (wrong credentials, bucket or certificate).
    """

    @property
    def name(self) -> str:
        """Endpoint and bucket, for people."""
        ...

    def server(self) -> str:
        """Ask the store what it is, name and version as it likes to tell them; may be empty."""
        ...

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """Return the object or a range of it; None if there is none. A range beyond the end is cut, to nothing too."""
        ...

    def head(self, key: str) -> Object | None:
        """Return the object without its body; None if there is none."""
        ...

    def put(
        self,
        key: str,
        body: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] = NO_METADATA,
        sha256: bytes | None = None,
    ) -> str:
        """Write an object and return its ETag.

        Args:
            key: Its name.
            body: All of it.
            if_none_match: Only if no object has this name.
            if_match: Only if the object has this ETag.
            metadata: ASCII strings; keys in lower case.
            sha256: Digest of `body` if it is already known; a store that checks refuses another one.

        Raises:
            Conflict: The condition did not hold; nothing was written by this call.
            Corrupt: The store got other bytes than `sha256` says.
        """
        ...

    def delete(self, key: str, if_match: str | None = None) -> None:
        """Delete an object; an absent one is no error unless `if_match` is given.

        Raises:
            Conflict: The object has another ETag or is absent.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        """Yield objects below `prefix` in byte order of their keys, after `start_after`, at most `limit`.

        The order is promised for keys without a slash after the prefix: stores that keep folders
        (SeaweedFS) list `a/b` before `a-`.
        """
        ...


class MemoryStore:
    """The reference: a dictionary under a lock."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.objects: dict[str, Object] = {}
        self._lock = threading.Lock()

    def server(self) -> str:
        """See `ObjectStore.server`."""
        return "memory"

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """See `ObjectStore.get`."""
        found = self.objects.get(key)
        if found is None or range is None:
            return found
        return Object(key, cut(found.body, range), found.size, found.etag, found.metadata)

    def head(self, key: str) -> Object | None:
        """See `ObjectStore.head`."""
        found = self.objects.get(key)
        return None if found is None else Object(key, b"", found.size, found.etag, found.metadata)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] = NO_METADATA,
        sha256: bytes | None = None,
    ) -> str:
        """See `ObjectStore.put`."""
        if sha256 is not None and hashlib.sha256(body).digest() != sha256:
            raise Corrupt(f"checksum of {key} does not fit its bytes")
        etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        with self._lock:
            found = self.objects.get(key)
            if if_none_match and found is not None:
                raise Conflict(f"{key} exists")
            if if_match is not None and (found is None or found.etag != if_match):
                raise Conflict(f"{key} has changed")
            self.objects[key] = Object(key, body, len(body), etag, dict(metadata))
        return etag

    def delete(self, key: str, if_match: str | None = None) -> None:
        """See `ObjectStore.delete`."""
        with self._lock:
            found = self.objects.get(key)
            if if_match is not None and (found is None or found.etag != if_match):
                raise Conflict(f"{key} has changed")
            self.objects.pop(key, None)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        """See `ObjectStore.list`."""
        keys = sorted((k for k in list(self.objects) if k.startswith(prefix) and k > start_after), key=str.encode)
        for key in keys[:limit]:
            found = self.objects.get(key)
            if found is not None:
                yield Object(key, b"", found.size, found.etag)


def cut(body: bytes, range: Range) -> bytes:
    """Return the range of a whole body: what `ObjectStore.get` promises."""
    start, stop = range
    assert stop is None or min(start, stop) >= 0
    return body[start:stop]


def get_bounded(store: ObjectStore, key: str, size_max: int) -> Object | None:
    """Return a whole object that anybody may have written, or None if there is none.

    Raises:
        Corrupt: It has more than `size_max` bytes; hardly any of them were fetched.
    """
    for stop in (min(_FIRST_BYTES, size_max), size_max):
        found = store.get(key, (0, stop))
        if found is None or found.size <= stop:
            return found
        if found.size > size_max:
            raise Corrupt(f"{key} has {found.size} bytes; {size_max} is the most")
    raise AssertionError("what is not larger than the limit was fetched whole")
