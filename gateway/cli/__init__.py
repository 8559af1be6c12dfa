"""The verbs of the command `edgemirror`, one file for each family.

A verb's module is imported only when that verb runs, so that `edgemirror version` does not wait for
numpy and the store's client.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable

Verb = Callable[[argparse.Namespace], int]

#: Verbs that only show something: whoever has seen enough may leave, as `head` does.
LOOKS = ("gateway.cli.look:", "gateway.cli.browse:", "gateway.cli.schema:")

#: Name, module and function, one line of help.
VERBS: tuple[tuple[str, str, str], ...] = (
    ("init", "gateway.cli.init:init", "write a configuration for a server, or for a list of servers"),
    ("check", "gateway.cli.check:check", "check every setting, what it will cost, and with --online who answers"),
    ("browse", "gateway.cli.browse:browse", "show the variables of a server"),
    ("qualify", "gateway.cli.qualify:qualify", "find out what a server can promise, changing nothing on it"),
    ("schema", "gateway.cli.schema:schema", "print the JSON Schema of the configuration"),
    ("run", "gateway.cli.run:run", "mirror the configured servers until told to stop"),
    (
        "supervise",
        "gateway.cli.supervise:supervise",
        "run the gateway, again if it dies; hand its lease on",
    ),
    ("promote", "gateway.cli.role:promote", "have this replica act; who acts now lets go first"),
    ("demote", "gateway.cli.role:demote", "have this replica let go, for another one to act"),
    ("identity", "gateway.cli.identity:identity", "show the name and key by which this replica is known to its peers"),
    ("status", "gateway.cli.look:status", "say what this gateway holds, claims, misses and has pushed"),
    ("tail", "gateway.cli.look:tail", "print samples as they become durable"),
    ("sql", "gateway.cli.look:sql", "query the journal; every sample is a row of the table `samples`"),
    ("export", "gateway.cli.look:export", "write the journal as a plain SQLite file"),
    ("history", "gateway.cli.history:history", "print what one tag said, with what is missing in between"),
    ("gaps", "gateway.cli.gaps:gaps", "list, explain or close what is missing"),
    ("doctor", "gateway.cli.doctor:doctor", "look at clock, disk, journal, certificates and bucket of this box"),
    ("trust", "gateway.cli.trust:trust", "show, accept or reject certificates of servers; renew the gateway's own"),
    ("verify", "gateway.cli.verify:verify", "prove the bucket: names, signatures, hashes, digests, coverage"),
    ("repair", "gateway.cli.repair:repair", "put a damaged journal aside and save what can be read of it"),
    ("backup", "gateway.cli.backup:backup", "write configuration, keys, certificates and secrets into one file"),
    ("restore-config", "gateway.cli.backup:restore", "make an empty box the replica of a backup"),
    ("demo", "gateway.cli.demo:demo", "mirror a simulated plant on this machine and check the result"),
    ("version", "gateway.cli.look:version", "print the versions of this program and of what it stands on"),
)


#: What `gaps` can do.
GAPS = {
    "list": "one line for each gap, oldest first",
    "explain": "what happened, which tags, how it ended",
    "declare-lost": "close a gap that nobody will fill",
}

#: What `trust` can do.
TRUST = {
    "list": "one line for each certificate, trusted or refused, with the reason",
    "show": "all that a person compares",
    "accept": "trust a certificate that was refused",
    "reject": "trust a certificate no longer",
    "renew": "make a new certificate for this gateway, over the same key",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = argparse.ArgumentParser(
        prog="edgemirror", description="An exact, provable mirror of what factory devices say."
    )
    verbs = root.add_subparsers(required=True, metavar="VERB")
    for name, target, text in VERBS:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(verb=_later(target), looks=target.startswith(LOOKS))
        sub.add_argument("--json", action="store_true", help="print JSON instead of text")
        _ARGUMENTS[name](sub)
    return root


def forget_stdout() -> None:
    """Send what is still printed nowhere: the reader of standard output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _later(target: str) -> Verb:
    def run(options: argparse.Namespace) -> int:
        module, _, function = target.partition(":")
        verb: Verb = getattr(importlib.import_module(module), function)
        return verb(options)

    return run


def _config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-c", "--config", default="gateway.toml", metavar="FILE", help="default: %(default)s")


def _journal(sub: argparse.ArgumentParser) -> None:
    _config(sub)
    sub.add_argument("--journal", metavar="FILE", help="a journal file, instead of the configured one")


def _server(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--security", metavar="POLICY:MODE", help="such as Basic256Sha256:SignAndEncrypt; default: none")
    sub.add_argument("--user", metavar="NAME", help="user name; without it, anonymous")
    sub.add_argument("--password-file", metavar="FILE", help="a file that holds the user's password")
    sub.add_argument("--password-in-clear", action="store_true", help="send it also where the network can read it")
    sub.add_argument("--user-certificate-file", metavar="FILE", help="the user's certificate, instead of a name")
    sub.add_argument("--user-key-file", metavar="FILE", help="its private key (PEM)")
    sub.add_argument("--certificate-file", metavar="FILE", help="this gateway's certificate (DER)")
    sub.add_argument("--key-file", metavar="FILE", help="its private key (PEM)")
    sub.add_argument("--trust-dir", metavar="DIR", help="folder of server certificates that are accepted")


def _init(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("endpoint", nargs="?", default="", help="opc.tcp://HOST:PORT; or a list with --from")
    sub.add_argument("-o", "--out", default="gateway.toml", metavar="FILE", help="a new file; default: %(default)s")
    sub.add_argument("--from", dest="servers", default="", metavar="CSV", help="a list of servers, one a row")
    sub.add_argument("--template", default="", metavar="FILE", help="TOML with [[device]]: what each listed server has")
    sub.add_argument("--offline", action="store_true", help="with --from: write without contacting the servers")
    sub.add_argument("--accept", default="", metavar="THUMBPRINT", help="trust the server's certificate that has this")
    sub.add_argument("--data-dir", default="", metavar="DIR", help="replica.data_dir; default: beside the file")
    sub.add_argument("--group", default="plant", metavar="NAME", help="group.name; default: %(default)s")
    sub.add_argument("--enterprise", default="enterprise", metavar="NAME", help="group.enterprise")
    sub.add_argument("--site", default="site", metavar="NAME", help="group.site")
    sub.add_argument("--max", type=int, default=100_000, metavar="N", help="look at N variables; default: %(default)s")
    _server(sub)


def _browse(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("endpoint", help="opc.tcp://HOST:PORT")
    sub.add_argument("node", nargs="?", default="i=85", help="where to begin, such as ns=2;s=Press7; default: Objects")
    sub.add_argument("--max", type=int, default=10_000, metavar="N", help="end after N variables; default: %(default)s")
    _server(sub)


def _check(sub: argparse.ArgumentParser) -> None:
    _config(sub)
    sub.add_argument("--online", action="store_true", help="connect to every server, the bucket and the broker")
    sub.add_argument("--tags", type=int, metavar="N", help="tags of each source, where the journal does not know")
    sub.add_argument("--changes-per-s", type=float, metavar="R", help="changes of all tags; default: one a tag")
    sub.add_argument("--price-put", type=float, default=0.005, metavar="P", help="1,000 writes; default: %(default)s")
    sub.add_argument("--price-get", type=float, default=0.0004, metavar="P", help="1,000 reads; default: %(default)s")
    sub.add_argument("--price-gb", type=float, default=0.023, metavar="P", help="a GB a month; default: %(default)s")


def _qualify(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("endpoint", help="opc.tcp://HOST:PORT")
    sub.add_argument(
        "node", nargs="?", default="i=85", help="where variables for the trial are taken; default: Objects"
    )
    sub.add_argument("--seconds", type=float, default=4.0, metavar="S", help="how long to listen; default: %(default)s")
    _server(sub)


def _tail(sub: argparse.ArgumentParser) -> None:
    _journal(sub)
    sub.add_argument("tag", nargs="*", help="only tags whose path or node contains one of these texts")
    sub.add_argument("-n", "--lines", type=int, default=0, metavar="N", help="end after N samples; 0: never")
    sub.add_argument("--from-start", action="store_true", help="begin with the oldest sample, not with the next")


def _sql(sub: argparse.ArgumentParser) -> None:
    _journal(sub)
    sub.add_argument("query", nargs="?", help="one SQL statement; without it, statements are read line by line")


def _export(sub: argparse.ArgumentParser) -> None:
    _journal(sub)
    sub.add_argument("out", help="the file to write; it must not exist")


def _history(sub: argparse.ArgumentParser) -> None:
    _journal(sub)
    sub.add_argument("tag", help="device/name, path or node of a tag, or a text that only one contains")
    sub.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 (UTC), or so long ago: 15m, 2h, 7d")
    sub.add_argument("--to", dest="end", metavar="TIME", help="the same; the time itself is not included")
    sub.add_argument("-n", "--lines", type=int, default=0, metavar="N", help="only the newest N of them")
    sub.add_argument("--csv", action="store_true", help="print comma-separated values with a head line")


def _gaps(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in GAPS.items():
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
        _journal(action)
        if name == "list":
            action.add_argument("--open", action="store_true", help="only gaps that may still be filled")
            action.add_argument("--source", default="", metavar="TEXT", help="only sources whose URI contains this")
        else:
            action.add_argument("id", help="the gap's id, or its beginning")
        if name == "declare-lost":
            action.add_argument("--why", required=True, help="kept in the ledger and in the log")


def _trust(sub: argparse.ArgumentParser) -> None:
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in TRUST.items():
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
        _config(action)
        if name in ("show", "accept", "reject"):
            action.add_argument("thumbprint", help="the certificate's thumbprint, or its beginning")


def _verify(sub: argparse.ArgumentParser) -> None:
    _config(sub)
    sub.add_argument("--alone", action="store_true", help="trust the bucket alone, not what this journal remembers")


def _backup(sub: argparse.ArgumentParser) -> None:
    _config(sub)
    sub.add_argument("out", help="the file to write; it must not exist")


def _restore(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", help="what `edgemirror backup` has written")


def _demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seconds", type=float, default=30.0, help="how long to mirror; default: %(default)s")


def _nothing(sub: argparse.ArgumentParser) -> None:
    del sub


_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "init": _init,
    "check": _check,
    "browse": _browse,
    "qualify": _qualify,
    "schema": _nothing,
    "run": _config,
    "supervise": _config,
    "identity": _config,
    "promote": _config,
    "demote": _config,
    "status": _journal,
    "tail": _tail,
    "sql": _sql,
    "export": _export,
    "history": _history,
    "gaps": _gaps,
    "doctor": _config,
    "trust": _trust,
    "verify": _verify,
    "repair": _journal,
    "backup": _backup,
    "restore-config": _restore,
    "demo": _demo,
    "version": _nothing,
}
