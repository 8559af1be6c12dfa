"""The docs are complete: each error, verb, option, setting, metric and event stands on its page.

A name counts as documented where it stands in backticks on the page. What a page documents must exist
too, where that can be told. A page is demanded as soon as the module that it describes is there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT, modules

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


def test_every_event_that_is_logged_is_known() -> None:
    events = importlib.import_module("gateway.io.log").EVENTS
    logged = {
        (module.path, node.args[0].value)
        for module in modules("gateway")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "log" and node.args
        and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }  # fmt: skip
    assert sorted((path, name) for path, name in logged if name not in events) == []


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
    (tmp_path / "a.md").write_text("[gone](b.md) [here](a.md) [out](https://example.org)")
    assert links(tmp_path / "a.md") == ["b.md"]
