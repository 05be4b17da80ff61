"""Handshakes with the device port's TLS context."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

from cryptography import x509
from OpenSSL import SSL, crypto

from owsla.errors import ConfigError
from owsla.tls.device import DeviceTLS
from owsla.tls.identity import device_identity
from owsla.tls.refusal import Refusal, noted_refusal

from ._handshakes import Files, Key, device_context, ec_key, issue, pem, rsa_key, server_context, shake, shake_ends, shake_with


class ServerContextTests(Files):
    """The TLS that devices are offered."""

    def context(self, key: Key | None = None, client_ca: Path | None = None, client_cert: str = "require") -> SSL.Context:
        key = key or ec_key()
        cert = self.file(pem(issue(key, common_names=("server",))))
        return server_context(cert, self.file(pem(key)), client_ca=client_ca, client_cert=client_cert)

    def test_versions_and_keys(self) -> None:
        """TLS 1.2 and 1.3 work with ECDSA and with RSA, with forward secrecy."""
        for key in (ec_key(), rsa_key()):
            context = self.context(key)
            for version, name in ((SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")):
                server, client = shake(context, device_context(version=version))
                self.assertEqual(server.get_protocol_version_name(), name)
                self.assertRegex(server.get_cipher_name() or "", "^(ECDHE|TLS)")
                client.send(b"hello")
                server.bio_write(client.bio_read(1 << 16))
                self.assertEqual(server.recv(10), b"hello")

    def test_old_version(self) -> None:
        """TLS 1.1 is refused."""
        client = device_context(version=SSL.TLS1_1_VERSION)
        client.set_cipher_list(b"ALL:@SECLEVEL=0")
        self.assertRaises(SSL.Error, shake, self.context(), client)

    def test_server_chooses(self) -> None:
        """The server's order of cipher suites applies: AEAD before CBC, whatever the device prefers."""
        client = device_context(version=SSL.TLS1_2_VERSION)
        client.set_cipher_list(b"ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-GCM-SHA256")
        server, _ = shake(self.context(), client)
        self.assertEqual(server.get_cipher_name(), "ECDHE-ECDSA-AES128-GCM-SHA256")

    def test_quickest_suite(self) -> None:
        """AES-128 with SHA-256 is preferred, whose handshake is the cheapest. Devices without it get another suite."""
        context = self.context()
        for version, name in (
            (SSL.TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256"),
            (SSL.TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"),
        ):
            server, _ = shake(context, device_context(version=version))
            self.assertEqual(server.get_cipher_name(), name)
        for name in ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"):
            client = device_context(version=SSL.TLS1_3_VERSION)
            client.set_tls13_ciphersuites(name.encode())
            server, _ = shake(context, client)
            self.assertEqual(server.get_cipher_name(), name)

    def test_suites_of_the_operator(self) -> None:
        """The suites for TLS 1.3 in OpenSSL's configuration file are left as they are."""
        configuration = self.file(
            b"openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = all\n"
            b"[all]\nCiphersuites = TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256\n"
        )
        key = ec_key()
        cert = self.file(pem(issue(key, common_names=("server",)), key))
        script = (
            "import pathlib, sys; from OpenSSL import SSL; from tests.unit.tls._handshakes import server_context\n"
            "file = pathlib.Path(sys.argv[1])\n"
            "context = server_context(file, file)\n"
            "print([name for name in SSL.Connection(context).get_cipher_list() if name.startswith('TLS_')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, cert],
            env=os.environ | {"OPENSSL_CONF": str(configuration)}, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(done.stdout.strip(), "['TLS_CHACHA20_POLY1305_SHA256', 'TLS_AES_128_GCM_SHA256']")

    def test_old_cipher(self) -> None:
        """A device with only AES-CBC in TLS 1.2 can connect; one without forward secrecy cannot."""
        for cipher, accepted in ((b"ECDHE-RSA-AES128-SHA", True), (b"AES128-SHA", False)):
            client = device_context(version=SSL.TLS1_2_VERSION)
            client.set_cipher_list(cipher)
            if accepted:
                shake(self.context(rsa_key()), client)
            else:
                self.assertRaises(SSL.Error, shake, self.context(rsa_key()), client)

    def test_no_renegotiation(self) -> None:
        """A device cannot renegotiate, which would be expensive for the server."""
        server, client = shake(self.context(), device_context(version=SSL.TLS1_2_VERSION))
        client.renegotiate()
        with self.assertRaises(SSL.Error):
            for _ in range(4):
                for end, other in ((client, server), (server, client)):
                    try:
                        end.do_handshake() if end is client else end.recv(100)
                    except SSL.WantReadError:
                        pass
                    try:
                        other.bio_write(end.bio_read(1 << 16))
                    except SSL.WantReadError:
                        pass

    def test_no_resumption(self) -> None:
        """A device that kept its session still makes a full handshake, and sends its certificate again."""
        key = ec_key()
        certificate = self.file(pem(issue(key, common_names=("device",)), key))
        for client_ca in (None, certificate):
            server = self.context(client_ca=client_ca)
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.check_hostname = False
            client.verify_mode = ssl.CERT_NONE
            client.load_cert_chain(certificate)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                client.maximum_version = ssl.TLSVersion.TLSv1_3
                client.minimum_version = version
                client.maximum_version = version
                session = shake_with(server, client).session
                self.assertIsNotNone(session)
                again = shake_with(server, client, session)
                self.assertFalse(again.session_reused)

    def test_chain(self) -> None:
        """The certificates after the first one in the file are sent to devices, too."""
        root_key, middle_key, key = ec_key(), ec_key(), ec_key()
        root = issue(root_key, common_names=("root",), authority=True)
        middle = issue(middle_key, (root, root_key), common_names=("middle",), authority=True)
        leaf = issue(key, (middle, middle_key), common_names=("leaf",))
        context = server_context(self.file(pem(leaf, middle)), self.file(pem(key)))
        client_context = device_context()
        store = client_context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(root))
        client_context.set_verify(SSL.VERIFY_PEER)
        _, client = shake(context, client_context)
        self.assertEqual(client.get_peer_cert_chain(as_cryptography=True), [leaf, middle])

    def test_no_client_certificate_asked(self) -> None:
        """Without `client_ca` no device is asked for a certificate."""
        key = ec_key()
        server, _ = shake(self.context(), device_context(certificate=issue(key), key=key))
        self.assertIsNone(server.get_peer_certificate(as_cryptography=True))

    def test_expired(self) -> None:
        """An expired certificate works, with a warning that names the file."""
        key = ec_key()
        cert = self.file(pem(issue(key, age=timedelta(days=3))))
        with mock.patch.object(DeviceTLS, "_log") as log:
            server_context(cert, self.file(pem(key)))
            self.context()
        self.assertEqual([call.kwargs["path"] for call in log.warn.mock_calls], [str(cert)])

    def test_bad_client_ca(self) -> None:
        """A client CA file without a certificate is refused, with its name."""
        path = self.file(b"")
        error = self.assertRaises(ConfigError, self.context, None, path)
        self.assertEqual(str(error), f"{path}: there is no certificate in PEM format in this file")


class ClientCertificateTests(Files):
    """Verification of device certificates."""

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

    def test_require(self) -> None:
        """With "require" a device without a certificate is refused, in both versions of TLS."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.assertRaises(SSL.Error, shake, self.context("require"), device_context(version=version))

    def test_optional(self) -> None:
        """With "optional" a device without a certificate is accepted, without an identity."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            server, _ = shake(self.context("optional"), device_context(version=version))
            for kind in ("cn", "san-dns", "san-uri", "fingerprint"):
                self.assertIsNone(device_identity(server, kind))

    def test_not_trusted(self) -> None:
        """An untrusted or expired certificate is refused even with "optional"."""
        key = ec_key()
        stranger = issue(key, common_names=("device CA",))
        expired = issue(key, (self.authority, self.authority_key), age=timedelta(days=2))
        for certificate, why, claimed in ((stranger, "it is self-signed", "device CA"), (expired, "it has expired", None)):
            for word in ("require", "optional"):
                client = device_context(certificate=certificate, key=key)
                server = SSL.Connection(self.context(word))
                self.assertRaises(SSL.Error, shake_ends, server, SSL.Connection(client))
                serial = f"{certificate.serial_number:X}"
                serial = serial.zfill(len(serial) + len(serial) % 2)
                subject = certificate.subject.rfc4514_string()
                reason = f"the device's certificate is refused: {why}"
                self.assertEqual(noted_refusal(server), Refusal(reason, subject, serial, claimed))

    def test_authorities_are_named(self) -> None:
        """All authorities in the file are named to devices."""
        _, client = shake(self.context("optional"), device_context())
        self.assertEqual([name.CN for name in client.get_client_ca_list()], ["other CA", "device CA"])
