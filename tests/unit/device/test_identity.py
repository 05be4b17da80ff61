"""Tests of the length of a device id from a certificate."""

from __future__ import annotations

from typing import Any
from unittest import mock

from cryptography import x509
from OpenSSL import crypto
from twisted.trial.unittest import SynchronousTestCase

from owsla.tls.identity import device_identity

from ..tls._handshakes import ec_key, issue


class LengthTests(SynchronousTestCase):
    def test_a_long_name(self) -> None:
        """A name of more than 255 bytes in UTF-8 is no identity: in the headers of each line it could exceed a frame."""
        for name in ("spiffe://x/" + "a" * 244, "spiffe://x/" + "a" * 245):
            connection: Any = mock.Mock()
            certificate = issue(ec_key(), alternatives=(x509.UniformResourceIdentifier(name),))
            connection.get_peer_certificate.return_value = crypto.X509.from_cryptography(certificate)
            self.assertEqual(device_identity(connection, "san-uri"), name if len(name) == 255 else None)
