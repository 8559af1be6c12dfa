"""docs/segment-format.md says enough: a reader that was written from it alone agrees with the code."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import HealthCheck, given, settings

from mirror import segment
from mirror.batch import Batch, Kind, digest
from mirror.coverage import Axis, Closure, Coverage, Gap, Grade, Reason, Stream
from mirror.floor import sign_floor
from mirror.header import Clock, Closing, Handover, Header, public_hex
from mirror.prefix import Saved
from mirror.store import MemoryStore
from mirror.tags import Tag
from mirror.verify import verify_store
from tests.mirror import stranger
from tests.mirror.batches import batches
from tests.mirror.logs import KEY, LAYOUT, OTHER, LogWriter, below, clean_up, log, reseal, resign
from tests.mirror.test_segment import GOLDEN, HEADER, TAGS, ordered, plant

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "segment-format.md").read_text()
GOLDEN_HASHES = {
    0: "90321b09916a6b4e6110de41b968928d089a793e650b7b588dd085292aad890a",
    1: "45b2b2447c521c3c9ed4209657d902a1c045bd1e83c2eab1ab583c980ec0c0b7",
    2: "bd4e684b0626e376fd0c71fccf2d146f5b9b87578d5324da6280e1037b6d927f",
}


@pytest.fixture(scope="module")
def body_digest() -> Any:
    """The reader that the document shows."""
    code = next(block for block in DOCUMENT.split("```python\n")[1:] if "def body_digest" in block).split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["body_digest"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=30))
def test_the_reader_in_the_document_finds_the_digest_of_any_batch(body_digest: Any, batch: Batch) -> None:
    data = segment.encode(batch, TAGS, HEADER)
    assert body_digest(pa.BufferReader(data)) == digest(batch, TAGS.identities, TAGS.rank).hex()


def test_the_full_times_of_the_document_are_those_of_the_rows(tmp_path: Path) -> None:
    batch, tags = plant(40_000)
    path, rows = tmp_path / "0.parquet", ordered(batch, tags)
    path.write_bytes(segment.encode(batch, tags, HEADER))
    columns = next(block for block in DOCUMENT.split("```sql\n")[1:] if "source_ticks_full" in block).split("```")[0]
    found = duckdb.execute(f"SELECT {columns} FROM '{path}'").fetchnumpy()
    assert (found["source_ticks_full"] == rows.source_ticks).all()
    assert (found["server_ticks_full"] == rows.server_ticks).all()


def test_the_document_names_every_column_flag_and_header_member() -> None:
    floor = (*Saved.__struct_fields__, *msgspec.json.decode(sign_floor(below(log(2), 1), "a", KEY)))
    for name in (*segment.SCHEMA.names, *Header.__struct_fields__, *Tag.__struct_fields__, *floor):
        assert f"`{name}`" in DOCUMENT, f"docs/segment-format.md does not say what {name} is"
    for kind in Kind:
        if kind < 26 and kind:
            assert f"{kind.value} {kind.name.lower()}" in DOCUMENT.lower().replace("\n", " ")
    for member in (*Reason, *Closure, *Grade, *Axis):
        assert f"`{member}`" in DOCUMENT
    for struct_type in (Coverage, Stream, Gap, Closing, Handover, Clock):
        for name in struct_type.__struct_fields__:
            assert f"`{name}`" in DOCUMENT, f"{name} of {struct_type.__name__}"


# --- a stranger's verifier ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches(max_size=30))
def test_a_stranger_finds_the_order_and_the_digest_of_any_batch(batch: Batch) -> None:
    found = stranger.rows(segment.encode(batch, TAGS, HEADER))
    assert found == sorted(found)
    assert stranger.digest(found) == digest(batch, TAGS.identities, TAGS.rank).hex()


def test_a_stranger_reads_the_golden_segment() -> None:
    found = stranger.rows((GOLDEN / "segment-1-every-kind.parquet").read_bytes())
    assert stranger.digest(found) == "9f1943c6526347ca148776b8be951771f0ffeb6e45e0091036d978348d7d66b9"


def test_a_stranger_verifies_a_log() -> None:
    writer = log()
    writer.write(
        4, streams=(Stream("s", "urn:x", revised_publishing_ms=33.3), Stream("t", "urn:x", revised_publishing_ms=1e3)),
        gaps=(Gap.opened("s", "1-1", 4, Reason.OVERFLOW, end=5, tags=["urn:x\nnsu=u;s=\"\\Ä\u0001\u007f\u2028"]),),
        closures=(Closing("00", Closure.LOST, "a\tb"),), clock=Clock(10, 500, True),
    )  # fmt: skip
    headers = stranger.verify(o.body for _, o in sorted(writer.store.objects.items()))
    assert [h.get("rows", 0) for h in headers] == [0, 6, 6, 6, 6, 4]
    assert headers[1]["facts"]["tags"][0]["unit"] == "bar"


@pytest.mark.parametrize("member", ["rows", "body_digest", "prev", "holder", "signature"])
def test_a_stranger_refuses_a_log_that_is_altered(member: str) -> None:
    objects = log(3).store.objects
    data = bytearray(objects[LAYOUT.segment(2)].body)
    at = data.index(f'"{member}":'.encode()) + len(member) + 4  # in the value, behind a quotation mark
    at -= member == "rows"
    data[at] = ord("1") if data[at] != ord("1") else ord("2")
    files = [objects[LAYOUT.segment(0)].body, objects[LAYOUT.segment(1)].body, bytes(data)]
    with pytest.raises((AssertionError, KeyError, InvalidSignature)):
        stranger.verify(files)


def written(*headers: dict[str, Any]) -> Any:
    """Return a log of fences with such members."""
    writer = LogWriter()
    return [writer.write(**header) for header in headers]


def test_a_stranger_refuses_a_name_that_gets_another_key() -> None:
    b = {"keys": {"b": public_hex(OTHER)}}
    again = {"holder": "b", "epoch": 2, "signed_by": OTHER}
    stranger.verify(written({}, b, {**again, "keys": {"a": public_hex(KEY)}}))
    with pytest.raises(AssertionError):
        stranger.verify(written({}, b, {**again, "keys": {"a": public_hex(OTHER)}}))


def test_a_stranger_refuses_a_number_beyond_int64() -> None:
    fence = written({})[0]
    for epoch, fits in ((2**63 - 1, True), (2**63, False), (-1, False)):
        data = segment.encode(Batch.zeros(0), TAGS, resign(segment.read_header(fence), epoch=epoch))
        with nullcontext() if fits else pytest.raises(AssertionError):
            stranger.verify([data])


def test_a_stranger_verifies_a_log_from_its_floor() -> None:
    writer = log(6)
    data = clean_up(writer, 3)
    for trusted in (None, {"a": public_hex(KEY)}):
        floor = stranger.read_floor(data, "g", trusted)
        kept = [writer.store.objects[LAYOUT.segment(seq)].body for seq in (3, 4, 5)]
        assert [h["seq"] for h in stranger.verify(kept, floor)] == [3, 4, 5]
        with pytest.raises(AssertionError):
            stranger.verify(kept[1:], floor)


@pytest.mark.parametrize(
    "change",
    [{"group": "h"}, {"seq": 0}, {"seq": 2**63}, {"signer": "b"}, {"keys": {"a": public_hex(OTHER)}}, {"format": 2}],
)  # fmt: skip
def test_a_stranger_refuses_a_floor_that_does_not_count(change: dict[str, Any]) -> None:
    data = sign_floor(below(log(4), 3), "a", KEY)
    keys = {"a": public_hex(KEY)}
    with pytest.raises((AssertionError, KeyError)):
        stranger.read_floor(reseal(data, **change), "g", keys)
    with pytest.raises(InvalidSignature):
        stranger.read_floor(reseal(data, OTHER), "g", keys)
    with pytest.raises(InvalidSignature):
        stranger.read_floor(data.replace(b'"seq":3', b'"seq":2'), "g", keys)


# --- the golden log -----------------------------------------------------------------------------------


def golden_log() -> MemoryStore:
    """Written once by format 1, a segment each by replicas `a` and `b`; a new format needs another beside it."""
    store = MemoryStore()
    for seq, path in enumerate(sorted((GOLDEN / "log-1").iterdir())):
        assert path.name == LAYOUT.segment(seq).rpartition("/")[2]
        store.put(LAYOUT.segment(seq), path.read_bytes())
    return store


def test_the_golden_log_stays_verified() -> None:
    report = verify_store(golden_log(), LAYOUT, keys={"a": public_hex(KEY)}, known=GOLDEN_HASHES)
    assert report.verified, report.findings
    assert (report.segments, report.rows, report.epochs) == (3, 12, [(1, "a", 0), (2, "b", 2)])
    assert [(g.reason, g.start, g.end, g.closed_by) for g in report.gaps] == [
        (Reason.OVERFLOW, 4, 5, Closure.HISTORY)
    ]  # fmt: skip
    claims = {(c.start, c.end): c.grade for c in report.claims}
    assert claims == {(4, 5): Grade.HISTORY, (10, 30): Grade.COVERED, (31, 32): Grade.HELD}


def test_a_stranger_verifies_the_golden_log() -> None:
    headers = stranger.verify(o.body for _, o in sorted(golden_log().objects.items()))
    assert [h["holder"] for h in headers] == ["a", "a", "b"]
