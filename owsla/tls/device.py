"""TLS of the device port: what one load of the settings made, and what uses it.

Theory of operation
===================

`load_device_tls` makes a `DeviceTLSMaterial` of files. Everything that can fail happens there. `DeviceTLS.use` makes it the
current one, which is an assignment, and cannot fail. So a reload changes everything or nothing, and no connection is refused
meanwhile.

A handshake begins with `DeviceTLS.context`: in general with a *front* context, which lives as long as the process, and has no
certificate. There are three, since OpenSSL takes from it whether a device is asked for a certificate: not at all, optionally,
or always. When the ClientHello has been read, OpenSSL calls `DeviceTLS._choose`, whether there is a server name (SNI) or not.
That sets the current context for this name: SSL_set_SSL_CTX takes certificates, keys, client authorities, revocation lists,
OCSP responses and cipher list from it. Verify mode and callbacks, versions and options remain those of the front context.

After a HelloRetryRequest OpenSSL calls `_choose` again, for the second ClientHello. The connection keeps its context then: a
handshake uses the certificates, authorities and lists of one `DeviceTLSMaterial`, even if it takes place during a reload.

Without client authorities, and with the same certificates for all server names, there is nothing to choose. Then a handshake
begins with the context that has the certificates, and no callback is called. The SSL object of OpenSSL keeps its first context
(`session_ctx`), also after a reload: one with certificates takes some KB, but one with revocation lists may take megabytes.

OpenSSL counts references to a context. When the handshakes that began before a reload have ended, the old contexts are freed:
established connections have another context (`post_handshake`). A `DeviceTLSMaterial` must not be part of a reference cycle:
it would be frozen (`runtime.memory`), and stay for a long time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from OpenSSL import SSL, crypto
from twisted.logger import Logger

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file
from .certificates import read_certificates, read_server_certificate
from .contexts import ClientVerification, certificate_context, front_context
from .expiry import ServedCertificate
from .identity import device_identity
from .inventory import InventoryEntry, certificate_entries, list_entries, response_entries
from .refusal import authority_refusal, certificate_refusal
from .revocation import UNUSABLE, CrlPolicy, RevocationLists, read_revocation_lists
from .server_names import ServerNames, same_use
from .stapling import OcspResponses, read_ocsp_response
from .verification import explain_verify_error

ClientCertificate = Literal["none", "optional", "require"]
"""Policy for device certificates: not asked for, optional, or required."""

_MODES: Final[dict[ClientCertificate, int]] = {
    "none": SSL.VERIFY_NONE,
    "optional": SSL.VERIFY_PEER,
    "require": SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTLSFiles:
    """Files and settings that a `DeviceTLSMaterial` is made of."""

    pairs: Sequence[tuple[Path, Path]]
    """Files of the server certificates, each with its chain, and of their keys: at least one pair."""
    client_ca: Path | None = None
    client_cert: Literal["optional", "require"] = "require"
    client_crl: Path | None = None
    crl_policy: CrlPolicy = "hard"
    ocsp_responses: Sequence[Path] = ()
    device_id: str = "cn"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of all files."""
        others = (self.client_ca, self.client_crl, *self.ocsp_responses)
        return (*chain.from_iterable(self.pairs), *(path for path in others if path is not None))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DeviceTLSMaterial:
    """Certificates, keys, authorities and revocation lists of the device port, from one load of the settings."""

    made_of: DeviceTLSFiles
    contexts: ServerNames[SSL.Context]
    client_certificate: ClientCertificate
    crl_policy: CrlPolicy
    device_id: str
    """Kind of device id (`device_name`)."""
    certificates: tuple[ServedCertificate, ...]
    """Certificates that devices are shown."""
    revocation: RevocationLists | None
    responses: OcspResponses | None
    entries: tuple[InventoryEntry, ...] = ()
    """Server certificates and client authorities, for `inventory`."""

    def inventory(self, now: float) -> Iterator[InventoryEntry]:
        """Yield an entry for each certificate, authority, revocation list and OCSP response."""
        yield from self.entries
        if self.revocation is not None:
            yield from list_entries(self.revocation, now)
        if self.responses is not None:
            yield from response_entries(self.responses)

    @property
    def not_after(self) -> float:
        """Time at which the first server certificate expires, in seconds since the epoch."""
        return min(certificate.not_after for certificate in self.certificates)

    @property
    def crl_expires(self) -> float | None:
        """Time at which the first revocation list expires; `None` without one."""
        return self.revocation.next_update if self.revocation is not None else None

    @property
    def ocsp_expires(self) -> float | None:
        """Time at which the first OCSP response expires; `None` without one."""
        return self.responses.next_update if self.responses is not None else None


@dataclass(frozen=True, slots=True)
class PreviousMaterial:
    """TLS material of an earlier load or of another door, whose parts are used again where their files are the same: a long
    list takes long to parse, and Python code holds up the reactor meanwhile.
    """

    material: DeviceTLSMaterial
    unchanged: Callable[[Path], bool]
    """Function that returns whether a file has the same content as then."""

    def whole(self, files: DeviceTLSFiles) -> DeviceTLSMaterial | None:
        """Return the material, if all that it was made of is the same."""
        return self.material if self.material.made_of == files and all(map(self.unchanged, files.paths)) else None

    def revocation(self, files: DeviceTLSFiles) -> RevocationLists | None:
        """Return the revocation lists, if they and the authorities are the same."""
        paths = (files.client_ca, files.client_crl)
        before = (self.material.made_of.client_ca, self.material.made_of.client_crl)
        same = paths == before and all(path is not None and self.unchanged(path) for path in paths)
        return self.material.revocation if same else None


def load_device_tls(
    files: DeviceTLSFiles,
    read: ReadFile = read_file,
    now: Callable[[], float] = time.time,
    previous: Sequence[PreviousMaterial] = (),
) -> DeviceTLSMaterial:
    """Return the TLS material built from some files. Raise `ConfigError` with the file and the reason if one cannot be used.

    What `previous` has of the same files is used again: the material of an earlier load, or of another door.

    An expired certificate, list or response is no error: each device decides whether it accepts the certificate.
    """
    for each in previous:
        if (whole := each.whole(files)) is not None:
            return whole
    certificates = [read_server_certificate(cert, key, read) for cert, key in files.pairs]
    twice = same_use(certificates)
    if twice is not None:
        first, second = twice
        kind = f"{second.key_type} certificate for the same names as {first.path}"
        raise ConfigError(f"{second.path}: this is a second {kind}; only one of each key type can be used")
    responses = None
    if files.ocsp_responses:
        serials = [certificate.certificate.serial_number for certificate in certificates]
        responses = OcspResponses([read_ocsp_response(path, read) for path in files.ocsp_responses], serials, now)
    clients = None
    entries = [entry for each in certificates for entry in certificate_entries("server", each.path, each.chain[:1])]
    if files.client_ca is not None:
        authorities = read_certificates(files.client_ca, read)
        entries += certificate_entries("client-ca", files.client_ca, authorities)
        lists = next((known for each in previous if (known := each.revocation(files)) is not None), None)
        if lists is None and files.client_crl is not None:
            lists = read_revocation_lists(files.client_crl, authorities, read)
        clients = ClientVerification(authorities, lists)
    return DeviceTLSMaterial(
        made_of=files,
        contexts=ServerNames.of(certificates, partial(certificate_context, clients=clients, responses=responses)),
        client_certificate="none" if clients is None else files.client_cert,
        crl_policy=files.crl_policy,
        device_id=files.device_id,
        certificates=tuple(
            ServedCertificate(str(each.path), each.certificate.not_valid_after_utc.timestamp()) for each in certificates
        ),
        revocation=clients.revocation if clients is not None else None,
        responses=responses,
        entries=tuple(entries),
    )


class DeviceTLS:
    """TLS of the device port, for as long as the process runs. The module's docstring has the theory of operation."""

    _log = Logger(namespace="owsla")

    def __init__(self, material: DeviceTLSMaterial) -> None:
        self._fronts = {mode: front_context(flags, self._verify, self._choose) for mode, flags in _MODES.items()}
        self._all_fronts = tuple(self._fronts.values())
        self.use(material)

    @property
    def current(self) -> DeviceTLSMaterial:
        """Material for handshakes that begin now."""
        return self._current

    def use(self, material: DeviceTLSMaterial) -> None:
        """Use `material` for handshakes that begin from now on."""
        self._current = material
        only = material.contexts.only if material.client_certificate == "none" else None
        self.context: SSL.Context = only or self._fronts[material.client_certificate]
        """Context with which a handshake begins."""
        now = time.time()
        for path, not_after in material.certificates:
            if not_after <= now:
                expiry = f"{datetime.fromtimestamp(not_after, UTC):%Y-%m-%d}"
                self._log.warn("The certificate in {path} expired on {expiry}: renew it", path=path, expiry=expiry)

    def identify(self, connection: SSL.Connection) -> str | None:
        """Return the device id in the certificate of a connection, if any. Raise `HandshakeRefused` if it cannot be read."""
        return device_identity(connection, self._current.device_id)

    def _choose(self, connection: SSL.Connection) -> None:
        if connection.get_context() in self._all_fronts:  # or this is the second ClientHello, after a HelloRetryRequest
            connection.set_context(self._current.contexts.find(connection.get_servername()))

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, trusted: int) -> bool:
        """Return OpenSSL's own decision, or `True` where `--crl-policy soft` does without a list. If it is a refusal, note the
        reason on the connection.
        """
        if trusted or (error in UNUSABLE and self._current.crl_policy == "soft"):
            return True
        why, kind = explain_verify_error(error), self._current.device_id
        if depth == 0:
            certificate_refusal(f"the device's certificate is refused: {why}", certificate, kind).note(connection)
        else:
            authority_refusal(f"an authority's certificate is refused: {why}", certificate, kind).note(connection)
        return False
