"""What one subscription has delivered, in order, and what it has not.

The machine puts the messages of one stream back into sequence, asks again for missing ones, and says
what may be claimed: an interval of the server's own publish time grows only by a message with the
expected number after which the server has nothing more to send, or by a keep-alive that carries the next
number. Everything else is a gap, a row with a reason, until history closes it or it is declared lost.

It is fed messages, never samples: an event carries a number, two times, a row count and an opaque
reference to the body. All effects of one step belong into one transaction; a message may be
acknowledged only after that transaction is durable (`gateway.acks`).

Two rules keep chunks and claims apart. Every chunk's interval ends after the end of all earlier ones,
so that a chunk is never taken for an older, already pushed one. And rows that came while something
before them was missing are `held`: kept and pushed, but nothing is claimed for their interval.

Nothing that a server sends is believed beyond what a clock can show and a counter can do. A time outside
the calendar counts as null. A number that had its turn and comes again with a later time is no repeat: the
server numbers anew, and what it sent meanwhile is unknown, so a gap is declared.

Source: OPC UA Part 4, 5.13.1.1 (sequence numbers), 5.14.1.2 (keep-alive), 5.14.5 (Publish).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from enum import Enum

import msgspec

from gateway.stream import (
    WRAP,
    Acknowledge,
    Backfill,
    Backfilled,
    CloseGap,
    Delivered,
    Effect,
    Event,
    Extend,
    NotAvailable,
    Noted,
    OpenGap,
    Position,
    Progress,
    Republish,
    Resumed,
    Stalled,
    Stopped,
    Store,
    Subscribed,
    after,
    distance,
    time_or_null,
)  # fmt: skip
from mirror.coverage import Axis, Closure, Coverage, Gap, Grade, Reason, timeline_name

__all__ = [
    "Acknowledge", "Backfill", "Backfilled", "CloseGap", "Delivered", "Effect", "Event", "Extend", "NotAvailable",
    "Noted", "OpenGap", "Position", "Progress", "Republish", "Resumed", "Sampler", "Stalled", "Stopped", "Store",
    "Subscribed", "after", "distance",
]  # fmt: skip

HELD_MAX = 256  # messages kept while an older one is asked for again; then it counts as missing
HOLE_MAX = 4096  # a jump further than this is not asked for number by number
PROBE_MAX = 4096  # messages asked for after a resume without a list of what is available
RECENT = 64  # messages whose number and time are remembered: more than can overtake each other
STILL_TICKS = 10_000  # a publish time may stand still or step back by 1 ms, the coarsest server's resolution


class _Mode(Enum):
    """What the machine is doing beside taking messages."""

    LIVE = 0
    PROBE = 1  # resumed: asking for one number after the other until the server has no more
    FETCH = 2  # transferred: asking for the numbers that the server says it holds


@dataclass(slots=True)
class Sampler:
    """The machine of one stream.

    Args:
        stream: The stream's id.
        origin: The replica's name, written into all that is claimed.
        position: Where the journal says that the stream stands; None for a stream never seen.
        identity: Turns an overflowed handle into the tag's identity for the gap ledger.
        is_used: Tells whether the journal knows a timeline of the stream by that name.
        is_past: Tells whether the log knows publish times on such a timeline that are well after these ticks.
    """

    stream: str
    origin: str
    position: Position | None
    identity: Callable[[int], str]
    is_used: Callable[[str], bool] = lambda timeline: False
    is_past: Callable[[str, int], bool] = lambda timeline, ticks: False
    axis: Axis | None = None
    subscription: int = 0
    expected: int = 0  # 0: no subscription
    counts: dict[str, int] = field(default_factory=dict)
    _held: dict[int, Delivered] = field(default_factory=dict)
    _alive: tuple[int, int] | None = None  # the newest keep-alive: (number it announces, time)
    _missing: set[int] = field(default_factory=set)  # known to be unavailable; their turn has not come
    _given_up: deque[int] = field(default_factory=deque)  # missing ones whose turn has come; they may still arrive
    _lost: bool = False  # some were given up since the last one taken: the next one ends a gap
    _asked: set[int] = field(default_factory=set)
    _hole_age: int = 0
    _mode: _Mode = _Mode.LIVE
    _probes: int = 0
    _break: Reason | None = None  # of the break before the first message of a new subscription
    _overflow: Gap | None = None
    _started: int = 0  # the server's start
    _recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RECENT))  # taken: (number, time)

    def __post_init__(self) -> None:
        if self.axis is None and self.position is not None:
            self.axis = self.position.axis

    def snapshot(self) -> Sampler:
        """Return a copy to go back to when the transaction could not be made durable."""
        twin = copy.copy(self)
        twin._held, twin._missing, twin._asked = dict(self._held), set(self._missing), set(self._asked)
        twin._given_up, twin.counts, twin._recent = self._given_up.copy(), dict(self.counts), self._recent.copy()
        return twin

    def restore(self, snapshot: Sampler) -> None:
        """Go back to a snapshot, which is used up by it."""
        for part in fields(self):
            setattr(self, part.name, getattr(snapshot, part.name))

    def step(self, event: Event) -> list[Effect]:
        """Return what has to be done about one event; see the effects' own words."""
        if isinstance(event, Delivered):
            return self._delivered(event)
        if isinstance(event, NotAvailable):
            return self._not_available(event.sequence)
        if isinstance(event, Subscribed):
            return self._subscribed(event)
        if isinstance(event, Backfilled):
            return self._backfilled(event)
        if isinstance(event, Stalled):
            return self._stalled()
        return self._noted(event) if isinstance(event, Noted) else self._stopped()

    # Subscriptions

    def _subscribed(self, event: Subscribed) -> list[Effect]:
        here = self.position
        known = event.resumed and here is not None and here.subscription == event.subscription
        same = known or (event.resumed and self.subscription == event.subscription)
        effects = self._end_overflow() if same else self._stop()
        self._clear()  # what is held was never acknowledged: on a resume it comes again
        self.subscription, self._started = event.subscription, time_or_null(event.server_start)
        self.expected = after(here.sequence) if known and here is not None else 1
        if not known:
            self._break = event.reason
        if not event.resumed:
            return effects
        if event.available is not None:
            wanted = [s for s in event.available if distance(self.expected, s) < HOLE_MAX]
            self._asked, self._mode = set(wanted), _Mode.FETCH
            effects += [Republish(self.subscription, s) for s in wanted]
            return effects + self._live_again()
        self._mode, self._probes, self._asked = _Mode.PROBE, PROBE_MAX, {self.expected}
        return [*effects, Republish(self.subscription, self.expected)]

    def _stopped(self) -> list[Effect]:
        """Nothing will come any more that could claim what is stored: it is held."""
        effects, here = self._stop(), self.position
        return effects if here is None else effects + self._hold(here.timeline, here.covered, here.cursor)

    def _stop(self) -> list[Effect]:
        """Give up everything that is still missing, so that what is held gets stored."""
        effects: list[Effect] = []
        if self._held:
            last = max(self._held, key=lambda s: distance(self.expected, s))
            span = distance(self.expected, last)
            number = self.expected
            for _ in range(min(span, HOLE_MAX)):
                if number not in self._held:
                    self._missing.add(number)
                number = after(number)
            effects = self._release(final=True)
        effects += self._end_overflow()
        self._clear()
        return effects

    def _clear(self) -> None:
        self._held.clear()
        self._missing.clear()
        self._asked.clear()
        self._given_up.clear()
        self._recent.clear()
        self._lost = False
        self._alive, self._break, self._mode, self._hole_age = None, None, _Mode.LIVE, 0
        self.expected = self.subscription = 0

    def _begin(self, ticks: int) -> list[Effect]:
        """Start the covered interval at the first time a new subscription tells; open the gap before it."""
        assert self._break is not None
        reason, here = self._break, self.position
        self._break = None
        timeline, start = "", ticks - 1
        effects: list[Effect] = []
        if here is not None:
            same_server = here.timeline.partition("-")[0] == str(self._started)
            end = max(start, here.cursor + 1)
            if same_server and ticks >= here.cursor - STILL_TICKS:
                timeline, start = here.timeline, end
            if here.is_declared:
                reason = Reason.DISK_FULL  # it has its row, which gets its end now
            elif not same_server:
                reason = Reason.SERVER_RESTART
            effects += self._gap(here.timeline, here.covered, end, reason)
            effects += self._hold(here.timeline, here.covered, here.cursor)
        timeline = timeline or self._named(ticks, begins=True)
        self.position = Position(timeline, start, start, start, 0, self.subscription, self.axis)
        return effects

    def _named(self, ticks: int, *, begins: bool = False) -> str:
        """Return a name that no timeline of the stream has had; the first of a run is the same on all replicas.

        A clock without a battery starts at the same time again and again; intervals under a name that was
        used before, here or by another replica for an earlier run, would be taken for pushed.
        """
        used, name = (
            "" if self.position is None else self.position.timeline,
            timeline_name(self._started, self._started),
        )
        if begins and self._started and name != used and not self.is_used(name) and not self.is_past(name, ticks):
            return name
        while (name := timeline_name(self._started, ticks)) == used or self.is_used(name):
            ticks += 1
        return name

    # Messages

    def _delivered(self, event: Delivered) -> list[Effect]:
        if self.expected == 0:
            return []
        ahead = distance(self.expected, event.sequence)
        if event.keepalive:
            if ahead < WRAP // 2:
                self._alive = (event.sequence, self._time(event))
        elif ahead >= WRAP // 2:
            return self._again(event)
        elif self._is_another(event):
            return self._renumbered(event)
        else:
            self._held.setdefault(event.sequence, event)
            self._asked.discard(event.sequence)
            self._missing.discard(event.sequence)
            if event.republished:
                self._count("republished")
        effects = self._release()
        if self._mode is _Mode.PROBE and event.republished:
            return effects + self._probe(after(event.sequence))
        return effects + self._live_again() + self._ask(event)

    def _again(self, event: Delivered) -> list[Effect]:
        """A number that has had its turn: it comes twice, or was given up and comes after all, or is used anew."""
        acknowledge = Acknowledge(self.subscription, event.sequence)
        if event.sequence in self._given_up and not event.undecodable:
            here = self.position
            if here is None or self._break is not None:
                return []  # there is no time yet to store it under; it stays at the server
            self._count("late")
            self._given_up.remove(event.sequence)
            self._remember(event)
            store, progress = self._append(here, event.ref, event.sequence)
            return [store, acknowledge, progress]
        if self._is_repeat(event):
            self._count("repeated")
            return [acknowledge]
        return self._renumbered(event)

    def _noted(self, event: Noted) -> list[Effect]:
        """Store rows of no message, if there is a time yet to store them under; one before a break will do."""
        here = self.position
        return self._append(here, event.ref, 0) if here is not None else []

    def _append(self, here: Position, ref: object, sequence: int) -> list[Effect]:
        """Store rows right behind everything that is there."""
        self.position = replace(here, cursor=here.cursor + 1)
        return [Store(ref, sequence, here.timeline, here.cursor, here.cursor + 1), Progress(self.position)]

    def _is_repeat(self, event: Delivered) -> bool:
        """Whether the server sends a message once more, as far as its time can tell.

        The last ones are remembered with their times. An older one was published no later than what was taken since.
        """
        if event.republished:
            return True
        if self._break is not None:
            return False  # nothing of this subscription has been taken
        ticks = self._told(event)
        times = [time for number, time in self._recent if number == event.sequence]
        if self.axis is Axis.NONE:
            return bool(times)  # asked for, and here after all
        assert self.position is not None, "what had its turn has a place"
        return not ticks or ticks in times or (not any(times) and ticks <= self.position.cursor)

    def _remember(self, message: Delivered) -> None:
        """Note the number and time of a message that was taken; 0 where the time is not its own."""
        if self.axis is not Axis.NONE or message.republished:
            own = not message.republished or self.axis is Axis.PUBLISH
            self._recent.append((message.sequence, self._told(message) if own else 0))

    def _is_another(self, event: Delivered) -> bool:
        """Whether a message of the same number, and another time, waits already."""
        held = self._held.get(event.sequence)
        if held is None or held.republished or event.republished:
            return False
        return 0 < self._told(held) < self._told(event)

    def _renumbered(self, event: Delivered) -> list[Effect]:
        """The server begins to count anew: what it sent since the last message is not known."""
        self._count("renumbered")
        subscription, reason, here = self.subscription, self._break or Reason.MISSED, self._told(event)
        overtook = {n: m for n, m in self._held.items() if n != event.sequence and self._told(m) > here > 0}
        self._held = {n: m for n, m in self._held.items() if n not in overtook}
        effects = self._stop()
        self._held |= overtook
        self.subscription, self.expected, self._break = subscription, event.sequence, reason
        # Those before it may still be on their way.
        self._given_up.extend(range(max(1, event.sequence - HELD_MAX), event.sequence))
        return effects + self._delivered(event)

    def _probe(self, sequence: int) -> list[Effect]:
        """After a resume: ask for one message after the other until the server has no more."""
        self._probes -= 1
        if self._probes == 0 or len(self._held) >= HELD_MAX:
            self._mode = _Mode.LIVE
            return [Resumed()]
        self._asked.add(sequence)
        return [Republish(self.subscription, sequence)]

    def _live_again(self) -> list[Effect]:
        """After a transfer: publish once everything that was asked for has been answered."""
        if self._mode is not _Mode.FETCH or self._asked:
            return []
        self._mode = _Mode.LIVE
        return [Resumed()]

    def _not_available(self, sequence: int) -> list[Effect]:
        if self.expected == 0 or sequence not in self._asked:
            return []
        self._asked.discard(sequence)
        if self._mode is _Mode.PROBE:
            self._mode = _Mode.LIVE  # nothing is known to be missing: the number may not have been used yet
            return [Resumed()]
        self._missing.add(sequence)
        return self._release() + self._live_again()

    def _ask(self, event: Delivered) -> list[Effect]:
        """Ask again for what is missing before what is held, once a further response has not brought it."""
        hole = self._hole()
        if not hole:
            self._hole_age = 0
            return []
        if not event.republished:
            self._hole_age += 1
        if self._hole_age < 2 and not event.keepalive:
            return []
        effects: list[Effect] = []
        too_many = len(self._held) >= HELD_MAX or len(hole) >= HOLE_MAX
        for number in hole:
            # What the server made after this response is not in its list.
            told = event.available if distance(number, event.sequence) < WRAP // 2 else None
            if too_many or (told and number not in told):
                self._missing.add(number)
            elif number not in self._asked:
                self._asked.add(number)
                effects.append(Republish(self.subscription, number))
        return effects + self._release()

    def _hole(self) -> list[int]:
        """Return the numbers not here, in order, before the furthest thing that is."""
        ends = [*self._held, *([self._alive[0]] if self._alive else [])]
        if not ends:
            return []
        span = min(max(distance(self.expected, s) for s in ends), HOLE_MAX)
        number, hole = self.expected, []
        for _ in range(span):
            if number not in self._held and number not in self._missing:
                hole.append(number)
            number = after(number)
        return hole

    def _release(self, *, final: bool = False) -> list[Effect]:
        """Store what is in order now, and extend or break what is claimed."""
        effects: list[Effect] = []
        done = 0
        while True:
            if self.expected in self._missing:
                self._give_up()
                continue
            message = self._held.get(self.expected)
            if message is not None:
                when = self._when(message, final=final)
                if when is None:
                    break
                del self._held[self.expected]
                done, self.expected = self.expected, after(self.expected)
                effects += self._take(message, *when)
                continue
            if self._alive is not None and self._alive[0] == self.expected:
                effects += self._advance(self._alive[1])
                done, self._alive = self._before(self.expected), None
            break
        if self._alive is not None and distance(self.expected, self._alive[0]) >= WRAP // 2:
            self._alive = None  # overtaken: its number has had its turn
        if done and self.position is not None:
            self.position = replace(self.position, sequence=done, subscription=self.subscription)
            effects.append(Progress(self.position))
        return effects

    def _give_up(self) -> None:
        """The next number will not come: go on behind it."""
        self._missing.discard(self.expected)
        self._asked.discard(self.expected)
        self._given_up.append(self.expected)
        if len(self._given_up) > HELD_MAX:
            self._given_up.popleft()
        self.expected, self._lost = after(self.expected), True

    def _take(self, message: Delivered, ticks: int, whole: bool) -> list[Effect]:
        """Store one message whose turn it is; `whole`: the server had nothing more to send then."""
        effects = self._begin(ticks) if self._break else []
        effects += self._new_timeline_if_back(ticks)
        here = self.position
        assert here is not None
        ticks = max(ticks, here.cursor + 1)
        self._remember(message)
        if message.overflow:
            effects += self._overflowed(here, ticks, message.overflow)
        else:
            effects += self._end_overflow()
        if not message.undecodable:
            effects.append(Store(message.ref, message.sequence, here.timeline, here.cursor, ticks))
        effects.append(Acknowledge(self.subscription, message.sequence))
        self.position = replace(here, cursor=ticks)
        if self._lost or message.undecodable:
            return effects + self._break_at(ticks, Reason.MISSED if self._lost else Reason.UNDECODABLE)
        if self.axis is Axis.NONE:
            return effects + self._hold(here.timeline, here.start, ticks)
        return effects + self._claim(ticks) if whole else effects

    def _advance(self, ticks: int) -> list[Effect]:
        """A keep-alive with the next number: the server has had nothing to say until then."""
        effects = self._begin(ticks) if self._break else []
        effects += self._new_timeline_if_back(ticks)
        effects += self._end_overflow()
        assert self.position is not None
        if self.axis is Axis.NONE:
            return effects
        if self._lost:
            return effects + self._break_at(max(ticks, self.position.cursor + 1), Reason.MISSED)
        return effects + self._claim(max(ticks, self.position.cursor))

    # Claims and gaps

    def _claim(self, ticks: int) -> list[Effect]:
        """Claim everything up to `ticks`."""
        here = self.position
        assert here is not None and ticks >= here.covered, "claims only grow"
        effects = self._outlasted() if ticks > here.covered else []
        waits = here.is_declared and ticks == here.covered
        self.position = replace(here, covered=ticks, cursor=max(ticks, here.cursor), is_declared=waits)
        if ticks > here.start:
            effects.append(Extend(Coverage(self.stream, here.timeline, here.start, ticks, self.origin)))
        return effects

    def _break_at(self, ticks: int, reason: Reason) -> list[Effect]:
        """Messages before `ticks` are missing: declare the gap, claim anew from there."""
        here = self.position
        assert here is not None and ticks > here.covered, "a gap has a length"
        self._lost = False
        self._count(reason)
        effects = self._outlasted() + self._gap(here.timeline, here.covered, ticks, reason)
        effects += self._hold(here.timeline, here.covered, ticks)
        cursor = max(ticks, here.cursor)
        self.position = replace(here, start=ticks, covered=ticks, cursor=cursor, is_declared=False)
        return effects

    def _new_timeline_if_back(self, ticks: int) -> list[Effect]:
        """The server's clock went back: nothing is missing, but the axis begins anew."""
        here = self.position
        assert here is not None
        if ticks >= here.cursor - STILL_TICKS:
            return []
        self._count("clock_back")
        effects = self._outlasted() + self._hold(here.timeline, here.covered, here.cursor)
        timeline, start = self._named(ticks), ticks - 1
        self.position = replace(here, timeline=timeline, start=start, covered=start, cursor=start, is_declared=False)
        return effects

    def _hold(self, timeline: str, start: int, end: int) -> list[Effect]:
        if end <= start:
            return []
        return [Extend(Coverage(self.stream, timeline, start, end, self.origin, Grade.HELD))]

    def _gap(self, timeline: str, start: int, end: int, reason: Reason) -> list[Effect]:
        gap = Gap.opened(self.stream, timeline, start, reason, end=end)
        return [OpenGap(gap), Backfill(gap)]

    def _overflowed(self, here: Position, end: int, handles: Iterable[int]) -> list[Effect]:
        """Declare or widen the gap of the tags whose queue ran over; a run of overflows is one row."""
        self._count("overflow")
        effects: list[Effect] = []
        tags = {self.identity(h) for h in handles}
        if self._overflow is not None and self._overflow.timeline != here.timeline:
            effects = self._end_overflow()
        gap = self._overflow or Gap.opened(
            self.stream, here.timeline, here.covered, Reason.OVERFLOW, tags=sorted(tags), found=here.cursor
        )
        self._overflow = msgspec.structs.replace(gap, end=end, tags=sorted(tags | set(gap.tags or ())))
        return [*effects, OpenGap(self._overflow)]

    def _end_overflow(self) -> list[Effect]:
        gap, self._overflow = self._overflow, None
        return [Backfill(gap)] if gap is not None else []

    def _stalled(self) -> list[Effect]:
        """Open the gap of a full disk with its start, as long as that can be written at all."""
        here = self.position
        if here is None or here.is_declared or self._break is not None or self.axis is Axis.NONE:
            return []
        self._count("stalled")
        self.position = replace(here, is_declared=True)
        return [OpenGap(self._declared(here)), Progress(self.position)]

    def _outlasted(self) -> list[Effect]:
        """The subscription outlived the stall: close the gap that was opened for it, which has no length."""
        here = self.position
        if here is None or not here.is_declared:
            return []
        gap = msgspec.structs.replace(self._declared(here), end=here.covered)
        return [CloseGap(gap, Closure.REPUBLISH, "the server kept everything until the disk took data again")]

    def _declared(self, here: Position) -> Gap:
        return Gap.opened(self.stream, here.timeline, here.covered, Reason.DISK_FULL)

    def _backfilled(self, event: Backfilled) -> list[Effect]:
        self._count("recovered" if event.complete else "lost")
        closure = Closure.HISTORY if event.complete else Closure.LOST
        return [CloseGap(event.gap, closure, event.why)]

    # Times and numbers

    def _told(self, message: Delivered) -> int:
        """Return the time that the server gave a message, 0 if it gave none; the first message chooses the axis."""
        publish, response = time_or_null(message.publish_ticks), time_or_null(message.response_ticks)
        if self.axis is None:
            self.axis = Axis.PUBLISH if publish else Axis.RESPONSE if response else Axis.NONE
        return {Axis.PUBLISH: publish, Axis.RESPONSE: response, Axis.NONE: 0}[self.axis]

    def _time(self, message: Delivered) -> int:
        """Return the message's place on the stream's axis: where it has no time, right behind what is there."""
        ticks, here = self._told(message), self.position
        if here is not None and here.axis is not self.axis:
            self.position = here = replace(here, axis=self.axis)
        return ticks or (here.cursor + 1 if here else 1)

    def _when(self, message: Delivered, *, final: bool) -> tuple[int, bool] | None:
        """Return the time to store a message under and whether it may be claimed; None: not known yet.

        A message that was sent again, on a server that puts no time into the message itself, gets the
        time of the next one that came by itself. With another one missing between the two, that time
        would claim too much.
        """
        ticks = self._time(message)
        if not message.republished:
            return ticks, not message.more
        if self.axis is Axis.PUBLISH:
            return ticks, False  # the answer to a Republish does not tell whether there was more to send
        unknown = (self.position.cursor + 1 if self.position else 1), False
        number = after(message.sequence)
        while number in self._held:
            later = self._held[number]
            if not later.republished:
                return self._time(later), False
            number = after(number)
        if number in self._missing:
            return unknown
        if self._alive is not None and self._alive[0] == number:
            return self._alive[1], False
        return unknown if final else None

    @staticmethod
    def _before(sequence: int) -> int:
        return WRAP if sequence == 1 else sequence - 1

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
