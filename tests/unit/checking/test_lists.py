"""Tests of the checks of several certificates, revocation lists and OCSP responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from owsla.checking.certificates import check_responses, check_revocation_lists, check_together
from owsla.checking.findings import Finding

from ..tls._handshakes import ec_key, issue, ocsp_response, pem, revocation_list, rsa_key

CERT, CA, CRL, RESPONSE = Path("server.pem"), Path("ca.pem"), Path("crl.pem"), Path("response.der")


def texts(findings: Iterator[Finding]) -> list[str]:
    """Return findings without the padding of the columns."""
    return [" ".join(str(finding).split()) for finding in findings]


class ListTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.key = ec_key()
        self.authority = issue(self.key, common_names=("CA",), authority=True)
        self.now = datetime.now(UTC)

    def test_together(self) -> None:
        """Of two certificates with the same names and key type the second one is a fault; another key type is none."""
        files: dict[Path, bytes] = {}
        pairs = []
        for name, key in (("a", ec_key()), ("b", rsa_key()), ("c", ec_key())):
            pair = Path(f"{name}.pem"), Path(f"{name}.key")
            files |= zip(pair, (pem(issue(key, common_names=("gw.example",))), pem(key)), strict=True)
            pairs.append(pair)
        self.assertEqual(texts(check_together(pairs[:2], files.__getitem__)), [])
        fault = "fail certificate c.pem: has the names and the key type of a.pem; only one of them can be used"
        self.assertEqual([text.lower() for text in texts(check_together(pairs, files.__getitem__))], [fault])

    def lists(self, content: bytes, policy: str = "hard", *others: x509.Certificate) -> list[str]:
        files: Mapping[Path, bytes] = {CA: pem(self.authority, *others), CRL: content}
        return texts(check_revocation_lists(CRL, CA, policy, files.__getitem__, self.now))

    def test_lists(self) -> None:
        """A sound list is one line, with its end."""
        content = revocation_list((self.authority, self.key), lifetime=timedelta(hours=24))
        (found,) = self.lists(content)
        self.assertRegex(found, r"\Aok client-crl crl\.pem: 1 list, valid until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")

    def test_unusable_lists(self) -> None:
        """An expired list, and an authority without one, are warnings with what happens to devices."""
        other = issue(rsa_key(), common_names=("Other",), authority=True)
        content = revocation_list((self.authority, self.key), age=timedelta(hours=3), lifetime=timedelta(hours=1))
        for policy, effect in (("hard", "refused"), ("soft", "accepted")):
            expired, missing, found = self.lists(content, policy, other)
            self.assertRegex(expired, rf"\Awarn client-crl crl\.pem: CN=CA: the list expired at .*Z; .* will be {effect}")
            self.assertIn(f"CN=Other: there is no list of this authority; devices of this authority will be {effect}", missing)
            self.assertTrue(found.startswith("ok client-crl"))

    def test_damaged_list(self) -> None:
        """A damaged list is a fault."""
        (found,) = self.lists(b"hello")
        self.assertIn("client-crl crl.pem: there is no certificate revocation list in PEM format in this file", found)
        self.assertTrue(found.lower().startswith("fail"))

    def responses(self, content: bytes, certificate: x509.Certificate) -> list[str]:
        files = {CERT: pem(certificate), RESPONSE: content}
        return texts(check_responses([RESPONSE], [CERT], files.__getitem__, self.now))

    def test_responses(self) -> None:
        """A response is good until its end, or not sent for a reason; a file that is none is a fault."""
        certificate = issue(ec_key(), (self.authority, self.key))
        other = issue(ec_key(), (self.authority, self.key))
        good = ocsp_response((self.authority, self.key), certificate)
        self.assertRegex(self.responses(good, certificate)[0], r"\Aok ocsp-response response\.der: good, valid until .*Z\Z")
        (found,) = self.responses(good, other)
        self.assertEqual(
            found, "warn ocsp-response response.der: it is for none of the server certificates; devices will not get it"
        )
        (found,) = self.responses(b"hello", certificate)
        self.assertIn("response.der: this is not an OCSP response in DER format", found)
