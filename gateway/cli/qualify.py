"""`edgemirror qualify`: what a server can promise, found out without changing anything on it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gateway.browse import parse_root
from gateway.cli import server, terminal
from gateway.io.discover import discover
from gateway.io.qualify import trial
from gateway.offer import Offered
from gateway.plan import EVENT_RATE_HZ
from gateway.qualify import Promise, Trial, Tried, advice, promises
from mirror.errors import ConfigError

SECONDS_MAX = 60.0


def qualify(options: argparse.Namespace) -> int:
    """Print what was found and which promises hold in which mode."""
    if not (math.isfinite(options.seconds) and 1 <= options.seconds <= SECONDS_MAX):
        raise ConfigError(f"--seconds is {options.seconds}; use 1 to {SECONDS_MAX:g}, such as 4")
    source = server.source_of(options)
    parse_root(options.node)

    async def go() -> tuple[Offered, Trial]:
        progress.show("asking what it offers", now=True)
        offered = await discover(source.endpoint)
        offered.require(source.endpoint, source.security, source.user, certificate=bool(source.user_certificate_file))
        return offered, await trial(
            source, server.password_of(source), options.node, seconds=options.seconds,
            progress=lambda text: progress.show(text, now=True),
        )  # fmt: skip

    with terminal.Progress(options) as progress:
        offered, found = server.run(go())
    told = promises(found)
    if options.json:
        print(json.dumps(_document(offered, found, told)))
    else:
        _print(offered, found, told)
    return 0


def _document(offered: Offered, found: Trial, told: Sequence[Promise]) -> dict[str, Any]:
    facts = asdict(found)
    for name in ("second_session", "republish", "republish_missing", "transfer", "resume"):
        facts[name] = getattr(found, name)._asdict()
    return {
        "server": server.document(offered), "trial": {**facts, "overflow": found.overflow._asdict()},
        "sessions_left": found.said.sessions_left, "promises": [p._asdict() for p in told],
        "profile": None if found.profile is None else asdict(found.profile), "mode": advice(found),
    }  # fmt: skip


def _print(offered: Offered, found: Trial, told: Sequence[Promise]) -> None:
    said = found.said
    print(f"{said.product or offered.name} {said.version}".strip())
    rows = [
        ("application URI", offered.uri), ("manufacturer", said.manufacturer or "not told"),
        ("security", ", ".join(offered.securities)), ("sessions", _sessions(found)),
        ("most in a session", f"subscriptions: {_limit(said.subscriptions_per_session_max)}, items in each: "
         f"{_limit(said.items_per_subscription_max)}; items of the server: {_limit(said.items_max)}"),
        ("most in a call", f"read: {_limit(found.limits.read)}, browse: {_limit(found.limits.browse)}, monitor: "
         f"{_limit(found.limits.monitor)}, history: {_limit(found.limits.history)}"),
        ("sampling", f"{said.sample_ms_min:g} ms at best" if said.sample_ms_min else "no limit told"),
        ("publishing", f"{found.publishing_got_ms:g} ms for 100 asked"),
        ("queue", f"{found.queue_got} for {found.queue_asked} asked: {found.queue_got / EVENT_RATE_HZ:.1f} s at "
         f"{EVENT_RATE_HZ} changes/s; the most: {_limit(said.queue_size_max)}"),
        ("session life", f"{found.session_timeout_s:g} s"),
        ("history", f"{found.history_readable} of {found.variables} variables readable, {found.historizing} recorded"),
        ("second session", _tried(found.second_session)), ("Republish", _tried(found.republish)),
        ("  of nothing", "no message: good" if found.republish_missing.works else found.republish_missing.told),
        ("Transfer", _tried(found.transfer)), ("session resume", _tried(found.resume)),
        ("who stamps", _stamping(found)), ("overflow told", _tried(found.overflow)),
        ("publish time", _PUBLISH_TIME[found.publish_time]),
    ]  # fmt: skip
    terminal.table(rows, indent="  ")
    if found.profile is not None:
        print(f"\nknown of {found.profile.product} ({found.profile.source})")
        for note in (f"Transfer: {found.profile.transfer}", *found.profile.notes):
            terminal.table([(f"  {note}",)])
    print("\npromises")
    terminal.table([("mode", "promise", "holds", "because"), *((p.mode, p.promise, p.holds, p.because) for p in told)],
                   indent="  ")  # fmt: skip
    print(f"\nmode: {advice(found)}")


_PUBLISH_TIME = {True: "in each message", False: "null; the response's time is used", None: "no message came"}


def _limit(count: int) -> str:
    return f"{count:,}" if count else "not told"


def _sessions(found: Trial) -> str:
    said = found.said
    if said.sessions is None:
        return f"the most: {_limit(said.sessions_max)}; the server does not tell how many there are"
    left = "" if said.sessions_left is None else f", {said.sessions_left} left"
    return f"{said.sessions} now, this one included; the most: {_limit(said.sessions_max)}{left}"


def _tried(tried: Tried) -> str:
    return {True: "yes", False: "no", None: "unknown"}[tried.works] + f": {tried.told}"


def _stamping(found: Trial) -> str:
    told = {
        "S": "the source (S): two subscriptions gave the same stamps",
        "U": "the server, at sampling (U): two subscriptions gave different stamps, or none",
        "": "unknown: too little moved",
    }[found.stamping]
    return f"{told}; {found.compared} samples compared"
