"""The canary: an item that changes by itself, in every subscription, so that silence means something.

A subscription whose devices are at rest and one whose server has stopped sampling look the same: keep-alives
come from both. So each subscription also monitors the server's own clock, which changes whatever the devices
do. Its rows are never samples. Once it has been heard a few times, so that it is known that this server lets
its clock be monitored, its silence means that the subscription is dead, whatever the keep-alives say.

What it does not do: decide what becomes of a dead subscription (`gateway.io.canary`), or judge a single tag
that is left out (`gateway.audit`).

Source: OPC UA Part 5, 6.3.10 (ServerStatus/CurrentTime, i=2258).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.server import MonitoredItem
from mirror.tags import Tag
from mirror.ticks import to_unix_s

HANDLE = 0x7FFF_FFFF  # no tag will ever have it; node-opcua makes 0 of the highest one
SAMPLING_MS = 1000.0
ITEM = MonitoredItem(HANDLE, Tag("", "http://opcfoundation.org/UA/", "i=2258"), SAMPLING_MS, 1)

TRUSTED_AFTER = 3  # times heard: some servers send their clock once and never again
SILENT_S_MIN = 5.0
SILENT_FACTOR = 3.0  # of the longest pause that it has made


@dataclass(slots=True)
class Canary:
    """What has been heard of one subscription's canary.

    Attributes:
        heard: How often.
        server_ticks: The server's clock, as heard last.
        skew_s: Server's clock less ours when it was heard last, to about a publishing interval.
        at_s: When that was, monotonic.
        pause_s: The longest pause between two.
        timeline, covered: Where the stream stood before it was heard last: nothing later is certain.
    """

    heard: int = 0
    server_ticks: int = 0
    skew_s: float = 0.0
    at_s: float = 0.0
    pause_s: float = 0.0
    timeline: str = ""
    covered: int = 0

    def hear(self, server_ticks: int, *, at: tuple[str, int], now_s: float, unix_s: float) -> None:
        """Take note of one more value.

        Args:
            server_ticks: The server's clock; 0 if it was not readable.
            at: Timeline of the stream, and publish time up to which it was complete before.
            now_s: Monotonic.
            unix_s: Our clock.
        """
        if self.heard:
            self.pause_s = max(self.pause_s, now_s - self.at_s)
        self.heard, self.at_s, (self.timeline, self.covered) = self.heard + 1, now_s, at
        if server_ticks:
            self.server_ticks, self.skew_s = server_ticks, to_unix_s(server_ticks) - unix_s

    @property
    def trusted(self) -> bool:
        """Whether its silence means anything."""
        return self.heard >= TRUSTED_AFTER

    def silent(self, now_s: float, *, since_s: float) -> bool:
        """Tell whether it has been silent for too long.

        Args:
            now_s: Monotonic.
            since_s: Since when somebody has listened without a break.
        """
        limit_s = max(SILENT_S_MIN, SILENT_FACTOR * self.pause_s)
        return self.trusted and now_s - max(self.at_s, since_s) > limit_s
