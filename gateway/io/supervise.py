"""A light parent of the gateway that issues its death certificate.

Who is dead cannot hold a lease, and nobody knows that sooner than the parent that has reaped the process. So the
gateway says, through a pipe that it inherits, which epoch it is about to ask for, before it asks; and when it is
reaped, the parent frees the register of just that holder, epoch and incarnation. A certificate for anything else
changes nothing: a new process of the same box may hold the lease by then.

It loads neither the OPC UA client nor the store's or Parquet's libraries before it has to.
What this module does not do: watch a gateway that stands still (its lease runs out), or decide who acts next.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from gateway.io.log import log
from mirror.errors import Conflict, MirrorError
from mirror.lease import EPOCH_MAX, Record, Register

ANNOUNCE = "EDGEMIRROR_ANNOUNCE"  # the environment's name for the pipe
LINE_BYTES_MAX = 4096
RELEASE_S = 5.0  # for so long a certificate is tried; then the lease has run out by itself
RETRY_S = 0.05
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 10.0
STEADY_S = 10.0
FINAL = (0, 2)  # it has ended in order, or only a person can mend it


class Announcer:
    """The gateway's end of the pipe; tells each epoch once, and waits for nobody."""

    def __init__(self, fd: int) -> None:
        self._fd, self._epoch = fd, -1
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)

    @staticmethod
    def of(environment: Mapping[str, str]) -> Announcer | None:
        """Return the pipe that the environment names, if it does."""
        text = environment.get(ANNOUNCE, "")
        if not text.isdecimal():
            return None
        try:
            os.fstat(int(text))
        except OSError:
            return None
        return Announcer(int(text))

    def __call__(self, record: Record) -> None:
        """Tell a record that is about to be asked for."""
        if record.epoch == self._epoch:
            return
        told = {"epoch": record.epoch, "holder": record.holder, "incarnation": record.incarnation}
        with contextlib.suppress(OSError):  # the parent is gone: then nobody certifies anything
            os.write(self._fd, json.dumps(told).encode() + b"\n")
            self._epoch = record.epoch


def certify(register: Register, dead: Record, *, clock: Callable[[], float] = time.monotonic) -> bool:
    """Free the register if a dead process holds it; tell whether it did.

    Args:
        register: Where the record stands.
        dead: Holder, epoch and incarnation of a process that was reaped.
        clock: Monotonic seconds.
    """
    end = clock() + RELEASE_S
    while True:
        try:
            found, version = register.read()
            if found is None or (found.epoch, found.holder, found.incarnation) != (
                dead.epoch, dead.holder, dead.incarnation,
            ):  # fmt: skip
                return False
            register.swap(found.released(), version)
            return True
        except Conflict:
            continue  # a renewal that was under way has landed
        except MirrorError:
            if clock() >= end:
                return False
            time.sleep(RETRY_S)


class Supervisor:
    """Runs a gateway, again and again, until it ends in order or is told to stop.

    Args:
        command: Starts it.
        open_register: Opens the lease's register; called when it is needed, and kept.
    """

    def __init__(self, command: Sequence[str], open_register: Callable[[], Register]) -> None:
        self._command, self._open_register = command, open_register
        self._register: Register | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Return the exit code of the last process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        pause_s = PAUSE_FIRST_S
        while True:
            began = time.monotonic()
            code, dead = self._live()
            if dead is not None:
                self._certify(dead, time.monotonic())
            if self._stopping or code in FINAL:
                return code if code >= 0 else 128 - code
            log("supervisor.restarting", code=code)
            pause_s = PAUSE_FIRST_S if time.monotonic() - began > STEADY_S else min(2 * pause_s, PAUSE_MAX_S)
            time.sleep(pause_s)

    def register(self) -> Register:
        """Return the register, opened once."""
        if self._register is None:
            self._register = self._open_register()
        return self._register

    def _live(self) -> tuple[int, Record | None]:
        """Run one process to its end; return how it ended, and what it had announced last."""
        read, write = os.pipe()
        environment = {**os.environ, ANNOUNCE: str(write)}
        environment.pop("WATCHDOG_PID", None)  # the manager watches the gateway, whose signs of life it takes
        try:
            self._process = process = subprocess.Popen(self._command, env=environment, pass_fds=(write,))
        finally:
            os.close(write)
        if self._stopping:
            process.terminate()
        last = _Last()
        pidfd = os.pidfd_open(process.pid)
        try:
            os.set_blocking(read, False)
            poll = select.poll()
            poll.register(read, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            while not any(fd == pidfd for fd, _ in poll.poll()):
                if not last.read(read):
                    poll.unregister(read)
            code = process.wait()
            last.read(read)
        finally:
            os.close(read)
            os.close(pidfd)
            self._process = None
        return code, last.record

    def _certify(self, dead: Record, reaped: float) -> None:
        try:
            done = certify(self.register(), dead)
        except Exception as error:  # the top of this task: the lease runs out by itself
            log("supervisor.certificate_failed", error=str(error) or repr(error))
            return
        if done:
            took_ms = round((time.monotonic() - reaped) * 1000)
            log("supervisor.certified", holder=dead.holder, epoch=dead.epoch, took_ms=took_ms)

    def _stop(self, number: int, _frame: object) -> None:
        self._stopping = True
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


class _Last:
    """What was announced last, as far as it is whole."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self._rest = b""

    def read(self, fd: int) -> bool:
        """Take what is there; False at the end of the pipe."""
        while True:
            try:
                data = os.read(fd, LINE_BYTES_MAX)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[-LINE_BYTES_MAX:]
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    told = json.loads(line)
                    epoch = int(told["epoch"])
                    if 0 <= epoch <= EPOCH_MAX:
                        self.record = Record(epoch, str(told["holder"]), str(told["incarnation"]), 0)


def command(config: str) -> list[str]:
    """Return what starts the gateway with a configuration."""
    return [sys.executable, "-m", "gateway", "run", "--config", config]
