"""The command line of `owsla`: parsed, checked, and turned into a command that is ready to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .. import __version__
from ..errors import ConfigError
from ..runtime.imports import without_collection
from ._control_arguments import SUMMARY, Prepare, add_completion, add_control_commands
from ._control_arguments import prepare as prepare_control
from ._defaults import DEFAULT_BROKER, PEEK_COUNT, PEEK_MOST
from ._parser import Parser, add_command, fail
from ._stream_offset import offset
from ._values import seconds, whole_number
from .demo import arguments as demo
from .swarm import arguments as swarm

_DESCRIPTION = f"""\
Tools for Owsla: a demo, an example back end, simulated devices, and commands
for messages and for a running gateway.

commands for messages, which connect to the broker:
  echo                      an example back end: answers each line
  tail                      show messages from devices, or take them
  send CONNECTION_ID TEXT   send a line to a device
  who-has DEVICE_ID         ask whether a device is connected, and since when

commands for a running gateway, which ask its --control:
{SUMMARY}
others:
  demo                      show all of it at work: gateway, broker, devices
  swarm                     simulate devices, and measure
  completion SHELL          print the completion for bash, zsh or fish

'owsla COMMAND --help' describes a command. The gateway is 'twistd owsla'.
"""

_ECHO = """\
Answers each line from a device with the same line, until Ctrl-C.

An answer goes to the queue in the reply_to of the line, or else to to_device.
It carries the number of the line as to_device_seq, so that devices get the
answers in order, each once. A line is acknowledged when the broker has
confirmed its answer, and a batch of lines when it has confirmed the answers to
all of them. Without a broker, at the start or later, it tries again until it
is connected.
"""

_TAIL = """\
Shows the lines from devices that are in the queue, gives them back, and ends:

  TIME CONNECTION_ID NUMBER DEVICE_ID TEXT

A - stands for a field that a line does not have, and \\x1b for a byte that
cannot be shown. The lines of a batch (--batch of the gateway) are shown as
lines that came alone. With --take it shows lines as they arrive and TAKES
their messages, like any consumer: no other back end gets them. With --offset
it reads a stream, and takes nothing.
"""

_SEND = """\
Sends a line to one device, and ends when the broker has confirmed it; with
--report, when the gateway has reported the outcome.

The device is named by its connection, or by --device on whichever connection
it has. With --to, the line goes to many devices, and each node of the gateway
reports on its own.

If TEXT is -, it sends each line of standard input. Without --seq their order
is not guaranteed, except with --report, which sends a line only after the
report of the one before it.
"""

_WHO_HAS = """\
Asks all nodes of the gateway which of them has a device, and shows its
connection, one device per line:

  DEVICE_ID CONNECTION_ID NODE SINCE AGE DOOR

A device that no node has within --wait has - in all other columns. The status
is 1 if that is all of them.
"""


def parser(*, by_name: bool = False) -> Parser:
    """Return the parser of the whole command line. With `by_name`, `send` takes no CONNECTION_ID."""
    top = Parser(prog="owsla", usage="owsla COMMAND [options]", description=_DESCRIPTION)
    top.add_argument("--version", action="version", version=f"owsla {__version__}", help="show the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)

    echo = add_command(commands, "echo", "[options]", _ECHO)
    echo.add_argument("--prefix", metavar="TEXT", default="", help="put this before each answer")
    _add_broker(echo, from_device=True, to_device=True)

    tail = add_command(commands, "tail", "[options]", _TAIL)
    _add_tail(tail)
    _add_broker(tail, from_device=True, to_device=False)

    send = add_command(commands, "send", "[options] CONNECTION_ID TEXT", _SEND, *_SEND_BY_NAME)
    _add_send(send, by_name=by_name)
    _add_broker(send, from_device=False, to_device=True)

    who_has = add_command(commands, "who-has", "[options] DEVICE_ID ...", _WHO_HAS)
    _add_who_has(who_has)
    _add_broker(who_has, from_device=False, to_device=True)

    add_control_commands(commands)
    swarm.add_arguments(add_command(commands, "swarm", "[options]", swarm.DESCRIPTION, epilog=None))
    demo.add_arguments(add_command(commands, "demo", "[options]", demo.DESCRIPTION, epilog=None))
    add_completion(commands)
    return top


def _add_tail(tail: Parser) -> None:
    tail.add_argument(
        "--count",
        metavar="N",
        type=whole_number(1),
        help="end after N lines, and the rest of their batch; "
        f"without --take and --offset the default is {PEEK_COUNT} and the maximum {PEEK_MOST}",
    )
    which = tail.add_mutually_exclusive_group()
    which.add_argument("--take", action="store_true", help="take the messages, as they arrive")
    which.add_argument(
        "--peek",
        action="store_true",
        help="show the messages that are in the queue now and give them back, marked as redelivered: the default",
    )
    which.add_argument(
        "--offset",
        metavar="WHERE",
        type=offset,
        help="show the messages of a stream from there on, and those that come: first, last (the last messages that were "
        "written together), next, a number, an age such as 1h, or a time such as 2026-11-29T18:00. They stay in the stream",
    )
    tail.add_argument(
        "--force",
        action="store_true",
        help="show a quorum queue too: RabbitMQ counts each look at a message, and drops it at the delivery limit of the queue",
    )
    tail.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object per line: timestamp, connection_id, seq, device_id, traceparent, reply_to, redelivered, "
        "and body, or body_base64 if the body is not UTF-8; of a stream, offset too",
    )


_SEND_BY_NAME: Final = ("[options] --device DEVICE_ID TEXT", "[options] --to SELECTOR --expires SECONDS TEXT")


def _by_name(arguments: Sequence[str]) -> bool:
    """Return whether `send` gets the name of a device, or of many, in place of a connection id."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(one.partition("=")[0] in ("--device", "--to") for one in options)


def _add_send(send: Parser, *, by_name: bool) -> None:
    if not by_name:
        send.add_argument("connection_id", metavar="CONNECTION_ID", help="the connection, as 'owsla tail' shows it")
    send.add_argument(
        "text", metavar="TEXT", help="the line, or - for the lines of standard input (put '--' before one that begins with a -)"
    )
    target = send.add_mutually_exclusive_group()
    target.add_argument(
        "--device",
        metavar="DEVICE_ID",
        help="send it to the device with this id, wherever it is connected, without a CONNECTION_ID",
    )
    target.add_argument(
        "--to",
        metavar="SELECTOR",
        help="send it to many devices: 'all', 'door:NAME', or 'prefix:TEXT' for those whose id begins with TEXT",
    )
    send.add_argument(
        "--seq",
        metavar="N",
        type=whole_number(0),
        help="number of the line: to_device_seq; lines of standard input are numbered from here on",
    )
    send.add_argument(
        "--close", action="store_true", help="close the connection of the device after it; with an empty TEXT, just close"
    )
    send.add_argument("--expires", metavar="SECONDS", type=seconds, help="deliver it within SECONDS, or not at all")
    send.add_argument(
        "--report",
        action="store_true",
        help="wait until the gateway reports the outcome, and print it: 'delivered' (handed over, status 0) or the reason "
        "why not (status 1). With --to, print the report of each node, until the line has expired, or none has reported "
        "for --timeout",
    )
    send.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=15.0,
        help="how long to wait for the broker, and for a report (15). Choose more than the --node-grace of the gateway, for "
        "which it keeps messages for a node that is away",
    )


def _add_who_has(who_has: Parser) -> None:
    who_has.add_argument("device_ids", metavar="DEVICE_ID", nargs="+", help="the devices")
    who_has.add_argument(
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=1.0,
        help="how long to wait for answers (1); it ends earlier if all devices are found",
    )
    who_has.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object per line: device_id, connection_id, node, since (milliseconds since the epoch), "
        "age (milliseconds) and door; all but the first are null if no node has the device",
    )
    who_has.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=15.0, help="how long to wait for the broker (15)"
    )


def _add_broker(command: Parser, *, from_device: bool, to_device: bool) -> None:
    broker = command.add_argument_group("the broker and its queues")
    broker.add_argument(
        "--broker",
        metavar="URL",
        help=f"amqp://user:password@host:port/vhost or amqps://... ({DEFAULT_BROKER.replace('%', '%%')})",
    )
    broker.add_argument("--broker-password-file", metavar="FILE", help="file whose only line is the password for the broker")
    broker.add_argument(
        "--broker-ca", metavar="FILE", help="PEM file with the authorities to trust for amqps:// (those of the system)"
    )
    broker.add_argument(
        "--broker-cert",
        metavar="FILE",
        help="PEM file with the client certificate for amqps://; it is the login where --broker has no user",
    )
    broker.add_argument("--broker-key", metavar="FILE", help="PEM file with the private key of --broker-cert")
    if from_device:
        broker.add_argument("--from-device", metavar="QUEUE", help="the queue of lines from devices (from_device)")
    if to_device:
        broker.add_argument("--to-device", metavar="QUEUE", help="the queue of lines to devices (to_device)")
    if from_device:
        broker.add_argument(
            "--seq-header", metavar="NAME", help="the header with the number of a line from a device (from_device_seq)"
        )


def parse(arguments: Sequence[str], environ: Mapping[str, str], *, hidden: bool = True) -> Callable[[], int]:
    """Return the command, ready to run; it returns the exit status.

    Exit for `--help`, and with one line for an error. `hidden` is false if a password among the arguments stays visible in the
    process list.
    """
    top = parser(by_name=_by_name(arguments))
    args, unknown = top.parse_known_args(arguments, argparse.Namespace(parser=top))
    if args.command is not None:
        top.prog = f"owsla {args.command}"
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        top.error("no command given: 'owsla --help' lists them")
    broker = getattr(args, "broker", None)
    if not hidden and broker is not None and "@" in broker:
        sys.stderr.write(f"{top.prog}: the password stays visible in the process list here; use --broker-password-file\n")
    try:
        return _prepare(args.command)(args, environ)
    except ConfigError as error:
        fail(top.prog, str(error))


def _prepare(command: str) -> Prepare:
    """Import the implementation of a command.

    The imports are here for the start-up time. `owsla --help`, an error and `owsla swarm` take 0.15 s of CPU with them here,
    and 0.95 s with them at the top of the module, which would load the reactor and the client of the broker.
    """
    if command == "swarm":
        return swarm.command
    if command == "demo":
        return demo.command
    with without_collection():
        found = prepare_control(command)
        if found is not None:
            return found
        from . import _broker_commands

    commands: dict[str, Prepare] = {
        "echo": _broker_commands.echo,
        "tail": _broker_commands.tail,
        "send": _broker_commands.send,
        "who-has": _broker_commands.who_has,
    }
    return commands[command]
