"""The gateway with one rule removed, each by a subclass put in the place of the real part.

A mutant is a context in which worlds are made; the simulation has to notice each one. They stand here, so
that nothing in the gateway can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

from gateway import sampler
from gateway.io import backfill, ingest, push
from gateway.io.outcome import Transaction
from gateway.io.sealing import Builder, Payload
from gateway.sampler import Delivered, Effect, Sampler, Subscribed
from gateway.window import Question
from mirror.coverage import Closure, Coverage, Gap, Promise, Reason
from mirror.header import Header
from mirror.prefix import Prefix
from tests.sim.gateway import Parts, SimJournal, Violation
from tests.sim.server import ALL
from tests.sim.world import World


class AckBeforeCommit(ingest.Ingest):
    """Acknowledges while the transaction is still open."""

    def _carry_out(self, stream: str, effect: Effect, done: Transaction) -> None:
        if isinstance(effect, sampler.Acknowledge):
            self._on_durable(ingest.Durable(effects=[(stream, effect)]))
        else:
            super()._carry_out(stream, effect, done)


class ClaimAcrossHole(Sampler):
    """Goes on claiming where messages are missing."""

    def _break_at(self, ticks: int, reason: Reason) -> list[Effect]:
        self._lost = False
        return self._claim(ticks)


class MergeOverGap(Sampler):
    """Declares the gap, and then claims from where the claim before it began."""

    def _break_at(self, ticks: int, reason: Reason) -> list[Effect]:
        assert self.position is not None
        start = self.position.start
        effects = super()._break_at(ticks, reason)
        self.position = replace(self.position, start=start)
        return effects


class AnyKeepAlive(Sampler):
    """Takes the time of a keep-alive whatever number it announces."""

    def _delivered(self, event: Delivered) -> list[Effect]:
        effects = super()._delivered(event)
        here = self.position
        if event.keepalive and here is not None and self._break is None and self._time(event) > here.cursor:
            effects += self._claim(self._time(event))
        return effects


class SharedEnd(Sampler):
    """Stores messages of one publish time under one end."""

    def _take(self, message: Delivered, ticks: int, whole: bool) -> list[Effect]:
        here = self.position
        if self._break is None and here is not None and ticks == here.cursor > here.start:
            self.position = replace(here, cursor=here.cursor - 1, covered=min(here.covered, here.cursor - 1))
        return super()._take(message, ticks, whole)


class MoreClaims(Sampler):
    """Claims up to a message although the server had more to send."""

    def _take(self, message: Delivered, ticks: int, whole: bool) -> list[Effect]:
        return super()._take(message, ticks, True)


class RepublishedClaims(Sampler):
    """Takes a message that was sent again for the last one there was."""

    def _when(self, message: Delivered, *, final: bool) -> tuple[int, bool] | None:
        found = super()._when(message, final=final)
        return None if found is None else (found[0], not message.more)


class RepublishedTime(Sampler):
    """Gives a message without a time the time of its Republish."""

    def _when(self, message: Delivered, *, final: bool) -> tuple[int, bool] | None:
        return self._time(message), True


class SilentGap(Sampler):
    """Breaks the claim and says nothing."""

    def _gap(self, timeline: str, start: int, end: int, reason: Reason) -> list[Effect]:
        return []


class WrongPosition(Sampler):
    """Resumes one message too late."""

    def _subscribed(self, event: Subscribed) -> list[Effect]:
        here = self.position
        if event.resumed and here is not None and here.subscription == event.subscription:
            self.position = replace(here, sequence=sampler.after(here.sequence))
        return super()._subscribed(event)


class StaleList(Sampler):
    """Believes that a list of available messages also tells of those that were sent after it was made."""

    def _ask(self, event: Delivered) -> list[Effect]:
        for number in self._hole() if event.available else []:
            if number not in (event.available or ()):
                self._missing.add(number)
        return super()._ask(event)


class DropLate(StaleList):
    """Gives up what may still come; when it does, acknowledges it and throws it away."""

    def _again(self, event: Delivered) -> list[Effect]:
        return [sampler.Acknowledge(self.subscription, event.sequence)]


class RepeatsOnly(Sampler):
    """Takes every number that has had its turn for a repeat, acknowledges it and throws it away."""

    def _is_repeat(self, event: Delivered) -> bool:
        return True


class ForgottenGap(SimJournal):
    """A closed gap leaves the ledger without a trace."""

    def close_gap(self, gap_id: str, closed_by: Closure, closed_reason: str = "", *, end: int | None = None) -> None:
        self._db.execute("DELETE FROM gap WHERE id = ?", (gap_id,))


class LateChunks(SimJournal):
    """Writes a claim at once and its chunk with the next transaction."""

    def __init__(self, *args: Any) -> None:
        self._late: list[tuple[Any, ...]] = []
        super().__init__(*args)

    def append(self, *args: Any, **how: Any) -> int:
        late, self._late = self._late, [args]
        return [SimJournal.append(self, *earlier) for earlier in late][-1] if late else 0


class TrimAnything(SimJournal):
    """Takes all that it holds for promised when there is too much of it."""

    def trim_to(self, size_bytes: int, promise: Promise, *, limit: int = 1000) -> int:
        lanes = self._db.execute("SELECT stream, timeline, origin FROM lane").fetchall()
        everything = [Coverage(stream, timeline, 0, 1 << 62, origin) for stream, timeline, origin in lanes]
        return super().trim_to(size_bytes, Promise(everything), limit=limit)


class SplitCommit(ingest.Ingest):
    """Makes chunks durable in one transaction and where the stream stands in the next."""

    def _carry_out(self, stream: str, effect: Effect, done: Transaction) -> None:
        if isinstance(effect, sampler.Progress):
            position = effect.position
            super().call(
                lambda j: j.set_fact(ingest.position_name(stream), ingest.msgspec.json.encode(position))  # type: ignore[attr-defined]
            )
        else:
            super()._carry_out(stream, effect, done)


class ByPublishTime(Question):
    """Takes the gap's publish times for source times, and an answer for all that there is."""

    unproved = 0  # type: ignore[assignment]

    def __init__(self, gap: Gap, widen: int, *tags: Any) -> None:
        super().__init__(gap, widen, *tags)
        assert gap.end is not None
        self._start[:], self._end[:] = gap.start - widen, gap.end + widen


class Believed(Question):
    """Believes that a historian has all that it does not refuse to tell."""

    unproved = 0  # type: ignore[assignment]


class OwnMarks(Builder):
    """Remembers by itself what it has built, and takes that for pushed."""

    def build(self, prefix: Prefix, now: float) -> tuple[Header, Payload] | None:
        built = super().build(prefix, now)
        for claim in built[0].intervals if built is not None else ():
            prefix.promise.add(Coverage(*(getattr(claim, name) for name in claim.__struct_fields__)))
        return built


@contextmanager
def _sampler(kind: type[Sampler]) -> Iterator[Parts]:
    with patch.object(ingest, "Sampler", kind):
        yield Parts()


@contextmanager
def _builder(kind: type[Builder]) -> Iterator[Parts]:
    with patch.object(push, "Builder", kind):
        yield Parts()


@contextmanager
def _question(kind: type[Question]) -> Iterator[Parts]:
    with patch.object(backfill, "Question", kind):
        yield Parts()


@contextmanager
def _parts(**how: Any) -> Iterator[Parts]:
    yield Parts(**how)


class Mutant(NamedTuple):
    """A rule taken out: how, what finds it, and the trouble in which that shows soon."""

    context: Callable[[], AbstractContextManager[Parts]]
    finds: str
    favour: Mapping[str, Any] = MappingProxyType({})


MUTANTS: dict[str, Mutant] = {
    "acknowledge before commit": Mutant(lambda: _parts(ingest=AckBeforeCommit), "I1"),
    "claim across a hole": Mutant(lambda: _sampler(ClaimAcrossHole), "I9", {"loss": 0.15}),
    "merge coverage over a gap": Mutant(lambda: _sampler(MergeOverGap), "I9", {"loss": 0.15}),
    "keep-alive claims with a wrong number": Mutant(lambda: _sampler(AnyKeepAlive), "I9", {"loss": 0.15, "keeps": 1}),
    "chunks may share an end": Mutant(lambda: _sampler(SharedEnd), "I1", {"resolution": 50_000_000}),
    "more to come claims": Mutant(lambda: _sampler(MoreClaims), "I9", {"items_max": 1}),
    "republished message claims": Mutant(lambda: _sampler(RepublishedClaims), "I9", {"items_max": 1}),
    "republished time claims": Mutant(lambda: _sampler(RepublishedTime), "I9", {"axis": "response"}),
    "gap opened silently": Mutant(lambda: _sampler(SilentGap), "I9"),
    "gap closed silently": Mutant(lambda: _parts(journal=ForgottenGap), "I9"),
    "resume with the wrong position": Mutant(lambda: _sampler(WrongPosition), "I9", {"resume": "session"}),
    "late message thrown away": Mutant(lambda: _sampler(DropLate), "I1", {"requests": 4, "lists": True}),
    "number used anew thrown away": Mutant(lambda: _sampler(RepeatsOnly), "I9", {"danger": 1.0, "axis": "publish"}),
    "history asked by publish time": Mutant(
        lambda: _question(ByPublishTime), "I1", {"history": True, "behind": 3_000_000_000, "remembers": ALL}
    ),
    "history believed": Mutant(lambda: _question(Believed), "I1", {"history": True, "remembers": 5, "resolution": 1}),
    "coverage before its chunk is durable": Mutant(lambda: _parts(journal=LateChunks), "I1"),
    "position in another transaction": Mutant(lambda: _parts(ingest=SplitCommit), "I1", {"danger": 1.0}),
    "trim what is not promised": Mutant(lambda: _parts(journal=TrimAnything), "I1", {"flaky": 0.3}),
    "promise not derived from the chain": Mutant(lambda: _builder(OwnMarks), "I1", {"flaky": 0.3, "danger": 1.0}),
}


def fails(seed: int, parts: Parts | None = None, **favour: Any) -> str:
    """Return what is violated in one schedule, empty if nothing is."""
    try:
        World(seed, parts, **favour).run()
    except Violation as violation:
        return str(violation)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def killer(name: str, seeds: int) -> int | None:
    """Return the first seed that finds what a missing rule leads to."""
    mutant = MUTANTS[name]
    with mutant.context() as parts:
        return next((s for s in range(seeds) if fails(s, parts, **mutant.favour).startswith(mutant.finds)), None)
