"""What `edgemirror verify` tells the gateway of one log says nothing of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.io.verified import FILE, Verified, last, note


def test_the_last_verification_of_a_log_is_known_and_only_of_that_log(tmp_path: Path) -> None:
    assert last(tmp_path, "here") is None
    note(tmp_path, Verified("here", 1.0, 3))
    note(tmp_path, Verified("here", 2.0, 4))
    assert last(tmp_path, "here") == Verified("here", 2.0, 4)
    assert last(tmp_path, "elsewhere") is None
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_torn_file_is_no_verification_and_a_directory_that_is_away_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"log":"here","at":')
    assert last(tmp_path, "here") is None
    with pytest.raises(OSError):
        note(tmp_path / "nowhere", Verified("here", 1.0, 3))
