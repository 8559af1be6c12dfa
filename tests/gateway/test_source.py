"""What a source decides without a server; the rest is tested with real ones in tests/live."""

from __future__ import annotations

from gateway.io.attempts import AWAY_S, BACKOFF_S, pause_s
from gateway.io.sessions import Gone
from gateway.server import Refused
from mirror.errors import ConfigError, Corrupt, MirrorError, Unavailable


def test_a_server_that_is_away_is_tried_steadily_however_long_it_takes() -> None:
    away = Unavailable("connect: connection refused")
    assert [pause_s(away, n) for n in (0, 1, 50)] == [AWAY_S, AWAY_S, AWAY_S]


def test_a_server_that_refuses_is_asked_less_and_less_often() -> None:
    gone = Gone("Publish was refused", {"s1"})
    for error in (Refused("CreateSession", 0x80560000), ConfigError("not trusted"), Corrupt("nonsense"), gone):
        assert isinstance(error, MirrorError)
        assert [pause_s(error, n) for n in range(8)] == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
