"""What may be typed after `owsla swarm`, and the plan that it makes."""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ...errors import ConfigError
from . import _lines, _sources
from ._plan import BEFORE_ANSWERED, MODES, SPARE_FILES, Plan

DESCRIPTION: Final = """\
Simulates devices: thousands of TLS connections that speak lines, to see what
a gateway and its back end hold.

  --mode echo    says lines and matches the answers: latency, and what was
                 lost, came twice or out of order; for a back end that sends
                 each line back ('owsla echo')
  --mode flood   says lines and takes no notice of answers; with --device-ack
                 it counts what the gateway says is safe
  --mode hold    keeps connections, with a line a minute from each
  --mode storm   connects, shakes hands, closes, and again

The exit status is 0 where everything asked for held, 2 where something did
not (a lost line, a dropped connection), 1 for a mistake or no gateway.
"""

_PORT_RANGE: Final = "/proc/sys/net/ipv4/ip_local_port_range"

_IN_FLIGHT: Final = 64
"""Handshakes at once: enough to keep a gateway busy, far below what one of Owsla's allows (512)."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `owsla swarm`."""
    where = command.add_argument_group("where")
    where.add_argument("--host", metavar="HOST", default="127.0.0.1", help="the gateway (127.0.0.1)")
    where.add_argument("--port", metavar="PORT", type=_port, default=8883, help="its device port (8883)")
    where.add_argument(
        "--source",
        metavar="ADDRESSES",
        action="append",
        help="connect from these: ADDRESS, FIRST-LAST, or a network such as 127.1.0.0/24; repeated, or with commas. "
        "One address has some 28,000 ports",
    )
    what = command.add_argument_group("what")
    what.add_argument("--mode", choices=MODES, default="echo", help="echo, flood, hold or storm (echo)")
    what.add_argument(
        "--connections", metavar="N", type=_whole(1), help="how many (100); in a storm: end after so many (no limit)"
    )
    what.add_argument(
        "--connect-rate", metavar="N", type=_number(0), default=0.0, help="connects a second over all (0: as fast as it goes)"
    )
    what.add_argument(
        "--connecting",
        metavar="N",
        type=_whole(1),
        default=_IN_FLIGHT,
        help=f"connects under way at once, over all ({_IN_FLIGHT})",
    )
    what.add_argument(
        "--connect-timeout", metavar="SECONDS", type=_number(0.001), default=30.0, help="for a connection and handshake (30)"
    )
    what.add_argument(
        "--rate",
        metavar="N",
        type=_number(0),
        help="lines a second over all; 0: as fast as it goes (0; hold: a line a minute from each connection)",
    )
    what.add_argument(
        "--tick",
        metavar="MS",
        type=_number(0),
        default=0.0,
        help="at a --rate: say lines every so many milliseconds, all that are due by then; 0: each when it is due, which "
        "costs both sides more (0)",
    )
    what.add_argument(
        "--in-flight",
        metavar="N",
        type=_whole(0),
        help="lines of one connection that may wait for an answer, or with --device-ack to be safe; 0: any number "
        f"(echo: 1, or {BEFORE_ANSWERED} at a --rate; else 0)",
    )
    what.add_argument("--seconds", metavar="SECONDS", type=_number(0.001), default=10.0, help="how long, once connected (10)")
    what.add_argument(
        "--wait",
        action="store_true",
        help="when all are connected, say so on standard error, and begin with Enter (or the end of standard input)",
    )
    what.add_argument(
        "--grace", metavar="SECONDS", type=_number(0), default=10.0, help="how long to wait for the last answers (10)"
    )
    what.add_argument(
        "--line",
        metavar="TEXT",
        default=_lines.DEFAULT,
        help="what is said: {n} is the line's number on its connection, {device} the device's, {time} milliseconds since "
        f"1970, {{pad}} where --size fills up (at the end); other braces are as they are ({_lines.DEFAULT!r})",
    )
    what.add_argument(
        "--size", metavar="BYTES", type=_whole(0), default=0, help="fill lines up with dots to this (0: as they are)"
    )
    what.add_argument(
        "--device-ack", metavar="TEXT", help="the gateway's own --device-ack, such as 'ACK {seq}', to count what is safe"
    )
    tls = command.add_argument_group("TLS")
    tls.add_argument("--ca", metavar="FILE", help="PEM file with the authorities to trust (the system's)")
    tls.add_argument("--insecure", action="store_true", help="trust whatever answers")
    tls.add_argument("--server-name", metavar="NAME", help="the name its certificate is for (--host)")
    tls.add_argument(
        "--cert",
        metavar="FILE",
        help="client certificate: a PEM file; a folder of NAME.pem with NAME.key, used in turn; or a name with {device} in it",
    )
    tls.add_argument("--key", metavar="FILE", help="its key, likewise with {device} (in the same file)")
    tls.add_argument("--resume", action="store_true", help="resume TLS sessions, and count how many were resumed")
    how = command.add_argument_group("how")
    how.add_argument("--processes", metavar="N", type=_whole(1), default=1, help="share the work among so many (1)")
    how.add_argument("--json", action="store_true", help="a summary as JSON on standard output, in place of a table")
    how.add_argument("--histogram", metavar="FILE", help="draw latencies as SVG (echo: of lines; else of connects)")


def command(args: argparse.Namespace) -> Callable[[], int]:
    """What to run. `ConfigError`."""
    from ._run import run

    return partial(run, plan(args), as_json=args.json, histogram=args.histogram)


def plan(args: argparse.Namespace) -> Plan:
    """The plan, checked as far as this can be done without connecting. `ConfigError`."""
    storm = args.mode == "storm"
    if args.rate and storm:
        raise ConfigError("--rate: a storm says no lines; --connect-rate is for connects")
    connections = args.connections or (0 if storm else 100)
    rate = args.rate
    if rate is None:
        rate = connections / 60 if args.mode == "hold" else 0.0
    elif not rate and args.mode == "hold":
        raise ConfigError("--rate: to hold connections as fast as it goes is --mode flood")
    in_flight = args.in_flight
    if in_flight is None:
        in_flight = 0 if args.mode != "echo" else BEFORE_ANSWERED if rate else 1
    elif in_flight == 0 and args.mode == "echo" and not rate:
        raise ConfigError("--in-flight: without a --rate there has to be a limit")
    elif in_flight and args.mode == "flood" and args.device_ack is None:
        raise ConfigError("--in-flight: without --device-ack nothing says what has arrived")
    if args.tick and not rate:
        raise ConfigError("--tick: without a --rate no line is due at any time")
    if args.wait and storm:
        raise ConfigError("--wait: a storm has nothing that comes after its connects")
    _check_line(args)
    if args.insecure and args.ca is not None:
        raise ConfigError("--insecure: whatever answers is trusted, so what is --ca for?")
    made = Plan(
        mode=args.mode,
        host=args.host,
        port=args.port,
        connections=connections,
        connect_rate=args.connect_rate,
        connecting=args.connecting,
        connect_timeout=args.connect_timeout,
        rate=0.0 if storm else rate,
        in_flight=0 if args.mode == "hold" else in_flight,
        seconds=args.seconds,
        grace=args.grace,
        line=args.line,
        size=args.size,
        device_ack=args.device_ack,
        ca=args.ca,
        insecure=args.insecure,
        server_name=args.server_name if args.server_name is not None else args.host,
        cert=args.cert,
        key=args.key,
        resume=args.resume,
        sources=_read_sources(args.source),
        processes=min(args.processes, connections or args.processes, args.connecting if storm else args.processes),
        wait=args.wait,
        tick=args.tick / 1000,
    )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    check_files(made, math.inf if files == resource.RLIM_INFINITY else files)
    try:
        with open(_PORT_RANGE) as file:
            check_ports(made, file.read())
    except OSError:
        pass  # then connecting says so
    return made


def check_files(made: Plan, files: float) -> None:
    """Whether each process may open as many files as it needs. `ConfigError`."""
    room = files - SPARE_FILES
    if made.files() > room:
        total = made.files() * made.processes
        how = f"--processes {math.ceil(total / room)}, or " if room > 0 else ""
        raise ConfigError(
            f"{made.files()} connections in a process: it may have {files} files open, {SPARE_FILES} of them for itself; "
            f"{how}more with 'ulimit -n'"
        )


def check_ports(made: Plan, port_range: str) -> None:
    """Whether there are local ports for all connections; `port_range` is the system's. `ConfigError`."""
    each = _sources.ports(port_range)
    if made.mode != "storm" and not _sources.enough(made.connections, made.sources, each):
        raise ConfigError(
            f"{made.connections} connections need {math.ceil(made.connections / each)} addresses to come from, with "
            f"{each} ports each; give them with --source, such as 127.0.0.1-127.0.0.{math.ceil(made.connections / each)}"
        )


def _check_line(args: argparse.Namespace) -> None:
    try:
        template = _lines.LineTemplate(args.line, args.size)
    except (ValueError, UnicodeError) as error:
        raise ConfigError(f"--line: {error}") from None
    if args.mode == "echo" and not template.numbered:
        raise ConfigError("--line: without {n} in it nothing says which line an answer is for")
    if args.device_ack is not None:
        try:
            _lines.ack_pattern(args.device_ack)
        except (ValueError, UnicodeError) as error:
            raise ConfigError(f"--device-ack: {error}") from None


def _read_sources(given: list[str] | None) -> tuple[str, ...]:
    if not given:
        return ()
    try:
        return tuple(_sources.read(",".join(given)))
    except ValueError as error:
        raise ConfigError(f"--source: {error}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= low):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return read


def _number(low: float) -> Callable[[str], Any]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} on")
        return number

    return read
