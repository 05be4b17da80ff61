"""Limit on handshake messages that a device sends after its handshake.

A device may send KeyUpdates in TLS 1.3 (RFC 8446, 4.6.3) and ask for another handshake in TLS 1.2 (which is refused with the
alert no_renegotiation). SSL_read(3) deals with such messages by itself and does not return before it has data or the socket
is empty: pyOpenSSL sets SSL_MODE_AUTO_RETRY on each connection, and has no public way to clear it. A device that sends
nothing else would hold the reactor for as long as it sends: 13 MB of KeyUpdates took seconds, for all devices.

So the messages are counted while OpenSSL reads them. OpenSSL calls the context's info callback at the end of each one
(SSL_CTX_set_info_callback(3)). A connection that exceeds the limit is marked as closed by its peer
(SSL_set_shutdown(3)). OpenSSL then discards the next record and returns.

In TLS 1.2 the message itself can be long: 131,396 bytes, one byte to a record. OpenSSL reads such a message in one call,
without a callback. A renegotiation whose ClientHello is not in one record, or is followed by another, is therefore refused when
it begins.

The callback belongs to a separate context, which a connection gets after its handshake: during the handshake OpenSSL would call
it some twenty times.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from OpenSSL import SSL

from .refusal import Refusal, noted_refusal

MESSAGES: Final = 32
"""Number of handshake messages that a device may send in `PERIOD` after its handshake. Each costs 10 to 45 µs. Devices change
their keys after gigabytes, or every hour. OpenSSL itself ends a connection after the same number of empty records."""

PERIOD: Final = 1.0
"""Seconds over which handshake messages are counted."""

_HANDSHAKE: Final = b"\x16"
"""The type of a record with handshake messages (RFC 8446, 5.1). In TLS 1.2 it is readable in each record."""

_FATAL: Final = b"error"
"""OpenSSL's state after a fatal alert (SSL_state_string_long(3)). SSL_read(3) then fails with its reason."""


class PostHandshake:
    """Counter of handshake messages after the handshake, for all connections that have its `context`.

    The count of a connection is its application data: the time when the period began, and the number of messages in it. A
    connection that has sent none has no application data.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self.context: Final = SSL.Context(SSL.TLS_METHOD)
        """The context for established connections. It has no certificate and no ciphers: no handshake uses it."""
        self.context.set_info_callback(self._info)

    def _info(self, connection: SSL.Connection, where: int, result: int) -> None:
        if where == SSL.SSL_CB_HANDSHAKE_START:  # TLS 1.2 only: a KeyUpdate is not a handshake
            if _next_record(connection) == _HANDSHAKE:
                _end(connection, "renegotiation asked for in several records, or several times at once")
        elif where == SSL.SSL_CB_ACCEPT_EXIT and noted_refusal(connection) is None and connection.get_state_string() != _FATAL:
            if result < 0 and connection.get_protocol_version() < SSL.TLS1_3_VERSION:
                _end(connection, "renegotiation asked for in several records")
            else:
                self._count(connection)

    def _count(self, connection: SSL.Connection) -> None:
        now = self._seconds()
        since, count = connection.get_app_data() or (now, 0)
        if now - since >= PERIOD:
            since, count = now, 0
        connection.set_app_data((since, count + 1))
        if count >= MESSAGES:
            _end(connection, f"more than {MESSAGES} key updates or renegotiations within {PERIOD:g} s")


def _next_record(connection: SSL.Connection) -> bytes:
    """Return the type of the next record in the socket; `b""` if the socket is empty or broken."""
    try:
        # This calls the socket: pyOpenSSL's connection forwards methods that it does not have.
        return bytes(connection.recvfrom(1, socket.MSG_PEEK)[0])
    except OSError:
        return b""


def _end(connection: SSL.Connection, reason: str) -> None:
    """Make OpenSSL stop reading from a connection, and note the reason."""
    Refusal(reason).note(connection)
    connection.set_shutdown(connection.get_shutdown() | SSL.RECEIVED_SHUTDOWN)
