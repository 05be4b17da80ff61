"""The status of a connection to the broker."""

from __future__ import annotations

from owsla.broker.connection_status import ConnectionStatus
from owsla.config.addresses import BrokerAddress

from ..tls._handshakes import Files, ec_key, issue


class ConnectionStatusTests(Files):
    def setUp(self) -> None:
        self.now = 100.0
        self.status = ConnectionStatus("producer", lambda: self.now)

    def test_since(self) -> None:
        """The time is that of the last change: a state that is noted again keeps it."""
        self.now = 101.0
        self.status.become("waiting")
        self.now = 102.0
        self.status.become("waiting")
        self.assertEqual((self.status.state, self.status.since), ("waiting", 101.0))

    def test_certificate(self) -> None:
        """The certificate of the broker is that of the last connection; a connection without TLS has none."""
        self.status.connect(BrokerAddress("rabbit", 5671, tls=True))
        certificate = issue(ec_key(), common_names=("rabbit",))
        self.status.secured(certificate)
        shown = self.status.certificate
        assert shown is not None
        self.assertEqual((shown.kind, shown.file, shown.subject), ("broker", "amqps://guest@rabbit:5671/%2F", "CN=rabbit"))
        self.assertEqual(shown.not_after, certificate.not_valid_after_utc.timestamp())
        self.status.secured(None)
        self.assertIsNone(self.status.certificate)
