"""`edgemirror run`: the gateway in the foreground, until a signal."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
from pathlib import Path

from gateway.cli import forget_stdout
from gateway.config import Config, parse
from gateway.io import memory
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
    from gateway.io.runtime import Gateway

    config = load(options.config)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what matters of it comes as errors, and is an event
    gateway = Gateway(config)

    def ready() -> None:
        http = f"http://{config.http.listen.rpartition(':')[0]}:{gateway.http.port}" if gateway.http else None
        facts = {"started": True, "journal": str(gateway.path), "pid": os.getpid(), "http": http}
        try:
            print(json.dumps(facts), flush=True)
        except OSError:  # the mirror does not stop because nobody reads
            forget_stdout()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await gateway.run(stop, ready)

    asyncio.run(main())
    return 0
