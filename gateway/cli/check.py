"""`edgemirror check`: every setting, what it will cost and whether it fits; with `--online`, who answers."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from typing import Any

import msgspec

from gateway.checkup import Finding, exit_code, judged, settings
from gateway.cli import server, terminal
from gateway.cli.run import load
from gateway.config import Config
from gateway.forecast import TAGS_ASSUMED, Prediction, Prices, assumed_tags, lines, predict
from mirror.errors import ConfigError


def check(options: argparse.Namespace) -> int:
    """Print findings and forecast; exit code 0, 1 if something failed, 3 if somebody is away."""
    from gateway.io import preflight

    _numbers(options)
    config = load(options.config)
    findings = [*settings(config), *preflight.offline(config)]
    answers = preflight.Answers()
    if options.online:
        with terminal.Progress(options) as progress:
            progress.show(f"0 of {len(config.source)} sources", now=True)
            answers = server.run(preflight.ask_sources(config.source, lambda text: progress.show(text, now=True)))
            findings += answers.findings
            if config.sync.bucket and not _unreadable(findings, "sync"):
                progress.show("bucket", now=True)
                findings += preflight.ask_bucket(config)
            if config.mqtt.url and not _unreadable(findings, "mqtt"):
                progress.show("broker", now=True)
                findings += preflight.ask_broker(config)
    tags, known_from = _tags(options, config, answers.tags)
    prices = Prices(options.price_put, options.price_get, options.price_gb)
    prediction = predict(config, tags, known_from, options.changes_per_s, prices, answers.limits)
    findings += judged(config, prediction)
    code = exit_code(findings)
    if options.json:
        print(json.dumps(_document(findings, prediction, code)))
    else:
        _print(options, findings, prediction, code)
    return code


def _numbers(options: argparse.Namespace) -> None:
    if options.tags is not None and options.tags < 0:
        raise ConfigError(f"--tags is {options.tags}; use 0 or more")
    for name in ("changes_per_s", "price_put", "price_get", "price_gb"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; use 0 or more")


def _unreadable(findings: list[Finding], part: str) -> bool:
    """Tell whether a file that this part needs has failed already: asking would only repeat it."""
    return any(f.level == "failed" and f.part.startswith(f"{part}.") for f in findings)


def _tags(options: argparse.Namespace, config: Config, asked: dict[str, int]) -> tuple[dict[str, int], str]:
    """Return tags by device and where that is known from: what was said, asked, journaled, or assumed."""
    from gateway.io import preflight

    if options.tags is not None:
        return assumed_tags(config, options.tags), f"{options.tags:,} for each source (--tags)"
    journaled = preflight.journal_tags(config)
    known = {**journaled, **asked}
    devices = [d.name for s in config.source for d in s.device]
    assumed = assumed_tags(config, TAGS_ASSUMED)
    tags = {name: known.get(name, assumed[name]) for name in devices}
    origin = Counter("asked" if n in asked else "the journal" if n in journaled else "assumed" for n in devices)
    if set(origin) == {"asked"}:
        return tags, "as the servers have them"
    told = ", ".join(
        f"{count} devices {'by ' if what == 'the journal' else ''}{what}" for what, count in origin.items()
    )
    return tags, f"{told}; {TAGS_ASSUMED:,} for a source of which nothing is known (--tags, --online)"


def _document(findings: list[Finding], prediction: Prediction, code: int) -> dict[str, Any]:
    forecast = msgspec.to_builtins({
        "tags": prediction.tags, "changes_per_s": prediction.changes_per_s, "cpu_share": prediction.cpu_share,
        "journal_bytes_per_day": prediction.journal_bytes_per_day, "bucket": prediction.bucket,
        "subscriptions": prediction.fits, "assumptions": prediction.assumptions,
    })  # fmt: skip
    return {"ok": code == 0, "findings": [f._asdict() for f in findings], "forecast": forecast}


def _print(options: argparse.Namespace, findings: list[Finding], prediction: Prediction, code: int) -> None:
    marks = {"ok": "ok", "warning": "warning", "failed": "FAILED", "away": "AWAY"}
    for finding in findings:
        terminal.table([(f"{marks[finding.level]:8}", finding.part, finding.text)])
        if finding.hint:
            terminal.table([(f"{'':8}", f"try: {finding.hint}")])
    print("\nforecast")
    terminal.table(lines(prediction), indent="  ")
    for sentence in prediction.assumptions:
        terminal.table([(f"  assumed: {sentence}",)])
    counted = Counter(f.level for f in findings)
    verdict = {0: "ready", 1: "NOT ready", 3: "somebody does not answer"}[code]
    print(f"\n{verdict}: {counted['failed']} failed, {counted['away']} away, {counted['warning']} warnings")
    named = "" if options.config == "gateway.toml" else f" --config {options.config}"
    following = f"edgemirror run{named}" if options.online else f"edgemirror check --online{named}"
    print(f"next: {following if code == 0 else 'mend what failed or is away, then repeat this command'}")
