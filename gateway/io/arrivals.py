"""What waits in the inbox of the ingest thread, and how one of it fails without taking the others along.

What it does not do: carry anything out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.decode import Message
from gateway.io.journal import Journal
from gateway.sampler import Event
from mirror.batch import Batch


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came of a stream: a message, something else that happened, or rows that wait for the next message.

    Attributes:
        failures: Errors of this program that the message has provoked.
        error: The last of them.
    """

    stream: str
    event: Event | None
    message: Message | None
    republished: bool
    size_bytes: int
    rows: Batch | None = None
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    work: Callable[[Journal], Any]
    answer: Future[Any]
    size_bytes: int = 0


class Before(NamedTuple):
    """The newest time that was known of each tag of a stream before a gap; 0 where there was none."""

    handles: NDArray[np.uint32]
    ticks: NDArray[np.int64]


class CallFailed(Exception):
    """A caller's work failed by itself; nothing of it may stay."""

    def __init__(self, call: Call, error: Exception) -> None:
        super().__init__(call, error)
        self.call, self.error = call, error


class MessageFailed(Exception):
    """A message provoked an error of this program; nothing of it may stay."""

    def __init__(self, arrival: Arrival, error: Exception) -> None:
        super().__init__(arrival, error)
        self.arrival, self.error = arrival, error
