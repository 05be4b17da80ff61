"""Refusal of denied devices (`--deny`), and the close of connections that a new list denies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from twisted.logger import Logger

from ..config.deny_list import DenyList
from ..interfaces import Clock
from ..tls.refusal import Refusal, certificate_refusal
from .connections import Connection
from .sliced_check import SlicedCheck
from .socket_transport import SocketTransport

REASON: Final = "denied"
"""Reason in the event of the end of a connection that a new list denies."""

LOOK: Final = 1.0
"""Seconds between two looks at the wall clock."""


class DeniedDevices:
    """The deny list in force, and the check of all connections against a new one.

    The list is asked for an address when a connection is accepted, and for address, certificate and device id when the device
    is identified. So a connection that was accepted before a list came, and is identified after, needs no check of its own.

    Some entries have an end, by the wall clock. Nothing needs to be done at an end. But when the clock is set back, entries
    that were void are in force again, and connections of their devices may be open: then all are checked once more.
    """

    _log = Logger(namespace="owsla")

    def __init__(self, clock: Clock, now: Callable[[], float], connections: Iterable[Connection]) -> None:
        """`now` returns the time in seconds since the epoch. `connections` yields the open connections each time."""
        self._check = SlicedCheck(clock)
        self._now = now
        self._connections = connections
        self._list = DenyList()
        self._any = False  # whether the list has entries
        self._in_force = 0
        self._next_look = float("-inf")
        self.refused = 0
        """Number of connections that were refused so far for their certificate, device id, or address after it was accepted."""

    @property
    def in_force(self) -> int:
        """Number of entries in force."""
        return self._list.in_force(self._now())

    def use(self, denied: DenyList) -> None:
        """Use a list from now on. Begin to check all connections, unless the list is in use already."""
        if denied is not self._list:
            self._list = denied
            self._any = bool(denied)
            self._in_force = self.in_force
            self._check_all()

    def denies_device(self, device_id: str) -> bool:
        """Return whether a device id is denied."""
        return self._list.denies_device(device_id, self._now())

    def denies_address(self, host: str) -> bool:
        """Return whether an address is denied."""
        return self._any and self._list.denies_address(host, self._now())

    def refusal(self, device_id: str | None, transport: Any) -> Refusal | None:
        """Return the reason for refusing a device that has just been identified, and count that; `None` if it is not denied."""
        if not self._any:
            return None
        reason = self._reason(device_id, transport)
        if reason is None:
            return None
        self.refused += 1
        return replace(certificate_refusal(reason, _certificate(transport)), claimed_id=device_id)

    def _reason(self, device_id: str | None, transport: Any) -> str | None:
        """Return why a device is denied, or `None`."""
        denied, now = self._list, self._now()
        if device_id is not None and denied.denies_device(device_id, now):
            return f"the device is denied: {device_id}"
        if denied.serials:
            certificate = _certificate(transport)
            if certificate is not None and denied.denies_serial(certificate.get_serial_number(), now):
                return "the device's certificate is refused: its serial number is denied"
        host = _host(transport)
        if host is not None and denied.denies_address(host, now):
            return "the device is refused: its address is denied"
        return None

    # -- connections that are open -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Check all connections if entries are in force again, because the wall clock was set back. `now` is by the reactor."""
        if now < self._next_look or not self._list.ends:
            return
        self._next_look = now + LOOK
        before, self._in_force = self._in_force, self.in_force
        if self._in_force > before:
            self._check_all()

    def stop(self) -> None:
        """End a check that is in progress."""
        self._check.stop()

    def _check_all(self) -> None:
        self.stop()
        if self._list:
            self._check.begin(self._connections, self._close, self._checked)

    def _close(self, connection: Connection) -> bool:
        """Close a connection if it is denied. Return whether it is."""
        denied = self._reason(connection.device_id, connection.transport) is not None
        if denied:
            connection.reject(REASON)
        return denied

    def _checked(self, closed: int) -> None:
        if closed:
            self._log.info("Connections closed because they are denied: {closed}", closed=closed)


def _host(transport: Any) -> str | None:
    """Return the IP address of a device; `None` if it is not known, as behind a load balancer, or on a unix socket."""
    if isinstance(transport, SocketTransport):
        return transport.host
    host: str | None = getattr(transport.getPeer(), "host", None)
    return host


def _certificate(transport: Any) -> Any:
    """Return the certificate of a peer; `None` without one, or without TLS."""
    handle = transport.getHandle()
    return handle.get_peer_certificate() if handle is not None else None
