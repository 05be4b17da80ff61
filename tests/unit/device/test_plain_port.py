"""Tests of device ports without TLS, on unix sockets, and behind load balancers that speak the PROXY protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest import mock

from OpenSSL import SSL

from owsla.device import listening as listening_module
from owsla.device.listening import SEND_BUFFER, reachable_by_others, shown_address
from owsla.device.port import SILENT_TIME, DevicePort
from owsla.device.proxy_header import write_v1, write_v2
from owsla.device.proxy_senders import UNTRUSTED_INTERVAL, ProxySenders, Sender
from owsla.events import (
    DeviceConnected,
    DeviceDisconnected,
    Full,
    HandshakeFailed,
    Listening,
    ProxyUntrusted,
    SilentEvicted,
    TurnedAway,
)
from owsla.runtime.sockets import bind, bind_unix

from ._fakes import Source
from ._sockets import Client, PlainClient, reset
from .test_port import Base

LOOPBACK: tuple[Sender, ...] = (ip_network("127.0.0.0/8"),)
DEVICE = ("192.0.2.7", 4321)
PROXY = ("10.0.0.1", 8883)


class PlainBase(Base):
    """Base of tests of a port without TLS."""

    def open(self, **options: Any) -> DevicePort:
        """Return a port that is open."""
        return self.listen(plain=True, **options)

    def say(self, sock: socket.socket, data: bytes) -> None:
        """Send bytes, and wait until the port has done with them."""
        sock.setblocking(False)
        sock.send(data)
        self.loop.settle()

    def lines(self) -> list[bytes]:
        """Return the lines that were published."""
        return [line for _, _, line in self.sink.lines]


class PlainPortTests(PlainBase):
    def test_lines_both_ways(self) -> None:
        """Lines are published, and messages are written, without TLS."""
        listener = self.open()
        client = self.connect()
        self.say(client, b"one\r\ntwo\n")
        self.assertEqual(self.lines(), [b"one", b"two"])
        (connection,) = self.registry
        source = Source()
        connection.send(source, source.next(), b"", b"answer", connection.connection_id, None)
        self.loop.settle()
        self.assertEqual(client.recv(100), b"answer\r\n")
        (connected,) = self.of_type(DeviceConnected)
        self.assertEqual((connected.tls, connected.device_id), ("", None))
        (listening,) = self.of_type(Listening)
        self.assertEqual((listening.tls, listening.port), (False, listener.port))
        self.assertEqual((listener.handshakes, self.admission.open), (1, 1))

    def test_health_check(self) -> None:
        """A connection that is closed without a byte is not that of a device."""
        listener = self.open()
        self.connect().close()
        self.loop.settle()
        (failed,) = self.of_type(HandshakeFailed)
        self.assertEqual(failed.reason, "closed before it said anything")
        self.assertEqual((self.of_type(DeviceConnected), listener.handshakes), ([], 0))

    def test_device_that_waits(self) -> None:
        """A silent connection is open after a second: the device may wait for a message."""
        self.open()
        client = self.connect()
        for _ in range(9):
            self.loop.advance(0.1)
        self.assertEqual((self.of_type(DeviceConnected), self.admission.open), ([], 0))
        self.loop.advance(SILENT_TIME - 0.8)
        self.loop.settle()
        self.assertEqual((len(self.of_type(DeviceConnected)), self.admission.open), (1, 1))
        client.close()
        self.loop.settle()
        self.assertEqual(len(self.of_type(DeviceDisconnected)), 1)

    def test_short_handshake_timeout(self) -> None:
        """A time-out for handshakes below a second closes no silent device: without TLS there is no handshake."""
        listener = self.open(handshake_timeout=0.5)
        self.connect()
        self.later(2)
        self.assertEqual((len(self.of_type(DeviceConnected)), listener.failed_handshakes), (1, 0))

    def test_other_protocols(self) -> None:
        """What is not meant for this port is named, and closed."""
        self.open()
        for data, name in ((b"GET / HTTP/1.1\r\n\r\n", "an HTTP request"), (b"SSH-2.0-x\r\n", "an SSH client's greeting")):
            client = self.connect()
            self.say(client, data)
            self.assertEqual(client.recv(100), b"")
            self.assertEqual(self.of_type(HandshakeFailed)[-1].reason, f"{name}, and this port is without TLS")
        self.assertEqual(self.of_type(DeviceConnected), [])

    def test_header_without_need(self) -> None:
        """A PROXY protocol header is not a matter of TLS: it is named with the option."""
        self.open()
        for data, name in (
            (write_v1(DEVICE, PROXY), "a PROXY protocol header"),
            (write_v2(DEVICE, PROXY), "a PROXY protocol header (version 2)"),
        ):
            self.say(self.connect(), data)
            reason = self.of_type(HandshakeFailed)[-1].reason
            self.assertEqual(reason, f"{name}, which this door does not expect (--proxy-protocol)")

    def test_limit_on_connections(self) -> None:
        """The limit on connections holds. A silent one is closed for another, and an open one is not."""
        listener = self.open(max_connections=2, max_handshakes=1)
        first = self.connect()
        self.say(first, b"one\n")
        silent = self.connect()
        self.assertTrue(listener.accepting)
        third = self.connect()
        self.assertEqual(len(self.of_type(SilentEvicted)), 0)  # it is told with the next sweep
        self.assertEqual(listener.evicted, 1)
        with self.assertRaises(ConnectionResetError):
            silent.recv(1)
        self.say(third, b"three\n")
        self.assertEqual((self.admission.open, listener.accepting), (2, False))
        self.assertEqual(len(self.of_type(Full)), 1)
        fourth = self.connect()
        first.close()
        self.say(fourth, b"four\n")
        self.assertEqual(self.lines(), [b"one", b"three", b"four"])
        self.later(1)

    def test_many_silent_ones(self) -> None:
        """Devices that wait for their first message are not closed for others while there are places: they are open sooner."""
        listener = self.open(max_connections=20, max_handshakes=1)
        clients = [self.connect() for _ in range(2 * self.admission.max_silent + 1)]
        self.assertEqual(listener.evicted, 0)
        self.assertGreaterEqual(self.admission.open, len(clients) - self.admission.max_silent)
        self.later(round(SILENT_TIME) + 1)
        self.assertEqual(self.admission.open, len(clients))

    def test_heard_before_it_is_evicted(self) -> None:
        """A connection whose first bytes have just come is not evicted as a silent one."""
        listener = self.open(max_connections=2, max_handshakes=1)
        first = self.connect()
        first.send(b"one\n")
        second = self.knock()
        third = self.knock()
        listener._acceptor.doRead()
        self.loop.settle()
        self.assertIn(b"one", self.lines())
        self.say(third, b"three\n")
        self.assertIn(b"three", self.lines())
        second.close()

    def test_limit_for_an_address(self) -> None:
        """The limit for each address holds at accept."""
        listener = self.open(max_per_address=1)
        self.say(self.connect(), b"one\n")
        with self.assertRaises(ConnectionResetError):
            self.connect().recv(1)
        self.say(self.connect("127.0.0.2"), b"two\n")
        self.assertEqual((self.lines(), listener.turned_away), ([b"one", b"two"], 1))

    def test_deferred(self) -> None:
        """The kernel reports a plain connection at once, also on a socket that had TCP_DEFER_ACCEPT: its device may wait for a
        message. With TLS, or behind a proxy, the first bytes come from the other side.
        """
        for plain, senders, deferred in ((True, (), False), (True, LOOPBACK, True), (False, (), True)):
            self.patch(listening_module, "DEFER_ACCEPT", 3)
            sock = bind(0, "127.0.0.1")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 7)
            self.listen(plain=plain, proxy_senders=senders, sock=sock)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0, deferred)
            self.tearDown()
            self.setUp()

    def test_in_the_open(self) -> None:
        """Plain TCP that other hosts can reach is said in the log as what it is."""
        for interface, warned in (("127.0.0.1", 0), ("::1", 0), ("0.0.0.0", 1), ("", 1)):
            with mock.patch.object(DevicePort, "_log") as log:
                listener = self.open(sock=bind(0, interface))
                self.assertEqual(log.warn.call_count, warned, interface)
            if warned:
                text = log.warn.call_args.args[0].format(**log.warn.call_args.kwargs)
                address = "all IPv4 interfaces" if interface else "all interfaces"
                self.assertEqual(
                    text,
                    f"--port: plain TCP on port {listener.port} ({address}): the network can read and change what devices "
                    "send and get",
                )
            self.tearDown()
            self.setUp()

    def test_after_the_port_closed(self) -> None:
        """A silent connection of a port that is closed does not become that of a device."""
        listener = self.open()
        client = self.connect()
        listener.stopListening()
        self.say(client, b"late\n")
        self.assertEqual((self.lines(), self.of_type(DeviceConnected)), ([], []))
        self.assertEqual(client.recv(10), b"")


class UnixPortTests(PlainBase):
    """A port on a unix socket."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name) / "owsla.sock"

    def knock(self, source: str = "") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(os.fspath(self.path))
        client.setblocking(False)
        self.clients.append(client)
        return client

    def test_lines(self) -> None:
        """A device on a unix socket is one like any other. Its peer is the socket, and no limit for an address applies."""
        listener = self.open(sock=bind_unix(self.path, 0o600), max_per_address=1)
        for line in (b"one\n", b"two\n"):
            self.say(self.connect(), line)
        self.assertEqual(self.lines(), [b"one", b"two"])
        connected = self.of_type(DeviceConnected)
        self.assertEqual([event.peer for event in connected], [f"unix:{self.path}"] * 2)
        (listening,) = self.of_type(Listening)
        self.assertEqual((listening.address, listening.port, listener.port), (f"unix:{self.path}", 0, 0))

    def test_tls(self) -> None:
        """A unix socket may be with TLS, too."""
        self.listen(sock=bind_unix(self.path, 0o600))
        client = self.device()
        client.write(b"one\n")
        self.loop.until(lambda: self.sink.lines, client.step)

    def test_half_a_hello(self) -> None:
        """A connection with a part of a ClientHello is silent, and does not keep the process busy. The rest completes it."""
        self.listen(sock=bind_unix(self.path, 0o600))
        sock = self.connect()
        device = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        device.set_connect_state()
        self.assertRaises(SSL.WantReadError, device.do_handshake)
        hello = device.bio_read(4096)
        for part in (hello[:3], hello[3:100]):
            self.say(sock, part)
            self.assertFalse(self.loop.turn())
            self.later(1)
            self.assertEqual((self.admission.connections, self.admission.spoken, self.admission.handshaking), (1, 0, 0))
        sock.send(hello[100:])
        self.later(1)
        self.assertEqual((self.admission.spoken, self.admission.handshaking), (1, 1))

    def test_half_a_hello_and_closed(self) -> None:
        """A peer that closes within its ClientHello is noticed."""
        self.listen(sock=bind_unix(self.path, 0o600))
        sock = self.connect()
        self.say(sock, b"\x16\x03\x01")
        sock.close()
        self.later(1)
        self.assertEqual(self.admission.connections, 0)

    def test_send_buffer(self) -> None:
        """Accepted sockets do not inherit the size of the send buffer there, so that it is set: a device that reads nothing is
        sent no more than elsewhere.
        """
        self.open(sock=bind_unix(self.path, 0o600))
        self.say(self.connect(), b"one\n")
        (connection,) = self.registry
        sock = connection.transport._socket
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 2 * SEND_BUFFER)

    def test_proxied(self) -> None:
        """Behind a proxy on a unix socket, the header gives the address of the device, and limits for it hold."""
        listener = self.open(sock=bind_unix(self.path, 0o600), proxy_senders=("unix",), max_per_address=1)
        self.say(self.connect(), write_v1(DEVICE, PROXY) + b"one\n")
        self.say(self.connect(), write_v1(DEVICE, PROXY) + b"two\n")
        self.assertEqual((self.lines(), listener.turned_away), ([b"one"], 1))
        self.assertEqual(self.of_type(DeviceConnected)[0].peer, "192.0.2.7:4321")

    def test_half_a_header(self) -> None:
        """Half a header over a unix socket does not keep the process busy."""
        self.open(sock=bind_unix(self.path, 0o600), proxy_senders=("unix",))
        self.say(self.connect(), write_v1(DEVICE, PROXY)[:20])
        self.assertFalse(self.loop.turn())

    def test_untrusted(self) -> None:
        """A unix socket is trusted only if it is named as such."""
        listener = self.open(sock=bind_unix(self.path, 0o600), proxy_senders=LOOPBACK)
        with contextlib.suppress(OSError):
            self.connect().send(write_v1(DEVICE, PROXY))
        self.loop.settle()
        self.assertEqual((listener.untrusted, self.admission.connections), (1, 0))
        self.later(2)
        self.assertIn(
            "1 connection refused from peers that --proxy-protocol does not trust; the last one from a unix socket",
            str(self.of_type(ProxyUntrusted)[0]),
        )


class ProxiedPortTests(PlainBase):
    """A port without TLS behind a load balancer."""

    def open(self, **options: Any) -> DevicePort:
        return self.listen(plain=True, proxy_senders=LOOPBACK, **options)

    def test_device(self) -> None:
        """Events name the device's address, and its lines begin behind the header."""
        self.open()
        self.say(self.connect(), write_v2(DEVICE, PROXY) + b"one\n")
        (connected,) = self.of_type(DeviceConnected)
        self.assertEqual((connected.peer, self.lines()), ("192.0.2.7:4321", [b"one"]))

    def test_untrusted(self) -> None:
        """Peers that are not trusted are closed at once, and told of once a minute, with the number."""
        listener = self.listen(plain=True, proxy_senders=(ip_network("127.0.0.2/32"),))
        for _ in range(3):
            with self.assertRaises(ConnectionResetError):
                self.connect().recv(1)
        self.later(2)
        (told,) = self.of_type(ProxyUntrusted)
        self.assertEqual((told.connections, told.address, listener.untrusted), (3, "127.0.0.1", 3))
        self.assertIn("3 connections refused", str(told))
        self.connect()
        self.later(5)
        self.assertEqual(len(self.of_type(ProxyUntrusted)), 1)
        self.later(int(UNTRUSTED_INTERVAL))
        self.assertEqual([event.connections for event in self.of_type(ProxyUntrusted)], [3, 1])
        self.say(self.connect("127.0.0.2"), write_v1(DEVICE, PROXY) + b"one\n")
        self.assertEqual((self.lines(), self.of_type(HandshakeFailed)), ([b"one"], []))

    def test_limit_for_an_address(self) -> None:
        """The limit for each address is that of the device's. Neither the proxy nor a connection without its header counts."""
        listener = self.open(max_per_address=2)
        checks = [self.connect() for _ in range(3)]
        for check in checks:
            self.say(check, write_v2(None, PROXY))
        for number in range(3):
            self.say(self.connect(), write_v1(("192.0.2.7", number), PROXY) + b"%d\n" % number)
        self.say(self.connect(), write_v1(("192.0.2.8", 1), PROXY) + b"other\n")
        self.assertEqual((self.lines(), listener.turned_away), ([b"0", b"1", b"other"], 1))
        self.later(2)
        (told,) = self.of_type(TurnedAway)
        self.assertEqual((told.connections, told.address), (1, "192.0.2.7"))
        self.assertEqual(self.of_type(HandshakeFailed), [])
        one = next(iter(self.registry))
        one.transport.abortConnection()
        self.loop.settle()
        self.say(self.connect(), write_v1(("192.0.2.7", 9), PROXY) + b"again\n")
        self.assertEqual(self.lines()[-1], b"again")

    def test_half_a_header_is_silent(self) -> None:
        """A connection with half a header is silent: it is evicted for others, and overdue in the end."""
        listener = self.open(max_connections=4, max_handshakes=1)
        first = self.connect()
        self.say(first, write_v1(DEVICE, PROXY)[:20])
        self.connect()
        self.connect()
        self.assertEqual(listener.evicted, 1)
        with self.assertRaises(ConnectionResetError):
            first.recv(1)
        self.assertEqual(self.admission.open, 0)
        for _ in range(16):
            self.later(1)
        self.assertEqual(
            {event.reason for event in self.of_type(HandshakeFailed)}, {"no PROXY protocol header within 15 s"}
        )
        self.assertEqual((self.admission.connections, self.of_type(DeviceConnected)), (0, []))

    def test_silent_device(self) -> None:
        """A silent device behind its header is open after a second, a health check never."""
        self.open()
        device, check = self.connect(), self.connect()
        self.say(device, write_v1(DEVICE, PROXY))
        self.say(check, write_v2(None, PROXY))
        self.later(2)
        self.assertEqual([event.peer for event in self.of_type(DeviceConnected)], ["192.0.2.7:4321"])
        check.close()
        self.loop.settle()
        self.assertEqual(self.of_type(HandshakeFailed), [])

    def test_health_checks(self) -> None:
        """Health checks make no event and no failed handshake: with LOCAL, without a header, and with a reset."""
        listener = self.open()
        for end in (socket.socket.close, reset):
            self.say(check := self.connect(), write_v2(None, PROXY))
            end(check)
            end(self.connect())
            self.loop.settle()
        self.assertEqual((self.events[1:], listener.failed_handshakes, self.admission.connections), ([], 0, 0))

    def test_missing_and_malformed(self) -> None:
        """Missing and malformed headers are named."""
        self.open()
        for data, reason in (
            (b"one\n", "no PROXY protocol header, but b'one\\n'"),
            (b"PROXY TCP4 x y 1 2\r\n", "malformed"),
            (write_v2(DEVICE, PROXY, checksum=True)[:-1] + b"?", "a PROXY protocol header with a wrong checksum"),
        ):
            self.say(self.connect(), data)
            self.assertIn(reason, self.of_type(HandshakeFailed)[-1].reason)
        self.assertEqual(self.lines(), [])

    def test_identity(self) -> None:
        """The header identifies the device only where the operator says so."""
        identities: dict[bool, str | None] = {False: None, True: "sensor 7"}
        for trusted, identity in identities.items():
            self.open(proxy_identity=trusted)
            self.say(self.connect(), write_v2(DEVICE, PROXY, common_name="sensor 7") + b"one\n")
            (connected,) = self.of_type(DeviceConnected)
            self.assertEqual(connected.device_id, identity)
            self.tearDown()
            self.setUp()

    def test_identity_with_tls(self) -> None:
        """With TLS the certificate identifies the device, whatever the header says."""
        self.listen(proxy_senders=LOOPBACK, proxy_identity=True)
        sock = self.connect()
        sock.send(write_v2(DEVICE, PROXY, common_name="sensor 7"))
        client = Client(sock)
        self.loop.until(lambda: client.secure and len(self.registry), client.step)
        (connected,) = self.of_type(DeviceConnected)
        self.assertEqual((connected.device_id, connected.peer), ("somebody", "192.0.2.7:4321"))

    def test_another_header(self) -> None:
        """A header behind the header is not one that the door expects, either."""
        self.open()
        self.say(self.connect(), write_v1(DEVICE, PROXY) * 2)
        self.assertEqual(self.of_type(HandshakeFailed)[0].reason, "a PROXY protocol header behind another one")

    def test_other_protocols_behind_the_header(self) -> None:
        """Behind a header, too, other protocols are named, with the address of the device."""
        self.open()
        self.say(self.connect(), write_v1(DEVICE, PROXY) + b"GET / HTTP/1.1\r\n\r\n")
        (failed,) = self.of_type(HandshakeFailed)
        self.assertEqual(
            (failed.peer, failed.reason), ("192.0.2.7:4321", "an HTTP request, and this port is without TLS")
        )


class SendersTests(Base):
    def test_networks(self) -> None:
        """Networks of both families are trusted, also for IPv4 addresses in IPv6 form. All others are counted."""
        senders = ProxySenders([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")], lambda: 0.0)
        for host in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "2001:db8::1%2"):
            self.assertTrue(senders.trusts(host), host)
        for count, (peer, shown) in enumerate(
            (("11.1.2.3", "11.1.2.3"), ("::ffff:11.1.2.3", "11.1.2.3"), ("::1", "::1"), (None, "a unix socket")), 1
        ):
            self.assertFalse(senders.trusts(peer), peer)
            self.assertEqual((senders.untrusted.count, senders.untrusted.last), (count, shown))
        senders.configure(["unix"])
        self.assertEqual((senders.trusts(None), senders.trusts("10.1.2.3")), (True, False))


class AddressTests(Base):
    def test_shown(self) -> None:
        """The address of a listening socket for people says which IP versions it accepts, or its path."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.sock"
            for sock, shown, others in (
                (bind(0, "127.0.0.1"), "127.0.0.1", False),
                (bind(0, "0.0.0.0"), "all IPv4 interfaces", True),
                (bind(0, ""), "all interfaces", True),
                (bind(0, "::1"), "::1", False),
                (bind_unix(path, 0o600), f"unix:{path}", False),
            ):
                with sock:
                    self.assertEqual((shown_address(sock)[0], reachable_by_others(sock)), (shown, others))


class SlowPlainDeviceTests(PlainBase):
    def test_slow_device(self) -> None:
        """A device that reads nothing holds up its own messages only, and gets all of them once it reads."""
        for sock in (None, "unix"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "a.sock"
                self.open(sock=bind_unix(path, 0o600) if sock else None, write_buffer=1_000_000)
                if sock:
                    client = socket.socket(socket.AF_UNIX)
                    client.connect(os.fspath(path))
                    client.setblocking(False)
                    self.clients.append(client)
                else:
                    client = self.connect()
                self.say(client, b"one\n")
                (connection,) = self.registry
                source = Source(prefetch=10_000)
                for number in range(400):
                    connection.send(source, source.next(), b"", b"%06d" % number * 150, connection.connection_id, None)
                self.loop.settle()
                self.assertGreater(source.outstanding, 0)
                device = PlainClient(client)
                self.loop.until(lambda: len(device.received) == 400 * 902, device.step)  # noqa: B023
                expected = b"".join(b"%06d" % number * 150 + b"\r\n" for number in range(400))
                self.assertEqual((device.received, source.outstanding), (expected, 0))
                self.tearDown()
                self.setUp()
