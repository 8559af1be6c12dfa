"""An event is one JSON line, whoever writes it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from gateway.io.log import log
from mirror.coverage import Reason


def test_an_event_is_one_json_line_with_its_facts_its_name_and_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    log("gap.opened", stream="prüfstand", reason=Reason.OVERFLOW, tags=3, path=Path("/x"))
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {"event": "gap.opened", "stream": "prüfstand", "reason": "overflow", "tags": 3, "path": "/x"}


def test_the_time_is_utc(capsys: pytest.CaptureFixture[str]) -> None:
    log("gateway.started")
    offset = datetime.fromisoformat(json.loads(capsys.readouterr().err)["time"]).utcoffset()
    assert offset is not None and not offset


def test_a_name_that_is_not_listed_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        log("gateway.exploded")


def test_a_line_that_nobody_takes_is_lost_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        for _ in range(3):
            log("gateway.started")
    log("gateway.stopped")  # the file is closed


def test_lines_of_several_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    def write(n: int) -> None:
        for _ in range(200):
            log("source.lost", source=str(n) * 200)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 800
    assert all(len(set(line["source"])) == 1 for line in lines)
