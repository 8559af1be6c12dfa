"""One list of problems, and metrics that Prometheus' own parser understands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.health import (
    METRICS,
    Figures,
    JournalFigures,
    MqttFigures,
    SourceFigures,
    SyncFigures,
    document,
    exposition,
    is_alive,
    is_ready,
    problems,
    service_level,
    sync_document,
)


def healthy(**changes: Any) -> Figures:
    figures = Figures(
        "1.0", "press-shop", "a", epoch=41, sources=[SourceFigures("p7", "live"), SourceFigures("p8", "live")],
        sync=SyncFigures(), mqtt=MqttFigures(connected=True), threads={"journal": True},
    )  # fmt: skip
    return replace(figures, **changes)


def lost(name: str = "p7") -> list[SourceFigures]:
    return [SourceFigures(name, "stale", since_s=12, error="timed out"), SourceFigures("p8", "live")]


def test_a_healthy_gateway_has_no_problems() -> None:
    f = healthy()
    assert problems(f) == []
    assert is_ready(f)
    assert is_alive(f)
    assert service_level(f) == 255


@pytest.mark.parametrize(
    ("changes", "part", "word"),
    [
        ({"sources": lost()}, "source p7", "stale for 12 s: timed out"),
        ({"sources": []}, "process", "no source"),
        ({"journal": JournalFigures(error="disk full")}, "journal", "disk full"),
        ({"journal": JournalFigures(size_bytes=9, size_bytes_max=9)}, "journal", "9 are allowed"),
        ({"sync": SyncFigures(error="refused")}, "sync", "refused"),
        ({"sync": SyncFigures(state="starting", state_s=4)}, "sync", "starting for 4 s: the bucket has taken nothing"),
        ({"sync": SyncFigures(state="following")}, "sync", "the bucket has taken nothing"),
        ({"sync": SyncFigures(lag_s=33, interval_s_max=1)}, "sync", "33 s old; 32 s are allowed"),
        ({"role": "STANDBY", "role_reason": "fenced", "sync": SyncFigures(error="fenced")}, "role", "STANDBY: fenced"),
        ({"threads": {"journal": False}}, "process", "journal has ended"),
        ({"loop_lag_s": 7.0}, "process", "7 s late"),
        ({"stopping": True}, "process", "stopping"),
    ],
)
def test_each_blocking_problem_alone_makes_the_gateway_unready(changes: Any, part: str, word: str) -> None:
    f = healthy(**changes)
    assert not is_ready(f)
    [problem] = problems(f)
    assert problem.part == part
    assert word in problem.text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"mqtt": MqttFigures(last_error="refused")}, "mqtt"),
        ({"mqtt": MqttFigures(connected=True, refusal="a topic, such as uns/x: Not authorized")}, "mqtt"),
        ({"gaps_open": 2}, "gaps"),
        ({"clock_offset_s": -3.0}, "clock"),
    ],
)
def test_a_problem_that_loses_nothing_is_told_and_does_not_block(changes: Any, part: str) -> None:
    f = healthy(**changes)
    assert is_ready(f)
    assert [p.part for p in problems(f)] == [part]


def test_a_lag_is_a_problem_only_beyond_what_the_push_interval_explains() -> None:
    assert is_ready(healthy(sync=SyncFigures(lag_s=149, interval_s_max=60)))
    assert not is_ready(healthy(sync=SyncFigures(lag_s=151, interval_s_max=60)))


@pytest.mark.parametrize(
    "changes", [{"error": "refused"}, {"state": "starting"}, {"lag_s": 1e3}, {"lag_s": 99.0, "interval_s_max": 1.0}]
)
def test_the_metric_of_pushing_says_what_readiness_says(changes: Any) -> None:
    assert value(healthy(), "sync_ok") == 1
    assert value(healthy(sync=SyncFigures(**changes)), "sync_ok") == 0


def test_the_topic_sync_says_how_far_the_bucket_is() -> None:
    f = healthy(sync=SyncFigures(lag_s=1.26, seq=811), journal=JournalFigures(backlog_samples=12))
    assert sync_document(f) == {"lag_s": 1.3, "backlog_samples": 12, "seq": 811, "epoch": 41}


def test_parts_that_are_not_configured_are_no_problem() -> None:
    assert problems(healthy(sync=None, mqtt=None)) == []


def test_blocking_problems_come_first() -> None:
    f = healthy(mqtt=MqttFigures(), gaps_open=1, sources=lost())
    assert [p.blocks for p in problems(f)] == [True, False, False]


def test_only_a_dead_thread_asks_for_a_new_process() -> None:
    assert is_alive(healthy(journal=JournalFigures(error="disk full"), sources=lost()))
    assert not is_alive(healthy(threads={"journal": True, "mqtt": False}))


def test_service_levels_fall_in_the_bands_of_the_specification() -> None:
    assert service_level(healthy(stopping=True)) == 0
    assert service_level(healthy(sources=[SourceFigures("p7", "offline")])) == 1
    assert service_level(healthy(journal=JournalFigures(error="disk full"))) == 1
    assert service_level(healthy(sources=lost())) == 2 + 197 // 2
    assert service_level(healthy(gaps_open=1)) == 100
    assert service_level(healthy(role="STANDBY", role_reason="fenced")) == 100
    assert service_level(healthy(role="STANDBY")) == 254
    assert service_level(healthy(role="STANDBY", sync=SyncFigures(lag_s=10))) == 244
    assert service_level(healthy(role="STANDBY", sync=SyncFigures(lag_s=1e9))) == 200


def test_the_document_says_what_readyz_and_mqtt_show() -> None:
    value = document(healthy(sources=lost(), journal=JournalFigures(backlog_samples=7)))
    assert value["ready"] is False
    assert value["problems"] == [{"part": "source p7", "text": "stale for 12 s: timed out", "blocks": True}]
    assert value["sources"] == {"p7": "stale", "p8": "live"}
    assert (value["epoch"], value["role"], value["backlog_samples"]) == (41, "PRIMARY", 7)


def full() -> Figures:
    source = SourceFigures(
        "p7", "live", silent_s=0.1, reconnects=2, overflows=3, samples={"good": 5, "bad": 1},
        audited=5, mismatches=4, audits_refused=3, audit_turn_s=600.0, canary_deaths=1, clock_skew_s=0.5,
    )  # fmt: skip
    return healthy(
        sources=[source], tags={"good": 60}, gaps={"overflow": 4}, clock_offset_s=0.001, verify_age_s=60.0,
        certificates={"own": 86400.0}, recovered_samples=9,
    )  # fmt: skip


def otherwise() -> Figures:
    """Return figures of which everything that is a metric differs from `full()`."""
    source = SourceFigures(
        "p7", "stale", silent_s=9.0, reconnects=3, overflows=4, samples={"good": 6, "bad": 2},
        audited=9, mismatches=8, audits_refused=7, audit_turn_s=601.0, canary_deaths=2, clock_skew_s=-1.5,
    )  # fmt: skip
    sync = SyncFigures(
        error="refused", lag_s=7, segments=3, sent_bytes=5, received_bytes=6, errors=7, interval_s=2.0
    )  # fmt: skip
    mqtt = MqttFigures(
        connected=False, inflight=1, pending_rows=2, published=3, acknowledged=4, refused=5, connects=6, taken_over=7,
        history_refused_rows=8, failures=9,
    )  # fmt: skip
    journal = JournalFigures(
        error="full", size_bytes=1, size_bytes_max=4, wal_bytes=5, unpushed_bytes=6, commits=2, backlog_samples=3,
        commit_s=0.5,
    )  # fmt: skip
    return Figures(
        "2.0", "press-shop", "a", role="STANDBY", epoch=42, uptime_s=1, loop_lag_s=0.5, sources=[source],
        tags={"good": 61}, journal=journal, sync=sync, mqtt=mqtt, gaps_open=1, gaps={"overflow": 5},
        recovered_samples=10, sample_gap_s_max=3.0, clock_offset_s=0.002, verify_age_s=61.0,
        certificates={"own": 86399.0}, threads={"journal": True},
    )  # fmt: skip


def families(f: Figures) -> dict[str, Any]:
    return {m.name: m for m in text_string_to_metric_families(exposition(f))}


def value(f: Figures, name: str, **labels: str) -> float:
    [found] = [
        s.value
        for m in families(f).values()
        for s in m.samples
        if s.name == f"edgemirror_{name}" and s.labels == labels
    ]
    return float(found)


def test_every_metric_is_exposed_with_its_kind_and_help() -> None:
    found = families(full())
    assert {n.removeprefix("edgemirror_") for n in found} == {n.removesuffix("_total") for n in METRICS}
    for name, (kind, text) in METRICS.items():
        family = found[f"edgemirror_{name}".removesuffix("_total") if kind == "counter" else f"edgemirror_{name}"]
        assert family.documentation == text
        assert family.type == kind


def test_every_metric_moves_with_the_figures() -> None:
    before, after = families(full()), families(otherwise())
    assert before.keys() == after.keys()
    assert [name for name, family in before.items() if family.samples == after[name].samples] == []


def test_figures_arrive_under_their_names_and_labels() -> None:
    f = full()
    assert value(f, "samples_total", source="p7", quality="bad") == 1
    assert value(f, "opcua_overflow_total", source="p7") == 3
    assert value(f, "role", role="PRIMARY") == 1
    assert value(f, "role", role="STANDBY") == 0
    assert value(f, "gaps_total", reason="overflow") == 4
    assert value(f, "sync_lag_seconds", shard="press-shop") == 0
    assert value(f, "mqtt_connected") == 1
    assert value(replace(f, journal=JournalFigures(size_bytes=np.int64(7))), "store_bytes") == 7  # type: ignore[arg-type]


def test_parts_that_are_not_configured_have_no_metrics() -> None:
    found = families(healthy(sync=None, mqtt=None))
    assert not [n for n in found if "mqtt" in n or "sync" in n]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")))
def test_any_name_is_a_label(name: str) -> None:
    f = healthy(sources=[SourceFigures(name, "live")])
    assert value(f, "opcua_connected", source=name) == 1


def test_every_metric_is_documented_with_its_labels() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `edgemirror_")]
    documented = [row[1].strip(" `") for row in rows if row[2].strip() in ("gauge", "counter")]
    labels = {
        s.name: "{" + ",".join(s.labels) + "}" if s.labels else ""
        for m in families(full()).values() for s in m.samples
    }  # fmt: skip
    assert documented == [f"edgemirror_{n}{labels[f'edgemirror_{n}']}" for n in METRICS]
