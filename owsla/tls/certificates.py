"""TLS towards devices: the server's context, a device's identity, and certificates for trying out.

Whatever is wrong with a file is a ConfigError of one sentence that names the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto
from twisted.logger import Logger

from owsla.errors import ConfigError, os_reason
from owsla.runtime.files import read_file
from owsla.tls.refusal import Refused, of_certificate
from owsla.tls.verification import why_not

_log = Logger()

# Forward secrecy always; AEAD first, and CBC for small devices that know nothing newer than AES-CBC in TLS 1.2.
_CIPHERS = b"ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:!aNULL:!MD5:!DSS"

# A handshake of TLS 1.3 hashes some forty blocks. With SHA-256, which processors do themselves, it takes 7 % less CPU than with
# the SHA-384 of OpenSSL's first choice (median of five alternating runs of 3,000). RFC 8446 (9.1) has every device know it.
_SUITES = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
_SUITES_OF_OPENSSL = ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"]


def _utc_now() -> datetime:
    return datetime.now(UTC)


# -- Files -------------------------------------------------------------------------------------------------------------


def certificates_in(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one."""
    content = read_file(path)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError(f"{path}: there is no certificate in PEM format in it")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(f"{path}: a certificate in it is damaged") from None


def _private_key(path: Path) -> PrivateKeyTypes:
    content = read_file(path)
    if b"PRIVATE KEY-----" not in content:
        raise ConfigError(f"{path}: there is no private key in PEM format in it")
    try:
        return serialization.load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(f"{path}: the private key is encrypted, and there is nobody to ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: the private key is damaged or of an unknown kind") from None


# -- The server's context ----------------------------------------------------------------------------------------------


def server_context(cert: Path, key: Path, *, client_ca: Path | None, client_cert: str) -> SSL.Context:
    """A context for devices' connections: TLS 1.2 and 1.3, ``cert`` being the server's certificate and then its chain.

    With ``client_ca`` devices are asked for a certificate that one of its authorities signed; ``client_cert``
    ``"require"`` turns away those without one, ``"optional"`` lets them in. Of an expired certificate there is only a
    warning in the log: devices decide what they accept.
    """
    context, certificates = _context(cert, key, client_ca, client_cert)
    expiry = certificates[0].not_valid_after_utc
    if expiry <= _utc_now():
        _log.warn("the certificate in {path} expired on {expiry}", path=str(cert), expiry=f"{expiry:%Y-%m-%d}")
    return context


def check_server_files(cert: Path, key: Path) -> None:
    """Raise the ConfigError that :func:`server_context` would, and log nothing."""
    _context(cert, key, None, "require")


def _context(cert: Path, key: Path, client_ca: Path | None, client_cert: str) -> tuple[SSL.Context, list[x509.Certificate]]:
    certificates = certificates_in(cert)
    private_key = _private_key(key)
    if not isinstance(private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{key}: the private key is neither RSA nor ECDSA")
    if _public_bytes(certificates[0]) != _public_bytes(private_key):
        hint = ""
        if any(_public_bytes(other) == _public_bytes(private_key) for other in certificates[1:]):
            hint = "; the server's own certificate comes first in the file"
        raise ConfigError(f"{key}: this is not the key of the certificate in {cert}{hint}")
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # No session is resumed: docs/operations.md says why, bench/results/resumption.md what it would save. With OP_NO_TICKET and
    # without a cache there is nothing of it in TLS 1.2. In 1.3 OpenSSL sends two tickets all the same, 158 bytes together, for
    # sessions that nobody has kept: a device that comes back with one gets a full handshake. To have it send none takes
    # SSL_CTX_set_num_tickets(), which pyOpenSSL does not have.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection then keeps no read and write buffers: 34 KB less for each.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    try:
        context.use_certificate(certificates[0])
        for certificate in certificates[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(private_key)
        context.check_privatekey()
    except SSL.Error as error:
        # For example a key that is too short for OpenSSL's security level.
        raise ConfigError(f"{cert}: OpenSSL refuses this certificate ({_openssl_reason(error)})") from None
    if client_ca is not None:
        store = context.get_cert_store()
        assert store is not None
        for authority in certificates_in(client_ca):
            store.add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
        context.set_verify(
            SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if client_cert == "require" else 0), _note_why_not
        )
        # OpenSSL wants one wherever client certificates are verified; of a context of its own nothing can be resumed.
        context.set_session_id(secrets.token_bytes(16))
    context.set_tls13_ciphersuites(":".join(_suites()).encode())
    # Last: it makes a connection to see whether the list is good, after which pyOpenSSL wants no more changes.
    context.set_cipher_list(_CIPHERS)
    return context, certificates


def _note_why_not(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, trusted: int) -> bool:
    """OpenSSL's own verdict; if it is a refusal, its reason is noted on the connection."""
    if not trusted:
        whose = "the device's certificate" if depth == 0 else "an authority's certificate"
        of_certificate(f"{whose} is refused: {why_not(error)}", certificate).note(connection)
    return bool(trusted)


def _suites() -> list[str]:
    """The suites for TLS 1.3, best first; where OpenSSL's configuration file (``OPENSSL_CONF``) names others, those."""
    configured = [name for name in SSL.Connection(SSL.Context(SSL.TLS_METHOD)).get_cipher_list() if name.startswith("TLS_")]
    return _SUITES if configured == _SUITES_OF_OPENSSL else configured


def _public_bytes(holder: x509.Certificate | PrivateKeyTypes) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _openssl_reason(error: SSL.Error) -> str:
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(reasons[-1][-1]) if reasons else "no reason given"


# -- A device's identity -----------------------------------------------------------------------------------------------

_LONGEST_IDENTITY = 255  # bytes in UTF-8, as for the ids that dialects give


def device_identity(connection: SSL.Connection, kind: str) -> str | None:
    """Who a device proved to be, by ``kind``: ``cn``, ``san-dns``, ``san-uri`` (the first) or ``fingerprint``.

    The fingerprint is the SHA-256 of the certificate, in lower-case hex. None without a certificate, and without the
    field; a name that is empty, not printable, or longer than 255 bytes is no name either. `Refused` is raised for a
    certificate whose names cannot be read: OpenSSL takes some that `cryptography` does not. A fingerprint needs no reading.
    """
    certificate = connection.get_peer_certificate()
    if certificate is None:
        return None
    if kind == "fingerprint":
        return certificate.digest("sha256").decode().replace(":", "").lower()
    try:
        name = next(iter(_names(certificate.to_cryptography(), kind)), None)
    except Exception as error:  # ValueError, TypeError, InvalidVersion: whatever `cryptography` finds wrong with it
        raise Refused(of_certificate(f"the device's certificate cannot be read ({error})", certificate)) from None
    # It goes into the headers of each line, which have to fit into one frame: one that did not would stop the lines of all.
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


# -- Certificates for trying out ---------------------------------------------------------------------------------------

_CA_LIFETIME = timedelta(days=3650)
# Apple's and other clients' limit for a server's certificate is 825 days, whoever signed it.
_SERVER_LIFETIME = timedelta(days=820)
_RENEW_BEFORE = timedelta(days=30)
# A device's clock may be a little behind.
_BACKDATED = timedelta(hours=1)
_TEMPORARY = ".owsla-"


@dataclass(frozen=True, slots=True)
class DevelopmentCertificates:
    """The files that :func:`development_certificates` made or found; devices should trust ``ca``."""

    ca: Path
    cert: Path
    key: Path


def development_certificates(directory: Path, hostname: str, now: Callable[[], datetime] = _utc_now) -> DevelopmentCertificates:
    """A development authority and a server certificate in ``directory``, made once and used again afterwards.

    The server's is for localhost, 127.0.0.1, ::1 and ``hostname``; it is made anew, by the same authority, when it
    expires within 30 days or is not for these names. A folder lock and renames keep two processes that start at once,
    or one that is killed, from leaving half a pair. Where there is nothing to make the folder needs not be writable.

    The folder is made with mode 0700. It must be this user's (or root's); the write permission of others is taken away. Neither
    it nor a file in it may be a symbolic link: keys would go, or come from, where somebody else wants them.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        with _locked(directory) as descriptor:
            _check_owner(directory, descriptor)
            for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
                if (directory / name).is_symlink():
                    raise ConfigError(f"{directory / name}: this is a symbolic link; development certificates follow none")
            return _make_missing(directory, hostname, now())
    except OSError as error:
        raise ConfigError(f"{directory}: can't keep development certificates here: {os_reason(error)}") from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    # The folder itself is locked: a lock file would be one more thing in it.
    if directory.is_symlink():
        raise ConfigError(f"{directory}: this is a symbolic link; give --certs-dir the folder itself")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(directory: Path, descriptor: int) -> None:
    """`ConfigError` where others decide what is in a folder; their write permission is taken away where it is this user's."""
    status = os.fstat(descriptor)
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{directory}: this folder is another user's (uid {status.st_uid}), who could replace the keys in it; "
            "give another --certs-dir, or --cert and --key"
        )
    if status.st_mode & 0o022 and status.st_uid == os.geteuid():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o022)


def _make_missing(directory: Path, hostname: str, now: datetime) -> DevelopmentCertificates:
    result = DevelopmentCertificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    names = _server_names(hostname)
    if result.ca.exists() and result.cert.exists() and result.key.exists():
        authority = certificates_in(result.ca)[0]
        certificate = certificates_in(result.cert)[0]
        key = _private_key(result.key)
        if _still_good(certificate, key, authority, names, now):
            _close_to_others(result.key)
            return result
    for leftover in directory.glob(f"{_TEMPORARY}*"):  # of a process that was killed
        leftover.unlink()
    # Keys are written before certificates and used again when they are there: whenever this is interrupted, what exists
    # fits together or is completed at the next start.
    ca_key = _own_key(directory / "ca.key", needed_for=result.ca)
    if result.ca.exists():
        authority = certificates_in(result.ca)[0]
        if _public_bytes(authority) != _public_bytes(ca_key):
            raise ConfigError(f"{directory / 'ca.key'}: this is not the key of {result.ca}; delete both to begin anew")
        if authority.not_valid_after_utc <= now + _RENEW_BEFORE:
            raise ConfigError(f"{result.ca}: this authority expires; delete it and ca.key to begin anew")
    else:
        authority = _new_authority(ca_key, now)
        _write(result.ca, _pem(authority), 0o644)
    server_key = _own_key(result.key, needed_for=None)
    _write(result.cert, _pem(_new_server(server_key, names, authority, ca_key, now)), 0o644)
    return result


def _still_good(
    certificate: x509.Certificate,
    key: PrivateKeyTypes,
    authority: x509.Certificate,
    names: list[x509.GeneralName],
    now: datetime,
) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        _public_bytes(certificate) == _public_bytes(key)
        and certificate.not_valid_after_utc > now + _RENEW_BEFORE
        and authority.not_valid_after_utc > now + _RENEW_BEFORE
        and set(names) <= set(alternatives)
    )


def _server_names(hostname: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    own: x509.GeneralName
    try:
        own = x509.IPAddress(ipaddress.ip_address(hostname))
    except ValueError:
        try:
            own = x509.DNSName(hostname.lower().encode("idna").decode())
        except UnicodeError:  # A name that DNS can't have: then nobody connects by it.
            return names
    if own not in names and hostname:
        names.insert(1, own)
    return names


def _own_key(path: Path, needed_for: Path | None) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in ``path``, made if it isn't there; not made if a certificate that needs it is there already."""
    if path.exists():
        _close_to_others(path)
        key = _private_key(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path}: this is not a key that Owsla made; delete it, or give --cert and --key")
        return key
    if needed_for is not None and needed_for.exists():
        raise ConfigError(f"{path}: needed to sign a server certificate, and not there; delete {needed_for} to begin anew")
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, content, 0o600)
    return key


def _close_to_others(key: Path) -> None:
    if key.stat().st_mode & 0o077:
        with contextlib.suppress(PermissionError):  # not ours to change
            key.chmod(0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all; nobody else can read it before it has its mode."""
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _new_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _name("Owsla development CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _new_server(
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    # Never longer than the authority itself.
    expiry = min(now + _SERVER_LIFETIME, authority.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_name("Owsla development server"))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(expiry)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
