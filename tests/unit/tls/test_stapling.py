"""OCSP responses in files, and which of them can be used."""

from __future__ import annotations

from datetime import timedelta

from cryptography.x509 import ocsp

from owsla.errors import ConfigError
from owsla.tls.stapling import OcspResponses, read_ocsp_response

from ._handshakes import Files, ec_key, issue, ocsp_response


class OcspResponseTests(Files):
    def setUp(self) -> None:
        self.key = ec_key()
        self.authority = issue(self.key, common_names=("CA",), authority=True)
        self.certificate = issue(ec_key(), (self.authority, self.key), serial=17)

    def reason(self, content: bytes, *serials: int) -> str:
        """Return the reason for which a response is not used; empty if it is."""
        response = read_ocsp_response(self.file(content))
        responses = OcspResponses([response], serials or (17,), lambda: 0.0)
        found = list(responses.unusable())
        self.assertEqual(responses.content(17), b"" if found else content)
        if not found:
            return ""
        self.assertEqual(found[0].path, response.path)
        self.assertIsNone(responses.next_update)
        return found[0].reason

    def response(self, **options: object) -> bytes:
        return ocsp_response((self.authority, self.key), self.certificate, **options)  # type: ignore[arg-type]

    def test_good(self) -> None:
        """A good response is for the certificate with its serial number."""
        self.assertEqual(self.reason(self.response()), "")
        self.assertEqual(self.reason(self.response(), 18), "it is for none of the server certificates")

    def test_not_good(self) -> None:
        """A response that says something else than good is not used, with the reason."""
        for status in ("revoked", "unknown"):
            self.assertEqual(self.reason(self.response(status=status)), f"it says {status}")

    def test_errors(self) -> None:
        """A responder's error is not used, with what it says."""
        error = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
        from cryptography.hazmat.primitives.serialization import Encoding

        self.assertEqual(self.reason(error.public_bytes(Encoding.DER)), "the responder answered 'try later'")

    def test_without_an_end(self) -> None:
        """A response without a next update does not expire."""
        path = self.file(self.response(lifetime=None))
        responses = OcspResponses([read_ocsp_response(path)], [17], lambda: 1e12)
        self.assertEqual((list(responses.unusable()), responses.next_update), ([], None))
        self.assertNotEqual(responses.content(17), b"")

    def test_first_to_expire(self) -> None:
        """The first end of those in use is that of all."""
        one = read_ocsp_response(self.file(self.response(lifetime=timedelta(hours=2))))
        other = issue(ec_key(), (self.authority, self.key), serial=18)
        two = read_ocsp_response(self.file(ocsp_response((self.authority, self.key), other)))
        self.assertEqual(OcspResponses([one, two], [17, 18], lambda: 0.0).next_update, one.next_update)
        self.assertEqual(OcspResponses([one, two], [18], lambda: 0.0).next_update, two.next_update)

    def test_two_for_one_certificate(self) -> None:
        """Of two responses for a certificate the one that is valid for longer is sent, in any order of the files."""
        short = read_ocsp_response(self.file(self.response(lifetime=timedelta(hours=2))))
        long = read_ocsp_response(self.file(self.response(lifetime=timedelta(hours=4))))
        for files in ((short, long), (long, short)):
            self.assertEqual(OcspResponses(files, [17], lambda: 0.0).content(17), long.content)

    def test_bad_file(self) -> None:
        """A file that is no response is refused with its name."""
        for content in (b"", b"hello", self.response()[:-10], b"-----BEGIN OCSP RESPONSE-----\n"):
            path = self.file(content)
            error = self.assertRaises(ConfigError, read_ocsp_response, path)
            self.assertEqual(str(error), f"{path}: this is not an OCSP response in DER format")
