"""The appending machine, event by event; random schedules are in test_chain_sim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror import chain as m
from mirror.chain import Chain, Phase
from mirror.coverage import Coverage
from mirror.floor import sign_floor
from mirror.header import FLOOR, Flaw, Header, canonical, chain_hash, public_hex, sign
from mirror.prefix import Prefix, Saved
from tests.mirror.chain_world import KEYS
from tests.mirror.logs import reseal

A, B = KEYS["a"], KEYS["b"]


class Log:
    """Segments by number and a machine reading and writing them; answers come at once and truly."""

    def __init__(
        self, replica: str = "a", arbiter: str = "solo", saved: bytes = b"", chain: type[Chain] = Chain
    ) -> None:
        self.segments: dict[int, bytes] = {}
        self.broken: set[int] = set()
        self.floor: bytes | None = None
        self.files: dict[int, str] = {}
        prefix = Prefix.load(saved) if saved else Prefix(Saved("g"))
        self.chain = chain(prefix, replica, KEYS[replica], arbiter)
        self.told: list[Any] = []

    def answer(self, request: Any) -> Any:
        match request:
            case m.ReadFloor():
                return m.FloorRead(self.floor)
            case m.ReadSegment(seq):
                if seq in self.broken:
                    return m.SegmentBroken(seq, "no footer")
                return m.SegmentRead(seq, self.segments.get(seq), self.files.get(seq, ""))
            case m.ListFrom(seq):
                return m.Listed(min((s for s in self.segments if s >= seq), default=None))
            case m.Put(seq, header, _):
                created = seq not in self.segments
                self.segments.setdefault(seq, header)
                return m.Written(seq, created, f"file{seq}")
        return None

    def run(self, event: Any) -> list[Any]:
        """Send an event and answer requests until there are none; return the other effects."""
        told: list[Any] = []
        effects = self.chain.step(event, 0.0)
        while effects:
            requests = [e for e in effects if self.answer(e) is not None]
            told += [e for e in effects if e not in requests]
            assert len(requests) <= 1
            effects = self.chain.step(self.answer(requests[0]), 0.0) if requests else []
            if not effects and self.chain.wake_at is not None:
                effects = self.chain.step(m.Wake(), self.chain.wake_at)
        self.told += told
        return told

    def lead(self, epoch: int = 1, **fence: Any) -> list[Any]:
        return self.run(m.Start()) + self.run(m.Lead(epoch, f"inc{epoch}", Header(**fence)))


def kinds(effects: list[Any]) -> list[str]:
    return [type(e).__name__ for e in effects]


def test_an_empty_log_begins_with_a_fence_that_enrols_its_writer():
    log = Log()
    assert kinds(log.lead()) == ["AtEnd", "Absorbed", "Placed"]
    header = m.examine(log.segments[0], "g", {}, 0)
    assert isinstance(header, Header)
    assert (header.rows, header.intervals, header.keys) == (0, (), {"a": public_hex(A)})
    assert log.chain.ready


def test_an_accepted_segment_joins_the_promise_and_carries_the_hash_of_the_one_before():
    log = Log()
    log.lead()
    claim = Coverage("s", "1-1", 0, 9, "a")
    assert kinds(log.run(m.Offer(Header(rows=1, intervals=(claim,)), "body"))) == ["Absorbed", "Accepted"]
    assert log.chain.prefix.promise.claims() == [claim]
    header = m.examine(log.segments[1], "g", log.chain.prefix.at.keys, 1)
    assert isinstance(header, Header)
    assert header.prev == chain_hash(log.segments[0])
    assert header.prev_file == "file0"


def test_nothing_joins_the_promise_before_the_floor_was_read_again():
    log = Log()
    log.lead()
    log.chain.step(m.Offer(Header(intervals=(Coverage("s", "1-1", 0, 9, "a"),)), "body"), 0.0)
    effects = log.chain.step(m.Written(1, True, ""), 0.0)
    assert effects == [m.ReadFloor()]
    assert log.chain.prefix.promise.claims() == []


def test_a_restart_leads_under_a_higher_epoch_and_goes_on_with_its_own_log():
    first = Log()
    first.lead()
    again = Log(saved=first.chain.prefix.save())
    again.segments = first.segments
    assert kinds(again.run(m.Start())) == ["AtEnd"]
    assert kinds(again.run(m.Lead(1, "other", Header()))) == ["FencedOut"], "its old epoch is used up"
    again = Log(saved=first.chain.prefix.save())
    again.segments = first.segments
    assert kinds(again.lead(2))[-1] == "Placed"


def test_a_write_without_an_answer_is_read_back_and_counts_if_it_is_there():
    log = Log()
    log.lead()
    put = log.chain.step(m.Offer(Header(rows=1), "body"), 0.0)[0]
    assert isinstance(put, m.Put)
    log.segments[1] = put.header
    assert log.chain.step(m.Written(1, False, ""), 5.0) == []
    assert log.chain.phase is Phase.UNKNOWN
    assert log.chain.wake_at == 5.0 + m.RETRY_FIRST_S
    assert log.chain.step(m.Wake(), 5.0) == [], "not before its time"
    assert log.chain.step(m.Wake(), 6.0) == [m.ReadSegment(1)]
    assert log.chain.step(m.SegmentRead(1, put.header), 6.0) == [m.ReadFloor()]
    assert kinds(log.chain.step(m.FloorRead(), 6.0)) == ["Absorbed", "Accepted"]


def test_a_write_that_is_not_there_is_sent_again_with_the_same_bytes():
    log = Log()
    log.lead()
    put = log.chain.step(m.Offer(Header(rows=1), "body"), 0.0)[0]
    log.chain.step(m.Written(1, False, ""), 0.0)
    log.chain.step(m.Wake(), 1.0)
    assert log.chain.step(m.SegmentRead(1, None), 1.0) == [put]


def test_a_store_that_is_away_is_asked_ever_more_rarely_up_to_a_bound():
    log = Log()
    now, pauses = 0.0, []
    log.chain.step(m.Start(), now)
    for _ in range(12):
        assert log.chain.step(m.Away(), now) == []
        assert log.chain.wake_at is not None
        pauses.append(log.chain.wake_at - now)
        now = log.chain.wake_at
        assert log.chain.step(m.Wake(), now) == [m.ReadFloor()]
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == m.RETRY_MAX_S


def test_a_sign_that_the_store_is_back_is_followed_at_once():
    log = Log()
    log.chain.step(m.Start(), 0.0)
    assert log.chain.step(m.Wake(early=True), 0.0) == [], "an answer is on its way"
    log.chain.step(m.Away(), 0.0)
    assert log.chain.step(m.Wake(early=True), 0.01) == [m.ReadFloor()]
    assert log.chain.wake_at is None


def floor(log: Log, seq: int = 5, *, signer: str = "a", key: Any = A, **members: Any) -> bytes:
    """Return a signed floor with the keys of the log and any members, whatever the log holds there."""
    at = log.chain.prefix.at
    start = {
        "genesis": at.genesis,
        "hash": "11" * 32,
        "epoch": 1,
        "holder": "a",
        "incarnation": "inc1",
        "keys": at.keys,
    }
    return sign_floor(Prefix(Saved("g", seq, **{**start, **members})), signer, key)


def cleaned_up(log: Log, seq: int) -> bytes:
    """Return the true floor of a log; delete what is below."""
    below = Prefix(Saved("g"))
    for number in range(seq):
        found = below.judge(log.segments[number])
        assert isinstance(found, Header), found
        below.absorb(found, chain_hash(log.segments.pop(number)), "")
    return sign_floor(below, "a", A)


def other(log: Log, epoch: int, *, key: Any = B, holder: str = "b", **fields: Any) -> bytes:
    at = log.chain.prefix.at
    fields = {"group": "g", "seq": at.seq, "prev": at.hash, "arbiter": "solo", "incarnation": "x", **fields}
    return sign(Header(epoch=epoch, holder=holder, **fields), key)


BOTH = {"a": public_hex(A), "b": public_hex(B)}


def test_a_higher_epoch_under_our_name_fences_us_and_the_body_comes_back():
    log = Log()
    log.lead(keys=BOTH)
    log.segments[1] = other(log, 2)
    told = log.run(m.Offer(Header(rows=1), "body"))
    assert kinds(told) == ["Returned", "Absorbed", "FencedOut"]
    assert told[0].body == "body"
    assert log.chain.phase is Phase.FENCED
    assert not log.chain.ready


def test_a_late_segment_of_the_predecessor_is_taken_in_and_the_fence_placed_after_it():
    first = Log()
    first.lead(keys=BOTH)
    log = Log("b")
    log.segments = dict(first.segments)
    log.run(m.Start())
    late = sign(
        Header(group="g", seq=1, epoch=1, holder="a", incarnation="inc1", arbiter="solo",
               prev=chain_hash(log.segments[0]), intervals=(Coverage("s", "1-1", 0, 9, "a"),)), A
    )  # fmt: skip
    log.segments[1] = late
    told = log.run(m.Lead(2, "y", Header()))
    assert kinds(told) == ["Absorbed", "Absorbed", "Placed"]
    assert log.chain.prefix.promise["s", "1-1", "a"].covers(0, 9)
    assert sorted(log.segments) == [0, 1, 2]


def test_a_segment_below_the_floor_does_not_count_and_ends_the_leadership():
    log = Log()
    log.lead()
    log.floor = floor(log)
    told = log.run(m.Offer(Header(rows=1), "body"))
    assert kinds(told) == ["Returned", "FencedOut"]
    assert "below the floor" in told[1].reason


def refusal(log: Log, event: Any) -> m.Refused:
    told = log.run(event)
    assert kinds(told)[-1] == "Refused", told
    assert log.chain.phase is Phase.REFUSED
    refused = told[-1]
    assert refused.hint
    return refused


def test_somebody_elses_log_is_refused_before_anything_is_written():
    log = Log("b")
    stranger = Log()
    stranger.lead()
    log.segments = dict(stranger.segments)
    log.run(m.Start())
    refused = refusal(log, m.Lead(2, "x", Header()))
    assert "belongs to a" in refused.what
    assert "group.name" in refused.hint
    assert len(log.segments) == 1


def test_a_log_whose_last_known_segment_is_gone_or_another_one_is_refused():
    first = Log()
    first.lead()
    saved = first.chain.prefix.save()
    assert "missing" in refusal(Log(saved=saved), m.Start()).what
    swapped = Log(saved=saved)
    swapped.segments[0] = sign(Header(group="g", epoch=9, holder="a", keys={"a": public_hex(A)}), A)
    assert "another log" in refusal(swapped, m.Start()).what


def test_a_hole_in_the_log_is_refused_and_not_taken_for_its_end():
    first = Log()
    first.lead()
    for body in "xyz":
        first.run(m.Offer(Header(rows=1), body))
    log = Log()
    log.segments = {s: d for s, d in first.segments.items() if s != 1}
    assert "segment 1 is missing: segment 2 stands above it" in refusal(log, m.Start()).what


def test_an_unreadable_segment_is_stepped_over_if_its_successor_proves_its_hash():
    first = Log()
    first.lead()
    first.run(m.Offer(Header(intervals=(Coverage("s", "1-1", 0, 9, "a"),)), "x"))
    first.run(m.Offer(Header(intervals=(Coverage("s", "1-1", 9, 19, "a"),)), "y"))
    log = Log()
    log.segments, log.broken = first.segments, {1}
    told = log.run(m.Start())
    assert kinds(told) == ["Absorbed", "Alarm", "Absorbed", "AtEnd"]
    assert told[1].finding[:2] == (1, Flaw.UNREADABLE)
    assert log.chain.prefix.at.hash == first.chain.prefix.at.hash
    assert log.chain.prefix.promise.claims() == [Coverage("s", "1-1", 9, 19, "a")], "its interval is pushed again"


def test_an_unreadable_last_segment_is_refused_unless_we_know_its_hash_ourselves():
    first = Log()
    first.lead()
    first.run(m.Offer(Header(rows=1), "x"))
    stranger = Log()
    stranger.segments, stranger.broken = first.segments, {1}
    assert "unreadable" in refusal(stranger, m.Start()).what
    ours = Log(saved=first.chain.prefix.save())
    ours.segments, ours.broken = first.segments, {1}
    assert kinds(ours.run(m.Start())) == ["Alarm", "AtEnd"]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (lambda log: other(log, 2, key=A, holder="a", format=9), "newer"),
        (lambda log: other(log, 2, key=A, holder="a", group="h"), "foreign"),
        (lambda log: other(log, 2), "foreign"),
        (lambda log: other(log, 2, key=A, holder="a", prev="00"), "fork"),
        (lambda log: other(log, 0, key=A, holder="a"), "epoch"),
        (lambda log: b"noise", "altered"),
        (lambda log: other(log, 2, key=A, holder="a", keys={"a": public_hex(B)}), "re-keyed"),
    ],
)
def test_what_is_no_segment_of_this_log_is_never_taken_in(data: Any, word: str):
    log = Log()
    log.lead()
    log.segments[1] = data(log)
    assert f"segment 1 is {word}" in refusal(log, m.Offer(Header(rows=1), "body")).what
    assert log.chain.prefix.at.seq == 1


def led_under(arbiter: str, then: str, replaces: str = "") -> Log:
    """Return a log that was led under one arbiter, read by a replica with another."""
    first = Log(arbiter=arbiter)
    first.lead()
    log = Log(arbiter=then, saved=first.chain.prefix.save())
    log.chain.replaces = replaces
    log.segments = first.segments
    log.run(m.Start())
    return log


def test_another_arbiter_is_refused_unless_it_is_said_to_replace_that_one():
    for then in ("etcd:2", "solo"):
        told = refusal(led_under("etcd:1", then), m.Lead(2, "x", Header()))
        assert 'arbiter.replaces = "etcd:1"' in told.hint
    log = led_under("etcd:1", "etcd:2", replaces="etcd:1")
    log.run(m.Lead(2, "x", Header()))
    assert log.chain.ready


def test_who_was_alone_may_be_followed_by_a_group_since_he_is_fenced_for_good():
    log = led_under("solo", "etcd:1")
    log.run(m.Lead(2, "x", Header()))
    assert log.chain.ready


def test_a_replica_behind_the_floor_goes_on_from_the_prefix_recorded_there():
    first = Log()
    first.lead()
    for body in "xyz":
        first.run(m.Offer(Header(rows=1), body))
    behind = Log()
    behind.segments = {0: first.segments[0]}
    behind.run(m.Start())
    log = Log(saved=behind.chain.prefix.save())
    log.segments = first.segments
    log.floor = cleaned_up(first, 2)
    assert kinds(log.run(m.Start())) == ["Absorbed", "Absorbed", "AtEnd"]
    assert log.chain.prefix.at.hash == first.chain.prefix.at.hash


def test_a_replica_that_knows_nothing_takes_the_floor_at_its_word_and_says_so():
    first = Log()
    first.lead()
    for body in "xyz":
        first.run(m.Offer(Header(rows=1), body))
    log = Log()
    log.floor, log.segments = cleaned_up(first, 2), first.segments
    told = log.run(m.Start())
    assert kinds(told) == ["Believed", "Absorbed", "Absorbed", "AtEnd"]
    assert told[0] == m.Believed(2, "a")
    assert kinds(log.run(m.Lead(2, "x", Header())))[-1] == "Placed"


CLAIM = Coverage("s", "1-1", 0, 9, "a")
LIE = [Coverage("s", "1-1", -(2**62), 2**62, "a")]
EVIL = {"a": public_hex(A), "evil": public_hex(B)}
FORGED: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: canonical({k: v for k, v in msgspec.json.decode(data).items() if k != "signature"}), "unsigned"),
    (lambda data: canonical({**msgspec.json.decode(data), "epoch": 7}), "mis-signed"),
    (lambda data: reseal(data, B), "mis-signed"),
    (lambda data: reseal(data, B, signer="evil", keys=EVIL), "foreign"),
    (lambda data: reseal(data, A, group="h"), "foreign"),
    (lambda data: reseal(data, A, genesis="00" * 32), "foreign"),
    (lambda data: reseal(data, A, keys={"a": public_hex(B)}), "re-keyed"),
    (lambda data: reseal(data, A, format=2), "newer"),
    (lambda data: reseal(data, A, seq=-3), "unreadable"),
    (lambda data: reseal(data, A, seq=2**63), "unreadable"),
    (lambda data: b"noise", "unreadable"),
]


@pytest.mark.parametrize("seq", [1, 2, 5])
@pytest.mark.parametrize(("forge", "flaw"), FORGED)
def test_a_floor_that_does_not_count_is_told_once_and_changes_nothing(
    forge: Callable[[bytes], bytes], flaw: str, seq: int
):
    """Below, at and above what this replica has verified; whoever can write into the bucket can put it there."""
    first = Log()
    first.lead()
    first.run(m.Offer(Header(rows=1, intervals=(CLAIM,)), "x"))
    log = Log(saved=first.chain.prefix.save())
    log.segments, log.floor = first.segments, forge(floor(first, seq, claims=LIE))
    told = log.lead(2)
    assert kinds(told) == ["Alarm", "AtEnd", "Absorbed", "Placed"]
    assert told[0].finding[:2] == (FLOOR, flaw)
    assert kinds(log.run(m.Offer(Header(rows=1), "y"))) == ["Absorbed", "Accepted"], "told once"
    assert log.chain.prefix.promise.claims() == [CLAIM]
    assert log.chain.prefix.at.keys == {"a": public_hex(A)}


@pytest.mark.parametrize(("forge", "flaw"), FORGED[:4])
def test_a_log_of_which_segments_are_gone_is_refused_whatever_such_a_floor_says(
    forge: Callable[[bytes], bytes], flaw: str
):
    first = Log()
    first.lead()
    for body in "xyz":
        first.run(m.Offer(Header(rows=1), body))
    saved = first.chain.prefix.save()
    log = Log(saved=saved)
    log.segments, log.floor = {}, forge(floor(first, 9, claims=LIE))
    refused = refusal(log, m.Start())
    assert "segment 3 is missing" in refused.what
    assert f"floor.json is {flaw}" in refused.what


def test_a_segment_that_the_floor_says_is_kept_and_is_not_there_is_missing():
    first = Log()
    first.lead()
    for body in "xyz":
        first.run(m.Offer(Header(rows=1), body))
    log = Log()
    log.floor, log.segments = cleaned_up(first, 3), {}
    assert "segment 3 is missing: floor.json says that it is kept" in refusal(log, m.Start()).what


def test_who_knows_only_the_floor_still_writes_nothing_into_somebody_elses_log():
    first = Log()
    first.lead()
    first.run(m.Offer(Header(rows=1), "x"))
    log = Log("b")
    log.floor, log.segments = cleaned_up(first, 1), first.segments
    log.run(m.Start())
    assert "belongs to a" in refusal(log, m.Lead(2, "x", Header())).what


ANSWERS = st.lists(
    st.sampled_from(["true", "unknown-done", "unknown-lost", "unknown-late", "away"]), min_size=1, max_size=40
)


@given(ANSWERS, st.integers(1, 5))
def test_whatever_the_answers_each_body_enters_once_and_in_order(answers: list[str], bodies: int):
    """A single writer against a store that loses writes, answers and reads in any pattern."""
    log = Log()
    log.lead()
    pattern = iter(answers)
    late: list[m.Put] = []
    now = 0.0
    for number in range(bodies):
        effects = log.chain.step(m.Offer(Header(rows=number + 1), number), now)
        accepted: list[Any] = []
        while not accepted:
            if log.chain.wake_at is not None:
                now = log.chain.wake_at
                effects = log.chain.step(m.Wake(), now)
                continue
            request = effects[0]
            how = next(pattern, "true")
            if isinstance(request, m.Put):
                if how in ("true", "unknown-done"):
                    created = request.seq not in log.segments
                    log.segments.setdefault(request.seq, request.header)
                    event: Any = m.Written(request.seq, created and how == "true", "")
                else:
                    late += [request] if how == "unknown-late" else []
                    event = m.Written(request.seq, False, "")
            else:
                for put in late:  # before anything is read, what was late may have arrived
                    log.segments.setdefault(put.seq, put.header)
                late = []
                event = m.Away() if how == "away" else log.answer(request)
            effects = log.chain.step(event, now)
            accepted = [e for e in effects if isinstance(e, m.Accepted)]
        assert accepted[0].body == number
    rows = [m.examine(log.segments[s], "g", log.chain.prefix.at.keys, s) for s in sorted(log.segments)]
    assert [h.rows for h in rows if isinstance(h, Header)] == list(range(bodies + 1))
