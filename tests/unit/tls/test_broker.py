"""TLS to the broker: files, the certificate that Owsla shows, and their replacement."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519
from OpenSSL import SSL

from owsla.errors import ConfigError
from owsla.tls.broker import BrokerTLS, load_broker_tls

from ._handshakes import Files, ec_key, issue, pem, rsa_key, shake_ends


class BrokerTLSTests(Files):
    def setUp(self) -> None:
        self.authority_key = ec_key()
        self.authority = issue(self.authority_key, common_names=("authority",), authority=True)

    def server(self, name: str = "rabbit.example", *, asks: bool = True) -> SSL.Connection:
        """Return the broker's side of a connection, which asks for a client certificate."""
        key = ec_key()
        context = SSL.Context(SSL.TLS_METHOD)
        context.use_certificate(
            issue(key, (self.authority, self.authority_key), alternatives=(x509.DNSName(name),), common_names=(name,))
        )
        context.use_privatekey(key)
        if asks:
            context.set_verify(SSL.VERIFY_PEER, lambda *args: True)
        return SSL.Connection(context)

    def shake(self, tls: BrokerTLS, server: SSL.Connection, host: str = "rabbit.example") -> Any:
        """Connect to a broker. Return the protocol, which has noted a failed verification."""
        protocol = mock.Mock()
        creator: Any = tls(host)
        shake_ends(server, creator.clientConnectionForTLS(protocol))
        return protocol

    def pair(self, name: str, key: Any = None) -> tuple[Path, Path]:
        key = key or ec_key()
        return self.file(pem(issue(key, (self.authority, self.authority_key), common_names=(name,)))), self.file(pem(key))

    def test_shown(self) -> None:
        """The broker is shown the certificate with its chain, by keys of all kinds; without one nothing is shown."""
        ca = self.file(pem(self.authority))
        for key in (ec_key(), rsa_key(), ed25519.Ed25519PrivateKey.generate()):
            leaf = issue(key, (self.authority, self.authority_key), common_names=("gateway",))  # type: ignore[arg-type]
            cert = self.file(pem(leaf, self.authority))
            key_file = self.file(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            tls = BrokerTLS(load_broker_tls(ca, cert, key_file))
            self.assertEqual(tls.common_name, "gateway")
            server = self.server()
            self.shake(tls, server)
            shown = server.get_peer_certificate(as_cryptography=True)
            self.assertEqual([shown, *(server.get_peer_cert_chain(as_cryptography=True) or [])], [leaf, self.authority])
        tls = BrokerTLS(load_broker_tls(ca))
        self.assertEqual(tls.common_name, "")
        server = self.server()
        self.shake(tls, server)
        self.assertIsNone(server.get_peer_certificate())

    def test_replaced(self) -> None:
        """New material is used from the next connection on."""
        ca = self.file(pem(self.authority))
        tls = BrokerTLS(load_broker_tls(ca, *self.pair("first")))
        before: Any = tls("rabbit.example")
        tls.use(load_broker_tls(ca, *self.pair("second")))
        after: Any = tls("rabbit.example")
        for creator, name in ((before, "first"), (after, "second")):
            server = self.server()
            shake_ends(server, creator.clientConnectionForTLS(mock.Mock()))
            shown = server.get_peer_certificate(as_cryptography=True)
            assert shown is not None
            self.assertEqual(shown.subject.rfc4514_string(), f"CN={name}")

    def test_verified(self) -> None:
        """The broker's certificate must be for its name, and signed by a trusted authority. Its name is sent (SNI)."""
        tls = BrokerTLS(load_broker_tls(self.file(pem(self.authority))))
        server = self.server()
        self.shake(tls, server)
        self.assertEqual(server.get_servername(), b"rabbit.example")
        self.assertRaises(SSL.Error, self.shake, tls, self.server("other.example"))
        other = issue(key := ec_key(), common_names=("other",), authority=True)
        stranger = BrokerTLS(load_broker_tls(self.file(pem(other, key))))
        self.assertRaises(SSL.Error, self.shake, stranger, self.server())

    def test_names(self) -> None:
        """An invalid host name is a `ValueError`; the name of an IP address is not sent."""
        tls = BrokerTLS(load_broker_tls(self.file(pem(self.authority))))
        self.assertRaises(ValueError, tls, "rabbit_mq")
        server = self.server()
        self.assertRaises(SSL.Error, self.shake, tls, server, "127.0.0.1")
        self.assertIsNone(server.get_servername())

    def test_bad_files(self) -> None:
        """Each fault of a file is an error of one sentence with the file's name."""
        cert, key = self.pair("gateway")
        _, other_key = self.pair("other")
        chain = self.file(pem(self.authority) + cert.read_bytes())
        small = rsa_key(1024)
        for files, reason in (
            ((cert, other_key), f"{other_key}: this is not the private key of the certificate in {cert}"),
            ((chain, key), f"{key}: this is not the private key of the certificate in {chain}; Owsla's own certificate"),
            ((key, key), f"{key}: there is no certificate"),
            ((cert, cert), f"{cert}: there is no private key"),
            ((cert, self.file(pem(ec_key(), password=b"x"))), "encrypted"),
            ((cert, self.file(pem(dsa.generate_private_key(2048)))), "neither RSA, ECDSA nor EdDSA"),
            ((self.file(pem(issue(small))), self.file(pem(small))), "OpenSSL refuses this certificate (ee key too small)"),
        ):
            message = str(self.assertRaises(ConfigError, load_broker_tls, None, *files))
            self.assertIn(reason, message)
            self.assertEqual(len(message.splitlines()), 1)
