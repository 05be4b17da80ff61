"""The plan of a swarm, made from its options."""

from __future__ import annotations

import argparse
import math
import resource
from typing import Final

from ...config.framings import read_framing
from ...errors import ConfigError
from . import _lines, _sources
from ._frames import Frames
from ._mqtt import IN_FLIGHT, MOST_IN_FLIGHT
from ._plan import IN_FLIGHT_AT_A_RATE, SPARE_FILES, Plan

_PORT_RANGE: Final = "/proc/sys/net/ipv4/ip_local_port_range"

_SOME_NUMBER: Final = 1_234_567_890
"""Number of a line for which it is checked whether the framing can carry it: a large one, with all digits."""

_SOME_TIME: Final = 1_234_567_890_123
"""Milliseconds since 1970, with as many digits as they have until the year 2286."""

_SHOWN: Final = 60
"""Bytes of a line that an error message shows."""


def plan(args: argparse.Namespace) -> Plan:
    """Return the plan, checked as far as possible without connecting. Raise `ConfigError` with the reason."""
    storm = args.mode == "storm"
    connections = args.connections or (0 if storm else 100)
    rate = args.rate
    if rate is None:
        rate = connections / 60 if args.mode == "hold" else 0.0
    in_flight = args.in_flight
    if in_flight is None:
        in_flight = 0 if args.mode != "echo" else max(IN_FLIGHT_AT_A_RATE if rate else 1, args.burst)
        if args.mode == "flood" and args.protocol == "mqtt":
            in_flight = max(IN_FLIGHT, args.burst)
    _check_protocol(args, in_flight)
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
        protocol=args.protocol,
        burst=args.burst,
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
        if args.burst > 1:
            raise ConfigError("--burst: a storm sends no lines")
        if args.wait:
            raise ConfigError("--wait: a storm has nothing to wait for after its connects")
    if args.mode == "hold" and not rate:
        raise ConfigError("--rate: to hold connections and send without a limit, use --mode flood")
    if args.mode == "echo" and not rate and not in_flight:
        raise ConfigError("--in-flight: a limit is needed without --rate")
    if args.mode == "flood" and in_flight and args.device_ack is None and args.protocol == "lines":
        raise ConfigError("--in-flight: without --device-ack nothing acknowledges the lines of a flood")
    if in_flight and in_flight < args.burst:
        raise ConfigError(f"--burst: more than the {in_flight} lines of --in-flight, so no burst could be sent")
    if args.tick and not rate:
        raise ConfigError("--tick: needs --rate, which says when lines are due")
    if args.insecure and args.ca is not None:
        raise ConfigError("--insecure: not possible with --ca, since any certificate is trusted")


def _check_protocol(args: argparse.Namespace, in_flight: int) -> None:
    if args.protocol == "lines":
        return
    options = {"framing": ("--framing", "lines"), "delimiter": ("--delimiter", "\n"), "device_ack": ("--device-ack", None)}
    for name, (option, default) in options.items():
        if getattr(args, name) != default:
            raise ConfigError(f"{option}: not possible with --protocol {args.protocol}, which has its own")
    if args.mode != "hold" and not 0 < in_flight <= MOST_IN_FLIGHT and args.mode != "storm":
        raise ConfigError(f"--in-flight: 1 to {MOST_IN_FLIGHT} with --protocol {args.protocol}")


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
