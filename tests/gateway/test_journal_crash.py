"""What a crash leaves of the journal: killed at every step, and with the power cut at every write.

The same script of transactions runs each time; each holds two chunks, coverage, sometimes a gap and some
state rows. After the crash everything acknowledged must be there, and each transaction must be there as a
whole or not at all. Both tests have controls: writers that are wrong in a known way, and must be caught.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.io import journal as journal_module
from gateway.io.journal import Journal, JournalReader
from mirror import chunk
from mirror.coverage import Coverage, Gap, Reason
from mirror.errors import Corrupt, MirrorError, Unavailable
from tests.gateway.disk import Recorder, cut
from tests.gateway.journals import ORIGIN, STREAM, TIMELINE, doubles, fold, fresh, same

STEPS = 6
CUTS = 300


class Damage(Exception):
    """A crash left what must not be."""


def work(journal: Journal, acknowledge: Callable[[int], object], *, early: bool = False, torn: bool = False) -> None:
    """Run the script. `early` acknowledges before the commit; `torn` commits coverage by itself."""
    for step in range(1, STEPS + 1):
        if early:
            acknowledge(step)
        with journal.transaction():
            for part in (0, 1):
                journal.append(STREAM, TIMELINE, step - 1, step, ORIGIN, doubles(2 * step + part, range(part, 6)))
            if not torn:
                journal.extend(Coverage(STREAM, TIMELINE, step - 1, step, ORIGIN))
            if step % 3 == 0:
                journal.open_gap(Gap.opened(STREAM, TIMELINE, step, Reason.MISSED))
            journal.flush_state(4)
        if torn:
            with journal.transaction():
                journal.extend(Coverage(STREAM, TIMELINE, step - 1, step, ORIGIN))
        if not early:
            acknowledge(step)
        journal.maintain()


def inspect(path: Path, acknowledged: int) -> int:
    """Open what a crash left and return the number of transactions in it; Damage if something is wrong."""
    try:
        journal = Journal.open(path, replica="a")
    except Corrupt as error:
        raise Damage(f"corrupt: {error}") from error
    try:
        reader = JournalReader.open(path)
        chunks = reader.chunks_since(0)
        found, half = divmod(len(chunks), 2)
        covered = [(c.start, c.end) for c in reader.coverage()]
        gaps = [gap.start for gap in reader.gaps()]
        if half or [row.seq for row in chunks] != list(range(1, len(chunks) + 1)):
            raise Damage("half a transaction")
        if covered != ([(0, found)] if found else []) or gaps != [s for s in range(1, found + 1) if s % 3 == 0]:
            raise Damage("chunks, coverage and gaps were torn apart")
        if found < acknowledged:
            raise Damage(f"{acknowledged} acknowledged, {found} found")
        folded = fold(chunk.decode(row.body) for row in chunks)
        if not same(journal.state, folded) or not same(reader.state(), folded):
            raise Damage("the state is not the fold of the chunks")
        reader.close()
        return found
    except MirrorError as error:
        raise Damage(f"unreadable: {error}") from error
    finally:
        journal.close()


@pytest.fixture(autouse=True)
def small_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint every few transactions, so that crashes fall into checkpoints too."""
    monkeypatch.setattr(journal_module, "WAL_PAGES", 20)


# Killed


def run_killed(directory: Path, at: int, **how: bool) -> tuple[int, bool]:
    """Run the script in a child that kills itself at its step `at`; return what it acknowledged, and if it ended.

    A step is the start of an SQL statement, or a write, truncation or sync of a file.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            left = [at]

            def step() -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            def traced(*_what: object) -> bool:
                step()
                return True

            disk = Recorder("killed", on_step=step)
            journal = Journal.open(directory / "mirror.db", replica="a", state_period_s=3600, vfs=disk.name)
            journal._db.exec_trace = traced
            work(journal, lambda _step: os.write(send, b"."), **how)
            journal.close()
            os._exit(0)
        except BaseException:
            os._exit(9)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        acknowledged = len(pipe.read())
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the script failed by itself"
    return acknowledged, os.WIFEXITED(status)


def kill_everywhere(tmp_path: Path, every: int = 1, **how: bool) -> Iterator[tuple[int, int]]:
    """Yield what was acknowledged and found for each step at which the child was killed."""
    start = tmp_path / "start"
    fresh(start).close()
    ended, at = False, 1
    while not ended:
        directory = tmp_path / str(at)
        directory.mkdir()
        shutil.copy(start / "mirror.db", directory)
        acknowledged, ended = run_killed(directory, at, **how)
        yield acknowledged, inspect(directory / "mirror.db", acknowledged)
        shutil.rmtree(directory)
        at += every


def test_nothing_acknowledged_is_missing_and_nothing_torn_wherever_the_process_is_killed(tmp_path: Path) -> None:
    rounds = list(kill_everywhere(tmp_path))
    assert len(rounds) > 150
    assert {acknowledged for acknowledged, _ in rounds} == set(range(STEPS + 1))
    assert any(found > acknowledged for acknowledged, found in rounds), "killed between commit and acknowledgement"


@pytest.mark.parametrize(("wrong", "found"), [("early", "acknowledged"), ("torn", "torn apart")])
def test_a_writer_that_is_wrong_is_caught_by_killing_it(tmp_path: Path, wrong: str, found: str) -> None:
    with pytest.raises(Damage, match=found):
        list(kill_everywhere(tmp_path, 3, **{wrong: True}))


# Power cut


@contextmanager
def recorded(tmp_path: Path, synchronous: str | None) -> Iterator[tuple[dict[str, bytes], Recorder]]:
    """Run the script on a recording disk; yield the file before it and what was done to it.

    `synchronous` None leaves it as the journal sets it.
    """
    start = tmp_path / "start"
    fresh(start).close()
    before = {"mirror.db": (start / "mirror.db").read_bytes()}
    disk = Recorder(f"recorded-{synchronous}")
    try:
        journal = Journal.open(start / "mirror.db", replica="a", state_period_s=3600, vfs=disk.name)
        if synchronous is not None:
            journal._db.execute(f"PRAGMA synchronous = {synchronous}")
        work(journal, lambda step: disk.note(str(step)))
        journal.close()
        yield before, disk
    finally:
        disk.close()


def cut_everywhere(tmp_path: Path, synchronous: str | None) -> list[str]:
    """Cut the power at many places; return the damage of each cut, empty where there was none."""
    out = []
    with recorded(tmp_path, synchronous) as (before, disk):
        for round_ in range(CUTS):
            chance = random.Random(round_)
            at = round_ % (len(disk.acts) + 1)
            directory = tmp_path / "cut"
            directory.mkdir()
            for name, data in cut(before, disk.acts, at, chance).items():
                (directory / name).write_bytes(data)
            try:
                inspect(directory / "mirror.db", sum(act.what == "note" for act in disk.acts[:at]))
                out.append("")
            except Damage as damage:
                out.append(str(damage))
            shutil.rmtree(directory)
    return out


def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    assert [damage for damage in cut_everywhere(tmp_path, None) if damage] == []


def test_a_power_cut_shows_what_a_weaker_setting_forgets(tmp_path: Path) -> None:
    """The control: without a sync at each commit acknowledged transactions are lost."""
    lost = [damage for damage in cut_everywhere(tmp_path, "NORMAL") if damage]
    assert any("acknowledged" in damage for damage in lost)
    assert all("acknowledged" in damage for damage in lost), "NORMAL forgets, but does not corrupt"


def test_a_power_cut_shows_what_no_sync_at_all_destroys(tmp_path: Path) -> None:
    lost = [damage for damage in cut_everywhere(tmp_path, "OFF") if damage]
    assert len(lost) > CUTS // 4
    assert any("corrupt" in damage for damage in lost)


# Syncs that fail


def patiently(journal: Journal, acknowledge: Callable[[int], object], *, trusting: bool) -> int:
    """Run the script on a disk that fails, as the ingest thread does: what was refused is tried again, whole.

    `trusting` acknowledges what was refused and counts on the next sync. Return the number of failures.
    """
    failures = 0
    for step in range(1, STEPS + 1):
        done = False
        while not done:
            assert failures < 500, "it never gets through"
            try:
                with journal.transaction():
                    for part in (0, 1):
                        batch = doubles(2 * step + part, range(part, 6))
                        journal.append(STREAM, TIMELINE, step - 1, step, ORIGIN, batch)
                    journal.extend(Coverage(STREAM, TIMELINE, step - 1, step, ORIGIN))
                    if step % 3 == 0:
                        journal.open_gap(Gap.opened(STREAM, TIMELINE, step, Reason.MISSED))
                    journal.flush_state(4)
                done = True
            except Unavailable:
                failures += 1
                done = trusting
        acknowledge(step)
        try:
            journal.maintain()
        except Unavailable:
            failures += 1
    return failures


def fail_and_cut(tmp_path: Path, seed: int, *, trusting: bool = False) -> int:
    """Run the script once with syncs that fail, cut the power at many places; return the number of failures."""
    folder, chance = tmp_path / f"run{seed}", random.Random(seed)
    disk = Recorder(f"failing-{seed}-{trusting}")
    try:
        fresh(folder).close()
        journal = Journal.open(folder / "mirror.db", replica="a", state_period_s=3600, vfs=disk.name)
        disk.acts.clear()
        before = {name: (folder / name).read_bytes() for name in ("mirror.db", "mirror.db-wal")}
        disk.sync_fails = lambda file: chance.random() < 0.35
        failures = patiently(journal, lambda step: disk.note(str(step)), trusting=trusting)
        disk.sync_fails = lambda file: False
        for round_ in range(40):
            at = round_ * (len(disk.acts) + 1) // 40
            directory = tmp_path / "cut"
            directory.mkdir()
            for name, data in cut(before, disk.acts, at, random.Random(round_)).items():
                (directory / name).write_bytes(data)
            inspect(directory / "mirror.db", sum(act.what == "note" for act in disk.acts[:at]))
            shutil.rmtree(directory)
        journal.close()
        assert inspect(folder / "mirror.db", STEPS) == STEPS
        return failures
    finally:
        disk.close()


def test_a_sync_that_fails_is_never_taken_for_one_that_the_next_makes_good(tmp_path: Path) -> None:
    """The kernel forgets what it could not write, and the next sync succeeds: only writing it again helps."""
    assert sum(fail_and_cut(tmp_path, seed) for seed in range(10)) > 40


def test_a_writer_that_trusts_a_sync_that_failed_is_caught(tmp_path: Path) -> None:
    with pytest.raises(Damage, match="acknowledged"):
        for seed in range(10):
            fail_and_cut(tmp_path, seed, trusting=True)
