"""The name in a client certificate that is the device id, if the certificate is trusted."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

_LONGEST_IDENTITY: Final = 255
"""Bytes in UTF-8, as for the ids that dialects give."""


def device_name(certificate: crypto.X509, kind: str) -> str | None:
    """Return the name of a device in a certificate; `None` without that field.

    `kind` is `cn`, `san-dns`, `san-uri` (the first one of each), or `fingerprint`: the SHA-256 of the certificate in lower-case
    hexadecimal. A name that is empty, not printable, or longer than 255 bytes is ignored.

    Raise various exceptions for a certificate whose names cannot be read (ValueError, TypeError, InvalidVersion): OpenSSL
    accepts some certificates that `cryptography` does not. A fingerprint can always be read.
    """
    if kind == "fingerprint":
        return certificate.digest("sha256").decode().replace(":", "").lower()
    name = next(iter(_names(certificate.to_cryptography(), kind)), None)
    return usable_name(name) if name is not None else None


def usable_name(name: str) -> str | None:
    """Return the name in a certificate, or `None` if it is empty, not printable, or longer than 255 bytes: no device id."""
    # The id goes into the headers of each line. Headers must fit into one frame: one that did not would block all lines.
    return name if name and name.isprintable() and len(name.encode()) <= _LONGEST_IDENTITY else None


def _names(certificate: x509.Certificate, kind: str) -> list[str]:
    if kind == "cn":
        return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    if kind == "san-dns":
        return alternatives.get_values_for_type(x509.DNSName)
    return alternatives.get_values_for_type(x509.UniformResourceIdentifier)
