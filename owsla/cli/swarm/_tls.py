"""The device's side of TLS: whom it trusts, who it is, and why a handshake failed in words."""

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
from ...tls.verification import why_not


class Pairs:
    """Client certificates: one pair for all, a folder of pairs, or a template with `{device}`."""

    def __init__(self, cert: str | None, key: str | None) -> None:
        """`ConfigError` where there is nothing of the kind."""
        self._cert = cert
        self._key = key or cert
        self._folder: list[tuple[str, str]] = []
        if cert is None:
            if key is not None:
                raise ConfigError("--key: there is no --cert that it belongs to")
        elif os.path.isdir(cert):
            if key is not None:
                raise ConfigError(f"--key: in {cert} each NAME.pem has its NAME.key beside it, or the key in it")
            self._folder = _pairs_in(Path(cert))

    @property
    def one(self) -> tuple[str, str] | None:
        """The pair that all devices have, if they have the same."""
        if self._cert is None or self._folder or "{device}" in self._cert:
            return None
        assert self._key is not None
        return self._cert, self._key

    @property
    def many(self) -> bool:
        return bool(self._folder) or (self._cert is not None and "{device}" in self._cert)

    def of(self, device: int) -> tuple[int, str, str]:
        """The number of a device's pair, its certificate's file and its key's: where there are `many`."""
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
        raise ConfigError(f"{folder}: no NAME.pem with a NAME.key beside it, or the key in it")
    return found


def load_pair(cert: str, key: str) -> tuple[x509.Certificate, crypto.PKey]:
    """A certificate and its key. `ConfigError`."""
    content = read_file(Path(cert))
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError:
        raise ConfigError(f"{cert}: there is no certificate in PEM format in it") from None
    content = read_file(Path(key))
    try:
        # No password is asked for: there may be thousands.
        return certificate, crypto.load_privatekey(crypto.FILETYPE_PEM, content, b"")
    except (crypto.Error, ValueError):
        raise ConfigError(f"{key}: there is no private key in it that can be read without a password") from None


class Identity:
    """Checks that a certificate is for the name that was asked for; of thousands that are the same only the first."""

    def __init__(self, name: str) -> None:
        """`ConfigError` where no certificate can be for the name."""
        self._name = name
        self._good: x509.Certificate | None = None
        self.hello: bytes | None = None
        """The name for the ClientHello, in which there are no addresses (RFC 6066, 3)."""
        try:
            ipaddress.ip_address(name)
            self._check: Any = verify_certificate_ip_address
        except ValueError:
            self._check = verify_certificate_hostname
            try:
                self.hello = name.encode("idna")
            except UnicodeError:
                raise ConfigError(f"{name!r} is not a name that a certificate can be for") from None

    def wrong(self, certificate: x509.Certificate | None) -> str | None:
        """What is wrong with a certificate, if something is."""
        if certificate is None or certificate == self._good:
            return None
        try:
            self._check(certificate, self._name)
        except (VerificationError, CertificateError, ValueError):
            return f"the gateway's certificate is not for {self._name}"
        self._good = certificate
        return None


class Verdict:
    """What the verification of the handshake at hand said: it happens within one call of `do_handshake`."""

    __slots__ = ("asked", "problem")

    def __init__(self) -> None:
        self.asked = False
        """The gateway has shown a certificate; where a session is resumed it does not."""
        self.problem: str | None = None


def context(ca: str | None, insecure: bool, pair: tuple[str, str] | None, verdict: Verdict, *, resume: bool) -> SSL.Context:
    """A context for all connections of a process. `ConfigError`."""
    made = SSL.Context(SSL.TLS_CLIENT_METHOD)
    # A connection has its 34 KB of buffers only while something is under way.
    made.set_mode(SSL.MODE_RELEASE_BUFFERS)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    made.set_options(SSL.OP_NO_COMPRESSION)
    if not resume:
        made.set_options(SSL.OP_NO_TICKET)
    if ca is not None:
        read_file(Path(ca))
        try:
            made.load_verify_locations(ca)
        except SSL.Error:
            raise ConfigError(f"{ca}: there is no certificate in PEM format in it") from None
    elif not insecure:
        made.set_default_verify_paths()
    if pair is not None:
        cert, key = pair
        load_pair(cert, key)
        try:
            made.use_certificate_chain_file(cert)
            made.use_privatekey_file(key)
            made.check_privatekey()
        except SSL.Error:
            raise ConfigError(f"{key}: not the key of {cert}") from None

    def verified(_: SSL.Connection, __: Any, error: int, depth: int, good: int) -> bool:
        verdict.asked = True
        if not good:
            verdict.problem = f"the gateway's certificate is not trusted: {why_not(error)}"
        return insecure or bool(good)

    made.set_verify(SSL.VERIFY_PEER, verified)
    return made


def failure(error: Exception) -> str:
    """Why a connection failed, in a few words; the same ones for the same cause."""
    if isinstance(error, SSL.ZeroReturnError):
        return "closed by the gateway"
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if error.args else -1
        return os.strerror(number).lower() if isinstance(number, int) and number > 0 else "closed without a goodbye"
    if isinstance(error, SSL.Error):
        reasons = error.args[0] if error.args else ()
        text = str(reasons[-1][-1]) if reasons else ""
        if alert := re.search(r"\balert (.+)", text):
            return f"the gateway refused: {alert[1]}"
        if text in ("wrong version number", "packet length too long", "record layer failure"):
            return "what answers does not speak TLS"
        return f"TLS: {text}" if text else "closed without a goodbye"
    if isinstance(error, OSError):
        return os_reason(error)
    return str(error)
