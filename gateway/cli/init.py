"""`edgemirror init`: from a server's address, or a list of servers, to a configuration that can be run.

A file that exists is never written over. Without a terminal nothing is asked: whatever would need an answer
ends with the command that gives it. No certificate is trusted because it came first: a person names its
thumbprint, or says yes to it at a terminal.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway import draft
from gateway.cli import server, terminal
from gateway.cli.fleet import from_list
from gateway.config import Source, parse
from gateway.draft import Heading, SourceDraft
from gateway.io.discover import discover
from gateway.io.drafting import Visit, keep, own_certificate, refusal, visit
from gateway.io.files import write_new
from gateway.offer import Offered
from gateway.plain import name_of
from mirror.errors import ConfigError, MirrorError


@dataclass(frozen=True, slots=True)
class Place:
    """Where the file and what belongs to it go.

    Attributes:
        out: The file.
        pki: Folder for certificates, beside it.
        data_dir: The replica's.
        replica: Name of this box.
    """

    out: Path
    pki: Path
    data_dir: Path
    replica: str


def init(options: argparse.Namespace) -> int:
    """Write a configuration; print what it holds and the next command."""
    place = _place(options)
    if options.max < 1:
        raise ConfigError(f"--max is {options.max}; use 1 or more, such as 100000")
    if bool(options.servers) == bool(options.endpoint):
        raise ConfigError(
            "name one server, or a list of them", hint="edgemirror init opc.tcp://HOST:PORT, or --from servers.csv"
        )
    if options.servers:
        sources, away = from_list(options, own=lambda: own(options, place), trust_dir=trust_dir(options, place))
        offered = None
    else:
        if options.offline or options.template:
            raise ConfigError("--offline and --template go with --from servers.csv")
        drafted, offered = _one(options, place)
        sources, away = [drafted], 0
    heading = Heading(options.group, options.enterprise, options.site, place.replica, str(place.data_dir))
    text = draft.text(heading, sources)
    parse(text)  # what is written can be run
    try:
        write_new(place.out, text.encode(), 0o644)
    except OSError as error:
        raise ConfigError(
            f"{place.out} cannot be written: {error.strerror}", hint=f"ls -ld {place.out.parent}"
        ) from error
    _report(options, place, sources, offered, away)
    return 3 if away else 0


def _place(options: argparse.Namespace) -> Place:
    out = Path(options.out)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists and is not written over", hint="name another file with --out")
    folder = out.resolve().parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint=f"mkdir -p {shlex.quote(str(folder))}")
    ours = Path("/var/lib/edgemirror") if folder.is_relative_to("/etc") else folder / "edgemirror-data"
    data_dir = Path(options.data_dir).resolve() if options.data_dir else ours
    return Place(out, folder / "pki", data_dir, name_of(socket.gethostname(), otherwise="a"))


def own(options: argparse.Namespace, place: Place) -> tuple[str, str]:
    """Return the files of this gateway's certificate and key: those that were named, or its own, made if missing."""
    if options.certificate_file or options.key_file:
        if not (options.certificate_file and options.key_file):
            raise ConfigError("--certificate-file and --key-file belong together; name both or neither")
        return server.absolute(options.certificate_file), server.absolute(options.key_file)
    uri = f"urn:{place.replica}:edgemirror"
    certificate, key = own_certificate(place.pki / "own", uri, place.replica)
    return str(certificate), str(key)


def trust_dir(options: argparse.Namespace, place: Place) -> Path:
    """Return the folder of certificates that are accepted."""
    return Path(options.trust_dir).resolve() if options.trust_dir else place.pki / "trusted"


def _one(options: argparse.Namespace, place: Place) -> tuple[SourceDraft, Offered]:
    """Visit the one server that was named."""
    given = server.source_of(
        argparse.Namespace(**{**vars(options), "security": None, "user_certificate_file": None, "user_key_file": None})
    )
    with terminal.Progress(options) as progress:
        progress.show(f"asking {given.endpoint} what it offers", now=True)
        offered = server.run(discover(given.endpoint))
    if not options.json:
        terminal.table(server.describe(offered))
        print(flush=True)
    source = _secured(options, place, offered)
    offered.require(source.endpoint, source.security, source.user, certificate=bool(source.user_certificate_file))
    if source.security != "none":
        _trust(options, source, offered)
    found = _visit(options, source)
    if not found.drafts:
        raise ConfigError(
            f"{source.endpoint} shows no variables below Objects",
            hint=f"edgemirror browse {source.endpoint} i=84, or log in with --user",
        )
    taken = [d.device.name for d in found.drafts]
    name = name_of(offered.name, otherwise=taken[0])
    notes = [f"{offered.name or offered.uri}, {found.limits.product} {found.limits.version}".strip(", ")]
    if not found.complete:
        notes.append(f"Only the first {found.variables:,} variables were looked at; all below the roots are mirrored.")
    notes += draft.security_notes(source, offered)
    return SourceDraft(msgspec.structs.replace(source, name=name), tuple(found.drafts), tuple(notes)), offered


def _visit(options: argparse.Namespace, source: Source) -> Visit:
    with terminal.Progress(options) as progress:
        try:
            return server.run(visit(
                source, server.password_of(source), variables_max=options.max,
                progress=lambda nodes, n: progress.show(f"{nodes:,} nodes, {n:,} variables"),
            ))  # fmt: skip
        except MirrorError as error:
            if source.security != "none":
                file = source.certificate_file
                error.hint = f"accept this gateway's certificate {file} on the device, then repeat the command"
            raise


def _secured(options: argparse.Namespace, place: Place, offered: Offered) -> Source:
    """Return the source with its security; where one was asked for, with all that it needs."""
    certificate, key = "", ""
    if options.security and options.security != "none":
        offered.require(
            options.endpoint, options.security, options.user or "", certificate=bool(options.user_certificate_file)
        )
        certificate, key = own(options, place)
    folder = str(trust_dir(options, place)) if certificate else None
    given = argparse.Namespace(**{**vars(options), "trust_dir": folder})
    source = server.source_of(given, certificate_file=certificate, key_file=key)
    return msgspec.structs.replace(
        source,
        password_file=server.absolute(source.password_file),
        certificate_file=certificate,
        key_file=key,
        user_certificate_file=server.absolute(source.user_certificate_file),
        user_key_file=server.absolute(source.user_key_file),
    )


def _trust(options: argparse.Namespace, source: Source, offered: Offered) -> None:
    """See that the server's certificate is trusted, by a person's word if need be.

    Raises:
        ConfigError: It is not, with the command that a person who has compared it types.
    """
    folder = Path(source.trust_dir)
    refused = refusal(offered, folder)
    if refused is None:
        return
    facts = server.facts_of(offered)
    if facts is None:
        raise refused
    if options.accept and not facts.is_named(options.accept):
        raise ConfigError(f"--accept is {options.accept!r}; the server's thumbprint is {facts.sha1}")
    if not (options.accept or _yes(options)):
        again = shlex.join([*_again(options), "--accept", facts.sha1])
        raise ConfigError(
            f"{refused}", hint=f"compare the thumbprint with what the device itself shows; if it is the same: {again}"
        )
    keep(offered, folder)
    if (refused := refusal(offered, folder)) is not None:
        raise refused


def _again(options: argparse.Namespace) -> list[str]:
    """Return the command that was typed, as far as it decides about certificates."""
    given = {
        "--security": options.security, "--out": options.out if options.out != "gateway.toml" else "",
        "--user": options.user, "--password-file": options.password_file, "--trust-dir": options.trust_dir,
        "--certificate-file": options.certificate_file, "--key-file": options.key_file,
        "--user-certificate-file": options.user_certificate_file, "--user-key-file": options.user_key_file,
    }  # fmt: skip
    return ["edgemirror", "init", options.endpoint, *(x for k, v in given.items() if v for x in (k, v))]


def _yes(options: argparse.Namespace) -> bool:
    """Ask the person at the terminal; without one the answer is no."""
    if options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    print("This gateway does not trust the certificate yet. Compare the thumbprint with what the device itself shows.")
    return input("Is it the same? Type yes to trust it: ").strip().lower() == "yes"


def _report(
    options: argparse.Namespace, place: Place, sources: Sequence[SourceDraft], offered: Offered | None, away: int
) -> None:
    """Print what was written and what to type next."""
    named = [] if str(place.out) == "gateway.toml" else ["--config", str(place.out)]
    following = shlex.join(["edgemirror", "check", "--online", *named])
    many = sum(len(s.devices) for s in sources)
    if options.json:
        facts: dict[str, Any] = {
            "file": str(place.out), "next": following, "away": away,
            "sources": [
                {"name": s.source.name, "endpoint": s.source.endpoint, "security": s.source.security, "notes": s.notes,
                 "devices": [{**msgspec.to_builtins(d.device), "notes": d.notes} for d in s.devices]}
                for s in sources
            ],
        }  # fmt: skip
        if offered is not None:
            facts["server"] = server.document(offered)
        print(json.dumps(facts))
        return
    if len(sources) == 1:
        terminal.table([
            (d.device.name, f"sampling {d.device.sampling_ms:g} ms", f"publishing {d.device.publishing_ms:g} ms",
             "; ".join(d.notes[:1])) for d in sources[0].devices
        ], indent="  ")  # fmt: skip
    print(f"{place.out} is written: {len(sources)} source{'s' * (len(sources) > 1)}, {many} device{'s' * (many > 1)}")
    if sources[0].source.security != "none":
        print(f"The device has to accept this gateway's certificate too: {sources[0].source.certificate_file}")
    print(f"next: {following}")
