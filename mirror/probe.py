"""What a store really does, found out before anything depends on it.

A check fails only on certain answers. A request that got none, and one that a store calls off because
another is under way (409), may have happened or not: neither speaks against the store. Races go on for
some rounds until enough answers are certain; too few of them are `Unavailable`, nothing known. Every
step leaves its own mark, so that one that was accepted and is gone is found whatever became of others.

What this module does not do: remember. A passed probe speaks of the server that was asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from mirror.errors import ConfigError, Conflict, Corrupt, Unavailable
from mirror.store import ObjectStore

#: Runs callables at the same time and returns what each returned or the error that it raised.
Together = Callable[[Sequence[Callable[[], str]]], Sequence[str | BaseException]]


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
        server: What it called itself.
        dialect: Place of the dialect that worked among those tried.
        checks: One for each property.
    """

    store: str
    server: str
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
_ROUNDS_MIN = 2
_ROUNDS_MAX = 12
_SWAPS_EACH = 3
_CERTAIN_MIN = 8  # answers without which a race shows nothing


def probe(
    dialects: Sequence[ObjectStore], prefix: str, token: str, together: Together, stranger: ObjectStore | None = None
) -> Probe:
    """Find out what a store really does, with scratch objects below `prefix`, deleted afterwards.

    Args:
        dialects: The same bucket through one or more ways of speaking to it; the first that gets a
            rightful replace through is used for everything.
        prefix: Scratch prefix, ends with a slash.
        token: A random string, another one each time: late writes of an earlier probe must not meet this one.
        together: Runs callables in parallel.
        stranger: The same bucket with a wrong secret, to learn whether signatures are checked.

    Returns:
        The report; call `refuse` on it before leading.

    Raises:
        Unavailable: The store did not answer, or not often enough; nothing is known.
        ConfigError: The credentials, bucket or certificate are wrong, or conditional writes unknown to the store.
    """
    at, server = f"{prefix}{token}/", dialects[0].server()
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
    return Probe(dialects[0].name, server, used, tuple(checks))


def _refused(act: Callable[[], object]) -> bool:
    """Tell whether a write was refused by its condition."""
    try:
        act()
    except Conflict:
        return True
    return False


def _creates_once(store: ObjectStore, at: str) -> Check:
    key = f"{at}once"
    if _refused(lambda: store.put(key, b"first", if_none_match=True)) and store.head(key) is None:
        return Check("create-once", False, True, "a create of a free name was refused")
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
    try:
        refused = _refused(lambda: store.delete(key, if_match=stale))
    except ConfigError:  # some stores know conditions for writes alone; keys and bucket were right until now
        refused = False
    kept = store.head(key) is not None
    return Check("delete-if-match", refused and kept, False, "" if refused and kept else "deletes must name a version")


def _create_race(store: ObjectStore, at: str, together: Together) -> Check:
    """Let several create the same name at once: no two may win, and the winner's bytes must stand."""
    certain = 0
    for turn in range(_ROUNDS_MAX):
        won, refused, stands = _create_at_once(store, f"{at}race{turn}", together)
        if len(won) > 1 or (won and won[0] != stands):
            return Check("create-race", False, True, f"{len(won)} of {_RACERS} racing creates were accepted")
        if stands is None and len(refused) == _RACERS:
            return Check("create-race", False, True, "each of several racing creates was refused")
        answered = 0 if stands is None else len(won) + len(refused)
        certain += answered
        if turn + 1 >= _ROUNDS_MIN and certain >= _CERTAIN_MIN:
            return Check("create-race", True, True)
        if not answered:
            break
    raise _too_few_answers(store, certain, "creates")


def _create_at_once(store: ObjectStore, key: str, together: Together) -> tuple[list[bytes], list[bytes], bytes | None]:
    """Return who was told to have created the name, who was refused, and whose bytes stand under it."""
    won: list[bytes] = []
    refused: list[bytes] = []

    def create(racer: bytes) -> str:
        told = refused if _refused(lambda: store.put(key, racer, if_none_match=True)) else won
        told.append(racer)
        return ""

    _race([lambda racer=b"racer %d" % i: create(racer) for i in range(_RACERS)], together)  # type: ignore[misc]
    found = store.get(key)
    return won, refused, None if found is None else found.body


def _swap_race(store: ObjectStore, at: str, together: Together) -> Check:
    """Let several add their marks to one record by compare-and-swap: every accepted mark must stand in it."""
    key = f"{at}swaps"
    store.put(key, b"start")
    accepted: list[bytes] = []
    refused: list[bytes] = []

    def swap(racer: bytes) -> str:
        for step in range(_SWAPS_EACH):
            found, mark = store.get(key), b"%b.%d" % (racer, step)
            if found is None:
                break
            body = found.body + b" " + mark
            told = refused if _refused(lambda: store.put(key, body, if_match=found.etag)) else accepted  # noqa: B023
            told.append(mark)
        return ""

    for turn in range(_ROUNDS_MAX):
        before = len(accepted)
        _race([lambda racer=b"%d.%d" % (turn, i): swap(racer) for i in range(_RACERS)], together)  # type: ignore[misc]
        found = store.get(key)
        lost = set(accepted) - set(found.body.split() if found else ())
        if lost or found is None:
            return Check("replace-race", False, True, f"{len(lost)} of {len(accepted)} accepted steps were lost")
        if not accepted and len(refused) == _RACERS * _SWAPS_EACH:
            return Check("replace-race", False, True, "each of several racing replaces was refused")
        if len(accepted) >= _CERTAIN_MIN:
            return Check("replace-race", True, True)
        if len(accepted) == before:
            break
    raise _too_few_answers(store, len(accepted), "replaces")


def _race(racers: Sequence[Callable[[], str]], together: Together) -> None:
    """Run racers; one that is left without a certain answer stops, and is no error of the probe."""
    for answer in together(racers):
        if isinstance(answer, BaseException) and not isinstance(answer, Unavailable | Corrupt):
            raise answer


def _too_few_answers(store: ObjectStore, certain: int, what: str) -> Unavailable:
    return Unavailable(f"store {store.name} answered {certain} racing {what}; it takes {_CERTAIN_MIN} to judge it")


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
    return Check("ranges", ok, True, "" if ok else "a range came back with other bytes: no segment's end can be read")


def _metadata(store: ObjectStore, at: str) -> Check:
    store.put(f"{at}meta", b"x", metadata={"chain": "0a1b"})
    found = store.head(f"{at}meta")
    ok = found is not None and found.metadata.get("chain") == "0a1b"
    return Check("user-metadata", ok, False, "" if ok else "the newest segment cannot be proved byte for byte")


def _checksum(store: ObjectStore, at: str) -> Check:
    try:
        store.put(f"{at}checksum", b"x", sha256=hashlib.sha256(b"y").digest())
    except (Corrupt, ConfigError):  # under whatever name
        return Check("upload-checksum", True, False)
    return Check("upload-checksum", False, False, "damage during an upload is found only by verify")


def _authenticates(stranger: ObjectStore, at: str) -> Check:
    try:
        stranger.put(f"{at}stranger", b"x")
    except ConfigError:
        return Check("authenticates", True, False)
    return Check("authenticates", False, False, "anybody who reaches this store can write to it")
