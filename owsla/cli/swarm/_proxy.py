"""PROXY protocol headers of made-up devices, as a load balancer in front of a gateway would send them."""

from __future__ import annotations

import socket
from typing import Final

from ...device.proxy_header import SocketAddress, write_v1, write_v2

_FIRST_IPV4: Final = (198 << 24) + (18 << 16)
"""198.18.0.0/15 is reserved for the benchmarks of network devices (RFC 2544): no real device has an address in it."""

_IPV4: Final = 1 << 17
"""Number of these addresses."""

_FIRST_PORT: Final = 1024

_BALANCER: Final = ("192.0.2.1", 8883)
"""Destination address in headers on a unix socket. It is reserved for documentation (RFC 5737)."""


class ProxyHeaders:
    """Headers with another source address for each device."""

    def __init__(self, version: str, common_name: str | None) -> None:
        """`common_name` is a template of the common names that version 2 passes on, with `{device}`."""
        self._version = version
        self._common_name = common_name

    def header(self, device: int, sock: socket.socket) -> bytes:
        """Return the header of a device, for its connected socket."""
        destination = _BALANCER if sock.family == socket.AF_UNIX else sock.getpeername()[:2]
        source = source_of(device, ipv6=":" in destination[0])
        if self._version == "v1":
            return write_v1(source, destination)
        if self._common_name is None:
            return write_v2(source, destination)
        common_name = self._common_name.replace("{device}", str(device))
        return write_v2(source, destination, common_name=common_name, tls_version="TLSv1.3")


def source_of(device: int, *, ipv6: bool) -> SocketAddress:
    """Return the address of a device: an IPv4 address of a benchmark, or one in a /64 of its own for documentation."""
    if ipv6:
        return f"2001:db8:{device >> 16 & 0xFFFF:x}:{device & 0xFFFF:x}::1", _FIRST_PORT
    packed = (_FIRST_IPV4 + device % _IPV4).to_bytes(4, "big")
    return socket.inet_ntop(socket.AF_INET, packed), _FIRST_PORT + device // _IPV4 % (0x10000 - _FIRST_PORT)
