"""What a stream's machine is told, and what it wants done.

Events tell what the server did; effects say what belongs into the journal and what to ask of the server.
They carry numbers, times and a reference to the body, never samples. All effects of one step belong into
one transaction, in their order; see `gateway.sampler`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirror.coverage import Axis, Closure, Coverage, Gap, Reason

CALENDAR_END = 2_650_467_744_000_000_000  # the year 10000: DateTimes from there on mean `never` (Part 6, 5.2.2.5)
WRAP = 0xFFFFFFFF  # sequence numbers run 1..WRAP and start at 1 again; 0 never occurs


def after(sequence: int) -> int:
    """Return the sequence number that follows."""
    return 1 if sequence == WRAP else sequence + 1


def distance(start: int, end: int) -> int:
    """Return how many numbers lie from `start` up to `end`; at least WRAP // 2 means: `end` is older."""
    return (end - start) % WRAP


def time_or_null(ticks: int) -> int:
    """Return a server's time, or 0 for null where it is none that a clock can show."""
    return ticks if 0 < ticks < CALENDAR_END else 0


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream stands on disk; what a restart begins from.

    Attributes:
        timeline: Name of the stretch of publish time, `<server start>-<break>` in ticks.
        start, covered: The covered interval (start, covered] that still grows.
        cursor: End of the newest chunk's interval, at least `covered`.
        sequence: Newest sequence number up to which every message is committed, 0 if none.
        subscription: Its server-side id.
        axis: Where publish times come from; None before the first message.
        is_declared: A gap from `covered` on stands in the ledger already, because the disk refuses; its end is
            not known.
    """

    timeline: str
    start: int
    covered: int
    cursor: int
    sequence: int = 0
    subscription: int = 0
    axis: Axis | None = None
    is_declared: bool = False


# Events


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription exists: a new one, or a former one taken up again (`resumed`).

    Whether anything of a former one has been stored is for the machine to say: messages of it may be on
    their way here when the session is taken up.

    Attributes:
        available: After a transfer, the numbers the server still holds; None where it did not say.
        reason: Why there was a break; used for the gap if the subscription is new.
    """

    subscription: int
    server_start: int
    resumed: bool
    reason: Reason
    available: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A notification message or keep-alive arrived.

    Attributes:
        sequence: Its number; of a keep-alive: the number of the next message.
        publish_ticks, response_ticks: Publish time and response header time as the server sent them.
        overflow: Handles whose queue overflowed on the server before their value in this message.
        undecodable: The body is set aside: its samples are missing although its number is not.
        republished: It answers a Republish; its response time says nothing about when it was published.
        ref: Whatever finds the body again.
    """

    sequence: int
    publish_ticks: int
    response_ticks: int
    more: bool = False
    keepalive: bool = False
    republished: bool = False
    undecodable: bool = False
    overflow: tuple[int, ...] = ()
    available: tuple[int, ...] | None = None
    ref: object = None


@dataclass(frozen=True, slots=True)
class NotAvailable:
    """The server answered a Republish: it no longer has that message."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Noted:
    """Rows that no message carried, such as those of tags that the server will not monitor."""

    ref: object


@dataclass(frozen=True, slots=True)
class Stopped:
    """The subscription is gone for good; what is held will not be completed."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The disk refuses, and has done so for long: the server may give up before it takes data again."""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """History was read for a gap, or could not be."""

    gap: Gap
    complete: bool
    why: str = ""


Event = Subscribed | Delivered | NotAvailable | Noted | Stopped | Stalled | Backfilled


# Effects, in the order in which they have to be carried out, all in one transaction


@dataclass(frozen=True, slots=True)
class Store:
    """Append the message's rows as a chunk with the interval (pub_from, pub_to]; number 0: no message's."""

    ref: object
    sequence: int
    timeline: str
    pub_from: int
    pub_to: int


@dataclass(frozen=True, slots=True)
class Extend:
    """Write the interval (again): the row with the same timeline, start and grade gets a new end."""

    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Progress:
    """Record where the stream stands."""

    position: Position


@dataclass(frozen=True, slots=True)
class OpenGap:
    """Write the gap (again): the row with the same id gets a new end and new tags."""

    gap: Gap


@dataclass(frozen=True, slots=True)
class CloseGap:
    """The gap leaves the ledger, for a reason; its end is set where it had none."""

    gap: Gap
    closure: Closure
    why: str


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The message is (once the transaction is durable) no longer needed by us."""

    subscription: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Republish:
    """Ask the server to send the message once more."""

    subscription: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """Nothing more can be had from before the break: begin to publish."""


@dataclass(frozen=True, slots=True)
class Backfill:
    """Try to close the gap from the server's history; answer with Backfilled."""

    gap: Gap


Effect = Store | Extend | Progress | OpenGap | CloseGap | Acknowledge | Republish | Resumed | Backfill
