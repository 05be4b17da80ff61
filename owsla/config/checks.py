"""Checks of values that depend on each other, and of the files that they name.

Each raises `ConfigError`. If two options exclude each other, the message names one that the user set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from owsla.config.addresses import BrokerAddress
from owsla.config.options import BY_NAME, OWN_ARGUMENTS
from owsla.config.passwords import read_password
from owsla.config.readers import UNDELIVERABLE_SUFFIX
from owsla.config.settings import QueueArgument, Settings
from owsla.errors import ConfigError
from owsla.events import check_handlers
from owsla.runtime.files import ReadFile
from owsla.tls.broker import load_broker_tls
from owsla.tls.certificates import read_certificates
from owsla.tls.device import DeviceTLSFiles, load_device_tls
from owsla.tls.revocation import read_revocation_lists


@dataclass(frozen=True, slots=True)
class Given:
    """The texts that a source has for an option."""

    texts: tuple[str, ...]
    origin: str
    """The source, as messages name it."""


def check_values(values: dict[str, Any], given: Mapping[str, Given], read: ReadFile) -> None:
    """Check the values of repeatable options, by field of `Settings`; put the password of its file into the brokers."""
    values["brokers"] = _brokers(values, given, read)
    try:
        check_handlers(values["events"])
    except ConfigError as error:
        raise ConfigError(f"{given['events'].origin}: {error}") from None
    _check_queue_arguments(values, given)


def check_readable(values: Mapping[str, Any], given: Mapping[str, Given], read: ReadFile) -> None:
    """Check that the files of certificates, keys and lists can be read. The message names the option."""
    for name in ("cert", "key", "client-ca", "client-crl", "ocsp-response", "broker-ca", "broker-cert", "broker-key"):
        value: Path | tuple[Path, ...] | None = values[BY_NAME[name].field]
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None:
                try:
                    read(path)
                except ConfigError as error:
                    raise ConfigError(f"{given[name].origin}: {error}") from None


def _brokers(values: Mapping[str, Any], given: Mapping[str, Given], read: ReadFile) -> tuple[BrokerAddress, ...]:
    """Return the addresses of the brokers; empty for the embedded one."""
    brokers: tuple[BrokerAddress | None, ...] = values["brokers"]
    addresses = tuple(address for address in brokers if address is not None)
    if addresses and len(addresses) < len(brokers):
        raise ConfigError(f"{given['broker'].origin}: either embedded or URLs, not both")
    if values["broker_cert"] is not None:
        addresses = tuple(address.with_certificate() for address in addresses)
    path: Path | None = values["broker_password_file"]
    if path is not None:
        origin = given["broker-password-file"].origin
        if not addresses:
            raise ConfigError(f"{origin}: the embedded broker needs no password; give --broker too")
        if all(address.external for address in addresses):
            raise ConfigError(f"{origin}: no --broker has a user, so the login is with --broker-cert, without a password")
        try:
            password = read_password(path, read)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None
        addresses = tuple(address if address.external else replace(address, password=password) for address in addresses)
    for name in ("broker-ca", "broker-cert", "broker-key"):
        if values[BY_NAME[name].field] is not None and not any(address.tls for address in addresses):
            raise ConfigError(f"{given[name].origin}: no --broker is amqps://")
    return addresses


def _check_queue_arguments(values: Mapping[str, Any], given: Mapping[str, Given]) -> None:
    for name, (own, consumed) in OWN_ARGUMENTS.items():
        seen: set[str] = set()
        arguments: tuple[QueueArgument, ...] = values[BY_NAME[name].field]
        for argument, value in arguments:
            if argument in seen:
                raise ConfigError(f"{given[name].origin}: {argument} is given twice")
            if argument in own:
                raise ConfigError(f"{given[name].origin}: {argument} is {own[argument]}")
            if consumed and (argument, value) == ("x-queue-type", "stream"):
                raise ConfigError(f"{given[name].origin}: a consumed message stays in a stream; use another queue type")
            seen.add(argument)


def check_settings(settings: Settings, given: Mapping[str, Given]) -> None:
    """Check the settings that depend on each other."""
    _check_tls(settings, given)
    _check_queues(settings, given)
    _check_dialect(settings, given)
    _check_ports(settings, given)
    if settings.device_ack is not None:
        fault = _acknowledgement_fault(settings.device_ack, settings.delimiter)
        if fault:
            _refuse(given, ("device-ack", "delimiter"), fault)


def _refuse(given: Mapping[str, Given], names: Sequence[str], reason: str) -> NoReturn:
    """Raise a `ConfigError` that names the first of these options that the user set."""
    origin = next((given[name].origin for name in names if name in given), f"--{names[0]}")
    raise ConfigError(f"{origin}: {reason}")


def _check_tls(settings: Settings, given: Mapping[str, Given]) -> None:
    certs, keys = len(settings.cert), len(settings.key)
    if certs != keys:
        if not certs or not keys:
            _refuse(given, ("cert", "key"), f"{'--cert' if keys else '--key'} must be given too")
        _refuse(given, ("cert", "key"), f"each --cert needs its --key, in the same order (there are {certs} and {keys})")
    for name, needed, useful in (
        ("client-cert", "client-ca", settings.client_ca is not None),
        ("client-crl", "client-ca", settings.client_ca is not None or settings.client_crl is None),
        ("crl-policy", "client-crl", settings.client_crl is not None),
        ("ocsp-response", "cert", bool(settings.cert)),
    ):
        if name in given and not useful:
            _refuse(given, (name,), f"has an effect only with --{needed}")
    if (settings.broker_cert is None) != (settings.broker_key is None):
        missing = "--broker-key" if settings.broker_key is None else "--broker-cert"
        _refuse(given, ("broker-cert", "broker-key"), f"{missing} must be given too")


def _check_queues(settings: Settings, given: Mapping[str, Given]) -> None:
    undeliverable = settings.to_device + UNDELIVERABLE_SUFFIX
    if settings.publish_exchange is None:
        if "routing-key" in given:
            _refuse(given, ("routing-key",), "has an effect only with --publish-exchange")
        if settings.from_device in (settings.to_device, undeliverable):
            both = f"from-device and to-device cannot both use the queue {settings.from_device!r}"
            _refuse(given, ("from-device", "to-device"), both)
    else:
        for name in ("from-device", "from-device-argument"):
            if name in given:
                _refuse(given, (name,), "has no effect with --publish-exchange: lines go to the exchange, not to a queue")
    if settings.max_line > settings.window_bytes:
        sizes = f"max-line ({settings.max_line} bytes) is more than window-bytes ({settings.window_bytes} bytes)"
        _refuse(given, ("max-line", "window-bytes"), sizes)


def _check_dialect(settings: Settings, given: Mapping[str, Given]) -> None:
    if settings.dialect is None:
        for name in ("login-checker", "login-timeout"):
            if name in given and (name != "login-checker" or settings.login_checker is not None):
                _refuse(given, (name,), "has an effect only with a --dialect that logs devices in")


def _check_ports(settings: Settings, given: Mapping[str, Given]) -> None:
    ports = [("port", settings.interface, settings.port)]
    if settings.http is not None:
        ports.append(("http", *settings.http))
    if not settings.brokers:
        ports.append(("embedded-port", "127.0.0.1", settings.embedded_port))
    for (name, address, port), (other_name, other_address, other_port) in combinations(ports, 2):
        if port == other_port != 0 and _overlap(address, other_address):
            _refuse(given, (other_name, name), f"--{name} and --{other_name} cannot both use port {port}")


def _overlap(address: str, other: str) -> bool:
    """Return whether two sockets with the same port exclude each other on these addresses. An empty address is all."""
    if not address or not other or address == other:
        return True
    first, second = ipaddress.ip_address(address), ipaddress.ip_address(other)
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def _acknowledgement_fault(template: str, delimiter: bytes) -> str:
    """Return why `delimiter` could split a line made from `template`; empty if it could not."""
    if delimiter == b"\n":
        return "the template contains the end of a line" if "\n" in template or "\r" in template else ""
    if any(byte in b"0123456789" for byte in delimiter):
        return "a delimiter with digits cannot be distinguished from {seq}"
    line = template.replace("{seq}", "0").encode()
    # Searched with the delimiter appended: the end of the line and the start of the delimiter may form a delimiter too.
    return "" if (line + delimiter).index(delimiter) == len(line) else "the template contains the delimiter"


def check_files(settings: Settings, read: ReadFile) -> None:
    """Check the certificates, keys and lists that the settings name."""
    if settings.cert:
        load_device_tls(device_tls_files(settings, zip(settings.cert, settings.key, strict=True)), read)
    elif settings.client_ca is not None:
        authorities = read_certificates(settings.client_ca, read)
        if settings.client_crl is not None:
            read_revocation_lists(settings.client_crl, authorities, read)
    load_broker_tls(settings.broker_ca, settings.broker_cert, settings.broker_key, read)


def device_tls_files(settings: Settings, pairs: Iterable[tuple[Path, Path]]) -> DeviceTLSFiles:
    """Return what the TLS of the device port is made of; `pairs` are files of server certificates and their keys."""
    return DeviceTLSFiles(
        pairs=tuple(pairs),
        client_ca=settings.client_ca,
        client_cert=settings.client_cert,
        client_crl=settings.client_crl,
        crl_policy=settings.crl_policy,
        ocsp_responses=settings.ocsp_response,
        device_id=settings.device_id,
    )
