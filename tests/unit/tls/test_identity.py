"""Device ids in client certificates."""

from __future__ import annotations

import ssl
from datetime import timedelta
from typing import Final

import cryptography
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from owsla.tls.identity import device_identity
from owsla.tls.refusal import HandshakeRefused

from ._handshakes import Files, device_context, ec_key, issue, pem, server_context, shake

_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_WITH_NULL: Final = bytes.fromhex("300c06082a8648ce3d0403020500")


def _sequence(content: bytes) -> bytes:
    """Return a DER SEQUENCE of more than 127 bytes."""
    length = len(content)
    return b"\x30" + (bytes([0x81, length]) if length < 256 else b"\x82" + length.to_bytes(2, "big")) + content


class IdentityTests(Files):
    def setUp(self) -> None:
        self.authority_key = ec_key()
        self.authority = issue(self.authority_key, common_names=("device CA",), authority=True)
        self.other_key = ec_key()
        other = issue(self.other_key, common_names=("other CA",), authority=True)
        self.client_ca = self.file(pem(other, self.authority))
        key = ec_key()
        self.cert, self.key = self.file(pem(issue(key))), self.file(pem(key))

    def context(self, client_cert: str) -> SSL.Context:
        return server_context(self.cert, self.key, client_ca=self.client_ca, client_cert=client_cert)

    def device(
        self, *alternatives: x509.GeneralName, names: tuple[str, ...] = (), age: timedelta = timedelta(hours=1)
    ) -> tuple[SSL.Connection, x509.Certificate]:
        """Return the server's end of a connection with a device certificate."""
        key = ec_key()
        certificate = issue(key, (self.authority, self.authority_key), common_names=names, alternatives=alternatives, age=age)
        server, _ = shake(self.context("require"), device_context(certificate=certificate, key=key))
        return server, certificate

    def test_identities(self) -> None:
        """The identity is the first common name, DNS name or URI, or the fingerprint of the certificate."""
        server, certificate = self.device(
            x509.UniformResourceIdentifier("urn:dev:1"),
            x509.DNSName("one.example"),
            x509.DNSName("two.example"),
            x509.UniformResourceIdentifier("urn:dev:2"),
            names=("first", "second"),
        )
        self.assertEqual(device_identity(server, "cn"), "first")
        self.assertEqual(device_identity(server, "san-dns"), "one.example")
        self.assertEqual(device_identity(server, "san-uri"), "urn:dev:1")
        expected = ssl.PEM_cert_to_DER_cert(pem(certificate).decode())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(expected)
        self.assertEqual(device_identity(server, "fingerprint"), digest.finalize().hex())

    def test_absent(self) -> None:
        """A certificate without the field has no identity."""
        server, _ = self.device(x509.DNSName("one.example"))
        self.assertIsNone(device_identity(server, "cn"))
        self.assertIsNone(device_identity(server, "san-uri"))
        server, _ = self.device(names=("x",))
        self.assertIsNone(device_identity(server, "san-dns"))

    def test_unprintable(self) -> None:
        """A name that could forge a log line is ignored."""
        server, _ = self.device(names=("one\ntwo",))
        self.assertIsNone(device_identity(server, "cn"))

    def test_unreadable(self) -> None:
        """A certificate that OpenSSL takes, and `cryptography` cannot read, is refused where a name is asked for, with its
        serial number. Its fingerprint is there all the same.
        """
        cases = [
            ("critical FALSE encoded", b"\x55\x1d\x13\x01\x01\xff", b"\x55\x1d\x13\x01\x01\x00"),
            ("PrintableString with other characters", b"\x0c\x07*dev@_1", b"\x13\x07*dev@_1"),
            ("CN as BIT STRING", b"\x0c\x07*dev@_1", b"\x03\x07\x00dev@_1"),
            ("version 2", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
            ("version 5", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"),
        ]
        if int(cryptography.__version__.split(".")[0]) >= 49:  # older ones only warn
            cases.append(("ECDSA parameters NULL", _ECDSA_SHA256, _WITH_NULL))
        for case, old, new in cases:
            server = self.odd_device(old, new)
            refused = self.assertRaises(HandshakeRefused, device_identity, server, "cn").refusal
            self.assertTrue(refused.reason.startswith("the device's certificate cannot be read ("), (case, refused))
            self.assertEqual((refused.subject, refused.serial), (None, "0ABCDE"), case)
            self.assertEqual(len(device_identity(server, "fingerprint") or ""), 64)

    def odd_device(self, old: bytes, new: bytes) -> SSL.Connection:
        """The server's end of a connection to a device whose certificate has these bytes in place of those, and a good
        signature.
        """
        key = ec_key()
        issued = issue(key, (self.authority, self.authority_key), common_names=("*dev@_1",), serial=0xABCDE)
        content = issued.tbs_certificate_bytes
        self.assertIn(old, content)
        content = content.replace(old, new, 1)
        algorithm = new if old == _ECDSA_SHA256 else _ECDSA_SHA256
        if len(new) != len(old):
            content = _sequence(content[4 if content[1] == 0x82 else 3 :])
        signature = self.authority_key.sign(content, ec.ECDSA(hashes.SHA256()))
        bits = b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
        certificate = self.file(ssl.DER_cert_to_PEM_cert(_sequence(content + algorithm + bits)).encode() + pem(key))
        client = device_context()
        client.use_certificate_file(str(certificate))
        client.use_privatekey_file(str(certificate))
        return shake(self.context("require"), client)[0]
