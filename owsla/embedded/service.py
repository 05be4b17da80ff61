"""Embedded broker as a Twisted service: its port, its connections and its clock."""

from __future__ import annotations

import socket
from typing import Any, Final
from urllib.parse import quote

from twisted.application.service import Service
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from owsla.runtime.end_of_turn import EndOfTurn

from .broker import Broker
from .errors import AMQPError
from .protocol import ServerProtocol

MEMORY_LIMIT: Final = 512 << 20
"""Default limit of the memory of messages in bytes: well below the memory of the smallest machine that runs Owsla."""

BACKLOG: Final = 512
"""Length of the accept queue. The 50 of Twisted are too few for a test that opens all its connections at once."""

LONGEST_WAIT: Final = 86400.0
"""Longest time between two sweeps in seconds. A message may live for years, but epoll cannot wait longer than 24 days."""

STOP_TIMEOUT: Final = 2.0
"""Time in seconds that clients have to answer connection.close when the broker stops."""


class _ServerProtocolFactory(ServerFactory):
    """Factory of the connections, which it keeps track of."""

    noisy = False

    def __init__(self, broker: Broker, reactor: Any, credentials: tuple[str, str]) -> None:
        self._broker = broker
        self._reactor = reactor
        self._credentials = credentials
        self._turn = EndOfTurn(reactor)
        self.connections: set[ServerProtocol] = set()
        self._empty: list[Deferred[None]] = []

    def buildProtocol(self, addr: object) -> Any:
        protocol = ServerProtocol(self._broker, self._reactor, self._turn, self._credentials, self._connection_lost)
        self.connections.add(protocol)
        return protocol

    def _connection_lost(self, protocol: ServerProtocol) -> None:
        self.connections.discard(protocol)
        if not self.connections:
            waiting, self._empty = self._empty, []
            for deferred in waiting:
                deferred.callback(None)

    def when_empty(self) -> Deferred[None]:
        """Return a Deferred that fires when there is no connection left."""
        deferred: Deferred[None] = Deferred()
        if self.connections:
            self._empty.append(deferred)
        else:
            deferred.callback(None)
        return deferred


class EmbeddedBroker(Service):
    """AMQP 0-9-1 server in memory, so that Owsla and its back ends can be tried without RabbitMQ.

    `sock` is a TCP socket that is bound and does not listen yet. Without it, `interface` and `port` are bound when the service
    starts (0 is any free port), and `startService` raises an error if that fails. `memory_limit` is in bytes of messages: above
    it, connections that publish are blocked.
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
        self._reactor = reactor
        self._credentials = (username, password)
        self.broker = Broker(reactor.seconds, memory_limit, self._wake_at)
        self._sock = sock
        self._interface = interface
        self._requested_port = port
        self._listening: Any = None
        self._sweep: DelayedCall | None = None
        self._factory = _ServerProtocolFactory(self.broker, reactor, self._credentials)

    def configure(self, memory_limit: int) -> None:
        """Change the limit on the bytes of messages."""
        self.broker.memory.configure(memory_limit)

    @property
    def port(self) -> int:
        """TCP port for clients: once started, the port that is actually bound."""
        if self._listening is not None:
            return int(self._listening.getHost().port)
        return int(self._sock.getsockname()[1]) if self._sock is not None else self._requested_port

    def _listen(self) -> None:
        if self._listening is not None:
            return
        if self._sock is None:
            self._listening = self._reactor.listenTCP(self._requested_port, self._factory, BACKLOG, self._interface)
        else:
            # A socket from the caller: its port is known, and reserved, before the broker starts.
            self._sock.listen(BACKLOG)
            self._sock.setblocking(False)
            self._listening = self._reactor.adoptStreamPort(self._sock.fileno(), self._sock.family, self._factory)
            self._interface = str(self._sock.getsockname()[0])
            self._sock.close()  # the reactor has a duplicate
            self._sock = None

    # Here, so that a privileged port is bound before `twistd --uid` drops the privileges. A service that is added to a running
    # parent gets only `startService`.
    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        self._listen()
        username, password = self._credentials
        self.log.info(
            "Embedded broker started: in memory, for trying out only (nothing survives a restart). Back ends connect to {url}",
            url="amqp://{}:{}@{}:{}/%2f".format(
                quote(username, safe=""),
                # The default password is no secret. Any other password stays out of the log.
                password if password == "guest" else "***",
                f"[{self._interface}]" if ":" in self._interface else self._interface or "127.0.0.1",
                self.port,
            ),
        )

    async def _stop(self) -> None:
        port, self._listening = self._listening, None
        if port is not None:
            self._requested_port = int(port.getHost().port)  # a restart binds the same port
            await port.stopListening()
        for connection in list(self._factory.connections):
            connection.close(AMQPError(320, "broker forced connection closure with reason 'shutdown'"))
        empty = self._factory.when_empty()
        timeout = self._reactor.callLater(STOP_TIMEOUT, self._abort)
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
        """Close the port, send connection.close (320) to all clients, and fire when they are gone. Queues and messages stay."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # -- time --------------------------------------------------------------------------------------------------------------

    def _wake_at(self, when: float) -> None:
        """Call `sweep` of the broker at this time. There is one timer, for the earliest request."""
        if self._sweep is not None and self._sweep.active():
            if self._sweep.getTime() <= when:
                return
            self._sweep.cancel()
        delay = min(max(0.0, when - self._reactor.seconds()), LONGEST_WAIT)
        self._sweep = self._reactor.callLater(delay, self._run_sweep)

    def _run_sweep(self) -> None:
        self._sweep = None
        self.broker.sweep()
