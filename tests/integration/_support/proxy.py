"""TCP proxy whose connections the tests can cut, hold and disturb."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from .waiting import current_reactor, until


class _Side(Protocol):
    """One of the two connections of a pair: data read from it is written to the other one."""

    def __init__(self, proxy: Proxy, other: _Side | None = None) -> None:
        self.proxy = proxy
        self.other = other
        self.early = b""
        self.spoke = False
        self.lost = False

    @property
    def port(self) -> int:
        """Port of this end of the connection, which the server sees as that of its peer."""
        transport: Any = self.transport
        return int(transport.getHost().port)

    def connectionMade(self) -> None:
        self.proxy.sides.append(self)
        if self.other is None:  # the side of the client: now connect to the server
            self.proxy.count += 1
            server = _Side(self.proxy, self)
            endpoint = TCP4ClientEndpoint(current_reactor(), "127.0.0.1", self.proxy.target)
            connecting = endpoint.connect(cast(IProtocolFactory, _Factory(lambda: server)))
            connecting.addErrback(lambda failure: self.abort())
        else:
            self.other.other = self
            self.proxy.servers.append(self)
            if self.other.lost:
                self.abort()
            elif self.other.early:
                self.write(self.other.early)

    def dataReceived(self, data: bytes) -> None:
        if self not in self.proxy.servers and not self.spoke:
            self.spoke = True
            data = self.proxy.before + data
        if self.proxy.unwanted and self.proxy.unwanted in data:
            self.abort()
        elif self.proxy.holding and not (self.proxy.one_way and self in self.proxy.servers):
            self.proxy.held.append((self, data))
        else:
            self.forward(data)

    def forward(self, data: bytes) -> None:
        """Write to the other side, or keep the data until there is one."""
        if self.other is None or self.other.transport is None:
            self.early += data
        else:
            self.other.write(data)

    def write(self, data: bytes) -> None:
        if not self.lost:
            transport: Any = self.transport
            transport.write(data)

    def abort(self) -> None:
        if not self.lost and self.transport is not None:
            cast(Any, self.transport).abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = True
        self.proxy.sides.remove(self)
        if self in self.proxy.servers:
            self.proxy.servers.remove(self)
        other: Any = self.other
        if other is not None and not other.lost and other.transport is not None:
            other.transport.loseConnection()


class _Factory(Factory):
    noisy = False

    def __init__(self, build: Any) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Protocol:
        return cast(Protocol, self._build())


@implementer(IOpenSSLServerConnectionCreator)
class _Contexts:
    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)


class Proxy:
    """Proxy from `port` to `target` on this machine. `count` is the number of connections so far.

    With a `certificate` (its file and its key file) it speaks TLS to clients, as a broker with amqps does.
    """

    def __init__(self, target: int, certificate: tuple[Path, Path] | None = None) -> None:
        self.target = target
        self.certificate = certificate
        self.before = b""
        """Bytes that each connection to the target begins with, sent together with the first bytes of the client."""
        self.unwanted = b""
        """Bytes by which a connection is reset, such as a part of the name that a client gives it; none if empty."""
        self.port = 0
        self.count = 0
        self.sides: list[_Side] = []
        self.servers: list[_Side] = []
        self.holding = False
        self.one_way = False
        self.held: list[tuple[_Side, bytes]] = []
        self._listening: Any = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"

    async def start(self) -> Proxy:
        """Listen, on the same port as before if it was stopped."""
        endpoint: Any = TCP4ServerEndpoint(current_reactor(), self.port, interface="127.0.0.1")
        factory: Any = _Factory(lambda: _Side(self))
        if self.certificate is not None:
            context = SSL.Context(SSL.TLS_METHOD)
            context.use_certificate_chain_file(str(self.certificate[0]))
            context.use_privatekey_file(str(self.certificate[1]))
            factory = TLSMemoryBIOFactory(cast(Any, _Contexts(context)), False, factory)
        self._listening = await endpoint.listen(factory)
        self.port = self._listening.getHost().port
        return self

    async def refuse(self) -> None:
        """Refuse new connections, until `start` is called again."""
        if self._listening is not None:
            stopped = self._listening.stopListening()
            self._listening = None
            if stopped is not None:
                await stopped

    def cut(self) -> None:
        """Reset every connection."""
        for side in list(self.sides):
            side.abort()

    def hold(self, *, one_way: bool = False) -> None:
        """Stop forwarding, or stop forwarding to the server (`one_way`): connections stay open."""
        self.holding = True
        self.one_way = one_way

    def release(self) -> None:
        """Forward the held data, and continue."""
        self.holding = False
        held, self.held = self.held, []
        for side, data in held:
            side.forward(data)

    def inject(self, data: bytes) -> None:
        """Send bytes to every client, as if from the server."""
        for server in list(self.servers):
            assert server.other is not None
            server.other.write(data)

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        await self.refuse()
        self.cut()
        await until(lambda: not self.sides, what="the end of the proxy's connections")
