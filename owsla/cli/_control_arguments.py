"""The command lines of the commands that ask a running gateway over its control interface."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._parser import Parser, add_command
from ._values import seconds, whole_number

STATES: Final = ("paused", "slow", "held", "closing")
"""States by which devices can be selected."""

SORTS: Final = (
    "since", "device_id", "connection_id", "peer", "lines_in", "lines_out", "bytes_in", "bytes_out", "last_in", "last_out",
    "waiting", "held",
)  # fmt: skip
"""Fields by which devices can be sorted."""

SHELLS: Final = ("bash", "zsh", "fish")

SUMMARY: Final = """\
  devices [QUERY]           list the connections of devices
  device ID                 show one device: its state, findings and last ends
  top                       show who talks most, and who is slowest, refreshed
  trace ID                  show what a device says and hears, as it happens
  events                    show what happened last, or follow it
  kick ID                   close the connection of a device
  reload                    read the settings and their files again
  drain                     stop in order, as SIGTERM does
  tree                      show the supervision tree
  health                    check whether the gateway is alive, or ready
"""
"""Lines of `owsla --help` about these commands."""

_ENVIRONMENT = """\
The gateway is the one whose --control is the socket at --control PATH, at
OWSLA_CONTROL, or else owsla.sock in this folder. With --http, it is asked over
TCP; that takes the token in --token-file (OWSLA_HTTP_TOKEN_FILE).

The status is 0 if it is done, 1 for an error, and 130 after Ctrl-C.
"""

_DEVICES = """\
Lists the connections of devices, one per line, in columns that fit the
terminal. With QUERY, those whose device id, connection id or address contains
it.

A terminal gets one screen, and the number of those that are left; a pipe gets
all of them, with all columns. A - stands for nothing, and \\x1b for a byte that
cannot be shown.
"""

_DEVICE = """\
Shows a device: its connections, what is wrong with each, and how the last ones
ended. ID is a connection id, a device id, or an address.
"""

_TOP = """\
Shows the connections with the most lines and bytes a second, and the slowest,
refreshed in place until Ctrl-C or q. A pipe gets a snapshot after the other.
"""

_TRACE = """\
Shows what a device says and hears until Ctrl-C, or until the minutes are over:

  TIME DIRECTION SIZE NUMBER TEXT

A device that is not connected is shown from its next connection on. ID is a
connection id, a device id, or an address. The gateway records who traced what,
and when, as events.
"""

_KICK = """\
Closes the connection of a device. ID is a connection id, a device id, or an
address. If several connections match, it names them and closes none, except
with --all.
"""

_EVENTS = """\
Shows the last events of the gateway, oldest first, one per line:

  TIME EVENT TEXT

An event that is a warning has a ! before its name. With --follow it goes on
with those to come, until Ctrl-C, also when the gateway is restarted.
"""

_RELOAD = """\
Makes the gateway read its settings and their files again, as SIGHUP does, and
shows what was changed, or why nothing was.
"""

_DRAIN = """\
Stops the gateway in order, as SIGTERM does, and shows the progress until it has
gone. Ctrl-C ends the display, and not the stop.
"""

_TREE = """\
Shows the supervision tree of a running gateway: its parts, whether and for how
long they have been running, and how often each was restarted. With --http, no
token is needed if the gateway has none (OWSLA_HTTP).
"""

_HEALTH = """\
Checks whether the gateway is alive: whether its event loop runs. A gateway that
waits for its broker is alive. With --ready, checks whether it accepts devices
now; if not, the error names what fails.

The status is 0 if so. The gateway has five seconds to answer. With --http, no
token is needed (OWSLA_HTTP).
"""

_COMPLETION = """\
Prints the completion of `owsla` for a shell. To use it, put it where the shell
looks for completions:

  bash   ~/.local/share/bash-completion/completions/owsla
         (with the package bash-completion; or source it in ~/.bashrc)
  zsh    _owsla in a folder of $fpath, before compinit
  fish   ~/.config/fish/completions/owsla.fish
"""


def add_control_commands(commands: Any) -> None:
    """Add the commands that ask a running gateway."""
    _add_devices(commands)
    device = add_command(commands, "device", "[options] ID", _DEVICE, epilog=_ENVIRONMENT)
    device.add_argument("id", metavar="ID", help="the device")
    _add_json(device, "print the JSON object of the gateway on one line")
    _add_control(device)
    _add_top(commands)
    _add_trace(commands)
    _add_events(commands)
    kick = add_command(commands, "kick", "[options] ID", _KICK, epilog=_ENVIRONMENT)
    kick.add_argument("id", metavar="ID", help="the device")
    kick.add_argument("--all", action="store_true", help="close all connections that match")
    _add_json(kick, "print the JSON object of the gateway on one line")
    _add_control(kick)
    _add_control(add_command(commands, "reload", "[options]", _RELOAD, epilog=_ENVIRONMENT))
    _add_control(add_command(commands, "drain", "[options]", _DRAIN, epilog=_ENVIRONMENT))
    tree = add_command(commands, "tree", "[options]", _TREE, epilog=_ENVIRONMENT)
    _add_json(tree, "print the JSON object of the gateway on one line")
    _add_control(tree)
    health = add_command(commands, "health", "[options]", _HEALTH, epilog=_ENVIRONMENT)
    health.add_argument("--ready", action="store_true", help="check whether it accepts devices, as /readyz does")
    _add_control(health)


def add_completion(commands: Any) -> None:
    """Add the command that prints the completion of a shell."""
    completion = add_command(commands, "completion", "SHELL", _COMPLETION, epilog=None)
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def _add_devices(commands: Any) -> None:
    devices = add_command(commands, "devices", "[options] [QUERY]", _DEVICES, epilog=_ENVIRONMENT)
    devices.add_argument("query", metavar="QUERY", nargs="?", default="", help="part of a device id, connection id or address")
    devices.add_argument("--door", metavar="NAME", default="", help="only those of this door")
    devices.add_argument(
        "--state",
        metavar="STATE",
        choices=STATES,
        help="only those that are 'paused' (the gateway reads no lines of it now), 'slow' (it reads no more), 'held' (messages "
        "wait for a missing number) or 'closing'",
    )
    devices.add_argument(
        "--sort", metavar="FIELD", choices=SORTS, help=f"sort by one of: {', '.join(SORTS)}; with --reverse downwards"
    )
    devices.add_argument("--reverse", action="store_true", help="sort downwards: the largest, or latest, first")
    which = devices.add_mutually_exclusive_group()
    which.add_argument("--limit", metavar="N", type=whole_number(1), help="list at most N (a terminal: one screen)")
    which.add_argument("--all", action="store_true", help="list all of them, on a terminal too")
    _add_json(devices, "print the JSON object of each connection on a line")
    _add_control(devices)


def _add_top(commands: Any) -> None:
    top = add_command(commands, "top", "[options]", _TOP, epilog=_ENVIRONMENT)
    top.add_argument("--interval", metavar="SECONDS", type=_interval, default=2.0, help="time between two refreshes (2)")
    top.add_argument("--count", metavar="N", type=whole_number(1), help="end after N of them")
    top.add_argument(
        "--limit", metavar="N", type=whole_number(1, 100), help="list at most N connections (10; a terminal: one screen)"
    )
    _add_json(top, "print the JSON object of each snapshot on a line")
    _add_control(top)


def _add_trace(commands: Any) -> None:
    trace = add_command(commands, "trace", "[options] ID", _TRACE, epilog=_ENVIRONMENT)
    trace.add_argument("id", metavar="ID", help="the device")
    trace.add_argument("--minutes", metavar="N", type=whole_number(1, 1440), default=5, help="end after N minutes (5)")
    trace.add_argument("--bodies", action="store_true", help="show the lines themselves, and not just their sizes")
    _add_json(trace, "print the JSON object of each record on a line")
    _add_control(trace)


def _add_events(commands: Any) -> None:
    events = add_command(commands, "events", "[options] [QUERY]", _EVENTS, epilog=_ENVIRONMENT)
    events.add_argument("query", metavar="QUERY", nargs="?", default="", help="only events whose text or fields contain it")
    events.add_argument("--follow", "-f", action="store_true", help="go on with the events to come, until Ctrl-C")
    events.add_argument("--kind", metavar="EVENT", action="append", help="only this kind of event; may be repeated")
    events.add_argument("--warnings", action="store_true", help="only warnings")
    events.add_argument("--limit", metavar="N", type=whole_number(1, 1000), default=100, help="show the last N (100)")
    _add_json(events, "print the JSON object of each event on a line")
    _add_control(events)


def _add_json(command: Parser, text: str) -> None:
    command.add_argument("--json", action="store_true", help=text)


def _add_control(command: Parser) -> None:
    gateway = command.add_argument_group("the gateway")
    where = gateway.add_mutually_exclusive_group()
    where.add_argument(
        "--control", metavar="PATH", help="the unix socket of its control interface (OWSLA_CONTROL, or owsla.sock)"
    )
    where.add_argument("--http", metavar="URL", help="its --http: http://HOST:PORT, or [ADDRESS:]PORT")
    gateway.add_argument("--token-file", metavar="FILE", help="file with the token for --http (OWSLA_HTTP_TOKEN_FILE)")


def _interval(text: str) -> float:
    value = seconds(text)
    if not 0.1 <= value <= 3600:
        raise ArgumentTypeError(f"{text!r} is not a time from 100ms to 1h")
    return value


Prepare = Callable[[argparse.Namespace, Mapping[str, str]], Callable[[], int]]
"""A function that makes a command from parsed arguments and the environment; the command returns the exit status."""


def prepare(command: str) -> Prepare | None:
    """Import the implementation of a command, or return `None` for another one."""
    match command:
        case "devices":
            from ._devices import command as found
        case "device":
            from ._device import command as found
        case "top":
            from ._top import command as found
        case "trace":
            from ._trace import command as found
        case "events":
            from ._events import command as found
        case "kick":
            from ._kick import command as found
        case "reload" | "drain":
            from . import _actions

            return _actions.reload if command == "reload" else _actions.drain
        case "tree":
            from ._tree import command as found
        case "health":
            from ._health import command as found
        case "completion":
            from ._completion import command as found
        case _:
            return None
    return found
