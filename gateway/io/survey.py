"""What the running gateway knows about itself, gathered into figures for health and metrics.

What costs a look into the journal is looked up every few seconds in a thread of its own; everything else is
read from counters at the moment of asking. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gateway.checkup import own_certificates
from gateway.config import Config
from gateway.health import (
    Figures,
    JournalFigures,
    MqttFigures,
    SourceFigures,
    SyncFigures,
    document,
    is_ready,
    problems,
    sync_document,
)
from gateway.io import verified
from gateway.io.clock import clock
from gateway.io.log import log
from gateway.io.reader import JournalReader, wal_bytes
from gateway.io.source import SourceRunner
from gateway.io.trust import expires_at
from gateway.sync import Status
from mirror.errors import ConfigError, MirrorError

if TYPE_CHECKING:
    from gateway.io.runtime import Gateway

LOOK_S = 2.0
SYNC_TOLD_S = 5.0
PROBLEMS_TOLD = 5
BEAT_S = 0.5
OFFLINE_S = 30.0
QUALITY = ("good", "uncertain", "bad", "bad")  # by the two highest bits of a StatusCode


@dataclass(slots=True)
class _Looked:
    """What the last look into the journal found."""

    gaps_open: int = 0
    gaps: dict[str, int] = field(default_factory=dict)
    gaps_counted: int = 0  # up to this row of the ledger
    backlog_samples: int = 0
    backlog_bytes: int = 0
    backlog_since: float | None = None
    verified_at: float | None = None
    certificates: dict[str, float] = field(default_factory=dict)  # when each expires


class Survey:
    """Keeps the costly figures fresh and puts all of them together."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._looked = _Looked()
        self._beat = time.monotonic()
        self._lag_s = 0.0
        self._told: object = None
        self._logged: object = None
        self._sync_told = -SYNC_TOLD_S
        self._version = _version()

    async def run(self) -> None:
        """Look every few seconds, and feel the event loop's pulse."""
        beat = asyncio.create_task(self._pulse())
        try:
            while True:
                with contextlib.suppress(MirrorError):
                    path, config = self._gateway.path, self._gateway.config
                    self._looked = await asyncio.to_thread(_look, path, config, self._looked)
                self._tell()
                await asyncio.sleep(LOOK_S)
        finally:
            beat.cancel()

    def _tell(self) -> None:
        """Log and publish how the gateway is, when that has changed."""
        figures = self.figures()
        found, ready = problems(figures), is_ready(figures)
        blocking = [problem for problem in found if problem.blocks]
        if (logged := [problem.part for problem in blocking]) != self._logged:
            self._logged = logged
            log("health.changed", ready=ready, problems=[f"{p.part}: {p.text}" for p in blocking[:PROBLEMS_TOLD]])
        publisher = self._gateway.publisher
        if publisher is None:
            return
        told = (ready, figures.epoch, [problem.part for problem in found])
        if told != self._told:
            self._told = told
            publisher.tell("health", msgspec.json.encode(document(figures)))
        now = time.monotonic()
        if figures.sync is not None and now >= self._sync_told + SYNC_TOLD_S:
            self._sync_told = now
            publisher.tell("sync", msgspec.json.encode(sync_document(figures)))

    async def _pulse(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_S)
            self._lag_s = time.monotonic() - self._beat - BEAT_S

    def figures(self) -> Figures:
        """Return everything at this moment; called in the event loop."""
        gateway, looked = self._gateway, self._looked
        config, ingest = gateway.config, gateway.ingest
        counters = ingest.counters
        threads = {"ingest": ingest.failure is None}
        for name, thread in (("push", gateway.pusher), ("mqtt", gateway.publisher), ("lease", gateway.acting.leading)):
            if thread is not None:
                threads[name] = thread.alive
        return Figures(
            version=self._version, group=config.group.name, replica=config.replica.name, role=gateway.role,
            role_reason=with_hint(gateway.acting.trouble), epoch=gateway.epoch,
            uptime_s=time.monotonic() - gateway.started, stopping=gateway.stopping, loop_lag_s=max(0.0, self._lag_s),
            threads=threads, sources=[self._source(s) for s in gateway.sources], tags=self._tags(),
            journal=self._journal(), sync=self._sync(), mqtt=self._mqtt(), gaps_open=looked.gaps_open,
            gaps=looked.gaps, recovered_samples=counters.recovered_rows,
            sample_gap_s_max=max((s.pace.longest_s(s.streams, time.monotonic()) for s in gateway.sources), default=0.0),
            clock_offset_s=_clock_offset_s(),
            verify_age_s=None if looked.verified_at is None else max(0.0, time.time() - looked.verified_at),
            certificates={name: expires_at - time.time() for name, expires_at in looked.certificates.items()},
        )  # fmt: skip

    def _source(self, source: SourceRunner) -> SourceFigures:
        status, now = source.status, time.monotonic()
        totals = np.zeros(4, np.int64)
        overflows = 0
        for stream in source.streams:
            totals += self._gateway.ingest.counters.quality.get(stream, 0)
            overflows += self._gateway.ingest.counters.overflows.get(stream, 0)
        samples: Counter[str] = Counter()
        for name, n in zip(QUALITY, totals.tolist(), strict=True):
            samples[name] += n
        since_s = now - (status.since or self._gateway.started)
        state = "live" if status.connected else "stale" if since_s < OFFLINE_S else "offline"
        silent_s = time.monotonic() - status.last_message if status.last_message else None
        audits = source.auditor.counts
        return SourceFigures(
            name=status.name, state=state, since_s=since_s, silent_s=silent_s,
            reconnects=max(0, status.connects - 1), overflows=overflows, samples=dict(samples),
            error=status.last_error, audited=audits.tags, mismatches=audits.mismatches,
            audits_refused=audits.refused, audit_turn_s=audits.full_turn_s,
            canary_deaths=source.canaries.deaths,
            clock_skew_s=next((c.skew_s for c in source.canaries.of(source.streams) if c.server_ticks), None),
        )  # fmt: skip

    def _tags(self) -> dict[str, int]:
        """Count current values by quality; the state belongs to another thread, so this is a glance."""
        state = self._gateway.journal.state
        n = min(len(state.known), len(state.status))
        known = state.known[:n]
        counts = np.bincount(state.status[:n][known] >> np.uint32(30), minlength=4).tolist()
        found: Counter[str] = Counter(unknown=max(0, len(self._gateway.journal.tags) - int(known.sum())))
        for name, count in zip(QUALITY, counts, strict=True):
            found[name] += count
        return dict(found)

    def _journal(self) -> JournalFigures:
        gateway = self._gateway
        counters = gateway.ingest.counters
        stalled = gateway.ingest.stalled_since
        error = "" if stalled is None else f"the disk has refused for {time.monotonic() - stalled:.0f} s"
        return JournalFigures(
            error=error, size_bytes=gateway.journal.size_bytes,
            size_bytes_max=int(gateway.config.journal.max_gib * 2**30), wal_bytes=wal_bytes(gateway.path),
            unpushed_bytes=self._looked.backlog_bytes, bucket=bool(gateway.config.sync.bucket),
            commits=counters.commits, backlog_samples=self._looked.backlog_samples, commit_s=counters.commit_s_last,
        )  # fmt: skip

    def _sync(self) -> SyncFigures | None:
        pusher = self._gateway.pusher
        if pusher is None and not self._gateway.config.sync.bucket:
            return None
        status = pusher.status if pusher is not None else Status()
        since, traffic = self._looked.backlog_since, self._gateway.traffic
        state = "standby" if status.state == "following" and self._gateway.stands_by else status.state
        return SyncFigures(
            state=state, state_s=time.monotonic() - self._gateway.push_since, error=with_hint(status.error),
            lag_s=0.0 if since is None else max(0.0, time.time() - since), segments=status.segments,
            sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes, errors=traffic.errors,
            interval_s=status.interval_s,
            interval_s_max=self._gateway.config.sync.interval_s.max, seq=status.seq - 1 if status.seq else None,
        )  # fmt: skip

    def _mqtt(self) -> MqttFigures | None:
        publisher = self._gateway.publisher
        if publisher is None:
            return None
        status = publisher.status()
        names = MqttFigures.__dataclass_fields__
        return MqttFigures(**{name: getattr(status, name) for name in names})


def _look(path: Path, config: Config, before: _Looked) -> _Looked:
    reader = JournalReader.open(path)
    try:
        tally = reader.gap_tally(before.gaps_counted)
        backlog = reader.backlog(reader.settled())
    finally:
        reader.close()
    proved = verified.last(path.parent, verified.log_name(config))
    gaps = Counter(before.gaps) + Counter(tally.reasons)
    return _Looked(
        tally.open, dict(gaps), tally.last, backlog.rows, backlog.size_bytes, backlog.oldest_s,
        None if proved is None else proved.at, _certificates(config),
    )  # fmt: skip


def _certificates(config: Config) -> dict[str, float]:
    """Return when the certificates that the configuration names expire; one that cannot be read is left out."""
    files = own_certificates(config) | {"mqtt ca": config.mqtt.ca_file, "sync ca": config.sync.ca_file}
    found: dict[str, float] = {}
    for name, file in files.items():
        if file:
            with contextlib.suppress(ConfigError, OSError):
                found[name] = _expires_at(file, Path(file).stat().st_mtime_ns)
    return found


@lru_cache
def _expires_at(file: str, changed_ns: int) -> float:
    """Read a file again only when it has changed."""
    del changed_ns
    return expires_at(file)


def with_hint(error: MirrorError | None) -> str:
    """Return what is wrong and what to do; empty for no error."""
    if error is None:
        return ""
    return f"{error}; {error.hint}" if error.hint else str(error)


def _clock_offset_s() -> float | None:
    """Return the estimated error of a clock that something disciplines."""
    now = clock()
    return now.error_us / 1e6 if now is not None and now.synchronized else None


def _version() -> str:
    try:
        return version("edgemirror")
    except PackageNotFoundError:
        return "0"
