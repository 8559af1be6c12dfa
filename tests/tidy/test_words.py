"""The texts speak of the project alone: no path of a machine it was written on, no package host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT, tracked

FORBIDDEN = {
    "a folder of one machine": r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)(?=[/\s\"'`:]|$)",
    "a package host": r"https?://[\w.-]*(?:pypi|pythonhosted|npm|debian|artifact|registry)[\w.-]*",
}
BINARY = {".parquet", ".bin", ".png", ".der", ".chunk"}


def forbidden(text: str) -> list[str]:
    """Return what is wrong with a text, with the place."""
    return [
        f"{what}: {match.group()!r} in line {text.count(chr(10), 0, match.start()) + 1}"
        for what, pattern in FORBIDDEN.items()
        for match in re.finditer(pattern, text, re.MULTILINE)
    ]


def test_texts_name_no_machine_and_no_host() -> None:
    here = str(Path(__file__).relative_to(ROOT))
    paths = [p for p in tracked() if p != here and (ROOT / p).suffix not in BINARY]
    texts = {p: (ROOT / p).read_text(errors="replace") for p in paths}
    assert {path: found for path, text in texts.items() if (found := forbidden(text))} == {}


@pytest.mark.parametrize(
    "text", ["cd /work/main", "see /root/.cache", "in /home/ann/x", "https://npm.example/is-number"]
)
def test_a_forbidden_word_is_found(text: str) -> None:
    assert forbidden(text) != []


@pytest.mark.parametrize(
    "text", ["/var/lib/edgemirror", "a network/root of trust", "pypi is a registry", "tree/rooted"]
)
def test_an_innocent_word_is_not_found(text: str) -> None:
    assert forbidden(text) == []
