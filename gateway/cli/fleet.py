"""`edgemirror init --from`: a list of servers becomes one configuration, several visited at a time.

A server that is away, or does not let us in yet, stops nobody: its source is written all the same, with a
comment that says why, and mirrors everything below Objects until its devices are narrowed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway import draft
from gateway.cli import server, terminal
from gateway.config import Device, Source, check_user
from gateway.draft import SourceDraft
from gateway.inventory import Row, Template, check_names, instances, read_list, read_template
from gateway.io.discover import discover
from gateway.io.drafting import keep, refusal, visit
from gateway.offer import Offered
from gateway.propose import DeviceDraft
from mirror.errors import ConfigError, MirrorError

TOGETHER = 8  # servers visited at once

Own = Callable[[], tuple[str, str]]


def from_list(options: argparse.Namespace, *, own: Own, trust_dir: Path) -> tuple[list[SourceDraft], int]:
    """Return the sources of a list, and how many of their servers could not be visited.

    Raises:
        ConfigError: The list or a template is wrong.
    """
    if options.accept:
        raise ConfigError("--accept names the certificate of one server; with --from, see what is in pki/rejected")
    rows = read_list(_text(options.servers), options.servers, security=options.security or "none",
                     template=options.template)  # fmt: skip
    templates = _templates(rows, Path(options.servers).parent, options.template)
    sources = [_source(row, options, own, trust_dir) for row in rows]
    made = {row.row: instances(templates[row.template], row) for row in rows if row.template}
    check_names([(row, device) for row in rows for device in made.get(row.row, ())], options.servers)
    if options.offline:
        drafts = [
            _draft(row, source, made, "written without asking the server.")
            for row, source in zip(rows, sources, strict=True)
        ]
        return _distinct(drafts), 0
    with terminal.Progress(options) as progress:
        return server.run(_visits(options, rows, sources, made, progress))


def _text(file: str) -> str:
    try:
        return Path(file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text", hint="save it as CSV UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error


def _templates(rows: list[Row], folder: Path, default: str) -> dict[str, Template]:
    """Read each template once; those that rows name stand beside the list."""
    found: dict[str, Template] = {}
    for row in rows:
        if row.template and row.template not in found:
            path = Path(default) if row.template == default else folder / row.template
            if not path.is_file():
                raise ConfigError(f"row {row.row}, column template: {path} is no file; leave the cell empty to browse")
            found[row.template] = read_template(_text(str(path)), str(path))
    return found


def _source(row: Row, options: argparse.Namespace, own: Own, trust_dir: Path) -> Source:
    certificate, key = own() if row.security != "none" else ("", "")
    user, password_file = row.user, row.password_file
    if not user and options.user:
        user, password_file = options.user, options.password_file or ""
    if user and not password_file:
        raise ConfigError("--user needs --password-file: a file that holds the password", hint="chmod 600 it")
    source = Source(
        name=row.name, endpoint=row.endpoint, security=row.security,  # type: ignore[arg-type]  # checked by the list
        user=user, password_file=str(Path(password_file).resolve()) if password_file else "",
        certificate_file=certificate, key_file=key, trust_dir=str(trust_dir) if certificate else "",
        device=[server.EVERYTHING], password_in_clear=bool(user) and options.password_in_clear,
        user_certificate_file="" if user else server.absolute(options.user_certificate_file),
        user_key_file="" if user else server.absolute(options.user_key_file),
    )  # fmt: skip
    check_user(source, row.name)
    return source


async def _visits(
    options: argparse.Namespace, rows: list[Row], sources: list[Source], made: dict[int, list[Device]],
    progress: terminal.Progress,
) -> tuple[list[SourceDraft], int]:  # fmt: skip
    gate = asyncio.Semaphore(TOGETHER)
    done = 0

    async def one(row: Row, source: Source) -> tuple[SourceDraft, bool]:
        nonlocal done
        async with gate:
            try:
                drafted, away = await _visit(row, source, made, options.max), False
            except MirrorError as error:
                hint = f"; {error.hint}" if error.hint else ""
                drafted, away = _draft(row, source, made, f"could not be asked: {error}{hint}"), True
        done += 1
        progress.show(f"{done} of {len(rows)} servers", now=True)
        return drafted, away

    progress.show(f"0 of {len(rows)} servers", now=True)
    results = await asyncio.gather(*(one(row, source) for row, source in zip(rows, sources, strict=True)))
    if not options.json:
        for row, (drafted, away) in zip(rows, results, strict=True):
            if away:
                terminal.note(f"{row.name}: {drafted.notes[0]}")
    return _distinct([drafted for drafted, _ in results]), sum(away for _, away in results)


async def _visit(row: Row, source: Source, made: dict[int, list[Device]], variables_max: int) -> SourceDraft:
    """Ask one server; with a template only whether it is there and lets us in."""
    offered = await discover(source.endpoint)
    offered.require(source.endpoint, source.security, source.user, certificate=bool(source.user_certificate_file))
    if source.security != "none":
        _trusted(offered, Path(source.trust_dir))
    if row.row in made:
        devices = tuple(DeviceDraft(d) for d in made[row.row])
        return SourceDraft(source, devices, (_called(offered), *draft.security_notes(source, offered)))
    found = await visit(
        source, server.password_of(source), prefix=f"{row.name}-", area=row.area, line=row.line,
        variables_max=variables_max, progress=lambda nodes, variables: None,
    )  # fmt: skip
    if not found.drafts:
        raise ConfigError("it shows no variables below Objects")
    notes = (_called(offered), *draft.security_notes(source, offered))
    return SourceDraft(source, tuple(found.drafts), notes)


def _trusted(offered: Offered, folder: Path) -> None:
    """Raise ConfigError for a certificate that is not trusted, and keep it where a person finds it."""
    refused = refusal(offered, folder)
    if refused is not None and offered.certificate:
        file, facts = keep(offered, folder.parent / "rejected")
        raise ConfigError(
            str(refused), hint=f"compare thumbprint {facts.sha1} with the device's own display; then mv {file} {folder}"
        )
    if refused is not None:
        raise refused


def _called(offered: Offered) -> str:
    return offered.name or offered.uri or "a server without a name"


def _draft(row: Row, source: Source, made: dict[int, list[Device]], why: str) -> SourceDraft:
    """Return a source that was not visited: its template's devices, or all that it will turn out to have."""
    notes = [why, *draft.security_notes(source, None)]
    if row.row in made:
        return SourceDraft(source, tuple(DeviceDraft(d) for d in made[row.row]), tuple(notes))
    everything = Device(name=row.name, browse=["i=85/**"], area=row.area, line=row.line)
    narrow = f"everything below Objects; edgemirror browse {row.endpoint} shows what there is"
    return SourceDraft(source, (DeviceDraft(everything, (narrow,)),), tuple(notes))


def _distinct(drafts: list[SourceDraft]) -> list[SourceDraft]:
    """Give every device of the file a name of its own; those of templates are checked before."""
    taken: set[str] = set()
    result = []
    for drafted in drafts:
        devices = []
        for d in drafted.devices:
            name, serial = d.device.name, 2
            while name in taken:
                name, serial = f"{d.device.name[:58]}-{serial}", serial + 1
            taken.add(name)
            devices.append(DeviceDraft(msgspec.structs.replace(d.device, name=name), d.notes))
        result.append(SourceDraft(drafted.source, tuple(devices), drafted.notes))
    return result
