"""The options of `owsla demo`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from .._values import port, whole_number
from ._fleet import MOST

DESCRIPTION: Final = """\
Shows Owsla at work: starts a gateway with an in-memory broker, a back end that
answers each line ('owsla echo'), and simulated devices, some of which have
faults. It prints the address of the page, and commands to try.

All ports are open on 127.0.0.1 only. Where 8883 (devices), 9100 (page) or 5672
(broker) is in use, the next free port is taken. All files are in a temporary
folder. Ctrl-C ends and removes all of it.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `owsla demo`."""
    command.add_argument(
        "--devices", metavar="N", type=_devices, default=20, help=f"number of devices that connect, up to {MOST} (20)"
    )
    command.add_argument("--port", metavar="PORT", type=port, help="port for devices (8883, or the next that is free)")
    command.add_argument("--http-port", metavar="PORT", type=port, help="port of the page (9100, or the next that is free)")
    command.add_argument(
        "--broker",
        metavar="URL",
        help="use this RabbitMQ in place of the in-memory broker: amqp://user:password@host:port/vhost or amqps://... . The "
        "names of the queues begin with 'owsla-demo.', and they are deleted at the end",
    )


def _devices(text: str) -> int:
    number = whole_number(1)(text)
    if number > MOST:
        raise argparse.ArgumentTypeError(f"{number} are more than {MOST}: 'owsla swarm' simulates as many as you like")
    return number


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return the command, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    from ._plan import make_request
    from ._run import run

    return partial(run, make_request(devices=args.devices, port=args.port, http_port=args.http_port, broker=args.broker))
