"""Checks of certificates: whether the key fits, whether the chain is complete, and until when they are valid."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from ..errors import ConfigError
from ..log import pluralize
from ..runtime.files import ReadFile
from ..tls.broker import load_broker_tls
from ..tls.certificates import read_certificates, read_private_key, read_server_certificate
from ..tls.contexts import check_server_files
from ..tls.expiry import WARNING as WARNING_DAYS
from ..tls.revocation import read_revocation_lists
from ..tls.server_names import same_use
from ..tls.stapling import OcspResponses, read_ocsp_response
from .findings import Finding, fail, ok, warn

_NAMES_SHOWN: Final = 3

_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: dates have a line of their own."""

FindRoot: TypeAlias = Callable[[Sequence[x509.Certificate]], str]
"""A function that returns where the root of a chain is that ends before it; empty where that is unknown. The chain begins with
the server's certificate."""


def check_server_certificate(
    cert: Path, key: Path, read: ReadFile, now: datetime, find_root: FindRoot
) -> Iterator[Finding]:
    """Check the certificate that devices are shown, its key and its chain."""
    certificates = yield from _check_pair("certificate", "key", cert, key, read, lambda: check_server_files(cert, key, read))
    if certificates:
        if not _is_for_servers(certificates[0]):
            yield warn("certificate", f"{cert}: its extended key usage is not that of a TLS server: devices may refuse it")
        yield from _check_chain(cert, certificates, find_root)
        yield from check_dates(cert, certificates, now)


def check_together(pairs: Sequence[tuple[Path, Path]], read: ReadFile) -> Iterator[Finding]:
    """Check that each of several server certificates, with their keys, will be used."""
    try:
        twice = same_use([read_server_certificate(cert, key, read) for cert, key in pairs])
    except ConfigError:
        return  # which has a line of its own
    if twice is not None:
        first, second = (each.path for each in twice)
        yield fail("certificate", f"{second}: has the names and the key type of {first}; only one of them can be used")


def check_responses(paths: Sequence[Path], certs: Sequence[Path], read: ReadFile, now: datetime) -> Iterator[Finding]:
    """Check OCSP responses for server certificates."""
    serials = []
    for cert in certs:
        try:
            serials.append(read_certificates(cert, read)[0].serial_number)
        except ConfigError:
            continue  # which has a line of its own
    for path in paths:
        try:
            responses = OcspResponses([read_ocsp_response(path, read)], serials, now.timestamp)
        except ConfigError as error:
            yield fail("ocsp-response", str(error))
            continue
        unusable = [reason for _, reason in responses.unusable()]
        for reason in unusable:
            yield warn("ocsp-response", f"{path}: {reason}; devices will not get it")
        if not unusable:
            yield ok("ocsp-response", f"{path}: good{_until(responses.next_update)}")


def check_revocation_lists(
    path: Path, client_ca: Path, policy: str, read: ReadFile, now: datetime
) -> Iterator[Finding]:
    """Check the certificate revocation lists of the authorities of devices."""
    try:
        authorities = read_certificates(client_ca, read)
    except ConfigError:
        return  # which has a line of its own
    try:
        lists = read_revocation_lists(path, authorities, read)
    except ConfigError as error:
        yield fail("client-crl", str(error))
        return
    for authority, reason in lists.unusable(now.timestamp()):
        effect = "will be refused" if policy == "hard" else "will be accepted"
        yield warn("client-crl", f"{path}: {authority}: {reason}; devices of this authority {effect} (--crl-policy {policy})")
    count = pluralize(len(lists.lists), "list")
    yield ok("client-crl", f"{path}: {count}{_until(lists.next_update)}")


def check_client_certificate(cert: Path, key: Path, read: ReadFile, now: datetime) -> Iterator[Finding]:
    """Check the certificate that Owsla shows the broker, and its key."""
    certificates = yield from _check_pair(
        "broker-cert", "broker-key", cert, key, read, lambda: load_broker_tls(None, cert, key, read)
    )
    if certificates:
        yield from check_dates(cert, certificates, now)


def _check_pair(
    subject: str, key_subject: str, cert: Path, key: Path, read: ReadFile, use: Callable[[], object]
) -> Generator[Finding, None, Sequence[x509.Certificate]]:
    """Check that both files can be read, and that OpenSSL accepts them together (`use`). Return the certificates."""
    certificates: Sequence[x509.Certificate] = ()
    readable = True
    try:
        certificates = read_certificates(cert, read)
    except ConfigError as error:
        readable = False
        yield fail(subject, str(error))
    try:
        read_private_key(key, read)
    except ConfigError as error:
        readable = False
        yield fail(key_subject, str(error))
    if readable:
        try:
            use()
        except ConfigError as error:
            yield fail(key_subject, str(error))
        else:
            yield ok(subject, f"{cert}: {describe(certificates[0])}, and {key} is its key")
    return certificates


def _check_chain(path: Path, certificates: Sequence[x509.Certificate], find_root: FindRoot) -> Iterator[Finding]:
    chain, others = chain_of(certificates)
    last = chain[-1]
    if is_issuer(last, last):
        if len(chain) == 1:
            yield ok("chain", f"{path}: the certificate is self-signed, so devices must trust it")
        else:
            yield ok("chain", f"{path}: complete, up to the self-signed {subject_of(last)}")
    elif where := find_root(chain):
        yield ok("chain", f"{path}: complete, up to {name_text(last.issuer)} in {where}")
    else:
        yield warn(
            "chain",
            f"{path}: ends before {name_text(last.issuer)}, whose certificate is neither in the file nor in the trust store of "
            "the operating system; append it, unless all devices have it",
        )
    for other in others:
        yield warn("chain", f"{path}: {subject_of(other)} does not belong to the chain of the first certificate")


def check_dates(path: Path, certificates: Sequence[x509.Certificate], now: datetime) -> Iterator[Finding]:
    """Check the dates of the certificates in a file."""
    sound = True
    for certificate in certificates:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        subject = subject_of(certificate)
        if now > end:
            fault = f"expired on {date(end)}"
        elif now < begin:
            fault = f"is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}"
        elif end - now < timedelta(days=WARNING_DAYS):
            fault = f"expires on {date(end)}, in {_days(end - now)}"
        else:
            continue
        sound = False
        yield warn("dates", f"{path}: {subject} {fault}")
    if sound:
        end = min(certificate.not_valid_after_utc for certificate in certificates)
        yield ok("dates", f"{path}: valid until {date(end)}, for {_days(end - now)}")


def check_authorities(subject: str, path: Path, read: ReadFile, now: datetime) -> Iterator[Finding]:
    """Check a file with authorities that sign the certificates of others."""
    try:
        authorities = read_certificates(path, read)
    except ConfigError as error:
        yield fail(subject, str(error))
        return
    count = pluralize(len(authorities), "authority", "authorities")
    yield ok(subject, f"{path}: {count}, {_listed(map(subject_of, authorities))}")
    for authority in authorities:
        if not _is_authority(authority):
            yield warn(subject, f"{path}: {subject_of(authority)} is not an authority (basicConstraints)")
    yield from check_dates(path, authorities, now)


def chain_of(certificates: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Return the chain of the first certificate, as far as it goes, and those certificates that do not belong to it."""
    chain, others = [certificates[0]], list(certificates[1:])
    while not is_issuer(chain[-1], chain[-1]):
        issuer = next((other for other in others if is_issuer(other, chain[-1])), None)
        if issuer is None:
            break
        chain.append(issuer)
        others.remove(issuer)
    return chain, others


def is_issuer(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return whether a certificate is signed by another one."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        # Other names, a kind of key that cannot sign or that `cryptography` does not know, another key.
        return False
    return True


def find_root_of_system(chain: Sequence[x509.Certificate]) -> str:
    """Return where the root of a chain is if the operating system trusts it, whatever its dates (`FindRoot`)."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_default_verify_paths()
    store = context.get_cert_store()
    if store is None:
        return ""
    store.set_flags(_NO_CHECK_TIME)
    first, *others = map(crypto.X509.from_cryptography, chain)
    try:
        crypto.X509StoreContext(store, first, others).verify_certificate()
    except crypto.X509StoreContextError:
        return ""
    return "the trust store of the operating system"


def describe(certificate: x509.Certificate) -> str:
    """Return the names in a server's certificate and the kind of its key."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"ECDSA {key.curve.name}"
    elif isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA {key.key_size}"
    else:
        kind = type(key).__name__
    return f"{_listed(_alternative_names(certificate)) or subject_of(certificate)}, {kind}"


def subject_of(certificate: x509.Certificate) -> str:
    """Return the name of the holder of a certificate."""
    return name_text(certificate.subject)


def name_text(name: x509.Name) -> str:
    """Return a name for people: its common name, or all of it."""
    try:
        common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
        return f"CN={str(common[0].value)!s}" if common else name.rfc4514_string() or "a certificate without a name"
    except ValueError:
        return "a certificate whose name cannot be read"


def date(when: datetime) -> str:
    """Return a date for people."""
    return f"{when:%Y-%m-%d}"


def _until(when: float | None) -> str:
    return "" if when is None else f", valid until {datetime.fromtimestamp(when, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _days(time: timedelta) -> str:
    return "1 day" if time.days == 1 else f"{time.days} days" if time.days else "less than a day"


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    known = list(names)
    more = len(known) - _NAMES_SHOWN
    return ", ".join(known[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _is_for_servers(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _is_authority(certificate: x509.Certificate) -> bool:
    if certificate.version is x509.Version.v1:
        return True
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except ValueError:
        return True  # OpenSSL decides
