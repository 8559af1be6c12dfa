"""The texts speak of the project alone: no path of a machine it was written on, no package host."""

from __future__ import annotations

import re

import pytest

from tests.tidy.tree import ROOT, tracked

#: Assembled here, so that this file does not find itself.
FORBIDDEN = {
    "a folder of one machine": r"(?<![\w.])/(?:"
    + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me/\\w+"])
    + r")(?=[/\s\"'`:]|$)",
    "a package host": "|".join(
        [
            "deb" + r"\.debian\.org",
            "pypi" + r"\.org",
            "pythonhosted" + r"\.org",
            "registry" + r"\.npmjs",
            "artifact" + "-registry",
        ]
    ),
    "a working place": "|".join(
        [r"\bCE" + r"O\b", r"\.lib" + "rary/", r"[Ww]ork" + "place", r"\bbuil" + r"der [A-Z]\b"]
    ),
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
    texts = {p: (ROOT / p).read_text(errors="replace") for p in tracked() if (ROOT / p).suffix not in BINARY}
    assert {path: found for path, text in texts.items() if (found := forbidden(text))} == {}


@pytest.mark.parametrize(
    "text",
    ["cd /wo" "rk/main", "see /ro" "ot/.cache", "https://pypi" ".org/simple", "the CE" "O said", "buil" "der G wrote"],
)  # fmt: skip
def test_a_forbidden_word_is_found(text: str) -> None:
    assert forbidden(text) != []


@pytest.mark.parametrize(
    "text", ["/var/lib/edgemirror", "a network/root of trust", "pypi is a registry", "tree/rooted"]
)
def test_an_innocent_word_is_not_found(text: str) -> None:
    assert forbidden(text) == []
