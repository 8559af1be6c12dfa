"""What a segment's rows carry beside their content: the interval, and the reading of structures by their server."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mirror import segment
from mirror.batch import SERVER_NULL, Batch, Kind, canonical_order, equal
from mirror.errors import Corrupt
from mirror.tags import Tag, TagTable
from mirror.variant import Structure, StructureField
from tests.mirror.batches import NOW_TICKS, from_rows
from tests.mirror.test_segment import HEADER, TAGS, columns, every_kind, ordered, plant


def test_a_structure_is_told_by_the_definition_of_its_own_server() -> None:
    tags = TagTable([Tag(f"urn:{name}", "urn:n", "s=x") for name in "ab"])
    body = b"\x01\x02\x89\x13\x01\x04\0\0\0" + struct.pack("<f", 25.0)
    batch = from_rows([(h, NOW_TICKS, 0, 0, 0, 0, SERVER_NULL, Kind.EXTENSIONOBJECT, body) for h in (0, 1)])
    told = {
        "urn:a": {"ns=2;i=5001": Structure("Heat", fields=(StructureField("degC", int(Kind.FLOAT)),))},
        "urn:b": {"ns=2;i=5001": Structure("Count", fields=(StructureField("n", int(Kind.INT32)),))},
    }
    data = segment.encode(batch, tags, HEADER, facts=segment.encode_facts(tags.tags, told), structures=told)
    assert columns(data)["text"].to_pylist() == ['{"degC":25.0}', '{"n":1103626240}']
    assert segment.decode_facts(segment.read_facts(data))[1] == told


def test_each_row_names_the_interval_that_it_was_published_in() -> None:
    batch, tags = plant(40_000)
    places = (np.arange(len(batch)) % 3).astype(np.int32)
    data = segment.encode(batch, tags, HEADER, intervals=places)
    order = canonical_order(batch, tags.rank)
    assert (segment.read_intervals(data, 3) == places[order]).all()
    assert equal(segment.decode(data, tags)[0], ordered(batch, tags)), "and it is no part of the content"
    with pytest.raises(Corrupt, match="the header has 2"):
        segment.read_intervals(data, 2)


def test_rows_without_an_interval_are_refused_where_they_have_to_have_one() -> None:
    data = segment.encode(every_kind(), TAGS, HEADER)
    assert columns(data)["interval"].null_count == len(every_kind())
    with pytest.raises(Corrupt, match="name intervals -1"):
        segment.read_intervals(data, 1)
    assert len(segment.read_intervals(segment.encode(Batch.zeros(0), TAGS, HEADER), 0)) == 0
