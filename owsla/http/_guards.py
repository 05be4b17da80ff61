"""Checks of the headers that tell a browser's request from another web page apart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_accepted_host(host: bytes, names: Collection[str]) -> bool:
    """Return whether a Host header is an IP address, localhost, or one of `names`.

    Any other name is refused because of DNS rebinding: the owner of a web page can resolve its name to 127.0.0.1, and so let
    the browser of a visitor read these pages.
    """
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
    except (UnicodeDecodeError, ValueError):
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name in (own.lower() for own in names):
        return True
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_from_elsewhere(origins: Sequence[bytes], sites: Sequence[bytes], hosts: Sequence[bytes]) -> bool:
    """Return whether a browser sent a request for another web page. The arguments are the headers Origin, Sec-Fetch-Site and
    Host.

    A page of another port of this machine is of the same site, and may not use the API either. Programs other than browsers
    send neither header. Sec-Fetch-Site decides if it is there: behind a reverse proxy, Host is not what the browser has sent.
    """
    if sites:
        return any(site not in (b"same-origin", b"none") for site in sites)
    own = {scheme + host.lower() for host in hosts for scheme in (b"http://", b"https://")}
    return any(origin.lower() not in own for origin in origins)
