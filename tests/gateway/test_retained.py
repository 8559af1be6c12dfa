"""No retained topic goes on telling what is no longer so."""

import json
from typing import Any

import numpy as np

from gateway.formats.json_uns import tag_messages
from gateway.formats.names import Names, Options
from gateway.formats.retained import BAD_NO_COMMUNICATION, Retained
from mirror.batch import Batch, Kind
from mirror.tags import Tag

A, B = "urn:a", "urn:b"
TAGS = [Tag(s, "urn:n", f"s={s}{t}", device=s[-1], name=t) for s in (A, B) for t in ("T", "U")]


def names(tags: list[Tag] = TAGS, tag_topics: Any = "all") -> Names:
    return Names(enumerate(tags), Options(tag_topics=tag_topics))


def numbers(*rows: tuple[int, int]) -> Batch:
    batch = Batch.zeros(len(rows))
    batch.handle[:], batch.bits[:] = zip(*rows, strict=True)
    batch.kind[:] = Kind.INT32
    return batch


def retained() -> Retained:
    return Retained(names(), offline_after_s=30.0, now=100.0, ticks=1)


def said(r: Retained, n: Names | None = None) -> dict[str, Any]:
    """Return value, or code where there is one, by the ends of the topics that are due."""
    found = {}
    while r.due:
        for m in tag_messages(r.take(3), n or names(), epoch=1, seqs={}):
            value = json.loads(m.payload)
            found[m.topic[-3:]] = value.get("code", value["value"])
    return found


def states(r: Retained) -> dict[str, str]:
    return {m.topic.split("/")[-2]: m.payload.decode() for m in r.states()}


def wakes(r: Retained) -> float | None:
    return r.wake_at


BAD_A = {"a/T": BAD_NO_COMMUNICATION, "a/U": BAD_NO_COMMUNICATION}


def test_after_a_new_connection_all_that_is_known_is_due() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.live(B, resumed=False)
    r.note(numbers((0, 1), (1, 2), (2, 3), (0, 4)))
    assert said(r) == {"a/T": 4, "a/U": 2, "b/T": 3}
    assert said(r) == {}
    r.everything()
    assert said(r) == {"a/T": 4, "a/U": 2, "b/T": 3}
    assert states(r) == {"a": "live", "b": "live"}


def test_a_lost_source_is_bad_at_once_and_offline_later() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.live(B, resumed=False)
    r.note(numbers((0, 1), (1, 2), (2, 3)))
    said(r)
    states(r)
    r.lost(A, now=200.0, ticks=7)
    assert said(r) == BAD_A
    assert states(r) == {"a": "stale"}
    assert wakes(r) == 230.0
    r.tick(229.0)
    assert states(r) == {}
    r.tick(230.0)
    assert states(r) == {"a": "offline"}
    assert wakes(r) is None
    r.everything()
    assert said(r) == {**BAD_A, "b/T": 3}


def test_a_source_that_resumed_gets_its_values_back() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.note(numbers((0, 1), (1, 2)))
    r.lost(A, now=200.0, ticks=7)
    said(r)
    r.live(A, resumed=True)
    assert said(r) == {"a/T": 1, "a/U": 2}
    assert states(r)["a"] == "live"


def test_a_source_that_missed_something_stays_bad_until_a_new_value_comes() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.note(numbers((0, 1), (1, 2)))
    r.lost(A, now=200.0, ticks=7)
    said(r)
    r.live(A, resumed=False)
    r.note(numbers((0, 5)))
    r.everything()
    assert said(r) == {"a/T": 5, "a/U": BAD_NO_COMMUNICATION}


def test_values_that_were_on_their_way_when_the_source_was_lost_are_not_the_last_word() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.note(numbers((0, 1)))
    r.lost(A, now=200.0, ticks=7)
    said(r)
    r.note(numbers((0, 2), (2, 3)))
    assert said(r) == {"a/T": BAD_NO_COMMUNICATION}


def test_a_source_never_heard_of_is_left_alone_until_it_is_offline() -> None:
    r = retained()
    assert states(r) == {"a": "stale", "b": "stale"}
    assert said(r) == {}
    r.live(B, resumed=False)
    r.tick(130.0)
    assert said(r) == BAD_A
    assert states(r) == {"a": "offline", "b": "live"}


def test_losing_a_source_twice_says_it_once() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.lost(A, now=200.0, ticks=7)
    said(r)
    states(r)
    r.lost(A, now=220.0, ticks=8)
    assert said(r) == {}
    assert r.wake_at == 130.0  # source b, not heard of since the start


def test_a_device_of_two_sources_is_as_bad_as_the_worse() -> None:
    tags = [Tag(s, "urn:n", "s=x", device="d", name=s) for s in (A, B)]
    r = Retained(names(tags), offline_after_s=30.0, now=0.0, ticks=1)
    r.live(A, resumed=False)
    assert states(r) == {"d": "stale"}
    r.live(B, resumed=False)
    assert states(r) == {"d": "live"}


def test_new_names_make_everything_due_and_keep_what_is_known() -> None:
    r = retained()
    r.live(A, resumed=False)
    r.note(numbers((0, 1)))
    said(r)
    states(r)
    more = names([*TAGS, Tag("urn:c", "urn:n", "s=c", device="c", name="T")])
    r.use(more)
    assert said(r, more) == {"a/T": 1}
    assert states(r) == {"a": "live", "b": "stale", "c": "stale"}


def test_a_farewell_says_offline_for_every_device() -> None:
    assert {(m.topic.split("/")[-2], m.payload, m.retain) for m in retained().farewell()} == {
        ("a", b"offline", True), ("b", b"offline", True),
    }  # fmt: skip


def test_without_tag_topics_nothing_is_remembered() -> None:
    r = Retained(names(tag_topics="none"), offline_after_s=30.0, now=0.0, ticks=1)
    r.live(A, resumed=False)
    r.note(numbers((0, 1)))
    assert not r.due
    assert len(r.take(10)) == 0


def test_unknown_handles_are_not_remembered() -> None:
    r = retained()
    r.live(A, resumed=False)
    batch = numbers((0, 1), (0, 2))
    batch.handle[1] = np.uint32(2**32 - 1)
    r.note(batch)
    assert said(r) == {"a/T": 1}


def test_a_topic_that_nothing_is_published_to_any_more_is_emptied_unless_it_comes_back() -> None:
    r = retained()
    assert r.gone(9) == []
    r.use(names(TAGS[:1]))
    r.take_back(["uns/v1/_/_/_/_/a/T", "uns/v1/elsewhere"])
    gone = r.gone(99)
    assert {topic[-4:] for topic in gone} == {"/a/U", "/b/T", "/b/U", "tate", "here"}
    assert r.gone(9) == []
    r.take_back(gone)
    r.use(names(tag_topics="none"))
    gone = r.gone(99)
    assert "uns/v1/_/_/_/_/a/T" in gone and "uns/v1/_/_/_/_/b/_state" not in gone


def test_emptying_goes_on_from_where_it_was() -> None:
    r = retained()
    r.take_back(map(str, range(10)))
    assert [len(r.gone(4)) for _ in range(4)] == [4, 4, 2, 0]
