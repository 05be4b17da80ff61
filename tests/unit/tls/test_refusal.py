"""Refused certificates: the device that they were of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL, crypto

from owsla.tls.refusal import LONGEST_SUBJECT, Refusal, certificate_refusal, noted_refusal

from ._handshakes import Files, Key, device_context, ec_key, issue, pem, server_context, shake_ends

VERSIONS = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION)


def serial(certificate: x509.Certificate) -> str:
    text = f"{certificate.serial_number:X}"
    return text.zfill(len(text) + len(text) % 2)


class RefusedDeviceTests(Files):
    """The refusal of a device names its own certificate, whichever certificate of its chain was refused."""

    def setUp(self) -> None:
        self.root_key, self.other_key, self.middle_key, self.key = ec_key(), ec_key(), ec_key(), ec_key()
        self.root = issue(self.root_key, common_names=("root",), authority=True)
        self.other = issue(self.other_key, common_names=("other",), authority=True)
        server_key = ec_key()
        self.files = self.file(pem(issue(server_key))), self.file(pem(server_key))
        self.client_ca = self.file(pem(self.root))

    def middle(self, issuer: tuple[x509.Certificate, Key], age: timedelta = timedelta(hours=1)) -> x509.Certificate:
        return issue(self.middle_key, issuer, common_names=("middle",), authority=True, age=age)

    def device(self, issuer: tuple[x509.Certificate, Key], age: timedelta = timedelta(hours=1)) -> x509.Certificate:
        names = (x509.DNSName("dev.example"), x509.UniformResourceIdentifier("urn:dev:7"))
        return issue(self.key, issuer, common_names=("dev-7",), alternatives=names, age=age)

    def refusal(
        self, device: x509.Certificate, chain: Sequence[x509.Certificate], version: int, kind: str = "cn"
    ) -> Refusal | None:
        """Return what is known of a device that is refused, whose certificate comes with this chain."""
        context = device_context(version=version, certificate=device, key=self.key)
        for each in chain:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(each))
        server = SSL.Connection(server_context(*self.files, client_ca=self.client_ca, device_id=kind))
        self.assertRaises(SSL.Error, shake_ends, server, SSL.Connection(context))
        return noted_refusal(server)

    def test_each_cause(self) -> None:
        """In both versions of TLS it names the device, and if the certificate of an authority was refused, that one, too."""
        old = timedelta(days=3)
        strange, aged = self.middle((self.other, self.other_key)), self.middle((self.root, self.root_key), old)
        own, whose = "the device's certificate is refused: ", "an authority's certificate is refused: "
        cases: Sequence[tuple[x509.Certificate, Sequence[x509.Certificate], str]] = (
            (self.device((self.root, self.root_key), old), (), f"{own}it has expired"),
            (self.device((self.other, self.other_key)), (), f"{own}its authority is not trusted"),
            (self.device((self.other, self.other_key)), (self.other,), f"{whose}its authority is not trusted (CN=other)"),
            (self.device((strange, self.middle_key)), (strange,), f"{whose}its authority is not trusted (CN=middle)"),
            (self.device((aged, self.middle_key)), (aged,), f"{whose}it has expired (CN=middle)"),
        )
        for device, chain, reason in cases:
            for version in VERSIONS:
                self.assertEqual(self.refusal(device, chain, version), Refusal(reason, "CN=dev-7", serial(device), "dev-7"))

    def test_each_kind(self) -> None:
        """The claimed id is read as --device-id says, as if the certificate had been accepted."""
        device = self.device((self.other, self.other_key))
        ids = {
            "cn": "dev-7",
            "san-dns": "dev.example",
            "san-uri": "urn:dev:7",
            "fingerprint": device.fingerprint(hashes.SHA256()).hex(),
        }
        for kind, claimed_id in ids.items():
            for chain in ((), (self.other,)):
                refusal = self.refusal(device, chain, SSL.TLS1_3_VERSION, kind)
                assert refusal is not None
                self.assertEqual((refusal.subject, refusal.claimed_id), ("CN=dev-7", claimed_id))

    def test_without_a_name(self) -> None:
        """A certificate without such a name claims nothing; nor does one whose name is no device id."""
        for names in ((), ("one\ntwo",)):
            device = issue(self.key, (self.other, self.other_key), common_names=names)
            refusal = self.refusal(device, (), SSL.TLS1_3_VERSION)
            assert refusal is not None
            self.assertEqual((refusal.serial, refusal.claimed_id), (serial(device), None))

    def test_long_subject(self) -> None:
        """A long subject is shortened, and what is not printable replaced."""
        key = ec_key()
        certificate = issue(key, common_names=("one\ttwo", *("x" * 60 for _ in range(5))))
        refusal = certificate_refusal("no", crypto.X509.from_cryptography(certificate), "cn")
        assert refusal.subject is not None
        self.assertEqual(len(refusal.subject), LONGEST_SUBJECT)
        self.assertNotIn("\t", refusal.subject)

    def test_nobody(self) -> None:
        """Without a certificate a refusal names nobody."""
        self.assertEqual(certificate_refusal("no", None, "cn"), Refusal("no"))
