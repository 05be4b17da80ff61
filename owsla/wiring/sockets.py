"""Sockets of a process, claimed before anything else is made: a port in use ends the start here."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from .. import http
from ..config.addresses import BrokerAddress
from ..config.checks import proxy_fault
from ..config.settings import DEFAULT_CONTROL, Door, Settings
from ..embedded import EmbeddedBroker
from ..errors import ConfigError
from ..interfaces import FIRST_DOOR
from ..runtime.sockets import bind, bind_unix, loopback
from ..runtime.systemd import passed_sockets, sockets_of_doors

_log = Logger(namespace="owsla")


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets of a process, and the brokers to connect to."""

    doors: Mapping[str, socket.socket]
    """Socket of each door, by name. It is bound, and does not listen yet unless it was passed by systemd."""
    http: socket.socket | None
    control: socket.socket | None
    """Unix socket of the API, which listens already."""
    embedded: EmbeddedBroker | None
    brokers: list[BrokerAddress]

    @property
    def device(self) -> socket.socket:
        """Socket of the first door."""
        return self.doors[FIRST_DOOR]


def claim_sockets(reactor: Any, settings: Settings, environ: MutableMapping[str, str] = os.environ) -> Sockets:
    """Bind every socket of the settings. A door for which systemd passes a socket has that one, and binds none.

    Raise `ConfigError`, which says what cannot be had. Nothing is bound then.
    """
    passed = sockets_of_doors(passed_sockets(environ), [door.name for door in settings.doors])
    claimed: list[socket.socket] = []
    try:
        doors: dict[str, socket.socket] = {}
        for door in settings.doors:
            if door.name in passed:
                doors[door.name] = passed[door.name]
            else:
                doors[door.name] = _door_socket(door)
                claimed.append(doors[door.name])
            # Only the socket tells the kind of a door for which systemd may pass one.
            if fault := proxy_fault(door.settings.proxy_protocol, unix=doors[door.name].family == socket.AF_UNIX):
                raise ConfigError(f"{_option(door, 'proxy-protocol')}: {fault}")
        http_socket = None
        if settings.http is not None:
            http_socket = http.claim(settings.http[1], settings.http[0])
            claimed.append(http_socket)
        control = _control_socket(settings)
        if control is not None:
            claimed.append(control)
        if settings.brokers:
            return Sockets(doors, http_socket, control, None, list(settings.brokers))
        embedded, address = _embedded_broker(reactor, settings)
        return Sockets(doors, http_socket, control, embedded, [address])
    except ConfigError:
        for sock in claimed:
            sock.close()
        raise


def _control_socket(settings: Settings) -> socket.socket | None:
    """Return the control socket. The default one is not worth a failed start: another gateway of this folder may have it."""
    if settings.control == "off":
        return None
    try:
        sock = http.claim_control(settings.control or DEFAULT_CONTROL)
    except ConfigError as error:
        if settings.control is not None:
            raise
        _log.warn(
            "No control socket, so that commands such as owsla devices cannot reach this gateway: {error}; use another one "
            "(--control PATH), or none (--control off)",
            error=str(error).removeprefix("--control: "),
        )
        return None
    atexit.register(sock.close)  # a start that fails must not leave the file behind
    return sock


def _door_socket(door: Door) -> socket.socket:
    settings = door.settings
    option = _option(door, "port")
    if isinstance(settings.port, Path):
        return bind_unix(settings.port, settings.socket_mode, option)
    if settings.port is None:
        raise ConfigError(f"{option}: it has no port, and systemd passes no socket of this name")
    return bind(settings.port, settings.interface, option)


def _option(door: Door, name: str) -> str:
    """Return the name of an option of a door for messages."""
    if door.name == FIRST_DOOR:
        return f"--{name}"
    return f"--listen {door.name}" if name == "port" else f"--listen {door.name}: {name}"


def _embedded_broker(reactor: Any, settings: Settings) -> tuple[EmbeddedBroker, BrokerAddress]:
    address = loopback()
    try:
        sock = bind(settings.embedded_port, address, "--embedded-port")
    except ConfigError as error:
        raise ConfigError(
            f"{error}: a broker may already be running there (use it with --broker amqp://guest:guest@127.0.0.1), "
            "or choose another port with --embedded-port"
        ) from None
    embedded = EmbeddedBroker(reactor, sock, memory_limit=settings.embedded_memory)
    return embedded, BrokerAddress(address, sock.getsockname()[1])
