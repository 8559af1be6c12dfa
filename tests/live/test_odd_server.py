"""The real gateway on a server that misbehaves while it stays connected: what is wrong is found, or does no harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.batch import ARRAY, Kind
from mirror.coverage import Gap, Reason
from tests.live.gateways import Rig
from tests.live.servers import OddServer

NODES = 10
AUDIT_S = 2.0


@contextmanager
def mirrored(folder: Path, **settings: object) -> Iterator[tuple[OddServer, Rig]]:
    """A server and a gateway that audits it every two seconds, with everything fresh."""
    with (
        OddServer(folder / "server", nodes=NODES) as server,
        Rig(folder / "rig", server, **{"audit_s": AUDIT_S, **settings}) as rig,  # type: ignore[arg-type]
    ):
        server.write()
        rig.live()
        yield server, rig


def mismatches(rig: Rig) -> list[Gap]:
    return [gap for gap in rig.gaps() if gap.reason == Reason.MISMATCH]


def test_a_server_that_samples_nothing_any_more_is_found_by_its_clock_although_no_tag_is_to_change(
    tmp_path: Path,
) -> None:
    with mirrored(tmp_path, audit_s=0) as (server, rig):
        rig.until(lambda: abs(rig.metric('opcua_clock_skew_seconds{source="counters"}')) < 2, "the clock heard")
        time.sleep(2.5)  # it is believed once it has been heard three times, at one a second
        server.odd("mute")
        server.write(3)
        began = time.monotonic()
        rig.until(lambda: bool(rig.events("canary.silent")), "the silence found", 20)
        found_s = time.monotonic() - began
        server.odd("heal")
        rig.live()
        verdict = rig.verdict()
        print({"test": "mute", "found_s": round(found_s, 2), **verdict.figures()})
        assert 4.0 < found_s < 8.0
        assert Reason.MUTE in {gap.reason for gap in verdict.gaps if gap.tags is None}
        assert verdict.undeclared == [] and rig.metric('canary_deaths_total{source="counters"}') == 1


def test_a_server_that_stays_connected_and_delivers_nothing_is_found_and_mended(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.odd("mute")
        server.write(3)
        rig.until(lambda: bool(rig.events("audit.mismatch")), "the silence found", 20)
        server.odd("heal")
        rig.live()
        assert mismatches(rig)[0].tags is not None and len(mismatches(rig)[0].tags or ()) == NODES


def test_an_item_that_the_server_leaves_out_is_found_and_named(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.odd("drop", node=3)
        server.write(2)
        rig.until(lambda: bool(rig.events("audit.mismatch")), "the item found", 20)
        server.odd("heal")
        rig.live()
        (gap, *_) = mismatches(rig)
        assert gap.tags is not None and [tag.rpartition("=")[2] for tag in gap.tags] == ["c3"]


def test_a_value_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.odd("late", node=3, seconds=1.0)
        for _ in range(3):
            server.write()
            rig.live()
        assert mismatches(rig) == [] and rig.events("audit.mismatch") == []


def test_a_server_that_claims_overflows_costs_gap_rows_and_nothing_else(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.odd("lie")
        server.write(2)
        rig.live()
        server.odd("heal")
        server.write()
        rig.live()
        verdict = rig.verdict()
        assert (verdict.lost, verdict.undeclared, verdict.foreign) == (0, [], 0)
        assert {gap.reason for gap in verdict.gaps} == {Reason.OVERFLOW}


def test_a_server_that_answers_every_call_slowly_is_mirrored_without_loss(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.odd("slow", seconds=0.3)
        server.run(5.0)
        rig.grown(10, timeout_s=60)
        server.pause()
        rig.live()
        verdict = rig.verdict()
        assert (verdict.lost, verdict.undeclared, verdict.foreign, verdict.gaps) == (0, [], 0, [])


def test_a_tag_that_changes_its_type_or_becomes_an_array_is_mirrored_as_it_is(tmp_path: Path) -> None:
    def kind(rig: Rig, node: int) -> int:
        tags, state = rig.reader.tags(), rig.reader.state()
        (handle,) = (h for h in range(len(tags)) if tags[h].identifier == f"s=c{node}")
        return int(state.kind[handle])

    with mirrored(tmp_path) as (server, rig):
        server.odd("retype", node=1, array=0)
        server.odd("retype", node=2, array=3)
        rig.until(lambda: kind(rig, 1) == Kind.STRING and kind(rig, 2) == Kind.INT32 | ARRAY, "the new types")
        assert rig.gaps() == [] and rig.events("source.lost") == []


def test_namespaces_in_another_order_after_a_crash_are_the_same_tags(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        before = set(rig.reader.tags().identities)
        server.crash()
        server.options["shift"] = 3
        server.restart()
        server.write()
        rig.live()
        assert set(rig.reader.tags().identities) == before
        assert {gap.reason for gap in rig.gaps()} == {Reason.SERVER_RESTART}


def test_a_node_that_is_removed_and_brought_back_is_mirrored_again(tmp_path: Path) -> None:
    with mirrored(tmp_path) as (server, rig):
        server.delete(4)
        server.write(2)
        server.restore(4)
        server.write()
        rig.live()
