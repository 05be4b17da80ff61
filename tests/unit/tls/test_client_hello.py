"""Detection of a complete ClientHello, and refusal without OpenSSL."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.tls import client_hello as hello_module
from owsla.tls.client_hello import HEADER, LONGEST, RECORDS, ClientHelloScan, whole_record


def client_hello() -> bytes:
    """Return the first flight of an OpenSSL client."""
    memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    memory.set_connect_state()
    try:
        memory.do_handshake()
    except SSL.WantReadError:
        pass
    return memory.bio_read(65536)


def needed(first: bytes) -> int:
    """Return the number of bytes needed, for a hello whose first bytes have come at once."""
    return ClientHelloScan().needed(first)


def refusal(first: bytes) -> str | None:
    """Return the reason for which these bytes are refused."""
    return hello_module.refusal(first, needed(first))


def in_records(content: bytes, size: int) -> bytes:
    """Return a handshake message in records of this size."""
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


class WholeRecordTests(SynchronousTestCase):
    def test_client_hello(self) -> None:
        """A real ClientHello is recognised once the last byte of its record is there, whatever follows."""
        hello = client_hello()
        for size in range(len(hello)):
            self.assertEqual(whole_record(hello[:size]), 0)
        for more in (b"", b"\x17", hello):
            self.assertEqual(whole_record(hello + more), len(hello))

    def test_other(self) -> None:
        """A message in several records, another message, and other protocols are left to `ClientHelloScan`."""
        content = client_hello()[HEADER:]
        others = (
            in_records(content, 100),
            in_records(b"\x02" + content[1:], 1000),
            b"\x15\x03\x01" + in_records(content, 1000)[3:],
        )
        for other in (*others, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x02\x01\x00" + bytes(10)):
            self.assertEqual(whole_record(other), 0)

    @given(st.binary(max_size=80), st.integers(0, 100), st.integers(0, 100))
    def test_like_a_scan(self, content: bytes, record: int, message: int) -> None:
        """The length of a recognised record is what `ClientHelloScan` needs."""
        first = b"\x16\x03\x01" + record.to_bytes(2, "big") + b"\x01" + message.to_bytes(3, "big") + content
        length = whole_record(first)
        self.assertIn(length, (0, needed(first)))


class NeededTests(SynchronousTestCase):
    def test_client_hello(self) -> None:
        """The whole of a real ClientHello is needed, and no more, as soon as its length has come."""
        hello = client_hello()
        for size in range(1, len(hello)):
            self.assertEqual(needed(hello[:size]), HEADER if size < HEADER else len(hello))
        self.assertEqual(needed(hello + b"more"), len(hello))

    def test_several_records(self) -> None:
        """The message counts, not its first record: with pieces of any size, no more is ever waited for than is to come, and in
        the end it is all.
        """
        content = client_hello()[HEADER:]
        for size in (1, 2, 3, 4, 5, 100, len(content) - 1):
            hello = in_records(content, size)
            scan = ClientHelloScan()
            for end in range(len(hello)):
                self.assertTrue(end < scan.needed(hello[:end]) <= len(hello), (size, end))
            self.assertEqual(scan.needed(hello), len(hello))
            self.assertEqual(needed(hello + b"more"), len(hello))
            self.assertIsNone(refusal(hello))

    def test_six_bytes(self) -> None:
        """A record that holds only the first byte of a ClientHello is not complete."""
        self.assertGreater(needed(b"\x16\x03\x01\x00\x01\x01"), 6)

    def test_nonsense(self) -> None:
        """Bytes that are not TLS are passed to OpenSSL at once, which refuses them after a few bytes."""
        for nonsense in (b"GET / HTTP/1.1\r\n", bytes(5), b"\xff" * 5, b"\x80\x2e\x01\x00\x02", b"\x16\x03\x01\xff\xff"):
            self.assertEqual(needed(nonsense), HEADER)
        self.assertEqual(needed(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), 9)  # a ServerHello

    def test_too_long(self) -> None:
        """A hello beyond the limit of bytes is refused as soon as its length is known."""
        first = b"\x16\x03\x01\x00\x04\x01\x01\x00\x00"
        self.assertGreater(needed(first), LONGEST)
        self.assertEqual(refusal(first), f"a ClientHello that takes more than {LONGEST} bytes or {RECORDS} records")

    def test_too_many_records(self) -> None:
        """A hello beyond the limit of records is refused when the first excess record begins."""
        message = b"\x01" + RECORDS.to_bytes(3, "big") + bytes(RECORDS)
        hello = in_records(message, 1)
        self.assertLess(len(hello), LONGEST)
        allowed = RECORDS * (HEADER + 1)
        self.assertLessEqual(needed(hello[:allowed]), LONGEST)
        self.assertGreater(needed(hello[: allowed + HEADER]), LONGEST)
        self.assertIn(f"or {RECORDS} records", refusal(hello) or "")
        self.assertIsNone(refusal(in_records(message[:1] + (RECORDS - 4).to_bytes(3, "big") + bytes(RECORDS - 4), 1)))

    def test_each_record_once(self) -> None:
        """Records are parsed once, however often more bytes come: a hello in pieces costs no more than a whole one."""
        hello = in_records(b"\x01\x00\x07\xd0" + bytes(2000), 1)
        looks = 0

        class Seen(bytes):
            def __getitem__(self, key: Any) -> Any:
                nonlocal looks
                looks += isinstance(key, int)
                return super().__getitem__(key)

        scan = ClientHelloScan()
        have = pieces = 0
        while have < len(hello):
            have = scan.needed(Seen(hello[:have]))
            pieces += 1
        self.assertEqual(scan.needed(Seen(hello)), len(hello))
        self.assertGreater(pieces, 20)
        self.assertLess(looks, 2 * (2004 + 2 * pieces))

    def test_other_protocols(self) -> None:
        """A known protocol in place of TLS is named."""
        for first, name in (
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "a PROXY protocol header"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", "a PROXY protocol header (version 2)"),
            (b"GET / HTTP/1.1\r\n", "an HTTP request"),
            (b"OPTIONS * HTTP/1.1\r\n", "an HTTP request"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP/2 request"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH client's greeting"),
            (b"AMQP\x00\x00\x09\x01", "an AMQP client's greeting"),
        ):
            self.assertEqual(refusal(first), f"{name} instead of a ClientHello")
        for first in (b"hello?\n", bytes(20), b"\x16\x03\x01\x00\x01\x01"):
            self.assertIsNone(refusal(first))

    def test_groups(self) -> None:
        """A hello that offers finite fields, and no supported curve, is refused."""
        for groups, refused in (
            ((0x0101,), True),
            ((0x0A0A, 0x0101, 0x0100), True),
            ((0x0101, 29), False),
            ((0x11EC, 0x0101), False),
            ((1,), False),  # OpenSSL knows no such group either, and says so
            ((), False),
        ):
            offered = struct.pack(f">{len(groups)}H", *groups)
            extension = struct.pack(">HHH", 10, len(offered) + 2, len(offered)) + offered
            extensions = struct.pack(">HH", 0xFF01, 1) + b"\0" + extension
            body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
            body += len(extensions).to_bytes(2, "big") + extensions
            message = b"\x01" + len(body).to_bytes(3, "big") + body
            hello = b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message
            self.assertEqual(needed(hello), len(hello))
            self.assertEqual(refusal(hello) is not None, refused, groups)

    @given(st.binary(max_size=100))
    def test_any_bytes(self, first: bytes) -> None:
        """For any bytes, at least a record header is needed, and no exception is raised."""
        for start in (b"", b"\x16\x03\x01\x00", b"\x16\x03\x01\x00\x60\x01\x00\x00"):
            self.assertGreaterEqual(needed(start + first), HEADER)
            refusal(start + first)
