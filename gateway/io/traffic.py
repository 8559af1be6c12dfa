"""A store that counts what passes: bytes both ways, and calls that failed.

What the log asks of the bucket is asked from several threads at once while the store is probed, so counting
takes a lock. An answer that a condition did not hold is an answer and no failure, and neither is it one when the
store refuses the damaged upload with which it is tried.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mirror.errors import Conflict, Corrupt, MirrorError
from mirror.store import NO_METADATA, Object, ObjectStore, Range


class Traffic:
    """Counters of one or more stores; read by anyone.

    Attributes:
        sent_bytes: Bodies of objects that were sent, taken or not.
        received_bytes: Bodies of objects that came back.
        errors: Calls without an answer, or refused for another reason than their condition.
    """

    def __init__(self) -> None:
        self.sent_bytes = self.received_bytes = self.errors = 0
        self._lock = threading.Lock()

    def count(self, *, sent_bytes: int = 0, received_bytes: int = 0, errors: int = 0) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            self.sent_bytes += sent_bytes
            self.received_bytes += received_bytes
            self.errors += errors


class Counted:
    """An object store like the one inside; see `mirror.store.ObjectStore`."""

    def __init__(self, inside: ObjectStore, traffic: Traffic, trials: str) -> None:
        """Count what passes to and from `inside`; below the prefix `trials` a damaged upload is meant to fail."""
        self._inside, self._traffic, self._trials = inside, traffic, trials

    @property
    def name(self) -> str:
        """See `ObjectStore.name`."""
        return self._inside.name

    def server(self) -> str:
        """See `ObjectStore.server`."""
        with self._failures():
            return self._inside.server()

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """See `ObjectStore.get`."""
        with self._failures():
            found = self._inside.get(key, range)
        self._traffic.count(received_bytes=len(found.body) if found else 0)
        return found

    def head(self, key: str) -> Object | None:
        """See `ObjectStore.head`."""
        with self._failures():
            return self._inside.head(key)

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
        self._traffic.count(sent_bytes=len(body))
        with self._failures(meant=Corrupt if key.startswith(self._trials) else Conflict):
            return self._inside.put(
                key, body, if_none_match=if_none_match, if_match=if_match, metadata=metadata, sha256=sha256
            )

    def delete(self, key: str, if_match: str | None = None) -> None:
        """See `ObjectStore.delete`."""
        with self._failures():
            self._inside.delete(key, if_match)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        """See `ObjectStore.list`."""
        with self._failures():
            yield from self._inside.list(prefix, start_after=start_after, limit=limit)

    @contextmanager
    def _failures(self, meant: type[MirrorError] = Conflict) -> Iterator[None]:
        try:
            yield
        except (Conflict, meant):
            raise
        except MirrorError:
            self._traffic.count(errors=1)
            raise
