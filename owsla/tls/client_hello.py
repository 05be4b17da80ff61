"""Detection of a complete ClientHello, and refusal of connections without the help of OpenSSL. Pure.

A handshake begins only when the whole ClientHello has arrived in the socket. So arbitrary bytes, half a ClientHello, or one
that comes byte by byte do not occupy a place among the handshakes, nor the memory that OpenSSL uses for one. The length that
counts is that of the handshake message (RFC 8446, 4), not that of its first record: a message may be fragmented into records of
one byte each (RFC 8446, 5.1).
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = 5
"""Bytes of a record header: content type, version and length (RFC 8446, 5.1)."""

LONGEST: Final = 32768
"""Maximum length of a ClientHello in bytes, with the headers of its records. A usual one has a few hundred bytes, or 1,800 with
post-quantum key shares. OpenSSL accepts 131,396 bytes, and takes half a second for them if each record has one byte. The kernel
can hold 32 KB and report them as readable even with small receive buffers."""

RECORDS: Final = 2048
"""Maximum number of records of a ClientHello: enough for the longest usual one in records of one byte (OpenSSL 4 sends 1,530
bytes, with a key share of ML-KEM). Parsing a record takes a microsecond or two."""

_MESSAGE_HEADER: Final = 4
"""Bytes of a handshake message header: the type, and the length in three bytes (RFC 8446, 4)."""

_MAX_FRAGMENT: Final = 16384
"""Maximum length of an unencrypted record's fragment in bytes (RFC 8446, 5.1)."""

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SUPPORTED_GROUPS: Final = 10

_CURVES: Final = frozenset({23, 24, 25, 29, 30, 0x0200, 0x0201, 0x0202, 0x11EB, 0x11EC, 0x11ED})
"""Groups for cheap key exchange that OpenSSL supports: elliptic curves, ML-KEM, and hybrids of both."""

_FINITE_FIELDS: Final = range(0x0100, 0x0200)
"""Groups of finite fields (RFC 7919). A key exchange with ffdhe3072 takes 2 ms of CPU, with X25519 a tenth of that."""

_EXTENSION: Final = struct.Struct(">HH").unpack_from
"""Function that returns type and length of an extension (RFC 8446, 4.2)."""

_OTHER_PROTOCOLS: Final = (
    (b"PROXY ", "a PROXY protocol header"),
    (b"\r\n\r\n\0\r\nQUIT\n", "a PROXY protocol header (version 2)"),
    (b"SSH-", "an SSH client's greeting"),
    *((method + b" ", "an HTTP request") for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT")),
    (b"PRI * HTTP/2", "an HTTP/2 request"),
    (b"AMQP", "an AMQP client's greeting"),
)

_OTHER_STARTS: Final = tuple(start for start, _ in _OTHER_PROTOCOLS)


def whole_record(first: bytes) -> int:
    """Return the length of the first record with its header if it has arrived and holds a whole ClientHello; otherwise 0.

    Nearly every ClientHello is such a record. `ClientHelloScan` returns the same length for it, but takes longer.
    """
    if len(first) < HEADER + _MESSAGE_HEADER or first[0] != _HANDSHAKE or first[1] != 3 or first[HEADER] != _CLIENT_HELLO:
        return 0
    length = first[3] << 8 | first[4]
    message = _MESSAGE_HEADER + int.from_bytes(first[HEADER + 1 : HEADER + _MESSAGE_HEADER], "big")
    return HEADER + length if message <= length <= _MAX_FRAGMENT and length <= len(first) - HEADER else 0


class ClientHelloScan:
    """Parser for the records of a ClientHello that arrives in pieces. Each record is parsed once."""

    __slots__ = ("_content", "_message", "_position", "_records")

    def __init__(self) -> None:
        self._position = self._content = self._records = 0
        self._message = b""

    def needed(self, first: bytes) -> int:
        """Return the number of bytes that must have arrived before OpenSSL can proceed, as far as the first bytes show.

        The number is a lower bound as long as the rest may come in several records. A number above `LONGEST` means that the
        connection is to be refused. `first` are all bytes so far; they begin with those of the previous call.
        """
        position, content, records, message = self._position, self._content, self._records, self._message
        total = _length(message)
        while len(first) >= position + HEADER:
            # The records before this one are complete.
            self._position, self._content, self._records, self._message = position, content, records, message
            kind, major = first[position], first[position + 1]
            length = int.from_bytes(first[position + 3 : position + HEADER], "big")
            if kind != _HANDSHAKE or major != 3 or not 0 < length <= _MAX_FRAGMENT:
                return position + HEADER  # not TLS, or an unexpected record: OpenSSL refuses it at once
            if records == RECORDS:
                return LONGEST + 1
            start = position + HEADER
            if content < _MESSAGE_HEADER:
                message += first[start : start + min(length, _MESSAGE_HEADER - content)]
                total = _length(message)
            records += 1
            content += length
            position = start + length
            if message and message[0] != _CLIENT_HELLO:
                return position
            if content >= total:
                return position
            rest = position + HEADER + total - content
            if rest > LONGEST:
                return rest
        return position + HEADER + total - content if position else HEADER


def _length(message: bytes) -> int:
    """Return the length of a handshake message with its header. Before the header is complete this is a lower bound."""
    return _MESSAGE_HEADER + (int.from_bytes(message[1:], "big") if len(message) >= _MESSAGE_HEADER else 0)


def refusal(first: bytes, needed: int) -> str | None:
    """Return the reason for refusing a connection without OpenSSL, or `None` if OpenSSL is to decide.

    `needed` is the result of `ClientHelloScan.needed` for the bytes in `first`.
    """
    if first.startswith(_OTHER_STARTS):
        name = next(name for start, name in _OTHER_PROTOCOLS if first.startswith(start))
        return f"{name} instead of a ClientHello"
    if needed > LONGEST:
        return f"a ClientHello that takes more than {LONGEST} bytes or {RECORDS} records"
    return key_exchange_refusal(_message(first))


def key_exchange_refusal(message: bytes) -> str | None:
    """Return the reason for refusing a ClientHello for the groups that it supports, or `None`."""
    groups = _groups(message)
    if groups and _CURVES.isdisjoint(groups) and any(group in _FINITE_FIELDS for group in groups):
        return "key exchange with finite fields only; curves are supported"
    return None


def _message(first: bytes) -> bytes:
    """Return the handshake message in a sequence of records."""
    if whole := whole_record(first):
        return first[HEADER:whole]
    pieces = []
    position = 0
    while len(first) >= position + HEADER:
        length = int.from_bytes(first[position + 3 : position + HEADER], "big")
        pieces.append(first[position + HEADER : position + HEADER + length])
        position += HEADER + length
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _groups(message: bytes) -> tuple[int, ...]:
    """Return the supported groups of a ClientHello (RFC 8446, 4.1.2 and 4.2.7); an empty tuple if it is malformed."""
    try:
        at = 38  # after the message header, the version and the random bytes
        at += 1 + message[at]  # session id
        at += 2 + int.from_bytes(message[at : at + 2], "big")  # cipher suites
        at += 1 + message[at] + 2  # compression methods, and the length of all extensions
        while True:
            kind, length = _EXTENSION(message, at)
            at += 4
            if kind == _SUPPORTED_GROUPS:
                return struct.unpack_from(f">{(length - 2) // 2}H", message, at + 2)
            at += length
    except (IndexError, struct.error):
        return ()
