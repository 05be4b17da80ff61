"""Real sockets under a small reactor, which a test turns by hand, with a clock that the test advances."""

from __future__ import annotations

import select
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.task import Clock

from owsla.device.acceptor import Acceptor
from owsla.device.poller import SocketSet
from owsla.tls.development import development_certificates
from owsla.tls.device import DeviceTLS, DeviceTLSFiles, load_device_tls


class Loop(Clock):
    """Level-triggered reactor. Exceptions of descriptors propagate out of `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.crowded = True

    def addReader(self, reader: Any) -> None:
        assert reader.fileno() >= 0
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        assert writer.fileno() >= 0
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def turn(self, wait: float = 0.0) -> bool:
        """Run one turn. Return whether any descriptor was ready."""
        self.advance(0)
        wanted: dict[int, int] = {}
        by_fd: dict[int, Any] = {}
        for group, flag in ((self.readers, select.POLLIN), (self.writers, select.POLLOUT)):
            for one in group:
                assert one.fileno() >= 0, f"{one} is closed and still watched"
                wanted[one.fileno()] = wanted.get(one.fileno(), 0) | flag
                by_fd[one.fileno()] = one
        poll = select.poll()
        for fd, flags in wanted.items():
            poll.register(fd, flags)
        ready = poll.poll(wait * 1000)
        for fd, flags in ready:
            one = by_fd[fd]
            if flags & (select.POLLIN | select.POLLHUP | select.POLLERR) and one in self.readers:
                one.doRead()
            if flags & (select.POLLOUT | select.POLLHUP | select.POLLERR) and one in self.writers:
                one.doWrite()
        self.advance(0)
        return bool(ready)

    def until(self, condition: Callable[[], Any], *others: Callable[[], Any]) -> None:
        """Turn until the condition holds, and let other threads and processes run as well. Real time is bounded."""
        end = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            for other in others:
                other()
            self.turn(0.001)

    def settle(self, *others: Callable[[], Any]) -> None:
        """Turn until no descriptor is ready."""
        quiet = 0
        while quiet < 4:
            for other in others:
                other()
            quiet = 0 if self.turn(0.002) else quiet + 1


def polled(*pollers: SocketSet) -> list[Any]:
    """Return the connections in the epoll sets of pollers."""
    return [one for poller in pollers for one in poller._sockets if one is not None and not isinstance(one, Acceptor)]


@cache
def device_tls() -> DeviceTLS:
    """Return the TLS of a device port with a development certificate."""
    with tempfile.TemporaryDirectory() as directory:
        made = development_certificates(Path(directory), "localhost")
        return DeviceTLS(load_device_tls(DeviceTLSFiles(pairs=[(made.cert, made.key)])))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection over the loopback interface: that of the server, and that of the client."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    for one in (server, client):
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    return server, client


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a local connection, which has a small buffer and no delay."""
    server, client = socket.socketpair()
    for one in (server, client):
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    return server, client


def reset(sock: socket.socket) -> None:
    """Close the socket with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Client:
    """Device with OpenSSL over a socket. `step` does everything that is possible without waiting."""

    def __init__(self, sock: socket.socket, version: int | None = None) -> None:
        client_context = SSL.Context(SSL.TLS_METHOD)
        if version is not None:
            client_context.set_max_proto_version(version)
        self.socket = sock
        self.tls = SSL.Connection(client_context, sock)
        self.tls.set_connect_state()
        self.secure = False
        self.reading = True
        self.received = b""
        self.ended = ""
        """Way in which the server ended the connection: `notify`, `eof` or `reset`."""
        self._outgoing = b""

    goodbye = "notify"
    """Way in which the server ends a connection in order."""

    def write(self, data: bytes) -> None:
        self._outgoing += data
        self.step()

    def send(self, data: bytes) -> None:
        """Send data without reading."""
        assert self.tls.send(data) == len(data)

    def shutdown(self) -> None:
        """Send the end of the data. Reading goes on."""
        self.tls.shutdown()

    def step(self) -> None:
        if self.ended or self.socket.fileno() < 0:
            return
        try:
            if not self.secure:
                self.tls.do_handshake()
                self.secure = True
            while self._outgoing:
                self._outgoing = self._outgoing[self.tls.send(self._outgoing[:16384]) :]
            while self.reading:
                self.received += self.tls.recv(65536)
        except (SSL.WantReadError, SSL.WantWriteError):
            pass
        except SSL.ZeroReturnError:
            self.ended = "notify"
        except SSL.SysCallError as error:
            self.ended = "eof" if error.args[0] == -1 else "reset"
        except SSL.Error:
            self.ended = "eof"

    def close(self) -> None:
        """Close the socket, without close_notify."""
        self.socket.close()


class PlainClient:
    """Device without TLS. `step` does everything that is possible without waiting."""

    goodbye = "eof"
    secure = True

    def __init__(self, sock: socket.socket, version: int | None = None) -> None:
        self.socket = sock
        self.reading = True
        self.received = b""
        self.ended = ""
        """Way in which the server ended the connection: `eof` or `reset`."""
        self._outgoing = b""

    def write(self, data: bytes) -> None:
        self._outgoing += data
        self.step()

    def send(self, data: bytes) -> None:
        """Send data without reading."""
        assert self.socket.send(data) == len(data)

    def shutdown(self) -> None:
        """Send the end of the data. Reading goes on."""
        self.socket.shutdown(socket.SHUT_WR)

    def step(self) -> None:
        if self.ended or self.socket.fileno() < 0:
            return
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.socket.send(self._outgoing[:16384]) :]
            while self.reading:
                data = self.socket.recv(65536)
                if not data:
                    self.ended = "eof"
                    return
                self.received += data
        except BlockingIOError:
            pass
        except OSError:
            self.ended = "reset"

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
