"""TLS of the devices: certificates, verification of the gateway, resumption, and the reasons of failures in words."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from ...errors import ConfigError, os_reason
from ...runtime.files import read_file
from ...tls.verification import explain_verify_error
from ._device import Device
from ._errors import REFUSED, UNEXPECTED_END, SwarmError
from ._plan import Plan


class ClientCertificates:
    """Client certificates with their keys: one pair for all devices, a folder of pairs, or a template with `{device}`."""

    def __init__(self, cert: str | None, key: str | None) -> None:
        """Find the pairs. Raise `ConfigError` if there are none."""
        self._cert = cert
        self._key = key or cert
        self._folder: list[tuple[str, str]] = []
        if cert is None:
            if key is not None:
                raise ConfigError("--key: a key without a --cert")
        elif os.path.isdir(cert):
            if key is not None:
                raise ConfigError(
                    f"--key: not possible with a folder ({cert}), where each NAME.pem has a NAME.key beside it or in it"
                )
            self._folder = _pairs_in(Path(cert))

    @property
    def one(self) -> tuple[str, str] | None:
        """Certificate file and key file of all devices, or `None` if devices have different ones."""
        if self._cert is None or self._folder or "{device}" in self._cert:
            return None
        assert self._key is not None
        return self._cert, self._key

    @property
    def many(self) -> bool:
        """Return whether devices have different certificates."""
        return bool(self._folder) or (self._cert is not None and "{device}" in self._cert)

    def of(self, device: int) -> tuple[int, str, str]:
        """Return the number of the pair of a device, its certificate file and its key file, if there are `many`."""
        if self._folder:
            number = device % len(self._folder)
            return number, *self._folder[number]
        assert self._cert is not None
        assert self._key is not None
        return device, self._cert.replace("{device}", str(device)), self._key.replace("{device}", str(device))


def _pairs_in(folder: Path) -> list[tuple[str, str]]:
    found = []
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix not in (".pem", ".crt"):
                continue
            key = path.with_suffix(".key")
            if key.exists():
                found.append((str(path), str(key)))
            elif b"PRIVATE KEY-----" in read_file(path):
                found.append((str(path), str(path)))
    except OSError as error:
        raise ConfigError(f"{folder}: {os_reason(error)}") from None
    if not found:
        raise ConfigError(f"{folder}: no NAME.pem with a NAME.key beside it or in it")
    return found


def load_pair(cert: str, key: str) -> tuple[x509.Certificate, crypto.PKey]:
    """Read a certificate and its key. Raise `ConfigError` if that is not possible."""
    content = read_file(Path(cert))
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError:
        raise ConfigError(f"{cert}: no certificate in PEM format in this file") from None
    content = read_file(Path(key))
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        return certificate, crypto.load_privatekey(crypto.FILETYPE_PEM, content, b"")
    except (crypto.Error, ValueError):
        raise ConfigError(f"{key}: no private key in this file that can be read without a password") from None


class ServerName:
    """The name that the certificate of the gateway must be for. Thousands of equal certificates are checked once."""

    def __init__(self, name: str) -> None:
        """Raise `ConfigError` if no certificate can be for the name."""
        self._name = name
        self._checked: x509.Certificate | None = None
        self.hello: bytes | None = None
        """The name for the ClientHello; `None` for an address (RFC 6066, section 3)."""
        try:
            ipaddress.ip_address(name)
            self._check: Any = verify_certificate_ip_address
        except ValueError:
            self._check = verify_certificate_hostname
            try:
                self.hello = name.encode("idna")
            except UnicodeError:
                raise ConfigError(f"{name!r} is not a name that a certificate can be for") from None

    def problem(self, certificate: x509.Certificate | None) -> str | None:
        """Return what is wrong with a certificate, or `None`."""
        if certificate is None or certificate == self._checked:
            return None
        try:
            self._check(certificate, self._name)
        except (VerificationError, CertificateError, ValueError):
            return f"the certificate of the gateway is not for {self._name}"
        self._checked = certificate
        return None


class HandshakeError(Exception):
    """A handshake failed; the text says why in a few words."""


class TLSClient:
    """TLS connections of all devices of a process.

    The verification callback of a context does not know the connection. It runs within a call of `do_handshake`, so it leaves
    its result in this object, which resets it before each call.
    """

    def __init__(self, plan: Plan) -> None:
        """Read certificates and keys. Raise `ConfigError` if that is not possible."""
        self._insecure = plan.insecure
        self._resume = plan.resume
        self._certificates = ClientCertificates(plan.cert, plan.key)
        self._server_name = ServerName(plan.server_name)
        self._context = self._new_context(plan.ca, self._certificates.one)
        self._sessions: dict[int, SSL.Session] = {}
        self._certificate_seen = False
        self._problem: str | None = None

    @property
    def has_session(self) -> bool:
        """Return whether the gateway has given out a session that can be resumed."""
        return bool(self._sessions)

    def start(self, device: Device) -> None:
        """Begin TLS on the socket of a device. Raise `SwarmError` if its certificate cannot be used."""
        try:
            device.tls = device.stream = tls = SSL.Connection(self._context, device.sock)
            tls.set_connect_state()
            if self._server_name.hello:
                tls.set_tlsext_host_name(self._server_name.hello)
            if self._certificates.many:
                _, cert, key = self._certificates.of(device.index)
                certificate, private = load_pair(cert, key)
                tls.use_certificate(certificate)
                tls.use_privatekey(private)
            session = self._sessions.get(self._number(device)) if self._resume else None
            if session is not None:
                tls.set_session(session)
                device.resumed = True  # until the gateway shows a certificate, which it does only in a full handshake
        except (ConfigError, SSL.Error) as error:
            raise SwarmError(str(error)) from None

    def handshake(self, device: Device) -> None:
        """Go on with the handshake of a device.

        Raise `SSL.WantReadError` or `SSL.WantWriteError` if it must be called again, and `HandshakeError` if it failed.
        """
        tls = device.tls
        assert tls is not None
        self._certificate_seen, self._problem = False, None
        try:
            tls.do_handshake()
        except SSL.WantWriteError:
            raise
        except SSL.WantReadError:
            # TLS 1.2 verifies the certificate one flight before the end.
            self._note_certificate(device)
            raise
        except (SSL.Error, OSError) as error:
            raise HandshakeError(self._problem or failure(error)) from None
        self._note_certificate(device)
        if not self._insecure and not device.resumed:
            problem = self._server_name.problem(tls.get_peer_certificate(as_cryptography=True))
            if problem:
                raise HandshakeError(problem)

    def _note_certificate(self, device: Device) -> None:
        if self._certificate_seen and device.resumed:
            device.resumed = False

    def keep_session(self, device: Device) -> None:
        """Keep the session of a device, for the next connection with the same certificate."""
        assert device.tls is not None
        session = device.tls.get_session()
        if session is not None:
            self._sessions[self._number(device)] = session

    def _number(self, device: Device) -> int:
        """Return the number of the certificate of a device: a session belongs to one."""
        return self._certificates.of(device.index)[0] if self._certificates.many else 0

    def _new_context(self, ca: str | None, pair: tuple[str, str] | None) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        # OpenSSL then has its buffers, 34 KB for a connection, only while a record is in progress.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_COMPRESSION)
        if not self._resume:
            context.set_options(SSL.OP_NO_TICKET)
        if ca is not None:
            read_file(Path(ca))
            try:
                context.load_verify_locations(ca)
            except SSL.Error:
                raise ConfigError(f"{ca}: no certificate in PEM format in this file") from None
        elif not self._insecure:
            context.set_default_verify_paths()
        if pair is not None:
            cert, key = pair
            load_pair(cert, key)
            try:
                context.use_certificate_chain_file(cert)
                context.use_privatekey_file(key)
                context.check_privatekey()
            except SSL.Error:
                raise ConfigError(f"{key}: not the key of {cert}") from None
        context.set_verify(SSL.VERIFY_PEER, self._verified)
        return context

    def _verified(self, connection: SSL.Connection, certificate: Any, error: int, depth: int, good: int) -> bool:
        self._certificate_seen = True
        if not good:
            self._problem = f"the certificate of the gateway is not trusted: {explain_verify_error(error)}"
        return self._insecure or bool(good)


def failure(error: Exception) -> str:
    """Return why a connection failed, in a few words that are the same for the same cause."""
    if isinstance(error, SSL.ZeroReturnError):
        return "closed by the gateway"
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if error.args else -1
        return os.strerror(number).lower() if isinstance(number, int) and number > 0 else UNEXPECTED_END
    if isinstance(error, SSL.Error):
        reasons = error.args[0] if error.args else ()
        text = str(reasons[-1][-1]) if reasons else ""
        if alert := re.search(r"\balert (.+)", text):
            return REFUSED + alert[1]
        if text in ("wrong version number", "packet length too long", "record layer failure"):
            return "the server does not speak TLS"
        return f"TLS: {text}" if text else UNEXPECTED_END
    if isinstance(error, OSError):
        return os_reason(error)
    return str(error)
