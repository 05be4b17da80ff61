"""When a ClientHello is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.hello import HEADER, LONGEST, needed


def client_hello() -> bytes:
    """What OpenSSL says first."""
    memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    memory.set_connect_state()
    try:
        memory.do_handshake()
    except SSL.WantReadError:
        pass
    return memory.bio_read(65536)


class NeededTests(SynchronousTestCase):
    def test_client_hello(self) -> None:
        """Of a real one all is needed, and no more, as soon as its size is there."""
        hello = client_hello()
        for size in range(1, len(hello)):
            self.assertEqual(needed(hello[:size]), HEADER if size < HEADER else len(hello))
        self.assertEqual(needed(hello + b"more"), len(hello))

    def test_nonsense(self) -> None:
        """What is not TLS need not be there as a whole: OpenSSL knows after a few bytes."""
        for nonsense in (b"GET / HTTP/1.1\r\n", bytes(5), b"\xff" * 5, b"\x80\x2e\x01\x00\x02"):
            self.assertEqual(needed(nonsense), HEADER)

    def test_bounded(self) -> None:
        """A record that claims to be large is not waited for to its end."""
        self.assertEqual(needed(b"\x16\x03\x01\xff\xff"), LONGEST)

    @given(st.binary(max_size=100))
    def test_any_bytes(self, first: bytes) -> None:
        """Whatever comes, a bounded number of bytes is waited for; and what more there is does not change how many."""
        size = needed(first)
        self.assertTrue(HEADER <= size <= LONGEST)
        if len(first) >= HEADER:
            self.assertEqual(needed(first + b"x"), size)
