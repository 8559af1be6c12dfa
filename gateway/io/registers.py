"""Where the lease record can stand without another service: in the bucket, or in this process alone.

Each is one cell with compare-and-swap (`mirror.lease.Register`); `gateway.io.etcd` has the third. A request is
answered in time or not at all, and nothing that writes is ever repeated: whether a lost answer was a success is for
the lease machine to read back. Versions are the bucket's ETag, or a count.

What this module does not do: decide anything (`gateway.failover`).
"""

from __future__ import annotations

from mirror.errors import Conflict
from mirror.lease import RECORD_BYTES_MAX, Record, decode
from mirror.store import ObjectStore, get_bounded

ABSENT = "absent"


class SoloRegister:
    """The register of a replica that has none to share it with."""

    arbiter = "solo"

    def __init__(self) -> None:
        self._record: Record | None = None
        self._swaps = 0

    def read(self) -> tuple[Record | None, str]:
        """See `mirror.lease.Register`."""
        return self._record, str(self._swaps) if self._record else ABSENT

    def swap(self, record: Record, version: str) -> str:
        """See `mirror.lease.Register`."""
        if version != self.read()[1]:
            raise Conflict("another version stands there")
        self._record, self._swaps = record, self._swaps + 1
        return str(self._swaps)

    def close(self) -> None:
        """See `mirror.lease.Register`."""


class StoreRegister:
    """A record in one object of the bucket, changed by `If-Match` and `If-None-Match` alone.

    Args:
        store: With conditional writes that were probed, and an answer within its limit (`S3Store.quick`).
        key: Of the object; never deleted.
        identity: What tells the bucket from others.
    """

    def __init__(self, store: ObjectStore, key: str, identity: str) -> None:
        self._store, self._key = store, key
        self.arbiter = f"s3:{identity}/{key}"

    def read(self) -> tuple[Record | None, str]:
        """See `mirror.lease.Register`."""
        found = get_bounded(self._store, self._key, RECORD_BYTES_MAX)
        return (None, ABSENT) if found is None else (decode(found.body), found.etag)

    def swap(self, record: Record, version: str) -> str:
        """See `mirror.lease.Register`."""
        if version == ABSENT:
            return self._store.put(self._key, record.encode(), if_none_match=True)
        return self._store.put(self._key, record.encode(), if_match=version)

    def close(self) -> None:
        """See `mirror.lease.Register`."""
        close = getattr(self._store, "close", None)
        if close is not None:
            close()
