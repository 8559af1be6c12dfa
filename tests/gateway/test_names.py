"""Topics and keys stay legal and different whatever a server calls its nodes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.names import KEY_BYTES_MAX, Names, Options, Place, level
from mirror.tags import Tag

HOSTILE = [
    "+",
    "#",
    "a/b",
    "a\0b",
    "",
    "/",
    "//",
    "x" * 10_240,
    "/" * 10_240,
    "_state",
    "%2B",
    "\udc80",
    "~",
    "é" * 5000,
]
PLACES = {"d": Place("area", "line")}


def tag(name: str, device: str = "d") -> Tag:
    return Tag("urn:s", "urn:n", f"s={name!r}", device=device, name=name)


def names(tags: list[Tag], **options: object) -> Names:
    return Names(enumerate(tags), Options(enterprise="e", site="s", tag_topics="all", **options), PLACES)  # type: ignore[arg-type]


def legal(topic: str) -> bool:
    data = topic.encode()
    return (
        len(data) < 65_536
        and not any(c in topic for c in "+#\0")
        and not any(ord(c) < 32 for c in topic)
        and topic.count("/") < 100
        and "//" not in topic
    )


def test_device_topics_all_have_the_same_depth() -> None:
    n = names([tag("x", d) for d in HOSTILE])
    assert {d.topic.count("/") for d in n.devices} == {6}
    assert len({d.topic for d in n.devices}) == len(HOSTILE)
    assert all(legal(d.topic) for d in n.devices)


def test_hostile_tag_names_get_legal_topics_of_their_own() -> None:
    n = names([tag(name) for name in HOSTILE])
    assert all(legal(t) and t.startswith("uns/v1/e/s/area/line/d/") for t in n.topics)
    assert len(set(n.topics)) == len(HOSTILE)
    assert len(set(n.keys.tolist())) == len(HOSTILE)
    assert max(len(k.encode()) for k in n.keys) <= KEY_BYTES_MAX


def test_a_tag_cannot_take_the_place_of_a_topic_of_ours() -> None:
    n = names([tag("_state"), tag("_history"), tag("_System")])
    assert n.topics[0].endswith("/d/%5Fstate")
    assert n.topics[1].endswith("/d/%5Fhistory")
    assert n.topics[2].endswith("/d/_System")
    assert names([tag("x", "_gateway")]).devices[0].topic.endswith("/%5Fgateway")


def test_levels_of_a_tag_name_become_levels_of_its_topic() -> None:
    n = names([tag("Motor/Speed")])
    assert n.topics[0] == "uns/v1/e/s/area/line/d/Motor/Speed"
    assert n.keys[0] == "Motor/Speed"


@given(st.text(max_size=300), st.text(max_size=300))
def test_different_names_give_different_levels(a: str, b: str) -> None:
    assert (level(a) == level(b)) == (a == b)


@given(st.lists(st.text(max_size=40), unique=True, max_size=20))
def test_different_tag_names_give_different_topics_and_keys(found: list[str]) -> None:
    n = names([tag(name) for name in found])
    assert len(set(n.topics)) == len(set(n.keys.tolist())) == len(found)
    assert all(map(legal, n.topics))


def test_two_tags_of_one_name_are_kept_apart() -> None:
    n = names([Tag("urn:s", "urn:n", f"i={i}", device="d", name="T") for i in range(3)])
    assert len(set(n.topics)) == len(set(n.keys.tolist())) == 3
    assert n.keys[0] == "T"


def test_flat_objects_keep_tags_apart_from_our_own_keys() -> None:
    n = names([tag("timestamp"), tag("seq"), tag("Speed"), tag("timestamp_")], shape="flat")
    assert n.keys.tolist()[:3] == ["timestamp_", "seq_", "Speed"]
    assert len(set(n.keys.tolist())) == 4


def test_only_selected_tags_have_a_topic() -> None:
    tags = [tag("Speed"), tag("Motor/Speed"), tag("Motor/Diag/Hours"), tag("Line/Speed")]
    options = Options(tag_topics="selected")

    def chosen(*patterns: str) -> list[bool]:
        tagged: list[bool] = Names(enumerate(tags), options, {"d": Place(tag_topics=patterns)}).tagged.tolist()
        return tagged

    assert chosen() == [False] * 4
    assert chosen("Speed") == [True, False, False, False]
    assert chosen("*") == [True, False, False, False]
    assert chosen("*/Speed") == [False, True, False, True]
    assert chosen("**/Speed") == [True, True, False, True]
    assert chosen("Motor/**", "Speed") == [True, True, True, False]
    assert chosen("**") == [True] * 4
    assert chosen("Spee.") == [False] * 4
    assert not Names(enumerate(tags), Options(tag_topics="none"), {"d": Place(tag_topics=["**"])}).tagged.any()


def test_empty_levels_of_the_plant_keep_the_depth() -> None:
    n = Names([(0, tag("x"))], Options())
    assert n.devices[0].topic == "uns/v1/_/_/_/_/d"


def test_handles_without_a_name_have_no_device() -> None:
    n = Names([(3, tag("x"))], Options())
    assert n.known(np.array([0, 3, 4, 2**32 - 1], np.uint32)).tolist() == [-1, 0, -1, -1]
    assert Names([], Options()).known(np.array([0, 7], np.uint32)).tolist() == [-1, -1]


def test_the_gateways_own_topics_stand_beside_the_areas() -> None:
    assert names([tag("x")]).gateway("edge/1", "online") == "uns/v1/e/s/_gateway/edge%2F1/online"
