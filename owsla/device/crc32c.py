"""CRC32C, the checksum of PROXY protocol headers and of SCTP (RFC 9260, appendix A). Pure.

There is no dependency for it: the packages that compute it (`crc32c`, `google-crc32c`) are compiled extensions, and a header of
100 bytes takes some 10 µs here, once for each connection.
"""

from __future__ import annotations

from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
"""The polynomial of Castagnoli, with its bits reversed."""


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE: Final = tuple(map(_entry, range(256)))


def crc32c(data: bytes) -> int:
    """Return the CRC32C of the data."""
    table = _TABLE
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
