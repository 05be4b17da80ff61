"""New connections of the devices of one process."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from . import _tls
from ._answers import AnswerCounts
from ._device import Device
from ._errors import SwarmError
from ._plan import Plan

SEND_BUFFER: Final = 8192
"""Size of the socket buffer in a flood, in bytes as the kernel counts them: about 70 lines."""

_BIND_ADDRESS_NO_PORT: Final = 24
"""`IP_BIND_ADDRESS_NO_PORT` of linux/in.h: the kernel chooses the port in connect(), and it need be free for that peer only."""


class Dialer:
    """Opens sockets and begins to connect them to the gateway."""

    def __init__(self, plan: Plan, counts: AnswerCounts) -> None:
        """Look up the address of the gateway. Raise `SwarmError` if it has none."""
        self._plan = plan
        self._counts = counts
        self._family, self._address = _resolve(plan)
        self.begun = 0
        """Number of connections begun."""

    def dial(self, now: int) -> tuple[Device, str | None]:
        """Begin a connection. Return its device, and the reason if it failed. Raise `SwarmError` without a socket."""
        plan = self._plan
        index = plan.first + self.begun
        self.begun += 1
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise SwarmError(f"cannot open a socket: {_tls.failure(error)}; see 'ulimit -n' and --processes") from None
        device = Device(index, sock, self._counts, now)
        try:
            if plan.unix is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if plan.mode == "flood":
                # By default the kernel lets the buffer grow to megabytes for each connection. The swarm would then write lines
                # of many seconds that no gateway can take yet, and use CPU that is missing elsewhere.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if plan.sources:
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                sock.bind((plan.sources[index % len(plan.sources)], 0))
            number = sock.connect_ex(self._address)
        except OSError as error:
            number = error.errno or errno.EIO
        return device, None if number in (0, errno.EINPROGRESS) else _reason(number)


def connect_error(device: Device) -> str | None:
    """Return why the socket of a device did not connect, or `None` if it did."""
    number = device.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return _reason(number) if number else None


def _reason(number: int) -> str:
    if number == errno.EADDRNOTAVAIL:
        return "no local address or port is left; give more addresses with --source"
    if number == errno.EAGAIN:
        return "the accept queue of the socket is full"  # of a unix socket
    return os.strerror(number).lower()


def _resolve(plan: Plan) -> tuple[int, Any]:
    """Return the address family and the address of the gateway: of several addresses the first that accepts a connection."""
    if plan.unix is not None:
        return socket.AF_UNIX, plan.unix
    family = 0
    if plan.sources:
        family = socket.AF_INET6 if ":" in plan.sources[0] else socket.AF_INET
    try:
        found = socket.getaddrinfo(plan.host, plan.port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SwarmError(f"{plan.host}: {_tls.failure(error)}") from None
    if len(found) > 1:
        # "localhost" is ::1 as well, and the gateway may listen on one of them only.
        for kind, _, _, _, address in found:
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.settimeout(plan.connect_timeout)
                if not probe.connect_ex(address):
                    return kind, address
    return found[0][0], found[0][4]
