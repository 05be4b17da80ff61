"""Whom to trust as a broker."""

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

from .verification import why_not


@implementer(IOpenSSLClientConnectionCreator)
class _Verified:
    """Makes connections to a broker that proves to have a name.

    Twisted's own accepts a certificate that has no name (no subjectAltName), or an impossible one: what service-identity raises
    then is logged, and the handshake goes on (seen with Twisted 26.10). Here whatever goes wrong with it is a refusal.
    """

    def __init__(self, options: Any, host: str) -> None:
        """`options` are those of Twisted's for this host."""
        self._options = options
        self._name = IPAddress_ID(host) if isIPAddress(host) or isIPv6Address(host) else DNS_ID(host)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self._options.clientConnectionForTLS(tlsProtocol)

        def verify(tls: SSL.Connection, certificate: crypto.X509, error: int, depth: int, trusted: int) -> bool:
            if not trusted:
                tlsProtocol.failVerification(Failure(Refused(why_not(error))))
                return False
            if depth:
                return True
            try:
                verify_service_identity(extract_patterns(certificate), [self._name], [])
            except VerificationError:
                tlsProtocol.failVerification(Failure())
            except Exception as odd:
                tlsProtocol.failVerification(Failure(Refused(str(odd).rstrip("."))))
            else:
                return True
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


class Refused(SSL.Error):
    """A broker's certificate is not one to be trusted, or says of nobody in particular whose it is."""

    def __init__(self, why: str) -> None:
        super().__init__([("", "", f"the broker's certificate is refused: {why}")])


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

    def for_host(host: str) -> IOpenSSLClientConnectionCreator:
        verified: Any = _Verified(twisted.optionsForClientTLS(host, trustRoot=trust), host)
        return verified  # type: ignore[no-any-return]

    return for_host
