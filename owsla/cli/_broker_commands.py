"""The commands that connect to a broker, made from their arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..config.options import OPTIONS
from ..config.settings import Settings
from ..config.sources import load_settings
from ..errors import ConfigError
from ..routing import canonical
from ..runtime.sockets import loopback
from ._defaults import DEFAULT_BROKER, PEEK_COUNT, PEEK_MOST
from ._echo import Echo
from ._read_stream import ReadStream
from ._running import run
from ._send import Send, SendOptions
from ._tail import Peek, Tail, as_json, as_text
from ._who_has import WhoHas, WhoHasOptions, as_objects, as_table


def echo(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla echo`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    settings = broker_settings(args, environ)
    role = partial(
        Echo,
        from_device=_name(args, environ, "from-device"),
        to_device=_name(args, environ, "to-device"),
        seq_header=_name(args, environ, "seq-header"),
        prefix=os.fsencode(args.prefix),
    )
    return partial(run, "echo", settings, role, patient=True)


def tail(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla tail`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    settings = broker_settings(args, environ)
    if args.offset is not None and args.force:
        raise ConfigError("--offset: not with --force, which is for quorum queues")
    if args.offset is None and not args.take and (args.count or 0) > PEEK_MOST:
        raise ConfigError(f"--count: without --take the maximum is {PEEK_MOST}")
    what: dict[str, Any] = {
        "queue": _name(args, environ, "from-device"),
        "form": as_json if args.json else as_text,
        "seq_header": _name(args, environ, "seq-header"),
    }
    if args.offset is not None:
        return partial(run, "tail", settings, partial(ReadStream, count=args.count, offset=args.offset, **what), patient=True)
    if args.take:
        return partial(run, "tail", settings, partial(Tail, count=args.count, **what), patient=True)
    role = partial(Peek, count=args.count or PEEK_COUNT, force=args.force, **what)
    return partial(run, "tail", settings, role, patient=False)


def send(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla send`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    options = SendOptions(
        queue=_name(args, environ, "to-device"),
        address=_address(args),
        text=None if args.text == "-" else os.fsencode(args.text),
        seq=args.seq,
        close=args.close,
        expires=args.expires,
        report=args.report,
        timeout=args.timeout,
    )
    return partial(run, "send", broker_settings(args, environ), partial(Send, options=options), patient=False)


def _address(args: argparse.Namespace) -> dict[str, str]:
    """Return the header that says which device, or which devices, get a line. Raise `ConfigError`."""
    if args.device is None and args.to is None:
        connection_id = canonical(os.fsencode(args.connection_id))
        if connection_id is None:
            raise ConfigError(
                f"{args.connection_id!r} is not a connection id, which looks like 01234567-89ab-8cde-8f01-23456789abcd; "
                "use --device for the id of a device"
            )
        return {"connection_id": connection_id.decode()}
    if args.seq is not None:
        raise ConfigError("--seq: the numbers are those of a connection: not with --device or --to")
    if args.device is not None:
        return {"device_id": device_id(args.device)}
    if args.expires is None:
        raise ConfigError("--to: use --expires SECONDS too: a line for many devices takes time")
    if args.report and args.text == "-":
        raise ConfigError("--to: with --report TEXT is one line")
    return {"owsla_to": args.to}


def device_id(text: str) -> str:
    """Return a device id. Raise `ConfigError` if no device can have it."""
    raw = os.fsencode(text)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{text!r} is not a device id: it is not UTF-8") from None
    if not 1 <= len(raw) <= 255:
        raise ConfigError("a device id has 1 to 255 bytes")
    return name


def who_has(args: argparse.Namespace, environ: Mapping[str, str]) -> Callable[[], int]:
    """Return `owsla who-has`, ready to run. Raise `ConfigError` with the reason if it cannot run."""
    options = WhoHasOptions(
        exchange=f"{_name(args, environ, 'to-device')}.all",
        device_ids=tuple(dict.fromkeys(map(device_id, args.device_ids))),
        wait=args.wait,
        timeout=args.timeout,
        show=as_objects if args.json else as_table,
    )
    return partial(run, "who-has", broker_settings(args, environ), partial(WhoHas, options=options), patient=False)


def broker_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Return the settings of the gateway that concern the broker, with exactly one address. Raise `ConfigError`."""
    names = ("broker", "broker-password-file", "broker-ca", "broker-cert", "broker-key", "heartbeat")
    variables = {name: "OWSLA_" + name.upper().replace("-", "_") for name in names}
    given = {variable: environ[variable] for variable in variables.values() if environ.get(variable)}
    options = {name: getattr(args, name.replace("-", "_"), None) for name in names}
    first = given.get("OWSLA_BROKER", "").split(",")[0].strip()
    if (options["broker"] or first) in ("", "embedded"):
        options["broker"] = DEFAULT_BROKER if loopback() == "127.0.0.1" else DEFAULT_BROKER.replace("127.0.0.1", "[::1]")
    elif first:
        given["OWSLA_BROKER"] = first
    return load_settings([f"--{name}={text}" for name, text in options.items() if text is not None], given)


def _name(args: argparse.Namespace, environ: Mapping[str, str], name: str) -> str:
    """Return the name of a queue or a header: from the command line, the environment, or the default. Raise `ConfigError`."""
    option = next(option for option in OPTIONS if option.name == name)
    given = getattr(args, name.replace("-", "_"))
    text = given if given is not None else environ.get(option.variable) or option.default
    try:
        return str(option.read(text or ""))
    except ConfigError as error:
        raise ConfigError(f"{f'--{name}' if given is not None else option.variable}: {error}") from None
