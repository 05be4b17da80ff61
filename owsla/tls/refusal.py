"""Reasons for refusing a TLS connection, which OpenSSL's callbacks note on the connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from OpenSSL import SSL, crypto

LONGEST_SUBJECT: Final = 200
"""Characters of a certificate's subject that are kept. The peer chooses the subject, and it goes into the log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for refusing a connection. An OpenSSL callback cannot raise, so it notes this as the application data."""

    reason: str
    subject: str | None = None
    """Subject of the refused certificate in the form of RFC 4514; `None` if it cannot be read."""
    serial: str | None = None
    """Serial number of that certificate in hexadecimal, as `openssl x509 -serial` shows it."""
    reported: bool = False
    """True if an event has reported the reason, for this connection and those that follow it."""

    def note(self, connection: SSL.Connection) -> None:
        """Note this refusal on a connection, for `noted_refusal`."""
        connection.set_app_data(self)


class HandshakeRefused(SSL.Error):
    """The handshake of a connection was refused, for a reason that OpenSSL does not know."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__([("", "", refusal.reason)])
        self.refusal = refusal


def noted_refusal(connection: SSL.Connection) -> Refusal | None:
    """Return the refusal that a callback noted on this connection, if any."""
    data = connection.get_app_data()
    return data if isinstance(data, Refusal) else None


def certificate_refusal(reason: str, certificate: crypto.X509 | None) -> Refusal:
    """Return a refusal for a certificate, with its subject and serial number as far as they can be read."""
    if certificate is None:
        return Refusal(reason)
    subject: str | None = None
    try:
        name = certificate.to_cryptography().subject.rfc4514_string()[:LONGEST_SUBJECT]
        subject = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
    except Exception:  # OpenSSL accepts certificates for which `cryptography` raises ValueError, TypeError and others
        pass
    serial = f"{certificate.get_serial_number():X}"
    return Refusal(reason, subject, serial.zfill(len(serial) + len(serial) % 2))
