"""Parser and writer of PROXY protocol headers, versions 1 and 2. Pure.

A proxy sends the header before the first byte of the device, and it says where the device's connection comes from. The
specification is HAProxy's `doc/proxy-protocol.txt`; section numbers here are those of its edition of 2020-03-05.

The header is parsed where it is in the socket (MSG_PEEK). `parse` is called with all bytes so far, and returns how many must
have arrived before it is worth calling again (SO_RCVLOWAT):

    found = parse(first)
    if isinstance(found, ProxyHeader):
        ...  # read exactly found.length bytes; what follows is the device's
    else:
        ...  # wait for `found` bytes

Bytes that are not the beginning of a header are refused at once, and a header that is too long as soon as it gives its length.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..tls.device_name import usable_name
from .crc32c import crc32c

LONGEST: Final = 4096
"""Maximum length of a header in bytes. Load balancers send 28 to 300, or some 2 KB with a client certificate in it. nginx has
the same limit (NGX_PROXY_PROTOCOL_MAX_HEADER). Version 2 could have 65,551 bytes: more than a receive buffer needs to hold."""

LONGEST_LINE: Final = 107
"""Maximum length of a header of version 1 in bytes, with its CR LF (section 2.1)."""

SocketAddress = tuple[str, int]
"""A host, as `inet_ntop` writes it, and a port."""

# -- Version 1 ---------------------------------------------------------------------------------------------------------

_V1: Final = b"PROXY "
_END: Final = b"\r\n"

_SHORTEST: Final = len(b"PROXY UNKNOWN\r\n")
"""Length of the shortest header of any kind."""

_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?|TCP([46]) ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4}))",
    re.DOTALL,
)
"""A header of version 1 without its CR LF. 45 characters are an IPv6 address with an IPv4 address as its last four bytes."""

# -- Version 2 ---------------------------------------------------------------------------------------------------------

_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
"""Bytes before the addresses: signature, version and command, family and protocol, and the length of the rest."""

_LOCAL: Final = 0x20
_PROXY: Final = 0x21
"""The 13th byte: version 2 and the command."""

_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX: Final = 0x31
"""The 14th byte: the address family, and the protocol, a stream."""

_ADDRESSES: Final = {_TCP4: 12, _TCP6: 36, _UNIX: 216}
"""Length of the addresses in bytes. Headers of other families are accepted as of an unknown one, as section 2.2 demands."""

_MAX_FAMILY: Final = 3
_MAX_PROTOCOL: Final = 2

# Types of TLVs (section 2.2). Others are skipped.
_TYPE_CRC32C: Final = 0x03
_TYPE_SSL: Final = 0x20
_SUBTYPE_SSL_VERSION: Final = 0x21
_SUBTYPE_SSL_CN: Final = 0x22

_TLV: Final = 3
"""Bytes of the type and the length of a TLV."""

_SSL_FIXED: Final = 5
"""Bytes before the TLVs in PP2_TYPE_SSL: flags, and the result of the verification."""

# Flags of PP2_TYPE_SSL (section 2.2.6).
_CLIENT_SSL: Final = 0x01
_CLIENT_CERT_CONN: Final = 0x02
_CLIENT_CERT_SESS: Final = 0x04

_LONGEST_VERSION: Final = 16
"""Maximum length of the name of a TLS version in bytes. HAProxy sends OpenSSL's, such as `TLSv1.3`."""

_MAPPED: Final = "::ffff:"


class BadProxyHeader(Exception):
    """The bytes are not a PROXY protocol header: the connection is to be closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Contents of a PROXY protocol header."""

    length: int
    """Length of the header in bytes."""
    source: SocketAddress | None = None
    """Address of the device; `None` if the header does not say. An IPv4 address in IPv6 form is given as IPv4."""
    local: bool = False
    """True if the proxy has made the connection for itself, such as for a health check."""
    common_name: str | None = None
    """Common name of the client certificate that the proxy has verified; `None` without one, or if it cannot be a device id."""
    tls_version: str = ""
    """Name of the TLS version between the device and the proxy, or an empty string."""


def parse(first: bytes) -> ProxyHeader | int:
    """Return the header that the bytes begin with, or how many bytes must have arrived before that can be said.

    The number is greater than that of `first`, and never greater than that of a whole header that begins with `first`. Raise
    `BadProxyHeader` if the bytes are not the beginning of a header.
    """
    if first[:1] == b"P":
        return _parse_v1(first)
    if first[:1] == b"\r":
        return _parse_v2(first)
    if first:
        raise BadProxyHeader(_instead(first))
    return _SHORTEST


def _instead(first: bytes) -> str:
    """Return the reason for bytes that are not the beginning of a header."""
    if first[:2] == b"\x16\x03":
        return "a ClientHello without a PROXY protocol header before it"
    return f"no PROXY protocol header, but {first[:16]!r}"


def _parse_v1(first: bytes) -> ProxyHeader | int:
    start = first[: len(_V1)]
    if not _V1.startswith(start):
        raise BadProxyHeader(_instead(first))
    end = first.find(_END, 0, LONGEST_LINE)
    if end < 0:
        needed = max(_SHORTEST, len(first) + (1 if first.endswith(b"\r") else 2))
        if needed > LONGEST_LINE:
            raise BadProxyHeader(f"a PROXY protocol header without its end in {LONGEST_LINE} bytes")
        return needed
    match = _LINE.fullmatch(first, 0, end)
    if match is None:
        raise BadProxyHeader(f"malformed PROXY protocol header {first[:end]!r}")
    length = end + len(_END)
    version, source, destination, port, destination_port = match.groups()
    if version is None:
        return ProxyHeader(length)
    family = socket.AF_INET if version == b"4" else socket.AF_INET6
    try:
        packed = socket.inet_pton(family, source.decode("ascii"))
        socket.inet_pton(family, destination.decode("ascii"))
    except OSError:
        raise BadProxyHeader(f"malformed address in PROXY protocol header {first[:end]!r}") from None
    if int(port) > 0xFFFF or int(destination_port) > 0xFFFF:
        raise BadProxyHeader(f"a port above 65535 in PROXY protocol header {first[:end]!r}")
    return ProxyHeader(length, (_host(family, packed), int(port)))


def _parse_v2(first: bytes) -> ProxyHeader | int:
    if not _V2.startswith(first[: len(_V2)]):
        raise BadProxyHeader(_instead(first))
    if len(first) > len(_V2) and first[len(_V2)] not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"unknown version or command 0x{first[len(_V2)]:02x} in a PROXY protocol header")
    if len(first) < _FIXED:
        return _FIXED
    command, family = first[len(_V2)], first[len(_V2) + 1]
    rest = int.from_bytes(first[_FIXED - 2 : _FIXED], "big")
    length = _FIXED + rest
    if length > LONGEST:
        raise BadProxyHeader(f"a PROXY protocol header of {length} bytes; at most {LONGEST} are accepted")
    if command == _PROXY and (family >> 4 > _MAX_FAMILY or family & 0x0F > _MAX_PROTOCOL):
        raise BadProxyHeader(f"unknown address family or protocol 0x{family:02x} in a PROXY protocol header")
    if len(first) < length:
        return length
    if command == _LOCAL:
        # The rest is to be skipped, whatever it is. HAProxy sends this for a device, too, if it came over a unix socket.
        return ProxyHeader(length, local=True)
    addresses = _ADDRESSES.get(family)
    if addresses is None:
        return ProxyHeader(length)
    if rest < addresses:
        raise BadProxyHeader(f"a PROXY protocol header of {length} bytes, which is too short for its addresses")
    common_name, tls_version = _parse_tlvs(first[:length], _FIXED + addresses)
    return ProxyHeader(length, _source(family, first), False, common_name, tls_version)


def _source(family: int, header: bytes) -> SocketAddress | None:
    """Return the source address of a header of version 2."""
    if family == _TCP4:
        packed, _, port = struct.unpack_from(">4s4sH", header, _FIXED)
        return _host(socket.AF_INET, packed), port
    if family == _TCP6:
        packed, _, port = struct.unpack_from(">16s16sH", header, _FIXED)
        return _host(socket.AF_INET6, packed), port
    return None


def _host(family: int, packed: bytes) -> str:
    # HAProxy sends IPv4 addresses in IPv6 form if the other address of the connection is an IPv6 address.
    host = socket.inet_ntop(family, packed)
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def _parse_tlvs(header: bytes, start: int) -> tuple[str | None, str]:
    """Check the TLVs of a header, which begin at `start`. Return the common name and the TLS version that they give."""
    found: dict[int, tuple[int, bytes]] = {}
    for kind, at, value in _tlvs(header, start):
        if kind in (_TYPE_CRC32C, _TYPE_SSL):
            if kind in found:
                raise BadProxyHeader(f"two TLVs of type 0x{kind:02x} in a PROXY protocol header")
            found[kind] = at, value
    if _TYPE_CRC32C in found:
        at, value = found[_TYPE_CRC32C]
        if len(value) != 4:
            raise BadProxyHeader(f"a checksum of {len(value)} bytes in a PROXY protocol header")
        if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value, "big"):
            raise BadProxyHeader("a PROXY protocol header with a wrong checksum")
    return _parse_ssl(found[_TYPE_SSL][1]) if _TYPE_SSL in found else (None, "")


def _parse_ssl(value: bytes) -> tuple[str | None, str]:
    """Return the common name and the TLS version of a PP2_TYPE_SSL."""
    if len(value) < _SSL_FIXED:
        raise BadProxyHeader(f"a PP2_TYPE_SSL of {len(value)} bytes in a PROXY protocol header")
    flags = value[0]
    # The result of the verification is 0 also without a certificate, so the flags decide first. In a resumed session the
    # certificate was presented when the session was made.
    verified = value[1:_SSL_FIXED] == bytes(4) and flags & (_CLIENT_CERT_CONN | _CLIENT_CERT_SESS)
    names: dict[int, bytes] = {}
    for kind, _, content in _tlvs(value, _SSL_FIXED):
        names.setdefault(kind, content)
    if not flags & _CLIENT_SSL:
        return None, ""
    try:
        name = usable_name(names.get(_SUBTYPE_SSL_CN, b"").decode()) if verified else None
    except UnicodeDecodeError:
        name = None
    version = names.get(_SUBTYPE_SSL_VERSION, b"").decode("latin-1")
    return name, version if version.isascii() and version.isprintable() and len(version) <= _LONGEST_VERSION else ""


def _tlvs(data: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, position of the value, and value of each TLV."""
    while at < len(data):
        start = at + _TLV
        end = start + int.from_bytes(data[at + 1 : start], "big")
        if start > len(data) or end > len(data):
            raise BadProxyHeader("a PROXY protocol header with a TLV that is longer than the header")
        yield data[at], start, data[start:end]
        at = end


# -- Writing -----------------------------------------------------------------------------------------------------------


def write_v1(source: SocketAddress | None, destination: SocketAddress) -> bytes:
    """Return a header of version 1. Both addresses are IPv4, or both are IPv6; with `None` the header says UNKNOWN."""
    if source is None:
        return b"PROXY UNKNOWN\r\n"
    kind = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {kind} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode("ascii")


def write_v2(
    source: SocketAddress | None,
    destination: SocketAddress,
    *,
    common_name: str | None = None,
    tls_version: str = "",
    tlvs: Iterable[tuple[int, bytes]] = (),
    checksum: bool = False,
) -> bytes:
    """Return a header of version 2. Both addresses are IPv4, or both are IPv6; with `None` the command is LOCAL.

    With a common name the header says that the device has presented a certificate with this name, and that it was verified.
    `tlvs` are types and values that are written as they are.
    """
    if source is None:
        command, family, addresses = _LOCAL, 0, b""
    else:
        sixes = ":" in source[0]
        command, family = _PROXY, _TCP6 if sixes else _TCP4
        hosts = [socket.inet_pton(socket.AF_INET6 if sixes else socket.AF_INET, host) for host, _ in (source, destination)]
        addresses = b"".join(hosts) + struct.pack(">HH", source[1], destination[1])
    values = [_tlv(kind, value) for kind, value in tlvs]
    if common_name is not None or tls_version:
        flags = _CLIENT_SSL | (_CLIENT_CERT_CONN | _CLIENT_CERT_SESS if common_name is not None else 0)
        ssl = struct.pack(">BI", flags, 0 if common_name is not None else 1)
        if tls_version:
            ssl += _tlv(_SUBTYPE_SSL_VERSION, tls_version.encode("ascii"))
        if common_name is not None:
            ssl += _tlv(_SUBTYPE_SSL_CN, common_name.encode())
        values.append(_tlv(_TYPE_SSL, ssl))
    if checksum:
        values.append(_tlv(_TYPE_CRC32C, bytes(4)))
    rest = addresses + b"".join(values)
    header = _V2 + struct.pack(">BBH", command, family, len(rest)) + rest
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value
