"""etcd as plants deploy it: three members, each a process that can be killed, frozen and started again."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.servers import Server, free_ports, until
from tests.live.servers import needs

READY_S = 30.0
HEARTBEAT_MS, ELECTION_MS = 50, 500


class Member(Server):
    """One member; started by its cluster."""

    def __init__(self, folder: Path, number: int, peers: list[int], port: int) -> None:
        super().__init__(folder)
        self.tool = needs("etcd")
        self.number, self.peers, self.ports = number, peers, [port]
        self.began = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        peer = f"http://127.0.0.1:{self.peers[self.number]}"
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(self.peers))
        state, self.began = ("existing" if self.began else "new"), True
        assert self.tool.path is not None
        return [
            self.tool.path, "--name", f"m{self.number}", "--data-dir", self.folder / "data",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster-token", "edgemirror-test", "--initial-cluster", cluster,
            "--initial-cluster-state", state,
            "--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS),
        ], self.tool.env  # fmt: skip

    def is_ready(self) -> bool:
        """Whether it runs; alone it cannot answer."""
        return self.process is not None and self.process.alive

    def answers(self) -> bool:
        """Whether it knows a leader."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False


class Etcd:
    """A cluster; a context manager."""

    def __init__(self, folder: Path, members: int = 3) -> None:
        needs("etcd")
        ports = free_ports(2 * members)
        self.members = [
            Member(folder / f"m{i}", i, ports[:members], ports[members + i]) for i in range(members)
        ]  # fmt: skip

    @property
    def endpoints(self) -> list[str]:
        return [member.url for member in self.members]

    def __enter__(self) -> Self:
        for member in self.members:
            member.start()
        until(lambda: all(member.answers() for member in self.members), "etcd with a leader", READY_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for member in self.members:
            if member.process is not None:
                member.process.thaw()
                member.process.kill()
