"""Words of strangers on a terminal, in a file and as a name."""

from __future__ import annotations

import re
import tomllib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.plain import NAME_MAX, name_of, plain, toml_string

ANY = st.text(st.characters(exclude_categories=("Cs",)))


@given(st.text())
def test_what_is_shown_has_no_control_character_no_break_and_no_turn_of_direction(text: str) -> None:
    shown = plain(text)
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()


def test_what_is_shown_can_still_be_read() -> None:
    assert plain("Drehzahl °C 温度 <b>") == "Drehzahl °C 温度 <b>"
    assert plain("a\x1b[2Jb\nc\u202ed") == "a\\u001B[2Jb\\nc\\u202Ed"
    assert plain("x" * 10_000, 20) == "x" * 19 + "…"


@given(ANY)
def test_a_string_of_toml_reads_back_as_itself_on_one_visible_line(text: str) -> None:
    written = toml_string(text)
    assert tomllib.loads(f"a = {written}") == {"a": text}
    assert {unicodedata.category(c) for c in written} & {"Cc", "Cf", "Zl", "Zp"} == set()


@given(st.text(), st.sets(st.text(max_size=5)))
def test_a_name_is_one_that_the_configuration_takes_and_is_not_taken(text: str, taken: set[str]) -> None:
    name = name_of(text, taken)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) and name not in taken


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Presse 7", "Presse-7"), ("Überwachung", "Uberwachung"), ("温度", "device"), ("", "device"), ("../x", "x"),
        ("a" * 100, "a" * NAME_MAX), ("<script>alert(1)</script>", "script-alert-1-script"), ("-.-", "device"),
    ],
)  # fmt: skip
def test_a_name_keeps_what_can_be_kept(text: str, name: str) -> None:
    assert name_of(text) == name


def test_a_name_that_is_taken_gets_a_number_and_stays_short_enough() -> None:
    assert name_of("a", {"a", "a-2"}) == "a-3"
    long = "b" * NAME_MAX
    assert name_of(long, {long}) == "b" * (NAME_MAX - 2) + "-2"
