"""The limit on handshake messages after the handshake."""

from __future__ import annotations

from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.tls.post_handshake import MESSAGES, PERIOD, PostHandshake
from owsla.tls.refusal import noted_refusal


class Connection:
    """The parts of OpenSSL's connection that the callback uses."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._data: object = None
        self.shutdown = 0
        self.state = b"SSL negotiation finished successfully"
        self.next = b""
        """Return the next bytes in the socket."""

    def get_protocol_version(self) -> int:
        return self._version

    def get_state_string(self) -> bytes:
        return self.state

    def set_app_data(self, data: object) -> None:
        self._data = data

    def get_app_data(self) -> object:
        return self._data

    def get_shutdown(self) -> int:
        return self.shutdown

    def set_shutdown(self, state: int) -> None:
        self.shutdown = state

    def recvfrom(self, size: int, flags: int) -> tuple[bytes, None]:
        if not self.next:
            raise BlockingIOError
        return self.next[:size], None


class PostHandshakeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.limit = PostHandshake(self.clock.seconds)

    def happens(self, connection: Connection, where: int, result: int = 1) -> str | None:
        """Return the reason for which the connection is refused after a callback."""
        self.limit._info(cast(Any, connection), where, result)
        refusal = noted_refusal(cast(Any, connection))
        self.assertEqual(connection.shutdown & SSL.RECEIVED_SHUTDOWN != 0, refusal is not None)
        return None if refusal is None else refusal.reason

    def test_rate(self) -> None:
        """Messages within the limit of each period are accepted for ever; one more ends the connection."""
        connection = Connection(SSL.TLS1_3_VERSION)
        for _ in range(5):
            for _ in range(MESSAGES):
                self.assertIsNone(self.happens(connection, SSL.SSL_CB_ACCEPT_EXIT))
            self.clock.advance(PERIOD)
        for _ in range(MESSAGES):
            self.happens(connection, SSL.SSL_CB_ACCEPT_EXIT)
        self.assertIn("key updates", self.happens(connection, SSL.SSL_CB_ACCEPT_EXIT) or "")
        self.assertIsNotNone(self.happens(connection, SSL.SSL_CB_ACCEPT_EXIT))

    def test_pieces(self) -> None:
        """A KeyUpdate may come in several records; a ClientHello in TLS 1.2 may not."""
        self.assertIsNone(self.happens(Connection(SSL.TLS1_3_VERSION), SSL.SSL_CB_ACCEPT_EXIT, -1))
        self.assertIn("several records", self.happens(Connection(SSL.TLS1_2_VERSION), SSL.SSL_CB_ACCEPT_EXIT, -1) or "")

    def test_fatal(self) -> None:
        """A message for which OpenSSL ends the connection is not counted: OpenSSL has the reason."""
        connection = Connection(SSL.TLS1_2_VERSION)
        connection.state = b"error"
        self.assertIsNone(self.happens(connection, SSL.SSL_CB_ACCEPT_EXIT, -1))

    def test_one_behind_another(self) -> None:
        """A request for renegotiation may be followed by data, but not by another request."""
        for behind, allowed in ((b"", True), (b"\x17\x03\x03", True), (b"\x16\x03\x03", False)):
            connection = Connection(SSL.TLS1_2_VERSION)
            connection.next = behind
            self.assertEqual(self.happens(connection, SSL.SSL_CB_HANDSHAKE_START) is None, allowed, behind)

    def test_other_steps(self) -> None:
        """Other events of the info callback are not counted."""
        connection = Connection(SSL.TLS1_3_VERSION)
        for where in (SSL.SSL_CB_ACCEPT_LOOP, SSL.SSL_CB_READ_ALERT, SSL.SSL_CB_WRITE_ALERT, SSL.SSL_CB_HANDSHAKE_DONE):
            for _ in range(2 * MESSAGES):
                self.assertIsNone(self.happens(connection, where))
