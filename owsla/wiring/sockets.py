"""Sockets of a process, claimed before anything else is made: a port in use ends the start here."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from .. import http
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..embedded import EmbeddedBroker
from ..errors import ConfigError
from ..runtime.sockets import bind


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets of a process, and the brokers to connect to."""

    device: socket.socket
    http: socket.socket | None
    embedded: EmbeddedBroker | None
    brokers: list[BrokerAddress]


def claim_sockets(reactor: Any, settings: Settings) -> Sockets:
    """Bind every socket of the settings. `ConfigError` says which one cannot be had."""
    device = bind(settings.port, settings.interface)
    http_socket = http.claim(settings.http[1], settings.http[0]) if settings.http is not None else None
    if settings.brokers:
        return Sockets(device, http_socket, None, list(settings.brokers))
    try:
        sock = bind(settings.embedded_port, "127.0.0.1", "--embedded-port")
    except ConfigError as error:
        raise ConfigError(
            f"{error}: a broker may already be running there (use it with --broker amqp://guest:guest@127.0.0.1), "
            "or choose another port with --embedded-port"
        ) from None
    embedded = EmbeddedBroker(reactor, sock, memory_limit=settings.embedded_memory)
    return Sockets(device, http_socket, embedded, [BrokerAddress("127.0.0.1", sock.getsockname()[1])])
