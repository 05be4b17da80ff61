"""Tests of :mod:`owsla.tls.certificates`: handshakes in memory, files on disk."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.tls import certificates as tls
from owsla.tls.certificates import (
    certificates_in,
    check_server_files,
    development_certificates,
    device_identity,
    server_context,
)
from owsla.tls.refusal import Refusal, Refused, noted

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_NOW = datetime(2030, 1, 1, tzinfo=UTC)


@cache
def _rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _issue(
    key: _Key,
    issuer: tuple[x509.Certificate, _Key] | None = None,
    *,
    common_names: tuple[str, ...] = (),
    alternatives: tuple[x509.GeneralName, ...] = (),
    authority: bool = False,
    age: timedelta = timedelta(hours=1),
    lifetime: timedelta = timedelta(days=1),
    serial: int | None = None,
) -> x509.Certificate:
    """A certificate for ``key``, signed by ``issuer`` or by itself, made ``age`` ago."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    begin = datetime.now(UTC) - age
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


def _pem(*items: x509.Certificate | _Key | dsa.DSAPrivateKey, password: bytes | None = None) -> bytes:
    pem = serialization.Encoding.PEM
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return b"".join(
        item.public_bytes(pem)
        if isinstance(item, x509.Certificate)
        else item.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
        for item in items
    )


def _client(*, version: int | None = None, certificate: x509.Certificate | None = None, key: _Key | None = None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if certificate is not None and key is not None:
        context.use_certificate(certificate)
        context.use_privatekey(key)
    return context


def _shake(server: SSL.Context, client: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    """A handshake in memory; raises SSL.Error where either side refuses."""
    return _shake_ends(SSL.Connection(server), SSL.Connection(client))


def _shake_ends(*ends: SSL.Connection) -> tuple[SSL.Connection, SSL.Connection]:
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    for _ in range(10):
        waiting = False
        for end, other in (ends, ends[::-1]):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                waiting = True
            try:
                other.bio_write(end.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
        if not waiting:
            return ends[0], ends[1]
    raise AssertionError("the handshake doesn't end")


def _shake_with(server: SSL.Context, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """A handshake in memory with Python's own client, which tells of sessions, and what the server sends behind it."""
    end = SSL.Connection(server)
    end.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = client.wrap_bio(incoming, outgoing, session=session)
    for step in (device.do_handshake, end.do_handshake) * 2 + (lambda: device.read(1),):
        try:
            step()
        except (ssl.SSLWantReadError, SSL.WantReadError):
            pass
        if data := outgoing.read():
            end.bio_write(data)
        try:
            incoming.write(end.bio_read(1 << 16))
        except SSL.WantReadError:
            pass
    return device


class _Files(SynchronousTestCase):
    def new_path(self) -> Path:
        # Not mktemp(): under pytest its folders would be left in the current one.
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return Path(folder) / "new"

    def file(self, content: bytes) -> Path:
        path = self.new_path()
        path.write_bytes(content)
        return path


class ServerContextTests(_Files):
    """What devices meet when they connect."""

    def context(self, key: _Key | None = None, client_ca: Path | None = None, client_cert: str = "require") -> SSL.Context:
        key = key or _ec_key()
        cert = self.file(_pem(_issue(key, common_names=("server",))))
        return server_context(cert, self.file(_pem(key)), client_ca=client_ca, client_cert=client_cert)

    def test_versions_and_keys(self) -> None:
        """TLS 1.2 and 1.3 work with ECDSA and with RSA, with forward secrecy."""
        for key in (_ec_key(), _rsa_key()):
            context = self.context(key)
            for version, name in ((SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")):
                server, client = _shake(context, _client(version=version))
                self.assertEqual(server.get_protocol_version_name(), name)
                self.assertRegex(server.get_cipher_name() or "", "^(ECDHE|TLS)")
                client.send(b"hello")
                server.bio_write(client.bio_read(1 << 16))
                self.assertEqual(server.recv(10), b"hello")

    def test_old_version(self) -> None:
        """TLS 1.1 is refused."""
        client = _client(version=SSL.TLS1_1_VERSION)
        client.set_cipher_list(b"ALL:@SECLEVEL=0")
        self.assertRaises(SSL.Error, _shake, self.context(), client)

    def test_server_chooses(self) -> None:
        """The server's order of cipher suites counts: AEAD before CBC, whatever the device prefers."""
        client = _client(version=SSL.TLS1_2_VERSION)
        client.set_cipher_list(b"ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-GCM-SHA256")
        server, _ = _shake(self.context(), client)
        self.assertEqual(server.get_cipher_name(), "ECDHE-ECDSA-AES128-GCM-SHA256")

    def test_quickest_suite(self) -> None:
        """AES-128 with SHA-256 is taken, whose handshake costs least; a device that does not know it gets what it knows."""
        context = self.context()
        for version, name in (
            (SSL.TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256"),
            (SSL.TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"),
        ):
            server, _ = _shake(context, _client(version=version))
            self.assertEqual(server.get_cipher_name(), name)
        for name in ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"):
            client = _client(version=SSL.TLS1_3_VERSION)
            client.set_tls13_ciphersuites(name.encode())
            server, _ = _shake(context, client)
            self.assertEqual(server.get_cipher_name(), name)

    def test_suites_of_the_operator(self) -> None:
        """Where OpenSSL's configuration file names the suites of TLS 1.3, its list stays as it is."""
        configuration = self.file(
            b"openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = all\n"
            b"[all]\nCiphersuites = TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256\n"
        )
        key = _ec_key()
        cert = self.file(_pem(_issue(key, common_names=("server",)), key))
        script = (
            "import pathlib, sys; from OpenSSL import SSL; from owsla.tls.certificates import server_context\n"
            "file = pathlib.Path(sys.argv[1])\n"
            "context = server_context(file, file, client_ca=None, client_cert='require')\n"
            "print([name for name in SSL.Connection(context).get_cipher_list() if name.startswith('TLS_')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, cert],
            env=os.environ | {"OPENSSL_CONF": str(configuration)}, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(done.stdout.strip(), "['TLS_CHACHA20_POLY1305_SHA256', 'TLS_AES_128_GCM_SHA256']")

    def test_old_cipher(self) -> None:
        """A small device that knows only AES-CBC with TLS 1.2 can connect; one without forward secrecy can't."""
        for cipher, accepted in ((b"ECDHE-RSA-AES128-SHA", True), (b"AES128-SHA", False)):
            client = _client(version=SSL.TLS1_2_VERSION)
            client.set_cipher_list(cipher)
            if accepted:
                _shake(self.context(_rsa_key()), client)
            else:
                self.assertRaises(SSL.Error, _shake, self.context(_rsa_key()), client)

    def test_no_renegotiation(self) -> None:
        """A device can't ask for another handshake on its connection, which would cost the server dearly."""
        server, client = _shake(self.context(), _client(version=SSL.TLS1_2_VERSION))
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
        """A device that kept its session has a full handshake all the same, and shows its certificate again."""
        key = _ec_key()
        certificate = self.file(_pem(_issue(key, common_names=("device",)), key))
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
                session = _shake_with(server, client).session
                self.assertIsNotNone(session)
                again = _shake_with(server, client, session)
                self.assertFalse(again.session_reused)

    def test_chain(self) -> None:
        """The certificates after the first in the file are sent to devices too."""
        root_key, middle_key, key = _ec_key(), _ec_key(), _ec_key()
        root = _issue(root_key, common_names=("root",), authority=True)
        middle = _issue(middle_key, (root, root_key), common_names=("middle",), authority=True)
        leaf = _issue(key, (middle, middle_key), common_names=("leaf",))
        context = server_context(self.file(_pem(leaf, middle)), self.file(_pem(key)), client_ca=None, client_cert="require")
        client_context = _client()
        store = client_context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(root))
        client_context.set_verify(SSL.VERIFY_PEER)
        _, client = _shake(context, client_context)
        self.assertEqual(client.get_peer_cert_chain(as_cryptography=True), [leaf, middle])

    def test_no_client_certificate_asked(self) -> None:
        """Without client_ca no device is asked for a certificate."""
        key = _ec_key()
        server, _ = _shake(self.context(), _client(certificate=_issue(key), key=key))
        self.assertIsNone(server.get_peer_certificate(as_cryptography=True))

    def test_expired(self) -> None:
        """An expired certificate works, and is warned of with the file's name."""
        key = _ec_key()
        cert = self.file(_pem(_issue(key, age=timedelta(days=3))))
        with mock.patch.object(tls, "_log") as log:
            server_context(cert, self.file(_pem(key)), client_ca=None, client_cert="require")
            self.context()
        self.assertEqual([call.kwargs["path"] for call in log.warn.mock_calls], [str(cert)])

    def test_bad_files(self) -> None:
        """Whatever is wrong with a file is said in one sentence with the file's name."""
        key, other = _ec_key(), _ec_key()
        certificate = _issue(key, common_names=("leaf",))
        good_cert, good_key = self.file(_pem(certificate)), self.file(_pem(key))
        missing = self.new_path()
        damaged = b"-----BEGIN %s-----\nAAAA\n-----END %s-----\n"
        dsa_key = dsa.generate_private_key(2048)
        for cert, key_file, reason in [
            (missing, good_key, f"{missing}: no such file or directory"),
            (good_cert, missing, f"{missing}: no such file or directory"),
            (Path("/"), good_key, "/: is a directory"),
            (self.file(b"hello"), good_key, "no certificate in PEM format"),
            (good_key, good_cert, "no certificate in PEM format"),
            (good_cert, good_cert, "no private key in PEM format"),
            (self.file(damaged % ((b"CERTIFICATE",) * 2)), good_key, "damaged"),
            (good_cert, self.file(damaged % ((b"PRIVATE KEY",) * 2)), "damaged"),
            (good_cert, self.file(_pem(key, password=b"x")), "encrypted"),
            (good_cert, self.file(_pem(dsa_key)), "neither RSA nor ECDSA"),
            (good_cert, self.file(_pem(other)), f"this is not the key of the certificate in {good_cert}"),
            (self.file(_pem(_issue(other), certificate)), good_key, "the server's own certificate comes first"),
            (self.file(_pem(_issue(_rsa_key(1024)))), self.file(_pem(_rsa_key(1024))), "key too small"),
        ]:
            for check in (
                lambda cert=cert, key=key_file: check_server_files(cert, key),
                lambda cert=cert, key=key_file: server_context(cert, key, client_ca=None, client_cert="require"),
            ):
                message = str(self.assertRaises(ConfigError, check))
                self.assertIn(reason, message)
                self.assertEqual(len(message.splitlines()), 1)
                self.assertTrue(message.startswith((f"{cert}: ", f"{key_file}: ")), message)

    def test_bad_client_ca(self) -> None:
        """A client CA file without a certificate is refused by name."""
        path = self.file(b"")
        error = self.assertRaises(ConfigError, self.context, None, path)
        self.assertEqual(str(error), f"{path}: there is no certificate in PEM format in it")

    def test_unreadable(self) -> None:
        """A file that may not be read is named with the reason."""
        path = self.file(b"")
        with mock.patch.object(Path, "read_bytes", side_effect=PermissionError(13, "Permission denied")):
            error = self.assertRaises(ConfigError, certificates_in, path)
        self.assertEqual(str(error), f"{path}: permission denied")


class ClientCertificateTests(_Files):
    """Devices that prove who they are."""

    def setUp(self) -> None:
        self.authority_key = _ec_key()
        self.authority = _issue(self.authority_key, common_names=("device CA",), authority=True)
        self.other_key = _ec_key()
        other = _issue(self.other_key, common_names=("other CA",), authority=True)
        self.client_ca = self.file(_pem(other, self.authority))
        key = _ec_key()
        self.cert, self.key = self.file(_pem(_issue(key))), self.file(_pem(key))

    def context(self, client_cert: str) -> SSL.Context:
        return server_context(self.cert, self.key, client_ca=self.client_ca, client_cert=client_cert)

    def device(
        self, *alternatives: x509.GeneralName, names: tuple[str, ...] = (), age: timedelta = timedelta(hours=1)
    ) -> tuple[SSL.Connection, x509.Certificate]:
        """The server's side of a connection with a device's certificate."""
        key = _ec_key()
        certificate = _issue(key, (self.authority, self.authority_key), common_names=names, alternatives=alternatives, age=age)
        server, _ = _shake(self.context("require"), _client(certificate=certificate, key=key))
        return server, certificate

    def test_require(self) -> None:
        """With "require" a device without a certificate is turned away, in both versions of TLS."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            self.assertRaises(SSL.Error, _shake, self.context("require"), _client(version=version))

    def test_optional(self) -> None:
        """With "optional" it is let in, and has no identity."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            server, _ = _shake(self.context("optional"), _client(version=version))
            for kind in ("cn", "san-dns", "san-uri", "fingerprint"):
                self.assertIsNone(device_identity(server, kind))

    def test_not_trusted(self) -> None:
        """A certificate of somebody else's, or one that has expired, is turned away even with "optional"."""
        key = _ec_key()
        stranger = _issue(key, common_names=("device CA",))
        expired = _issue(key, (self.authority, self.authority_key), age=timedelta(days=2))
        for certificate, why in ((stranger, "it is signed by itself"), (expired, "it has expired")):
            for word in ("require", "optional"):
                client = _client(certificate=certificate, key=key)
                server = SSL.Connection(self.context(word))
                self.assertRaises(SSL.Error, _shake_ends, server, SSL.Connection(client))
                serial = f"{certificate.serial_number:X}"
                serial = serial.zfill(len(serial) + len(serial) % 2)
                subject = certificate.subject.rfc4514_string()
                self.assertEqual(noted(server), Refusal(f"the device's certificate is refused: {why}", subject, serial))

    def test_authorities_are_named(self) -> None:
        """Devices are told which authorities are accepted, all of those in the file."""
        _, client = _shake(self.context("optional"), _client())
        self.assertEqual([name.CN for name in client.get_client_ca_list()], ["other CA", "device CA"])

    def test_identities(self) -> None:
        """The identity is the first common name, DNS name or URI, or the certificate's fingerprint."""
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
        expected = ssl.PEM_cert_to_DER_cert(_pem(certificate).decode())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(expected)
        self.assertEqual(device_identity(server, "fingerprint"), digest.finalize().hex())

    def test_absent(self) -> None:
        """A certificate without the field gives no identity."""
        server, _ = self.device(x509.DNSName("one.example"))
        self.assertIsNone(device_identity(server, "cn"))
        self.assertIsNone(device_identity(server, "san-uri"))
        server, _ = self.device(names=("x",))
        self.assertIsNone(device_identity(server, "san-dns"))

    def test_unprintable(self) -> None:
        """A name that could forge a log line is no identity."""
        server, _ = self.device(names=("one\ntwo",))
        self.assertIsNone(device_identity(server, "cn"))

    def test_unreadable(self) -> None:
        """A certificate that OpenSSL takes, and `cryptography` cannot read, is refused where a name is asked for, with its
        serial number. Its fingerprint is there all the same.
        """
        for case, old, new in (
            ("critical FALSE encoded", b"\x55\x1d\x13\x01\x01\xff", b"\x55\x1d\x13\x01\x01\x00"),
            ("PrintableString with other characters", b"\x0c\x07*dev@_1", b"\x13\x07*dev@_1"),
            ("CN as BIT STRING", b"\x0c\x07*dev@_1", b"\x03\x07\x00dev@_1"),
            ("version 2", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
            ("version 5", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"),
            ("ECDSA parameters NULL", _ECDSA_SHA256, _WITH_NULL),
        ):
            server = self.odd_device(old, new)
            refused = self.assertRaises(Refused, device_identity, server, "cn").refusal
            self.assertTrue(refused.reason.startswith("the device's certificate cannot be read ("), (case, refused))
            self.assertEqual((refused.subject, refused.serial), (None, "0ABCDE"), case)
            self.assertEqual(len(device_identity(server, "fingerprint") or ""), 64)

    def odd_device(self, old: bytes, new: bytes) -> SSL.Connection:
        """The server's end of a connection to a device whose certificate has these bytes in place of those, and a good
        signature.
        """
        key = _ec_key()
        issued = _issue(key, (self.authority, self.authority_key), common_names=("*dev@_1",), serial=0xABCDE)
        content = issued.tbs_certificate_bytes
        self.assertIn(old, content)
        content = content.replace(old, new, 1)
        algorithm = new if old == _ECDSA_SHA256 else _ECDSA_SHA256
        if len(new) != len(old):
            content = _sequence(content[4 if content[1] == 0x82 else 3 :])
        signature = self.authority_key.sign(content, ec.ECDSA(hashes.SHA256()))
        bits = b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
        certificate = self.file(ssl.DER_cert_to_PEM_cert(_sequence(content + algorithm + bits)).encode() + _pem(key))
        client = _client()
        client.use_certificate_file(str(certificate))
        client.use_privatekey_file(str(certificate))
        return _shake(self.context("require"), client)[0]


_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_WITH_NULL: Final = bytes.fromhex("300c06082a8648ce3d0403020500")


def _sequence(content: bytes) -> bytes:
    """A SEQUENCE of DER, of more than 127 bytes."""
    length = len(content)
    return b"\x30" + (bytes([0x81, length]) if length < 256 else b"\x82" + length.to_bytes(2, "big")) + content


class DevelopmentCertificatesTests(_Files):
    """A fresh machine has certificates of its own at once."""

    def setUp(self) -> None:
        self.folder = self.new_path() / "certs"

    def make(self, hostname: str = "box.example", now: datetime = _NOW) -> dict[str, bytes]:
        """Ask for the certificates; what is in the folder then."""
        made = development_certificates(self.folder, hostname, lambda: now)
        self.assertEqual(
            (made.ca, made.cert, made.key),
            (self.folder / "ca.pem", self.folder / "server.pem", self.folder / "server.key"),
        )
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def refused(self) -> str:
        return str(self.assertRaises(ConfigError, self.make))

    def test_what_is_made(self) -> None:
        """An authority and a server certificate of it, with the promised names, lifetimes and extensions."""
        files = self.make("Box.example")
        self.assertEqual(sorted(files), ["ca.key", "ca.pem", "server.key", "server.pem"])
        authority, server = (x509.load_pem_x509_certificate(files[name]) for name in ("ca.pem", "server.pem"))
        server.verify_directly_issued_by(authority)
        self.assertEqual(authority.not_valid_after_utc - _NOW, timedelta(days=3650))
        self.assertEqual(server.not_valid_after_utc - _NOW, timedelta(days=820))
        self.assertLess(server.not_valid_before_utc, _NOW)
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["localhost", "box.example"])
        self.assertEqual(names.get_values_for_type(x509.IPAddress), [ip_address("127.0.0.1"), ip_address("::1")])
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(usage), [ExtendedKeyUsageOID.SERVER_AUTH])
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertTrue(basic.critical and basic.value.ca)
        self.assertTrue(authority.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign)
        self.assertEqual(
            server.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier,
            authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        )

    def test_a_client_accepts_it(self) -> None:
        """A client that trusts ca.pem, and is as strict as Python's default, accepts the server by each of its names."""
        made = development_certificates(self.folder, "box.example")
        context = server_context(made.cert, made.key, client_ca=None, client_cert="require")
        trusting = ssl.create_default_context(cafile=str(made.ca))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        for name in ("localhost", "box.example", "127.0.0.1", "::1"):
            server = SSL.Connection(context)
            server.set_accept_state()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting.wrap_bio(incoming, outgoing, server_hostname=name)
            for _ in range(4):
                try:
                    client.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                if outgoing.pending:
                    server.bio_write(outgoing.read())
                try:
                    server.do_handshake()
                except SSL.WantReadError:
                    pass
                try:
                    incoming.write(server.bio_read(1 << 16))
                except SSL.WantReadError:
                    pass
            self.assertIsNotNone(client.version(), name)

    def test_private(self) -> None:
        """Private keys are readable by their owner only, whatever the umask; certificates by everybody."""
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        self.make()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in self.folder.iterdir()}
        self.assertEqual(modes, {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644})

    def test_never_readable(self) -> None:
        """No file is ever made with a mode that lets others read a key, not even for an instant."""
        modes: list[int] = []
        real = os.open

        def watching(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
            if flags & os.O_CREAT:
                modes.append(mode)
            return real(path, flags, mode, **more)

        with mock.patch("os.open", watching):
            self.make()
        self.assertEqual(modes, [0o600] * 4)

    def test_open_key_is_closed(self) -> None:
        """A key that somebody made readable for others is closed again."""
        self.make()
        (self.folder / "server.key").chmod(0o644)
        self.make()
        self.assertEqual(stat.S_IMODE((self.folder / "server.key").stat().st_mode), 0o600)

    def test_used_again(self) -> None:
        """What is there is used again, byte for byte, even where the folder can't be written to."""
        files = self.make()
        with mock.patch.object(tls, "_write", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.make(now=_NOW + timedelta(days=789)), files)

    def test_renewed(self) -> None:
        """In its last 30 days the server's certificate is made anew, by the same authority for the same key."""
        files = self.make()
        later = _NOW + timedelta(days=791)
        renewed = self.make(now=later)
        self.assertEqual([name for name in files if files[name] != renewed[name]], ["server.pem"])
        expiry = x509.load_pem_x509_certificate(renewed["server.pem"]).not_valid_after_utc
        self.assertEqual(expiry - later, timedelta(days=820))

    def test_another_host_name(self) -> None:
        """When the host's name has changed the server's certificate is made anew, by the same authority."""
        files = self.make()
        renewed = self.make("other.example")
        self.assertEqual([name for name in files if files[name] != renewed[name]], ["server.pem"])

    def test_odd_host_names(self) -> None:
        """Any host name will do: an address, an underscore, beyond ASCII, too long, empty."""
        for hostname in ("10.0.0.1", "a_b", "d\u00e9j\u00e0.example", "x" * 300, "", "localhost"):
            files = self.make(hostname)
            self.assertEqual(self.make(hostname), files, hostname)
            names = x509.load_pem_x509_certificate(files["server.pem"]).extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            )
            dns = names.value.get_values_for_type(x509.DNSName)
            self.assertEqual(len(set(dns)), len(dns))
            self.assertNotIn("", dns)

    def test_half_made(self) -> None:
        """Whichever write is the last before the process is killed, the next start completes a pair that fits."""
        real = tls._write
        for survived in range(4):
            self.folder = self.new_path()
            writes = iter(range(4))

            def dying(path: Path, content: bytes, mode: int, writes: object = writes, survived: int = survived) -> None:
                if next(writes) == survived:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                real(path, content, mode)

            with mock.patch.object(tls, "_write", dying):
                self.assertRaises(KeyboardInterrupt, self.make)
            before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
            self.assertEqual(len(before), survived)
            files = self.make()
            self.assertEqual({name: files[name] for name in before}, before)
            check_server_files(self.folder / "server.pem", self.folder / "server.key")
            x509.load_pem_x509_certificate(files["server.pem"]).verify_directly_issued_by(
                x509.load_pem_x509_certificate(files["ca.pem"])
            )

    def test_killed_while_writing(self) -> None:
        """A write that fails leaves no file; what a killed process left is removed by the next start."""
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(
                self.refused(), f"{self.folder}: can't keep development certificates here: no space left on device"
            )
        self.assertEqual(list(self.folder.iterdir()), [])
        (self.folder / ".owsla-abc").write_text("")
        self.assertNotIn(".owsla-abc", self.make())

    def test_two_at_once(self) -> None:
        """Processes that start at the same time agree on one set of files."""
        program = (
            "import sys; from pathlib import Path; from owsla.tls.certificates import *;"
            "d = development_certificates(Path(sys.argv[1]), 'box'); check_server_files(d.cert, d.key);"
            "print(d.ca.read_bytes() + d.cert.read_bytes() + d.key.read_bytes())"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", program, str(self.folder)], stdout=subprocess.PIPE) for _ in range(4)
        ]
        outputs = {process.communicate()[0] for process in processes}
        self.assertEqual([process.returncode for process in processes], [0] * 4)
        self.assertEqual(len(outputs), 1)

    def test_folder_is_closed(self) -> None:
        """The folder is made for its owner alone; where others may write to one that is there, they may no more."""
        self.make()
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.folder.chmod(0o777)
        self.make()
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o755)

    def test_links(self) -> None:
        """No symbolic link is followed: neither the folder, nor a file in it, of whom keys would be read or written."""
        elsewhere = self.new_path()
        elsewhere.mkdir()
        self.folder.parent.mkdir()
        self.folder.symlink_to(elsewhere)
        self.assertIn("this is a symbolic link", self.refused())
        self.assertEqual(list(elsewhere.iterdir()), [])
        self.folder.unlink()
        self.make()
        for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
            path = self.folder / name
            moved = path.rename(elsewhere / name)
            path.symlink_to(moved)
            self.assertEqual(self.refused(), f"{path}: this is a symbolic link; development certificates follow none")
            moved.rename(path)
        self.make()

    def test_somebody_elses(self) -> None:
        """A folder of another user's is refused: who owns it can replace the keys in it. Root's is trusted."""
        self.make()
        owner = self.folder.stat().st_uid
        with mock.patch("os.geteuid", return_value=owner + 1):
            if owner == 0:
                self.make()
            else:
                self.assertIn("is another user's", self.refused())
        with mock.patch("os.fstat", return_value=os.stat_result((0o40755, 0, 0, 1, 4242, 0, 0, 0, 0, 0))):
            self.assertIn("this folder is another user's (uid 4242)", self.refused())

    def test_folder_cannot_be_used(self) -> None:
        """A folder that can't be made, written to or is a file is named with the reason."""
        self.folder.parent.mkdir()
        self.folder.write_text("")
        self.assertEqual(self.refused(), f"{self.folder}: can't keep development certificates here: not a directory")
        self.folder.unlink()
        with mock.patch("tempfile.mkstemp", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.refused(), f"{self.folder}: can't keep development certificates here: permission denied")

    def test_broken(self) -> None:
        """What was damaged or doesn't fit is named, with what to do, and is never overwritten."""
        good = self.make()
        for name, content, reason in [
            ("ca.pem", b"", "there is no certificate in PEM format in it"),
            ("server.pem", b"x", "there is no certificate in PEM format in it"),
            ("server.key", b"", "there is no private key in PEM format in it"),
        ]:
            (self.folder / name).write_bytes(content)
            self.assertEqual(self.refused(), f"{self.folder / name}: {reason}")
            self.assertEqual((self.folder / name).read_bytes(), content)
            (self.folder / name).write_bytes(good[name])
        (self.folder / "server.pem").unlink()
        for content, reason in [(b"", "no private key"), (_pem(_ec_key()), "not the key of"), (_pem(_rsa_key()), "made")]:
            (self.folder / "ca.key").write_bytes(content)
            message = self.refused()
            self.assertTrue(message.startswith(f"{self.folder / 'ca.key'}: "), message)
            self.assertIn(reason, message)
        (self.folder / "ca.key").unlink()
        self.assertIn("delete", self.refused())

    def test_authority_expires(self) -> None:
        """An authority that expires is not replaced behind the devices' backs: its user is told."""
        self.make()
        error = self.assertRaises(ConfigError, self.make, now=_NOW + timedelta(days=3640))
        self.assertEqual(str(error), f"{self.folder / 'ca.pem'}: this authority expires; delete it and ca.key to begin anew")
