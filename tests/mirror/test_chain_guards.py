"""Each guard of the chain by a script, and what the same script comes to when the guard is taken out.

Random schedules (`test_chain_sim`) hardly meet these: they take a second log, a lost segment or somebody who lies.
"""

from __future__ import annotations

from typing import Any

from mirror import chain as m
from mirror.chain import Chain, Phase
from mirror.header import Finding, Flaw, Header
from tests.mirror.test_chain import Log, kinds, refusal


class Unbarred(Chain):
    """Writes whether it is enrolled or not."""

    def _barred(self, fence: Header) -> tuple[str, str] | None:
        return None


def two_meet_at_an_empty_log(chain: type[Chain], **first: Any) -> tuple[Log, Log]:
    """`a` has found the log empty; another begins it; `a` then leads, with a higher epoch."""
    late = Log("a", chain=chain)
    assert kinds(late.run(m.Start())) == ["AtEnd"]
    early = Log(**first)
    early.lead()
    late.segments = early.segments
    return late, early


def test_who_loses_the_race_for_segment_0_writes_nothing_into_the_others_log():
    late, early = two_meet_at_an_empty_log(Chain, replica="b")
    refused = refusal(late, m.Lead(7, "inc7", Header()))
    assert "belongs to b" in refused.what
    assert "group.name" in refused.hint
    assert sorted(late.segments) == [0]
    assert kinds(early.run(m.Offer(Header(rows=1), "body"))) == ["Absorbed", "Accepted"], "the other goes on"


def test_without_the_bar_a_key_that_nobody_enrolled_jams_the_log():
    late, early = two_meet_at_an_empty_log(Unbarred, replica="b")
    assert kinds(late.run(m.Lead(7, "inc7", Header()))) == ["Absorbed", "Absorbed", "Placed"]
    found = m.examine(late.segments[1], "g", early.chain.prefix.at.keys, 1)
    assert isinstance(found, Finding)
    assert found.flaw is Flaw.FOREIGN
    assert kinds(early.run(m.Offer(Header(rows=1), "body"))) == ["Returned", "Refused"]


def test_who_loses_the_race_to_another_arbiter_writes_nothing():
    late, _ = two_meet_at_an_empty_log(Chain, replica="a", arbiter="etcd:1")
    assert "[arbiter]" in refusal(late, m.Lead(7, "inc7", Header())).hint
    assert sorted(late.segments) == [0]


def test_a_fence_that_would_give_a_name_another_key_is_not_written():
    late, early = two_meet_at_an_empty_log(Chain, replica="a")
    early.run(m.Offer(Header(keys={"b": "11" * 32}), "body"))
    refused = refusal(late, m.Lead(7, "inc7", Header(keys={"b": "22" * 32})))
    assert "'b' has another key" in refused.what
    assert sorted(late.segments) == [0, 1]


def test_a_name_that_is_listed_and_cannot_be_read_is_asked_for_ever_more_rarely():
    log = Log()
    effects, now, pauses, alarms = log.chain.step(m.Start(), 0.0), 0.0, [], []
    for _ in range(40):
        answers = {m.ReadFloor: m.FloorRead(), m.ReadSegment: m.SegmentRead(0, None), m.ListFrom: m.Listed(0)}
        requests = [effect for effect in effects if type(effect) in answers]
        alarms += [effect for effect in effects if isinstance(effect, m.Alarm)]
        if requests:
            effects = log.chain.step(answers[type(requests[0])], now)
            continue
        assert log.chain.wake_at is not None, "it asks again at once, or never"
        pauses.append(log.chain.wake_at - now)
        now = log.chain.wake_at
        effects = log.chain.step(m.Wake(), now)
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(pauses) == m.RETRY_MAX_S
    assert [a.finding[:2] for a in alarms] == [(0, Flaw.MISSING)], "told once, and not for the first time it happens"
    log.chain.step(m.SegmentRead(0, None), now)
    assert kinds(log.chain.step(m.Listed(None), now)) == ["AtEnd"]
    assert log.chain.phase is Phase.IDLE
