"""Tags: one identity, one handle, for ever."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mirror.facts import decode_facts, encode_facts
from mirror.tags import Tag, TagTable
from mirror.variant import Structure, StructureField

NAMES = st.text(st.sampled_from("ab;%\n=3B"), max_size=6)
TAGS = st.builds(Tag, NAMES, NAMES, NAMES.map(lambda s: f"s={s}"))


@given(TAGS, TAGS)
def test_two_tags_have_one_identity_only_if_they_are_the_same_node(a: Tag, b: Tag) -> None:
    same = (a.source, a.namespace, a.identifier) == (b.source, b.namespace, b.identifier)
    assert (a.identity == b.identity) == same
    assert (a.node == b.node) == ((a.namespace, a.identifier) == (b.namespace, b.identifier))


def test_the_node_escapes_what_part_6_escapes() -> None:
    assert Tag("urn:s", "urn:a;b%c", "s=x;y").node == "nsu=urn:a%3Bb%25c;s=x;y"
    assert Tag("urn:s", "urn:n", "i=5").identity == "urn:s\nnsu=urn:n;i=5"


def test_facts_that_were_not_utf_8_on_the_wire_can_be_stored_and_told() -> None:
    tag = Tag("urn:s", "urn:n", "s=T", unit="\udcb0C", description="läuft \udcff\ud800", name="a")
    assert (tag.unit, tag.description, tag.name) == ("\ufffdC", "läuft \ufffd\ufffd", "a")
    structure = Structure("\udcff", fields=(StructureField("\udcfc"),))
    told = decode_facts(encode_facts([tag], {"urn:s": {"ns=2;i=1": structure}}))
    assert told == ([tag], {"urn:s": {"ns=2;i=1": Structure("\ufffd", fields=(StructureField("\ufffd"),))}})


@given(st.lists(TAGS, max_size=20))
def test_handles_are_dense_and_given_once(tags: list[Tag]) -> None:
    table = TagTable()
    handles = [table.add(tag) for tag in tags]
    assert sorted(set(handles)) == list(range(len(table)))
    again = [table.add(tag) for tag in reversed(tags)]
    assert again == handles[::-1]
    for tag, handle in zip(tags, handles, strict=True):
        assert table.find(tag.identity) == handle and table.identities[handle] == tag.identity
        assert table[handle].identity == tag.identity


@given(st.lists(TAGS, max_size=20))
def test_the_rank_is_the_place_among_sorted_identities(tags: list[Tag]) -> None:
    table = TagTable()
    for tag in tags:
        table.add(tag)
        order = np.argsort(table.rank)
        assert [table.identities[h] for h in order.tolist()] == sorted(table.identities)


def test_an_unknown_identity_has_no_handle() -> None:
    assert TagTable([Tag("a", "b", "i=1")]).find("nobody") is None


def test_new_facts_replace_old_ones_under_the_same_handle() -> None:
    table = TagTable([Tag("s", "n", "i=1", unit="bar")])
    assert table.add(Tag("s", "n", "i=1", unit="Pa", path="a/b")) == 0
    assert (table[0].unit, table[0].path, len(table)) == ("Pa", "a/b", 1)


def test_stamping_survives_a_new_look_at_the_server_and_only_moves_towards_u() -> None:
    table = TagTable([Tag("s", "n", "i=1", stamping="S")])
    seen = []
    for stamping in ("", "S", "U", "S", ""):
        table.add(Tag("s", "n", "i=1", unit="bar", stamping=stamping))
        seen.append(table[0].stamping)
    assert seen == ["S", "S", "U", "U", "U"]


def test_a_tag_goes_through_json_and_back_without_its_defaults() -> None:
    tag = Tag("urn:s", "urn:n", "i=1", unit="bar", range_low=0.0)
    data = msgspec.json.encode(tag)
    assert msgspec.json.decode(data, type=Tag) == tag and b"description" not in data


def test_a_range_that_is_not_finite_is_none() -> None:
    tag = Tag("urn:s", "urn:n", "s=a", range_low=-math.inf, range_high=math.nan)
    assert (tag.range_low, tag.range_high) == (None, None)
    assert Tag("urn:s", "urn:n", "s=a", range_low=-1.5, range_high=0.0).range_low == -1.5
