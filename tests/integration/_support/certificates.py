"""Certificates for the tests."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ClientKey = Key | ed25519.Ed25519PrivateKey


def client_key(kind: Literal["ecdsa", "rsa", "ed25519"]) -> ClientKey:
    """Return a new private key for a client certificate."""
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else _key(kind)


def _key(kind: Literal["ecdsa", "rsa"]) -> Key:
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ClientKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


#: The use of the key of an authority.
_ISSUES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Certificate authority in `folder`; `ca` is the file of its certificate."""

    def __init__(
        self, folder: Path, kind: Literal["ecdsa", "rsa"] = "ecdsa", *, days: int = 1, name: str = "Owsla tests"
    ) -> None:
        """Its certificate, and those that it issues, are valid for `days`. Two that are trusted at once need two names."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kind = kind
        self._days = days
        self.ca = folder / "ca.pem"
        self.key_file = folder / "private.key"  # not a pair with `ca`: a folder of pairs is an option of `owsla swarm`
        self._key = _key(kind)
        self._name = _name(name)
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_ISSUES, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(_pem(self._key))

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[x509.GeneralName] | None = None,
        key: ClientKey | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> tuple[Path, Path]:
        """Issue a certificate for these hosts, by default localhost and the loopback addresses. Return the certificate and key
        files. `extensions` are further ones, not critical.

        For no hosts at all (`[]`) the certificate has no subjectAltName.
        """
        key = key or _key(self.kind)
        builder = self._builder(_name(name), key)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if hosts is None:
            hosts = [
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                x509.IPAddress(ipaddress.ip_address("::1")),
            ]
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        certificate_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(_pem(key))
        return certificate_file, key_file

    def credentials(self, name: str) -> Path:
        """Issue a certificate for a device. Return a file with it and its key."""
        certificate_file, key_file = self.issue(name)
        both = self.folder / f"{name}-both.pem"
        both.write_bytes(certificate_file.read_bytes() + key_file.read_bytes())
        return both

    def _builder(self, subject: x509.Name, key: ClientKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=self._days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
