"""Certificates and private keys in PEM files.

Each fault of a file is a `ConfigError` of one sentence that names the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file

ServerKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""A private key of a kind that a server's certificate may have."""


def read_certificates(path: Path, read: ReadFile = read_file) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one."""
    content = read(path)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError(f"{path}: there is no certificate in PEM format in this file")
    if is_cut_off(content):
        raise ConfigError(f"{path}: this file ends in the middle of a certificate")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(f"{path}: a certificate in this file is damaged") from None


def readable_name(name: x509.Name) -> str:
    """Return a name in a certificate as text in the form of RFC 4514. Characters that are not printable are replaced."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name.rfc4514_string())


def is_cut_off(content: bytes) -> bool:
    """Return whether a PEM file ends in the middle of an object, as while somebody writes it.

    Parsers ignore such an object. So a list of authorities would silently be without the last ones.
    """
    last = content.rstrip().rpartition(b"\n")[2]
    within_a_boundary = last.startswith(b"-") and (not last.endswith(b"-----") or last == b"-----")
    return within_a_boundary or content.count(b"-----BEGIN ") != content.count(b"-----END ")


def read_private_key(path: Path, read: ReadFile = read_file) -> PrivateKeyTypes:
    """Return the private key in a PEM file."""
    content = read(path)
    if b"PRIVATE KEY-----" not in content:
        raise ConfigError(f"{path}: there is no private key in PEM format in this file")
    try:
        return serialization.load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(f"{path}: the private key is encrypted; Owsla cannot ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: the private key is damaged or of an unknown kind") from None


@dataclass(frozen=True, slots=True, eq=False)
class ServerCertificate:
    """A server's certificate with its chain and its private key."""

    path: Path
    """File of the certificate."""
    chain: tuple[x509.Certificate, ...]
    """The certificate, then intermediate ones."""
    private_key: ServerKey
    names: frozenset[str]
    """DNS names in lower case, for the choice by server name."""

    @property
    def certificate(self) -> x509.Certificate:
        """The server's own certificate."""
        return self.chain[0]

    @property
    def key_type(self) -> str:
        """Kind of the key: OpenSSL can have one certificate of each kind for a server name."""
        return "RSA" if isinstance(self.private_key, rsa.RSAPrivateKey) else "ECDSA"


def read_server_certificate(cert: Path, key: Path, read: ReadFile = read_file) -> ServerCertificate:
    """Return a server's certificate with its chain and its private key, which must belong to the first certificate."""
    certificates = read_certificates(cert, read)
    private_key = read_private_key(key, read)
    if not isinstance(private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{key}: the private key is neither RSA nor ECDSA")
    if not same_public_key(certificates[0], private_key):
        hint = ""
        if any(same_public_key(other, private_key) for other in certificates[1:]):
            hint = "; the server's own certificate must come first in the file"
        raise ConfigError(f"{key}: this is not the private key of the certificate in {cert}{hint}")
    return ServerCertificate(cert, tuple(certificates), private_key, server_names(certificates[0]))


def server_names(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names of a server's certificate in lower case: those of subjectAltName or, without it, the common name."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternatives.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:  # OpenSSL can use certificates that `cryptography` cannot read
        names = []
    return frozenset(name.lower().rstrip(".") for name in names)


def same_public_key(certificate: x509.Certificate, private_key: PrivateKeyTypes) -> bool:
    """Return whether a certificate is for a private key."""
    return _public_key(certificate) == _public_key(private_key)


def _public_key(holder: x509.Certificate | PrivateKeyTypes) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
