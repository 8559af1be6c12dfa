"""`edgemirror trust`: who is trusted, who was refused and why; and a new certificate for this gateway.

A running gateway looks at its trust folders: what is accepted here takes effect within seconds, and who is taken
out loses the session.
"""

from __future__ import annotations

import argparse
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.checkup import EXPIRY_DAYS
from gateway.cli.run import load
from gateway.config import Config
from gateway.io import trustlist
from gateway.io.renewal import renew
from gateway.io.trustlist import REJECTED, Entry
from gateway.plain import plain
from mirror.errors import ConfigError

TEXT_MAX = 200


def trust(options: argparse.Namespace) -> int:
    """Carry out the verb's own verb."""
    config = load(options.config)
    if options.action == "renew":
        return _renew(config, options)
    folders = {Path(source.trust_dir) for source in config.source if source.trust_dir}
    if not folders:
        raise ConfigError(
            "no source has a trust_dir: with security none nobody is checked",
            hint="edgemirror init ENDPOINT --security Basic256Sha256:SignAndEncrypt",
        )
    known = trustlist.entries(folders)
    act = {"list": _list, "show": _show, "accept": _accept, "reject": _reject}
    return act[options.action](known, options)


def _list(known: list[Entry], options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps([_facts(entry) for entry in known]))
        return 0
    for entry in known:
        until = f"{_days(entry):,} days" if _days(entry) >= 0 else "EXPIRED"
        uri = plain(" ".join(entry.facts.uris) or entry.facts.subject, TEXT_MAX)
        print(f"{entry.facts.sha1.lower()}  {entry.state:<8}  {until:>10}  {uri}")
        if entry.refusal.reason:
            print(f"  {plain(entry.refusal.reason, TEXT_MAX)}")
    waiting = [entry for entry in known if entry.state == REJECTED]
    if waiting:
        print(f"next, if the device itself shows that thumbprint: edgemirror trust accept {_short(waiting[0])}")
    return 0


def _show(known: list[Entry], options: argparse.Namespace) -> int:
    for entry in trustlist.find(known, options.thumbprint):
        facts = _facts(entry)
        if options.json:
            print(json.dumps(facts))
        else:
            for name, value in facts.items():
                print(f"{name:<12} {plain(', '.join(value) if isinstance(value, list) else str(value), TEXT_MAX)}")
            print()
    return 0


def _accept(known: list[Entry], options: argparse.Namespace) -> int:
    files = [trustlist.accept(entry) for entry in trustlist.find(known, options.thumbprint, REJECTED)]
    return _moved(files, "trusted from now on", options)


def _reject(known: list[Entry], options: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    files = [trustlist.reject(entry, now) for entry in trustlist.find(known, options.thumbprint, "trusted")]
    return _moved(files, "not trusted any more; a session with it ends within seconds", options)


def _moved(files: list[Path], what: str, options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({"files": [str(file) for file in files]}))
    else:
        for file in files:
            print(f"{file}: {what}")
    return 0


def _renew(config: Config, options: argparse.Namespace) -> int:
    """Make a new certificate for the key of each certificate that the configuration names."""
    pairs = {(s.certificate_file, s.key_file) for s in config.source if s.certificate_file}
    if not pairs:
        raise ConfigError("no source has a certificate_file", hint="edgemirror init ENDPOINT --security POLICY:MODE")
    made = [renew(Path(certificate), Path(key), datetime.now(UTC)) for certificate, key in sorted(pairs)]
    if options.json:
        print(json.dumps([{"file": str(m.file), "kept": str(m.kept), "until": m.until.isoformat()} for m in made]))
        return 0
    for m in made:
        print(f"{m.file}: valid to {m.until:%Y-%m-%d}, same key and URI; the former one is {m.kept}")
    print("Servers that trust the exact certificate have to be given the new one; others notice nothing.")
    print(f"It is taken at the next connection: systemctl restart edgemirror, or mv {shlex.quote(str(made[0].kept))}"
          f" {shlex.quote(str(made[0].file))} to go back.")  # fmt: skip
    return 0


def _facts(entry: Entry) -> dict[str, Any]:
    f = entry.facts
    return {
        "state": entry.state, "sha1": f.sha1.lower(), "sha256": f.sha256.lower(), "subject": f.subject,
        "issuer": f.issuer, "uris": list(f.uris), "hosts": list(f.hosts), "from": f.begin.isoformat(),
        "to": f.end.isoformat(), "key": f.key, "file": str(entry.file), "source": entry.refusal.source,
        "reason": entry.refusal.reason, "refused_at": entry.refusal.at, "expires_soon": _days(entry) < EXPIRY_DAYS,
    }  # fmt: skip


def _days(entry: Entry) -> int:
    return (entry.facts.end - datetime.now(UTC)).days


def _short(entry: Entry) -> str:
    return entry.facts.sha1[:12].lower()
