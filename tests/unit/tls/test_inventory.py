"""The list of certificates, revocation lists and OCSP responses in use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from owsla.tls.broker import load_broker_tls
from owsla.tls.device import DeviceTLSFiles, load_device_tls
from owsla.tls.inventory import InventoryEntry

from ._handshakes import Files, ec_key, issue, ocsp_response, pem, revocation_list


class InventoryTests(Files):
    def setUp(self) -> None:
        self.key = ec_key()
        self.authority = issue(self.key, common_names=("device CA",), authority=True)
        self.now = datetime.now(UTC).timestamp()
        server_key = ec_key()
        self.certificate = issue(server_key, (self.authority, self.key), common_names=("gw\x07.example",), serial=0xBEEF)
        self.cert, self.key_file = self.file(pem(self.certificate, self.authority)), self.file(pem(server_key))

    def entries(self, **files: Any) -> list[InventoryEntry]:
        material = load_device_tls(DeviceTLSFiles(pairs=[(self.cert, self.key_file)], **files), now=lambda: self.now)
        return list(material.inventory(self.now))

    def days(self, entry: InventoryEntry) -> float:
        """Return the days until the end of an entry, to the hour."""
        assert entry.not_after is not None
        return round((entry.not_after - self.now) / 3600) / 24

    def test_server(self) -> None:
        """A server certificate is listed by its file, subject and end, without its chain. What is not printable is replaced."""
        end = self.certificate.not_valid_after_utc.timestamp()
        self.assertEqual(
            self.entries(), [InventoryEntry("server", str(self.cert), "CN=gw\N{REPLACEMENT CHARACTER}.example", end)]
        )

    def test_clients(self) -> None:
        """So are all authorities of devices, and a revocation list for each; one that is missing or has expired says so."""
        other_key = ec_key()
        other = issue(other_key, common_names=("other CA",), authority=True)
        third = issue(ec_key(), common_names=("third CA",), authority=True)
        ca = self.file(pem(self.authority, other, third))
        good = revocation_list((self.authority, self.key), lifetime=timedelta(days=3))
        expired = revocation_list((other, other_key), age=timedelta(days=3), lifetime=timedelta(days=1))
        crl = self.file(good + expired)
        _, *entries = self.entries(client_ca=ca, client_crl=crl)
        self.assertEqual(
            [(each.kind, each.file, each.subject) for each in entries],
            [
                *(("client-ca", str(ca), f"CN={name} CA") for name in ("device", "other", "third")),
                *(("crl", str(crl), f"CN={name} CA") for name in ("device", "other", "third")),
            ],
        )
        lists = entries[3:]
        self.assertEqual([self.days(each) for each in lists[:2]], [3 - 1 / 24, -2])
        self.assertIsNone(lists[2].not_after)
        self.assertEqual([str(each.fault)[:16] for each in lists], ["None", "the list expired", "there is no list"])

    def test_responses(self) -> None:
        """An OCSP response is listed with the serial number of its certificate; one that devices do not get says why."""
        good = self.file(ocsp_response((self.authority, self.key), self.certificate, lifetime=timedelta(hours=9)))
        error = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
        busy = self.file(error.public_bytes(Encoding.DER))
        _, first, second = self.entries(ocsp_responses=[good, busy])
        self.assertEqual((first.kind, first.file, first.subject, first.fault), ("ocsp-response", str(good), "beef", None))
        self.assertEqual(self.days(first), 8 / 24)
        self.assertEqual(second, InventoryEntry("ocsp-response", str(busy), "", None, "the responder answered 'try later'"))

    def test_broker(self) -> None:
        """For connections to the broker, its authorities and the certificate that it is shown are listed."""
        ca = self.file(pem(self.authority))
        material = load_broker_tls(ca, self.cert, self.key_file)
        self.assertEqual(
            [(each.kind, each.file, each.subject) for each in material.inventory],
            [
                ("broker-ca", str(ca), "CN=device CA"),
                ("broker-cert", str(self.cert), "CN=gw\N{REPLACEMENT CHARACTER}.example"),
            ],
        )
        self.assertEqual(load_broker_tls().inventory, ())
