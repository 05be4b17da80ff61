"""TLS of the device port: choice of certificates, revocation, OCSP responses, and what another material changes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from owsla.errors import ConfigError
from owsla.tls import contexts
from owsla.tls.device import DeviceTLS, DeviceTLSFiles, DeviceTLSMaterial, PreviousMaterial, load_device_tls
from owsla.tls.identity import device_identity
from owsla.tls.refusal import Refusal, noted_refusal

from ._handshakes import (
    Files,
    Key,
    complete,
    device_context,
    ec_key,
    issue,
    ocsp_response,
    pem,
    revocation_list,
    rsa_key,
    shake_ends,
)

VERSIONS = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION


class Base(Files):
    def setUp(self) -> None:
        self.root_key = ec_key()
        self.root = issue(self.root_key, common_names=("root",), authority=True)

    def pair(self, *chain: x509.Certificate, key: Key) -> tuple[Path, Path]:
        return self.file(pem(*chain)), self.file(pem(key))

    def server(self, name: str, *alternatives: str, key: Key | None = None) -> tuple[Path, Path]:
        """Return the files of a certificate with a common name and some DNS names."""
        key = key or ec_key()
        names = tuple(x509.DNSName(each) for each in alternatives)
        return self.pair(issue(key, (self.root, self.root_key), common_names=(name,), alternatives=names), key=key)

    def load(self, *pairs: tuple[Path, Path], **files: Any) -> DeviceTLSMaterial:
        return load_device_tls(DeviceTLSFiles(pairs=pairs, **files))

    def shake(
        self, tls: DeviceTLS, client: SSL.Context | None = None, name: str | None = None
    ) -> tuple[SSL.Connection, SSL.Connection]:
        end = SSL.Connection(client or device_context())
        if name is not None:
            end.set_tlsext_host_name(name.encode())
        return shake_ends(SSL.Connection(tls.context), end)


def common_names(chain: Sequence[x509.Certificate] | None) -> list[str]:
    return [str(each.subject.rfc4514_string()).removeprefix("CN=") for each in chain or ()]


class CertificateChoiceTests(Base):
    def shown(self, tls: DeviceTLS, name: str | None = None, client: SSL.Context | None = None) -> list[str]:
        """Return the common names of the certificates that a device gets."""
        _, end = self.shake(tls, client, name)
        return common_names(end.get_peer_cert_chain(as_cryptography=True))

    def test_first_context(self) -> None:
        """A handshake begins with the certificate if there is one only; otherwise, and with client authorities, without one."""
        one, other = self.load(self.server("one")), self.load(self.server("one"), self.server("two", "two.example"))
        asking = self.load(self.server("one"), client_ca=self.file(pem(self.root)), client_cert="optional")
        tls = DeviceTLS(one)
        self.assertIs(tls.context, one.contexts.default)
        for material in (other, asking):
            tls.use(material)
            self.assertNotIn(tls.context, material.contexts.values())
            self.assertEqual(self.shown(tls)[0], "one")
        tls.use(one)
        self.assertIs(tls.context, one.contexts.default)

    def test_server_names(self) -> None:
        """A device gets the certificate for its server name: an exact one, a wildcard, or else the first, in both versions."""
        tls = DeviceTLS(
            self.load(
                self.server("one", "one.example"), self.server("all", "*.example.com"), self.server("exact", "a.example.com")
            )
        )
        for version in VERSIONS:
            for name, title in (
                ("one.example", "one"),
                ("A.example.com", "exact"),
                ("b.example.com", "all"),
                ("elsewhere.example", "one"),
                (None, "one"),
            ):
                self.assertEqual(self.shown(tls, name, device_context(version=version)), [title])

    def test_common_name(self) -> None:
        """A certificate without alternative names is for its common name."""
        tls = DeviceTLS(self.load(self.server("one.example"), self.server("two.example")))
        self.assertEqual(self.shown(tls, "two.example"), ["two.example"])

    def test_key_types(self) -> None:
        """A device that knows RSA only gets the RSA certificate, others the ECDSA one, each with its own chain."""
        middles = []
        for title in ("middle R", "middle E"):
            key = ec_key()
            middles.append((issue(key, (self.root, self.root_key), common_names=(title,), authority=True), key))
        rsa, ecdsa = rsa_key(), ec_key()
        tls = DeviceTLS(
            self.load(
                self.pair(issue(rsa, middles[0], common_names=("rsa",)), middles[0][0], key=rsa),
                self.pair(issue(ecdsa, middles[1], common_names=("rsa",)), middles[1][0], key=ecdsa),
            )
        )
        old = device_context(version=SSL.TLS1_2_VERSION)
        old.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
        self.assertEqual(self.shown(tls, client=old), ["rsa", "middle R"])
        for version in VERSIONS:
            _, end = self.shake(tls, device_context(version=version))
            certificate = end.get_peer_certificate(as_cryptography=True)
            assert certificate is not None
            self.assertIsInstance(certificate.public_key(), ec.EllipticCurvePublicKey)
            self.assertEqual(common_names(end.get_peer_cert_chain(as_cryptography=True)), ["rsa", "middle E"])

    def test_twice(self) -> None:
        """Two certificates with the same names and key type are refused: one of them would never be used."""
        one, two = self.server("x", "a.example", "b.example"), self.server("y", "b.example", "a.example")
        error = self.assertRaises(ConfigError, self.load, one, two)
        reason = f"this is a second ECDSA certificate for the same names as {one[0]}; only one of each key type can be used"
        self.assertEqual(str(error), f"{two[0]}: {reason}")

    def test_refused(self) -> None:
        """Of several certificates the one that OpenSSL refuses is named."""
        key = rsa_key(1024)
        short = self.pair(issue(key, common_names=("short",)), key=key)
        error = self.assertRaises(ConfigError, self.load, self.server("good"), short)
        self.assertTrue(str(error).startswith(f"{short[0]}: OpenSSL refuses this certificate ("), str(error))

    def test_hello_retry_request(self) -> None:
        """A second ClientHello, after a HelloRetryRequest, continues with the material of the first one."""
        make = contexts._context

        def another_group() -> SSL.Context:
            context = make()
            context.set_tmp_ecdh(ec.SECP384R1())  # of which the device's first ClientHello has no key share
            return context

        with mock.patch.object(contexts, "_context", another_group):
            tls = DeviceTLS(self.load(self.server("old")))
        server, client = SSL.Connection(tls.context), SSL.Connection(device_context())
        client.set_tlsext_host_name(b"old")
        server.set_accept_state()
        client.set_connect_state()
        with self.assertRaises(SSL.WantReadError):
            client.do_handshake()
        server.bio_write(client.bio_read(1 << 16))
        with self.assertRaises(SSL.WantReadError):
            server.do_handshake()
        chosen = server.get_context()
        # The next material asks for device certificates.
        tls.use(self.load(self.server("new"), client_ca=self.file(pem(self.root))))
        complete(server, client)
        if hasattr(client, "get_group_name"):  # pyOpenSSL 26 and later
            self.assertEqual(client.get_group_name(), "secp384r1")
        self.assertEqual(common_names(client.get_peer_cert_chain(as_cryptography=True)), ["old"])
        self.assertIs(server.get_context(), chosen)


class UseTests(Base):
    def test_next_handshake(self) -> None:
        """The next handshake uses what was loaded last, and the connections before are not concerned."""
        tls = DeviceTLS(self.load(self.server("first")))
        server, before = self.shake(tls)
        for title in ("second", "third"):
            material = self.load(self.server(title))
            tls.use(material)
            self.assertIs(tls.current, material)
            _, end = self.shake(tls)
            self.assertEqual(common_names(end.get_peer_cert_chain(as_cryptography=True)), [title])
        before.send(b"hello")
        server.bio_write(before.bio_read(1 << 16))
        self.assertEqual(server.recv(10), b"hello")

    def test_handshake_in_progress(self) -> None:
        """A handshake that has begun ends with what it began with."""
        tls = DeviceTLS(self.load(self.server("first")))
        server, client = SSL.Connection(tls.context), SSL.Connection(device_context())
        server.set_accept_state()
        client.set_connect_state()
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        server.bio_write(client.bio_read(1 << 16))
        self.assertRaises(SSL.WantReadError, server.do_handshake)
        tls.use(self.load(self.server("second")))
        complete(server, client)
        self.assertEqual(common_names(client.get_peer_cert_chain(as_cryptography=True)), ["first"])

    def test_client_certificates(self) -> None:
        """Client authorities, and whether a certificate is asked for and required, are those of the present material."""
        server, key = self.server("server"), ec_key()
        other_key = ec_key()
        other = issue(other_key, common_names=("other",), authority=True)
        device = issue(key, (other, other_key), common_names=("device",))
        old, new = self.file(pem(self.root)), self.file(pem(self.root, other))
        tls = DeviceTLS(self.load(server))
        for version in VERSIONS:
            known, unknown = device_context(version=version, certificate=device, key=key), device_context(version=version)
            for files, asked, id_of_known, unknown_accepted in (
                ({}, [], None, True),
                ({"client_ca": old}, ["root"], "refused", False),
                ({"client_ca": new}, ["root", "other"], "device", False),
                ({"client_ca": new, "client_cert": "optional"}, ["root", "other"], "device", True),
                ({"client_ca": old, "client_cert": "optional"}, ["root"], "refused", True),
                ({}, [], None, True),
            ):
                tls.use(self.load(server, **files))
                if id_of_known == "refused":
                    self.assertRaises(SSL.Error, self.shake, tls, known)
                else:
                    end, _ = self.shake(tls, known)
                    self.assertEqual(tls.identify(end), id_of_known)
                if unknown_accepted:
                    end, client = self.shake(tls, unknown)
                    self.assertEqual([name.CN for name in client.get_client_ca_list()], asked)
                    self.assertIsNone(tls.identify(end))
                else:
                    self.assertRaises(SSL.Error, self.shake, tls, unknown)

    def test_kind_of_device_id(self) -> None:
        """The kind of device id is that of the present material."""
        server, key = self.server("server"), ec_key()
        device = issue(key, (self.root, self.root_key), common_names=("name",))
        client = device_context(certificate=device, key=key)
        client_ca = self.file(pem(self.root))
        tls = DeviceTLS(self.load(server, client_ca=client_ca))
        end, _ = self.shake(tls, client)
        self.assertEqual(tls.identify(end), "name")
        tls.use(self.load(server, client_ca=client_ca, device_id="fingerprint"))
        self.assertEqual(tls.identify(end), device_identity(end, "fingerprint"))

    def test_nothing_stays(self) -> None:
        """Material that is no longer used is freed without the garbage collector when the last handshake with it has ended."""
        server = self.server("server"), self.server("other", "other.example")
        client_ca = self.file(pem(self.root))
        client_crl = self.file(revocation_list((self.root, self.root_key)))
        key = ec_key()
        client = device_context(certificate=issue(key, (self.root, self.root_key)), key=key)
        established = SSL.Context(SSL.TLS_METHOD)
        tls = DeviceTLS(self.load(*server))
        kept = []
        gone: list[weakref.ref[Any]] = []
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(3):
            tls.use(self.load(*server, client_ca=client_ca, client_crl=client_crl))
            gone += map(weakref.ref, (tls.current.revocation, *tls.current.contexts.values()))
            for name in ("other.example", None):
                end, other = self.shake(tls, client, name)
                end.set_context(established)
                kept.append((end, other))
        self.assertNotIn(None, [each() for each in gone[-3:]])
        tls.use(self.load(*server))
        self.assertEqual([each() for each in gone], [None] * len(gone))

    def test_memory(self) -> None:
        """Hundreds of materials leave nothing behind."""
        pair, client_ca = self.server("server"), self.file(pem(self.root))
        content = self.file(ocsp_response((self.root, self.root_key), x509.load_pem_x509_certificate(pair[0].read_bytes())))
        tls = DeviceTLS(self.load(pair))

        def rounds(count: int) -> int:
            for _ in range(count):
                tls.use(self.load(pair, client_ca=client_ca, client_cert="optional", ocsp_responses=(content,)))
                self.shake(tls)
            gc.collect()
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        before = rounds(100)
        self.assertLess(rounds(200) - before, 1 << 20)

    def test_expired_certificate(self) -> None:
        """An expired certificate is used, with a warning in the log, whenever it is loaded."""
        key = ec_key()
        pair = self.pair(issue(key, age=timedelta(days=3)), key=key)
        with mock.patch.object(DeviceTLS, "_log") as log:
            tls = DeviceTLS(self.load(pair))
            tls.use(self.load(self.server("good")))
            tls.use(self.load(pair))
        self.assertEqual([call.kwargs["path"] for call in log.warn.mock_calls], [str(pair[0])] * 2)

    def test_half(self) -> None:
        """A certificate without its key changes nothing."""
        first, second = self.server("one"), self.server("two")
        self.assertRaises(ConfigError, self.load, (first[0], second[1]))


class RevocationTests(Base):
    """Revoked device certificates, in real handshakes."""

    def setUp(self) -> None:
        super().setUp()
        self.pair_files = self.server("server")
        self.client_ca = self.file(pem(self.root))
        self.middle_key = ec_key()
        self.middle = issue(self.middle_key, (self.root, self.root_key), common_names=("middle",), authority=True)
        self.key = ec_key()
        self.device = issue(self.key, (self.root, self.root_key), common_names=("device",))
        self.deep = issue(self.key, (self.middle, self.middle_key), common_names=("deep",))

    def tls(self, *lists: bytes, policy: str = "hard") -> DeviceTLS:
        crl = self.file(b"".join(lists))
        return DeviceTLS(self.load(self.pair_files, client_ca=self.client_ca, client_crl=crl, crl_policy=policy))

    def client(self, certificate: x509.Certificate, version: int = SSL.TLS1_3_VERSION) -> SSL.Context:
        context = device_context(version=version, certificate=certificate, key=self.key)
        if certificate is self.deep:
            context.add_extra_chain_cert(self.middle)
        return context

    def outcome(self, tls: DeviceTLS, certificate: x509.Certificate, version: int = SSL.TLS1_3_VERSION) -> str:
        """Return `accepted`, or the reason of the refusal."""
        server = SSL.Connection(tls.context)
        try:
            shake_ends(server, SSL.Connection(self.client(certificate, version)))
        except SSL.Error:
            refusal = noted_refusal(server)
            assert isinstance(refusal, Refusal)
            return refusal.reason
        self.assertIsNone(noted_refusal(server))
        return "accepted"

    def root_list(self, *revoked: x509.Certificate, **options: Any) -> bytes:
        return revocation_list((self.root, self.root_key), *revoked, **options)

    def middle_list(self, *revoked: x509.Certificate, **options: Any) -> bytes:
        return revocation_list((self.middle, self.middle_key), *revoked, **options)

    def test_revoked(self) -> None:
        """A revoked certificate is refused with that reason, with either policy; others are accepted."""
        for policy in ("hard", "soft"):
            tls = self.tls(self.root_list(self.device), self.middle_list(self.deep), policy=policy)
            for version in VERSIONS:
                for certificate in (self.device, self.deep):
                    reason = "the device's certificate is refused: it has been revoked"
                    self.assertEqual(self.outcome(tls, certificate, version), reason)
            tls = self.tls(self.root_list(), self.middle_list(), policy=policy)
            for version in VERSIONS:
                for certificate in (self.device, self.deep):
                    self.assertEqual(self.outcome(tls, certificate, version), "accepted")

    def test_revoked_authority(self) -> None:
        """A device of a revoked intermediate authority is refused."""
        tls = self.tls(self.root_list(self.middle), self.middle_list())
        self.assertEqual(self.outcome(tls, self.deep), "an authority's certificate is refused: it has been revoked (CN=middle)")
        self.assertEqual(self.outcome(tls, self.device), "accepted")

    def test_missing(self) -> None:
        """Without a list of an authority in its chain a device is refused, or accepted with the policy `soft`."""
        reason = "the device's certificate is refused: there is no revocation list of its authority"
        self.assertEqual(self.outcome(self.tls(self.root_list()), self.deep), reason)
        self.assertEqual(self.outcome(self.tls(self.root_list()), self.device), "accepted")
        self.assertEqual(self.outcome(self.tls(self.root_list(), policy="soft"), self.deep), "accepted")
        revoked = "an authority's certificate is refused: it has been revoked (CN=middle)"
        self.assertEqual(self.outcome(self.tls(self.root_list(self.middle), policy="soft"), self.deep), revoked)

    def test_out_of_date(self) -> None:
        """With an expired list, or one that is not valid yet, devices are refused, or with `soft` only those in the list."""
        expired = {"age": timedelta(hours=3), "lifetime": timedelta(hours=1)}
        early = {"age": timedelta(hours=-1)}
        for options, why in ((expired, "has expired"), (early, "is not valid yet")):
            reason = f"the device's certificate is refused: the revocation list of its authority {why}"
            self.assertEqual(self.outcome(self.tls(self.root_list(**options)), self.device), reason)
            self.assertEqual(self.outcome(self.tls(self.root_list(**options), policy="soft"), self.device), "accepted")
            revoked = "the device's certificate is refused: it has been revoked"
            lists = self.root_list(self.device, **options)
            self.assertEqual(self.outcome(self.tls(lists, policy="soft"), self.device), revoked)

    def test_chain_of_a_connection(self) -> None:
        """The chain of an established connection is known after its context was changed, also if its authority has gone."""
        established = SSL.Context(SSL.TLS_METHOD)
        for version in VERSIONS:
            tls = self.tls(self.root_list(), self.middle_list())
            server, _ = shake_ends(SSL.Connection(tls.context), SSL.Connection(self.client(self.deep, version)))
            server.set_context(established)
            tls.use(self.load(self.pair_files))
            chain = server.get_verified_chain()
            assert chain is not None
            expected = [crypto.X509.from_cryptography(each) for each in (self.deep, self.middle, self.root)]
            self.assertEqual([each.digest("sha256") for each in chain], [each.digest("sha256") for each in expected])
            for lists in (self.middle_list(self.deep), self.root_list(self.middle)):
                revocation = self.tls(lists).current.revocation
                assert revocation is not None
                self.assertTrue(revocation.revoke(chain))


class AgainTests(Base):
    """What a load takes from an earlier one."""

    def setUp(self) -> None:
        super().setUp()
        self.authorities = self.file(pem(self.root))
        self.lists = self.file(revocation_list((self.root, self.root_key)))
        self.files: dict[str, Any] = {"client_ca": self.authorities, "client_crl": self.lists}
        self.pairs = [self.server("gw")]
        self.changed: set[Path] = set()
        self.before = self.load(*self.pairs, **self.files)

    def again(self) -> DeviceTLSMaterial:
        previous = [PreviousMaterial(self.before, lambda path: path not in self.changed)]
        return load_device_tls(DeviceTLSFiles(pairs=tuple(self.pairs), **self.files), previous=previous)

    def test_nothing_has_changed(self) -> None:
        """With the same settings and contents the material is the same object."""
        self.assertIs(self.again(), self.before)

    def test_each_file(self) -> None:
        """Another content of a file makes other contexts. The lists are kept if they and the authorities are the same."""
        cert, key = self.pairs[0]
        for path, kept in ((cert, True), (key, True), (self.authorities, False), (self.lists, False)):
            self.changed = {path}
            after = self.again()
            self.assertIsNot(after.contexts, self.before.contexts)
            self.assertEqual(after.revocation is self.before.revocation, kept, path)

    def test_each_setting(self) -> None:
        """Another setting, or another file with the same content, makes another material."""
        for name, value in (
            ("client_cert", "optional"),
            ("crl_policy", "soft"),
            ("device_id", "san-dns"),
            ("client_crl", None),
            ("client_crl", self.file(self.lists.read_bytes())),
        ):
            files = self.files
            self.files = {**files, name: value}
            after = self.again()
            self.files = files
            self.assertIsNot(after, self.before, name)
            self.assertEqual(after.revocation is self.before.revocation, name != "client_crl", name)


class StaplingTests(Base):
    """OCSP responses, in real handshakes."""

    def stapled(self, tls: DeviceTLS, client: SSL.Context | None = None, name: str | None = None) -> bytes:
        """Return the response that a device gets."""
        found: list[bytes] = []

        def received(connection: SSL.Connection, content: bytes, data: object) -> bool:
            found.append(content)
            return True

        client = client or device_context()
        client.set_ocsp_client_callback(received)
        end = SSL.Connection(client)
        if name is not None:
            end.set_tlsext_host_name(name.encode())
        end.request_ocsp()
        shake_ends(SSL.Connection(tls.context), end)
        return found[0] if found else b""

    def response(self, pair: tuple[Path, Path], **options: Any) -> bytes:
        certificate = x509.load_pem_x509_certificate(pair[0].read_bytes())
        return ocsp_response((self.root, self.root_key), certificate, **options)

    def test_each_certificate(self) -> None:
        """A device gets the response for the certificate that it gets; none where there is none for it."""
        rsa, ecdsa, other = self.server("a", key=rsa_key()), self.server("a"), self.server("b")
        responses = [self.response(rsa), self.response(ecdsa)]
        tls = DeviceTLS(self.load(rsa, ecdsa, other, ocsp_responses=[self.file(each) for each in responses]))
        for version in VERSIONS:
            self.assertEqual(self.stapled(tls, device_context(version=version)), responses[1])
            self.assertEqual(self.stapled(tls, device_context(version=version), "b"), b"")
        old = device_context(version=SSL.TLS1_2_VERSION)
        old.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
        self.assertEqual(self.stapled(tls, old), responses[0])
        self.shake(tls)  # a device that does not ask for one

    def test_renewed(self) -> None:
        """The next handshake has the response of the present material."""
        pair = self.server("a")
        tls = DeviceTLS(self.load(pair))
        self.assertEqual(self.stapled(tls), b"")
        for _ in range(2):
            response = self.response(pair)
            tls.use(self.load(pair, ocsp_responses=[self.file(response)]))
            self.assertEqual(self.stapled(tls), response)

    def test_expired(self) -> None:
        """A response that expires while it is in use is not sent any more."""
        pair = self.server("a")
        response = self.file(self.response(pair))
        clock = [0.0]
        files = DeviceTLSFiles(pairs=[pair], ocsp_responses=[response])
        tls = DeviceTLS(load_device_tls(files, now=lambda: clock[0]))
        end = tls.current.ocsp_expires
        assert end is not None
        assert tls.current.responses is not None
        clock[0] = end - 1
        self.assertEqual(self.stapled(tls), response.read_bytes())
        clock[0] = end
        self.assertEqual(self.stapled(tls), b"")
        self.assertEqual([path for path, _ in tls.current.responses.unusable()], [response])
