"""Tests of OpenSSL's reasons as text for people."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.tls.reasons import explain_tls_error


class ExplainTests(SynchronousTestCase):
    def test_known(self) -> None:
        """The meaning of a usual mistake comes first, and OpenSSL's words, which search engines know, stay."""
        for text, meaning in (
            ("wrong version number", "the device does not speak TLS"),
            ("http request", "the device does not speak TLS"),
            ("tlsv1 alert unknown ca", "the device refuses the certificate of the gateway"),
            ("sslv3 alert certificate expired", "the device refuses the certificate of the gateway"),
            ("ssl/tls alert bad certificate", "the device refuses the certificate of the gateway"),
            ("no shared cipher", "the device offers no version or cipher of TLS that the gateway accepts"),
            ("peer did not return a certificate", "the device has no certificate, or sends none"),
        ):
            self.assertEqual(explain_tls_error(text), f"{meaning} ({text})")

    def test_unknown(self) -> None:
        """Any other text stays as it is."""
        for text in ("", "decryption failed or bad record mac", "tlsv1 alert internal error"):
            self.assertEqual(explain_tls_error(text), text)
