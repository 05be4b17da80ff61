"""Closing of the connections of devices whose certificate was revoked after they connected."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from twisted.logger import Logger

from ..interfaces import Clock, DelayedCall
from ..tls.revocation import RevocationLists
from .connections import Connection
from .sliced_check import SlicedCheck

REASON: Final = "certificate revoked"
"""Reason in the event of the end of such a connection."""


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
        self._check = SlicedCheck(clock)
        self._second_pass: DelayedCall | None = None

    def check(self, lists: RevocationLists | None, handshake_timeout: float) -> None:
        """Begin to check all connections, unless these lists are in use already. New handshakes must use them from now on."""
        before, self._lists = self._lists, lists
        if lists is None or not lists.same_as(before):
            self.stop()
        if lists is not None and not lists.same_as(before):
            began = self._clock.seconds()

            def check_again() -> None:
                late = [each for each in self._connections if each.opened is not None and each.opened >= began]
                self._check.begin(late, partial(self._close, lists), self._checked)

            def checked(closed: int) -> None:
                self._second_pass = self._clock.callLater(handshake_timeout, check_again)
                self._checked(closed)

            self._check.begin(self._connections, partial(self._close, lists), checked)

    def stop(self) -> None:
        """End a check that is in progress."""
        self._check.stop()
        if self._second_pass is not None and self._second_pass.active():
            self._second_pass.cancel()

    def _close(self, lists: RevocationLists, connection: Connection) -> bool:
        """Close a connection if its certificate is revoked. Return whether it is."""
        handle = connection.transport.getHandle()
        chain = handle.get_verified_chain() if handle is not None else None
        if not chain or not lists.revoke(chain):
            return False
        connection.reject(REASON)
        return True

    def _checked(self, closed: int) -> None:
        if closed:
            self._log.info("Connections closed because their certificates are revoked: {closed}", closed=closed)
