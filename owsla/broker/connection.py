"""A connection to RabbitMQ that reconnects with back-off: connect, log in, set up, and repeat after a loss.

Conditions of the broker (absent, refusing the login, disconnecting, silent) are events and never failures of this service. Each
is reported once and retried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cryptography import x509
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionAborted,
    ConnectionClosed,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..config.addresses import BrokerAddress
from ..interfaces import Clock
from ..runtime.end_of_turn import EndOfTurn
from ..supervision import Worker
from .client import BrokerClient, BrokerError, Credentials, Watcher, as_failure
from .connection_status import ConnectionStatus
from .logins import BrokerLogins
from .retry_delay import RetryDelay

CONNECT_TIMEOUT = 15.0
"""Seconds for TCP, TLS and the login together. RabbitMQ allows 10 for its part (handshake_timeout)."""

SETUP_TIMEOUT = 90.0
"""Seconds to declare queues and start consumers, for a broker that answers only heartbeats. RabbitMQ 4.0 with Khepri takes 70
to say that it cannot reach a classic queue.
"""

CLOSE_TIMEOUT = 2.0
"""Default seconds to wait for connection.close-ok."""

YIELD_INTERVAL = 0.1
"""Seconds between two looks whether connections that go first are ready."""

STABLE_AFTER = 10.0
"""Seconds after which a connection counts as stable: the delay after its loss starts at the minimum again."""


_TOO_MANY_CONSUMERS = "consumers per channel"
"""Words of the refusal (530) of a consumer beyond `consumer_max_per_channel` (RabbitMQ 4.0). It closes the connection."""


class Reporter(Protocol):
    """The interface of observers of connections to the broker."""

    def up(self, role: str, address: BrokerAddress) -> None: ...

    def down(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def blocked(self, role: str, reason: str) -> None: ...

    def unblocked(self, role: str) -> None: ...


class Role(Watcher, Protocol):
    """The interface of the purpose of a connection: publishing lines, consuming, and so on."""

    name: str

    async def up(self, client: BrokerClient) -> None:
        """Set up after the login: open channels, declare, consume. An exception ends the connection."""

    def down(self) -> None:
        """Handle the loss of the connection that `up` was called with."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Settings of a connection that all of its attempts have in common."""

    heartbeat: int
    """Heartbeat interval to propose, in seconds."""
    name: Callable[[], str]
    """Function that returns the name that RabbitMQ shows for the connection. It is called for each attempt."""
    tls: Callable[[str], IOpenSSLClientConnectionCreator] | None = None
    """Function that makes TLS connections to an `amqps://` broker from its host name. It is called for each attempt."""
    now: Callable[[], float] = time.time
    """Function that returns the time in seconds since the epoch."""


class BrokerConnection(Worker):
    """Service that keeps a connection to the broker for a role.

    Each attempt uses the next address. Faults of the broker are handled here. Only a defect of Owsla ends this service, for its
    supervisor to restart it.
    """

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        logins: BrokerLogins,
        role: Role,
        reporter: Reporter,
        settings: ConnectionSettings,
        *,
        backoff: RetryDelay | None = None,
        may_connect: Callable[[], bool] = lambda: True,
    ) -> None:
        """Attempts wait while `may_connect()` is false. Where the broker limits the number of connections, a role that can be
        missing takes none from the others.
        """
        super().__init__(reactor)
        self.setName(role.name)
        self._reactor = reactor
        self._clock: Clock = reactor
        self._turn = turn
        self._logins = logins
        self.role = role
        self._reporter = reporter
        self._settings = settings
        self._backoff = backoff or RetryDelay()
        self._may_connect = may_connect
        self._close_timeout = CLOSE_TIMEOUT
        self._client: BrokerClient | None = None
        self._over: Deferred[None] | None = None
        self.status = ConnectionStatus(role.name, settings.now)

    def startService(self) -> None:
        super().startService()
        self.status.become("waiting")
        self._over = self.watch(self._run())

    def stopService(self) -> Deferred[None]:
        self.running = 0
        return ensureDeferred(self._stop())

    def close_within(self, seconds: float) -> None:
        """Limit the wait for connection.close-ok at a stop, in seconds; 0: abort without connection.close."""
        self._close_timeout = min(self._close_timeout, seconds)

    def hurry(self) -> None:
        """Abort the connection at a stop, also if connection.close was sent already."""
        self._close_timeout = 0.0
        if not self.running and self._client is not None:
            self._client.abort(ConnectionDone("closed by us"))

    async def _stop(self) -> None:
        client = self._client
        if client is not None:
            if self._close_timeout > 0:
                try:
                    await client.shut(self._close_timeout)
                except Exception as error:  # the broker has sent something other than its answer
                    client.abort(error)
            else:
                client.abort(ConnectionDone("closed by us"))
        super().stopService()  # this cancels a delay or an attempt to connect
        if self._over is not None:
            await self._over
        if self._client is not None:
            # A defect ended `_run` before it called `down`.
            self._client.abort(ConnectionDone("closed by us"))
            self._client = None
            self.role.down()
        self.status.become("stopped")

    async def _run(self) -> None:
        attempt = 0
        while self.running:
            while not self._may_connect():
                await self._wait(YIELD_INTERVAL)
            addresses = self._logins.addresses  # a reload may change them
            address = addresses[attempt % len(addresses)]
            attempt += 1
            self.status.connect(address)
            try:
                credentials = await self._logins.credentials(address)
                client = await self._connect(address, credentials)
            except ConnectingCancelledError:
                return  # the service is stopping
            except EXPECTED as error:
                if not self.running:
                    return  # the stop cancelled the attempt: a cancelled name lookup fails like an unknown host
                self._failed(address, explain(error))
            else:
                self._logins.opened(client, address, credentials)
                try:
                    await self._serve(client, address)
                finally:
                    self._logins.ended(client)
            if self.running:
                await self._wait(self._backoff.next())

    async def _connect(self, address: BrokerAddress, credentials: Credentials) -> BrokerClient:
        factory = Factory.forProtocol(
            lambda: BrokerClient(
                self._clock,
                self._turn,
                login=credentials,
                heartbeat=self._settings.heartbeat,
                name=self._settings.name(),
                watcher=_BlockedNotifier(self.role, self._reporter, self.status),
                user_learned=partial(self._logins.learned, address),
            )
        )
        factory.noisy = False
        try:
            endpoint: Any = HostnameEndpoint(self._reactor, address.host, address.port, timeout=CONNECT_TIMEOUT)
            if address.tls:
                assert self._settings.tls is not None
                endpoint = wrapClientTLS(self._settings.tls(address.host), endpoint)
            client: BrokerClient = await endpoint.connect(factory)
        except ValueError as error:
            # An invalid host name, or one that TLS cannot verify. Other addresses may work.
            raise BrokerError(0, f"cannot connect to it: {error}", scope="connection") from error
        self._client = client
        ready = client.ready
        timeout = self._clock.callLater(
            CONNECT_TIMEOUT, client.abort, TimeoutError(f"no login within {CONNECT_TIMEOUT:g} s of connecting")
        )
        try:
            await ready
        except BaseException:
            client.abort(ConnectionDone())
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        self.status.secured(_shown_certificate(client) if address.tls else None)
        return client

    async def _serve(self, client: BrokerClient, address: BrokerAddress) -> None:
        refused: BaseException | None = None
        timeout = self._clock.callLater(
            SETUP_TIMEOUT, client.abort, TimeoutError(f"the queues were not set up within {SETUP_TIMEOUT:g} s")
        )
        try:
            await self.role.up(client)
        except EXPECTED as error:
            refused = as_failure(error).value
            client.transport.loseConnection()
        except BaseException:
            client.abort(ConnectionDone())
            self._down(address, "stopped during setup")
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        since = self._clock.seconds()
        if refused is None:
            self.status.become("up")
            self._reporter.up(self.role.name, address)
        reason = await client.lost
        self._client = None
        self.role.down()
        if not isinstance(reason, EXPECTED):
            self._down(address, "an internal error")
            raise reason  # a defect, raised while data of the broker was processed
        if refused is not None:
            self._failed(address, explain(refused))
            return
        if self._clock.seconds() - since >= STABLE_AFTER:
            self._backoff.reset()
        if self.running:
            self._down(address, explain(reason))

    def _failed(self, address: BrokerAddress, reason: str) -> None:
        """Report an attempt that has failed."""
        self.status.failed(reason)
        self._reporter.failed(self.role.name, address, reason)

    def _down(self, address: BrokerAddress, reason: str) -> None:
        """Report the loss of a connection that was up."""
        self.status.failed(reason)
        self._reporter.down(self.role.name, address, reason)

    async def _wait(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        call = self._clock.callLater(seconds, waiting.callback, None)
        try:
            await waiting
        finally:
            if call.active():
                call.cancel()


class _BlockedNotifier:
    """Forwards connection.blocked and connection.unblocked to the role and the reporter."""

    __slots__ = ("_reporter", "_role", "_status")

    def __init__(self, role: Role, reporter: Reporter, status: ConnectionStatus) -> None:
        self._role = role
        self._reporter = reporter
        self._status = status

    def blocked(self, reason: str) -> None:
        if self._status.state == "up":
            self._status.become("blocked")
        self._role.blocked(reason)
        self._reporter.blocked(self._role.name, reason)

    def unblocked(self) -> None:
        if self._status.state == "blocked":
            self._status.become("up")
        self._role.unblocked()
        self._reporter.unblocked(self._role.name)


def _shown_certificate(client: BrokerClient) -> x509.Certificate | None:
    """Return the certificate that the broker shows; `None` if it cannot be read."""
    try:
        certificate: x509.Certificate = client.transport.getPeerCertificate().to_cryptography()
    except Exception:  # OpenSSL accepts certificates for which `cryptography` raises ValueError, TypeError and others
        return None
    return certificate


EXPECTED = (
    BrokerError,
    Closed,
    ConnectError,
    ConnectionAborted,
    ConnectionClosed,
    OSError,
    SSL.Error,
    TimeoutError,
    VerificationError,
    WireError,
)
"""Exceptions caused by the broker or the network."""


def explain(error: BaseException | Any) -> str:
    """Describe an error for people, without class name and traceback."""
    if isinstance(error, Failure):
        error = error.value
    if isinstance(error, Closed):
        error = as_failure(error).value
    if isinstance(error, DNSLookupError):
        return f"the host name cannot be resolved: {error}"
    if isinstance(error, ConnectionDone):
        return "the broker closed the connection"
    if isinstance(error, ConnectionLost | ConnectionAborted):
        return "the connection was lost"
    if isinstance(error, SSL.Error):
        return f"TLS: {_tls_reason(error)}"
    if isinstance(error, VerificationError):
        return "TLS: the broker's certificate is not for this host name"
    if isinstance(error, BrokerError) and _TOO_MANY_CONSUMERS in error.text:
        return f"{error}: give fewer --consumers, or the broker a higher consumer_max_per_channel"
    if isinstance(error, WireError | BrokerError | TimeoutError):
        return str(error)
    if isinstance(error, ConnectTimeout):
        return "no answer: connecting timed out"
    if isinstance(error, ConnectError):
        return str((error.args and error.args[0]) or error).rstrip(".")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _tls_reason(error: SSL.Error) -> str:
    try:
        return str(error.args[0][-1][-1])  # the last entry has the most specific reason
    except (IndexError, TypeError):
        return str(error) or "the handshake failed"
