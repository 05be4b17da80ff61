"""Deadlines of connections that are closing. Pure.

A connection that closes waits until its peer has taken the last bytes and has answered the close_notify. Each has
`CLOSING_TIMEOUT` seconds for that. The deadline is extended for a slow peer that takes some bytes within each period, and for a
connection whose last lines wait to be read.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .socket_transport import CLOSING_TIMEOUT, SocketTransport

LONGEST_GOODBYE: Final = 60.0
"""Seconds that a peer has for taking the last bytes, as long as it takes some within each `CLOSING_TIMEOUT`. With the 128 KB
that the system and this process may hold for it, that is a line of 17 kbit/s. Later the system sends what it still holds."""


class _Deadline(NamedTuple):
    """The deadline of one connection."""

    check_at: float
    """Time of the next check."""
    last: float
    """Time at which the connection is closed in any case."""
    untaken: int
    """Number of bytes that the peer had not taken at the last check."""


class ClosingConnections:
    """Connections that are closing, in the order of their deadlines."""

    def __init__(self) -> None:
        self._deadlines: dict[SocketTransport, _Deadline] = {}

    def add(self, transport: SocketTransport, now: float) -> None:
        """Note that a connection has begun to close."""
        self._deadlines[transport] = _Deadline(now + CLOSING_TIMEOUT, now + LONGEST_GOODBYE, transport.untaken)

    def remove(self, transport: SocketTransport) -> None:
        """Forget a connection that is closed."""
        self._deadlines.pop(transport, None)

    def check(self, now: float, *, listening: bool) -> None:
        """Close connections whose deadline has passed, or extend the deadline. `listening` is true while the port is open."""
        for transport, deadline in list(self._deadlines.items()):
            if deadline.check_at > now:
                break
            untaken = transport.untaken
            if untaken < deadline.untaken and now < deadline.last:
                # The peer is slow, but takes bytes. A later deadline goes to the end, which keeps the order.
                del self._deadlines[transport]
                self._deadlines[transport] = deadline._replace(check_at=now + CLOSING_TIMEOUT, untaken=untaken)
            elif transport.held_back and (
                not listening or (now < deadline.last and (transport.peerClosed() or transport.awaiting_turn))
            ):
                # The last lines of the device wait until they can be published. During a stop --drain-timeout limits this;
                # otherwise the connection gets its turn, or a last share of the window.
                del self._deadlines[transport]
                self._deadlines[transport] = deadline._replace(check_at=now + CLOSING_TIMEOUT)
            else:
                transport.closeOverdue()
