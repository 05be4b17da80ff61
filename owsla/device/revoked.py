"""Closing of the connections of devices whose certificate was revoked after they connected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from twisted.logger import Logger

from ..interfaces import Clock, DelayedCall
from ..tls.revocation import RevocationLists
from .connections import Connection, guard

REASON: Final = "certificate revoked"
"""Reason in the event of the end of such a connection."""

SLICE: Final = 0.005
"""Seconds of a reactor turn that a check takes. The other devices are served between two slices."""


class RevokedDevices:
    """Check of all connections against new revocation lists, and close of those of revoked devices.

    A handshake that began before the lists came is verified with the old ones, and ends within the handshake timeout. So the
    connections that were opened since are checked in a second pass after that time.
    """

    _log = Logger(namespace="owsla")

    def __init__(self, clock: Clock, connections: Iterable[Connection], lists: RevocationLists | None) -> None:
        """`connections` yields the open connections each time. `lists` are those of the handshakes so far."""
        self._clock = clock
        self._connections = connections
        self._lists = lists
        self._next: DelayedCall | None = None
        self._closed = 0

    def check(self, lists: RevocationLists | None, handshake_timeout: float) -> None:
        """Begin to check all connections, unless these lists are in use already. New handshakes must use them from now on."""
        before, self._lists = self._lists, lists
        if lists is None or not lists.same_as(before):
            self.stop()
        if lists is not None and not lists.same_as(before):
            self._slice(lists, iter(list(self._connections)), self._clock.seconds(), handshake_timeout)

    def stop(self) -> None:
        """End a check that is in progress."""
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _slice(
        self, lists: RevocationLists, connections: Iterator[Connection], began: float, second_pass: float | None
    ) -> None:
        """Check some connections. `second_pass` is the time from now to the second pass; `None` in the second pass."""
        end = self._clock.seconds() + SLICE
        for connection in connections:
            guard(connection, self._check, lists, connection)
            if self._clock.seconds() >= end:
                self._next = self._clock.callLater(0, self._slice, lists, connections, began, second_pass)
                return
        if second_pass is not None:
            self._next = self._clock.callLater(second_pass, self._check_late, lists, began)
        if self._closed:
            closed, self._closed = self._closed, 0
            self._log.info("Connections closed because their certificates are revoked: {closed}", closed=closed)

    def _check_late(self, lists: RevocationLists, began: float) -> None:
        late = [each for each in self._connections if each.opened is not None and each.opened >= began]
        self._slice(lists, iter(late), began, None)

    def _check(self, lists: RevocationLists, connection: Connection) -> None:
        if connection.closing or connection.transport is None:
            return
        handle = connection.transport.getHandle()
        chain = handle.get_verified_chain() if handle is not None else None
        if chain and lists.revoke(chain):
            self._closed += 1
            connection.reject(REASON)
