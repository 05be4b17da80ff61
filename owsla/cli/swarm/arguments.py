"""The options of `owsla swarm`, and the plan made from them."""

from __future__ import annotations

import argparse
import math
import os
import resource
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ...config.framings import read_framing
from ...errors import ConfigError
from .._values import number, port, whole_number
from . import _lines, _proxy, _sources
from ._frames import Frames
from ._plan import IN_FLIGHT_AT_A_RATE, MODES, SPARE_FILES, Plan
from ._run import run

DESCRIPTION: Final = """\
Simulates devices: thousands of connections that send and receive lines, with
TLS or without, to measure how many a gateway and its back end can serve.

  --mode echo    sends lines and matches the answers: latency, and lines that
                 were lost, came twice or out of order; for a back end that
                 sends each line back ('owsla echo')
  --mode flood   sends lines and ignores answers; with --device-ack it counts
                 the lines that the gateway acknowledges
  --mode hold    keeps connections open, with a line a minute on each
  --mode storm   connects, completes the handshake, closes, and again

The exit status is 0 if everything held, 2 if something did not (a lost line,
a dropped connection), 1 for a mistake or if no gateway answers.
"""

_PORT_RANGE: Final = "/proc/sys/net/ipv4/ip_local_port_range"

_CONNECTING: Final = 64
"""Default number of handshakes at once: enough to keep a gateway busy, far below the 512 that Owsla allows."""

_LARGEST: Final = 10**9 - 1

_SOME_NUMBER: Final = 1_234_567_890
"""Number of a line for which it is checked whether the framing can carry it: a large one, with all digits."""

_SOME_TIME: Final = 1_234_567_890_123
"""Milliseconds since 1970, with as many digits as they have until the year 2286."""

_SHOWN: Final = 60
"""Bytes of a line that an error message shows."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `owsla swarm`."""
    where = command.add_argument_group("where")
    where.add_argument("--host", metavar="HOST", default="127.0.0.1", help="the gateway (127.0.0.1)")
    where.add_argument(
        "--port", metavar="PORT", type=_port, default=8883, help="its port for devices, or unix:PATH for a unix socket (8883)"
    )
    where.add_argument(
        "--source",
        metavar="ADDRESSES",
        action="append",
        help="connect from these: ADDRESS, FIRST-LAST, or a network such as 127.1.0.0/24; repeated, or with commas. "
        "One address has about 28,000 ports",
    )
    _add_door(command)
    _add_load(command)
    _add_tls(command)
    how = command.add_argument_group("how")
    how.add_argument("--processes", metavar="N", type=_count(1), default=1, help="number of processes that share the work (1)")
    how.add_argument("--json", action="store_true", help="print a summary as JSON in place of a table")
    how.add_argument(
        "--histogram", metavar="FILE", help="draw latencies as SVG: in echo mode those of lines, else those of connects"
    )


def _port(text: str) -> int | str:
    """Read a port, or the path of a unix socket."""
    if not text.startswith("unix:"):
        return port(text)
    path = text.removeprefix("unix:")
    if not path or "\0" in path:
        raise argparse.ArgumentTypeError(f"{text!r} is not unix:PATH")
    # The address of a socket has 108 bytes. Processes of the swarm have the folder of their parent, so a path may be relative.
    if len(os.fsencode(path)) > 107:
        raise argparse.ArgumentTypeError(f"{path!r} is too long for a unix socket (107 bytes)")
    return f"unix:{path}"


def _framing(text: str) -> str:
    """Read a framing, as the option of the gateway does."""
    try:
        return str(read_framing(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _delimiter(text: str) -> str:
    """Read a delimiter, as the option of the gateway does, into characters that stand for its bytes."""
    from ...config.readers import delimiter  # which imports Twisted

    try:
        return delimiter(text).decode("latin-1")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_door(command: argparse.ArgumentParser) -> None:
    door = command.add_argument_group("what the port expects")
    door.add_argument("--plain", action="store_true", help="speak without TLS")
    door.add_argument(
        "--framing",
        metavar="FRAMING",
        type=_framing,
        default="lines",
        help="the --framing of the gateway, such as length:2, for lines in both directions (lines)",
    )
    door.add_argument(
        "--delimiter", metavar="TEXT", type=_delimiter, default="\n", help="the --delimiter of the gateway for lines (\\n)"
    )
    door.add_argument(
        "--proxy",
        choices=_proxy.VERSIONS,
        help="begin with a PROXY protocol header, as a load balancer does: v1 or v2, with another source address for each "
        "device, of 198.18.0.0/15 or 2001:db8::/32. The gateway must trust the addresses that the swarm connects from",
    )
    door.add_argument(
        "--proxy-cn",
        metavar="NAME",
        help="with --proxy v2: the common name of a client certificate that a load balancer has verified, with {device} in it",
    )


def _count(low: int) -> Callable[[str], int]:
    return whole_number(low, _LARGEST)


def _add_load(command: argparse.ArgumentParser) -> None:
    what = command.add_argument_group("what")
    what.add_argument("--mode", choices=MODES, default="echo", help="echo, flood, hold or storm (echo)")
    what.add_argument(
        "--connections", metavar="N", type=_count(1), help="number of connections (100); in a storm: end after them (no limit)"
    )
    what.add_argument(
        "--connect-rate", metavar="N", type=number(0), default=0.0, help="connects per second in all (0: no limit)"
    )
    what.add_argument(
        "--connecting",
        metavar="N",
        type=_count(1),
        default=_CONNECTING,
        help=f"connections in progress at once, in all ({_CONNECTING})",
    )
    what.add_argument(
        "--connect-timeout", metavar="SECONDS", type=number(0.001), default=30.0, help="for a connection and handshake (30)"
    )
    what.add_argument(
        "--rate",
        metavar="N",
        type=number(0),
        help="lines per second in all; 0: no limit (0; hold: a line a minute on each connection)",
    )
    what.add_argument(
        "--tick",
        metavar="MS",
        type=number(0),
        default=0.0,
        help="with --rate: every MS milliseconds, send all lines that are due by then; 0: each line when it is due, which "
        "costs both sides more (0)",
    )
    what.add_argument(
        "--in-flight",
        metavar="N",
        type=_count(0),
        help="maximum number of lines of a connection that wait for an answer, or with --device-ack for its "
        f"acknowledgement; 0: no limit (echo: 1, or {IN_FLIGHT_AT_A_RATE} with --rate; else 0)",
    )
    what.add_argument(
        "--seconds", metavar="SECONDS", type=number(0.001), default=10.0, help="duration once all are connected (10)"
    )
    what.add_argument(
        "--wait",
        action="store_true",
        help="once all are connected, print a message on standard error and wait for Enter (or the end of standard input)",
    )
    what.add_argument(
        "--grace", metavar="SECONDS", type=number(0), default=10.0, help="how long to wait for the last answers (10)"
    )
    what.add_argument(
        "--line",
        metavar="TEXT",
        default=_lines.DEFAULT,
        help="the lines: {n} is the number of the line on its connection, {device} the number of the device, {time} "
        f"milliseconds since 1970, {{pad}} the padding of --size (at the end); other braces stay ({_lines.DEFAULT!r})",
    )
    what.add_argument(
        "--size",
        metavar="BYTES",
        type=_count(0),
        default=0,
        help="pad lines with dots to this size (0: no padding; with --framing fixed:N: N)",
    )
    what.add_argument(
        "--device-ack", metavar="TEXT", help="the --device-ack of the gateway, such as 'ACK {seq}', to count acknowledged lines"
    )


def _add_tls(command: argparse.ArgumentParser) -> None:
    tls = command.add_argument_group("TLS")
    tls.add_argument("--ca", metavar="FILE", help="PEM file with the authorities to trust (those of the system)")
    tls.add_argument("--insecure", action="store_true", help="trust any certificate")
    tls.add_argument("--server-name", metavar="NAME", help="the name that the certificate must be for (--host)")
    tls.add_argument(
        "--cert",
        metavar="FILE",
        help="client certificate: a PEM file; a folder of NAME.pem with NAME.key, used in turn; or a name with {device} in it",
    )
    tls.add_argument("--key", metavar="FILE", help="its key, likewise with {device} (in the same file)")
    tls.add_argument("--resume", action="store_true", help="resume TLS sessions, and count the resumed ones")


def command(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return the command, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    return partial(run, plan(args), as_json=args.json, histogram=args.histogram)


def plan(args: argparse.Namespace) -> Plan:
    """Return the plan, checked as far as possible without connecting. Raise `ConfigError` with the reason."""
    storm = args.mode == "storm"
    connections = args.connections or (0 if storm else 100)
    rate = args.rate
    if rate is None:
        rate = connections / 60 if args.mode == "hold" else 0.0
    in_flight = args.in_flight
    if in_flight is None:
        in_flight = 0 if args.mode != "echo" else IN_FLIGHT_AT_A_RATE if rate else 1
    _check_combinations(args, rate, in_flight)
    _check_door(args)
    unix = args.port.removeprefix("unix:") if isinstance(args.port, str) else None
    _check_line(args, connections)
    made = Plan(
        mode=args.mode,
        host=args.host,
        port=args.port if unix is None else 0,
        connections=connections,
        connect_rate=args.connect_rate,
        connecting=args.connecting,
        connect_timeout=args.connect_timeout,
        rate=0.0 if storm else rate,
        in_flight=0 if args.mode == "hold" else in_flight,
        seconds=args.seconds,
        grace=args.grace,
        line=args.line,
        size=_size(args),
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
        unix=unix,
        plain=args.plain,
        framing=args.framing,
        delimiter=args.delimiter,
        proxy=args.proxy,
        proxy_cn=args.proxy_cn,
    )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    check_files(made, math.inf if files == resource.RLIM_INFINITY else files)
    try:
        with open(_PORT_RANGE) as file:
            check_ports(made, file.read())
    except OSError:
        pass  # connecting will fail with a reason if there are too few
    return made


def _check_combinations(args: argparse.Namespace, rate: float, in_flight: int) -> None:
    if args.mode == "storm":
        if args.rate:
            raise ConfigError("--rate: a storm sends no lines; --connect-rate is for connects")
        if args.wait:
            raise ConfigError("--wait: a storm has nothing to wait for after its connects")
    if args.mode == "hold" and not rate:
        raise ConfigError("--rate: to hold connections and send without a limit, use --mode flood")
    if args.mode == "echo" and not rate and not in_flight:
        raise ConfigError("--in-flight: a limit is needed without --rate")
    if args.mode == "flood" and in_flight and args.device_ack is None:
        raise ConfigError("--in-flight: without --device-ack nothing acknowledges the lines of a flood")
    if args.tick and not rate:
        raise ConfigError("--tick: needs --rate, which says when lines are due")
    if args.insecure and args.ca is not None:
        raise ConfigError("--insecure: not possible with --ca, since any certificate is trusted")


def _check_door(args: argparse.Namespace) -> None:
    if args.plain:
        options = {"ca": "--ca", "insecure": "--insecure", "server_name": "--server-name", "cert": "--cert", "key": "--key"}
        for name, option in {**options, "resume": "--resume"}.items():
            if getattr(args, name):
                raise ConfigError(f"{option}: not possible with --plain, which is without TLS")
    if args.proxy_cn is not None and args.proxy != "v2":
        raise ConfigError("--proxy-cn: needs --proxy v2, which can carry a name")
    if args.delimiter != "\n" and args.framing != "lines":
        raise ConfigError(f"--delimiter: not possible with --framing {args.framing}, which has none")
    if isinstance(args.port, str) and args.source:
        raise ConfigError("--source: connections to a unix socket have no source address")


def check_files(made: Plan, files: float) -> None:
    """Check that each process may open enough files. Raise `ConfigError` if not."""
    room = files - SPARE_FILES
    if made.files() > room:
        total = made.files() * made.processes
        how = f"use --processes {math.ceil(total / room)}, or " if room > 0 else ""
        raise ConfigError(
            f"{made.files()} connections in a process, which may have {files} files open and needs {SPARE_FILES} for itself: "
            f"{how}raise the limit with 'ulimit -n'"
        )


def check_ports(made: Plan, port_range: str) -> None:
    """Check that there are local ports for all connections; `port_range` is that of the kernel. Raise `ConfigError` if not."""
    each = _sources.ports(port_range)
    if made.mode != "storm" and made.unix is None and not _sources.enough(made.connections, made.sources, each):
        raise ConfigError(
            f"{made.connections} connections need {math.ceil(made.connections / each)} source addresses, with {each} ports "
            f"each: give them with --source, such as 127.0.0.1-127.0.0.{math.ceil(made.connections / each)}"
        )


def _size(args: argparse.Namespace) -> int:
    """Return the minimum size of a line: that of the payloads, where all have the same."""
    framing = read_framing(args.framing)
    return args.size or (framing.size if framing.kind == "fixed" else 0)


def _check_line(args: argparse.Namespace, connections: int) -> None:
    try:
        template = _lines.LineTemplate(args.line, _size(args))
    except (ValueError, UnicodeError) as error:
        raise ConfigError(f"--line: {error}") from None
    line = template.line(_SOME_NUMBER, max(connections - 1, 0), _SOME_TIME)
    fault = Frames(args.framing, args.delimiter.encode("latin-1")).fault(line)
    if fault is not None:
        by = "--delimiter" if args.framing == "lines" else f"--framing {args.framing}"
        raise ConfigError(f"--line: {line[:_SHOWN]!r} {fault}, and is not possible with {by}")
    if args.mode == "echo" and not template.numbered:
        raise ConfigError("--line: needs {n}, to match answers to lines")
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
