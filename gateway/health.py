"""How the gateway is, from plain figures: what is wrong, how good it is, and the same as metrics.

The runtime fills `Figures` from what its machines and threads already count; nothing here counts, asks or
waits. One list of problems feeds everything: `/readyz`, the MQTT topic `health`, and `status`. A problem
that blocks means that something the devices said is not, or may soon not be, where it belongs.

What it does not do: keep a history, or decide anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.checkup import EXPIRY_DAYS, RENEW
from gateway.room import KEPT, WAL_BYTES_MAX, WITHOUT_BUCKET

LOOP_LAG_S_MAX = 5.0
SKEW_S_MAX = 60.0  # from there on rows count as ahead of this box, or are late for dashboards
CLOCK_OFFSET_S_MAX = 1.0
LAG_INTERVALS = 2  # push intervals that a sample may wait
LAG_FREE_S = 30.0  # and so much longer, for answers that are slow


@dataclass(slots=True)
class SourceFigures:
    """One OPC UA server.

    Attributes:
        name: As configured.
        state: `live`, `stale` (lost) or `offline` (lost for long).
        since_s: Seconds that it has been in this state.
        silent_s: Seconds since its last notification or keep-alive; None before the first.
        reconnects: Sessions made anew after the first.
        overflows: Samples marked by the server as following lost ones.
        samples: Samples received, by `good`, `uncertain`, `bad`.
        audited: Tags read and compared with the mirror.
        mismatches: Tags whose device said something else.
        audits_refused: Reads of the audit that the server refused.
        audit_turn_s: How long the last turn over all tags took; 0 before the first.
        canary_deaths: Subscriptions that were made anew because the server's clock stood still in them.
        clock_skew_s: Server's clock less ours, to about a publishing interval; None where it is not heard.
        error: Why it is not live.
    """

    name: str
    state: str = "stale"
    since_s: float = 0.0
    silent_s: float | None = None
    reconnects: int = 0
    overflows: int = 0
    samples: Mapping[str, int] = field(default_factory=dict)
    audited: int = 0
    mismatches: int = 0
    audits_refused: int = 0
    audit_turn_s: float = 0.0
    canary_deaths: int = 0
    clock_skew_s: float | None = None
    error: str = ""


@dataclass(slots=True)
class JournalFigures:
    """The local store.

    Attributes:
        error: Why samples cannot be made durable; empty while they can.
        size_bytes: Size of its files.
        size_bytes_max: Configured bound, 0 for none.
        wal_bytes: Of these, its write-ahead log.
        unpushed_bytes: Size of the chunks that the bucket lacks.
        bucket: Whether there is one.
        commits: Transactions since the start.
        backlog_samples: Samples that are durable here and not yet in the cloud.
        commit_s: Duration of the last commit.
    """

    error: str = ""
    size_bytes: int = 0
    size_bytes_max: int = 0
    wal_bytes: int = 0
    unpushed_bytes: int = 0
    bucket: bool = True
    commits: int = 0
    backlog_samples: int = 0
    commit_s: float = 0.0

    @property
    def oversize(self) -> str:
        """Why the file holds too much; empty while it does not."""
        if not 0 < self.size_bytes_max <= self.size_bytes:
            return ""
        text = f"{self.size_bytes} bytes, and {self.size_bytes_max} are allowed (journal.max_gib); "
        return text + (
            f"{self.unpushed_bytes} of them are not in the bucket: {KEPT}" if self.bucket else WITHOUT_BUCKET
        )

    @property
    def unread(self) -> str:
        """Why its write-ahead log is not emptied; empty while it is."""
        if self.wal_bytes <= WAL_BYTES_MAX:
            return ""
        return f"the write-ahead log has {self.wal_bytes >> 20} MiB: some program does not end reading the journal"


@dataclass(slots=True)
class SyncFigures:
    """The road to the bucket.

    Attributes:
        state: Of `gateway.io.push.Status`; `standby` where another replica pushes.
        state_s: Seconds that it has been in this state.
        error: Why nothing is pushed at the moment; empty while pushing works.
        lag_s: Age of the oldest sample that is not in the cloud; 0 where there is none.
        segments: Segments pushed since the start.
        sent_bytes: Bytes of objects sent since the start.
        received_bytes: Bytes of objects read since the start.
        errors: Requests that failed since the start.
        interval_s: Present push interval.
        interval_s_max: The longest that is configured.
        seq: Newest segment of the log; None where none is known.
    """

    state: str = "leading"
    state_s: float = 0.0
    error: str = ""
    lag_s: float = 0.0
    segments: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    errors: int = 0
    interval_s: float = 0.0
    interval_s_max: float = 60.0
    seq: int | None = None

    @property
    def lag_s_max(self) -> float:
        """The lag from which something must be wrong: a segment may wait an interval, and be tried again."""
        return LAG_INTERVALS * self.interval_s_max + LAG_FREE_S

    @property
    def trouble(self) -> str:
        """Why the bucket does not get what it should; empty while it does."""
        if self.error:
            return self.error
        if self.state in ("starting", "following"):
            return f"{self.state} for {self.state_s:.0f} s: the bucket has taken nothing yet"
        if self.lag_s > self.lag_s_max:
            return f"the bucket lacks samples that are {self.lag_s:.0f} s old; {self.lag_s_max:.0f} s are allowed"
        return ""


@dataclass(slots=True)
class MqttFigures:
    """The road to the broker; the names are those of `gateway.io.mqtt.Status`."""

    connected: bool = False
    inflight: int = 0
    pending_rows: int = 0
    published: int = 0
    acknowledged: int = 0
    refused: int = 0
    connects: int = 0
    taken_over: int = 0
    history_refused_rows: int = 0
    failures: int = 0
    refusal: str = ""
    last_error: str = ""


@dataclass(slots=True)
class Figures:
    """Everything that health and metrics are made of, at one moment.

    Attributes:
        version: Of the program.
        group, replica: As configured.
        role: `PRIMARY` or `STANDBY`.
        role_reason: Why this replica does not act although nobody told it to stand by, and what to do; or empty.
        epoch: The fencing epoch.
        uptime_s: Seconds since the start.
        stopping: The gateway is about to end.
        loop_lag_s: How late the event loop last was.
        threads: Whether each worker thread is alive, by name.
        sources: One entry for each.
        tags: Number of tags by the quality of their current value: `good`, `uncertain`, `bad`, `unknown`.
        journal: The local store.
        sync: The road to the bucket; None where no bucket is configured.
        mqtt: The road to the broker; None where no broker is configured.
        gaps_open: Gaps that may still be closed.
        gaps: Gaps since the journal began, by reason.
        recovered_samples: Samples that came late by Republish or from the server's history.
        sample_gap_s_max: Longest time between two responses of one stream that ended in the last minute or goes on.
        clock_offset_s: The kernel's estimate of this box's clock error; None where it has none.
        verify_age_s: Seconds since the last verification that found nothing wrong; None before the first.
        certificates: Seconds until each certificate expires, by name.
    """

    version: str
    group: str
    replica: str
    role: str = "PRIMARY"
    role_reason: str = ""
    epoch: int = 0
    uptime_s: float = 0.0
    stopping: bool = False
    loop_lag_s: float = 0.0
    threads: Mapping[str, bool] = field(default_factory=dict)
    sources: list[SourceFigures] = field(default_factory=list)
    tags: Mapping[str, int] = field(default_factory=dict)
    journal: JournalFigures = field(default_factory=JournalFigures)
    sync: SyncFigures | None = None
    mqtt: MqttFigures | None = None
    gaps_open: int = 0
    gaps: Mapping[str, int] = field(default_factory=dict)
    recovered_samples: int = 0
    sample_gap_s_max: float = 0.0
    clock_offset_s: float | None = None
    verify_age_s: float | None = None
    certificates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        part: What it concerns: `journal`, `source press7`, `role`, `sync`, `mqtt`, `clock`, `gaps`, `process`.
        text: What is wrong, for a person.
        blocks: Whether the gateway is not ready because of it.
    """

    part: str
    text: str
    blocks: bool


def problems(f: Figures) -> list[Problem]:
    """Return all that is wrong, the worst first."""
    found = list(_problems(f))
    return sorted(found, key=lambda p: not p.blocks)


def _problems(f: Figures) -> Iterator[Problem]:
    if f.stopping:
        yield Problem("process", "the gateway is stopping", True)
    for name, alive in f.threads.items():
        if not alive:
            yield Problem("process", f"the thread {name} has ended or stands still", True)
    if f.loop_lag_s > LOOP_LAG_S_MAX:
        yield Problem("process", f"the event loop is {f.loop_lag_s:.0f} s late", True)
    if f.journal.error:
        yield Problem("journal", f.journal.error, True)
    elif f.journal.oversize:
        yield Problem("journal", f.journal.oversize, True)
    elif f.journal.unread:
        yield Problem("journal", f.journal.unread, False)
    if not f.sources:
        yield Problem("process", "no source is configured", True)
    for s in f.sources:
        if s.state != "live":
            why = f": {s.error}" if s.error else ""
            yield Problem(f"source {s.name}", f"{s.state} for {s.since_s:.0f} s{why}", True)
        elif s.clock_skew_s is not None and abs(s.clock_skew_s) > SKEW_S_MAX:
            yield Problem(f"source {s.name}", f"its clock is {s.clock_skew_s:+.0f} s from ours", False)
    if f.role_reason:
        yield Problem("role", f"{f.role}: {f.role_reason}", True)
    elif f.sync is not None and f.sync.trouble:
        yield Problem("sync", f.sync.trouble, True)
    if f.mqtt is not None and not f.mqtt.connected and f.role == "PRIMARY":
        yield Problem("mqtt", f.mqtt.last_error or "not connected", False)
    if f.mqtt is not None and f.mqtt.refusal:
        yield Problem("mqtt", f"the broker refuses {f.mqtt.refusal}", False)
    for name, left_s in f.certificates.items():
        if left_s < EXPIRY_DAYS * 86_400:
            when = "has expired" if left_s < 0 else f"expires in {left_s / 86_400:.0f} days"
            yield Problem(f"certificate {name}", f"{when}: {RENEW}", False)
    if f.gaps_open:
        yield Problem("gaps", f"{f.gaps_open} open", False)
    if f.clock_offset_s is not None and abs(f.clock_offset_s) > CLOCK_OFFSET_S_MAX:
        yield Problem("clock", f"off by {f.clock_offset_s:.3f} s", False)


def is_ready(f: Figures) -> bool:
    """Tell whether devices, journal and bucket are all as they should be."""
    return not any(p.blocks for p in problems(f))


def is_alive(f: Figures) -> bool:
    """Tell whether the process can still do its work; if not, only a new one will."""
    return all(f.threads.values())


def service_level(f: Figures) -> int:
    """Return the OPC UA ServiceLevel of this gateway.

    Returns:
        0: stopping. 1: no data, since no source is live or nothing can be made durable. 2 to 199: some
        sources are live (2 + 197 times their share), at most 100 while gaps are open or another gateway has
        fenced this one. 200 to 254: healthy standby, 254 at no lag to the cloud, falling by one a second.
        255: healthy primary.

    Source: OPC UA Part 4, 6.6.2.4.2.
    """
    if f.stopping:
        return 0
    live = sum(s.state == "live" for s in f.sources)
    if live == 0 or f.journal.error or not is_alive(f):
        return 1
    behind = bool(f.gaps_open or f.role_reason)
    if live < len(f.sources) or behind:
        return min(2 + 197 * live // len(f.sources), 100 if behind else 199)
    if f.role == "PRIMARY":
        return 255
    return max(200, 254 - int(f.sync.lag_s if f.sync else 0))


def document(f: Figures) -> dict[str, Any]:
    """Return health as one JSON object, for `/readyz` and for the MQTT topic `health`."""
    return {
        "ready": is_ready(f), "service_level": service_level(f), "group": f.group, "replica": f.replica,
        "role": f.role, "epoch": f.epoch, "version": f.version,
        "problems": [{"part": p.part, "text": p.text, "blocks": p.blocks} for p in problems(f)],
        "sources": {s.name: s.state for s in f.sources}, "backlog_samples": f.journal.backlog_samples,
        "sync_lag_s": round(f.sync.lag_s, 1) if f.sync else None, "gaps_open": f.gaps_open,
    }  # fmt: skip


def sync_document(f: Figures) -> dict[str, Any]:
    """Return how far the bucket is as one JSON object, for the MQTT topic `sync`; call only where there is one."""
    assert f.sync is not None
    return {
        "lag_s": round(f.sync.lag_s, 1), "backlog_samples": f.journal.backlog_samples, "seq": f.sync.seq,
        "epoch": f.epoch,
    }  # fmt: skip


def sentence(f: Figures) -> str:
    """Return health as one line for a service manager: whether it is ready, what it does, and all that is wrong."""
    live = sum(s.state == "live" for s in f.sources)
    facts = [f"{'ready' if is_ready(f) else 'not ready'}: {live} of {len(f.sources)} sources live"]
    if f.sync is not None:
        facts.append(f"{f.journal.backlog_samples} samples not in the bucket yet")
    return "; ".join(facts + [f"{p.part}: {p.text}" for p in problems(f)])


# --- metrics ------------------------------------------------------------------------------------------

#: Kind and help text of every metric, by name without the prefix `edgemirror_`.
METRICS = {
    "build_info": ("gauge", "Always 1; the labels say which program this is."),
    "uptime_seconds": ("gauge", "Seconds since the start."),
    "ready": ("gauge", "1 where devices, journal and bucket are all as they should be."),
    "service_level": ("gauge", "OPC UA ServiceLevel, 0 to 255."),
    "loop_lag_seconds": ("gauge", "How late the event loop last was."),
    "role": ("gauge", "1 for the role that this replica has."),
    "lease_epoch": ("gauge", "Fencing epoch of this replica."),
    "opcua_connected": ("gauge", "1 while the source delivers."),
    "opcua_silent_seconds": ("gauge", "Seconds since the source's last notification or keep-alive."),
    "opcua_reconnects_total": ("counter", "Sessions made anew after the first."),
    "opcua_overflow_total": ("counter", "Samples that the server marked as following lost ones."),
    "audit_tags_total": ("counter", "Tags read and compared with the mirror."),
    "audit_mismatches_total": ("counter", "Tags whose device said something else than the mirror held."),
    "audit_refused_total": ("counter", "Reads of the audit that the server refused."),
    "canary_deaths_total": ("counter", "Subscriptions made anew because the server's clock stood still in them."),
    "opcua_clock_skew_seconds": ("gauge", "The server's clock less this box's."),
    "audit_turn_seconds": ("gauge", "How long the last turn over all tags took."),
    "samples_total": ("counter", "Samples received, by quality."),
    "sample_gap_seconds_max": ("gauge", "Longest silence of one stream that ended in the last minute or goes on."),
    "recovered_total": ("counter", "Samples that came late, by Republish or from the server's history."),
    "tags": ("gauge", "Tags by the quality of their current value."),
    "gaps_open": ("gauge", "Gaps that may still be closed."),
    "gaps_total": ("counter", "Gaps since the journal began, by reason."),
    "store_ok": ("gauge", "1 while samples can be made durable."),
    "store_bytes": ("gauge", "Size of the journal's files."),
    "store_bytes_max": ("gauge", "Size that is allowed, journal.max_gib."),
    "store_wal_bytes": ("gauge", "Size of their write-ahead log; it grows while a program does not end reading."),
    "store_unpushed_bytes": ("gauge", "Size of what is not in the cloud, which is never deleted."),
    "store_txid": ("gauge", "Number of the last transaction of the journal since the start."),
    "store_commit_seconds": ("gauge", "Duration of the last commit."),
    "backlog_samples": ("gauge", "Samples that are durable here and not yet in the cloud."),
    "sync_ok": ("gauge", "1 while pushing works."),
    "sync_lag_seconds": ("gauge", "Age of the oldest sample that is not in the cloud."),
    "sync_interval_seconds": ("gauge", "Present push interval."),
    "sync_segments_total": ("counter", "Segments pushed since the start."),
    "sync_bytes_total": ("counter", "Bytes of objects exchanged with the bucket since the start."),
    "sync_errors_total": ("counter", "Requests to the bucket that failed since the start."),
    "mqtt_connected": ("gauge", "1 while the broker accepts messages."),
    "mqtt_inflight": ("gauge", "Messages that the broker has not acknowledged."),
    "mqtt_pending_samples": ("gauge", "Samples that wait to be published; later ones of a tag replace earlier ones."),
    "mqtt_published_total": ("counter", "Messages sent, by format."),
    "mqtt_acknowledged_total": ("counter", "Messages that the broker took."),
    "mqtt_refused_total": ("counter", "Messages that the broker answered with a reason against them."),
    "mqtt_connects_total": ("counter", "Connections that the broker accepted."),
    "mqtt_takeovers_total": ("counter", "Times that another client took over the session."),
    "mqtt_history_refused_total": ("counter", "Back-filled samples not published because too many waited."),
    "mqtt_failures_total": ("counter", "Rounds given up because of an error in the program."),
    "clock_offset_seconds": ("gauge", "The kernel's estimate of this box's clock error."),
    "verify_last_ok_seconds": ("gauge", "Seconds since `edgemirror verify` last found nothing wrong, on this box."),
    "cert_expiry_seconds": ("gauge", "Seconds until the first certificate of a configured file expires."),
}

_Sample = tuple[str, dict[str, str], float]


def exposition(f: Figures) -> str:
    """Return all metrics in Prometheus' text format 0.0.4; those of parts that are not configured are absent."""
    found: dict[str, list[str]] = {}
    for name, labels, value in (*_own(f), *_sources(f), *_stores(f), *_mqtt(f)):
        text = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        series = f"edgemirror_{name}{{{text}}}" if text else f"edgemirror_{name}"
        found.setdefault(name, []).append(f"{series} {float(value)!r}")
    lines: list[str] = []
    for name, (kind, what) in METRICS.items():
        if name in found:
            lines += [f"# HELP edgemirror_{name} {what}", f"# TYPE edgemirror_{name} {kind}", *found.pop(name)]
    assert not found
    return "\n".join(lines) + "\n"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _own(f: Figures) -> Iterator[_Sample]:
    yield "build_info", {"version": f.version, "group": f.group, "replica": f.replica}, 1
    yield "uptime_seconds", {}, f.uptime_s
    yield "ready", {}, int(is_ready(f))
    yield "service_level", {}, service_level(f)
    yield "loop_lag_seconds", {}, f.loop_lag_s
    for role in ("PRIMARY", "STANDBY"):
        yield "role", {"role": role}, int(f.role == role)
    yield "lease_epoch", {}, f.epoch
    if f.clock_offset_s is not None:
        yield "clock_offset_seconds", {}, f.clock_offset_s
    if f.verify_age_s is not None:
        yield "verify_last_ok_seconds", {}, f.verify_age_s
    for name, left_s in f.certificates.items():
        yield "cert_expiry_seconds", {"cert": name}, left_s


def _sources(f: Figures) -> Iterator[_Sample]:
    for s in f.sources:
        source = {"source": s.name}
        yield "opcua_connected", source, int(s.state == "live")
        if s.silent_s is not None:
            yield "opcua_silent_seconds", source, s.silent_s
        yield "opcua_reconnects_total", source, s.reconnects
        yield "opcua_overflow_total", source, s.overflows
        yield "audit_tags_total", source, s.audited
        yield "audit_mismatches_total", source, s.mismatches
        yield "audit_refused_total", source, s.audits_refused
        yield "canary_deaths_total", source, s.canary_deaths
        if s.clock_skew_s is not None:
            yield "opcua_clock_skew_seconds", source, s.clock_skew_s
        if s.audit_turn_s:
            yield "audit_turn_seconds", source, s.audit_turn_s
        for quality, count in s.samples.items():
            yield "samples_total", {**source, "quality": quality}, count
    yield "sample_gap_seconds_max", {}, f.sample_gap_s_max
    yield "recovered_total", {}, f.recovered_samples
    for quality, count in f.tags.items():
        yield "tags", {"quality": quality}, count
    yield "gaps_open", {}, f.gaps_open
    for reason, count in f.gaps.items():
        yield "gaps_total", {"reason": reason}, count


def _stores(f: Figures) -> Iterator[_Sample]:
    j = f.journal
    yield "store_ok", {}, int(not j.error)
    yield "store_bytes", {}, j.size_bytes
    yield "store_bytes_max", {}, j.size_bytes_max
    yield "store_wal_bytes", {}, j.wal_bytes
    yield "store_unpushed_bytes", {}, j.unpushed_bytes
    yield "store_txid", {}, j.commits
    yield "store_commit_seconds", {}, j.commit_s
    yield "backlog_samples", {}, j.backlog_samples
    if f.sync is not None:
        yield "sync_ok", {}, int(not f.sync.trouble)
        yield "sync_lag_seconds", {"shard": f.group}, f.sync.lag_s
        yield "sync_interval_seconds", {}, f.sync.interval_s
        yield "sync_segments_total", {}, f.sync.segments
        yield "sync_bytes_total", {"direction": "out"}, f.sync.sent_bytes
        yield "sync_bytes_total", {"direction": "in"}, f.sync.received_bytes
        yield "sync_errors_total", {}, f.sync.errors


def _mqtt(f: Figures) -> Iterator[_Sample]:
    m = f.mqtt
    if m is not None:
        yield "mqtt_connected", {}, int(m.connected)
        yield "mqtt_inflight", {}, m.inflight
        yield "mqtt_pending_samples", {}, m.pending_rows
        yield "mqtt_published_total", {"format": "json"}, m.published
        yield "mqtt_acknowledged_total", {}, m.acknowledged
        yield "mqtt_refused_total", {}, m.refused
        yield "mqtt_connects_total", {}, m.connects
        yield "mqtt_takeovers_total", {}, m.taken_over
        yield "mqtt_history_refused_total", {}, m.history_refused_rows
        yield "mqtt_failures_total", {}, m.failures
