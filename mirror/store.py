"""The object store as the log sees it: whole objects, conditional writes, listing in byte order.

The log is safe because a name can be created only once and a record be replaced only by somebody who
has seen its last state. Both rest on the store's conditional writes, so the port has no way to hide an
answer: a write either happened, did not because its condition was not met (`Conflict`), or nobody
knows (`Unavailable`), and then the caller reads back. No implementation repeats a conditional write by
itself: a repeated create that had succeeded would be refused because of itself.

`MemoryStore` is the reference; every other store must pass the same suite. `probe` finds out whether
a store does what it says before anything depends on it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from mirror.errors import ConfigError, Conflict, Corrupt, MirrorError

#: (start, stop) in bytes as in a slice; (-n, None) for the last n bytes.
Range = tuple[int, int | None]

#: Runs callables at the same time and returns what each returned or the error that it raised.
Together = Callable[[Sequence[Callable[[], str]]], Sequence[str | BaseException]]

NO_METADATA: Mapping[str, str] = {}


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

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """Return the object or a range of it; None if there is none. A range beyond the end is cut."""
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

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """See `ObjectStore.get`."""
        found = self.objects.get(key)
        if found is None or range is None:
            return found
        return Object(key, found.body[slice(*range)], found.size, found.etag, found.metadata)

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


class Check(msgspec.Struct, frozen=True):
    """One answer of the probe.

    Attributes:
        name: What was tried.
        ok: Whether the store did as it should.
        required: Whether pushing is refused if it did not.
        detail: What it did instead, and what follows from that.
    """

    name: str
    ok: bool
    required: bool
    detail: str = ""


class Probe(msgspec.Struct, frozen=True):
    """What a store can do; `checks` in the order in which they were made.

    Attributes:
        store: Its name.
        dialect: Place of the dialect that worked among those tried.
        checks: One for each property.
    """

    store: str
    dialect: int
    checks: tuple[Check, ...]

    def ok(self, name: str) -> bool:
        """Tell whether a check passed."""
        return next(c.ok for c in self.checks if c.name == name)

    def refuse(self) -> None:
        """Raise ConfigError if the log cannot be safe on this store."""
        failed = [f"{c.name} ({c.detail})" for c in self.checks if c.required and not c.ok]
        if failed:
            raise ConfigError(
                f"store {self.store} cannot hold a log: {'; '.join(failed)}",
                hint="use a store with working conditional writes, such as Amazon S3 or SeaweedFS 4.48",
            )


_RACERS = 8
_RACE_ROUNDS = 2
_SWAPS_EACH = 3


def probe(
    dialects: Sequence[ObjectStore], prefix: str, token: str, together: Together, stranger: ObjectStore | None = None
) -> Probe:
    """Find out what a store really does, with scratch objects below `prefix`, deleted afterwards.

    Args:
        dialects: The same bucket through one or more ways of speaking to it; the first that gets a
            rightful replace through is used for everything.
        prefix: Scratch prefix, ends with a slash.
        token: A random string, so that two probes do not meet.
        together: Runs callables in parallel.
        stranger: The same bucket with a wrong secret, to learn whether signatures are checked.

    Returns:
        The report; call `refuse` on it before leading.

    Raises:
        Unavailable: The store did not answer; nothing is known.
        ConfigError: The credentials, bucket or certificate are wrong.
    """
    at = f"{prefix}{token}/"
    checks: list[Check] = []
    try:
        checks.append(_creates_once(dialects[0], at))
        used, check = _replaces(dialects, at)
        checks.append(check)
        store = dialects[used]
        checks += [
            _deletes(store, at), _create_race(store, at, together), _swap_race(store, at, together),
            _lists(store, at), _ranges(store, at), _metadata(store, at), _checksum(store, at),
        ]  # fmt: skip
        if stranger is not None:
            checks.append(_authenticates(stranger, at))
    finally:
        for found in list(dialects[0].list(at)):
            dialects[0].delete(found.key)
    return Probe(dialects[0].name, used, tuple(checks))


def _refused(act: Callable[[], object]) -> bool:
    """Tell whether a write was refused by its condition."""
    try:
        act()
    except Conflict:
        return True
    return False


def _creates_once(store: ObjectStore, at: str) -> Check:
    key = f"{at}once"
    store.put(key, b"first", if_none_match=True)
    refused = _refused(lambda: store.put(key, b"second", if_none_match=True))
    found = store.get(key)
    kept = found is not None and found.body == b"first"
    detail = "" if refused and kept else "a second create of the same name was accepted: no fence is possible"
    return Check("create-once", refused and kept, True, detail)


def _replaces(dialects: Sequence[ObjectStore], at: str) -> tuple[int, Check]:
    """Try to replace by ETag: rightful, stale, and of a missing object."""
    for used, store in enumerate(dialects):
        key = f"{at}swap{used}"
        stale = store.put(key, b"1")
        try:
            fresh = store.put(key, b"2", if_match=stale)
        except Conflict:
            continue
        wrong = []
        if not _refused(lambda: store.put(key, b"3", if_match=stale)):  # noqa: B023 - called at once
            wrong.append("a stale ETag was accepted")
        if not _refused(lambda: store.put(f"{key}-missing", b"4", if_match=fresh)):  # noqa: B023 - called at once
            wrong.append("a missing object was created")
        return used, Check("replace-if-match", not wrong, True, ", ".join(wrong))
    return 0, Check("replace-if-match", False, True, "a rightful ETag was refused")


def _deletes(store: ObjectStore, at: str) -> Check:
    key = f"{at}delete"
    stale = store.put(key, b"1")
    store.put(key, b"2")
    refused = _refused(lambda: store.delete(key, if_match=stale))
    kept = store.head(key) is not None
    return Check("delete-if-match", refused and kept, False, "" if refused and kept else "deletes must name a version")


def _create_race(store: ObjectStore, at: str, together: Together) -> Check:
    """Let several create the same name at once: no two may win, and the winner's bytes must stand."""
    for turn in range(_RACE_ROUNDS):
        key = f"{at}race{turn}"

        def create(body: str, key: str = key) -> str:
            store.put(key, body.encode(), if_none_match=True)
            return body

        # A racer without an answer may have won; then nobody else may have.
        winners = _succeeded(together([lambda body=f"racer {i}": create(body) for i in range(_RACERS)]))  # type: ignore[misc]
        found = store.get(key)
        if len(winners) > 1 or found is None or (winners and found.body.decode() != winners[0]):
            return Check("create-race", False, True, f"{len(winners)} of {_RACERS} racing creates were accepted")
    return Check("create-race", True, True)


def _swap_race(store: ObjectStore, at: str, together: Together) -> Check:
    """Let several count one counter up by compare-and-swap: every accepted step must be in it."""
    key = f"{at}counter"
    store.put(key, b"0")

    def count() -> str:
        accepted = 0
        for _ in range(_SWAPS_EACH):
            found = store.get(key)
            assert found is not None
            try:
                store.put(key, str(int(found.body) + 1).encode(), if_match=found.etag)
            except Conflict:
                continue
            accepted += 1
        return str(accepted)

    accepted = sum(map(int, _succeeded(together([count] * _RACERS))))
    found = store.get(key)
    lost = accepted - int(found.body) if found else accepted
    return Check(
        "replace-race", lost == 0 < accepted, True, "" if lost == 0 else f"{lost} of {accepted} steps were lost"
    )


def _succeeded(answers: Sequence[str | BaseException]) -> list[str]:
    """Return the answers that are no errors; an error that is none of ours is raised."""
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, MirrorError):
            raise answer
    return [a for a in answers if isinstance(a, str)]


def _lists(store: ObjectStore, at: str) -> Check:
    names = ["a", "a-", "a.b", "a0", "b"]
    for name in reversed(names):
        store.put(f"{at}list/{name}", b"x")
    wanted = [f"{at}list/{name}" for name in names]
    listed = [o.key for o in store.list(f"{at}list/")]
    after = [o.key for o in store.list(f"{at}list/", start_after=wanted[1], limit=2)]
    ok = listed == wanted and after == wanted[2:4]
    return Check("list-in-byte-order", ok, True, "" if ok else f"listed {listed + after}")


def _ranges(store: ObjectStore, at: str) -> Check:
    store.put(f"{at}range", b"0123456789")
    tail, middle = store.get(f"{at}range", (-3, None)), store.get(f"{at}range", (2, 5))
    ok = tail is not None and middle is not None and (tail.body, middle.body) == (b"789", b"234") and tail.size == 10
    return Check("ranges", ok, False, "" if ok else "whole segments are read where their end would do")


def _metadata(store: ObjectStore, at: str) -> Check:
    store.put(f"{at}meta", b"x", metadata={"chain": "0a1b"})
    found = store.head(f"{at}meta")
    ok = found is not None and found.metadata.get("chain") == "0a1b"
    return Check("user-metadata", ok, False, "" if ok else "the newest segment cannot be proved byte for byte")


def _checksum(store: ObjectStore, at: str) -> Check:
    try:
        store.put(f"{at}checksum", b"x", sha256=hashlib.sha256(b"y").digest())
    except Corrupt:
        return Check("upload-checksum", True, False)
    return Check("upload-checksum", False, False, "damage during an upload is found only by verify")


def _authenticates(stranger: ObjectStore, at: str) -> Check:
    try:
        stranger.put(f"{at}stranger", b"x")
    except ConfigError:
        return Check("authenticates", True, False)
    return Check("authenticates", False, False, "anybody who reaches this store can write to it")
