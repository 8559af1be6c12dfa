"""Every way in which a log can be wrong is found and named; a whole one is counted."""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror import segment
from mirror.batch import equal
from mirror.coverage import Closure, Coverage, Gap, Grade, Promise, Reason, Stream
from mirror.header import Closing, Finding, Flaw, canonical, chain_hash, public_hex
from mirror.layout import Layout
from mirror.prefix import FLOOR_BYTES_MAX, Prefix, Saved
from mirror.verify import Report, verify_store
from tests.mirror.logs import KEY, LAYOUT, OTHER, TAGS, LogWriter, log, rows


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


def test_an_empty_place_is_verified_as_nothing():
    report = verify_store(LogWriter().store, LAYOUT)
    assert report.verified
    assert (report.segments, report.next, report.streams) == (0, 0, [])


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
    writer.store.put(LAYOUT.log + "readme.txt", b"hello")
    report = verify_store(writer.store, LAYOUT)
    assert [f[:2] for f in report.findings] == [(5, Flaw.UNREADABLE)]
    assert report.strangers == [LAYOUT.log + "readme.txt"]
    assert not report.verified


def test_several_flaws_are_all_found_in_one_walk():
    writer = log(9)
    writer.store.delete(LAYOUT.segment(2))
    swap_in(writer, 4, body(writer, 4)[:100])
    writer.store.delete(LAYOUT.segment(5))
    swap_in(writer, 7, body(writer, 3))
    assert flaws(writer) == [(2, "missing"), (4, "unreadable"), (5, "missing"), (7, "misplaced")]


def test_a_log_cleaned_up_to_a_floor_is_verified_from_there():
    writer = log()
    below = Prefix(Saved("g"))
    for seq in range(3):
        data = segment.read_header(body(writer, seq))
        found = below.judge(data)
        assert not isinstance(found, Finding)
        below.absorb(found, chain_hash(data), "")
        writer.store.delete(LAYOUT.segment(seq))
    writer.store.put(LAYOUT.floor, below.save())
    writer.store.put(LAYOUT.segment(1), b"a late write that means nothing")
    report = verify_store(writer.store, LAYOUT)
    assert report.verified
    assert (report.first, report.segments) == (3, 2)
    assert report.streams[0].complete_up_to == 50, "the promise below the floor counts"


def test_a_floor_that_nobody_remembers_hides_nothing():
    writer = log(4)
    remembered = dict(writer.hashes)
    forged = LogWriter(key=OTHER)
    for _ in range(9):
        forged.write(2)
    below = Saved("g", 8, forged.hashes[7], keys={"a": public_hex(OTHER)}, epoch=1, holder="a", incarnation="i1")
    for seq in range(8):
        forged.store.delete(LAYOUT.segment(seq))
    forged.store.put(LAYOUT.floor, Prefix(below).save())
    assert verify_store(forged.store, LAYOUT).verified, "nobody here remembers anything"
    assert flaws(forged, known=remembered) == [(7, "fork")]
    assert flaws(forged, known={7: remembered[3]}) == [(7, "fork")]
    assert flaws(forged, known={7: forged.hashes[7]}) == []


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


@pytest.mark.parametrize("floor", [b"noise", b"{}"])
def test_an_unreadable_floor_is_named(floor: bytes):
    writer = log()
    writer.store.put(LAYOUT.floor, floor)
    assert flaws(writer) == [(0, "unreadable")]


def test_a_floor_that_is_too_large_is_named_and_not_believed():
    writer = log()
    writer.store.put(LAYOUT.floor, Prefix(Saved("g")).save() + b" " * FLOOR_BYTES_MAX)
    [finding] = verify_store(writer.store, LAYOUT).findings
    assert (finding.seq, finding.flaw) == (0, "unreadable")
    assert f"{FLOOR_BYTES_MAX} is the most" in finding.detail


def test_another_group_below_the_same_prefix_is_another_log():
    writer = log()
    assert verify_store(writer.store, Layout("plant", "h")).next == 0
