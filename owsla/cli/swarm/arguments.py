"""The options of `owsla swarm`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ...errors import ConfigError
from .._values import number, port, whole_number
from ._lines import DEFAULT
from ._mqtt import IN_FLIGHT
from ._plan import IN_FLIGHT_AT_A_RATE, MODES, PROTOCOLS, PROXY_VERSIONS

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

_CONNECTING: Final = 64
"""Default number of handshakes at once: enough to keep a gateway busy, far below the 512 that Owsla allows."""

_LARGEST: Final = 10**9 - 1


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
    from ...config.framings import read_framing  # with the option itself only

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
        "--protocol",
        choices=PROTOCOLS,
        default="lines",
        help="lines, or mqtt for an MQTT broker: device N publishes its lines to the topic lines/N with QoS 1, and subscribes "
        "to answers/N (lines)",
    )
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
        choices=PROXY_VERSIONS,
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
        "--burst",
        metavar="N",
        type=_count(1),
        default=1,
        help="number of lines that a device writes together, as one that collects readings does; with --rate all of them are "
        "due when the first one is (1)",
    )
    what.add_argument(
        "--in-flight",
        metavar="N",
        type=_count(0),
        help="maximum number of lines of a connection that wait for an answer, or in a flood with --device-ack or --protocol "
        f"mqtt for their acknowledgement; 0: no limit (echo: 1, or {IN_FLIGHT_AT_A_RATE} with --rate; flood with --protocol "
        f"mqtt: {IN_FLIGHT}; both at least --burst; else 0)",
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
    _add_lines(what)


def _add_lines(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--line",
        metavar="TEXT",
        default=DEFAULT,
        help="the lines: {n} is the number of the line on its connection, {device} the number of the device, {time} "
        f"milliseconds since 1970, {{pad}} the padding of --size (at the end); other braces stay ({DEFAULT!r})",
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
    from ._planning import plan  # with the framings and the TLS of the gateway, which the other commands do not need
    from ._run import run

    return partial(run, plan(args), as_json=args.json, histogram=args.histogram)
