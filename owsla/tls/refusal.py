"""Reasons for refusing a TLS connection, which OpenSSL's callbacks note on the connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from OpenSSL import SSL, crypto

from .device_name import device_name

LONGEST_SUBJECT: Final = 200
"""Characters of a certificate's subject that are kept. The peer chooses the subject, and it goes into the log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for refusing a connection. An OpenSSL callback cannot raise, so it notes this as the application data."""

    reason: str
    subject: str | None = None
    """Subject of the device's certificate in the form of RFC 4514; `None` if it cannot be read."""
    serial: str | None = None
    """Serial number of that certificate in hexadecimal, as `openssl x509 -serial` shows it."""
    claimed_id: str | None = None
    """Device id in that certificate. It proves nothing: anybody can make a certificate that is refused."""
    reported: bool = False
    """True if an event has reported the reason, for this connection and those that follow it."""
    unread: str | None = None
    """Kind of device id (`device_name`) while the certificate of the device is still to be read from the connection, since that
    of an authority was refused."""

    def note(self, connection: SSL.Connection) -> None:
        """Note this refusal on a connection, for `noted_refusal`."""
        connection.set_app_data(self)


class HandshakeRefused(SSL.Error):
    """The handshake of a connection was refused, for a reason that OpenSSL does not know."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__([("", "", refusal.reason)])
        self.refusal = refusal


def noted_refusal(connection: SSL.Connection) -> Refusal | None:
    """Return the refusal that a callback noted on this connection, if any. Call it when the handshake has failed."""
    data = connection.get_app_data()
    if not isinstance(data, Refusal):
        return None
    if data.unread is None:
        return data
    # OpenSSL keeps the chain, as far as it was built, of a verification that failed, too (ssl_verify_cert_chain).
    chain = connection.get_verified_chain()
    return certificate_refusal(data.reason, chain[0] if chain else None, data.unread)


def certificate_refusal(reason: str, certificate: crypto.X509 | None, kind: str | None = None) -> Refusal:
    """Return a refusal of a device, with subject and serial number of its certificate as far as they can be read.

    `kind` is the kind of device id in it (`device_name`); without it the id is not read.
    """
    if certificate is None:
        return Refusal(reason)
    serial = f"{certificate.get_serial_number():X}"
    claimed_id = None
    if kind is not None:
        try:
            claimed_id = device_name(certificate, kind)
        except Exception:  # as in `subject_of`
            pass
    return Refusal(reason, subject_of(certificate), serial.zfill(len(serial) + len(serial) % 2), claimed_id)


def authority_refusal(reason: str, authority: crypto.X509, kind: str) -> Refusal:
    """Return a refusal for the certificate of an authority in a device's chain, to be noted during the handshake."""
    subject = subject_of(authority)
    return Refusal(reason if subject is None else f"{reason} ({subject})", unread=kind)


def subject_of(certificate: crypto.X509) -> str | None:
    """Return the subject of a certificate in the form of RFC 4514, shortened and printable; `None` if it cannot be read."""
    try:
        name = certificate.to_cryptography().subject.rfc4514_string()[:LONGEST_SUBJECT]
    except Exception:  # OpenSSL accepts certificates for which `cryptography` raises ValueError, TypeError and others
        return None
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
