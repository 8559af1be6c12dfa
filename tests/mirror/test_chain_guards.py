"""Each guard of the chain by a script, and what the same script comes to when the guard is taken out.

Random schedules (`test_chain_sim`) hardly meet these: they take a second log, a lost segment or somebody who lies.
"""

from __future__ import annotations

from typing import Any

from mirror import chain as m
from mirror.chain import Chain, Phase
from mirror.header import Finding, Flaw, Header, sign
from mirror.prefix import Saved
from tests.mirror.test_chain import BOTH, A, Log, cleaned_up, floor, kinds, other, refusal


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


class NeverAstray(Chain):
    """Believes what it has read itself, whatever the floor says."""

    def _is_astray(self, below: Saved) -> bool:
        return False


def one_reads_a_late_write_under_a_freed_name(chain: type[Chain]) -> list[Any]:
    """`a` is at segment 1 when clean-up frees that name and a late write of its own predecessor takes it."""
    log = Log()
    log.lead()
    saved = log.chain.prefix.save()
    late = other(log, 1, key=A, holder="a", incarnation="inc1", rows=9)
    for body in "xy":
        log.run(m.Offer(Header(rows=1), body))
    reader = Log(saved=saved, chain=chain)
    reader.segments = {**log.segments, 1: late}
    reader.chain.phase, reader.chain._request = (
        Phase.FOLLOW,
        m.ReadSegment(1),
    )  # it had read the floor before that moved
    reader.floor = cleaned_up(log, 2)
    told = reader.run(m.SegmentRead(1, late))
    if reader.chain.phase is Phase.IDLE:
        assert reader.chain.prefix.at.hash == log.chain.prefix.at.hash
    return told


def test_who_took_in_a_late_write_under_a_freed_name_goes_on_from_the_floor():
    assert kinds(one_reads_a_late_write_under_a_freed_name(Chain)) == ["Absorbed", "Absorbed", "AtEnd"]


def test_who_never_thinks_himself_astray_is_stuck_behind_a_freed_name():
    told = one_reads_a_late_write_under_a_freed_name(NeverAstray)
    assert kinds(told) == ["Absorbed", "Refused"]
    assert "segment 2 is fork" in told[-1].what


class BlindToTheFloor(Chain):
    """Does not look who led last below the floor."""

    def _overtaken(self, by: Header | Saved) -> bool:
        return isinstance(by, Header) and super()._overtaken(by)


def a_leader_meets_a_floor_of_its_successor(chain: type[Chain]) -> tuple[Log, list[Any]]:
    """`a` leads with epoch 1 and finds its next name taken by something else; `b` has led since, and cleaned up."""
    log = Log(chain=chain)
    log.lead(keys=BOTH)
    log.chain.step(m.Offer(Header(rows=1), "body"), 0.0)
    log.chain.step(m.Written(1, False, ""), 0.0)
    log.chain.step(m.Wake(), 1.0)
    late = other(log, 1, key=A, holder="a", incarnation="inc1", prev="00" * 32)
    effects = log.chain.step(m.SegmentRead(1, late), 1.0)
    assert effects == [m.Returned("body"), m.ReadFloor()]
    successor = {"epoch": 2, "holder": "b", "incarnation": "x"}
    return log, log.chain.step(m.FloorRead(floor(log, 5, **successor)), 1.0)


def test_a_leader_whose_successor_stands_below_the_floor_is_fenced():
    log, effects = a_leader_meets_a_floor_of_its_successor(Chain)
    assert kinds(effects) == ["FencedOut"]
    assert "epoch 2 of 'b' stands below segment 5" in effects[0].reason
    assert not log.chain.placed


def test_a_leader_blind_to_the_floor_goes_on_as_a_leader():
    log, effects = a_leader_meets_a_floor_of_its_successor(BlindToTheFloor)
    assert effects == [m.ReadSegment(5)]
    assert log.chain.placed


class AnySuccessor(Chain):
    """Steps over a hole to whatever stands behind it."""

    def _may_follow(self, header: Header) -> bool:
        return True


def a_hole_with_an_older_leader_behind_it(chain: type[Chain]) -> Log:
    """Segment 1 cannot be read; segment 2 is genuine, and of an epoch that had ended before."""
    first = Log()
    first.lead(2)
    log = Log(saved=first.chain.prefix.save(), chain=chain)
    stale = sign(Header(group="g", seq=2, epoch=1, holder="a", incarnation="inc1", prev="ee" * 32), A)
    log.segments, log.broken = {**first.segments, 1: b"", 2: stale}, {1}
    return log


def test_an_older_leaders_segment_behind_a_hole_does_not_prove_what_was_in_it():
    log = a_hole_with_an_older_leader_behind_it(Chain)
    assert "segment 1 is unreadable" in refusal(log, m.Start()).what
    assert (log.chain.prefix.at.seq, log.chain.prefix.at.epoch) == (1, 2)


def test_without_looking_at_its_epoch_the_prefix_would_rest_on_it():
    log = a_hole_with_an_older_leader_behind_it(AnySuccessor)
    assert "segment 2 is epoch" in refusal(log, m.Start()).what
    assert log.chain.prefix.at.hash == "ee" * 32


class BlindToBytes(Chain):
    """Does not compare the object before with what its successor names."""

    def _absorb(self, header: Header, digest: str, file: str) -> list[m.Effect]:
        self.prefix.absorb(header, digest, file)
        return [m.Absorbed(header, digest)]


def a_log_of_which_an_object_was_exchanged(chain: type[Chain]) -> list[Any]:
    """The object under segment 0 has the genuine header, and other bytes than those that were written."""
    first = Log()
    first.lead()
    first.run(m.Offer(Header(rows=1), "x"))
    log = Log(chain=chain)
    log.segments, log.files = first.segments, {0: "other", 1: "file1"}
    return log.run(m.Start())


def test_an_object_with_other_bytes_than_its_successor_names_is_told():
    told = a_log_of_which_an_object_was_exchanged(Chain)
    assert kinds(told) == ["Absorbed", "Alarm", "Absorbed", "AtEnd"]
    assert told[1].finding[:2] == (0, Flaw.ALTERED)
    assert kinds(a_log_of_which_an_object_was_exchanged(BlindToBytes)) == ["Absorbed", "Absorbed", "AtEnd"]
