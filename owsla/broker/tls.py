"""Whom to trust as a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator


def verifier(authorities: Sequence[x509.Certificate] | None) -> Callable[[str], IOpenSSLClientConnectionCreator]:
    """What verifies an `amqps://` broker of a name: its certificate has to be for that name (service-identity, RFC 6125), and
    signed by one of these, or by one of the system's authorities where there are none.
    """
    twisted: Any = ssl
    trust = None
    if authorities is not None:
        trust = twisted.trustRootFromCertificates(
            [twisted.Certificate(crypto.X509.from_cryptography(authority)) for authority in authorities]
        )
    return lambda host: twisted.optionsForClientTLS(host, trustRoot=trust)
