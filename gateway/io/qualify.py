"""Try out what a server can do, with sessions and subscriptions of its own that are gone afterwards.

Nothing is written to the server. At most two sessions exist at a time, on at most VARIABLES_MAX variables; each
asks for a short life, so that even what a broken connection leaves behind ends by itself within seconds.

What it does not do: judge (`gateway.qualify`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.browse import parse_root, resolve
from gateway.config import Device, Source
from gateway.decode import Message, decode, read_publish
from gateway.io.discover import capabilities
from gateway.io.explore import explore, facts_of
from gateway.io.opcua import Connection
from gateway.plan import queue_size
from gateway.qualify import Seen, Trial, Tried, stamping
from gateway.server import Refused, Subscription
from mirror.batch import SOURCE_NULL, Batch
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable
from mirror.tags import Tag

VARIABLES_MAX = 20
LOOK_AT_MAX = 200  # variables that are found, of which those are taken whose values can be read
PUBLISHING_MS = 100.0
KEEP_ALIVE = 5  # publishing intervals
LIFE_S = 10.0
WAIT_S = 5.0  # for a message that must come
FAR = 1_000_000  # a sequence number that no server has sent yet
_HISTORIZING, _USER_ACCESS_LEVEL, _VALUE = 20, 18, 13
_HISTORY_READ, _READ = 0x04, 0x01

Progress = Callable[[str], None]


class _Heard(NamedTuple):
    """What one subscription said: samples by tag, and the messages with data."""

    seen: dict[int, list[Seen]]
    messages: list[Message]


async def trial(source: Source, password: str, node: str, *, seconds: float, progress: Progress) -> Trial:
    """Try a server out.

    Args:
        source: How to reach it; its devices do not matter.
        password: Of its user.
        node: Below which variables are taken, as text of a NodeId.
        seconds: How long two subscriptions listen.
        progress: Told what is being tried.

    Raises:
        Unavailable, ConfigError: The server cannot be reached, refuses, or has no variables there.
    """
    result = Trial()
    queue = queue_size(Device(name="trial", browse=[node]))
    short = msgspec.structs.replace(source, session_timeout_s=LIFE_S)
    progress("browsing")
    async with _connected(source, password) as connection:
        result.session_timeout_s = connection.session_timeout_s
        facts = await connection.server_facts()
        result.said, result.limits = await capabilities(connection), facts.limits
        tags = await _variables(connection, node)
        result.variables, result.queue_asked = len(tags), queue
        await _history(connection, tags, result)
    progress("listening with two subscriptions")
    async with _connected(short, password) as connection:
        await _listen(connection, short, password, tags, result, seconds)
    progress("trying Transfer")
    result.transfer = await _tried(_transfer(short, password, tags))
    progress("trying to resume a session")
    result.resume = await _tried(_resume(short, password, tags))
    return result


@contextlib.asynccontextmanager
async def _connected(source: Source, password: str) -> AsyncIterator[Connection]:
    connection = Connection(source, password=password)
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.close()


async def _tried(attempt: Coroutine[Any, Any, Tried]) -> Tried:
    """Carry out an attempt; what the server refuses does not work, what breaks otherwise is not known."""
    try:
        async with asyncio.timeout(3 * WAIT_S + LIFE_S):
            return await attempt
    except Refused as refused:
        if refused.name in ("BadTooManySessions", "BadTooManySubscriptions"):
            return Tried(None, f"could not be tried: {refused}")
        return Tried(False, str(refused))
    except TimeoutError:
        return Tried(None, "could not be tried: the server took too long")
    except (Unavailable, Corrupt, ConfigError) as error:
        return Tried(False, str(error))


async def _variables(connection: Connection, node: str) -> list[Tag]:
    """Return some variables below a node whose values can be read."""
    facts = await connection.server_facts()
    root = resolve(parse_root(node), facts.namespaces)
    if root is None:
        raise ConfigError(f"the server has no namespace of {node!r}", hint="edgemirror browse shows what it has")
    tree = await explore(connection, facts, root, variables_max=LOOK_AT_MAX)
    found = await facts_of(connection, facts, tree)
    levels = await connection.attributes([tree.nodes[i].node for i in found], _USER_ACCESS_LEVEL)
    values = await connection.attributes([tree.nodes[i].node for i in found], _VALUE)
    tags = [
        tag
        for tag, level, value in zip(found.values(), levels, values, strict=True)
        if value is not None and (not isinstance(level, int) or level & _READ)
    ]
    if not tags:
        raise ConfigError(f"there are no variables below {node} whose values can be read", hint="name another NODE")
    moving_first = sorted(tags, key=lambda tag: tag.data_type in ("String", "Boolean"))
    return moving_first[:VARIABLES_MAX]


async def _history(connection: Connection, tags: Sequence[Tag], result: Trial) -> None:
    facts = await connection.server_facts()
    nodes = [resolve(parse_root(tag.node), facts.namespaces) or "" for tag in tags]
    levels = await connection.attributes(nodes, _USER_ACCESS_LEVEL)
    result.history_readable = sum(bool((level or 0) & _HISTORY_READ) for level in levels)
    result.historizing = sum(value is True for value in await connection.attributes(nodes, _HISTORIZING))


# ---- two subscriptions ------------------------------------------------------------------------------------


async def _listen(
    first: Connection, short: Source, password: str, tags: Sequence[Tag], result: Trial, seconds: float
) -> None:
    """Subscribe on two sessions, compare what they say, and ask for a message again."""
    made = await _subscribe(first, tags, result.queue_asked)
    result.queue_got, result.publishing_got_ms = made.queue_size_min, made.publishing_ms
    try:
        async with _connected(short, password) as second:
            result.second_session = Tried(True, "a second session and subscription were granted")
            other = await _subscribe(second, tags, result.queue_asked)
            ours, theirs = await asyncio.gather(_collect(first, made.id, seconds), _collect(second, other.id, seconds))
            await second.delete_subscription(other.id)
        result.stamping, result.compared = stamping(ours.seen, theirs.seen)
    except (Unavailable, ConfigError) as error:
        result.second_session = Tried(False, str(error))
        ours = await _collect(first, made.id, seconds)
    result.publish_time = bool(ours.messages[0].publish_ticks) if ours.messages else None
    await _republish(first, made.id, ours.messages, result)
    await first.delete_subscription(made.id)


async def _subscribe(connection: Connection, tags: Sequence[Tag], queue: int) -> Subscription:
    items = [(handle, tag, 0.0, queue) for handle, tag in enumerate(tags)]
    made = await connection.subscribe(
        PUBLISHING_MS, items, keep_alive_count=KEEP_ALIVE, lifetime_count=int(LIFE_S * 1000 / PUBLISHING_MS)
    )
    if not made.items:
        await connection.delete_subscription(made.id)
        raise ConfigError(f"the server monitors none of {len(items)} variables", hint="name another NODE")
    return made


async def _collect(connection: Connection, subscription: int, seconds: float) -> _Heard:
    """Publish for a while without acknowledging, so that messages can be asked for again."""
    heard = _Heard(defaultdict(list), [])
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            message = read_publish(await asyncio.wait_for(connection.publish(), left))
        except TimeoutError:
            break
        if message.subscription == subscription and not message.keepalive:
            heard.messages.append(message)
            _note(heard.seen, decode(message, handle_limit=VARIABLES_MAX).batch)
    return heard


def _note(seen: dict[int, list[Seen]], batch: Batch) -> None:
    for row, handle in enumerate(batch.handle.tolist()):
        null = bool(batch.flags[row] & SOURCE_NULL)
        ticks = None if null else int(batch.source_ticks[row])
        seen[handle].append((ticks, (int(batch.status[row]), int(batch.kind[row]), batch.value_bytes(row))))


async def _republish(connection: Connection, subscription: int, messages: Sequence[Message], result: Trial) -> None:
    """Ask for the first message again, and for one that there cannot be."""
    if not messages:
        result.republish = Tried(None, "no message came that could be asked for again")
        return
    asked = messages[0].sequence
    result.republish = await _tried(_again(connection, subscription, asked))
    missing = await _tried(_again(connection, subscription, asked + FAR))
    result.republish_missing = Tried(missing.works is False, missing.told)


async def _again(connection: Connection, subscription: int, sequence: int) -> Tried:
    await connection.republish(subscription, sequence)
    return Tried(True, f"message {sequence} came again")


# ---- handing a subscription on ----------------------------------------------------------------------------


async def _transfer(source: Source, password: str, tags: Sequence[Tag]) -> Tried:
    """Take a subscription from one session into another, and see whether it goes on there."""
    async with _connected(source, password) as first, _connected(source, password) as second:
        made = await _subscribe(first, tags, 2)
        refused: dict[int, int] = {}
        ours = await second.transfer([made.id], refused)
        if made.id not in ours:
            await _delete(first, made.id)
            told = str(Refused("TransferSubscriptions", refused.get(made.id, 0)))
            return Tried(False, told if source.user else f"{told}; anonymous users often may not: try --user")
        goes_on = await _goes_on(second, made.id)
        await _delete(second, made.id)
        await _delete(first, made.id)
        return goes_on if not goes_on.works else Tried(True, "the subscription goes on in another session")


async def _resume(source: Source, password: str, tags: Sequence[Tag]) -> Tried:
    """Drop a connection and take its session up again on another one."""
    first = Connection(source, password=password)
    try:
        await first.connect()
        made = await _subscribe(first, tags, 2)
        secret = first.session_secret()
    except BaseException:
        await first.close()
        raise
    await first.close(keep_session=True)
    second = Connection(source, password=password)
    try:
        await second.resume(secret)
        goes_on = await _goes_on(second, made.id)
        await _delete(second, made.id)
        return goes_on if not goes_on.works else Tried(True, "the session goes on over another connection")
    finally:
        await second.close()


async def _goes_on(connection: Connection, subscription: int) -> Tried:
    """Tell whether a subscription still publishes."""
    until = time.monotonic() + WAIT_S
    while (left := until - time.monotonic()) > 0:
        try:
            message = read_publish(await asyncio.wait_for(connection.publish(), left))
        except TimeoutError:
            break
        if message.subscription == subscription and message.status_change is None:
            return Tried(True, "it publishes")
    return Tried(False, f"it was taken over, and then published nothing for {WAIT_S:g} s")


async def _delete(connection: Connection, subscription: int) -> None:
    with contextlib.suppress(MirrorError):  # whoever has it now
        await connection.delete_subscription(subscription)
