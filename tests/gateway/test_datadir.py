"""The key in the data directory: whole or not there, whatever ended the process that made it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.io import datadir
from mirror.errors import ConfigError, Unavailable


def test_a_key_that_a_kill_left_empty_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "session.key").touch(mode=0o600)
    with pytest.raises(FileNotFoundError):
        datadir.key(tmp_path, make=False)
    assert len(datadir.key(tmp_path, make=True)) == datadir.KEY_BYTES


@pytest.mark.parametrize("room", [0, 7])
def test_a_key_for_which_there_is_no_room_is_made_later_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(handle, data[:room])

    with monkeypatch.context() as patch:
        patch.setattr(datadir.os, "write", full)
        with pytest.raises(Unavailable, match="No space"):
            datadir.key(tmp_path, make=True)
    assert not (tmp_path / "session.key").exists()
    assert len(datadir.key(tmp_path, make=True)) == datadir.KEY_BYTES


def test_a_key_that_may_not_be_made_is_the_operator_s_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(datadir.os, "open", forbidden)
    with pytest.raises(ConfigError, match="Permission denied"):
        datadir.key(tmp_path, make=True)
