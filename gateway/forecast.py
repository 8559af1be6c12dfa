"""What a configuration will cost: requests, money, bytes, and whether what is asked for fits.

All figures are estimates from measured ones (docs/performance.md) and from assumptions that are told with
them. Prices are an example for arithmetic, never a statement about what anybody charges.

What it does not do: know how often things change. That is an argument; so are the prices.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gateway.capabilities import Capabilities
from gateway.config import DAY_S, REQUESTS_PER_SEGMENT, Config, Source, Sync
from gateway.plan import ABSENCE_MS, EVENT_RATE_HZ, queue_size

MONTH_DAYS = 30
GB, GIB = 1e9, float(1 << 30)
#: Rows in a chunk or segment -> bytes for one change; measured, see docs/performance.md.
CHUNK_BYTES = ((10, 14.7), (100, 10.8), (1_000, 8.1), (10_000, 7.1), (100_000, 7.1))
SEGMENT_BYTES = ((10, 457.0), (100, 64.4), (1_000, 16.8), (10_000, 11.6), (100_000, 9.04))
WIRE_BYTES = 40  # of one change in a notification: a number with status, both times and picoseconds
CPU_US = 2.6  # of one processor for one change with push and MQTT on, mixed signals
MESSAGE_BYTES_MAX = 64 << 20  # as gateway.io.opcua refuses longer ones
CPU_SHARE_MAX = 0.5
FOLLOW_S = 2.0  # as gateway.io.push follows the log
TAGS_ASSUMED = 1_000  # of a source of which nothing is known


@dataclass(frozen=True, slots=True)
class Prices:
    """An example of what a store may charge, in whatever currency.

    Attributes:
        put, get: For 1,000 requests that write, and that read.
        gb_month: For a gigabyte (10^9 bytes) kept a month.
    """

    put: float = 0.005
    get: float = 0.0004
    gb_month: float = 0.023


@dataclass(frozen=True, slots=True)
class BucketForecast:
    """What the bucket gets, with changes flowing all day.

    Attributes:
        interval_s: Between two segments.
        puts_per_month, gets_per_month: Requests.
        rows: Changes in one segment.
        gb_per_month: What is added; nothing is deleted.
        requests_cost: A month.
        storage_cost_first, storage_cost_year: The first month, and the twelfth, when all is kept.
        lease_puts, lease_gets: Requests a month for the lease and for following the log, with arbiter `s3`.
        lease_cost: A month.
    """

    interval_s: float
    puts_per_month: int
    gets_per_month: int
    rows: float
    gb_per_month: float
    requests_cost: float
    storage_cost_first: float
    storage_cost_year: float
    lease_puts: int = 0
    lease_gets: int = 0
    lease_cost: float = 0.0


def bucket(sync: Sync, changes_per_s: float, prices: Prices) -> BucketForecast:
    """Return what a bucket costs with this budget.

    A segment is sealed as often as the budget allows, within the bounds of the interval, and at once when
    it is full; full segments may exceed the budget. So the requests are those of the budget unless the bounds
    or a high rate decide.
    """
    by_budget_s = REQUESTS_PER_SEGMENT * DAY_S / sync.requests_per_day
    interval_s = min(max(by_budget_s, sync.interval_s.min), sync.interval_s.max)
    if changes_per_s > 0:
        size = max(1.0, bytes_of(CHUNK_BYTES, changes_per_s))
        full_s = min(sync.segment_rows, sync.segment_mib * (1 << 20) / size) / changes_per_s
        interval_s = min(interval_s, full_s)
    segments = MONTH_DAYS * DAY_S / interval_s
    rows = changes_per_s * interval_s
    gb = segments * rows * bytes_of(SEGMENT_BYTES, rows) / GB
    requests = segments * (prices.put + prices.get * (REQUESTS_PER_SEGMENT - 1)) / 1000
    return BucketForecast(
        interval_s, round(segments), round(segments * (REQUESTS_PER_SEGMENT - 1)), rows, gb, requests,
        gb * prices.gb_month / 2, gb * prices.gb_month * 11.5,
    )  # fmt: skip


def lease(config: Config, prices: Prices) -> tuple[int, int, float]:
    """Return the writes, reads and cost a month of a lease in the bucket: renewed, looked at, and the log followed.

    Who acts writes four times in a lease, each standby reads as often; it looks at the log with three reads.
    """
    month_s, lease_s, standbys = MONTH_DAYS * DAY_S, config.arbiter.seconds, max(1, len(config.peer))
    puts = month_s * 4 / lease_s
    gets = standbys * (puts + 3 * month_s / max(FOLLOW_S, lease_s / 4))
    return round(puts), round(gets), (puts * prices.put + gets * prices.get) / 1000


def journal_bytes_per_day(changes_per_s: float, chunks_per_s: float) -> float:
    """Return the growth of the journal.

    Args:
        changes_per_s: Of all streams.
        chunks_per_s: Messages of all streams: each becomes a chunk.
    """
    rows = changes_per_s / chunks_per_s if chunks_per_s else 0.0
    return DAY_S * changes_per_s * bytes_of(CHUNK_BYTES, rows)


def bytes_of(curve: Sequence[tuple[int, float]], rows: float) -> float:
    """Return the bytes for one change in a piece of so many, between measured points on logarithmic axes."""
    if rows <= curve[0][0]:  # below the first point the fixed part alone counts
        return curve[0][1] * curve[0][0] / max(rows, 1.0)
    place = bisect_left([n for n, _ in curve], rows)
    if place == len(curve):
        return curve[-1][1]
    (n0, b0), (n1, b1) = curve[place - 1], curve[place]
    share = math.log(rows / n0) / math.log(n1 / n0)
    return math.exp(math.log(b0) + share * math.log(b1 / b0))


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether one subscription carries what is asked of it.

    Attributes:
        source, publishing_ms: Which.
        tags: How many.
        changes_per_s_max: If every tag changes at every sample.
        message_bytes: Of one message then.
        round_trip_ms_max: A message and the request that fetches the next one must not take longer.
        absence_s: What the queues bridge at that rate.
        problems: What does not fit, each with what to change.
    """

    source: str
    publishing_ms: float
    tags: int
    changes_per_s_max: float
    message_bytes: int
    round_trip_ms_max: float
    absence_s: float
    problems: tuple[str, ...]


def fits(config: Config, tags: Mapping[str, int], limits: Mapping[str, Capabilities] | None = None) -> list[Fit]:
    """Return for each subscription whether it fits.

    Args:
        config: The configuration.
        tags: By name of the device; devices that are not named have none.
        limits: By name of the source, what its server says.
    """
    found = []
    for source in config.source:
        known = (limits or {}).get(source.name, Capabilities())
        for publishing_ms in sorted({d.publishing_ms for d in source.device}):
            found.append(_fit(config, source, publishing_ms, tags, known))
    return found


def _fit(config: Config, source: Source, publishing_ms: float, tags: Mapping[str, int], limits: Capabilities) -> Fit:
    devices = [d for d in source.device if d.publishing_ms == publishing_ms]
    many = sum(tags.get(d.name, 0) for d in devices)
    rates = {d.name: 1000 / d.sampling_ms if d.sampling_ms else EVENT_RATE_HZ for d in devices}
    rate = sum(rates[d.name] * tags.get(d.name, 0) for d in devices)
    size = round(rate * publishing_ms / 1000 * WIRE_BYTES)
    queues = [(limits.queue_size_max and min(queue_size(d), limits.queue_size_max)) or queue_size(d) for d in devices]
    absence_s = min(q / rates[d.name] for q, d in zip(queues, devices, strict=True))
    problems = []
    if size * source.publish_requests > config.journal.inbox_mib << 20:
        problems.append(
            f"{source.publish_requests} messages of {size / (1 << 20):.1f} MiB do not fit into journal.inbox_mib "
            f"({config.journal.inbox_mib}): publish more often, or allow {2 * source.publish_requests * size >> 20}"
        )
    if size > MESSAGE_BYTES_MAX:
        problems.append("a message would be longer than is accepted: a shorter publishing_ms makes it smaller")
    if limits.items_per_subscription_max and many > limits.items_per_subscription_max:
        problems.append(
            f"the server allows {limits.items_per_subscription_max} items in a subscription: give devices "
            "publishing_ms that differ"
        )
    problems += [
        f"device {d.name}: sampling_ms is {d.sampling_ms:g}; the server samples at best every "
        f"{limits.sample_ms_min:g} ms"
        for d in devices
        if 0 < d.sampling_ms < limits.sample_ms_min
    ]
    if absence_s * 1000 < min(ABSENCE_MS, 10 * publishing_ms):
        problems.append(f"the queues bridge {absence_s:.1f} s: a longer queue_size bridges a restart of the gateway")
    return Fit(
        source.name, publishing_ms, many, rate, size, source.publish_requests * publishing_ms, absence_s,
        tuple(problems),
    )  # fmt: skip


def cpu_share(changes_per_s: float) -> float:
    """Return the share of one processor (a 2026 x86-64 core) that so many changes take."""
    return changes_per_s * CPU_US / 1e6


class Prediction(NamedTuple):
    """What a configuration comes to, under assumptions that stand with it.

    Attributes:
        tags: By device.
        tags_from: Where that is known from.
        changes_per_s: Of all tags.
        fits: For each subscription.
        cpu_share: Of one processor.
        journal_bytes_per_day: Growth of the journal.
        bucket: None without one.
        assumptions: Sentences.
    """

    tags: dict[str, int]
    tags_from: str
    changes_per_s: float
    fits: list[Fit]
    cpu_share: float
    journal_bytes_per_day: float
    bucket: BucketForecast | None
    assumptions: list[str]


def assumed_tags(config: Config, each: int) -> dict[str, int]:
    """Return tags by device where nobody knows: so many for each source, spread over its devices."""
    return {d.name: -(-each // len(s.device)) for s in config.source for d in s.device}


def predict(
    config: Config, tags: Mapping[str, int], tags_from: str, changes_per_s: float | None, prices: Prices,
    limits: Mapping[str, Capabilities],
) -> Prediction:  # fmt: skip
    """Return what the configuration comes to.

    Args:
        config: The configuration.
        tags: By device.
        tags_from: Where that is known from.
        changes_per_s: Of all tags; None: one a second for each.
        prices: For the bucket.
        limits: By source, where its server was asked.
    """
    many = sum(tags.values())
    rate = float(many) if changes_per_s is None else changes_per_s
    streams = fits(config, tags, limits)
    chunks = min(rate, sum(1000 / f.publishing_ms for f in streams))
    assumptions = [
        f"{many:,} tags: {tags_from}",
        f"{rate:,.0f} changes/s" + (": one a second for each tag (--changes-per-s)" if changes_per_s is None else ""),
        "bytes for one change as measured on mixed signals, docs/performance.md",
    ]
    if any(not d.sampling_ms for s in config.source for d in s.device):
        assumptions.append(f"where sampling_ms is 0, at most {EVENT_RATE_HZ} changes/s of a tag")
    costs = None
    if config.sync.bucket:
        costs = bucket(config.sync, rate, prices)
        if config.arbiter.kind == "s3":
            puts, gets, cost = lease(config, prices)
            costs = replace(costs, lease_puts=puts, lease_gets=gets, lease_cost=cost)
        assumptions.append(
            f"prices, an example and nobody's offer: {prices.put:g} for 1,000 writes (--price-put), {prices.get:g} for "
            f"1,000 reads (--price-get), {prices.gb_month:g} for a GB a month (--price-gb); traffic is not counted"
        )
        assumptions.append("changes flow day and night, a month has 30 days, and nothing is deleted from the bucket")
    return Prediction(
        dict(tags), tags_from, rate, streams, cpu_share(rate),
        journal_bytes_per_day(rate, chunks), costs, assumptions,
    )  # fmt: skip


def lines(prediction: Prediction) -> Sequence[tuple[str, str]]:
    """Return the prediction for people, as rows of name and figure."""
    rows = []
    for fit in prediction.fits:
        verdict = "fits" if not fit.problems else "see above"
        rows.append((
            f"{fit.source}, {fit.publishing_ms:g} ms",
            f"{fit.tags:,} tags, at most {fit.changes_per_s_max:,.0f} changes/s in messages of "
            f"{fit.message_bytes / 1024:,.0f} KiB; a round trip may take {fit.round_trip_ms_max:g} ms, the queues "
            f"bridge {fit.absence_s:.1f} s: {verdict}",
        ))  # fmt: skip
    rows.append(("processor", f"{prediction.cpu_share:.1%} of one core"))
    rows.append(("journal", f"{size(prediction.journal_bytes_per_day)} a day"))
    b = prediction.bucket
    if b is not None:
        rows += [
            ("bucket requests", f"{b.puts_per_month:,} writes and {b.gets_per_month:,} reads a month, a segment every "
             f"{b.interval_s:.1f} s: {b.requests_cost:,.2f} a month"),
            ("bucket storage", f"{size(b.gb_per_month * GB)} more each month: {b.storage_cost_first:,.2f} in the first "
             f"month, {b.storage_cost_year:,.2f} in the twelfth"),
        ]  # fmt: skip
        if b.lease_puts:
            rows.append(("lease requests", f"{b.lease_puts:,} writes and {b.lease_gets:,} reads a month: "
                         f"{b.lease_cost:,.2f} a month; a longer arbiter.lease_s costs less"))  # fmt: skip
    return rows


def size(count: float) -> str:
    """Return bytes for people."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"
