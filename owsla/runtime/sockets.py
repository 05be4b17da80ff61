"""Listening sockets."""

from __future__ import annotations

import errno
import socket

from ..errors import ConfigError, os_reason


def bind(port: int, interface: str, option: str = "--port") -> socket.socket:
    """Return a TCP socket that is bound and does not listen yet. An empty interface means all interfaces, IPv4 and IPv6.

    Raise `ConfigError`, with the name of the option, if the port cannot be used.
    """
    family, host = _family(interface)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(interface != ""))
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        where = f"port {port}" + (f" on {interface}" if interface else "")
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{option}: {where} is in use by another process") from None
        raise ConfigError(f"{option}: {where} cannot be used: {os_reason(error)}") from None
    sock.setblocking(False)
    return sock


def _family(interface: str) -> tuple[socket.AddressFamily, str]:
    if interface == "":
        return (socket.AF_INET6, "::") if _has_ipv6() else (socket.AF_INET, "0.0.0.0")
    return (socket.AF_INET6 if ":" in interface else socket.AF_INET), interface


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True
