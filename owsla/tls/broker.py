"""TLS to an `amqps://` broker: its certificate is verified, and Owsla may show one of its own (mutual TLS).

`load_broker_tls` reads the files and builds the OpenSSL context, and does everything that can fail. `BrokerTLS` has the present
context, and asks for it at each attempt to connect: a reload replaces it, and living connections keep the one that they began
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import idna
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file
from .certificates import read_certificates, read_private_key, same_public_key
from .inventory import InventoryEntry, certificate_entries
from .verification import explain_verify_error

_ClientKey: TypeAlias = (
    ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)
"""A private key of a kind that a client certificate may have."""


@dataclass(frozen=True, slots=True)
class BrokerTLSMaterial:
    """The context for connections to a broker, made of the files of one load of the settings."""

    context: SSL.Context
    certificate: x509.Certificate | None = None
    """Certificate that Owsla shows the broker."""
    inventory: tuple[InventoryEntry, ...] = ()
    """Authorities of `--broker-ca`, and the certificate that Owsla shows the broker."""

    @property
    def common_name(self) -> str:
        """Common name in the certificate that Owsla shows the broker; empty without one."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME) if self.certificate is not None else []
        return str(names[0].value) if names else ""


def load_broker_tls(
    authorities: Path | None = None, cert: Path | None = None, key: Path | None = None, read: ReadFile = read_file
) -> BrokerTLSMaterial:
    """Read the files for connections to a broker. Raise `ConfigError` for a fault.

    The broker's certificate must be signed by one of `authorities`, or, if that is `None`, by one of the system's. With `cert`
    and `key`, which belong together, Owsla shows a certificate of its own, followed by the others in that file.
    """
    twisted: Any = ssl
    options: dict[str, Any] = {"trustRoot": twisted.platformTrust()}
    entries: list[InventoryEntry] = []
    if authorities is not None:
        trusted = read_certificates(authorities, read)
        entries += certificate_entries("broker-ca", authorities, trusted)
        roots = map(twisted.Certificate, map(crypto.X509.from_cryptography, trusted))
        options["trustRoot"] = twisted.trustRootFromCertificates(roots)
    certificate = None
    if cert is not None and key is not None:
        certificates, private_key = _read_client_pair(cert, key, read)
        certificate = certificates[0]
        entries += certificate_entries("broker-cert", cert, certificates[:1])
        options["privateKey"] = crypto.PKey.from_cryptography_key(private_key)
        options["certificate"], *options["extraCertChain"] = map(crypto.X509.from_cryptography, certificates)
    try:
        # As Twisted's `optionsForClientTLS` does: TLS 1.2 and 1.3, and Twisted's choice of cipher suites.
        context: SSL.Context = twisted.CertificateOptions(**options).getContext()
    except SSL.Error as error:
        # For example a key that is too short for OpenSSL's security level.
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        reason = str(reasons[-1][-1]) if reasons else "no reason given"
        raise ConfigError(f"{cert or authorities}: OpenSSL refuses this certificate ({reason})") from None
    return BrokerTLSMaterial(context, certificate, tuple(entries))


def _read_client_pair(cert: Path, key: Path, read: ReadFile) -> tuple[list[x509.Certificate], _ClientKey]:
    """Return a client certificate with its chain, and its private key, which must belong to the first certificate."""
    certificates = read_certificates(cert, read)
    private_key = read_private_key(key, read)
    if not isinstance(private_key, _ClientKey):
        raise ConfigError(f"{key}: the private key is neither RSA, ECDSA nor EdDSA")
    if not same_public_key(certificates[0], private_key):
        hint = ""
        if any(same_public_key(other, private_key) for other in certificates[1:]):
            hint = "; Owsla's own certificate must come first in the file"
        raise ConfigError(f"{key}: this is not the private key of the certificate in {cert}{hint}")
    return certificates, private_key


class BrokerTLS:
    """The present TLS material for connections to the broker, asked for at each attempt to connect."""

    def __init__(self, material: BrokerTLSMaterial) -> None:
        self._material = material

    def use(self, material: BrokerTLSMaterial) -> None:
        """Use other material from the next connection on."""
        self._material = material

    @property
    def common_name(self) -> str:
        """Common name in the certificate that Owsla shows the broker; empty without one."""
        return self._material.common_name

    def __call__(self, host: str) -> IOpenSSLClientConnectionCreator:
        """Return the creator of TLS connections to the broker at this host. Raise `ValueError` for an invalid host name."""
        creator: Any = _VerifyingConnectionCreator(self._material.context, host)
        return creator  # type: ignore[no-any-return]


@implementer(IOpenSSLClientConnectionCreator)
class _VerifyingConnectionCreator:
    """Creator of TLS connections to a broker whose certificate must be for the broker's host name (RFC 6125).

    Twisted's own creator accepts a certificate without a name (no subjectAltName), or with an invalid one: it logs the
    exception that service-identity raises, and continues the handshake (seen with Twisted 26.10). Here it is a refusal.
    """

    def __init__(self, context: SSL.Context, host: str) -> None:
        self._context = context
        # RFC 6066, 3: the server name (SNI) is a DNS name, and never an IP address.
        self._server_name = None if isIPAddress(host) or isIPv6Address(host) else idna.encode(host)
        self._name = IPAddress_ID(host) if self._server_name is None else DNS_ID(host)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._server_name is not None:
            connection.set_tlsext_host_name(self._server_name)

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
