"""`edgemirror supervise`: runs the gateway, again if it dies, and hands its lease on at once."""

from __future__ import annotations

import argparse

from gateway.cli.run import load
from gateway.io.supervise import Supervisor, command
from mirror.lease import Register


def supervise(options: argparse.Namespace) -> int:
    """Run the gateway until it ends in order, or until SIGTERM or SIGINT."""
    config = load(options.config)

    def register() -> Register:
        from gateway.io.opening import open_register

        return open_register(config)

    supervisor = Supervisor(command(options.config), register)
    if config.arbiter.kind == "etcd":
        supervisor.register()  # a certificate is worth something within milliseconds
    return supervisor.run()
