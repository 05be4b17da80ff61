"""Certificates, files and handshakes in memory."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

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
) -> x509.Certificate:
    """Return a certificate for `key`, signed by `issuer` or self-signed, whose validity began `age` ago."""
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
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


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
