"""Verification of the certificate of an `amqps://` broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from zope.interface import implementer

from .verification import explain_verify_error


@implementer(IOpenSSLClientConnectionCreator)
class _VerifyingConnectionCreator:
    """Creator of TLS connections to a broker whose certificate must be for the broker's host name.

    Twisted's own creator accepts a certificate without a name (no subjectAltName), or with an invalid one: it logs the
    exception that service-identity raises, and continues the handshake (seen with Twisted 26.10). Here it is a refusal.
    """

    def __init__(self, options: Any, host: str) -> None:
        """`options` are Twisted's client options for this host."""
        self._options = options
        self._name = IPAddress_ID(host) if isIPAddress(host) or isIPv6Address(host) else DNS_ID(host)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self._options.clientConnectionForTLS(tlsProtocol)

        def verify(tls: SSL.Connection, certificate: crypto.X509, error: int, depth: int, trusted: int) -> bool:
            if not trusted:
                tlsProtocol.failVerification(Failure(BrokerCertificateRefused(explain_verify_error(error))))
                return False
            if depth:
                return True
            try:
                verify_service_identity(extract_patterns(certificate), [self._name], [])
            except VerificationError:
                tlsProtocol.failVerification(Failure())
            except Exception as odd:
                tlsProtocol.failVerification(Failure(BrokerCertificateRefused(str(odd).rstrip("."))))
            else:
                return True
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


class BrokerCertificateRefused(SSL.Error):
    """The broker's certificate is not trusted, or has no usable name."""

    def __init__(self, reason: str) -> None:
        super().__init__([("", "", f"the broker's certificate is refused: {reason}")])


def broker_tls_options(authorities: Sequence[x509.Certificate] | None) -> Callable[[str], IOpenSSLClientConnectionCreator]:
    """Return a function that makes the TLS client options for a broker's host name.

    The broker's certificate must be for that name (service-identity, RFC 6125). It must be signed by one of `authorities`, or,
    if that is `None`, by one of the system's.
    """
    twisted: Any = ssl
    trust = None
    if authorities is not None:
        trust = twisted.trustRootFromCertificates(
            [twisted.Certificate(crypto.X509.from_cryptography(authority)) for authority in authorities]
        )

    def options_for_host(host: str) -> IOpenSSLClientConnectionCreator:
        creator: Any = _VerifyingConnectionCreator(twisted.optionsForClientTLS(host, trustRoot=trust), host)
        return creator  # type: ignore[no-any-return]

    return options_for_host
