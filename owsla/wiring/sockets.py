"""Sockets and certificates of a process, claimed before anything else is made: a user's error ends the start here."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from .. import http
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..embedded import EmbeddedBroker
from ..errors import ConfigError
from ..runtime.sockets import bind
from ..tls.certificates import read_certificates
from ..tls.development import development_certificates
from ..tls.expiry import ServedCertificate

_log = Logger(namespace="owsla")


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """Files of the certificate that devices are shown."""

    cert: Path
    key: Path
    shown: ServedCertificate


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets of a process, and the brokers to connect to."""

    device: socket.socket
    http: socket.socket | None
    embedded: EmbeddedBroker | None
    brokers: list[BrokerAddress]


def device_certificate(settings: Settings, *, announce: bool = True) -> DeviceCertificate:
    """Return the certificate for devices: the configured one, or a development certificate, made at the first start.

    `announce` logs which authority devices should trust.
    """
    if settings.cert is not None and settings.key is not None:
        cert, key = settings.cert, settings.key
    else:
        made = development_certificates(settings.certs_dir, socket.gethostname())
        cert, key = made.cert, made.key
        if announce:
            _log.info("Development certificate in use; devices should trust {ca}", ca=str(made.ca.resolve()))
    expiry = read_certificates(cert)[0].not_valid_after_utc.timestamp()
    return DeviceCertificate(cert, key, ServedCertificate(str(cert), expiry))


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
