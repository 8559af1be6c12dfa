"""What a trial means: stamping, promises by mode, and what is known of products."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.capabilities import Capabilities
from gateway.profiles import PROFILES, profile_of
from gateway.qualify import Seen, Trial, Tried, advice, promises, stamping

YES, NO, UNSURE = Tried(True, "works"), Tried(False, "refused"), Tried(None, "not tried")


def samples(*stamps: int | None, values: list[object] | None = None) -> list[Seen]:
    return [(t, (0, 11, v)) for t, v in zip(stamps, values or list(range(len(stamps))), strict=True)]


@pytest.mark.parametrize(
    ("first", "second", "stamped"),
    [
        (samples(1, 2, 3), samples(1, 2, 3), "S"),
        (samples(1, 2, 3), samples(2, 3, 4, values=[1, 2, 3]), "S"),  # what both saw
        (samples(10, 20, 30), samples(11, 21, 29), "U"),
        (samples(1), samples(1), "S"),
        (samples(1), samples(2), "U"),  # the same value, stamped at each sampling
        (samples(1), samples(2, values=["other"]), ""),  # it moved in between
        (samples(None), samples(1), "U"),
        (samples(1, 2), samples(8, 9), ""),  # never at the same time
        (samples(1, 2, 3, 4), samples(1, 2, 9, 4), ""),  # three of four: neither
    ],
)
def test_who_stamps_is_told_by_the_stretch_that_both_saw(first: list[Seen], second: list[Seen], stamped: str) -> None:
    assert stamping({0: first}, {0: second})[0] == stamped


def test_one_tag_that_is_stamped_at_sampling_decides_and_silence_tells_nothing() -> None:
    assert stamping({0: samples(1), 1: samples(5)}, {0: samples(1), 1: samples(6)}) == ("U", 2)
    assert stamping({}, {0: samples(1)}) == ("", 0)


def good() -> Trial:
    said = Capabilities("NodeOPCUA-Server", sessions_max=10, sessions=1)
    return Trial(said=said, session_timeout_s=600.0, variables=5, historizing=5, history_readable=5, queue_asked=202,
                 queue_got=202, second_session=YES, republish=YES, transfer=YES, resume=YES, stamping="S")  # fmt: skip


SHORT = {
    "nothing is lost while one of two gateways lives": "hot", "the copies of both gateways are equal": "equal",
    "nothing is lost when a gateway dies and the next takes over": "take-over",
    "this gateway goes on after its own restart": "restart",
    "what was missed is filled in afterwards": "recreate", "every loss is declared": "declared",
}  # fmt: skip


def holds(trial: Trial) -> dict[str, str]:
    return {SHORT[p.promise]: p.holds for p in promises(trial)}


def test_a_good_server_keeps_every_promise_and_an_untried_one_none() -> None:
    assert set(holds(good()).values()) == {"yes"}
    assert "yes" not in holds(Trial()).values()


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"second_session": NO}, {"hot": "no", "equal": "no"}),
        ({"stamping": "U"}, {"equal": "no"}),
        ({"stamping": ""}, {"equal": "unknown"}),
        ({"republish": NO}, {"take-over": "no"}),
        ({"republish": UNSURE}, {"take-over": "unknown"}),
        ({"resume": NO, "transfer": NO},
         {"take-over": "no", "restart": "no"}),
        ({"resume": NO}, {"restart": "no"}),
        ({"queue_got": 1}, {"take-over": "no", "declared": "no"}),
        ({"historizing": 0}, {"recreate": "no"}),
        ({"historizing": 3}, {"recreate": "unknown"}),
        ({"said": Capabilities("FreeOpcUa Python Server")}, {"declared": "no"}),
        ({"said": Capabilities("Unheard-of")}, {"declared": "unknown"}),
    ],
)  # fmt: skip
def test_what_a_server_cannot_do_breaks_its_promise_and_no_other(
    change: dict[str, object], broken: dict[str, str]
) -> None:
    before, after = holds(good()), holds(replace(good(), **change))  # type: ignore[arg-type]
    assert {name: now for name, now in after.items() if before[name] != now} == broken


def test_the_mode_that_is_advised_is_the_best_that_works() -> None:
    assert advice(good()).startswith("hot") and "stamps differ" in advice(replace(good(), stamping="U"))
    assert advice(replace(good(), second_session=NO)).startswith("take-over")
    last = replace(good(), second_session=NO, resume=NO, transfer=NO)
    assert advice(last).startswith("recreate") and advice(last).endswith("history")


@pytest.mark.parametrize(
    ("said", "product"),
    [
        (Capabilities("FreeOpcUa Python Server", "FreeOpcUa"), "asyncua"), (Capabilities(), None),
        (Capabilities(manufacturer="NodeOPCUA : MIT Licence"), "node-opcua"),
        (Capabilities("OPC UA Server", product_uri="http://open62541.org"), "open62541"),
    ],
)  # fmt: skip
def test_a_profile_is_chosen_by_what_a_server_says_of_itself(said: Capabilities, product: str | None) -> None:
    found = profile_of(said)
    assert (found.product if found else None) == product


def test_every_profile_says_where_it_is_known_from() -> None:
    assert len({p.product for p in PROFILES}) == len(PROFILES) and all(p.source and p.notes for p in PROFILES)
