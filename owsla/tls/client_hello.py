"""What a connection says first: whether its ClientHello is there as a whole, and whether it is refused without OpenSSL. Pure.

A handshake begins when the whole ClientHello is there. So a few bytes of nonsense, half a hello, or one that comes byte by byte
hold no place among the handshakes, and none of the memory that OpenSSL has for one. What counts is the length of the handshake
message (RFC 8446, 4), not that of its first record: a message may be cut into records of a single byte.
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = 5
"""Bytes before a record's content: its type, the version, the length (RFC 8446, 5.1)."""

LONGEST: Final = 32768
"""Bytes of a hello that are waited for at most, its records' headers among them. A hello has a few hundred, or 1,800 with keys
that withstand quantum computers. OpenSSL would take 131,396, and in records of one byte that takes it half a second. The system
wakes us for 32 KB even where receive buffers are small."""

RECORDS: Final = 2048
"""Records of a hello at most: enough for the longest usual one, byte by byte (OpenSSL 4 says 1,530 bytes, with a key share
of ML-KEM). To look at a record takes a microsecond or two."""

_MESSAGE: Final = 4
"""Bytes before a handshake message's content: its type, and the length in three bytes."""

_RECORD: Final = 16384
"""The most content of a record in the clear, in bytes."""

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SUPPORTED_GROUPS: Final = 10

_CURVES: Final = frozenset({23, 24, 25, 29, 30, 0x0200, 0x0201, 0x0202, 0x11EB, 0x11EC, 0x11ED})
"""Groups for key exchange that OpenSSL offers and that cost little: elliptic curves, ML-KEM, and both together."""

_FINITE_FIELDS: Final = range(0x0100, 0x0200)
"""Groups of finite fields (RFC 7919). An exchange with ffdhe3072 takes 2 ms of CPU, and one with X25519 a tenth of that."""

_OTHERS: Final = (
    (b"PROXY ", "a PROXY protocol header"),
    (b"\r\n\r\n\0\r\nQUIT\n", "a PROXY protocol header (version 2)"),
    (b"SSH-", "an SSH client's greeting"),
    *((method + b" ", "an HTTP request") for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT")),
    (b"PRI * HTTP/2", "an HTTP/2 request"),
    (b"AMQP", "an AMQP client's greeting"),
)


class Scan:
    """The position in a hello's records up to which they were looked at: each is looked at once, however often more comes."""

    __slots__ = ("_content", "_message", "_position", "_records")

    def __init__(self) -> None:
        self._position = self._content = self._records = 0
        self._message = b""

    def needed(self, first: bytes) -> int:
        """Return how many bytes have to be there before OpenSSL can do something, as far as the first ones show.

        It is a lower bound while the rest may come in several records. More than `LONGEST` is not to be waited for. `first`
        begins with what it was in the last call.
        """
        position, content, records, message = self._position, self._content, self._records, self._message
        total = _length(message)
        while len(first) >= position + HEADER:
            # The records before this one are there as a whole.
            self._position, self._content, self._records, self._message = position, content, records, message
            kind, major = first[position], first[position + 1]
            length = int.from_bytes(first[position + 3 : position + HEADER], "big")
            if kind != _HANDSHAKE or major != 3 or not 0 < length <= _RECORD:
                return position + HEADER  # not TLS, or another record than is expected: OpenSSL says so at once
            if records == RECORDS:
                return LONGEST + 1
            start = position + HEADER
            if content < _MESSAGE:
                message += first[start : start + min(length, _MESSAGE - content)]
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
    """Return the length of a handshake message, of which the first bytes are there; a lower bound before they all are."""
    return _MESSAGE + (int.from_bytes(message[1:], "big") if len(message) >= _MESSAGE else 0)


def refusal(first: bytes, needed: int) -> str | None:
    """Return why this, as much as is needed of it, is refused without asking OpenSSL; `None`: it is not.

    `needed` is what `Scan.needed` says of it.
    """
    for start, name in _OTHERS:
        if first.startswith(start):
            return f"{name} instead of a ClientHello"
    if needed > LONGEST:
        return f"a ClientHello that takes more than {LONGEST} bytes or {RECORDS} records"
    groups = _groups(_message(first))
    if groups and _CURVES.isdisjoint(groups) and any(group in _FINITE_FIELDS for group in groups):
        return "key exchange with finite fields only; curves are supported"
    return None


def _message(first: bytes) -> bytes:
    """Return the handshake message in these records."""
    pieces = []
    position = 0
    while len(first) >= position + HEADER:
        length = int.from_bytes(first[position + 3 : position + HEADER], "big")
        pieces.append(first[position + HEADER : position + HEADER + length])
        position += HEADER + length
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _groups(message: bytes) -> tuple[int, ...]:
    """Return the supported groups of a ClientHello (RFC 8446, 4.1.2 and 4.2.7); none where it is malformed, or has none."""
    try:
        at = 38  # behind the message's header, the version and the random number
        at += 1 + message[at]  # session id
        at += 2 + int.from_bytes(message[at : at + 2], "big")  # cipher suites
        at += 1 + message[at] + 2  # compression methods, and the length of all extensions
        while True:
            kind, length = struct.unpack_from(">HH", message, at)
            at += 4
            if kind == _SUPPORTED_GROUPS:
                return struct.unpack_from(f">{(length - 2) // 2}H", message, at + 2)
            at += length
    except (IndexError, struct.error):
        return ()
