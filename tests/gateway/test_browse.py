"""Roots, exclusions, names and definitions, all but one without a server."""

from __future__ import annotations

import struct

import msgspec
import pytest
from asyncua import ua

from gateway.browse import (
    BUILTIN,
    DEPTH_MAX,
    FIELDS_MAX,
    Root,
    definition_of,
    excluder,
    parse_root,
    range_of,
    resolve,
    split_node,
    structures_of,
    unique_names,
    unit_of,
)
from gateway.io.opcua import Connection
from mirror.errors import ConfigError
from tests.gateway.opcua_server import press, run, source


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("ns=2;s=Press7/**", Root(2, "s=Press7", DEPTH_MAX)),
        ("ns=2;s=Press7/*", Root(2, "s=Press7", 1)),
        ("ns=2;s=Press7", Root(2, "s=Press7", 0)),
        ("ns=2;s=a;b/c/**", Root(2, "s=a;b/c", DEPTH_MAX)),
        ("i=85/**", Root(0, "i=85", DEPTH_MAX)),
        ("nsu=http://example.org/press/;s=Press7/**", Root("http://example.org/press/", "s=Press7", DEPTH_MAX)),
        ("nsu=urn:a%3Bb%25;i=7", Root("urn:a;b%", "i=7", 0)),
        ("ns=3;g=09087e75-8e5e-499b-954f-f2a9603db28a", Root(3, "g=09087e75-8e5e-499b-954f-f2a9603db28a", 0)),
    ],
)
def test_root_is_read(text: str, root: Root) -> None:
    assert parse_root(text) == root


@pytest.mark.parametrize("text", ["", "Press7", "ns=2", "ns=x;s=a", "nsu=;s=a", "ns=2;x=1", "i=abc", "/**"])
def test_text_that_names_no_node_is_a_configuration_error_with_a_legal_value(text: str) -> None:
    with pytest.raises(ConfigError, match="ns=2;s=Press7"):
        parse_root(text)


def test_namespace_by_uri_finds_its_index_whatever_it_is_today() -> None:
    root = parse_root("nsu=urn:press;s=a")
    assert resolve(root, ["http://opcfoundation.org/UA/", "urn:x", "urn:press"]) == "ns=2;s=a"
    assert resolve(root, ["http://opcfoundation.org/UA/", "urn:press"]) == "ns=1;s=a"
    assert resolve(root, ["http://opcfoundation.org/UA/"]) is None
    assert resolve(parse_root("ns=2;s=a"), ["x", "y"]) is None
    assert resolve(parse_root("i=85"), ["x"]) == "i=85"
    assert split_node("ns=2;s=a;b") == (2, "s=a;b")
    assert split_node("i=85") == (0, "i=85")


def test_exclusion_knows_one_level_from_all() -> None:
    one, deep, both = excluder(["Diag/*"]), excluder(["**/raw"]), excluder(["*.tmp", "a?/b"])
    assert one("Diag/x") and not one("Diag/x/y") and not one("Diag") and not one("xDiag/x")
    assert deep("a/b/raw") and deep("a/raw") and not deep("a/raw2")
    assert both("x.tmp") and both("a1/b") and not both("x/y.tmp") and not both("xatmp")
    assert not excluder([])("anything")


def test_equal_paths_get_names_that_tell_them_apart() -> None:
    names = unique_names([("a", "i=1"), ("b", "i=2"), ("a", "s=x/y"), ("a", "s=x/y")])
    assert names == ["a", "b", "a~s=x%2Fy", "a~s=x%2Fy~2"]


def text(value: str) -> bytes:
    return struct.pack("<i", len(value.encode())) + value.encode()


def field(name: str, data_type: bytes, rank: int = -1, *, optional: bool = False) -> bytes:
    return text(name) + b"\x00" + data_type + struct.pack("<iiI", rank, -1, 0) + bytes((optional,))


def structure(encoding: bytes, kind: int, *fields: bytes) -> dict[str, object]:
    body = encoding + b"\x00\x16" + struct.pack("<ii", kind, len(fields)) + b"".join(fields)
    return {"type": "i=122", "body": body}


def enumeration(**members: int) -> dict[str, object]:
    parts = [struct.pack("<q", value) + b"\x00\x00" + text(name) for name, value in members.items()]
    return {"type": "i=123", "body": struct.pack("<i", len(parts)) + b"".join(parts)}


def two(index: int, number: int) -> bytes:
    return struct.pack("<BBH", 1, index, number)


def test_structure_with_nested_structure_and_enumeration_is_put_together() -> None:
    outer = definition_of(
        structure(two(2, 5001), 0, field("pos", two(2, 3002)), field("mode", two(2, 3003)), field("xs", b"\x00\x0b", 1))
    )
    inner = definition_of(structure(two(2, 5002), 1, field("x", b"\x00\x0b", optional=True)))
    mode = definition_of(enumeration(off=0, on=1))
    assert outer and inner and mode
    found = structures_of(
        {"ns=2;i=3001": outer, "ns=2;i=3002": inner, "ns=2;i=3003": mode}, BUILTIN,
        {"ns=2;i=3001": "Axis", "ns=2;i=3002": "Point", "ns=2;i=3003": "Mode"},
    )  # fmt: skip
    assert sorted(found) == ["ns=2;i=5001", "ns=2;i=5002"]
    axis = found["ns=2;i=5001"]
    assert (axis.name, axis.kind, [f.name for f in axis.fields]) == ("Axis", "structure", ["pos", "mode", "xs"])
    assert axis.fields[0].type == found["ns=2;i=5002"]
    assert axis.fields[2].type == 11 and axis.fields[2].value_rank == 1
    assert found["ns=2;i=5002"].fields[0].optional
    nested = axis.fields[1].type
    assert not isinstance(nested, int)
    assert nested.kind == "enum" and [(f.name, f.value) for f in nested.fields] == [("off", 0), ("on", 1)]


def test_structure_with_anything_unknown_inside_is_left_out_alone() -> None:
    known = definition_of(structure(two(2, 5001), 0, field("x", b"\x00\x0b")))
    unknown = definition_of(structure(two(2, 5002), 0, field("y", two(3, 9))))
    assert known and unknown
    assert list(structures_of({"a": known, "b": unknown}, BUILTIN, {})) == ["ns=2;i=5001"]


def test_structure_that_nests_itself_is_left_out() -> None:
    loop = definition_of(structure(two(2, 5001), 0, field("next", two(2, 3001), 1)))
    assert loop
    assert structures_of({"ns=2;i=3001": loop}, BUILTIN, {}) == {}


def test_types_that_double_with_each_level_are_left_out_before_they_are_built() -> None:
    levels = range(60)
    doubling = {
        f"ns=2;i={n}": structure(two(2, 5000 + n), 0, field("a", two(2, n + 1)), field("b", two(2, n + 1)))
        for n in levels
    } | {"ns=2;i=60": structure(two(2, 5060), 0, field("x", b"\x00\x0b"))}
    definitions = {node: made for node, value in doubling.items() if (made := definition_of(value))}
    found = structures_of(definitions, BUILTIN, {})
    assert "ns=2;i=5060" in found and "ns=2;i=5000" not in found
    assert len(msgspec.json.encode(found)) < 100 * FIELDS_MAX


@pytest.mark.parametrize("value", [None, 3, {"type": "i=122", "body": b"\x00"}, {"type": "i=5", "body": b""},
                                   structure(two(2, 1), 3), structure(two(2, 1), -1)])  # fmt: skip
def test_definition_that_cannot_be_followed_is_none(value: object) -> None:
    assert definition_of(value) is None


def test_unit_and_range_are_read_and_nonsense_is_nothing() -> None:
    unit = text("http://www.opcfoundation.org/UA/units/un/cefact") + struct.pack("<i", 4408652)
    unit += b"\x02" + text("°C") + b"\x00"
    assert unit_of({"type": "i=889", "body": unit}) == "°C"
    assert range_of({"type": "i=886", "body": struct.pack("<dd", -5, 10)}) == (-5.0, 10.0)
    assert unit_of({"type": "i=889", "body": b"\x01"}) == "" and unit_of(None) == "" and unit_of("x") == ""
    assert range_of({"type": "i=886", "body": b""}) is None and range_of([1, 2]) is None


def test_latin_1_in_a_server_costs_nothing_but_its_own_letters() -> None:
    """Units, names and even identifiers that are not UTF-8 stand on real servers."""

    async def work() -> None:
        async with press() as made:
            top = made.server.get_node("ns=2;s=Press")
            unit = ua.EUInformation("", 0, ua.LocalizedText("\udcb0C"))
            node = await top.add_variable("ns=2;s=Oil", ua.QualifiedName("\udcd6l", 2), 1.0)
            await node.add_property(0, "EngineeringUnits", unit)
            await top.add_variable(ua.NodeId("K\udcfchler", 2), ua.QualifiedName("Cooler", 2), 1.0)
            connection = Connection(source(made.url))
            await connection.connect()
            try:
                tags = {t.identifier: t for t in await connection.browse("press", ["ns=2;s=Press/*"])}
            finally:
                await connection.close()
            assert (tags["s=Oil"].name, tags["s=Oil"].unit) == ("\ufffdl", "\ufffdC")
            assert all(t.identity.encode() for t in tags.values())
            assert len(connection.missing) == 1 and "s=K\ufffdhler" in connection.missing[0]

    run(work())
