"""A development authority and server certificate, for use without `--cert` and `--key`.

The files are `ca.pem`, `ca.key`, `server.pem` and `server.key` in one folder. A process that starts makes the files that are
missing. Two processes may start at once, and a process may be killed at any moment; neither leaves files that do not fit:

- the folder is locked (flock(2)) while files are made;
- each file is written under a temporary name, and renamed when it is complete;
- keys are written before certificates, and reused when they exist. So whenever the process is interrupted, the existing files
  fit together, or the next start completes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigError, os_reason
from .certificates import read_certificates, read_private_key, same_public_key

_CA_LIFETIME: Final = timedelta(days=3650)

_SERVER_LIFETIME: Final = timedelta(days=820)
"""Apple's clients, among others, accept 825 days at most for a server's certificate, whoever signed it."""

_RENEW_BEFORE: Final = timedelta(days=30)
"""Remaining lifetime below which the server's certificate is renewed."""

_BACKDATED: Final = timedelta(hours=1)
"""Time by which certificates are backdated, since a device's clock may be behind."""

_TEMPORARY: Final = ".owsla-"
"""Prefix of the names of files that are being written."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class DevelopmentCertificates:
    """The files that `development_certificates` made or found. Devices must trust `ca`."""

    ca: Path
    cert: Path
    key: Path


def development_certificates(directory: Path, hostname: str, now: Callable[[], datetime] = _utc_now) -> DevelopmentCertificates:
    """Return a development authority and a server certificate in a folder. Make what is missing there.

    The server's certificate is for localhost, 127.0.0.1, ::1 and `hostname`. It is renewed, by the same authority, when it
    expires within 30 days or is not for these names. If nothing is missing, the folder does not have to be writable.

    The folder is made with mode 0700. It must belong to this user or to root; write permission of others is removed. Neither
    the folder nor a file in it may be a symbolic link: somebody else could then choose where keys are written or read.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        with _locked(directory) as descriptor:
            _check_owner(directory, descriptor)
            for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
                if (directory / name).is_symlink():
                    raise ConfigError(f"{directory / name}: this is a symbolic link; it must be a regular file")
            return _make_missing(directory, hostname, now())
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot keep development certificates here: {os_reason(error)}; name another folder (--certs-dir) or "
            "a certificate (--cert and --key)"
        ) from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    # Lock the folder itself, since a lock file would remain in it.
    if directory.is_symlink():
        raise ConfigError(f"{directory}: this is a symbolic link; give --certs-dir the folder itself")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(directory: Path, descriptor: int) -> None:
    """Raise `ConfigError` if another user owns the folder. Remove the write permission of others if this user owns it."""
    status = os.fstat(descriptor)
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{directory}: this folder belongs to another user (uid {status.st_uid}), who could replace the keys in it; "
            "give another --certs-dir, or --cert and --key"
        )
    if status.st_mode & 0o022 and status.st_uid == os.geteuid():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o022)


def _make_missing(directory: Path, hostname: str, now: datetime) -> DevelopmentCertificates:
    result = DevelopmentCertificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    names = _server_names(hostname)
    if result.ca.exists() and result.cert.exists() and result.key.exists():
        authority = read_certificates(result.ca)[0]
        certificate = read_certificates(result.cert)[0]
        key = read_private_key(result.key)
        if _is_current(certificate, key, authority, names, now):
            _remove_access_of_others(result.key)
            return result
    for leftover in directory.glob(f"{_TEMPORARY}*"):  # left by a process that was killed
        leftover.unlink()
    ca_key = _own_key(directory / "ca.key", needed_for=result.ca)
    if result.ca.exists():
        authority = read_certificates(result.ca)[0]
        if not same_public_key(authority, ca_key):
            raise ConfigError(f"{directory / 'ca.key'}: this is not the key of {result.ca}; delete both to make new ones")
        if authority.not_valid_after_utc <= now + _RENEW_BEFORE:
            raise ConfigError(f"{result.ca}: this authority expires; delete it and ca.key to make a new one")
    else:
        authority = _new_authority(ca_key, now)
        _write(result.ca, _pem(authority), 0o644)
    server_key = _own_key(result.key, needed_for=None)
    _write(result.cert, _pem(_new_server(server_key, names, authority, ca_key, now)), 0o644)
    return result


def _is_current(
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
        same_public_key(certificate, key)
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
        except UnicodeError:  # not a possible DNS name, so no device connects by it
            return names
    if own not in names and hostname:
        names.insert(1, own)
    return names


def _own_key(path: Path, needed_for: Path | None) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in a file. Make it if it is missing, unless a certificate that needs it exists already."""
    if path.exists():
        _remove_access_of_others(path)
        key = read_private_key(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path}: Owsla did not make this key; delete it, or give --cert and --key")
        return key
    if needed_for is not None and needed_for.exists():
        raise ConfigError(
            f"{path}: this key is missing, and needed to sign a server certificate; delete {needed_for} to make new ones"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, content, 0o600)
    return key


def _remove_access_of_others(key: Path) -> None:
    if key.stat().st_mode & 0o077:
        with contextlib.suppress(PermissionError):  # another user owns the file
            key.chmod(0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically. Others cannot read it before it has its final mode."""
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # it makes the file with mode 0600
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
    # The certificate must not outlive its authority.
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
