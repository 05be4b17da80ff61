"""List of the certificates, authorities, revocation lists and OCSP responses in use, with their expiry. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509

from .certificates import readable_name
from .revocation import RevocationLists
from .stapling import OcspResponses

EntryKind = Literal["server", "client-ca", "crl", "ocsp-response", "broker-cert", "broker-ca", "broker"]
"""Kind of an entry: certificate shown to devices, authority of their certificates, list of revoked ones, OCSP response sent to
them, certificate shown to the broker, authority of the broker's certificate, certificate that the broker shows."""


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """A certificate, revocation list or OCSP response in use."""

    kind: EntryKind
    file: str
    """Path of the file, or address of the broker."""
    subject: str
    """Subject of the certificate, or authority of the list, in the form of RFC 4514. Of a response, the serial number in it in
    hexadecimal; empty if it is of no use.
    """
    not_after: float | None
    """Time of expiry in seconds since the epoch; `None`: never, or not known."""
    fault: str | None = None
    """Reason why a list or a response cannot be used; `None` if it can, and for certificates."""


def certificate_entries(
    kind: EntryKind, file: Path | str, certificates: Iterable[x509.Certificate]
) -> tuple[InventoryEntry, ...]:
    """Return the entries of the certificates in a file."""
    return tuple(
        InventoryEntry(kind, str(file), readable_name(each.subject), each.not_valid_after_utc.timestamp())
        for each in certificates
    )


def list_entries(lists: RevocationLists, now: float) -> Iterator[InventoryEntry]:
    """Yield the entries of the revocation lists in a file, and of those that are missing in it."""
    file = str(lists.path)
    faults = dict(lists.unusable(now))
    for each in lists.current:
        yield InventoryEntry("crl", file, each.authority, each.next_update, faults.get(each.authority))
    present = {each.authority for each in lists.current}
    for authority, reason in faults.items():
        if authority not in present:
            yield InventoryEntry("crl", file, authority, None, reason)


def response_entries(responses: OcspResponses) -> Iterator[InventoryEntry]:
    """Yield the entries of OCSP responses."""
    faults = dict(responses.unusable())
    for serial, response in responses.in_use:
        file = response.path
        yield InventoryEntry("ocsp-response", str(file), f"{serial:x}", response.next_update, faults.get(file))
    present = {response.path for _, response in responses.in_use}
    for path, reason in faults.items():
        if path not in present:
            yield InventoryEntry("ocsp-response", str(path), "", None, reason)
