"""The device id that a connection proves by its client certificate."""

from __future__ import annotations

from OpenSSL import SSL

from .device_name import device_name
from .refusal import HandshakeRefused, certificate_refusal


def device_identity(connection: SSL.Connection, kind: str) -> str | None:
    """Return the device id that a client certificate proves; `None` without a certificate, or without that field.

    `kind` is one of `device_name`. Raise `HandshakeRefused` for a certificate whose names cannot be read.
    """
    certificate = connection.get_peer_certificate()
    if certificate is None:
        return None
    try:
        return device_name(certificate, kind)
    except Exception as error:  # ValueError, TypeError, InvalidVersion: `cryptography` raises various exceptions
        refusal = certificate_refusal(f"the device's certificate cannot be read ({error})", certificate)
        raise HandshakeRefused(refusal) from None
