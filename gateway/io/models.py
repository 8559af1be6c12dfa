"""The tags of one server: browsed once, kept in the journal, and used by the next start before it browses.

A tag that two devices of the configuration reach belongs to the first of them.

What this module does not do: subscribe to anything (`gateway.io.source`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from gateway.config import Source
from gateway.io.ingest import Ingest
from gateway.io.journal import Journal
from gateway.io.log import log
from gateway.io.opcua import Connection
from gateway.server import ServerFacts
from mirror.errors import ConfigError
from mirror.tags import Tag, TagTable


class Model(msgspec.Struct, frozen=True):
    """What was browsed, kept so that the next start need not browse before it subscribes.

    Attributes:
        roots: Hash of what was asked for; a model of another configuration is not used.
        uri: ApplicationUri.
        tags: By name of the device.
    """

    roots: str
    uri: str
    tags: dict[str, list[Tag]]

    def identities(self) -> set[str]:
        """Return the identities of all tags."""
        return {tag.identity for tags in self.tags.values() for tag in tags}


class Models:
    """The model of one source.

    Args:
        config: The server.
        ingest: Its thread writes.
        fact: Reads a fact of the journal.
    """

    def __init__(self, config: Source, ingest: Ingest, fact: Callable[[str], Awaitable[bytes | None]]) -> None:
        self.known: Model | None = None
        self._config, self._ingest, self._fact = config, ingest, fact
        self._missing: set[str] = set()  # roots that were told to be missing
        self._shared: set[str] = set()  # tags that were told to be reached twice

    async def recall(self) -> Model | None:
        """Return what was browsed before, by an earlier process too, if it was for this configuration."""
        if self.known is None:
            data = await self._fact(f"model/{self._config.name}")
            with contextlib.suppress(msgspec.MsgspecError):  # of another version of this program: browse anew
                self.known = _shared(msgspec.json.decode(data, type=Model), self._ingest.journal.tags) if data else None
        return self.known if self.known is not None and self.known.roots == roots(self._config) else None

    async def of(self, connection: Connection, facts: ServerFacts) -> tuple[Model, bool]:
        """Return the tags, and whether they are those that were browsed before."""
        known = await self.recall()
        if known is not None and known.uri == facts.uri:
            return known, True
        model = await self.browse(connection, facts, roots(self._config))
        await self.keep(connection, model)
        return model, False

    async def browse(self, connection: Connection, facts: ServerFacts, roots: str) -> Model:
        """Return what the server has now.

        Raises:
            ConfigError: There is nothing to mirror.
        """
        found: dict[str, list[Tag]] = {}
        taken: set[str] = set()
        for device in self._config.device:
            tags = await connection.browse(device.name, device.browse, device.exclude)
            found[device.name] = [tag for tag in tags if tag.identity not in taken]
            self._tell(device.name, connection.missing, [tag for tag in tags if tag.identity in taken])
            taken |= {tag.identity for tag in tags}
        if not any(found.values()):
            raise ConfigError(f"source {self._config.name!r}: nothing to mirror below its roots")
        log("source.browsed", source=self._config.name, tags=sum(len(t) for t in found.values()))
        return Model(roots, facts.uri, found)

    async def keep(self, connection: Connection, model: Model) -> None:
        """Keep what was browsed on a connection."""
        structures = await connection.structures()

        def keep(journal: Journal) -> None:
            journal.add_tags([tag for tags in model.tags.values() for tag in tags])
            journal.set_fact(f"model/{self._config.name}", msgspec.json.encode(model))
            journal.set_structures(model.uri, structures)

        await asyncio.wrap_future(self._ingest.call(keep))
        self.known = model

    def _tell(self, device: str, missing: list[str], again: list[Tag]) -> None:
        """Tell once which roots are not there, and which tags an earlier device has already."""
        for root in set(missing) - self._missing:
            log("source.root_missing", source=self._config.name, device=device, root=root)
        self._missing |= set(missing)
        if again and device not in self._shared:
            self._shared.add(device)
            log("source.tag_shared", source=self._config.name, device=device, tags=len(again), first=again[0].path)


def roots(config: Source) -> str:
    """Return the hash of what a source is asked for."""
    return hashlib.sha256(msgspec.json.encode([config.endpoint, config.device])).hexdigest()


def _shared(model: Model, known: TagTable) -> Model:
    """Return the model with the very tags that the journal holds, so that each is in memory once."""

    def held(tag: Tag) -> Tag:
        handle = known.find(tag.identity)
        return known[handle] if handle is not None and known[handle] == tag else tag

    return Model(model.roots, model.uri, {name: [held(tag) for tag in tags] for name, tags in model.tags.items()})
