"""Every way in which a log can be wrong is found and named; a whole one is counted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror import segment
from mirror.batch import equal
from mirror.coverage import Closure, Coverage, Gap, Grade, Promise, Reason, Stream
from mirror.floor import FLOOR_BYTES_MAX, sign_floor
from mirror.header import FLOOR, Closing, Finding, Flaw, canonical, public_hex
from mirror.layout import Layout
from mirror.verify import Report, verify_store
from tests.mirror.logs import KEY, LAYOUT, OTHER, TAGS, LogWriter, below, clean_up, log, reseal, resign, rows

KEYS = {"a": public_hex(KEY)}


def flaws(writer: LogWriter, **how: object) -> list[tuple[int, str]]:
    report = verify_store(writer.store, writer.layout, **how)  # type: ignore[arg-type]
    assert report.verified == (not report.findings)
    assert all(f.detail for f in report.findings)
    return [(f.seq, str(f.flaw)) for f in report.findings]


def swap_in(writer: LogWriter, seq: int, data: bytes) -> None:
    """Put other bytes under a segment's name, as somebody with the store's credentials could."""
    key = LAYOUT.segment(seq)
    metadata = writer.store.objects[key].metadata
    writer.store.put(key, data, metadata=metadata)


def body(writer: LogWriter, seq: int) -> bytes:
    return writer.store.objects[LAYOUT.segment(seq)].body


def test_a_whole_log_is_verified_and_counted():
    writer = log()
    writer.write(3, epoch=2)
    report = verify_store(writer.store, LAYOUT)
    assert report.verified
    assert (report.first, report.next, report.segments, report.fences, report.rows) == (0, 6, 6, 1, 27)
    assert report.epochs == [(1, "a", 0), (2, "a", 5)]
    assert report.rows_by_tag == {name: 9 for name in TAGS.identities}
    assert report.size_bytes == sum(o.size for o in writer.store.objects.values())
    [stream] = report.streams
    assert (stream.stream, stream.source, stream.timeline) == ("s", "urn:x", "1-1")
    assert (stream.start, stream.complete_up_to, stream.newest, stream.holes) == (10, 60, 60, [])
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report).rows == 27


def test_a_place_without_a_log_proves_nothing():
    report = verify_store(LogWriter().store, LAYOUT)
    assert not report.verified and (report.segments, report.next) == (0, 0)
    assert report.findings == [Finding(0, Flaw.MISSING, "there is no log in this place")]


SIZE = len(log(4).store.objects[LAYOUT.segment(2)].body)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, SIZE * 8 - 1), st.booleans())
def test_no_flipped_bit_is_missed(bit: int, last: bool):
    """Anywhere in the file: data, page headers, statistics, footer.

    At the end of the log by the digest beside the object, before it by the successor's word alone.
    """
    writer = log(3 if last else 4)
    damaged = bytearray(body(writer, 2))
    damaged[bit // 8] ^= 1 << bit % 8
    if last:
        swap_in(writer, 2, bytes(damaged))
    else:
        writer.store.put(LAYOUT.segment(2), bytes(damaged))
    found = flaws(writer)
    assert found
    assert {seq for seq, _ in found} == {2}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, SIZE - 1))
def test_no_truncation_is_missed(size: int):
    writer = log(4)
    swap_in(writer, 2, body(writer, 2)[:size])
    assert flaws(writer) == [(2, "unreadable")]


def test_a_deleted_segment_is_missing_and_its_interval_a_hole():
    writer = log()
    writer.store.delete(LAYOUT.segment(2))
    assert flaws(writer) == [(2, "missing")]
    [stream] = verify_store(writer.store, LAYOUT).streams
    assert (stream.complete_up_to, stream.newest, stream.holes) == (20, 50, [(20, 30)])


def test_deleted_newest_segments_are_found_by_what_a_replica_remembers():
    writer = log()
    for seq in (3, 4):
        writer.store.delete(LAYOUT.segment(seq))
    assert flaws(writer) == []
    assert flaws(writer, known=writer.hashes) == [(3, "missing"), (4, "missing")]


@pytest.mark.timeout(20)
def test_an_object_with_a_number_far_above_does_not_keep_the_walk_for_ever():
    writer = log()
    writer.store.put(LAYOUT.segment(9 * 10**18), b"noise")
    report = verify_store(writer.store, LAYOUT)
    assert report.findings[0] == (5, "missing", "no object has its name")
    assert [f.flaw for f in report.findings] == [Flaw.MISSING] * 1000 + [Flaw.UNREADABLE]
    assert str(9 * 10**18 - 1) in report.findings[999].detail
    assert report.segments == 5
    assert report.lost == [(5, 9 * 10**18)]
    assert msgspec.json.encode(report)
    writer.store.put(LAYOUT.log + "9" * 20 + ".parquet", b"noise")
    assert verify_store(writer.store, LAYOUT).strangers == [LAYOUT.log + "9" * 20 + ".parquet"]


def test_an_object_too_large_for_a_segment_is_not_fetched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mirror.verify.SEGMENT_BYTES_MAX", 100_000)
    writer = log(3)
    swap_in(writer, 2, bytes(100_001))
    assert flaws(writer) == [(2, "unreadable")]


def test_swapped_segments_are_both_misplaced():
    writer = log()
    two, three = body(writer, 2), body(writer, 3)
    swap_in(writer, 2, three)
    swap_in(writer, 3, two)
    assert flaws(writer) == [(2, "misplaced"), (3, "misplaced")]


def test_a_replayed_segment_is_misplaced():
    writer = log()
    writer.store.put(LAYOUT.segment(5), body(writer, 2))
    assert flaws(writer) == [(5, "misplaced")]


def test_an_unsigned_a_mis_signed_and_a_foreign_segment_are_named():
    unsigned, foreign, group = log(), log(), log()
    unsigned.write(6, signed=False)
    assert flaws(unsigned) == [(5, "unsigned")]
    foreign.write(6, signed_by=OTHER)
    assert flaws(foreign) == [(5, "foreign")]
    group.write(6, group="h")
    assert flaws(group) == [(5, "foreign")]

    forged = log()
    header = msgspec.json.decode(segment.read_header(body(forged, 4)))
    data = segment.encode(rows(400, 6), TAGS, canonical({**header, "epoch": 9}))
    swap_in(forged, 4, data)
    assert flaws(forged) == [(4, "mis-signed")]


def test_an_enrolled_replica_that_takes_anothers_name_is_named_and_does_not_get_it():
    writer = log()
    writer.write(6, keys={"b": public_hex(OTHER)})
    writer.write(6, epoch=2, holder="b", signed_by=OTHER, keys={"a": public_hex(OTHER)})
    writer.write(6, epoch=3, signed_by=OTHER)
    assert flaws(writer) == [(6, "re-keyed"), (7, "foreign")]
    report = verify_store(writer.store, LAYOUT)
    assert report.streams[0].newest == 60, "neither of them promises anything"


def test_a_claim_beyond_int64_is_not_a_claim():
    writer = log()
    header = segment.read_header(body(writer, 4))
    claim = msgspec.to_builtins(Coverage("s", "1-1", 30, 2**80, "a"))
    swap_in(writer, 4, segment.encode(rows(400, 6), TAGS, resign(header, intervals=[claim])))
    assert (4, "altered") in flaws(writer)
    assert verify_store(writer.store, LAYOUT).streams[0].newest == 40


def test_samples_that_are_not_those_signed_are_altered_even_under_a_genuine_header():
    writer = log()
    header = segment.read_header(body(writer, 3))
    other = rows(300, 6)
    other.bits[2] ^= 1
    swap_in(writer, 3, segment.encode(other, TAGS, header))
    assert flaws(writer) == [(3, "altered")]
    swap_in(writer, 3, segment.encode(rows(300, 5), TAGS, header))
    assert flaws(writer) == [(3, "altered")]
    assert verify_store(writer.store, LAYOUT).streams[0].holes == [(30, 40)]


def test_columns_of_a_later_format_are_newer_and_promise_nothing(monkeypatch: pytest.MonkeyPatch):
    writer = log(3)
    monkeypatch.setattr(segment, "FORMAT", "2")
    writer.write(6)
    monkeypatch.undo()
    assert flaws(writer) == [(3, "newer")]
    assert verify_store(writer.store, LAYOUT).streams[0].newest == 30


def test_facts_that_are_not_those_signed_are_altered():
    writer = log()
    header = segment.read_header(body(writer, 1))
    swap_in(writer, 1, segment.encode(rows(100, 6), TAGS, header))
    assert flaws(writer) == [(1, "altered")]


def test_the_same_samples_in_another_file_are_found_by_the_successor():
    """Statistics in the footer steer readers; they are under no digest but that of the bytes."""
    writer = log()
    data = body(writer, 3)
    table = pq.read_table(pa.BufferReader(data))
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, table.schema, compression="none", store_schema=True) as parquet:
        parquet.write_table(table)
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata
        parquet.add_key_value_metadata({k: v for k, v in metadata.items() if k != b"ARROW:schema"})
    again = out.getvalue().to_pybytes()
    assert segment.read_header(again) == segment.read_header(data)
    assert equal(segment.decode(again)[0], segment.decode(data)[0])
    writer.store.put(LAYOUT.segment(3), again)
    assert flaws(writer) == [(3, "altered")]


def test_a_second_branch_is_a_fork():
    writer = log()
    branch = LogWriter(writer.store)
    branch.seq, branch.prev = 5, "ab" * 32
    branch.write(6)
    branch.write(6)
    assert flaws(writer) == [(5, "fork")], "what follows the branch is judged by the branch"


def test_an_older_leader_after_a_newer_one_is_named():
    writer = log()
    writer.write(6, epoch=3)
    writer.write(6, epoch=2)
    writer.write(6, epoch=3)
    assert flaws(writer) == [(6, "epoch")]
    writer.write(6, epoch=3, incarnation="twin")
    assert (8, "epoch") in flaws(writer)


def test_after_a_hole_an_older_leader_is_still_named_and_nothing_breaks():
    writer = log()
    writer.write(6, epoch=3)
    writer.write(6, epoch=3)
    writer.write(6, epoch=2)
    writer.store.delete(LAYOUT.segment(6))
    assert flaws(writer) == [(6, "missing"), (7, "epoch")]


def test_a_log_of_another_genesis_is_foreign_to_who_knows_the_keys():
    writer = LogWriter(key=OTHER)
    writer.write()
    writer.write(6)
    assert flaws(writer) == []
    assert flaws(writer, keys={"a": public_hex(KEY)}) == [(0, "foreign"), (1, "foreign")]


def test_a_log_rewritten_from_the_start_with_the_right_keys_is_a_fork_to_who_remembers():
    first, second = log(), LogWriter()
    second.write()
    for n in (5, 6, 6, 6):
        second.write(n)
    assert flaws(second) == []
    assert flaws(second, known={1: first.hashes[1]}) == [(1, "fork")]


def test_noise_and_strangers_in_the_log_are_told():
    writer = log()
    writer.store.put(LAYOUT.segment(5), b"noise")
    arabic = LAYOUT.log + "\u0660" * 19 + "\u0661.parquet"
    for key in (LAYOUT.log + "readme.txt", arabic):
        writer.store.put(key, b"hello")
    report = verify_store(writer.store, LAYOUT)
    assert [f[:2] for f in report.findings] == [(5, Flaw.UNREADABLE)]
    assert report.strangers == [LAYOUT.log + "readme.txt", arabic]
    assert not report.verified


def test_several_flaws_are_all_found_in_one_walk():
    writer = log(9)
    writer.store.delete(LAYOUT.segment(2))
    swap_in(writer, 4, body(writer, 4)[:100])
    writer.store.delete(LAYOUT.segment(5))
    swap_in(writer, 7, body(writer, 3))
    assert flaws(writer) == [(2, "missing"), (4, "unreadable"), (5, "missing"), (7, "misplaced")]
    assert verify_store(writer.store, LAYOUT).lost == [(2, 2), (4, 5), (7, 7)]


def test_a_log_cleaned_up_to_a_floor_is_verified_from_there():
    writer = log()
    clean_up(writer, 3)
    writer.store.put(LAYOUT.segment(1), b"a late write that means nothing")
    report = verify_store(writer.store, LAYOUT, keys=KEYS, known=writer.hashes)
    assert report.verified, report.findings
    assert (report.first, report.segments, report.believed) == (3, 2, "keys")
    assert report.streams[0].complete_up_to == 50, "the promise below the floor counts"
    assert report.lost == []


def test_a_verifier_without_memory_believes_the_floors_own_keys_and_says_so():
    writer = log()
    assert verify_store(writer.store, LAYOUT).believed == "segment 0"
    floor = clean_up(writer, 3)
    report = verify_store(writer.store, LAYOUT)
    assert (report.verified, report.first, report.believed) == (True, 3, "floor.json")
    writer.store.put(LAYOUT.floor, reseal(floor, OTHER))
    assert flaws(writer)[0] == (FLOOR, "mis-signed")


PROMISED = [msgspec.to_builtins(Coverage("s", "1-1", 0, 10**18, "a"))]


@pytest.mark.parametrize(
    ("forge", "flaw"),
    [
        (
            lambda floor: canonical({k: v for k, v in msgspec.json.decode(floor).items() if k != "signature"}),
            "unsigned",
        ),
        (lambda floor: canonical({**msgspec.json.decode(floor), "claims": PROMISED}), "mis-signed"),
        (lambda floor: reseal(floor, OTHER, claims=PROMISED), "mis-signed"),
        (lambda floor: reseal(floor, OTHER, claims=PROMISED, signer="b", keys={"b": public_hex(OTHER)}), "foreign"),
        (lambda floor: reseal(floor, group="h"), "foreign"),
        (lambda floor: reseal(floor, keys={"a": public_hex(OTHER)}), "re-keyed"),
        (lambda floor: reseal(floor, genesis="00" * 32), "foreign"),
        (lambda floor: reseal(floor, hash="00" * 32), "fork"),
        (lambda floor: reseal(floor, format=2), "newer"),
        (lambda floor: reseal(floor, seq=2**63), "unreadable"),
        (lambda floor: reseal(floor, seq=2**70), "unreadable"),
        (lambda floor: reseal(floor, seq=-3), "unreadable"),
        (lambda floor: reseal(floor, keys={"a": "zz"}), "unreadable"),
        (lambda floor: b"noise", "unreadable"),
        (lambda floor: b"{}", "unreadable"),
    ],
)
def test_a_floor_that_does_not_count_is_named_and_excuses_nothing(forge: Callable[[bytes], bytes], flaw: str):
    writer = log(6)
    clean_up(writer, 5, forge(sign_floor(below(writer, 5), "a", KEY)))
    report = verify_store(writer.store, LAYOUT, keys=KEYS, known=writer.hashes)
    assert [(f.seq, f.flaw) for f in report.findings] == [(FLOOR, flaw), *((seq, "missing") for seq in range(5))]
    assert str(report.findings[0]).startswith("floor.json is ")
    assert report.streams[0].complete_up_to == report.streams[0].newest == 60
    assert report.streams[0].start == 50, "nothing below is promised"
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report).findings[0].place == "floor.json"


def test_what_a_floor_says_to_be_kept_is_missing_where_it_is_not_there():
    writer = log(6)
    clean_up(writer, 5)
    writer.store.delete(LAYOUT.segment(5))
    assert flaws(writer, keys=KEYS) == [(5, "missing")]


def test_a_floor_is_judged_by_keys_and_not_by_hashes_alone():
    writer = log(6)
    clean_up(writer, 5)
    assert flaws(writer, known=writer.hashes)[0] == (FLOOR, "foreign")
    assert flaws(writer, keys={"b": public_hex(OTHER)}, known=writer.hashes)[0] == (FLOOR, "foreign")


def test_a_key_that_is_known_from_elsewhere_is_the_names_key_above_a_floor_too():
    writer = log(6)
    writer.write(6, keys={"b": public_hex(OTHER)})
    clean_up(writer, 5)
    assert flaws(writer, keys={**KEYS, "b": public_hex(OTHER)}) == []
    assert flaws(writer, keys={**KEYS, "b": public_hex(KEY)}) == [(6, "re-keyed")]


def test_a_replica_that_remembers_less_than_the_floor_takes_it_from_an_enrolled_signer():
    writer = log(6)
    clean_up(writer, 5)
    assert flaws(writer, keys=KEYS, known={1: writer.hashes[1]}) == []
    assert flaws(writer, keys=KEYS, known={0: "00" * 32}) == [(FLOOR, "foreign"), *((n, "missing") for n in range(5))]


def test_gaps_are_told_as_they_stood_last():
    writer = log(1)
    gap = Gap.opened("s", "1-1", 20, Reason.MISSED)
    other = Gap.opened("s", "1-1", 40, Reason.OVERFLOW, end=45, tags=["t"])
    writer.write(2, gaps=(gap, other))
    writer.write(2, gaps=(msgspec.structs.replace(gap, end=30),))
    writer.write(2, closures=(Closing(gap.id, Closure.LOST, "retention"),))
    report = verify_store(writer.store, LAYOUT)
    told = {g.id: g for g in report.gaps}
    assert (told[gap.id].end, told[gap.id].closed_by, told[gap.id].closed_reason) == (30, Closure.LOST, "retention")
    assert told[other.id].closed_by is None


def test_what_a_lost_segment_told_of_gaps_is_said_to_be_unknown():
    writer = log(1)
    gap = Gap.opened("s", "1-1", 20, Reason.MISSED)
    writer.write(2, gaps=(gap,))
    writer.write(2, closures=(Closing(gap.id, Closure.LOST, "retention"),))
    writer.write(2)
    assert verify_store(writer.store, LAYOUT).lost == []
    writer.store.delete(LAYOUT.segment(1))
    report = verify_store(writer.store, LAYOUT)
    assert (report.gaps, report.lost) == ([], [(1, 1)])


def test_a_gap_counts_where_the_header_is_genuine_and_the_samples_are_not():
    writer = log(1)
    gap = Gap.opened("s", "1-1", 20, Reason.MISSED)
    writer.write(2, gaps=(gap,))
    header = segment.read_header(body(writer, 1))
    swap_in(writer, 1, segment.encode(rows(0, 2), TAGS, header))
    report = verify_store(writer.store, LAYOUT)
    assert [f[:2] for f in report.findings] == [(1, Flaw.ALTERED)]
    assert (report.gaps, report.lost, report.claims) == ([gap], [], [])


def test_held_rows_make_nothing_complete_and_stand_in_the_claims():
    writer = log(1)
    writer.write(2)
    held = Coverage("s", "1-1", 20, 25, "a", Grade.HELD)
    writer.write(2, intervals=(held,))
    report = verify_store(writer.store, LAYOUT)
    assert report.streams[0].newest == 20
    assert held in report.claims
    assert Promise(report.claims)["s", "1-1", "a"].covers(10, 25)


def test_each_good_segments_samples_are_shown_to_a_visitor():
    writer = log()
    seen: list[tuple[int, int, set[str]]] = []
    verify_store(
        writer.store, LAYOUT,
        visit=lambda header, batch, tags: seen.append(
            (header.seq, len(batch), {tags.identities[h] for h in batch.handle.tolist()})
        ),
    )  # fmt: skip
    assert seen == [(0, 0, set()), *((s, 6, set(TAGS.identities)) for s in range(1, 5))]


def test_two_streams_are_reported_each_for_itself():
    writer = log(1)
    claims = (Coverage("x", "1-1", 0, 5, "a"), Coverage("y", "1-1", 0, 9, "a"), Coverage("x", "2-1", 0, 3, "a"))
    writer.write(2, intervals=claims, streams=(Stream("x", "urn:x"), Stream("y", "urn:y")))
    found = [(s.stream, s.source, s.timeline, s.newest) for s in verify_store(writer.store, LAYOUT).streams]
    assert found == [("x", "urn:x", "1-1", 5), ("x", "urn:x", "2-1", 3), ("y", "urn:y", "1-1", 9)]


def test_a_floor_that_is_too_large_is_named_and_not_believed():
    writer = log()
    writer.store.put(LAYOUT.floor, b" " * (FLOOR_BYTES_MAX + 1))
    [finding] = verify_store(writer.store, LAYOUT).findings
    assert (finding.seq, finding.flaw) == (FLOOR, Flaw.UNREADABLE)
    assert f"{FLOOR_BYTES_MAX} is the most" in finding.detail


def test_another_group_below_the_same_prefix_is_another_log():
    writer = log()
    assert verify_store(writer.store, Layout("plant", "h")).next == 0
