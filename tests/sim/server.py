"""A model of an OPC UA server with one subscription at a time, and the truth about what it has sampled.

Every sample has a number of its own, which is its value, so that each one can be looked for in the end.
The server keeps samples in bounded queues per tag and messages in a bounded queue until they are
acknowledged; its clock may be coarse and may be set back; it may put a time into its messages or not.

`place` says where on the axis of publish times a sample belongs: at the first time at which it was
published or could have been.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from gateway import sampler
from tests.gateway.publish_bytes import data_change, double, header, item, notification_message, publish

MS = 10_000
START = 133_800_000_000_000_000
TAGS = 3
ALL = 1_000  # samples of a tag that a historian keeps: as many as there ever are
OVERFLOWED = 0x0480


@dataclass
class Sample:
    """One sample, and what became of it at the server.

    Attributes:
        number: Its value.
        source, server: Its time stamps, by the source's clock and by the server's.
        order: When it was taken or first could be published, among all that ever happened at the server.
        started: The server's start at that time.
        due: Publish time at which it was or would have been published; None while that is open.
        dropped: The queue of its tag was full, and the server could say so.
        silent: The queue was full, and the server cannot say so.
        alone: No subscription was there to see it.
        overflow: It says that the one before it was dropped.
        sent: The message that carried it.
    """

    number: int
    tag: int
    source: int
    server: int
    order: int
    started: int
    due: int | None = None
    dropped: bool = False
    silent: bool = False
    alone: bool = False
    overflow: bool = False
    sent: Sent | None = None


@dataclass
class Sent:
    """One message: what the server keeps of it until it is acknowledged."""

    sequence: int
    ticks: int
    order: int
    samples: tuple[Sample, ...]
    items: bytes
    broken: bool = False
    first: bool = False
    is_anew: bool = False  # its number had been used before


@dataclass
class Subscription:
    id: int
    queues: list[deque[Sample]]
    sequence: int = 1
    begun: bool = False
    is_anew: bool = False  # its numbers have begun anew: a late acknowledgement may be of a former one
    kept: dict[int, Sent] = field(default_factory=dict)


@dataclass(frozen=True)
class Traits:
    """What kind of server it is; see `of`."""

    axis: str  # publish | response | none: which stamp carries the time
    stamps: bool  # whether its samples have a source time
    resume: str  # session | transfer | none: how a subscription may be taken up again
    history: bool
    remembers: int  # of each tag, samples that its historian keeps
    queue_size: int
    keeps: int
    resolution: int
    items_max: int
    lists: bool  # whether it tells which messages are available
    behind: int  # ticks by which the sources' clock is behind its own

    @staticmethod
    def of(r: random.Random) -> Traits:
        """Draw a kind of server."""
        resolution = r.choice((1, 1, MS, 15 * MS))
        return Traits(
            axis=r.choice(("publish", "publish", "publish", "response", "response", "none")),
            stamps=r.random() < 0.8,
            resume=r.choice(("session", "session", "transfer", "none")),
            history=r.random() < 0.4,
            remembers=r.choice((ALL, ALL, 5)) if resolution == 1 else ALL,
            queue_size=r.choice((1, 2, 3, 10, 100)),
            keeps=r.choice((1, 3, 6, 20)),
            resolution=resolution,
            items_max=r.choice((1, 2, 5, 100)),
            lists=r.random() < 0.8,
            behind=r.choice((0, 0, 0, 2_000 * MS, 300_000 * MS, -20_000 * MS)),
        )


class Server:
    """See the module."""

    def __init__(self, r: random.Random, traits: Traits) -> None:
        self.r, self.traits = r, traits
        self.true = START  # never goes back
        self.offset = 0
        self.order = 0
        self.started = self.clock()
        self.samples: list[Sample] = []
        self.unplaced: list[Sample] = []
        self.steps: list[int] = []  # orders at which the clock was set back
        self.subscription: Subscription | None = None
        self.subscriptions = 0

    def clock(self) -> int:
        """Return the server's time as it stamps it."""
        now = self.true + self.offset
        return now - now % self.traits.resolution

    def happened(self) -> int:
        self.order += 1
        return self.order

    # What happens to it

    def sample(self, tag: int) -> Sample:
        """Take a sample of a tag and put it into the subscription's queue."""
        self.true += self.traits.remembers < ALL  # a short memory could not tell which of two of one time it has lost
        now = self.clock()
        made = Sample(len(self.samples) + 1, tag, now - self.traits.behind, now, self.happened(), self.started)
        self.samples.append(made)
        if self.subscription is None:
            made.alone, made.due = True, self.clock()
            return made
        self.unplaced.append(made)
        queue = self.subscription.queues[tag]
        queue.append(made)
        if len(queue) > self.traits.queue_size:
            lost = queue.popleft()
            lost.dropped = self.traits.queue_size > 1
            lost.silent = not lost.dropped
            queue[0].overflow = lost.dropped
        return made

    def step_back(self, ticks: int) -> None:
        """Set the clock back."""
        self.offset -= ticks
        self.steps.append(self.happened())

    def end_subscription(self) -> None:
        """The subscription is gone, with all that it held."""
        self._place()
        self.subscription = None

    def begin_anew(self) -> None:
        """The subscription lives on, and its numbers begin at 1 again; what was kept is forgotten.

        Not so early that the next number which the gateway sees may be just the one that it expects; and where
        there is no time, messages of two numberings that overtake each other cannot be told apart.
        """
        if self.subscription is not None and self.subscription.sequence > 8 and self.traits.axis != "none":
            self.subscription.kept.clear()
            self.subscription.sequence, self.subscription.begun, self.subscription.is_anew = 1, False, True
            self.happened()

    def restart(self) -> None:
        """The server restarts; it knows nothing of subscriptions any more."""
        self.end_subscription()
        self.true += 50 * MS
        self.started = self.true + self.offset
        self.happened()

    def subscribe(self) -> Subscription:
        """Create a subscription; each tag's present value is its first sample."""
        self.end_subscription()
        self.subscriptions += 1
        self.subscription = Subscription(self.subscriptions, [deque() for _ in range(TAGS)])
        for tag in range(TAGS):
            self.sample(tag)
        return self.subscription

    # Publishing

    @property
    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return self.subscription is not None and any(self.subscription.queues)

    def cycle(self, *, break_it: bool = False) -> bytes | None:
        """Return one response: a message, or a keep-alive if there is nothing to send."""
        sub = self.subscription
        if sub is None:
            return None
        ticks = self._place()
        if not self.waiting:
            return self._response(sub, sub.sequence, None, more=False, ticks=ticks)
        samples: list[Sample] = []
        for queue in sub.queues:
            while queue and len(samples) < self.traits.items_max:
                samples.append(queue.popleft())
        items = [
            item(
                s.tag, double(float(s.number)), source=s.source if self.traits.stamps else None, server=s.server,
                status=OVERFLOWED if s.overflow else None,
            )
            for s in samples
        ]  # fmt: skip
        data = data_change(items, count=len(items) + 90 if break_it else None)
        made = Sent(sub.sequence, ticks, self.happened(), tuple(samples), data, break_it, not sub.begun, sub.is_anew)
        sub.begun = True
        sub.kept[made.sequence] = made
        for s in samples:
            s.sent = made
        while len(sub.kept) > self.traits.keeps:
            del sub.kept[next(iter(sub.kept))]
        sub.sequence = sampler.after(sub.sequence)
        return self._response(sub, made.sequence, data, more=self.waiting, ticks=ticks)

    def republish(self, subscription: int, sequence: int) -> bytes | None:
        """Return the RepublishResponse, or None if it is not available."""
        sub = self.subscription
        if sub is None or sub.id != subscription or sequence not in sub.kept:
            return None
        sent = sub.kept[sequence]
        publish_ticks = sent.ticks if self.traits.axis == "publish" else 0
        message = notification_message([sent.items], sequence=sequence, publish_ticks=publish_ticks)
        return header(835, ticks=self._response_ticks(self.clock())) + message

    def acknowledge(self, subscription: int, sequence: int) -> None:
        """Forget a message."""
        if self.subscription is not None and self.subscription.id == subscription:
            self.subscription.kept.pop(sequence, None)

    def _place(self) -> int:
        """Everything sampled and not yet placed belongs to a publish time no later than now, which is returned."""
        ticks = self.clock()
        for sample in self.unplaced:
            sample.due, sample.order = ticks, self.happened()
        self.unplaced.clear()
        return ticks

    def _response(self, sub: Subscription, sequence: int, data: bytes | None, *, more: bool, ticks: int) -> bytes:
        return publish(
            None if data is None else [data], subscription=sub.id,
            available=tuple(sub.kept) if self.traits.lists else None, more=more, sequence=sequence,
            publish_ticks=ticks if self.traits.axis == "publish" else 0,
            head=header(829, ticks=self._response_ticks(ticks)),
        )  # fmt: skip

    def _response_ticks(self, ticks: int) -> int:
        return 0 if self.traits.axis == "none" else ticks
