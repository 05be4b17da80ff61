"""What a user may type after `owsla`: read, checked, and made into something to run."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__

if TYPE_CHECKING:
    from ..config.settings import Settings

DEFAULT_BROKER = "amqp://guest:guest@127.0.0.1:5672/%2f"
"""Where the embedded broker listens, and a RabbitMQ fresh from its package."""

PEEK_COUNT = 100
"""Messages that `tail` shows and gives back unless told otherwise: some screens full."""
PEEK_MOST = 10_000
"""Messages that `tail` may hold at once to give them back: they are kept in memory, and from everybody else, until it ends."""

_PASSWORD = re.compile(r"(amqps?://)\S*@", re.IGNORECASE)

_DESCRIPTION = """\
An example back end for Owsla, and tools to look at what passes through it.

commands:
  echo                      an example back end: answers each line
  tail                      show what waits from devices, or take it
  send CONNECTION_ID TEXT   send a line to a device
  tree                      show a running gateway's supervision tree
  swarm                     simulate devices, and measure

'owsla COMMAND --help' says more of each. The gateway itself is 'twistd owsla'.
"""

_ECHO = """\
Answers each line that a device sends with the same line, until Ctrl-C.

An answer goes to the queue that the line's reply_to names, or else to
to_device. It carries the line's number as to_device_seq, so that devices get
the answers in order, each once. A line is acknowledged when the broker has
confirmed its answer. Started before the broker, or cut off from it, it goes
on trying.
"""

_TAIL = """\
Shows the lines of devices that wait in the queue, one message a line, gives
them back, and ends:

  TIME CONNECTION_ID NUMBER DEVICE_ID TEXT

with - for what a message does not have, and \\x1b for a byte that cannot be
shown. With --take it shows lines as they arrive and TAKES them, like any
consumer: no other back end gets what is shown.
"""

_SEND = """\
Sends a line to one device, and ends when the broker has it; with --report,
when the gateway says what became of it.

With - for TEXT, each line of standard input is sent. Lines sent without --seq
are in no promised order, unless there is --report, which sends the next one
only after the report.
"""

_TREE = """\
Shows the supervision tree of a running gateway: its parts, whether they run
and for how long, and how often each was restarted. The gateway must run with
--http.
"""

_ENVIRONMENT = """\
The options of the broker and its queues can be set in the environment too, as
for the gateway (OWSLA_BROKER, OWSLA_TO_DEVICE ...); of several brokers in
OWSLA_BROKER the first counts. A password in OWSLA_BROKER or in the file of
--broker-password-file is never in the process list.
"""


class UserError(Exception):
    """Something that was typed cannot be used; the text says what in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, and ends with status 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False, **options)
        # As argparse's own, in the words of the rest.
        self.add_argument("--help", "-h", action="help", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        # What it quotes may be a URL in the wrong place.
        fail(self.prog, _PASSWORD.sub(r"\1...@", message))


def fail(prog: str, message: str) -> NoReturn:
    """Say what is wrong in one line on standard error, and end with status 1."""
    sys.stderr.write(f"{prog}: {' '.join(message.splitlines())}\n")
    raise SystemExit(1)


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(prog="owsla", usage="owsla COMMAND [options]", description=_DESCRIPTION)
    top.add_argument("--version", action="version", version=f"owsla {__version__}", help="show the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)

    echo = _command(commands, "echo", "[options]", _ECHO)
    echo.add_argument("--prefix", metavar="TEXT", default="", help="put this before each answer")
    _add_broker(echo, from_device=True, to_device=True)

    tail = _command(commands, "tail", "[options]", _TAIL)
    tail.add_argument(
        "--count",
        metavar="N",
        type=_whole(1),
        help=f"end after so many messages; without --take {PEEK_COUNT} unless given, {PEEK_MOST} at most",
    )
    which = tail.add_mutually_exclusive_group()
    which.add_argument("--take", action="store_true", help="take the messages, as they come")
    which.add_argument(
        "--peek",
        action="store_true",
        help="show what waits in the queue now and give it back: the default. It is marked redelivered from then on",
    )
    tail.add_argument(
        "--force",
        action="store_true",
        help="look at a quorum queue too: RabbitMQ counts each look at a message, and drops it at the queue's delivery limit",
    )
    tail.add_argument(
        "--json",
        action="store_true",
        help="a JSON object a line: timestamp, connection_id, seq, device_id, reply_to, redelivered, "
        "and body, or body_base64 where the body is not UTF-8",
    )
    _add_broker(tail, from_device=True, to_device=False)

    send = _command(commands, "send", "[options] CONNECTION_ID TEXT", _SEND)
    send.add_argument("connection_id", metavar="CONNECTION_ID", help="the connection, as 'owsla tail' shows it")
    send.add_argument(
        "text", metavar="TEXT", help="the line, or - for those of standard input ('--' goes before one that begins with a -)"
    )
    send.add_argument(
        "--seq", metavar="N", type=_whole(0), help="number it: to_device_seq; lines of standard input count on from here"
    )
    send.add_argument(
        "--close", action="store_true", help="close the device's connection after it; with an empty TEXT, just close"
    )
    send.add_argument(
        "--expires", metavar="SECONDS", type=_seconds, help="not to be delivered later than so many seconds from now"
    )
    send.add_argument(
        "--report",
        action="store_true",
        help="wait until the gateway says what became of it, and print that: 'delivered' (handed over, status 0) "
        "or why not (status 1)",
    )
    send.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=15.0,
        help="how long to wait for the broker, and for a report (15): longer than the gateway's --node-grace, for which it "
        "keeps what is for a node that is away",
    )
    _add_broker(send, from_device=False, to_device=True)

    tree = _command(commands, "tree", "[options]", _TREE, epilog=None)
    tree.add_argument(
        "--http",
        metavar="URL",
        help="where the gateway serves HTTP: http://HOST:PORT, or [ADDRESS:]PORT as in its own --http (OWSLA_HTTP)",
    )
    from .swarm import _arguments as swarm

    swarm.add_arguments(_command(commands, "swarm", "[options]", swarm.DESCRIPTION, epilog=None))
    return top


def _command(commands: Any, name: str, usage: str, description: str, *, epilog: str | None = _ENVIRONMENT) -> Parser:
    command: Parser = commands.add_parser(
        name, prog=f"owsla {name}", usage=f"owsla {name} {usage}", description=description, epilog=epilog
    )
    return command


def _add_broker(command: Parser, *, from_device: bool, to_device: bool) -> None:
    broker = command.add_argument_group("the broker and its queues")
    broker.add_argument(
        "--broker",
        metavar="URL",
        help=f"amqp://user:password@host:port/vhost or amqps://... ({DEFAULT_BROKER.replace('%', '%%')})",
    )
    broker.add_argument("--broker-password-file", metavar="FILE", help="file whose only line is the broker's password")
    broker.add_argument(
        "--broker-ca", metavar="FILE", help="PEM file with the authorities to trust for amqps:// (the system's)"
    )
    if from_device:
        broker.add_argument("--from-device", metavar="QUEUE", help="the queue of lines from devices (from_device)")
    if to_device:
        broker.add_argument("--to-device", metavar="QUEUE", help="the queue of lines to devices (to_device)")
    if from_device:
        broker.add_argument(
            "--seq-header", metavar="NAME", help="the header that has the number of a line from a device (from_device_seq)"
        )


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= low):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 365 * 24 * 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (more than 0, a year at most)")
    return seconds


# -- From arguments to a command -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str], environ: Mapping[str, str], *, hidden: bool = True) -> Callable[[], int]:
    """What to run; it gives the exit status. Ends the process for `--help`, and with one line where something is wrong.

    `hidden`: whether a password among the arguments could be hidden from the process list.
    """
    top = parser()
    args, unknown = top.parse_known_args(arguments)
    if args.command is not None:
        top.prog = f"owsla {args.command}"
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command is None:
        top.error("which command? echo, tail, send, tree or swarm; 'owsla --help' says more")
    prog = top.prog
    from ..errors import ConfigError

    broker = getattr(args, "broker", None)
    if not hidden and broker is not None and "@" in broker:
        sys.stderr.write(f"{prog}: the password can't be hidden from the process list here; use --broker-password-file\n")
    try:
        return {"echo": _echo, "tail": _tail, "send": _send, "tree": _tree, "swarm": _swarm}[args.command](args, environ)
    except (UserError, ConfigError) as error:
        fail(prog, str(error))


def _echo(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    from ._echo import Echo
    from ._running import run

    settings = broker_settings(args, environ)
    role = partial(
        Echo,
        from_device=_name(args, environ, "from-device"),
        to_device=_name(args, environ, "to-device"),
        seq_header=_name(args, environ, "seq-header").encode(),
        prefix=os.fsencode(args.prefix),
    )
    return partial(run, "echo", settings, role, patient=True)


def _tail(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    from ._running import run
    from ._tail import Peek, Tail, as_json, as_text

    settings = broker_settings(args, environ)
    if not args.take and (args.count or 0) > PEEK_MOST:
        raise UserError(f"--count: without --take at most {PEEK_MOST} messages are held")
    show = as_json if args.json else as_text
    queue = _name(args, environ, "from-device")
    show = partial(show, seq_header=_name(args, environ, "seq-header"))
    if args.take:
        return partial(run, "tail", settings, partial(Tail, queue=queue, show=show, count=args.count), patient=True)
    role = partial(Peek, queue=queue, show=show, count=args.count or PEEK_COUNT, force=args.force)
    return partial(run, "tail", settings, role, patient=False)


def _send(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    from ..routing import canonical
    from ._running import run
    from ._send import Send

    connection_id = canonical(os.fsencode(args.connection_id))
    if connection_id is None:
        raise UserError(f"{args.connection_id!r} is not a connection id, which looks like 01234567-89ab-8cde-8f01-23456789abcd")
    role = partial(
        Send,
        queue=_name(args, environ, "to-device"),
        connection_id=connection_id,
        text=None if args.text == "-" else os.fsencode(args.text),
        seq=args.seq,
        close=args.close,
        expires=args.expires,
        report=args.report,
        timeout=args.timeout,
    )
    return partial(run, "send", broker_settings(args, environ), role, patient=False)


def _tree(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    from ._tree import base_url, show

    given = args.http if args.http is not None else environ.get("OWSLA_HTTP")
    if not given or given == "off":
        raise UserError("which gateway? --http URL (or OWSLA_HTTP) says where its --http is")
    try:
        return partial(show, base_url(given))
    except ValueError as error:
        raise UserError(f"{'--http' if args.http is not None else 'OWSLA_HTTP'}: {error}") from None


def _swarm(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    from .swarm._arguments import command

    return command(args)


def broker_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings of the gateway as far as they concern the broker; exactly one address is in them. `ConfigError`."""
    from ..config.sources import load_settings

    names = ("broker", "broker-password-file", "broker-ca", "heartbeat")
    variables = {name: "OWSLA_" + name.upper().replace("-", "_") for name in names}
    given = {variable: environ[variable] for variable in variables.values() if environ.get(variable)}
    options = {name: getattr(args, name.replace("-", "_"), None) for name in names}
    first = given.get("OWSLA_BROKER", "").split(",")[0].strip()
    if (options["broker"] or first) in ("", "embedded"):
        options["broker"] = DEFAULT_BROKER
    elif first:
        given["OWSLA_BROKER"] = first
    return load_settings([f"--{name}={text}" for name, text in options.items() if text is not None], given)


def _name(args: argparse.Namespace, environ: Mapping[str, str], name: str) -> str:
    """An option that names a queue or a header: from the command line, the environment, or the default. `ConfigError`."""
    from ..config.options import OPTIONS
    from ..errors import ConfigError

    option = next(option for option in OPTIONS if option.name == name)
    given = getattr(args, name.replace("-", "_"))
    text = given if given is not None else environ.get(option.variable) or option.default
    try:
        return str(option.read(text or ""))
    except ConfigError as error:
        raise ConfigError(f"{f'--{name}' if given is not None else option.variable}: {error}") from None
