"""`edgemirror run`: the gateway in the foreground, until a signal."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import signal
from pathlib import Path

from gateway.cli import forget_stdout
from gateway.config import Config, parse
from gateway.io import memory
from gateway.io.notify import Notifier, keep_told
from mirror.errors import ConfigError


def load(path: str) -> Config:
    """Return the checked configuration of a file.

    Raises:
        ConfigError: The file cannot be read, or a setting is wrong.
    """
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}",
            hint="edgemirror init opc.tcp://HOST:PORT writes one; name another with --config",
        ) from error
    return parse(text, os.environ)


def run(options: argparse.Namespace) -> int:
    """Mirror until SIGTERM or SIGINT."""
    memory.settle()
    faulthandler.enable(2)  # standard error: a process that its watchdog ends leaves behind where each thread was
    from gateway.io.runtime import Gateway

    config = load(options.config)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what matters of it comes as errors, and is an event
    gateway = Gateway(config)

    def ready() -> None:
        http = gateway.http.url if gateway.http else None
        facts = {"started": True, "journal": str(gateway.path), "pid": os.getpid(), "http": http}
        try:
            print(json.dumps(facts), flush=True)
        except OSError:  # the mirror does not stop because nobody reads
            forget_stdout()

    async def main() -> None:
        stop = asyncio.Event()
        notifier, told = Notifier.of(os.environ), list[asyncio.Task[None]]()

        def started() -> None:
            ready()
            if notifier is not None:
                telling = keep_told(
                    notifier, gateway.survey.figures, lambda: gateway.ingest.call(lambda _journal: None)
                )
                told.append(asyncio.create_task(telling))
                told[0].add_done_callback(lambda _task: stop.set())  # who hears nothing more would kill

        def end() -> None:
            if notifier is not None:
                notifier.send(STOPPING="1")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        await gateway.run(stop, started)
        for task in told:
            if not task.cancel():
                task.result()

    asyncio.run(main())
    return 0
