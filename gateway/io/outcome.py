"""What one transaction of the ingest has done: counted and told once it is durable, forgotten otherwise.

A transaction that the disk refuses is carried out again, as often as it takes. So nothing that it counts or
writes into the log may leave it before it has ended well.

What this module does not do: carry anything out (`gateway.io.ingest`).
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.io.log import log
from gateway.sampler import Effect
from mirror.batch import Batch


@dataclass(slots=True)
class Counters:
    """What the ingest has done since the process began; read by anyone, written by the ingest thread."""

    samples: int = 0
    quality: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # by stream: good, uncertain, bad, other
    messages: int = 0
    keepalives: int = 0
    chunks: int = 0
    commits: int = 0
    commit_s: float = 0.0
    commit_s_max: float = 0.0
    commit_s_last: float = 0.0
    recovered_rows: int = 0
    overflows: dict[str, int] = field(default_factory=dict)  # by stream
    refused: int = 0
    undecodable: int = 0
    store_failures: int = 0
    gaps_opened: int = 0
    gaps_closed: int = 0
    newest_ticks: int = 0
    events: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Durable:
    """What one commit has made durable.

    Attributes:
        batches: (stream, rows) in the order in which they were stored; history is not among them.
        effects: (stream, effect) of those that concern the server: Acknowledge, Republish, Resumed, Backfill.
        waited: By stream, the waiting rows that were stored in front of its own.
    """

    batches: list[tuple[str, Batch]] = field(default_factory=list)
    effects: list[tuple[str, Effect]] = field(default_factory=list)
    waited: dict[str, Batch] = field(default_factory=dict)


@dataclass(slots=True)
class Transaction:
    """One transaction under way.

    Attributes:
        durable: What it will let go.
        ends: Publish time of each of its batches.
        answers: Of callers' work.
        counts: By field of `Counters`.
        overflows: By stream.
        events: As the samplers count them.
        newest_ticks: Greatest publish time stored.
        opened: By stream, the gap opened last.
        told: Events for the log.
    """

    durable: Durable = field(default_factory=Durable)
    ends: list[int] = field(default_factory=list)
    answers: list[tuple[Future[Any], Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    overflows: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    newest_ticks: int = 0
    opened: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def tell(self, event: str, **facts: object) -> None:
        """Write an event into the log once this is durable."""
        self.told.append((event, facts))

    def count(self, counters: Counters) -> None:
        """It is durable: count and tell it."""
        for event, facts in self.told:
            log(event, **facts)
        for name, n in self.counts.items():
            setattr(counters, name, getattr(counters, name) + n)
        for totals, more in ((counters.overflows, self.overflows), (counters.events, self.events)):
            for name, n in more.items():
                totals[name] = totals.get(name, 0) + n
        counters.newest_ticks = max(counters.newest_ticks, self.newest_ticks)
        for stream, batch in self.durable.batches:
            counters.chunks += 1
            counters.samples += len(batch)
            quality = np.bincount(batch.status >> np.uint32(30), minlength=4)
            counters.quality[stream] = counters.quality.get(stream, 0) + quality
