"""Servers of other people as child processes: an S3 store and an MQTT broker, on free loopback ports.

Each has a folder of its own, a process group of its own and is stopped by the pid that was started
here. A server counts as ready when it has done what it is for, never after a fixed wait; a port taken
in the moment between choosing and binding makes a second try. What this module does not do: fetch
programs, or listen anywhere but on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

STOP_S = 5.0
READY_S = 30.0
STARTS = 3
POLL_S = 0.02
PR_SET_PDEATHSIG = 1
PORT_TAKEN = ("in use", "is not available", "cannot be used")  # what servers say of a port that is somebody's
LOOPBACK = "127.0.0.1,localhost,::1"

_libc = ctypes.CDLL(None)


class NotReady(Exception):
    """A server ended or did not become ready in time; the text carries the end of its log."""


class Missing(NotReady):
    """A server's program is not on this machine; the text says how it comes there."""


def stay_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Take out of an environment what would lead a client of a loopback server elsewhere: proxies, AWS profiles."""
    for name in [name for name in environment if name.startswith("AWS_")]:
        del environment[name]
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = LOOPBACK


def free_ports(count: int) -> list[int]:
    """Return different TCP ports of 127.0.0.1 that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def until(condition: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
    """Ask again and again until a condition holds; NotReady after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"{what} not within {timeout_s:g} s")
        time.sleep(POLL_S)


class Process:
    """A child process with a process group of its own and a log file.

    The kernel kills it should this process die, so that a killed test run leaves nothing behind (only
    when started by the main thread: the signal is bound to the starting thread).
    """

    def __init__(
        self, command: Sequence[str | Path], folder: Path, name: str, env: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log_path = folder / f"{name}.log"
        bound = threading.current_thread() is threading.main_thread()
        with self.log_path.open("ab") as log:
            self.popen: subprocess.Popen[bytes] = subprocess.Popen(
                [str(c) for c in command], cwd=folder, env={**os.environ, **(env or {})}, start_new_session=True,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL, stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                preexec_fn=_die_with_parent if bound else None,  # noqa: PLW1509 - one system call, no lock
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def stdin(self) -> IO[bytes]:
        assert self.popen.stdin is not None
        return self.popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.popen.stdout is not None
        return self.popen.stdout

    def log(self) -> str:
        """Return the end of what it wrote."""
        return self.log_path.read_text(errors="replace")[-2000:]

    def ready(self, condition: Callable[[], bool], timeout_s: float = READY_S) -> None:
        """Wait until a condition holds; NotReady if the process ends before or the time runs out."""

        def holds() -> bool:
            if not self.alive:
                raise NotReady(f"{self.name} ended with {self.popen.returncode}:\n{self.log()}")
            return condition()

        try:
            until(holds, f"{self.name} ready", timeout_s)
        except NotReady as error:
            self.kill()
            raise NotReady(f"{error}\n{self.log()}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group; nothing if it has ended."""
        if self.alive:
            os.killpg(self.pid, number)

    def stop(self) -> int:
        """End it with SIGTERM, after STOP_S with SIGKILL; return the exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        return self._reap()

    def kill(self) -> int:
        """End it with SIGKILL, as a crash would; return the exit code."""
        self.signal(signal.SIGKILL)
        return self._reap()

    def freeze(self) -> None:
        """Stop it in its tracks; its sockets stay open."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def _reap(self) -> int:
        code = self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):  # unread commands to a process that is gone
                    pipe.close()
        return code


class Server:
    """A server that can be stopped, killed and started again on the same ports and folder.

    A subclass gives `ports` its number of ports, and implements `command` and `is_ready`.
    """

    ports_needed = 1
    pipes = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: list[int] = []
        self.process: Process | None = None

    @property
    def port(self) -> int:
        return self.ports[0]

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        """Return the command line and additional environment for the present ports."""
        raise NotImplementedError

    def started(self, process: Process) -> None:
        """Take note of a new process, before anything waits for it."""

    def is_ready(self) -> bool:
        """Tell whether the server does what it is for."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start and wait until ready; ports are chosen at the first start and kept."""
        assert self.process is None or not self.process.alive, "already running"
        fresh = not self.ports
        for attempt in range(STARTS):
            if fresh:
                self.ports = free_ports(self.ports_needed)
            try:
                command, env = self.command()
                self.process = Process(command, self.folder, type(self).__name__.lower(), env, self.pipes)
                self.started(self.process)
                self.process.ready(self.is_ready)
                return self
            except NotReady as error:
                if attempt == STARTS - 1 or not any(words in str(error) for words in PORT_TAKEN):
                    self.stop()
                    raise
            except BaseException:  # interrupted while it started: nobody else knows of it yet
                self.stop()
                raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def __enter__(self) -> Self:
        return self if self.process is not None and self.process.alive else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Weed(Server):
    """SeaweedFS, all of it in one process, as an S3 store; telemetry off, nothing but 127.0.0.1.

    Args:
        folder: Where it keeps its data.
        bucket: Created before it counts as ready; at least 3 characters.
        certificate: Server certificate and key for an HTTPS listener beside the HTTP one.
        create_buckets: Whether a PUT into a bucket that does not exist creates it (the server's default).
    """

    ports_needed = 11
    access_key = "admin"
    secret_key = "secretsecret"
    region = "us-east-1"

    def __init__(
        self, folder: Path, *, bucket: str = "mirror", certificate: tuple[Path, Path] | None = None,
        create_buckets: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(folder)
        self.bucket = bucket
        self.certificate = certificate
        self.create_buckets = create_buckets
        self._sockets: Path | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_endpoint(self) -> str:
        return f"https://127.0.0.1:{self.ports[10]}"

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        if self._sockets is None:  # a socket's path has at most 107 bytes, so a deep folder will not do
            self._sockets = Path(tempfile.mkdtemp(prefix="weed-"))
        names = ("s3", "master", "filer", "volume", "admin")
        ports = [
            f"-{name}.port{suffix}={self.ports[2 * i + j]}"
            for i, name in enumerate(names)
            for j, suffix in enumerate(("", ".grpc"))
        ]
        tls = []
        if self.certificate is not None:
            cert, key = self.certificate
            tls = [f"-s3.port.https={self.ports[10]}", f"-s3.cert.file={cert}", f"-s3.key.file={key}"]
        create = str(self.create_buckets).lower()
        command: list[str | Path] = [
            program("weed"), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            "-admin.ui=false", "-webdav=false", *ports, "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.localSocket={self._sockets}/s3.sock", f"-s3.autoCreateBucket={create}", *tls,
        ]  # fmt: skip
        # It writes logs into TMPDIR.
        env = {
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "TMPDIR": str(self._sockets),
        }  # fmt: skip
        return command, env

    def stop(self) -> None:
        super().stop()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        for port in self.ports:  # it leaves these behind, named by port
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def client(self, *, tls_ca: Path | None = None, secret_key: str | None = None, **config: Any) -> Any:
        """Return a boto3 S3 client for it, without hidden retries."""
        import boto3  # noqa: PLC0415 - only who asks for a client pays for it
        from botocore.config import Config  # noqa: PLC0415

        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"}, "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required", "retries": {"max_attempts": 0, "mode": "standard"},
            "connect_timeout": 1, "read_timeout": 5,
        }  # fmt: skip
        return boto3.client(
            "s3", endpoint_url=self.tls_endpoint if tls_ca else self.endpoint, region_name=self.region,
            aws_access_key_id=self.access_key, aws_secret_access_key=secret_key or self.secret_key,
            verify=str(tls_ca) if tls_ca else None, config=Config(**settings | config),
        )  # fmt: skip

    def is_ready(self) -> bool:
        if not _answers(f"{self.endpoint}/healthz"):
            return False
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        client = self.client()
        try:
            held = [b["Name"] for b in client.list_buckets()["Buckets"]]
            if self.bucket not in held:
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True


class Broker(Server):
    """An embedded MQTT 3.1.1 broker from a wheel (iotcore); keeps nothing across a restart."""

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        return [sys.executable, "-m", "iotcore", "--listen", "127.0.0.1", "--port", str(self.port)], {}

    def is_ready(self) -> bool:
        return mqtt_answers(self.port)


def mqtt_answers(port: int) -> bool:
    """Tell whether an MQTT broker accepts a 3.1.1 client; the client leaves at once."""
    hello = b"\x10\x13\x00\x04MQTT\x04\x02\x00\x05\x00\x07probing"
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as s:
            s.settimeout(1.0)
            s.sendall(hello)
            answer = s.recv(4)
            s.sendall(b"\xe0\x00")
            return answer == b"\x20\x02\x00\x00"
    except OSError:
        return False


def program(name: str) -> Path:
    """Return a program that a wheel put beside this Python, or one of the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Missing(f"{name} is missing: install the extra `demo` (pip install '.[demo]')")
    return Path(found)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
