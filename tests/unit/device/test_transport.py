"""Tests of connections on real sockets: TLS with OpenSSL as the device, plain TCP over the loopback interface, unix sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from owsla.device.interfaces import IHangupListener
from owsla.device.proxy_header import write_v1, write_v2
from owsla.device.socket_transport import CLOSING_TIMEOUT, SocketTransport, explain
from owsla.device.tcp_transport import TCPTransport
from owsla.device.tls_transport import RECORDS, TLSTransport
from owsla.tls.post_handshake import PostHandshake
from owsla.tls.refusal import Refusal

from ._sockets import Client, Loop, PlainClient, device_tls, reset, tcp_pair, unix_pair


@implementer(IHangupListener)
class Recorder:
    """Protocol that records its callbacks, and may act in them."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.discarding = False
        self.awaiting_turn = False
        self.leaves = False
        """True if it has room for data that a peer sent before it closed."""
        self.received = b""
        self.lost: list[Failure] = []
        self.paused = 0
        """Number of times that it was paused as a producer."""
        self.resumed = 0
        self.on_data: Any = None
        self.on_resume: Any = None
        self.on_peer_closed: Any = None

    def makeConnection(self, transport: Any) -> None:
        assert self.transport is None
        self.transport = transport
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        assert data
        assert not self.lost
        self.received += data
        if self.on_data is not None:
            self.on_data()

    def peerClosed(self) -> bool:
        if self.on_peer_closed is not None:
            self.on_peer_closed()
        if self.leaves:
            self.transport.resumeProducing()
        return self.leaves

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)

    @property
    def congested(self) -> bool:
        """True while it is paused as a producer."""
        return self.paused > self.resumed

    def pauseProducing(self) -> None:
        assert not self.lost
        assert not self.congested
        self.paused += 1

    def resumeProducing(self) -> None:
        assert not self.lost
        assert self.congested
        self.resumed += 1
        if self.on_resume is not None:
            self.on_resume()

    def stopProducing(self) -> None:
        assert not self.lost
        self.stopped = True

    def lose(self) -> None:
        """Close the connection as a producer must."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


FFDHE2048, X25519 = 0x0100, 0x001D
"""Groups for the key exchange (RFC 8446, 4.2.7)."""

SERVER_HELLO = 2
"""Type of a ServerHello, and of a HelloRetryRequest, after the five bytes of the record's header."""


def client_hello(group: int, share: bytes) -> bytes:
    """Return a ClientHello of TLS 1.3 with FFDHE2048 and X25519, and a key share for one of them."""

    def extension(kind: int, content: bytes) -> bytes:
        return struct.pack(">HH", kind, len(content)) + content

    extensions = [
        extension(0x000A, struct.pack(">HHH", 4, FFDHE2048, X25519)),  # supported groups
        extension(0x000D, struct.pack(">HHH", 4, 0x0403, 0x0804)),  # signature algorithms: ECDSA with P-256, and RSA-PSS
        extension(0x002B, b"\2\3\4"),  # supported versions: TLS 1.3
        extension(0x0033, struct.pack(">HHH", 4 + len(share), group, len(share)) + share),  # key share
    ]
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += struct.pack(">H", sum(map(len, extensions))) + b"".join(extensions)
    return b"\x16\3\1" + struct.pack(">H", 4 + len(body)) + b"\1" + len(body).to_bytes(3, "big") + body


class Stubborn:
    """OpenSSL connection to a socket that is full at first, for a number of calls."""

    def __init__(self, tls: SSL.Connection, refusals: int) -> None:
        self.tls = tls
        self.refusals = refusals

    def do_handshake(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise SSL.WantWriteError()
        self.tls.do_handshake()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tls, name)


class Owner:
    """Owner that records its callbacks."""

    def __init__(self, loop: Any) -> None:
        self.poller = loop
        self.told: list[Any] = []
        self.refuse = False
        self.admits = True
        """True if connections may proceed after their PROXY protocol header."""
        self.places = 1
        """Number of handshakes that may begin."""
        self.lines = Recorder()
        self.context = device_tls().context
        self.established = PostHandshake(lambda: 0.0).context

    def headerReceived(self, transport: SocketTransport) -> bool:
        self.told.append("header")
        return self.admits

    def refusal(self, first: bytes) -> str | None:
        return "no bytes for us" if first == b"\0" else None

    def helloReceived(self, transport: TLSTransport) -> bool:
        self.told.append("spoke")
        return self.places > 0

    def mayHaveClosed(self, transport: TLSTransport) -> bool:
        return True

    def handshakeCompleted(self, transport: TLSTransport) -> None:
        self._opened("secured", transport)

    def connectionOpened(self, transport: TCPTransport) -> None:
        self._opened("opened", transport)

    def _opened(self, what: str, transport: SocketTransport) -> None:
        self.told.append(what)
        if self.refuse:
            transport.loseConnection()
        else:
            transport.connectProtocol(self.lines)

    def connectionClosing(self, transport: SocketTransport) -> None:
        self.told.append("closing")

    def connectionClosed(self, transport: SocketTransport, failed: str | None) -> None:
        self.told.append(("lost", failed))

    @property
    def failed(self) -> str | None:
        """Return the reason of the failed handshake."""
        word, failed = self.told[-1]
        assert word == "lost"
        assert failed is None or isinstance(failed, str)
        return failed


class Base(SynchronousTestCase):
    tcp = False
    plain = False
    proxied = False
    opened: tuple[str, ...] = ("spoke", "secured")
    """Calls of the owner until a connection is open."""

    def setUp(self) -> None:
        device_tls()  # creates a certificate, once
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.loop = cast(Any, Loop())
        self.owner = Owner(self.loop)
        self.lines = self.owner.lines
        self.socket, self.peer = tcp_pair() if self.tcp else unix_pair()
        kind: Any = TCPTransport if self.plain else TLSTransport
        self.transport = kind(self.loop, self.socket, ("127.0.0.1", 5), self.owner, self.proxied)

    def tearDown(self) -> None:
        """Nothing is left after a test: no descriptor, no watch, no timer; and the end was reported once."""
        self.transport.abortConnection()
        self.loop.settle()
        self.peer.close()
        self.assertEqual((self.loop.readers, self.loop.writers, self.loop.getDelayedCalls()), (set(), set(), []))
        self.assertEqual(set(os.listdir("/proc/self/fd")) - self.descriptors, set())
        self.assertEqual(len([told for told in self.owner.told if told[0] == "lost"]), 1)
        if self.lines.transport is not None:
            self.assertEqual(len(self.lines.lost), 1)
        self.assertEqual((self.socket.fileno(), self.transport.fileno()), (-1, -1))

    def connect(self, version: int | None = None) -> Any:
        """Connect a device and complete its handshake."""
        client = PlainClient(self.peer) if self.plain else Client(self.peer, version)
        if self.plain:
            self.transport.open()
        self.loop.until(lambda: client.secure and self.lines.transport is not None, client.step)
        self.loop.settle(client.step)
        return client

    def end(self) -> BaseException:
        """Return the reason why the connection of the protocol was lost."""
        (reason,) = self.lines.lost
        assert isinstance(reason.value, BaseException)
        return reason.value


class OpenTests(Base):
    def test_both_ways(self) -> None:
        """After the handshake, in TLS 1.2 or 1.3, bytes go in both directions. The owner was called once for each step."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            client = self.connect(version)
            client.write(b"hello\n")
            self.loop.until(lambda: self.lines.received == b"hello\n")
            self.transport.write(b"good day\r\n")
            self.loop.until(lambda: client.received == b"good day\r\n", client.step)  # noqa: B023
            self.assertEqual(tuple(self.owner.told), self.opened)
            self.assertFalse(self.lines.congested)
            self.tearDown()
            self.setUp()

    def test_limited_turns(self) -> None:
        """Each connection reads at most 16 KB per turn of large records, and everything in the end."""
        client = self.connect()
        client.write(b"x" * 50_000)
        client.step()
        sizes: list[int] = []
        self.lines.on_data = lambda: sizes.append(len(self.lines.received) - sum(sizes))
        while sum(sizes) < 50_000:
            before = len(sizes)
            self.loop.turn(0.1)
            client.step()
            self.assertLessEqual(len(sizes), before + 1)
        self.assertTrue(all(size <= 16384 for size in sizes))

    def test_pause(self) -> None:
        """A paused transport reads nothing, and continues at the same place."""
        client = self.connect()
        self.transport.pauseProducing()
        self.transport.pauseProducing()
        client.write(b"later")
        self.loop.settle(client.step)
        self.assertEqual(self.lines.received, b"")
        self.transport.resumeProducing()
        self.loop.until(lambda: self.lines.received == b"later")

    def test_stalled_reader(self) -> None:
        """While the device does not read, the transport pauses its producer. Once all data has left, it resumes it once, and
        every byte arrives in order.
        """
        client = self.connect()
        client.reading = False
        data = b"".join(b"%06d" % number for number in range(100_000))
        self.transport.write(data)
        self.assertTrue(self.lines.congested)
        self.transport.write(b"behind")
        self.loop.settle(client.step)
        self.assertTrue(self.lines.congested)
        self.assertEqual(self.lines.resumed, 0)
        client.reading = True
        self.loop.until(lambda: self.lines.resumed, client.step)
        self.assertFalse(self.lines.congested)
        self.loop.until(lambda: len(client.received) == len(data) + 6, client.step)
        self.assertEqual(client.received, data + b"behind")
        self.assertEqual((self.lines.resumed, self.loop.writers), (1, set()))

    def test_slow_reader(self) -> None:
        """`untaken` tells a slow reader from one that does not read. The producer stays paused."""
        client = self.connect()
        client.reading = False
        self.transport.write(b"x" * 600_000)
        self.loop.settle(client.step)
        untaken = self.transport.untaken
        self.assertGreater(untaken, 0)
        self.assertEqual(self.transport.untaken, untaken)

        def sip() -> None:
            with contextlib.suppress(BlockingIOError):
                client.socket.recv(4096)

        self.loop.until(lambda: self.transport.untaken < untaken, sip)
        self.assertEqual((self.lines.resumed, self.lines.congested), (0, True))
        self.transport.abortConnection()
        self.loop.settle()
        self.assertEqual(self.transport.untaken, 0)

    def test_writes_of_any_size(self) -> None:
        """Writes of all sizes around that of a record arrive complete, with a device that reads now and then."""
        client = self.connect()
        client.reading = False
        sent = b""
        for number, size in enumerate([1, 16383, 16384, 16385, 32768, 40_000, 3, 100_000, 16384]):
            data = bytes([65 + number]) * size
            sent += data
            self.transport.write(data)
            self.loop.turn()
            client.reading = number % 3 == 0
            client.step()
        client.reading = True
        self.loop.until(lambda: len(client.received) == len(sent), client.step)
        self.assertEqual(client.received, sent)

    def test_write_inside_writable(self) -> None:
        """Data written in the `writable` callback is sent, also if it pauses the producer again."""
        client = self.connect()
        client.reading = False
        more = [b"b" * 300_000, b"c" * 300_000, b"d"]

        def write() -> None:
            if more:
                self.transport.write(more.pop(0))

        self.lines.on_resume = write
        self.transport.write(b"a" * 300_000)
        client.reading = True
        self.loop.until(lambda: client.received.endswith(b"d"), client.step)
        self.assertEqual(client.received, b"a" * 300_000 + b"b" * 300_000 + b"c" * 300_000 + b"d")

    def test_close_inside_writable(self) -> None:
        """A protocol may close in the `writable` callback."""
        client = self.connect()
        client.reading = False

        def bye() -> None:
            self.transport.write(b"bye")
            self.lines.lose()

        self.lines.on_resume = bye
        self.transport.write(b"a" * 300_000)
        client.reading = True
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual((client.received[300_000:], client.ended), (b"bye", client.goodbye))

    def test_empty_write(self) -> None:
        """An empty write has no effect."""
        self.connect()
        self.transport.write(b"")
        self.assertFalse(self.lines.congested)

    def test_error_in_the_protocol(self) -> None:
        """An exception in the protocol ends its own connection only, and is the reason of the loss."""
        client = self.connect()

        def fail() -> None:
            raise RuntimeError("ours")

        self.lines.on_data = fail
        client.write(b"x")
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), RuntimeError)

    def test_error_in_the_protocol_at_the_peers_end(self) -> None:
        """An exception in the callback for the end of the peer affects its own connection only, not the caller."""
        self.connect()

        def fail() -> None:
            raise RuntimeError("ours")

        self.lines.on_peer_closed = fail
        self.assertTrue(self.transport.peerClosed())
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), RuntimeError)


class CloseTests(Base):
    def test_everything_arrives(self) -> None:
        """All written data arrives before close_notify. The connection is closed when the peer has closed."""
        client = self.connect()
        client.reading = False
        data = b"x" * 300_000
        self.transport.write(data)
        self.lines.lose()
        self.transport.write(b"too late")
        self.loop.settle(client.step)
        self.assertEqual(self.lines.lost, [])
        client.reading = True
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual((client.received, client.ended), (data, client.goodbye))
        self.loop.settle()
        self.assertEqual(self.lines.lost, [])
        client.close()
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionDone)
        self.assertEqual(self.owner.told, [*self.opened, "closing", ("lost", None)])
        self.assertEqual(self.lines.resumed, 0)

    def test_the_peer_still_talks(self) -> None:
        """Data that the peer sends until it closes is read, so that no reset discards the last written line."""
        client = self.connect()
        self.transport.write(b"bye\r\n")
        self.lines.lose()
        client.send(b"on its way" * 100)
        self.loop.settle()
        client.step()
        self.assertEqual((client.received, client.ended), (b"bye\r\n", client.goodbye))
        self.assertEqual(self.lines.received, b"on its way" * 100)
        client.send(b" and the last")
        client.close()
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual(self.lines.received, b"on its way" * 100 + b" and the last")

    def test_held_back(self) -> None:
        """A protocol without room for further data pauses the transport, before and after close_notify."""
        client = self.connect()
        self.transport.pauseProducing()
        client.write(b"one")
        self.lines.lose()
        self.loop.settle(client.step)
        self.assertEqual((self.lines.received, client.ended, self.transport.held_back), (b"", client.goodbye, True))
        self.assertGreaterEqual(self.transport.unread, 3)
        self.transport.resumeProducing()
        self.loop.settle()
        self.assertEqual((self.lines.received, self.transport.held_back, self.transport.unread), (b"one", False, 0))
        self.transport.pauseProducing()
        client.send(b"two")
        client.close()
        self.loop.settle()
        self.assertEqual((self.lines.received, self.lines.lost), (b"one", []))
        self.transport.resumeProducing()
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual(self.lines.received, b"onetwo")

    def test_closed_while_paused(self) -> None:
        """A paused connection that is closing notices the end of the peer."""
        client = self.connect()
        self.transport.pauseProducing()
        client.write(b"unread")
        self.lines.discarding = True
        self.lines.lose()
        self.loop.until(lambda: client.ended, client.step)
        client.close()
        self.loop.until(lambda: self.lines.lost)

    def test_close_inside_data(self) -> None:
        """A protocol may close when it reads: it gets the data that was on its way."""
        client = self.connect()
        self.lines.on_data = self.lines.lose
        client.write(b"one")
        client.write(b"two")
        self.loop.until(lambda: client.ended, client.step)
        self.loop.settle()
        self.assertEqual((self.lines.received, client.ended), (b"onetwo", client.goodbye))

    def test_abort_inside_data(self) -> None:
        """A protocol may abort when it reads."""
        client = self.connect()
        self.lines.on_data = self.transport.abortConnection
        client.write(b"one")
        client.write(b"two")
        self.loop.until(lambda: self.lines.lost)
        self.assertIn(self.lines.received, (b"one", b"onetwo"))  # one read may take both
        self.assertIsInstance(self.end(), ConnectionAborted)

    def test_twice(self) -> None:
        """A second close, or an abort after the close, is not reported again."""
        client = self.connect()
        self.lines.lose()
        self.lines.lose()
        self.transport.abortConnection()
        self.transport.abortConnection()
        self.loop.until(lambda: self.lines.lost, client.step)
        self.transport.abortConnection()
        self.lines.lose()
        self.transport.resumeProducing()
        self.transport.write(b"x")
        self.transport.connectionLost(Failure(ConnectionLost()))
        self.loop.settle()
        self.assertEqual(len(self.lines.lost), 1)

    def test_peers_goodbye(self) -> None:
        """close_notify of the peer ends the connection, and is answered."""
        client = self.connect()
        client.write(b"last\n")
        client.shutdown()
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionDone)
        self.assertEqual(self.lines.received, b"last\n")
        self.assertEqual(explain(self.lines.lost[0]), "closed by the device")
        client.step()
        self.assertEqual(client.ended, client.goodbye)

    def test_hung_up(self) -> None:
        """A peer that went while the connection was not read is lost."""
        self.connect()
        self.transport.pauseProducing()
        self.transport.hungUp()
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionLost)

    def test_found_dead_by_the_reactor(self) -> None:
        """A connection that the reactor reports as dead is lost."""
        self.connect()
        self.transport.connectionLost(Failure(ConnectionLost()))
        self.assertIsInstance(self.end(), ConnectionLost)

    def test_timeout_is_said(self) -> None:
        """The owner limits the time for an unanswered close_notify."""
        self.assertTrue(0 < CLOSING_TIMEOUT <= 30)
        self.connect()
        self.lines.lose()
        self.loop.settle()
        self.assertEqual(self.lines.lost, [])
        self.transport.abortConnection()
        self.loop.settle()
        self.assertEqual(len(self.lines.lost), 1)


class TLSTests(Base):
    """Tests of behaviour that only TLS has."""

    def test_partial_sends(self) -> None:
        """OpenSSL may accept a part of a write (RFC 6066, 4: a device may ask for small records). Nothing is sent twice."""
        client = self.connect()
        real = self.transport.getHandle()

        class Small:
            """Connection that accepts 512 bytes at a time."""

            def send(self, data: bytes) -> int:
                return int(real.send(data[:512]))

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        self.transport._stream = Small()
        data = b"".join(b"%06d" % number for number in range(4000))
        self.transport.write(data[:1000])
        self.transport.write(data[1000:])
        self.loop.until(lambda: len(client.received) >= len(data), client.step)
        self.assertEqual(client.received, data)

    def test_moved(self) -> None:
        """After its handshake a connection is watched by the reactor for established ones, with all that it waits for."""
        established = self.owner.poller = cast(Any, Loop())
        client = Client(self.peer)
        client.step()
        self.transport.doRead()
        self.transport._stream = Stubborn(self.transport.getHandle(), 1)
        self.transport.doRead()
        self.assertEqual((self.loop.readers, self.loop.writers), ({self.transport}, {self.transport}))
        client.step()
        self.transport.doRead()
        self.assertEqual(self.owner.told, ["spoke", "secured"])
        self.assertEqual((self.loop.readers, self.loop.writers), (set(), set()))
        self.assertEqual((established.readers, established.writers), ({self.transport}, {self.transport}))
        self.transport.doWrite()
        self.assertEqual(established.writers, set())
        self.transport.abortConnection()
        established.settle()
        self.assertEqual(established.readers, set())

    def test_data_with_the_last_of_the_handshake(self) -> None:
        """Data in the same segment as the end of the handshake is not lost."""
        client = Client(self.peer)
        client.write(b"at once\n")
        self.loop.until(lambda: self.lines.received == b"at once\n", client.step)

    def test_small_records_together(self) -> None:
        """Records that wait in the socket are given to the protocol together, up to a limit, in TLS 1.2 and 1.3."""
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            client = self.connect(version)
            lines = [b"line %04d\n" % number for number in range(RECORDS + 4)]  # more would fill the socket
            for line in lines:
                client.send(line)
            sizes: list[int] = []
            self.lines.on_data = lambda: sizes.append(len(self.lines.received) - sum(sizes))  # noqa: B023
            self.loop.until(lambda: len(self.lines.received) == len(b"".join(lines)))  # noqa: B023
            self.assertEqual(self.lines.received, b"".join(lines))
            self.assertEqual((sizes[0], max(sizes)), (10 * RECORDS, 10 * RECORDS))
            self.assertLess(len(sizes), 4)
            self.tearDown()
            self.setUp()

    def test_small_records_one_by_one(self) -> None:
        """While few sockets are ready, the kernel is not asked for more records: one is read in a turn."""
        self.loop.crowded = False
        client = self.connect()
        for _ in range(3):
            client.send(b"line\n")
        sizes: list[int] = []
        self.lines.on_data = lambda: sizes.append(len(self.lines.received) - sum(sizes))
        with mock.patch("owsla.device.tls_transport.fcntl.ioctl", side_effect=AssertionError):
            self.loop.until(lambda: len(self.lines.received) == 15)
        self.assertEqual(sizes, [5, 5, 5])

    def send_together(self, *actions: Callable[[], object]) -> None:
        """Have the transport read in one event all that a device sends, the end of the connection included."""
        for action in actions:
            action()
        # Otherwise a record as short as close_notify is left for another event.
        unread = (1000).to_bytes(4, sys.byteorder)
        with mock.patch("owsla.device.tls_transport.fcntl.ioctl", return_value=unread):
            self.loop.until(lambda: self.lines.received)

    def test_goodbye_with_the_last_lines(self) -> None:
        """Lines that are read together with close_notify come before the end."""
        client = self.connect()
        self.send_together(lambda: client.send(b"one"), lambda: client.send(b"two"), client.shutdown)
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual(self.lines.received, b"onetwo")
        self.assertIsInstance(self.end(), ConnectionDone)

    def test_goodbye_with_lines_that_pause(self) -> None:
        """If the last lines make the protocol pause, the end that was read with them waits until the connection is resumed."""
        client = self.connect()
        self.lines.on_data = self.transport.pauseProducing
        self.send_together(lambda: client.send(b"one"), lambda: client.send(b"two"), client.shutdown)
        self.loop.settle()
        self.assertEqual((self.lines.received, self.lines.lost), (b"onetwo", []))
        self.transport.resumeProducing()
        self.transport.pauseProducing()
        self.loop.settle()
        self.assertEqual(self.lines.lost, [])
        self.transport.resumeProducing()
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionDone)

    def test_error_with_lines_that_pause(self) -> None:
        """Invalid TLS that was read with lines which pause the protocol ends the connection when it is resumed, with the reason
        of OpenSSL, also if the device has sent nothing since, or has closed.
        """
        for version, closes in itertools.product((SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION), (False, True)):
            client = self.connect(version)
            self.lines.on_data = self.transport.pauseProducing
            client.send(b"one")
            self.peer.send(b"\x17\3\3\0\x28" + bytes(40))  # a record that nobody has encrypted
            self.loop.until(lambda: self.lines.received)
            self.loop.settle()
            self.assertEqual((self.lines.received, self.lines.lost, self.transport.unread), (b"one", [], 0))
            if closes:
                client.close()
            self.transport.resumeProducing()
            if closes:
                self.transport.doRead()  # the end of the stream may be reported first
            self.loop.until(lambda: self.lines.lost)
            self.assertTrue(explain(self.lines.lost[0]).startswith("TLS: "), explain(self.lines.lost[0]))
            self.tearDown()
            self.setUp()

    def test_goodbye_with_lines_that_abort(self) -> None:
        """If the last lines make the protocol abort the connection, the end that was read with them is not reported."""
        client = self.connect()
        self.lines.on_data = self.transport.abortConnection
        self.send_together(lambda: client.send(b"one"), client.shutdown)
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionAborted)

    def test_refusal_with_the_last_lines(self) -> None:
        """A refusal that a callback of OpenSSL notes while more records are read ends the connection behind the lines."""
        client = self.connect()
        self.send_together(
            lambda: client.send(b"one"), lambda: Refusal("too many key updates").note(self.transport.getHandle())
        )
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual((self.lines.received, explain(self.lines.lost[0])), (b"one", "TLS: too many key updates"))

    def test_error_with_the_last_lines(self) -> None:
        """Lines before invalid TLS are not lost."""
        client = self.connect()
        self.send_together(lambda: client.send(b"one"), lambda: self.peer.send(b"GET / HTTP/1.0\r\n\r\n" * 10))
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual(self.lines.received, b"one")
        self.assertTrue(explain(self.lines.lost[0]).startswith("TLS: "), explain(self.lines.lost[0]))

    def test_garbage_in_an_open_connection(self) -> None:
        """Invalid TLS ends the connection, with the reason of OpenSSL."""
        self.connect()
        self.peer.send(b"GET / HTTP/1.0\r\n\r\n" * 10)
        self.loop.until(lambda: self.lines.lost)
        self.assertTrue(explain(self.lines.lost[0]).startswith("TLS: "), explain(self.lines.lost[0]))

    def test_end_without_goodbye(self) -> None:
        """A connection that ends without close_notify is lost. Data before the end was read."""
        client = self.connect()
        client.write(b"last\n")
        client.close()
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionLost)
        self.assertEqual(self.lines.received, b"last\n")


class HandshakeBase(Base):
    def ended(self) -> str | None:
        self.loop.until(lambda: self.owner.told and self.owner.told[-1][0] == "lost")
        self.assertIsNone(self.lines.transport)
        self.assertEqual(self.lines.lost, [])
        return self.owner.failed


class HandshakeTests(HandshakeBase):
    def test_garbage(self) -> None:
        """Invalid bytes instead of a ClientHello close the connection, with the reason of OpenSSL, and raise nothing."""
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x00\x05hello", os.urandom(5) + b"\xff" * 60_000):
            self.peer.send(garbage)
            failed = self.ended()
            self.assertTrue(failed and failed.startswith("TLS: "), (garbage[:20], failed))
            self.tearDown()
            self.setUp()

    def test_silent(self) -> None:
        """A peer that goes without sending counts as silent."""
        self.loop.settle()
        self.assertEqual(self.owner.told, [])
        self.peer.close()
        self.assertEqual(self.ended(), "closed before it said anything")
        self.assertEqual(self.owner.told, [("lost", "closed before it said anything")])

    def test_slow_hello(self) -> None:
        """A ClientHello that arrives in small pieces is accepted. On a unix socket the port looks for the rest."""
        client = Client(self.peer)
        sent: list[bytes] = []
        memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        memory.set_connect_state()
        self.assertRaises(SSL.WantReadError, memory.do_handshake)
        sent.append(memory.bio_read(65536))
        for start in range(0, len(sent[0]), 100):
            self.peer.send(sent[0][start : start + 100])
            self.loop.turn()
            self.transport.checkRest()
        self.loop.settle()
        self.assertEqual(self.owner.told, ["spoke"])
        self.assertGreater(len(client.socket.recv(65536)), 100)  # the ServerHello and more

    def test_timeout(self) -> None:
        """A handshake that takes too long fails with the reason given by the owner."""
        for speaks in (False, True):
            if speaks:
                Client(self.peer).step()
                self.loop.settle()
            self.transport.handshakeOverdue("no handshake within 15 s")
            self.assertEqual(self.ended(), "no handshake within 15 s")
            self.tearDown()
            self.setUp()

    def test_refused_by_the_owner(self) -> None:
        """An owner that refuses the connection closes it with close_notify."""
        self.owner.refuse = True
        client = Client(self.peer)
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual(client.ended, "notify")
        client.close()
        self.assertIsNone(self.ended())

    def test_close_and_abort(self) -> None:
        """Before the handshake is complete, a close is an abort, in each state, and sends nothing more."""
        for speaks in (False, True):
            for end in (TLSTransport.loseConnection, TLSTransport.abortConnection):
                client = Client(self.peer)
                if speaks:
                    client.step()
                    self.loop.settle()
                end(self.transport)
                end(self.transport)
                self.transport.write(b"x")
                self.assertIsNotNone(self.ended())
                self.tearDown()
                self.setUp()

    def test_congested_handshake(self) -> None:
        """A handshake whose answer does not fit into the socket continues when there is room."""
        real = self.transport
        client = Client(self.peer)
        client.step()
        self.loop.turn(0.1)
        self.assertEqual(self.owner.told, ["spoke"])
        real._stream = Stubborn(real.getHandle(), 2)
        self.loop.until(lambda: client.secure and self.lines.transport is not None, client.step)
        self.assertEqual(self.loop.writers, set())


class RobustnessTests(Base):
    def test_an_error_too_late(self) -> None:
        """An exception in a connection that already has a reason for its end is logged."""
        client = self.connect()
        self.transport.abortConnection()
        self.transport.abortConnection(Failure(RuntimeError("ours")))
        self.loop.until(lambda: self.lines.lost, client.step)
        self.transport.abortConnection(Failure(ConnectionLost()))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_an_error_at_the_end(self) -> None:
        """An exception in the end of the protocol leaks no descriptor: the owner is told, and the socket is closed."""
        client = self.connect()

        def fail(reason: Failure) -> None:
            Recorder.connectionLost(self.lines, reason)
            raise RuntimeError("ours")

        self.patch(self.lines, "connectionLost", fail)
        client.close()
        try:
            self.loop.until(lambda: self.lines.lost)
        except RuntimeError:
            pass  # it may propagate to the reactor, which logs it
        self.flushLoggedErrors(RuntimeError)
        try:
            self.assertEqual((self.owner.told[-1], self.socket.fileno()), (("lost", None), -1))
        finally:
            self.socket.close()


class ResetTests(Base):
    """Tests of connections that are reset, which only those over TCP can be."""

    tcp = True

    def test_reset(self) -> None:
        """A connection that is reset is lost."""
        self.connect()
        reset(self.peer)
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionLost)
        self.assertEqual(explain(self.lines.lost[0]), "lost")

    def test_reset_while_congested(self) -> None:
        """A connection that is lost with unwritten data is never `writable` again."""
        for way in ("read", "write"):
            client = self.connect()
            client.reading = False
            self.transport.write(b"x" * 300_000)
            if way == "write":
                self.transport.pauseProducing()
            reset(self.peer)
            self.loop.until(lambda: self.lines.lost)
            self.assertEqual(self.lines.resumed, 0, way)
            self.assertIsInstance(self.end(), ConnectionLost)
            self.tearDown()
            self.setUp()

    def test_write_to_a_dead_connection(self) -> None:
        """A write to a dead connection is reported from the reactor, not to the writer. Later writes are ignored."""
        self.connect()
        self.transport.pauseProducing()
        reset(self.peer)
        self.transport.write(b"one")  # Linux reports the reset here, or at the next one
        self.transport.write(b"two")
        self.assertEqual(self.lines.lost, [])
        self.assertTrue(self.lines.congested)
        self.loop.until(lambda: self.lines.lost)
        self.assertIsInstance(self.end(), ConnectionLost)

    def test_reset_while_closing(self) -> None:
        """A reset instead of the answer to close_notify ends the connection without an error."""
        for size in (10, 300_000):
            client = self.connect()
            client.reading = False
            self.transport.write(b"x" * size)
            self.lines.lose()
            reset(self.peer)
            self.loop.until(lambda: self.lines.lost)
            self.tearDown()
            self.setUp()


class TcpTests(HandshakeBase):
    """Tests of other behaviour that only TCP has."""

    tcp = True

    def test_silent_reset(self) -> None:
        """A peer that resets without sending counts as silent."""
        reset(self.peer)
        self.assertIsNotNone(self.ended())

    def test_gone_in_the_middle(self) -> None:
        """A peer that goes in the middle of its handshake is a failed handshake."""
        for end in (socket.socket.close, reset):
            Client(self.peer).step()
            self.loop.settle()
            self.assertEqual(self.owner.told, ["spoke"])
            end(self.peer)
            self.assertEqual(self.ended(), "lost")
            self.tearDown()
            self.setUp()

    def test_gone_before_the_signature(self) -> None:
        """No signature is made for a peer that has gone, also after a HelloRetryRequest."""
        for gone in (False, True):
            self.peer.send(client_hello(FFDHE2048, bytes(255) + b"\2"))
            self.loop.settle()
            retry = self.peer.recv(65536)
            self.assertEqual((self.owner.told, retry[5]), (["spoke"], SERVER_HELLO))
            self.peer.send(client_hello(X25519, b"\x09" + bytes(31)))
            if gone:
                self.peer.shutdown(socket.SHUT_WR)
                self.assertEqual(self.ended(), "lost")
                self.assertRaises(ConnectionResetError, self.peer.recv, 65536)
                break
            self.loop.settle()
            self.assertEqual(self.peer.recv(65536)[5], SERVER_HELLO)
            self.tearDown()
            self.setUp()

    def test_gone_while_its_hello_is_incomplete(self) -> None:
        """No signature is made for a peer whose ClientHello was complete only when it had gone."""
        hello = client_hello(X25519, b"\x09" + bytes(31))
        with mock.patch.object(socket.socket, "setsockopt"):  # the kernel cannot wait for the whole
            self.peer.send(hello[:60])
            self.loop.settle()
        self.assertEqual(self.owner.told, ["spoke"])
        self.peer.send(hello[60:])
        self.peer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.ended(), "lost")
        self.assertRaises(ConnectionResetError, self.peer.recv, 65536)  # instead of an answer

    def test_addresses(self) -> None:
        """Addresses are Twisted address objects, IPv4-mapped ones are IPv4, and each has a readable form."""
        self.assertEqual((self.transport.getPeer(), self.transport.peer), (IPv4Address("TCP", "127.0.0.1", 5), "127.0.0.1:5"))
        self.assertEqual(cast(IPv4Address, self.transport.getHost()).host, "127.0.0.1")
        for host, address, person in (
            ("::ffff:10.0.0.1", IPv4Address("TCP", "10.0.0.1", 7), "10.0.0.1:7"),
            ("fe80::1", IPv6Address("TCP", "fe80::1", 7), "[fe80::1]:7"),
        ):
            self.transport._host, self.transport._port = host, 7
            self.assertEqual((self.transport.getPeer(), self.transport.peer), (address, person))


class PlainOpenTests(OpenTests):
    plain = True
    opened = ("opened",)


class PlainTcpOpenTests(PlainOpenTests):
    tcp = True


class PlainCloseTests(CloseTests):
    plain = True
    opened = ("opened",)


class PlainTcpCloseTests(PlainCloseTests):
    tcp = True


class PlainRobustnessTests(RobustnessTests):
    plain = True


class PlainResetTests(ResetTests):
    plain = True

    def test_write_to_a_dead_connection(self) -> None:
        """After a write to a dead connection, what the peer sent before is still read. Nothing more is written."""
        client = self.connect()
        self.transport.pauseProducing()
        client.send(b"last words")
        reset(self.peer)
        self.transport.write(b"one")
        self.transport.write(b"two")
        self.assertTrue(self.lines.congested)
        self.loop.settle()
        self.assertEqual((self.lines.lost, self.loop.writers, self.transport.untaken), ([], set(), 0))
        self.assertTrue(self.transport.held_back)
        self.transport.resumeProducing()
        self.loop.until(lambda: self.lines.lost)
        self.assertEqual(self.lines.received, b"last words")
        self.assertIsInstance(self.end(), ConnectionLost)

    def test_reset_while_congested(self) -> None:
        """A connection that is lost with unwritten data is never `writable` again, and is read to its end."""
        for way in ("read", "write"):
            client = self.connect()
            client.reading = False
            self.transport.write(b"x" * 300_000)
            if way == "write":
                self.transport.pauseProducing()
            client.send(b"last words")
            reset(self.peer)
            if way == "write":
                self.loop.until(lambda: self.transport.disconnecting)
                self.transport.resumeProducing()
            self.loop.until(lambda: self.lines.lost)
            self.assertEqual((self.lines.resumed, self.lines.received), (0, b"last words"), way)
            self.assertIsInstance(self.end(), ConnectionLost)
            self.tearDown()
            self.setUp()


class SilentTests(HandshakeBase):
    """Tests of plain connections before they are open."""

    plain = True

    def test_first_bytes(self) -> None:
        """A connection is open, and has a protocol, when its first bytes arrive. These are the protocol's."""
        self.loop.settle()
        self.assertEqual(self.owner.told, [])
        self.peer.send(b"hello\n")
        self.loop.until(lambda: self.lines.received)
        self.assertEqual((self.owner.told, self.lines.received), (["opened"], b"hello\n"))

    def test_silent(self) -> None:
        """A peer that goes without sending counts as silent, and has no protocol."""
        self.peer.close()
        self.assertEqual(self.ended(), "closed before it said anything")
        self.assertEqual(self.owner.told, [("lost", "closed before it said anything")])

    def test_opened_by_the_owner(self) -> None:
        """The owner may open a silent connection, once: the device may wait for the first word of a back end."""
        self.transport.open()
        self.transport.open()
        self.transport.write(b"welcome")
        self.assertEqual((self.owner.told, self.peer.recv(100)), (["opened"], b"welcome"))

    def test_error_of_the_owner(self) -> None:
        """An exception while a connection is opened closes this connection only, whoever opened it."""
        for by_the_owner in (True, False):

            def fail(transport: TCPTransport) -> None:
                raise RuntimeError("ours")

            self.patch(self.owner, "connectionOpened", fail)
            if by_the_owner:
                self.transport.open()
            else:
                self.peer.send(b"hello\n")
            self.loop.until(lambda: self.owner.told)
            self.assertEqual(self.owner.told, [("lost", None)])
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.tearDown()
            self.setUp()

    def test_paused_at_once(self) -> None:
        """The first bytes stay in the socket if the protocol pauses reading when it is connected."""
        connect = self.lines.makeConnection

        def make_connection(transport: Any) -> None:
            connect(transport)
            transport.pauseProducing()

        self.patch(self.lines, "makeConnection", make_connection)
        self.peer.send(b"hello\n")
        self.loop.until(lambda: self.lines.transport is not None)
        self.loop.settle()
        self.assertEqual((self.lines.received, self.transport.unread), (b"", 6))
        self.transport.resumeProducing()
        self.loop.until(lambda: self.lines.received)

    def test_refused_by_the_owner(self) -> None:
        """An owner that refuses the connection closes it, in order."""
        self.owner.refuse = True
        self.peer.send(b"hello\n")
        client = PlainClient(self.peer)
        self.loop.until(lambda: client.ended, client.step)
        self.assertEqual(client.ended, "eof")
        client.close()
        self.assertIsNone(self.ended())

    def test_timeout_close_and_abort(self) -> None:
        """Before it is open, a connection that is overdue, closed or aborted ends without a protocol."""
        for end, reason in (
            (lambda transport: transport.handshakeOverdue("nothing for 15 s"), "nothing for 15 s"),
            (TCPTransport.loseConnection, "closed by the device"),
            (TCPTransport.abortConnection, "lost"),
        ):
            end(self.transport)
            self.assertEqual(self.ended(), reason)
            self.tearDown()
            self.setUp()

    def test_refused_first_bytes(self) -> None:
        """First bytes that the owner refuses close the connection, for its reason."""
        self.peer.send(b"\0")
        self.assertEqual(self.ended(), "no bytes for us")
        self.assertEqual(self.peer.recv(100), b"")

    def test_no_tls(self) -> None:
        """A plain connection has neither a TLS version nor an OpenSSL connection."""
        self.assertEqual((self.transport.tls_version, self.transport.getHandle()), ("", None))


class UnixAddressTests(Base):
    plain = True

    def test_addresses(self) -> None:
        """The peer of a unix socket is named after the socket, and has no host."""
        transport = self.transport
        transport._host, transport._port = "/run/owsla.sock", None
        self.assertEqual((transport.peer, transport.host), ("unix:/run/owsla.sock", None))
        self.assertEqual(transport.getPeer(), UNIXAddress(b"/run/owsla.sock"))
        self.assertIsInstance(transport.getHost(), UNIXAddress)


DEVICE = ("192.0.2.7", 4321)
PROXY = ("10.0.0.1", 8883)


class ProxiedTests(HandshakeBase):
    """Tests of plain connections behind a load balancer that speaks the PROXY protocol."""

    plain = True
    proxied = True

    def speak(self, data: bytes) -> None:
        """Send data as a device behind the header, and wait until the protocol has it."""
        self.peer.send(data)
        self.loop.until(lambda: self.lines.received == data)

    def test_header(self) -> None:
        """The header, of either version, gives the address of the device. The protocol gets what follows it, and not more."""
        for header in (write_v1(DEVICE, PROXY), write_v2(DEVICE, PROXY), write_v2(DEVICE, PROXY, checksum=True)):
            self.assertEqual((self.transport.host, self.transport.awaits_header), (None, True))
            self.peer.send(header)
            self.loop.settle()
            self.assertEqual(self.owner.told, ["header"])
            self.assertEqual((self.transport.host, self.transport.peer), ("192.0.2.7", "192.0.2.7:4321"))
            self.assertEqual(self.transport.getPeer(), IPv4Address("TCP", *DEVICE))
            self.assertFalse(self.transport.awaits_header)
            self.speak(b"hello\n")
            self.assertEqual(self.owner.told, ["header", "opened"])
            self.tearDown()
            self.setUp()

    def test_with_the_first_line(self) -> None:
        """A header that comes together with the first line, as an AWS NLB sends it, is not part of the line."""
        self.peer.send(write_v2(DEVICE, PROXY) + b"hello\n")
        self.loop.until(lambda: self.lines.received == b"hello\n")
        self.assertEqual((self.owner.told, self.transport.peer), (["header", "opened"], "192.0.2.7:4321"))

    def test_in_pieces(self) -> None:
        """A header in pieces of one byte is awaited, and no reactor turn is spent on the same byte twice."""
        for header in (write_v1(DEVICE, PROXY), write_v2(DEVICE, PROXY)):
            for byte in header[:-1]:
                self.peer.send(bytes([byte]))
                self.loop.settle()
                self.assertFalse(self.loop.turn())
            self.assertEqual((self.owner.told, self.transport.awaits_header), ([], True))
            self.peer.send(header[-1:] + b"hello\n")
            self.loop.until(lambda: self.lines.received == b"hello\n")
            self.assertEqual(self.transport.peer, "192.0.2.7:4321")
            self.tearDown()
            self.setUp()

    def test_ipv6(self) -> None:
        """The device may have an IPv6 address."""
        self.peer.send(write_v2(("2001:db8::7", 99), ("2001:db8::1", 8883)))
        self.loop.settle()
        self.assertEqual((self.transport.host, self.transport.peer), ("2001:db8::7", "[2001:db8::7]:99"))
        self.assertEqual(self.transport.getPeer(), IPv6Address("TCP", "2001:db8::7", 99))

    def test_unknown(self) -> None:
        """Without an address in the header, the peer is the load balancer, and no limit for an address applies."""
        self.peer.send(b"PROXY UNKNOWN\r\n")
        self.speak(b"hello\n")
        self.assertEqual((self.transport.host, self.transport.peer, self.transport.local), (None, "127.0.0.1:5", False))

    def test_common_name(self) -> None:
        """The header may give the common name of a client certificate that the proxy has verified."""
        self.assertIsNone(self.transport.proxy_identity)
        self.peer.send(write_v2(DEVICE, PROXY, common_name="sensor 7"))
        self.speak(b"hello\n")
        self.assertEqual((self.transport.proxy_identity, self.transport.tls_version), ("sensor 7", ""))

    def test_health_checks(self) -> None:
        """A health check is no failed handshake: it says that it is LOCAL, or closes without a header."""
        for header in (b"", write_v2(None, PROXY)):
            self.peer.send(header)
            self.loop.settle()
            self.assertEqual(self.transport.local, bool(header))
            self.peer.close()
            self.assertIsNone(self.ended())
            self.tearDown()
            self.setUp()

    def test_silent_after_the_header(self) -> None:
        """A connection that closes after its header, without another byte, is no failed handshake: a health check cannot say
        LOCAL in version 1, and one of another load balancer is relayed.
        """
        self.peer.send(write_v1(DEVICE, PROXY))
        self.loop.settle()
        self.peer.close()
        self.assertIsNone(self.ended())
        self.assertEqual(self.transport.peer, "192.0.2.7:4321")

    def test_half_a_header(self) -> None:
        """A peer that closes within its header is a failed handshake, and so is one that is overdue."""
        self.peer.send(write_v1(DEVICE, PROXY)[:20])
        self.loop.settle()
        self.peer.close()
        self.assertEqual(self.ended(), "closed within its PROXY protocol header")
        self.tearDown()
        self.setUp()
        self.peer.send(write_v1(DEVICE, PROXY)[:20])
        self.loop.settle()
        self.transport.handshakeOverdue("too late")
        self.assertEqual(self.ended(), "too late")

    def test_no_header(self) -> None:
        """Bytes that are no header close the connection, and the reason says what came instead."""
        for data, reason in (
            (b"hello\n", "no PROXY protocol header, but b'hello\\n'"),
            (b"\x16\x03\x01\x00\x80\x01", "a ClientHello without a PROXY protocol header before it"),
        ):
            self.peer.send(data)
            self.assertEqual(self.ended(), reason)
            self.assertEqual(self.peer.recv(100), b"")
            self.tearDown()
            self.setUp()

    def test_refused_address(self) -> None:
        """The owner may refuse the address of the device. That is no failed handshake, and has no host to be counted for."""
        self.owner.admits = False
        self.peer.send(write_v1(DEVICE, PROXY) + b"hello\n")
        self.assertIsNone(self.ended())
        self.assertEqual((self.owner.told, self.transport.host), (["header", ("lost", None)], None))

    def test_evicted(self) -> None:
        """A connection with half a header can be evicted. One whose header has just arrived is heard first."""
        self.peer.send(write_v1(DEVICE, PROXY)[:20])
        self.transport.checkHello()
        self.assertTrue(self.transport.awaits_header)
        self.peer.send(write_v1(DEVICE, PROXY)[20:])
        self.transport.checkHello()
        self.assertFalse(self.transport.awaits_header)
        self.transport.evict()
        self.assertIsNone(self.ended())


class ProxiedTcpTests(ProxiedTests):
    tcp = True


class ProxiedTLSTests(HandshakeBase):
    """Tests of TLS connections behind a load balancer: the header is in front of TLS."""

    tcp = True
    proxied = True

    def hello(self) -> bytes:
        """Return a ClientHello."""
        memory = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        memory.set_connect_state()
        self.assertRaises(SSL.WantReadError, memory.do_handshake)
        return memory.bio_read(65536)

    def test_header(self) -> None:
        """The handshake begins behind the header. TLS gives the identity, and not the header."""
        self.peer.send(write_v2(DEVICE, PROXY, common_name="sensor 7"))
        client = self.connect()
        client.write(b"hello\n")
        self.loop.until(lambda: self.lines.received == b"hello\n")
        self.assertEqual(self.owner.told, ["header", "spoke", "secured"])
        self.assertEqual(self.transport.peer, "192.0.2.7:4321")

    def test_in_one_packet(self) -> None:
        """A header and a ClientHello in one packet are told apart."""
        self.peer.send(write_v1(DEVICE, PROXY) + self.hello())
        self.loop.until(lambda: "spoke" in self.owner.told)
        self.assertEqual(self.owner.told, ["header", "spoke"])
        self.loop.settle()
        self.assertGreater(len(self.peer.recv(65536)), 100)  # the ServerHello and more

    def test_in_pieces(self) -> None:
        """A header and a ClientHello may come in pieces, and the wait for the rest of either costs nothing."""
        header, hello = write_v2(DEVICE, PROXY), self.hello()
        pieces = [header[at : at + 1] for at in range(len(header))]
        pieces += [hello[at : at + 100] for at in range(0, len(hello), 100)]
        for piece in pieces:
            self.assertNotIn("spoke", self.owner.told)
            self.peer.send(piece)
            self.loop.settle()
            self.assertFalse(self.loop.turn())
        self.loop.settle()
        self.assertEqual(self.owner.told, ["header", "spoke"])

    def test_health_checks(self) -> None:
        """A health check is no failed handshake, also if it sends half a ClientHello."""
        for data in (write_v2(None, PROXY), write_v2(None, PROXY) + self.hello()[:50]):
            self.peer.send(data)
            self.loop.settle()
            self.peer.close()
            self.assertIsNone(self.ended())
            self.tearDown()
            self.setUp()

    def test_other_protocol(self) -> None:
        """What is neither a header nor TLS behind one is named."""
        for data, reason in (
            (self.hello(), "a ClientHello without a PROXY protocol header before it"),
            (write_v1(DEVICE, PROXY) + b"GET / HTTP/1.1\r\n", "TLS: an HTTP request instead of a ClientHello"),
            (write_v1(DEVICE, PROXY) * 2, "TLS: a PROXY protocol header instead of a ClientHello"),
        ):
            self.peer.send(data)
            self.assertEqual(self.ended(), reason)
            self.tearDown()
            self.setUp()
