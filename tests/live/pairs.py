"""Replicas of one group, each a gateway of its own that mirrors the same server into the same bucket and broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.servers import Weed, until
from gateway.io.keys import signing_key
from mirror.header import public_hex
from mirror.tags import TagTable
from tests.live.gateways import Rig, Row, numbers, rows
from tests.live.servers import Counters, Mosquitto


class Replica(Rig):
    """One of them."""

    name: str

    def role(self) -> str:
        """What it says that it does."""
        return str(self.ready()["role"])

    def epoch(self) -> int:
        return int(self.ready()["epoch"])


class Pair:
    """Two or more replicas.

    Args:
        folder: For all of them.
        server, store, broker: That they share.
        arbiter: The table of that name, or that of each.
        verb: With which they are started.
        names: Of the replicas.
        own: Further settings of each, such as ports of its own ways.
        settings: As for `Rig`.
    """

    def __init__(
        self,
        folder: Path,
        server: Counters,
        *,
        store: Weed,
        broker: Mosquitto | None,
        arbiter: str | Mapping[str, str],
        verb: str = "run",
        names: Sequence[str] = ("a", "b"),
        own: Mapping[str, Mapping[str, object]] = {},
        **settings: object,
    ) -> None:  # fmt: skip
        self.server, self.store = server, store
        self.replicas: list[Replica] = []
        keys = {}
        for name in names:
            data = folder / name / "data"
            data.mkdir(parents=True, mode=0o700)
            keys[name] = public_hex(signing_key(data))
        for name in names:
            rig = Replica(folder / name, server, store=store, broker=broker, **{**settings, **own.get(name, {})})  # type: ignore[arg-type]
            rig.name, rig.verb = name, verb
            text = rig.config.read_text().replace('name = "a"', f'name = "{name}"')
            text = text.replace(f'name = "{rig.group}"', f'name = "{self.group(folder)}"')
            rig.group = self.group(folder)
            text += f"\n[arbiter]\n{arbiter if isinstance(arbiter, str) else arbiter[name]}\n"
            for other in names:
                if other != name:
                    text += f'\n[[peer]]\nname = "{other}"\npublic_key = "{keys[other]}"\n'
            rig.config.write_text(text)
            self.replicas.append(rig)

    @staticmethod
    def group(folder: Path) -> str:
        return f"{folder.parent.name}-{folder.name}"[-60:].strip("-_.")

    def primaries(self) -> list[Replica]:
        return [r for r in self.replicas if r.process is not None and r.process.alive and r.role() == "PRIMARY"]

    def primary(self, timeout_s: float = 30.0) -> Replica:
        """Wait until one acts and return it."""
        found: list[Replica] = []

        def one() -> bool:
            found[:] = self.primaries()
            return len(found) == 1

        until(one, "one primary", timeout_s)
        return found[0]

    def standby(self) -> Replica:
        return next(r for r in self.replicas if r.process is not None and r.process.alive and r.role() == "STANDBY")

    def bucket(self) -> tuple[Counter[Row], list[tuple[int, str, int]]]:
        """Verify the log; return each row with its number of copies, and the epochs with who led in them."""
        report, found = self.replicas[0].bucket()
        assert report.verified, (report.findings, report.strangers)
        return found, report.epochs

    def drained(self) -> None:
        """Wait until the bucket has what all living replicas have."""
        for replica in self.replicas:
            if replica.process is not None and replica.process.alive:
                replica.drained()


@contextmanager
def pair(folder: Path, server: Counters, **how: object) -> Iterator[Pair]:
    """Run a pair."""
    made = Pair(folder, server, **how)  # type: ignore[arg-type]
    try:
        for replica in made.replicas:
            replica.start()
        for replica in made.replicas:
            replica.until(lambda replica=replica: bool(replica.ready()["ready"]), "every replica fit to act")  # type: ignore[misc]
        yield made
    finally:
        for replica in made.replicas:
            replica.__exit__(None, None, None)


__all__ = ["Pair", "Replica", "TagTable", "numbers", "pair", "rows"]
