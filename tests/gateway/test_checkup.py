"""Findings: what is told, and which exit code it comes to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.checkup import Finding, exit_code, judged, settings, validity
from gateway.config import parse
from gateway.forecast import Prices, predict
from tests.gateway.test_forecast import CONFIG

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONE = CONFIG.partition("[sync]")[0]


def finding(level: str) -> Finding:
    return Finding(level, "x", "y")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "code"),
    [(["ok"], 0), (["ok", "warning"], 0), (["away", "warning"], 3), (["away", "failed"], 1), ([], 0)],
)
def test_a_failure_counts_before_an_absence_and_a_warning_not_at_all(levels: list[str], code: int) -> None:
    assert exit_code([finding(level) for level in levels]) == code


@pytest.mark.parametrize(
    ("begin", "end", "level", "told"),
    [(-1, 100, "ok", "100 days left"), (-1, 29, "warning", "expires in 29 days"), (-9, -1, "failed", "has expired"),
     (1, 9, "failed", "not yet")],
)  # fmt: skip
def test_a_certificate_is_judged_by_its_dates(begin: int, end: int, level: str, told: str) -> None:
    found = validity("c", NOW + timedelta(days=begin), NOW + timedelta(days=end), NOW, "renew")
    assert found.level == level and told in found.text


def test_legal_settings_with_consequences_are_told() -> None:
    text = LONE.replace('security = "none"', 'security = "none"\nuser = "op"\npassword_file = "/p"')
    found = settings(parse(text + '[mqtt]\nurl = "mqtt://b:1"\nuser = "m"\npassword_file = "/q"\n'))
    told = [f.text for f in found if f.level == "warning"]
    assert (
        len(told) == 3
        and "'op' can be intercepted" in told[0]
        and "only copy" in told[1]
        and "'m' can be read" in told[2]
    )
    assert [f.level for f in settings(parse(CONFIG))] == ["ok"]


def test_what_is_too_much_for_a_gateway_or_its_disk_is_told() -> None:
    config = parse(CONFIG)

    def told(rate: float) -> dict[str, str]:
        prediction = predict(config, {"fast": 100, "slow": 10}, "", rate, Prices(), {})
        return {f.part: f.level for f in judged(config, prediction)}

    assert told(10.0) == {} and told(300_000.0) == {"load": "warning", "journal": "warning"}
    assert told(500_000.0)["load"] == "failed"


def test_an_unpushed_journal_is_judged_by_a_month() -> None:
    config = parse(LONE + "[journal]\nmax_gib = 1\nkeep_days = 0\n")
    (found,) = judged(config, predict(config, {"fast": 100}, "", 100.0, Prices(), {}))
    assert found.part == "journal" and "sync.bucket" in found.hint and "nothing is ever deleted" in found.text
