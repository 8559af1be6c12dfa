"""The measurements of `edgemirror doctor`: clock, disk, journal, certificates, bucket.

It changes nothing that lasts: a scratch file beside the journal and scratch objects below the bucket's probe
prefix are deleted again. It runs beside a gateway or without one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway import doctor
from gateway.checkup import RENEW, own_certificates, validity
from gateway.config import Config
from gateway.doctor import Found
from gateway.io.clock import clock
from gateway.io.opening import log_layout, open_store
from gateway.io.reader import JournalReader, wal_bytes
from gateway.io.room import measure
from gateway.io.runtime import JOURNAL
from gateway.io.trust import dates
from mirror.errors import MirrorError
from mirror.io.s3 import together
from mirror.probe import probe

FSYNCS, FSYNC_BYTES = 20, 16 * 1024
WRITES = 5


def examine(config: Config) -> Iterator[Found]:
    """Yield what is found, part by part; what cannot be examined is found to be wrong."""
    parts: dict[str, Callable[[Config], list[Found]]] = {
        "clock": _clock, "disk": _disk, "space": _space, "journal": _journal, "certificate": _certificates,
        "store": _store,
    }  # fmt: skip
    for part, look in parts.items():
        try:
            yield from look(config)
        except MirrorError as error:
            yield Found(part, "fail", str(error), error.hint)
        except OSError as error:
            yield Found(part, "fail", f"{error.filename or part}: {error.strerror}", "check owner and rights")


def _clock(_config: Config) -> list[Found]:
    return [doctor.judge_clock(clock())]


def _disk(config: Config) -> list[Found]:
    """Write and sync a scratch file as often as says something."""
    directory = Path(config.replica.data_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = directory / f".doctor-{secrets.token_hex(4)}"
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        times = []
        for _ in range(FSYNCS):
            os.write(handle, os.urandom(FSYNC_BYTES))
            began = time.perf_counter()
            os.fdatasync(handle)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(handle)
        scratch.unlink()
    return [doctor.judge_fsync(times, config.journal.commit_ms)]


def _space(config: Config) -> list[Found]:
    path = Path(config.replica.data_dir) / JOURNAL
    return [doctor.judge_space(measure(path, config)), doctor.judge_wal(wal_bytes(path), str(path))]


def _journal(config: Config) -> list[Found]:
    path = Path(config.replica.data_dir) / JOURNAL
    if not path.exists():
        return [Found("journal", "ok", f"{path} is made at the first start")]
    reader = JournalReader.open(path)
    try:
        gaps, backlog = reader.gaps(open_only=True), reader.backlog(reader.settled())
    finally:
        reader.close()
    text = f"{backlog.rows:,} samples not in the bucket yet, {len(gaps)} open gaps"
    return [Found("journal", "warn" if gaps else "ok", text, "edgemirror gaps list --open" if gaps else "")]


def _certificates(config: Config) -> list[Found]:
    now = datetime.now(UTC)
    return [
        doctor.judged(validity(f"certificate {name}", *dates(Path(file)), now, RENEW))
        for name, file in own_certificates(config).items()
    ]


def _store(config: Config) -> list[Found]:
    if not config.sync.bucket:
        hint = "set sync.bucket to s3://BUCKET/PREFIX"
        return [Found("store", "warn", "no bucket is configured; the journal is the only copy", hint)]
    store, layout = open_store(config.sync), log_layout(config)
    key = f"{layout.probe}{secrets.token_hex(8)}"
    times = []
    try:
        for i in range(WRITES):
            began = time.perf_counter()
            store.put(key, b"%d" % i)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        with contextlib.suppress(MirrorError):
            store.delete(key)
    checks = probe(store.dialects(), layout.probe, secrets.token_hex(8), together).checks
    failed = [f"{c.name} ({c.detail})" for c in checks if c.required and not c.ok]
    warned = [f"{c.name}: {c.detail}" for c in checks if not c.required and not c.ok]
    return doctor.judge_store(times, failed, warned)
