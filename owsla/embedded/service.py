"""The embedded broker as a Twisted service: its port, its connections, its clock."""

from __future__ import annotations

import socket
from typing import Any, Final
from urllib.parse import quote

from twisted.application.service import Service
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from owsla.runtime.end_of_turn import Turn

from .broker import Broker
from .errors import AMQPError
from .protocol import BrokerProtocol

MEMORY_LIMIT: Final = 512 << 20
"""Bytes of messages before publishers wait: well below what the smallest machine that runs Owsla has."""

BACKLOG: Final = 512
"""Connections that may wait to be accepted; Twisted's 50 is few for a test that starts them all at once."""

LONGEST_WAIT: Final = 86400.0
"""Seconds between two sweeps at most. A message may live for years, but epoll cannot wait longer than 24 days."""

STOP_TIMEOUT: Final = 2.0
"""Seconds that clients have to answer connection.close when the broker stops."""


class _Connection(BrokerProtocol):
    owner: _Factory

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.owner.gone(self)


class _Factory(Factory):
    noisy = False

    def __init__(self, service: EmbeddedBroker) -> None:
        self._service = service
        self.connections: set[_Connection] = set()
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: object) -> Any:
        service = self._service
        protocol = _Connection(service.broker, service.reactor, service.turn, service.credentials)
        protocol.owner = self
        self.connections.add(protocol)
        return protocol

    def gone(self, protocol: _Connection) -> None:
        self.connections.discard(protocol)
        if not self.connections:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)

    def empty(self) -> Deferred[None]:
        """Fires when the last connection has gone."""
        deferred: Deferred[None] = Deferred()
        if self.connections:
            self._empty.append(deferred)
        else:
            deferred.callback(None)
        return deferred


class EmbeddedBroker(Service):
    """An AMQP 0-9-1 server in memory, so that Owsla and its back ends can be tried without a RabbitMQ.

    `sock` is a TCP socket that is bound and not yet listening; without it, `interface` and `port` are bound when the service
    starts (0 is any free port), and an error to bind them comes out of `startService`. `memory_limit` is in bytes of messages:
    above it, connections that publish are told and no longer read.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket | None = None,
        *,
        port: int = 5672,
        interface: str = "127.0.0.1",
        username: str = "guest",
        password: str = "guest",
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.reactor = reactor
        self.credentials = (username, password)
        self.turn = Turn(reactor)
        self.broker = Broker(reactor.seconds, memory_limit, self._wake_at)
        self._sock = sock
        self._interface = interface
        self._wanted = port
        self._listening: Any = None
        self._sweep: DelayedCall | None = None
        self._factory = _Factory(self)

    @property
    def port(self) -> int:
        """The TCP port that clients connect to: the actual one once started."""
        if self._listening is not None:
            return int(self._listening.getHost().port)
        return int(self._sock.getsockname()[1]) if self._sock is not None else self._wanted

    def _listen(self) -> None:
        if self._listening is not None:
            return
        if self._sock is None:
            self._listening = self.reactor.listenTCP(self._wanted, self._factory, BACKLOG, self._interface)
        else:
            self._sock.listen(BACKLOG)
            self._sock.setblocking(False)
            self._listening = self.reactor.adoptStreamPort(self._sock.fileno(), self._sock.family, self._factory)
            self._interface = str(self._sock.getsockname()[0])
            self._sock.close()  # the reactor has its own duplicate
            self._sock = None

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        self._listen()
        username, password = self.credentials
        self.log.info(
            "Embedded broker: in memory, for trying out only (nothing survives a restart). Back ends connect to {url}",
            url="amqp://{}:{}@{}:{}/%2f".format(
                quote(username, safe=""),
                # The default one is no secret; another one is, and stays out of the log.
                password if password == "guest" else "***",
                f"[{self._interface}]" if ":" in self._interface else self._interface or "127.0.0.1",
                self.port,
            ),
        )

    async def _stop(self) -> None:
        port, self._listening = self._listening, None
        if port is not None:
            self._wanted = int(port.getHost().port)
            await port.stopListening()
        for connection in list(self._factory.connections):
            connection.close(AMQPError(320, "broker forced connection closure with reason 'shutdown'"))
        empty = self._factory.empty()
        timeout = self.reactor.callLater(STOP_TIMEOUT, self._abort)
        await empty
        if timeout.active():
            timeout.cancel()
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()
        self._sweep = None

    def _abort(self) -> None:
        for connection in list(self._factory.connections):
            if connection.transport is not None:
                connection.abort()

    def stopService(self) -> Deferred[None]:
        """Close the port, send every client connection.close (320), and fire when they have gone. What was queued stays."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # -- time --------------------------------------------------------------------------------------------------------------

    def _wake_at(self, when: float) -> None:
        """The broker wants a sweep at this time: one timer, for the soonest."""
        if self._sweep is not None and self._sweep.active():
            if self._sweep.getTime() <= when:
                return
            self._sweep.cancel()
        delay = min(max(0.0, when - self.reactor.seconds()), LONGEST_WAIT)
        self._sweep = self.reactor.callLater(delay, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        self.broker.sweep()
