"""Tests of immediate writes to a broker's socket, over real TCP connections of Twisted."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from owsla.broker.socket_writer import Writable, socket_writer

from ._support.waiting import reactor_test, until, within

reactor: Any = _reactor


class End(Protocol):
    """One end of a connection: the bytes received, and the reason of its end."""

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended: BaseException | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason.value

    @property
    def socket(self) -> socket.socket:
        handle: socket.socket = self.transport.getHandle()
        return handle


class Ends(Factory):
    noisy = False

    def __init__(self) -> None:
        self.made: Deferred[End] = Deferred()

    def buildProtocol(self, addr: IAddress | None) -> End:
        end = End()
        self.made.callback(end)
        return end


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[End, End, Writable]]:
    """Return a connection: the local end, the remote end, which does not read yet, and the writer of the local end."""
    listening = Ends()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(listening)
    ours: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port).connect(cast(Any, Ends()))
    theirs = await within(listening.made)
    await port.stopListening()
    theirs.transport.pauseProducing()
    try:
        yield ours, theirs, socket_writer(ours.transport)
    finally:
        for end in (ours, theirs):
            end.transport.abortConnection()
        await until(lambda: ours.ended and theirs.ended)


def _at_once(theirs: End, out: Writable) -> None:
    """Check that the bytes are in the socket when `write` returns: the reactor ran no turn before the other end has them."""
    out.write(b"hello ")
    out.write(b"there")
    theirs.socket.setblocking(True)
    assert theirs.socket.recv(11, socket.MSG_WAITALL) == b"hello there"


@reactor_test
async def test_at_once() -> None:
    """Written bytes are sent before the next turn of the reactor."""
    async with connected() as (_, theirs, out):
        _at_once(theirs, out)


@reactor_test
async def test_more_than_the_socket_takes() -> None:
    """Bytes that the socket does not accept follow in order, before all later writes. Then writes are immediate again."""
    async with connected() as (ours, theirs, out):
        parts = [b"%06d" % number * 10_000 for number in range(300)]
        for part in parts[:-1]:
            out.write(part)
        # The socket has room again, but the transport was not notified yet.
        theirs.socket.setblocking(True)
        theirs.data += theirs.socket.recv(1_000_000, socket.MSG_WAITALL)
        theirs.socket.setblocking(False)
        out.write(parts[-1])
        theirs.transport.resumeProducing()
        whole = b"".join(parts)
        await until(lambda: len(theirs.data) >= len(whole))
        assert theirs.data == whole
        theirs.transport.pauseProducing()
        await until(lambda: ours.transport.producer is None)
        _at_once(theirs, out)


@reactor_test
async def test_closed_with_something_left() -> None:
    """A connection that is closed sends the written bytes first."""
    async with connected() as (ours, theirs, out):
        whole = b"abcdefgh" * 1_000_000
        out.write(whole)
        out.write(b"the end")
        ours.transport.loseConnection()
        theirs.transport.resumeProducing()
        await until(lambda: ours.ended and theirs.ended)
        assert theirs.data == whole + b"the end"


@reactor_test
async def test_broken() -> None:
    """A write to a broken or closed socket raises nothing: the transport finds the error."""
    async with connected() as (ours, theirs, out):
        theirs.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.transport.abortConnection()
        await until(lambda: theirs.ended)
        for _ in range(3):
            out.write(b"is anybody there?" * 100_000)
        await until(lambda: ours.ended)
        assert isinstance(ours.ended, ConnectionLost | ConnectionDone)  # whichever error it finds first
        out.write(b"no")


def test_no_socket_of_its_own() -> None:
    """If the transport is not a plain socket (TLS, for example), the transport does all writes."""
    transport = StringTransport()
    assert socket_writer(transport) is transport
