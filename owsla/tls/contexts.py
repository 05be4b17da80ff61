"""The TLS contexts of the device port: TLS 1.2 and 1.3, with forward secrecy, and without resumption."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from ..errors import ConfigError
from ..runtime.files import ReadFile
from .certificates import ServerCertificate, read_server_certificate
from .revocation import RevocationLists
from .stapling import OcspResponses, staple

_CIPHERS: Final = b"ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:!aNULL:!MD5:!DSS"
"""Cipher suites for TLS 1.2: all have forward secrecy. AEAD comes first; CBC is for small devices that have nothing newer."""

_SUITES: Final = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
"""Cipher suites for TLS 1.3, best first. A handshake hashes some forty blocks. With SHA-256, for which processors have
instructions, it takes 7 % less CPU than with the SHA-384 of OpenSSL's first choice (median of five alternating runs of 3,000).
Every device must know it (RFC 8446, 9.1)."""

_SUITES_OF_OPENSSL: Final = ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"]
"""OpenSSL's own order of those suites."""

VerifyCallback = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]


@dataclass(frozen=True, slots=True, eq=False)
class ClientVerification:
    """Authorities and revocation lists for the verification of device certificates."""

    authorities: Sequence[x509.Certificate]
    revocation: RevocationLists | None


def front_context(verify_mode: int, verify: VerifyCallback, choose: Callable[[SSL.Connection], None]) -> SSL.Context:
    """Return a context for the beginning of handshakes. It has no certificate.

    OpenSSL calls `choose` for each ClientHello, with or without a server name; it gives the connection a context that has a
    certificate (`certificate_context`). With another `verify_mode` than `SSL.VERIFY_NONE` devices are asked for a certificate,
    and `verify` is called for each certificate of their chain. Both remain those of this context.
    """
    context = _context()
    context.set_tlsext_servername_callback(choose)
    if verify_mode != SSL.VERIFY_NONE:
        context.set_verify(verify_mode, verify)
        _set_session_id(context)
    _set_ciphers(context)
    return context


def certificate_context(
    certificates: Sequence[ServerCertificate], clients: ClientVerification | None, responses: OcspResponses | None
) -> SSL.Context:
    """Return a context with server certificates, each with another type of key, for connections that began with a
    `front_context`. Raise `ConfigError` if OpenSSL refuses one of them.
    """
    context = _context()
    for certificate in certificates:
        try:
            _use(context, certificate)
        except SSL.Error as error:
            # For example a key that is too short for OpenSSL's security level.
            raise ConfigError(f"{certificate.path}: OpenSSL refuses this certificate ({_openssl_reason(error)})") from None
    if clients is not None:
        _trust(context, clients)
        _set_session_id(context)
    if responses is not None:
        context.set_ocsp_server_callback(staple, responses)
    _set_ciphers(context)
    return context


def check_server_files(cert: Path, key: Path, read: ReadFile) -> None:
    """Raise `ConfigError` if a server cannot use a certificate and a key."""
    certificate_context([read_server_certificate(cert, key, read)], None, None)


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # No session is resumed: `docs/limits.md` has the reasons, `bench/results/resumption.md` what resumption would save.
    # With OP_NO_TICKET and without a cache TLS 1.2 has no sessions. In TLS 1.3 OpenSSL would still send two tickets, 158 bytes
    # together, for sessions that are stored nowhere: a device that presents one gets a full handshake. To send no tickets
    # takes SSL_CTX_set_num_tickets(), which pyOpenSSL does not have. So `owsla.runtime.openssl` configures OpenSSL.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection then keeps no read and write buffers, which saves 34 KB for each.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _use(context: SSL.Context, certificate: ServerCertificate) -> None:
    """Add a certificate with its chain and key to a context.

    The chain of `add_extra_chain_cert` would be that of the other certificates of the context, too. Only
    `use_certificate_chain_file` gives each its own, and it takes a file.
    """
    descriptor = os.memfd_create("chain")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(each.public_bytes(Encoding.PEM) for each in certificate.chain)
        context.use_certificate_chain_file(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    context.use_privatekey(certificate.private_key)
    context.check_privatekey()


def _trust(context: SSL.Context, clients: ClientVerification) -> None:
    """Have device certificates verified that are signed by an authority, and name the authorities to devices."""
    store = context.get_cert_store()
    assert store is not None
    for authority in clients.authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
        context.add_client_ca(authority)
    if clients.revocation is not None:
        for each in clients.revocation.lists:
            store.add_crl(each.crl)
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)


def _set_session_id(context: SSL.Context) -> None:
    """Set what OpenSSL requires where client certificates are verified. With a random id for each context a session of another
    context cannot be resumed.
    """
    context.set_session_id(secrets.token_bytes(16))


def _set_ciphers(context: SSL.Context) -> None:
    context.set_tls13_ciphersuites(":".join(_suites()).encode())
    # This must be the last setting: `set_cipher_list` makes a connection to check the list, and pyOpenSSL warns of changes to
    # a context that has connections.
    context.set_cipher_list(_CIPHERS)


def _suites() -> list[str]:
    """Return the cipher suites for TLS 1.3, best first; suites in OpenSSL's configuration file (`OPENSSL_CONF`) win."""
    configured = [name for name in SSL.Connection(SSL.Context(SSL.TLS_METHOD)).get_cipher_list() if name.startswith("TLS_")]
    return _SUITES if configured == _SUITES_OF_OPENSSL else configured


def _openssl_reason(error: SSL.Error) -> str:
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(reasons[-1][-1]) if reasons else "no reason given"
