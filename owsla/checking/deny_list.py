"""Checks of the file of `--deny`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ..config.deny_list import DenyList, Networks, read_deny_list
from ..config.settings import Settings
from ..errors import ConfigError
from ..log import pluralize
from ..runtime.files import ReadFile
from .findings import Finding, fail, ok, warn


def check_deny_list(settings: Settings, path: Path, read: ReadFile, now: datetime) -> Iterator[Finding]:
    """Check a deny list: whether it can be read, how much is in it, and whether all of it can have an effect."""
    try:
        denied = read_deny_list(path, read)
    except ConfigError as error:
        yield fail("deny", str(error))
        return
    yield ok("deny", f"{path}: {_contents(denied, now.timestamp())}")
    for version, networks in (("IPv4", denied.ipv4), ("IPv6", denied.ipv6)):
        if 0 in networks:
            yield warn("deny", f"{path}: a network of length 0 denies every {version} address")
    single = len(denied.ipv6.get(128, ()))
    if single:
        addresses = pluralize(single, "single IPv6 address", "single IPv6 addresses")
        yield warn("deny", f"{path}: {addresses}; a subscriber has all addresses of a /64, so deny that network")
    doors = [door.settings for door in settings.doors]
    certificates = any(door.tls and door.client_ca is not None for door in doors)
    if denied.serials and not certificates:
        yield warn("deny", f"{path}: serial numbers have no effect, since devices have no certificates (--client-ca)")
    if denied.devices and not certificates and not any(door.dialect is not None or door.proxy_identity for door in doors):
        yield warn("deny", f"{path}: device ids have no effect, since nothing identifies devices")


def _contents(denied: DenyList, now: float) -> str:
    """Return how many entries there are of each kind, and how many of all have ended."""
    if not denied.entries:
        return "empty: nothing is denied"
    single = _count(denied.ipv4, 32) + _count(denied.ipv6, 128)
    kinds = (
        (single, "address", "addresses"),
        (denied.addresses - single, "network", ""),
        (len(denied.serials), "serial number", ""),
        (len(denied.devices), "device id", ""),
    )
    text = ", ".join(pluralize(count, noun, plural) for count, noun, plural in kinds if count)
    ended = denied.entries - denied.in_force(now)
    return f"{text}; ended: {ended}" if ended else text


def _count(networks: Networks, length: int) -> int:
    return len(networks.get(length, ()))
