"""What a configuration comes to, held against the machine that spends the requests and against measured figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway import forecast, sync
from gateway.capabilities import Capabilities
from gateway.config import Config, Sync, parse
from gateway.forecast import CHUNK_BYTES, SEGMENT_BYTES, Prices, assumed_tags, bucket, bytes_of, fits, predict
from gateway.io import opcua
from tests.gateway.test_config import MINIMAL

CONFIG = """
[group]
name = "g"
[replica]
name = "a"
data_dir = "/d"
[[source]]
name = "s"
endpoint = "opc.tcp://h:1"
security = "none"
[[source.device]]
name = "fast"
browse = ["i=85"]
sampling_ms = 100
publishing_ms = 200
[[source.device]]
name = "slow"
browse = ["i=86"]
sampling_ms = 1000
publishing_ms = 1000
[sync]
bucket = "s3://b/p"
"""


def config(more: str = "") -> Config:
    return parse(CONFIG + more)


def spent(settings: Sync, changes_per_s: float, days: float = 0.5) -> tuple[int, int]:
    """Return segments and requests of a day's part, by the machine itself, after it has used up its savings."""
    policy = sync.Policy(settings.segment_rows, settings.segment_mib << 20, settings.interval_s.min,
                         settings.interval_s.max, settings.requests_per_day)  # fmt: skip
    machine, now, sealed_at, segments = sync.Sync(policy, 0.0), 0.0, 0.0, 0
    effects = machine.step(sync.Opened(), 0.0)
    settle, end = 2 * sync.BURST_S, 2 * sync.BURST_S + days * 86_400
    while now < end:
        if sync.Measure() in effects:
            rows = int((now - sealed_at) * changes_per_s)
            effects = machine.step(sync.Measured(rows, rows * 8), now)
        elif sync.Seal() in effects:
            segments += now > settle
            sealed_at = now
            machine.step(sync.Spent(2), now)
            effects = machine.step(sync.Accepted(0.05), now)
        else:
            now = max(machine.wake_at, now + 0.001)
            effects = machine.step(sync.Tick(), now)
    return segments, 2 * segments


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (Sync(bucket="s3://b/p"), 100.0),
        (Sync(bucket="s3://b/p", requests_per_day=100_000), 1_000.0),
        (Sync(bucket="s3://b/p", requests_per_day=2_880), 10.0),
        (Sync(bucket="s3://b/p", requests_per_day=3_000, segment_rows=1_000), 100.0),  # full every 10 s
    ],
)
def test_predicted_requests_are_those_that_the_machine_makes(settings: Sync, rate: float) -> None:
    segments, _ = spent(settings, rate)
    predicted = bucket(settings, rate, Prices()).puts_per_month / forecast.MONTH_DAYS * 0.5
    assert predicted == pytest.approx(segments, rel=0.1)


def test_costs_are_counts_times_prices() -> None:
    found = bucket(Sync(bucket="s3://b/p"), 100.0, Prices(put=10.0, get=1.0, gb_month=2.0))
    assert found.puts_per_month == found.gets_per_month == 10_000 * 30
    assert found.requests_cost == pytest.approx(300 * 10.0 + 300 * 1.0)
    assert found.storage_cost_first == pytest.approx(found.gb_per_month * 2.0 / 2)
    assert found.storage_cost_year == pytest.approx(found.gb_per_month * 2.0 * 11.5)
    assert found.gb_per_month == pytest.approx(100 * 86_400 * 30 * bytes_of(SEGMENT_BYTES, 864) / 1e9)
    assert bucket(Sync(bucket="s3://b/p"), 0.0, Prices()).gb_per_month == 0.0


def test_measured_sizes_are_those_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    rows = {}
    for heading, name in (("bytes for one change | 457", "segment"), ("bytes for one change | 14.7", "chunk")):
        (line,) = [line for line in page.splitlines() if heading in line]
        rows[name] = [float(n) for n in re.findall(r"\d+\.?\d*", line)]
    assert rows["segment"] == [b for _, b in SEGMENT_BYTES] and rows["chunk"] == [b for _, b in CHUNK_BYTES]


def test_sizes_lie_between_the_measured_points() -> None:
    assert bytes_of(SEGMENT_BYTES, 10) == 457.0 and bytes_of(SEGMENT_BYTES, 1e9) == 9.04
    assert 16.8 < bytes_of(SEGMENT_BYTES, 300) < 64.4 and bytes_of(SEGMENT_BYTES, 1) == 4570.0
    assert bytes_of(CHUNK_BYTES, 0) == 147.0


def test_what_fits_is_said_with_its_figures_and_what_does_not_with_what_to_change() -> None:
    fast, slow = fits(config(), {"fast": 1_000, "slow": 10})
    assert (fast.tags, fast.changes_per_s_max, fast.message_bytes) == (1_000, 10_000.0, 80_000)
    assert fast.round_trip_ms_max == 600.0 and fast.absence_s == pytest.approx(10.2) and fast.problems == ()
    assert slow.absence_s == pytest.approx(11.0)
    limits = {"s": Capabilities(items_per_subscription_max=500, sample_ms_min=250, queue_size_max=5)}
    (problems,) = [f.problems for f in fits(config(), {"fast": 1_000}, limits) if f.publishing_ms == 200.0]
    assert [p.split(":")[0] for p in problems] == [
        "the server allows 500 items in a subscription", "device fast", "the queues bridge 0.5 s",
    ]  # fmt: skip
    (problems,) = [f.problems for f in fits(config(), {"fast": 1_000_000}) if f.publishing_ms == 200.0]
    assert "journal.inbox_mib" in problems[0] and "longer than is accepted" in problems[1]
    assert forecast.MESSAGE_BYTES_MAX == opcua.MESSAGE_BYTES_MAX


def test_a_prediction_states_its_assumptions() -> None:
    found = predict(config(), {"fast": 90, "slow": 10}, "as the servers have them", None, Prices(), {})
    assert found.changes_per_s == 100.0 and found.bucket is not None
    told = " ".join(found.assumptions)
    for word in ("100 tags", "--changes-per-s", "nobody's offer", "--price-put", "--price-gb", "day and night"):
        assert word in told
    assert found.journal_bytes_per_day == pytest.approx(86_400 * 100 * bytes_of(CHUNK_BYTES, 100 / 6))
    lines = dict(forecast.lines(found))
    assert "s, 200 ms" in lines and "a month" in lines["bucket requests"] and "a day" in lines["journal"]
    alone = predict(parse(CONFIG.partition("[sync]")[0]), {"fast": 1}, "", 5.0, Prices(), {})
    assert alone.bucket is None and "bucket requests" not in dict(forecast.lines(alone))


def test_assumed_tags_are_spread_over_a_sources_devices() -> None:
    assert assumed_tags(config(), 1_001) == {"fast": 501, "slow": 501}
    assert [forecast.size(n) for n in (5, 5e3, 5e6, 5e9, 5e12)] == ["5 bytes", "5.0 kB", "5.0 MB", "5.0 GB", "5.0 TB"]


def test_a_lease_in_the_bucket_costs_what_its_length_says_and_the_economy_setting_less_than_two_dollars() -> None:
    text = MINIMAL + '[sync]\nbucket = "s3://b/p"\n[arbiter]\nkind = "s3"\nlease_s = {}\n'
    short, long = (forecast.lease(parse(text.format(s)), forecast.Prices()) for s in (2, 60))
    assert short[:2] == (5_184_000, 9_072_000)
    assert short[2] == pytest.approx(29.55, abs=0.01)
    assert long[2] < 2
