"""PROXY protocol headers. Twisted's parsers, and writers of this file's own, are the oracles."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.crc32c import crc32c
from owsla.device.proxy_header import LONGEST, BadProxyHeader, ProxyHeader, parse, write_v1, write_v2

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
FOUR = ("192.0.2.7", 50123)
SIX = ("2001:db8::7", 50124)
DOOR4 = ("198.51.100.1", 8883)
DOOR6 = ("2001:db8:1::1", 8883)

ADDRESSES4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + (50123).to_bytes(2, "big") + (8883).to_bytes(2, "big")


def tlv(kind: int, value: bytes) -> bytes:
    """Return a TLV."""
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def v2(rest: bytes = ADDRESSES4, command: int = 0x21, family: int = 0x11) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


def ssl(flags: int = 7, verify: int = 0, tlvs: bytes = b"") -> bytes:
    """Return a header of version 2 with a PP2_TYPE_SSL."""
    return v2(ADDRESSES4 + tlv(0x20, bytes([flags]) + verify.to_bytes(4, "big") + tlvs))


def header(first: bytes) -> ProxyHeader:
    """Return the header that the bytes begin with, which must be complete."""
    found = parse(first)
    assert isinstance(found, ProxyHeader), found
    return found


def plain_crc32c(data: bytes) -> int:
    """Return the CRC32C, computed bit by bit as RFC 3720 defines it."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 * (remainder & 1))
    return remainder ^ 0xFFFFFFFF


ports = st.integers(0, 65535)
fours = st.tuples(st.ip_addresses(v=4).map(str), ports)
sixes = st.tuples(st.ip_addresses(v=6).map(str).filter(lambda host: not host.startswith("::ffff:")), ports)
pairs = st.one_of(st.tuples(fours, fours), st.tuples(sixes, sixes))
kinds = st.integers(0, 255).filter(lambda kind: kind not in (0x03, 0x20))
tlvs = st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=5)
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=60)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Return a valid header."""
    source, destination = draw(pairs)
    kind = draw(st.sampled_from(["1", "unknown", "2", "local", "other"]))
    if kind == "1":
        return write_v1(source, destination)
    if kind == "unknown":
        junk = draw(st.binary(max_size=91).filter(lambda junk: b"\r\n" not in junk + b"\r"))
        return b"PROXY UNKNOWN " + junk + b"\r\n"
    if kind == "local":
        return v2(draw(st.binary(max_size=300)), 0x20, draw(st.integers(0, 255)))
    if kind == "other":
        return v2(draw(st.binary(max_size=300)), 0x21, draw(st.sampled_from([0x00, 0x01, 0x10, 0x12, 0x20, 0x22, 0x30, 0x32])))
    name = draw(st.none() | names)
    return write_v2(source, destination, common_name=name, tlvs=draw(tlvs), checksum=draw(st.booleans()))


class PiecesTests(SynchronousTestCase):
    @given(headers(), st.binary(max_size=50))
    @example(b"PROXY UNKNOWN\r\n", b"")
    @example(b"PROXY UNKNOWN " + b"\r" * 91 + b"\r\n", b"\n")
    @example(b"PROXY TCP6 :: :: 0 0\r\n", b"")
    def test_prefixes(self, whole: bytes, rest: bytes) -> None:
        """Each beginning of a header needs more bytes, and never more than the header has. What follows does not matter."""
        for size in range(len(whole)):
            needed = parse(whole[:size])
            assert isinstance(needed, int), (size, needed)
            self.assertTrue(size < needed <= len(whole), (size, needed))
        self.assertEqual(header(whole).length, len(whole))
        self.assertEqual(parse(whole + rest), parse(whole))

    @given(headers())
    def test_few_calls(self, whole: bytes) -> None:
        """A header of version 2 in pieces is parsed at its first byte, when its length is known, and when it is complete."""
        needed, calls = 1, 0
        while isinstance(found := parse(whole[:needed]), int):
            needed = found
            calls += 1
        if whole.startswith(SIGNATURE):
            self.assertLessEqual(calls, 2)

    @given(st.one_of(st.binary(max_size=200), st.binary().map(b"PROXY ".__add__), st.binary().map(SIGNATURE.__add__)))
    def test_random_bytes(self, first: bytes) -> None:
        """Arbitrary bytes raise nothing but `BadProxyHeader`."""
        try:
            found = parse(first)
        except BadProxyHeader as error:
            self.assertTrue(error.reason.isprintable(), error.reason)
            return
        if isinstance(found, int):
            self.assertTrue(len(first) < found <= LONGEST)
        else:
            self.assertTrue(0 < found.length <= len(first))

    @given(headers(), st.data())
    def test_flipped_bytes(self, whole: bytes, data: st.DataObject) -> None:
        """A header with wrong bytes in it raises nothing but `BadProxyHeader`."""
        changed = bytearray(whole)
        for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            changed[at] = data.draw(st.integers(0, 255))
        try:
            parse(bytes(changed))
        except BadProxyHeader:
            pass


class Version1Tests(SynchronousTestCase):
    def refused(self, first: bytes) -> str:
        """Return the reason for which the bytes are refused."""
        return str(self.assertRaises(BadProxyHeader, parse, first).reason)

    def test_tcp4(self) -> None:
        """The source address of an IPv4 header is the device's."""
        first = b"PROXY TCP4 192.0.2.7 198.51.100.1 50123 8883\r\n"
        self.assertEqual(parse(first + b"\x16\x03\x01"), ProxyHeader(len(first), FOUR))

    def test_tcp6(self) -> None:
        """The source address of an IPv6 header is the device's, in its canonical form."""
        first = b"PROXY TCP6 2001:0DB8:0:0::7 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 0\r\n"
        self.assertEqual(parse(first), ProxyHeader(len(first), ("2001:db8::7", 65535)))
        first = b"PROXY TCP6 ::ffff:192.0.2.7 :: 1 2\r\n"
        self.assertEqual(parse(first), ProxyHeader(len(first), ("192.0.2.7", 1)))

    def test_unknown(self) -> None:
        """An unknown source is that of the connection. Whatever is in the rest of the line is ignored, up to 107 bytes."""
        for first in (b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN \xff\0\r \n\r\n", b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n"):
            self.assertEqual(parse(first), ProxyHeader(len(first)))

    def test_too_long(self) -> None:
        """A line whose end is not within 107 bytes is refused as soon as that is certain."""
        self.assertEqual(parse(b"PROXY UNKNOWN " + b"f" * 91), 107)
        self.assertEqual(self.refused(b"PROXY UNKNOWN " + b"f" * 92), "a PROXY protocol header without its end in 107 bytes")
        self.refused(b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n")

    def test_malformed(self) -> None:
        """A line that is not exactly as the specification says is refused, with the line in the reason."""
        good = "TCP4 192.0.2.7 198.51.100.1 50123 8883"
        self.assertIsInstance(parse(f"PROXY {good}\r\n".encode()), ProxyHeader)
        for bad in (
            "TCP4  192.0.2.7 198.51.100.1 50123 8883",
            good + " ",
            "TCP4 192.0.2.07 198.51.100.1 50123 8883",
            "TCP4 192.0.2 198.51.100.1 50123 8883",
            "TCP4 192.0.2.256 198.51.100.1 50123 8883",
            "TCP4 192.0.2.7 198.51.100 50123 8883",
            "TCP4 192.0.2.7 198.51.100.1 050123 8883",
            "TCP4 192.0.2.7 198.51.100.1 65536 8883",
            "TCP4 192.0.2.7 198.51.100.1 50123 99999",
            "TCP4 192.0.2.7 198.51.100.1 -1 8883",
            "TCP4 192.0.2.7 198.51.100.1 50123",
            "TCP4 2001:db8::7 2001:db8::8 50123 8883",
            "TCP6 192.0.2.7 198.51.100.1 50123 8883",
            "TCP6 fe80::1%eth0 fe80::2 50123 8883",
            "TCP6 1::2::3 :: 50123 8883",
            "tcp4 192.0.2.7 198.51.100.1 50123 8883",
            "UDP4 192.0.2.7 198.51.100.1 50123 8883",
            "TCP4 192.0.2.7 198.51.100.1 50123\u0663 8883",
            "UNKNOWN4",
            "",
        ):
            self.assertIn("PROXY protocol header b'PROXY ", self.refused(f"PROXY {bad}\r\n".encode()))

    def test_line_end(self) -> None:
        """A single CR or LF does not end the line."""
        for end in (b"\n", b"\r", b"\n\r"):
            first = b"PROXY TCP4 192.0.2.7 198.51.100.1 50123 8883" + end
            self.assertIsInstance(parse(first), int)
            self.refused(first + b"GET / HTTP/1.0\r\n")

    @given(pairs)
    def test_writer(self, pair: tuple[tuple[str, int], tuple[str, int]]) -> None:
        """Headers that are written here are read here, and by Twisted."""
        source, destination = pair
        first = write_v1(source, destination)
        self.assertEqual(parse(first), ProxyHeader(len(first), source))
        info, rest = V1Parser().feed(first + b"rest")
        assert info is not None
        self.assertEqual(rest, b"rest")
        for theirs, ours in ((info.source, source), (info.destination, destination)):
            assert isinstance(theirs, IPv4Address | IPv6Address)
            self.assertEqual((theirs.host, theirs.port), ours)

    def test_writer_unknown(self) -> None:
        """Without a source address the header says UNKNOWN."""
        self.assertEqual(write_v1(None, DOOR4), b"PROXY UNKNOWN\r\n")


class Version2Tests(SynchronousTestCase):
    def refused(self, first: bytes) -> str:
        """Return the reason for which the bytes are refused."""
        return str(self.assertRaises(BadProxyHeader, parse, first).reason)

    def test_tcp4(self) -> None:
        """The source address of an IPv4 header is the device's."""
        self.assertEqual(parse(v2() + b"\x16\x03\x01"), ProxyHeader(28, FOUR))

    def test_tcp6(self) -> None:
        """The source address of an IPv6 header is the device's. An IPv4 address in IPv6 form is an IPv4 address."""
        for source, host in (("2001:db8::7", "2001:db8::7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("::fffe:0:1", "::fffe:0:1")):
            packed = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("2001:db8::1").packed
            first = v2(packed + struct.pack(">HH", 50123, 8883), family=0x21)
            self.assertEqual(parse(first), ProxyHeader(52, (host, 50123)))

    def test_local(self) -> None:
        """A connection of the proxy's own has no source address. Whatever is in its header is skipped, by its length."""
        for rest in (b"", ADDRESSES4, ADDRESSES4 + tlv(3, bytes(4)), bytes(216), b"\xff" * 7):
            for family in (0x00, 0x11, 0xFF):
                self.assertEqual(parse(v2(rest, 0x20, family)), ProxyHeader(16 + len(rest), local=True))

    def test_other_families(self) -> None:
        """A connection of an unknown kind, or over UDP, is accepted without a source address, as the specification says."""
        for family in (0x00, 0x01, 0x02, 0x10, 0x12, 0x20, 0x22, 0x30, 0x32):
            self.assertEqual(parse(v2(b"\xff" * 7, 0x21, family)), ProxyHeader(23))

    def test_unix(self) -> None:
        """A connection over a unix socket has no source address, and may have TLVs."""
        sub = tlv(0x21, b"TLSv1.3") + tlv(0x22, b"meter-7")
        first = v2(bytes(216) + tlv(0x20, b"\x07" + bytes(4) + sub), family=0x31)
        self.assertEqual(parse(first), ProxyHeader(len(first), None, False, "meter-7", "TLSv1.3"))

    def test_refused(self) -> None:
        """Versions, commands, families and protocols that the specification does not have are refused."""
        for command in (0x00, 0x01, 0x11, 0x22, 0x2F, 0x31, 0xFF):
            self.assertEqual(
                self.refused(v2(command=command)[:13]),
                f"unknown version or command 0x{command:02x} in a PROXY protocol header",
            )
        for family in (0x13, 0x1F, 0x23, 0x40, 0x41, 0xFF):
            self.assertEqual(
                self.refused(v2(family=family)[:16]),
                f"unknown address family or protocol 0x{family:02x} in a PROXY protocol header",
            )

    def test_too_short(self) -> None:
        """A header without room for its addresses is refused."""
        for family, size in ((0x11, 12), (0x21, 36), (0x31, 216)):
            self.assertIsInstance(parse(v2(bytes(size), family=family)), ProxyHeader)
            self.assertIn("too short", self.refused(v2(bytes(size - 1), family=family)))

    def test_too_long(self) -> None:
        """A header of more than 4,096 bytes is refused as soon as it gives its length."""
        room = LONGEST - 16 - len(ADDRESSES4) - 3
        self.assertEqual(parse(v2(ADDRESSES4 + tlv(4, bytes(room)))[:16]), LONGEST)
        self.assertEqual(parse(v2(ADDRESSES4 + tlv(4, bytes(room)))), ProxyHeader(LONGEST, FOUR))
        self.assertEqual(
            self.refused(v2(ADDRESSES4 + tlv(4, bytes(room + 1)))[:16]),
            "a PROXY protocol header of 4097 bytes; at most 4096 are accepted",
        )
        self.refused(SIGNATURE + b"\x20\x00\xff\xff")

    def test_tlvs(self) -> None:
        """Unknown TLVs are skipped by their length; one that is longer than the header is refused."""
        skipped = tlv(0x01, b"h2") + tlv(0x02, b"example.org") + tlv(0x04, b"") + tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9")
        self.assertEqual(parse(v2(ADDRESSES4 + skipped)), ProxyHeader(28 + len(skipped), FOUR))
        for bad in (b"\x04", b"\x04\x00", b"\x04\x00\x01", b"\x04\xff\xff" + bytes(40), skipped + b"\x04"):
            self.assertIn("a TLV that is longer than the header", self.refused(v2(ADDRESSES4 + bad)))

    @given(pairs, tlvs, st.booleans())
    def test_writer(
        self, pair: tuple[tuple[str, int], tuple[str, int]], values: list[tuple[int, bytes]], checksum: bool
    ) -> None:
        """Headers that are written here are read here, and by Twisted."""
        source, destination = pair
        first = write_v2(source, destination, tlvs=values, checksum=checksum)
        self.assertEqual(parse(first), ProxyHeader(len(first), source))
        info, rest = V2Parser().feed(first + b"rest")
        assert info is not None
        self.assertEqual(rest, b"rest")
        for theirs, ours in ((info.source, source), (info.destination, destination)):
            assert isinstance(theirs, IPv4Address | IPv6Address)
            self.assertEqual((ipaddress.ip_address(theirs.host), theirs.port), (ipaddress.ip_address(ours[0]), ours[1]))

    def test_writer_bytes(self) -> None:
        """A header is written as the specification says, byte by byte."""
        self.assertEqual(write_v2(FOUR, DOOR4), v2())
        self.assertEqual(write_v2(None, DOOR4), v2(b"", 0x20, 0x00))
        sub = tlv(0x21, b"TLSv1.2") + tlv(0x22, "Zähler".encode())
        self.assertEqual(
            write_v2(FOUR, DOOR4, common_name="Zähler", tls_version="TLSv1.2", tlvs=[(4, b"...")]),
            v2(ADDRESSES4 + tlv(4, b"...") + tlv(0x20, b"\x07" + bytes(4) + sub)),
        )
        self.assertEqual(write_v2(SIX, DOOR6)[:16], SIGNATURE + b"\x21\x21\x00\x24")


class ChecksumTests(SynchronousTestCase):
    def refused(self, first: bytes) -> str:
        """Return the reason for which the bytes are refused."""
        return str(self.assertRaises(BadProxyHeader, parse, first).reason)

    def signed(self, before: bytes = b"", after: bytes = b"") -> bytes:
        """Return a header with a checksum between TLVs."""
        zero = v2(ADDRESSES4 + before + tlv(3, bytes(4)) + after)
        at = len(zero) - len(after) - 4
        return zero[:at] + plain_crc32c(zero).to_bytes(4, "big") + zero[at + 4 :]

    def test_vectors(self) -> None:
        """The checksums are those of RFC 3720, appendix B.4."""
        for data, checksum in (
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(range(31, -1, -1)), 0x113FDB5C),
            (b"123456789", 0xE3069283),
        ):
            self.assertEqual(crc32c(data), checksum)

    @given(st.binary())
    def test_bit_by_bit(self, data: bytes) -> None:
        """The checksum is that which is computed bit by bit."""
        self.assertEqual(crc32c(data), plain_crc32c(data))

    def test_health_check_of_aws(self) -> None:
        """The health check of an AWS Network Load Balancer is one of the proxy's own, and its checksum is as computed here."""
        start = bytes.fromhex("0d0a0d0a000d0a515549540a 20110054 030004bce5951f 04004a")  # captured, kubernetes#57250
        first = start + bytes(0x4A)
        self.assertEqual(parse(first), ProxyHeader(100, local=True))
        self.assertEqual(crc32c(first[:19] + bytes(4) + first[23:]), 0xBCE5951F)

    def test_checked(self) -> None:
        """A header with its checksum is accepted wherever the checksum is, and refused if any other byte has changed."""
        other = tlv(4, b"padding")
        for first in (self.signed(), self.signed(other), self.signed(after=other), self.signed(other, other)):
            self.assertEqual(parse(first), ProxyHeader(len(first), FOUR))
            for at in range(16, len(first)):
                if first[at : at + 3] != b"\x03\0\x04":  # with another type it is no checksum
                    self.refused(first[:at] + bytes([first[at] ^ 0x10]) + first[at + 1 :])
            wrong = bytearray(first)
            wrong[17] ^= 1
            self.assertEqual(self.refused(bytes(wrong)), "a PROXY protocol header with a wrong checksum")

    def test_malformed(self) -> None:
        """A checksum of another length, and two of them, are refused."""
        self.assertEqual(self.refused(v2(ADDRESSES4 + tlv(3, b"12345"))), "a checksum of 5 bytes in a PROXY protocol header")
        self.assertEqual(
            self.refused(v2(ADDRESSES4 + tlv(3, bytes(4)) * 2)), "two TLVs of type 0x03 in a PROXY protocol header"
        )


class ClientCertificateTests(SynchronousTestCase):
    CN = tlv(0x22, b"meter-7")

    def name(self, first: bytes) -> str | None:
        """Return the common name that a header gives."""
        return header(first).common_name

    def test_verified(self) -> None:
        """The name of a certificate counts if it was presented, in this connection or in its session, and verified."""
        self.assertEqual(self.name(ssl(0x07, 0, self.CN)), "meter-7")
        self.assertEqual(self.name(ssl(0x03, 0, self.CN)), "meter-7")
        self.assertEqual(self.name(ssl(0x05, 0, self.CN)), "meter-7")

    def test_not_verified(self) -> None:
        """A name without a certificate, without TLS, or with a failed verification does not count."""
        for flags, verify in ((0x01, 0), (0x00, 0), (0x06, 0), (0x07, 1), (0x07, 18), (0x07, 0x0100_0000), (0xF8, 0)):
            self.assertIsNone(self.name(ssl(flags, verify, self.CN)), (flags, verify))

    def test_no_device_id(self) -> None:
        """A name that could not be a device id elsewhere is ignored."""
        for name in (b"", b"a\0b", b"a\nb", b"\xff", b"\x1b[2J", "a\u202eb".encode(), b"x" * 256, "\u00e9".encode() * 128):
            self.assertIsNone(self.name(ssl(tlvs=tlv(0x22, name))), name)
        for good in ("x" * 255, "\u00e9" * 127, "two words"):
            self.assertEqual(self.name(ssl(tlvs=tlv(0x22, good.encode()))), good)

    def test_no_name(self) -> None:
        """A certificate without a common name gives none."""
        self.assertIsNone(self.name(ssl(tlvs=tlv(0x23, b"ECDHE"))))

    def test_first_name(self) -> None:
        """Of several names the first counts, as in a certificate."""
        self.assertEqual(self.name(ssl(tlvs=self.CN + tlv(0x22, b"other"))), "meter-7")

    def test_version(self) -> None:
        """The TLS version between device and proxy is known, also without a certificate."""
        self.assertEqual(header(ssl(0x01, 1, tlv(0x21, b"TLSv1.3"))).tls_version, "TLSv1.3")
        self.assertEqual(header(ssl(0x00, 1, tlv(0x21, b"TLSv1.3"))).tls_version, "")
        for bad in (b"\xff", b"TLS\n", b"T" * 17):
            self.assertEqual(header(ssl(0x01, 1, tlv(0x21, bad))).tls_version, "")

    def test_malformed(self) -> None:
        """A malformed PP2_TYPE_SSL, and two of them, are refused."""

        def rests() -> Iterable[bytes]:
            yield tlv(0x20, b"\x07\0\0\0")
            yield tlv(0x20, b"\x07" + bytes(4) + self.CN[:-1])
            yield tlv(0x20, b"\x07" + bytes(4) + b"\x22\x00")
            yield tlv(0x20, b"\x07" + bytes(4) + self.CN) * 2

        for rest in rests():
            self.assertRaises(BadProxyHeader, parse, v2(ADDRESSES4 + rest))

    @given(names)
    def test_writer(self, name: str) -> None:
        """A name that is written here is read here."""
        first = write_v2(SIX, DOOR6, common_name=name, tls_version="TLSv1.2", checksum=True)
        self.assertEqual(parse(first), ProxyHeader(len(first), SIX, False, name, "TLSv1.2"))


class OtherProtocolsTests(SynchronousTestCase):
    def test_named(self) -> None:
        """Bytes that are not a header are refused at once, with the bytes in the reason."""
        for first, reason in (
            (b"\x16\x03\x01\x02\x00\x01", "a ClientHello without a PROXY protocol header before it"),
            (b"GET / HTTP/1.1\r\nHost:", "no PROXY protocol header, but b'GET / HTTP/1.1\\r\\n'"),
            (b"PRI * HTTP/2.0\r\n", "no PROXY protocol header, but b'PRI * HTTP/2.0\\r\\n'"),
            (b"\r\n\r\nhello", "no PROXY protocol header, but b'\\r\\n\\r\\nhello'"),
            (b"SSH", "no PROXY protocol header, but b'SSH'"),
        ):
            self.assertEqual(self.assertRaises(BadProxyHeader, parse, first).reason, reason)
