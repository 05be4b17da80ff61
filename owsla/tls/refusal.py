"""The reason for which a TLS connection is refused, noted on OpenSSL's connection by a callback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from OpenSSL import SSL, crypto

LONGEST: Final = 200
"""Characters of a certificate's subject that are kept. It is the peer's to choose, and goes into the log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is refused. A callback of OpenSSL's cannot raise; it notes this as the connection's application data."""

    reason: str
    subject: str | None = None
    """Of the certificate that is refused, as RFC 4514 writes it; `None` where it cannot be read."""
    serial: str | None = None
    """Its serial number in hexadecimal, as `openssl x509 -serial` shows it."""

    def note(self, connection: SSL.Connection) -> None:
        """Keep this for `noted`."""
        connection.set_app_data(self)


class Refused(SSL.Error):
    """A connection was refused by a callback, which noted why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__([("", "", refusal.reason)])
        self.refusal = refusal


def noted(connection: SSL.Connection) -> Refusal | None:
    """Return the refusal that a callback noted on this connection, if any."""
    data = connection.get_app_data()
    return data if isinstance(data, Refusal) else None


def of_certificate(reason: str, certificate: crypto.X509 | None) -> Refusal:
    """Return a refusal for a certificate, with what can be read of it."""
    if certificate is None:
        return Refusal(reason)
    subject: str | None = None
    try:
        name = certificate.to_cryptography().subject.rfc4514_string()[:LONGEST]
        subject = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
    except Exception:  # OpenSSL takes certificates that `cryptography` does not, which raises ValueError, TypeError and others
        pass
    serial = f"{certificate.get_serial_number():X}"
    return Refusal(reason, subject, serial.zfill(len(serial) + len(serial) % 2))
