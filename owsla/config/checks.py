"""Checks of values that depend on each other, and of the files that they name.

Each raises `ConfigError`. If two options exclude each other, the message names one that the user set.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NoReturn

from owsla.config.addresses import BrokerAddress, ManagementAddress
from owsla.config.deny_list import read_deny_list
from owsla.config.framings import acknowledgement_fault, framing_fault
from owsla.config.options import BY_NAME, OWN_ARGUMENTS
from owsla.config.passwords import read_password, read_token
from owsla.config.readers import UNDELIVERABLE_SUFFIX
from owsla.config.settings import ProxySender, QueueArgument, Settings
from owsla.errors import ConfigError
from owsla.events import check_handlers
from owsla.interfaces import FIRST_DOOR
from owsla.runtime.files import ReadFile
from owsla.runtime.sockets import loopback
from owsla.tls.broker import load_broker_tls
from owsla.tls.certificates import read_certificates
from owsla.tls.device import DeviceTLSFiles, load_device_tls
from owsla.tls.revocation import read_revocation_lists

STREAM: Final[QueueArgument] = ("x-queue-type", "stream")
"""Argument of a queue that makes it a stream."""


@dataclass(frozen=True, slots=True)
class Given:
    """The texts that a source has for an option."""

    texts: tuple[str, ...]
    origin: str
    """The source, as messages name it."""


class GivenAt(dict[str, Given]):
    """Texts that a door has for its own options, and the place of the door for messages about what it does not say."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin


def check_values(values: dict[str, Any], given: Mapping[str, Given], read: ReadFile) -> None:
    """Check the values of repeatable options, by field of `Settings`; put the password of its file into the brokers."""
    values["brokers"] = _brokers(values, given, read)
    _check_proxies(values, given)
    try:
        check_handlers(values["events"])
    except ConfigError as error:
        raise ConfigError(f"{given['events'].origin}: {error}") from None
    _check_queue_arguments(values, given)
    _check_tokens(values, given, read)


def check_readable(values: Mapping[str, Any], given: Mapping[str, Given], read: ReadFile) -> None:
    """Check that the files of certificates, keys and lists can be read. The message names the option."""
    for name in ("cert", "key", "client-ca", "client-crl", "ocsp-response", "deny", "broker-ca", "broker-cert", "broker-key"):
        value: Path | tuple[Path, ...] | None = values.get(BY_NAME[name].field)
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None:
                try:
                    read(path)
                except ConfigError as error:
                    raise ConfigError(f"{given[name].origin}: {error}") from None


def proxy_fault(senders: Sequence[ProxySender], *, unix: bool) -> str:
    """Return why no peer of a door could be one of these trusted senders; empty if one could. `unix`: it is a unix socket."""
    if not senders or ("unix" in senders if unix else any(sender != "unix" for sender in senders)):
        return ""
    if unix:
        return "the peers of a unix socket have no address; write unix to trust all of them, or off"
    return "unix stands for the peers of a unix socket, and this is a TCP port; name networks, or write off"


def check_door_values(values: dict[str, Any], given: Mapping[str, Given]) -> None:
    """Check the values of a door's own options, by field of `Settings`, and add those that replace what belongs together."""
    _check_proxies(values, given)
    if "from_device_arguments" in values:
        _check_arguments("from-device-argument", values, given)
    if not {"cert", "key"}.isdisjoint(given):
        # Certificates, keys and OCSP responses belong together, and so do authorities and revocation lists.
        for name in ("cert", "key", "ocsp_response"):
            values.setdefault(name, ())
    if "client-ca" in given:
        values.setdefault("client_crl", None)
    if "from-device" in given:
        values.setdefault("publish_exchange", None)


def _check_proxies(values: dict[str, Any], given: Mapping[str, Given]) -> None:
    senders: tuple[ProxySender | None, ...] = values.get("proxy_protocol", ())
    if None in senders:
        if len(senders) > 1:
            raise ConfigError(f"{given['proxy-protocol'].origin}: either off or networks, not both")
        values["proxy_protocol"] = ()


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
    management: ManagementAddress | None = values["broker_management"]
    secured = any(address.tls for address in addresses)
    for name in ("broker-ca", "broker-cert", "broker-key"):
        used = secured or (name == "broker-ca" and management is not None and management.tls)
        if values[BY_NAME[name].field] is not None and not used:
            raise ConfigError(f"{given[name].origin}: no --broker is amqps://")
    if management is not None:
        origin = given["broker-management"].origin
        if not addresses:
            raise ConfigError(f"{origin}: the embedded broker has no management API; give --broker too")
        if not management.username and addresses[0].external:
            raise ConfigError(f"{origin}: give a user and a password in the URL, since the first --broker has none")
    return addresses


def _check_tokens(values: Mapping[str, Any], given: Mapping[str, Given], read: ReadFile) -> None:
    """Check the files of the tokens for HTTP."""
    tokens: set[str] = set()
    for name in ("http-token-file", "http-read-token-file"):
        path: Path | None = values[BY_NAME[name].field]
        if path is None:
            continue
        if values["http"] is None:
            raise ConfigError(f"{given[name].origin}: has an effect only with --http")
        try:
            token = read_token(path, read)
        except ConfigError as error:
            raise ConfigError(f"{given[name].origin}: {error}") from None
        if token in tokens:
            raise ConfigError(f"{given[name].origin}: {path}: this is the token of --http-token-file, which may do more")
        tokens.add(token)


def _check_queue_arguments(values: Mapping[str, Any], given: Mapping[str, Given]) -> None:
    for name in OWN_ARGUMENTS:
        _check_arguments(name, values, given)


def _check_arguments(name: str, values: Mapping[str, Any], given: Mapping[str, Given]) -> None:
    own, no_stream = OWN_ARGUMENTS[name]
    seen: set[str] = set()
    arguments: tuple[QueueArgument, ...] = values[BY_NAME[name].field]
    for argument, value in arguments:
        if argument in seen:
            raise ConfigError(f"{given[name].origin}: {argument} is given twice")
        if argument in own:
            raise ConfigError(f"{given[name].origin}: {argument} is {own[argument]}")
        if no_stream and (argument, value) == STREAM:
            raise ConfigError(f"{given[name].origin}: {no_stream}")
        seen.add(argument)


def check_settings(settings: Settings, given: Mapping[str, Given]) -> None:
    """Check the settings of a door that depend on each other: those of the top level, or of another door."""
    _check_place(settings, given)
    _check_tls(settings, given)
    _check_proxy(settings, given)
    _check_queues(settings, given)
    _check_dialect(settings, given)
    if isinstance(given, GivenAt):
        _check_batch_delay([settings], given)
    if "delimiter" in given and settings.framing.kind != "lines":
        _refuse(given, ("delimiter",), "has an effect only with --framing lines")
    if fault := framing_fault(settings.framing, settings.max_line):
        _refuse(given, ("framing", "max-line"), fault)
    if settings.device_ack is not None:
        fault = acknowledgement_fault(settings.device_ack, settings.framing, settings.delimiter)
        if fault:
            _refuse(given, ("device-ack", "framing", "delimiter"), fault)


def _refuse(given: Mapping[str, Given], names: Sequence[str], reason: str) -> NoReturn:
    """Raise a `ConfigError` that names the first of these options that the user set."""
    otherwise = f"{given.origin}: {names[0]}" if isinstance(given, GivenAt) else f"--{names[0]}"
    origin = next((given[name].origin for name in names if name in given), otherwise)
    raise ConfigError(f"{origin}: {reason}")


def check_doors(settings: Settings, given: Mapping[str, Given]) -> None:
    """Check what several doors, and the other ports, must not have in common."""
    origin = given["listen"].origin if "listen" in given else "--listen"
    names = [door.name for door in settings.doors]
    for name in names:
        if names.count(name) > 1:
            fault = "is the name of the door that the top-level options describe" if name == FIRST_DOOR else "names two doors"
            raise ConfigError(f"{origin}: {name} {fault}")
    _check_ports(settings, given)
    arguments: dict[str, tuple[QueueArgument, ...]] = {}
    for door in settings.doors:
        own = door.settings
        if own.publish_exchange is None and set(arguments.setdefault(own.from_device, own.from_device_arguments)) != set(
            own.from_device_arguments
        ):
            raise ConfigError(f"{origin} {door.name}: the queue {own.from_device!r} has other arguments at another door")
    if not any(door.settings.tls for door in settings.doors):
        _refuse_tls_options(given, "has an effect only with TLS, and there is no door with it")
    _check_batch_delay([door.settings for door in settings.doors], given)


def _check_batch_delay(doors: Sequence[Settings], given: Mapping[str, Given]) -> None:
    """Refuse --batch-delay if none of the doors that it is for publishes lines in batches."""
    if "batch-delay" in given and all(door.batch == 1 for door in doors):
        _refuse(given, ("batch-delay",), "has an effect only with --batch")


def _check_place(settings: Settings, given: Mapping[str, Given]) -> None:
    if "interface" in given and not isinstance(settings.port, int):
        _refuse(given, ("interface",), "has an effect only with a port number")
    if "socket-mode" in given and not isinstance(settings.port, Path):
        _refuse(given, ("socket-mode",), "has an effect only with a unix socket, as in --port unix:/run/owsla.sock")


def _check_proxy(settings: Settings, given: Mapping[str, Given]) -> None:
    if isinstance(settings.port, Path) and (fault := proxy_fault(settings.proxy_protocol, unix=True)):
        _refuse(given, ("proxy-protocol",), fault)
    if "proxy-identity" in given and settings.proxy_identity:
        if not settings.proxy_protocol:
            _refuse(given, ("proxy-identity",), "has an effect only with --proxy-protocol")
        if settings.tls:
            _refuse(given, ("proxy-identity",), "has an effect only without TLS: with TLS the device shows its own certificate")


_TLS_OPTIONS: Final = ("cert", "key", "client-ca", "client-cert", "client-crl", "crl-policy", "ocsp-response")


def _refuse_tls_options(given: Mapping[str, Given], reason: str) -> None:
    for name in _TLS_OPTIONS:
        if name in given:
            _refuse(given, (name,), reason)


def _check_tls(settings: Settings, given: Mapping[str, Given]) -> None:
    if isinstance(given, GivenAt) and not settings.tls:
        _refuse_tls_options(given, "has an effect only with TLS")
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
    if not settings.brokers and STREAM in settings.from_device_arguments:
        _refuse(given, ("from-device-argument",), "the embedded broker has no streams; give --broker too")
    if settings.max_line > settings.window_bytes:
        sizes = f"max-line ({settings.max_line} bytes) is more than window-bytes ({settings.window_bytes} bytes)"
        _refuse(given, ("max-line", "window-bytes"), sizes)


def _check_dialect(settings: Settings, given: Mapping[str, Given]) -> None:
    if settings.dialect is None:
        for name in ("login-checker", "login-timeout"):
            if name in given and (name != "login-checker" or settings.login_checker is not None):
                _refuse(given, (name,), "has an effect only with a --dialect that logs devices in")


def _check_ports(settings: Settings, given: Mapping[str, Given]) -> None:
    ports: list[tuple[str, str, str, int]] = []
    paths: dict[Path, str] = {}
    for door in settings.doors:
        place = door.settings.port
        option = "port" if door.name == FIRST_DOOR else "listen"
        shown = f"--{option}" if option == "port" else f"--listen {door.name}"
        if isinstance(place, int):
            ports.append((option, shown, door.settings.interface, place))
        elif place is not None and paths.setdefault(place.resolve(), shown) != shown:
            _refuse(given, (option,), f"{paths[place.resolve()]} and {shown} cannot both use {place}")
    if isinstance(settings.control, Path) and (door_shown := paths.get(settings.control.resolve())):
        _refuse(given, ("control",), f"{door_shown} and --control cannot both use {settings.control}")
    if settings.http is not None:
        ports.append(("http", "--http", *settings.http))
    if not settings.brokers:
        ports.append(("embedded-port", "--embedded-port", loopback(), settings.embedded_port))
    for (option, shown, address, port), (other_option, other_shown, other_address, other_port) in combinations(ports, 2):
        if port == other_port != 0 and _overlap(address, other_address):
            _refuse(given, (other_option, option), f"{shown} and {other_shown} cannot both use port {port}")


def _overlap(address: str, other: str) -> bool:
    """Return whether two sockets with the same port exclude each other on these addresses. An empty address is all."""
    if not address or not other or address == other:
        return True
    first, second = ipaddress.ip_address(address), ipaddress.ip_address(other)
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def check_files(settings: Settings, read: ReadFile) -> None:
    """Check the certificates, keys and lists that the settings name, the deny list included."""
    for door in settings.doors:
        own = door.settings
        if not own.tls:
            continue
        if own.cert:
            load_device_tls(device_tls_files(own, zip(own.cert, own.key, strict=True)), read)
        elif own.client_ca is not None:
            authorities = read_certificates(own.client_ca, read)
            if own.client_crl is not None:
                read_revocation_lists(own.client_crl, authorities, read)
    load_broker_tls(settings.broker_ca, settings.broker_cert, settings.broker_key, read)
    if settings.deny is not None:
        read_deny_list(settings.deny, read)


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
