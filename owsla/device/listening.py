"""Listening sockets of device ports: their options, and their address for people."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

BACKLOG: Final = 4096
"""Connections that may wait in the kernel's accept queue: four seconds of a stampede of a thousand a second. Linux limits it to
somaxconn."""

DEFER_ACCEPT: Final = 3
"""Seconds for which the kernel does not report a connection that sends nothing (TCP_DEFER_ACCEPT, tcp(7)), rounded to its
retransmissions. The connection is accepted after that, and its handshake timeout begins."""

KEEPALIVE: Final = (120, 30, 4)
"""TCP keepalive: seconds without data before the first probe, seconds between probes, and probes that may fail."""

SEND_BUFFER: Final = 32768
"""Bytes for SO_SNDBUF, which Linux doubles (socket(7)). The kernel then holds 64 KB at most of lines that were written, and
acknowledged for that. By default it holds megabytes for a device that reads nothing."""


def set_listening_options(sock: socket.socket, defer: bool) -> None:
    """Set options on a listening socket. Accepted TCP sockets inherit them (Linux), which saves system calls for each.

    With `defer` connections that send nothing are reported late (`DEFER_ACCEPT`).
    """
    if sock.family == socket.AF_UNIX:
        return  # nothing of this exists there, and nothing is inherited
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_KEEPIDLE"):
        for option, value in zip((socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT), KEEPALIVE, strict=True):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        # A socket that systemd passes may have it from an earlier run.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT if defer else 0)


def set_accepted_unix_options(sock: socket.socket) -> None:
    """Set the options of an accepted unix socket, which inherits none."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def unix_path(sock: socket.socket) -> str | None:
    """Return the path of a bound unix socket, or `None` for another kind of socket. An abstract name begins with @."""
    if sock.family != socket.AF_UNIX:
        return None
    name = sock.getsockname()
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace").replace("\0", "@", 1)


def shown_address(sock: socket.socket) -> tuple[str, int]:
    """Return the address of a bound socket for people, and its port number; 0 for a unix socket.

    For a wildcard the address says which IP versions are accepted.
    """
    path = unix_path(sock)
    if path is not None:
        return f"unix:{path}", 0
    host, port = sock.getsockname()[:2]
    if host == "0.0.0.0":
        return "all IPv4 interfaces", port
    if host == "::":
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return "all IPv6 interfaces" if only else "all interfaces", port
    return host, port


def reachable_by_others(sock: socket.socket) -> bool:
    """Return whether other hosts can connect to a bound socket."""
    return sock.family != socket.AF_UNIX and not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
