"""The TLS context of the device port."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.logger import Logger

from ..errors import ConfigError
from ..runtime.files import ReadFile, read_file
from .certificates import read_certificates, read_server_pair
from .refusal import certificate_refusal
from .verification import explain_verify_error

_log = Logger()

_CIPHERS: Final = b"ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:!aNULL:!MD5:!DSS"
"""Cipher suites for TLS 1.2: all have forward secrecy. AEAD comes first; CBC is for small devices that have nothing newer."""

_SUITES: Final = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
"""Cipher suites for TLS 1.3, best first. A handshake hashes some forty blocks. With SHA-256, for which processors have
instructions, it takes 7 % less CPU than with the SHA-384 of OpenSSL's first choice (median of five alternating runs of 3,000).
Every device must know it (RFC 8446, 9.1)."""

_SUITES_OF_OPENSSL: Final = ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"]
"""OpenSSL's own order of those suites."""


def server_context(
    cert: Path, key: Path, *, client_ca: Path | None, client_cert: str, read: ReadFile = read_file
) -> SSL.Context:
    """Return the context for devices' connections: TLS 1.2 and 1.3. `cert` has the server's certificate, then its chain.

    With `client_ca` devices are asked for a certificate that is signed by one of its authorities. With `client_cert` "require"
    a device without one is refused; with "optional" it is accepted. An expired server certificate only causes a warning in the
    log, since each device decides whether it accepts the certificate.
    """
    context, certificates = _context(cert, key, read)
    if client_ca is not None:
        _verify_devices(context, read_certificates(client_ca, read), required=client_cert == "require")
    _set_ciphers(context)
    expiry = certificates[0].not_valid_after_utc
    if expiry <= datetime.now(UTC):
        _log.warn("The certificate in {path} expired on {expiry}: renew it", path=str(cert), expiry=f"{expiry:%Y-%m-%d}")
    return context


def check_server_files(cert: Path, key: Path, read: ReadFile = read_file) -> None:
    """Raise the `ConfigError` that `server_context` would raise for these files. Log nothing."""
    _context(cert, key, read)


def _context(cert: Path, key: Path, read: ReadFile) -> tuple[SSL.Context, list[x509.Certificate]]:
    certificates, private_key = read_server_pair(cert, key, read)
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    # No session is resumed: `docs/operations.md` has the reasons, `bench/results/resumption.md` what resumption would save.
    # With OP_NO_TICKET and without a cache TLS 1.2 has no sessions. In TLS 1.3 OpenSSL still sends two tickets, 158 bytes
    # together, for sessions that are stored nowhere: a device that presents one gets a full handshake. To send no tickets
    # takes SSL_CTX_set_num_tickets(), which pyOpenSSL does not have.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection then keeps no read and write buffers, which saves 34 KB for each.
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
    return context, certificates


def _verify_devices(context: SSL.Context, authorities: list[x509.Certificate], *, required: bool) -> None:
    """Ask devices for certificates that are signed by one of the authorities."""
    store = context.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0), _note_verify_error)
    # OpenSSL requires a session id context where client certificates are verified. With a random one for each context a
    # session of another context cannot be resumed.
    context.set_session_id(secrets.token_bytes(16))


def _note_verify_error(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, trusted: int) -> bool:
    """Return OpenSSL's own decision. If it is a refusal, note the reason on the connection."""
    if not trusted:
        whose = "the device's certificate" if depth == 0 else "an authority's certificate"
        certificate_refusal(f"{whose} is refused: {explain_verify_error(error)}", certificate).note(connection)
    return bool(trusted)


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
