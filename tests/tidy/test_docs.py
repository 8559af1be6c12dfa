"""The docs are complete: each error, verb, option, setting, metric and event stands on its page.

A name counts as documented where it stands in backticks on the page. What a page documents must exist
too, where that can be told. A page is demanded as soon as the module that it describes is there.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT, Module, modules

DOCS = ROOT / "docs"
METRIC = re.compile(r"edgemirror_[a-z0-9_]*[a-z0-9]")


def page(name: str) -> str:
    """Return the text of a page of the docs; the test fails where it is missing."""
    path = DOCS / name
    assert path.exists(), f"docs/{name} is missing"
    return path.read_text()


def undocumented(names: Iterable[str], text: str) -> list[str]:
    """Return the names that do not stand in backticks (alone, or first in an inline code), or in a fence."""
    code = set(re.findall(r"`([^`\n]+)`", text))
    words = {word for span in code for word in re.split(r"[\s=,|{}\[\]()<>]+", span)}
    fenced = "\n".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))
    return [n for n in names if n not in words and not re.search(rf"(?<![\w.-]){re.escape(n)}(?![\w-])", fenced)]


def errors() -> list[str]:
    """Return the public error classes of all packages: subclasses of MirrorError by name."""
    known = {"MirrorError"}
    classes = [
        n for m in modules("mirror", "gateway", "cloud") for n in ast.walk(m.tree) if isinstance(n, ast.ClassDef)
    ]
    while True:
        more = {c.name for c in classes if known & {ast.unparse(b).split(".")[-1] for b in c.bases}} - known
        if not more:
            return sorted(name for name in known if not name.startswith("_"))
        known |= more


def verbs(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """Return the verbs of the command line, and the verbs of verbs, with their parsers."""
    root = parser or importlib.import_module("gateway.cli").parser()
    found: dict[str, argparse.ArgumentParser] = {}
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
            for choice in action.choices.values():
                found |= verbs(choice)
    return found


def test_every_error_class_is_in_the_docs() -> None:
    assert undocumented(errors(), page("errors.md")) == []


def test_every_verb_and_option_is_in_the_docs() -> None:
    text = page("cli.md")
    found = verbs()
    assert found
    options = {
        next((o for o in action.option_strings if o.startswith("--")), action.option_strings[0])
        for parser in found.values()
        for action in parser._actions
        if action.option_strings
    }
    assert undocumented(sorted(found) + sorted(options - {"--help"}), text) == []


def test_every_setting_is_in_the_docs_by_its_dotted_name() -> None:
    settings = importlib.import_module("gateway.config").settings()
    assert settings
    assert undocumented(settings, page("config.md")) == []


def test_every_metric_is_in_the_docs_and_every_documented_metric_exists() -> None:
    used = {f"edgemirror_{name}" for name in importlib.import_module("gateway.health").METRICS}
    assert len(used) > 20
    text = page("metrics.md")
    assert undocumented(sorted(used), text) == []
    suffixes = ("_bucket", "_sum", "_count")
    stale = {n for n in METRIC.findall(text) if not any(n == u or n in {u + s for s in suffixes} for u in used)}
    assert stale == set()


def test_every_event_is_in_the_docs() -> None:
    events = importlib.import_module("gateway.io.log").EVENTS
    assert undocumented(sorted(events), page("operations.md")) == []


TELLING = ("log", "_on_event", "tell", "_set_aside")  # at once, by a callback, after the commit, a message
EVENT = re.compile(r"[a-z0-9]+\.[a-z0-9_]+")


def told(module: Module) -> set[str]:
    """Return the names of the events that a module tells."""
    return {
        part.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in TELLING
        for argument in node.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and EVENT.fullmatch(part.value)
    }  # fmt: skip


def test_every_event_that_is_told_is_known_and_every_known_one_is_told() -> None:
    events = set(importlib.import_module("gateway.io.log").EVENTS)
    found = {name for module in modules("gateway") for name in told(module)}
    assert (sorted(found - events), sorted(events - found)) == ([], [])


def given(module: Module, name: str) -> set[str]:
    """Return the keywords that a module gives where it calls `name`; `*` for those that are computed."""
    return {
        keyword.arg or "*"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for keyword in node.keywords
    }  # fmt: skip


def test_every_figure_that_metrics_are_made_of_is_fed_by_the_survey() -> None:
    health, mqtt = importlib.import_module("gateway.health"), importlib.import_module("gateway.io.mqtt")
    [survey] = [module for module in modules("gateway") if module.path == "gateway/io/survey.py"]
    starved = {}
    for name in ("Figures", "SourceFigures", "JournalFigures", "SyncFigures", "MqttFigures"):
        fields = {field.name for field in dataclasses.fields(getattr(health, name))}
        fed = given(survey, name)
        if name == "MqttFigures":  # filled by name from the publisher's own counters
            assert fed == {"*"}
            fed = {field.name for field in dataclasses.fields(mqtt.Status)}
        starved[name] = fields - fed
    assert {name: missing for name, missing in starved.items() if missing} == {}


def links(path: Path) -> list[str]:
    """Return the relative links of a page whose target does not exist."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [
        t for t in targets if t and "://" not in t and not t.startswith("mailto:") and not (path.parent / t).exists()
    ]


@pytest.mark.parametrize("path", sorted(p for p in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    assert links(path) == []


def test_what_is_missing_on_a_page_is_found(tmp_path: Path) -> None:
    assert undocumented(["run", "sql"], "use `run` or sql") == ["sql"]
    assert undocumented(["sync.bucket"], "| `sync.bucket` | where |") == []
    assert undocumented(["--json"], "`edgemirror tail --json`") == []
    assert undocumented(["run"], "```\nedgemirror run -c FILE\n```") == []
    assert undocumented(["bucket"], "`sync.bucket`") == ["bucket"]
    snippet = Module("a.py", "log('a.b' if x else 'c.d', e='f')\nself._on_event('g.h', {})\nFigures(a=1, **b)")
    assert told(snippet) == {"a.b", "c.d", "g.h"}
    assert given(snippet, "Figures") == {"a", "*"}
    (tmp_path / "a.md").write_text("[gone](b.md) [here](a.md) [out](https://example.org)")
    assert links(tmp_path / "a.md") == ["b.md"]
