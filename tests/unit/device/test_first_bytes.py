"""Tests of the recognition of other protocols on a door without TLS."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.framings import read_framing
from owsla.device.first_bytes import foreign_protocol, other_protocol
from owsla.device.framing import make_framing
from owsla.device.proxy_header import write_v1, write_v2


def client_hello(version: int) -> bytes:
    """Return the ClientHello of a client that speaks this version of TLS at most."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    client = SSL.Connection(context, None)
    client.set_connect_state()
    try:
        client.do_handshake()
    except SSL.WantReadError:
        pass
    return client.bio_read(65536)


class OtherProtocolTests(SynchronousTestCase):
    def test_named(self) -> None:
        """The beginnings of protocols that come to a wrong port are named."""
        for first, name in (
            (client_hello(SSL.TLS1_2_VERSION), "a TLS ClientHello"),
            (client_hello(SSL.TLS1_3_VERSION), "a TLS ClientHello"),
            (write_v1(("192.0.2.7", 1), ("10.0.0.1", 2)), "a PROXY protocol header"),
            (write_v1(("2001:db8::7", 1), ("2001:db8::1", 2)), "a PROXY protocol header"),
            (write_v1(None, ("10.0.0.1", 2)), "a PROXY protocol header"),
            (write_v2(("192.0.2.7", 1), ("10.0.0.1", 2)), "a PROXY protocol header (version 2)"),
            (write_v2(None, ("10.0.0.1", 2)), "a PROXY protocol header (version 2)"),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", "an SSH client's greeting"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "an HTTP request"),
            (b"POST /a?b=c HTTP/1.0\n", "an HTTP request"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP/2 request"),
        ):
            self.assertEqual(other_protocol(first), name)

    def test_of_devices(self) -> None:
        """Lines that begin like these protocols, and frames that begin with the same bytes, are those of a device."""
        for first in (
            b"",
            b"hello\n",
            b"GET temperature\r\n",
            b"GET / HTTP/1.1",
            b"PROXY 7\r\n",
            b"SSH-1\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x16\x03 line of a device\n",
            b"\x16\x03\x01\x00\x05hello",
        ):
            self.assertIsNone(other_protocol(first), first)


HTTP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
TLS = client_hello(SSL.TLS1_3_VERSION)


class FramingTests(SynchronousTestCase):
    def test_framings(self) -> None:
        """Another protocol is named where its bytes are malformed, or too long, in the framing of the door."""
        for framing, max_line, http, tls in (
            ("lines", 16384, True, True),
            ("length:2", 16384, True, False),  # GE is a length of 18,245, and 0x1603 one of 5,635
            ("length:2", 20000, False, False),
            ("length:2", 5000, True, True),
            ("length:4", 16384, True, True),
            ("netstring", 16384, True, True),
            ("octet-counting", 16384, True, True),
            ("fixed:7", 16384, False, False),
            ("between:02:03", 16384, True, True),
            ("between:16:03", 16384, True, False),
        ):
            made = make_framing(read_framing(framing), b"\n", max_line)
            self.assertEqual(foreign_protocol(made, HTTP), "an HTTP request" if http else None, (framing, max_line))
            self.assertEqual(foreign_protocol(made, TLS), "a TLS ClientHello" if tls else None, (framing, max_line))
            self.assertIsNone(foreign_protocol(made, b"GET 1\n"))
