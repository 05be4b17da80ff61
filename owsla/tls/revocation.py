"""Certificate revocation lists (CRLs, RFC 5280) of the authorities that sign device certificates.

OpenSSL checks them during a handshake. `RevocationLists.revoke` finds out which of the connected devices a new list concerns:
OpenSSL would hash the whole list for each device, and a set of serial numbers says the same in a microsecond.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cryptography import x509
from OpenSSL import SSL, crypto

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file
from .certificates import is_cut_off, readable_name

CrlPolicy = Literal["hard", "soft"]

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"

UNUSABLE: Final = frozenset(
    {
        SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_CRL,
        SSL.X509VerificationCodes.ERR_CRL_NOT_YET_VALID,
        SSL.X509VerificationCodes.ERR_CRL_HAS_EXPIRED,
    }
)
"""OpenSSL's errors for a list that is missing or out of date, which `--crl-policy soft` accepts. OpenSSL then looks for the
certificate in the list all the same."""


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """A list of one authority."""

    crl: x509.CertificateRevocationList
    serials: frozenset[int]
    """Serial numbers of the revoked certificates."""
    authority: str
    """Name of the authority in the form of RFC 4514."""
    digest: bytes
    """SHA-256 of the list, since to compare long lists takes long."""
    last_update: float
    """Time from which the list is valid, in seconds since the epoch."""
    next_update: float | None
    """Time at which the list expires, in seconds since the epoch; `None`: never."""


class UnusableList(NamedTuple):
    """A list that is missing or has expired."""

    authority: str
    reason: str


class RevocationLists:
    """The lists in the file of `--client-crl`."""

    def __init__(self, path: Path, lists: Sequence[RevocationList], authorities: Sequence[x509.Certificate]) -> None:
        """`authorities` are those of `--client-ca`. Raise `ConfigError` for a list that none of them can have signed, although
        it is in the name of one of them.
        """
        self.path = path
        self.lists = tuple(lists)
        for each in lists:
            _check_signature(path, each, authorities)
        self._missing: list[str] = []
        self._revoked: dict[bytes, frozenset[int]] = {}
        for authority in authorities:
            own = [each for each in self.current if _signed(each, authority)]
            if not own and readable_name(authority.subject) not in self._missing:
                self._missing.append(readable_name(authority.subject))
            key = crypto.X509.from_cryptography(authority).digest("sha256")
            self._revoked[key] = frozenset().union(*(each.serials for each in own))

    @property
    def next_update(self) -> float | None:
        """Time at which the first list expires, in seconds since the epoch; `None`: never."""
        return min((each.next_update for each in self.current if each.next_update is not None), default=None)

    def same_as(self, other: RevocationLists | None) -> bool:
        """Return whether the other has the same lists."""
        return other is not None and [each.digest for each in self.lists] == [each.digest for each in other.lists]

    def unusable(self, now: float) -> Iterator[UnusableList]:
        """Yield the lists that have expired, and those that an authority of `--client-ca` should have."""
        for each in self.current:
            if each.next_update is not None and each.next_update <= now:
                end = datetime.fromtimestamp(each.next_update, UTC)
                yield UnusableList(each.authority, f"the list expired at {end:%Y-%m-%dT%H:%M:%SZ}")
            elif each.last_update > now:
                begin = datetime.fromtimestamp(each.last_update, UTC)
                yield UnusableList(each.authority, f"the list is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}")
        for authority in self._missing:
            yield UnusableList(authority, "there is no list of this authority")

    def revoke(self, chain: Sequence[crypto.X509]) -> bool:
        """Return whether a certificate in a chain is revoked. Each is followed by that of its authority."""
        return any(
            certificate.get_serial_number() in self._serials(authority)
            for certificate, authority in zip(chain, [*chain[1:], *chain[-1:]], strict=True)
        )

    def _serials(self, authority: crypto.X509) -> frozenset[int]:
        """Return the serial numbers that an authority has revoked. The signatures of its lists are verified once: those of the
        authorities in `--client-ca` when the lists are loaded, because that takes a tenth of a second for a list of 4 MB.
        """
        key = authority.digest("sha256")
        found = self._revoked.get(key)
        if found is None:
            try:
                certificate = authority.to_cryptography()
                own = [each.serials for each in self.current if _signed(each, certificate)]
            except Exception:  # OpenSSL accepts certificates for which `cryptography` raises ValueError, TypeError and others
                own = [each.serials for each in self.lists]
            found = self._revoked[key] = frozenset().union(*own)
        return found

    @property
    def current(self) -> list[RevocationList]:
        """Lists without those that a later list of the same authority, key and scope replaces, as in OpenSSL."""
        newest: dict[tuple[Any, ...], RevocationList] = {}
        for each in self.lists:
            key = (each.crl.issuer, _extension(each.crl, x509.AuthorityKeyIdentifier), _scope(each.crl))
            before = newest.get(key)
            if before is None or each.crl.last_update_utc > before.crl.last_update_utc:
                newest[key] = each
        return list(newest.values())


def read_revocation_lists(
    path: Path, authorities: Sequence[x509.Certificate], read: ReadFile = read_file
) -> RevocationLists:
    """Return the lists in a PEM file, at least one. `authorities` are those that sign device certificates."""
    content = read(path)
    if _BEGIN not in content:
        raise ConfigError(f"{path}: there is no certificate revocation list in PEM format in this file")
    if is_cut_off(content):
        raise ConfigError(f"{path}: this file ends in the middle of a certificate revocation list")
    return RevocationLists(path, [_parsed(path, each) for each in _split(content)], authorities)


def _split(content: bytes) -> Iterator[bytes]:
    """Yield the lists in a PEM file. `bytes.find` takes a hundredth of the time of a regular expression, which holds the lock
    of the interpreter, and so stops the reactor: 30 ms for a list of 50,000 certificates.
    """
    begin = content.find(_BEGIN)
    while begin >= 0:
        end = content.find(_END, begin)
        end = end + len(_END) if end >= 0 else len(content)
        yield content[begin:end]
        begin = content.find(_BEGIN, end)


def _parsed(path: Path, content: bytes) -> RevocationList:
    try:
        crl = x509.load_pem_x509_crl(content)
        scope = _scope(crl)
        delta = _extension(crl, x509.DeltaCRLIndicator)
        serials = frozenset(each.serial_number for each in crl)
        next_update = crl.next_update_utc
        last_update = crl.last_update_utc.timestamp()
        authority = readable_name(crl.issuer)
    except ValueError:
        raise ConfigError(f"{path}: a certificate revocation list in this file is damaged") from None
    if delta is not None:
        raise ConfigError(f"{path}: the list of {authority} is a delta list; Owsla takes complete lists only")
    if scope is not None and (scope.indirect_crl or scope.only_some_reasons):
        raise ConfigError(f"{path}: the list of {authority} is indirect or for some reasons only, which OpenSSL ignores")
    end = next_update.timestamp() if next_update is not None else None
    return RevocationList(crl, serials, authority, hashlib.sha256(content).digest(), last_update, end)


def _check_signature(path: Path, found: RevocationList, authorities: Sequence[x509.Certificate]) -> None:
    """Raise `ConfigError` for a list that OpenSSL will not use. A list of an unknown authority may be of an intermediate one,
    whose certificate the devices send.
    """
    key = _extension(found.crl, x509.AuthorityKeyIdentifier)
    signers = []
    for authority in authorities:
        if authority.subject == found.crl.issuer:
            own = _extension(authority, x509.SubjectKeyIdentifier)
            if key is None or own is None or key.key_identifier in (None, own.digest):
                signers.append(authority)
    if not signers:
        return
    signed = [authority for authority in signers if _signed(found, authority)]
    if not signed:
        raise ConfigError(f"{path}: the signature of the list of {found.authority} is not valid")
    usages = [_extension(authority, x509.KeyUsage) for authority in signed]
    if all(usage is not None and not usage.crl_sign for usage in usages):
        raise ConfigError(f"{path}: the certificate of {found.authority} does not allow it to sign lists (keyUsage cRLSign)")


def _signed(found: RevocationList, authority: x509.Certificate) -> bool:
    if found.crl.issuer != authority.subject:
        return False
    try:
        return found.crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except Exception:  # UnsupportedAlgorithm, TypeError and others, for keys that `cryptography` does not know
        return False


def _scope(crl: x509.CertificateRevocationList) -> x509.IssuingDistributionPoint | None:
    scope: x509.IssuingDistributionPoint | None = _extension(crl, x509.IssuingDistributionPoint)
    return scope


def _extension(holder: x509.Certificate | x509.CertificateRevocationList, kind: type[Any]) -> Any:
    """Return the value of an extension, or `None` without it."""
    try:
        return holder.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension):
        if isinstance(holder, x509.CertificateRevocationList):
            raise ValueError("an extension is malformed") from None
        return None  # OpenSSL accepts such an authority
