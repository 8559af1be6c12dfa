"""Every batch survives the journal's codec bit for bit, and no damaged chunk is taken for a whole one."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mirror import chunk
from mirror.batch import (
    AHEAD,
    IN_HEAP,
    SERVER_NULL,
    SOURCE_NULL,
    Batch,
    Kind,
    concat,
    equal,
    take,
)
from mirror.errors import Corrupt
from tests.bench.mix import mix
from tests.mirror.batches import DAY, INT64_MAX, INT64_MIN, NOW_TICKS, batches, from_rows, rows

GOLDEN = Path(__file__).parents[1] / "golden"


def reseal(data: bytes) -> bytes:
    """Give altered bytes a checksum that matches, as an attacker would."""
    return data[:4] + zlib.crc32(data[8:], zlib.crc32(data[:4])).to_bytes(4, "little") + data[8:]


@given(batches(max_size=40))
def test_every_batch_comes_back_bit_for_bit(batch: Batch) -> None:
    assert equal(chunk.decode(chunk.encode(batch)), batch)


@given(batches(min_size=1, max_size=12), st.integers(50, 80))
def test_a_batch_large_enough_for_split_blocks_comes_back_bit_for_bit(batch: Batch, copies: int) -> None:
    large = concat([batch] * copies)
    assert equal(chunk.decode(chunk.encode(large)), large)


@given(batches(max_size=8))
def test_the_header_tells_rows_and_the_span_of_source_times(batch: Batch) -> None:
    known = batch.source_ticks[batch.flags & SOURCE_NULL == 0].tolist()
    info = chunk.peek(chunk.encode(batch))
    assert (info.n, info.t0, info.t1) == (len(batch), min(known, default=None), max(known, default=None))


@pytest.mark.parametrize(
    "gap_ticks", [0, 1, 127, 128, -128, -129, 2**15, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**62]
)
def test_a_jump_at_the_edge_of_a_width_comes_back(gap_ticks: int) -> None:
    batch = Batch.zeros(5)
    batch.source_ticks[:] = NOW_TICKS - 2**40
    batch.source_ticks[2] += gap_ticks
    batch.server_ticks[:] = NOW_TICKS
    batch.kind[:] = Kind.INT64
    batch.bits[2] = gap_ticks % 2**64
    batch.bits[3] = -gap_ticks % 2**64
    assert equal(chunk.decode(chunk.encode(batch)), batch)


def test_times_at_both_ends_of_int64_come_back() -> None:
    batch = Batch.zeros(4)
    batch.source_ticks[:] = [INT64_MAX, INT64_MIN, 0, INT64_MAX]
    batch.server_ticks[:] = [INT64_MIN, INT64_MAX, INT64_MIN, -1]
    assert equal(chunk.decode(chunk.encode(batch)), batch)


def test_one_sample_a_day_old_moves_no_other_time() -> None:
    batch = next(mix(5_000, 1))
    batch.source_ticks[1234] -= DAY
    decoded = chunk.decode(chunk.encode(batch))
    assert (decoded.source_ticks == batch.source_ticks).all() and (decoded.server_ticks == batch.server_ticks).all()


def test_columns_that_say_nothing_take_no_bytes() -> None:
    def uniform(n: int) -> int:
        batch = Batch.zeros(n)
        batch.handle[:] = 7
        batch.source_ticks[:] = batch.server_ticks[:] = NOW_TICKS
        batch.kind[:] = Kind.INT32
        return len(chunk.encode(batch))

    assert uniform(100_000) == uniform(1)


def test_a_burst_of_rows_without_any_time_widens_no_column() -> None:
    batch = next(mix(1_000, 1))
    batch.source_ticks[:] = batch.server_ticks - 1_000  # no stale ones: the columns are narrow
    before = len(chunk.encode(batch))
    batch.source_ticks[100:150] = batch.server_ticks[100:150] = 0
    batch.flags[100:150] = SOURCE_NULL | SERVER_NULL
    assert len(chunk.encode(batch)) < before + 60  # the flags themselves


def test_ahead_survives_although_it_is_not_content() -> None:
    batch = Batch.zeros(2)
    batch.flags[:] = [AHEAD, AHEAD | SERVER_NULL]
    assert chunk.decode(chunk.encode(batch)).flags.tolist() == [AHEAD, AHEAD | SERVER_NULL]


@given(batches(min_size=1, max_size=6), st.data())
def test_a_flipped_bit_is_found(batch: Batch, data: st.DataObject) -> None:
    whole = bytearray(chunk.encode(batch))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        chunk.decode(bytes(whole))


@given(batches(max_size=6), st.data())
def test_a_chunk_cut_short_or_with_bytes_behind_it_is_found(batch: Batch, data: st.DataObject) -> None:
    whole = chunk.encode(batch)
    with pytest.raises(Corrupt):
        chunk.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(Corrupt):
        chunk.decode(whole + b"\0")


@given(batches(min_size=1, max_size=6), st.data())
def test_hostile_bytes_under_a_good_checksum_raise_corrupt_or_decode(batch: Batch, data: st.DataObject) -> None:
    whole = bytearray(chunk.encode(batch))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(1, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = chunk.decode(reseal(bytes(whole)))
    except Corrupt:
        return
    in_heap = IN_HEAP[decoded.kind]
    assert in_heap.sum() == len(decoded.heap) and equal(take(decoded, np.arange(len(decoded))), decoded)


def test_a_header_that_claims_more_than_it_has_is_refused_before_any_memory_is_taken() -> None:
    whole = chunk.encode(next(mix(100, 1)))
    for at, value in ((8, chunk.ROWS_MAX), (8, 2**32 - 1), (12, chunk.COLUMNS_BYTES_MAX), (12, 2**32 - 1), (12, 0)):
        with pytest.raises(Corrupt):
            chunk.decode(reseal(whole[:at] + struct.pack("<I", value) + whole[at + 4 :]))


def test_a_frame_that_swells_beyond_its_claim_is_refused() -> None:
    whole = chunk.encode(next(mix(100, 1)))
    bomb = zstandard.compress(bytes(50_000_000))
    with pytest.raises(Corrupt):
        chunk.decode(reseal(whole[:37] + bomb))


def test_bytes_left_over_behind_the_columns_are_refused() -> None:
    whole = chunk.encode(next(mix(100, 1)))
    size = struct.unpack_from("<I", whole, 12)[0]
    columns = zstandard.ZstdDecompressor().decompress(whole[37:], max_output_size=size)
    longer = whole[:12] + struct.pack("<I", size + 1) + whole[16:37] + zstandard.compress(columns + b"\0")
    with pytest.raises(Corrupt, match="left"):
        chunk.decode(reseal(longer))


def test_another_version_is_refused_by_name() -> None:
    whole = chunk.encode(Batch.zeros(1))
    for read in (chunk.decode, chunk.peek):
        with pytest.raises(Corrupt, match="version 2"):
            read(reseal(b"\2" + whole[1:]))


@pytest.mark.parametrize("bit", [0x40, 0x80])
def test_a_layout_of_a_later_program_is_refused(bit: int) -> None:
    whole = chunk.encode(next(mix(100, 1)))
    for read in (chunk.decode, chunk.peek):
        with pytest.raises(Corrupt, match="layout"):
            read(reseal(whole[:1] + bytes((whole[1] | bit,)) + whole[2:]))


def test_the_reference_mix_stays_under_its_bytes_per_change() -> None:
    *_, batch = mix(10_000, 2)
    data = chunk.encode(batch)
    assert equal(chunk.decode(data), batch)
    assert len(data) / len(batch) < 7.5


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("chunk-*.json")))
def test_chunks_written_by_earlier_programs_are_still_read(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    expected = from_rows(
        [(*row[:8], bytes.fromhex(row[8]) if isinstance(row[8], str) else row[8]) for row in golden["rows"]]
    )
    assert equal(chunk.decode(base64.b64decode(golden["chunk"])), expected)


def test_there_are_chunks_of_earlier_programs_to_read() -> None:
    assert {p.stem for p in GOLDEN.glob("chunk-*.json")} >= {"chunk-1-every-kind", "chunk-1-doubles", "chunk-1-nulls"}


@given(rows())
def test_a_single_row_comes_back(row: tuple[object, ...]) -> None:
    batch = from_rows([row])
    assert equal(chunk.decode(chunk.encode(batch)), batch)
