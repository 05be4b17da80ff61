"""Certificates, files and handshakes in memory."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.tls.device import DeviceTLS, DeviceTLSFiles, load_device_tls

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def issue(
    key: Key,
    issuer: tuple[x509.Certificate, Key] | None = None,
    *,
    common_names: tuple[str, ...] = (),
    alternatives: tuple[x509.GeneralName, ...] = (),
    authority: bool = False,
    age: timedelta = timedelta(hours=1),
    lifetime: timedelta = timedelta(days=1),
    serial: int | None = None,
    usage: x509.ObjectIdentifier | None = None,
    identified: bool = False,
    uses: tuple[str, ...] = (),
) -> x509.Certificate:
    """Return a certificate for `key`, signed by `issuer` or self-signed, whose validity began `age` ago.

    With `identified` it has a subject key identifier; `uses` are the allowed uses of the key (keyUsage), by default all.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    begin = datetime.now(UTC) - age
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if identified:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if uses:
        builder = builder.add_extension(x509.KeyUsage(**{use: use in uses for use in _USES}), critical=True)
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def revocation_list(
    issuer: tuple[x509.Certificate, Key],
    *revoked: x509.Certificate,
    age: timedelta = timedelta(hours=1),
    lifetime: timedelta = timedelta(days=1),
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """Return a list in PEM format, which the issuer published `age` ago."""
    certificate, key = issuer
    begin = datetime.now(UTC) - age
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(begin)
        .next_update(begin + lifetime)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(begin).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ocsp_response(
    issuer: tuple[x509.Certificate, Key],
    certificate: x509.Certificate,
    *,
    status: str = "good",
    age: timedelta = timedelta(hours=1),
    lifetime: timedelta | None = timedelta(days=1),
) -> bytes:
    """Return the DER form of a response of an authority, made `age` ago."""
    begin = datetime.now(UTC) - age
    revoked = status == "revoked"
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer[0],
        algorithm=hashes.SHA1(),
        cert_status=ocsp.OCSPCertStatus[status.upper()],
        this_update=begin,
        next_update=None if lifetime is None else begin + lifetime,
        revocation_time=begin if revoked else None,
        revocation_reason=None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer[0])
    return builder.sign(issuer[1], hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def pem(*items: x509.Certificate | Key | dsa.DSAPrivateKey, password: bytes | None = None) -> bytes:
    pem = serialization.Encoding.PEM
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return b"".join(
        item.public_bytes(pem)
        if isinstance(item, x509.Certificate)
        else item.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
        for item in items
    )


def server_tls(cert: Path, key: Path, **files: Any) -> DeviceTLS:
    """Return the TLS of a device port with one certificate."""
    return DeviceTLS(load_device_tls(DeviceTLSFiles(pairs=[(cert, key)], **files)))


def server_context(cert: Path, key: Path, **files: Any) -> SSL.Context:
    """Return the context with which handshakes begin on a device port with one certificate."""
    return server_tls(cert, key, **files).context


def device_context(
    *, version: int | None = None, certificate: x509.Certificate | None = None, key: Key | None = None
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if certificate is not None and key is not None:
        context.use_certificate(certificate)
        context.use_privatekey(key)
    return context


def shake(server: SSL.Context, client: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    """Make a handshake in memory. Raise `SSL.Error` if either side refuses."""
    return shake_ends(SSL.Connection(server), SSL.Connection(client))


def shake_ends(*ends: SSL.Connection) -> tuple[SSL.Connection, SSL.Connection]:
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    return complete(*ends)


def complete(*ends: SSL.Connection) -> tuple[SSL.Connection, SSL.Connection]:
    """Complete a handshake that may have begun."""
    for _ in range(10):
        waiting = False
        for end, other in (ends, ends[::-1]):
            try:
                end.do_handshake()
            except SSL.WantReadError:
                waiting = True
            try:
                other.bio_write(end.bio_read(1 << 16))
            except SSL.WantReadError:
                pass
        if not waiting:
            return ends[0], ends[1]
    raise AssertionError("the handshake does not end")


def shake_with(server: SSL.Context, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """Make a handshake in memory with Python's own client, which exposes sessions, and read what follows it."""
    end = SSL.Connection(server)
    end.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = client.wrap_bio(incoming, outgoing, session=session)
    for step in (device.do_handshake, end.do_handshake) * 2 + (lambda: device.read(1),):
        try:
            step()
        except (ssl.SSLWantReadError, SSL.WantReadError):
            pass
        if data := outgoing.read():
            end.bio_write(data)
        try:
            incoming.write(end.bio_read(1 << 16))
        except SSL.WantReadError:
            pass
    return device


class Files(SynchronousTestCase):
    def new_path(self) -> Path:
        # Not mktemp(): under pytest its folders would be left in the current one.
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return Path(folder) / "new"

    def file(self, content: bytes) -> Path:
        path = self.new_path()
        path.write_bytes(content)
        return path
