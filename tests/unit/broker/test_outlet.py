"""Writing to a broker's socket at once, over real TCP connections of Twisted's."""

from __future__ import annotations

import socket
import struct
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from owsla.broker.outlet import Outlet, writer

reactor: Any = _reactor


class End(Protocol):
    """One end of a connection: what came, and what ended it."""

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: Deferred[object] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value)


class Ends(Factory):
    noisy = False

    def __init__(self) -> None:
        self.made: Deferred[End] = Deferred()

    def buildProtocol(self, addr: IAddress | None) -> End:
        end = End()
        self.made.callback(end)
        return end


class OutletTests(TestCase):
    async def setUp(self) -> None:  # type: ignore[override]
        theirs = Ends()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(theirs)
        self.addCleanup(port.stopListening)
        self.ours = await TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port).connect(cast(Any, Ends()))
        self.theirs = await theirs.made
        self.transport: Any = self.ours.transport
        self.write = writer(self.transport)

    async def tearDown(self) -> None:  # type: ignore[override]
        for end in (self.ours, self.theirs):
            end.transport.abortConnection()
            if not end.lost.called:
                await end.lost

    async def arrived(self, size: int) -> bytes:
        while len(self.theirs.data) < size:
            await deferLater(reactor, 0.001)
        return bytes(self.theirs.data)

    async def test_at_once(self) -> None:
        """It is in the socket when `write` returns: the reactor has had no turn when the other side has it."""
        self.theirs.transport.pauseProducing()
        self.write(b"hello ")
        self.write(b"there")
        self.theirs.transport.getHandle().setblocking(True)
        self.assertEqual(self.theirs.transport.getHandle().recv(11, socket.MSG_WAITALL), b"hello there")

    async def test_more_than_the_socket_takes(self) -> None:
        """What it does not take follows in order, and so does all that is written behind; then it is at once again."""
        self.theirs.transport.pauseProducing()
        parts = [b"%06d" % number * 10_000 for number in range(300)]
        for part in parts[:-1]:
            self.write(part)
        # There is room in the socket again, of which the transport has not heard yet.
        self.theirs.data += self.theirs.transport.getHandle().recv(1_000_000, socket.MSG_WAITALL)
        self.write(parts[-1])
        self.theirs.transport.resumeProducing()
        whole = b"".join(parts)
        self.assertEqual(await self.arrived(len(whole)), whole)
        while self.transport.producer is not None:
            await deferLater(reactor, 0.001)
        await self.test_at_once()

    async def test_closed_with_something_left(self) -> None:
        """A connection that is closed sends first what was written."""
        self.theirs.transport.pauseProducing()
        whole = b"abcdefgh" * 1_000_000
        self.write(whole)
        self.write(b"the end")
        self.transport.loseConnection()
        self.theirs.transport.resumeProducing()
        self.assertEqual(await self.arrived(len(whole) + 7), whole + b"the end")
        await self.ours.lost

    async def test_broken(self) -> None:
        """A socket that is broken is the transport's to find, and nothing is raised here; nor when it is gone."""
        linger = struct.pack("ii", 1, 0)
        self.theirs.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.theirs.transport.abortConnection()
        await self.theirs.lost
        for _ in range(3):
            self.write(b"is anybody there?" * 100_000)
        self.assertIsInstance(await self.ours.lost, ConnectionLost | ConnectionDone)  # whichever it finds first
        self.write(b"no")

    async def test_no_socket_of_its_own(self) -> None:
        """Where there is more before the socket, TLS for one, the transport does it all."""
        transport = StringTransport()
        write = writer(transport)
        self.assertNotIsInstance(getattr(write, "__self__", None), Outlet)
        write(b"hello")
        self.assertEqual(transport.value(), b"hello")
