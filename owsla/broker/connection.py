"""A connection to RabbitMQ that comes back: connect, log in, set up, and after a loss the same again, with back-off.

The broker's conditions are events, never failures: absent, refusing the login, gone in mid-sentence, silent. Each is said once
and tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
from ..runtime.end_of_turn import Turn
from ..supervision import Worker
from .client import BrokerError, BrokerProtocol, Watcher, as_failure
from .retry_delay import RetryDelay

CONNECT_TIMEOUT = 15.0
"""Seconds for TCP, TLS and the login together, past which an attempt has failed. RabbitMQ's own bound is 10."""

SETUP_TIMEOUT = 60.0
"""Seconds to declare and consume, for a broker that answers heartbeats and nothing else."""

CLOSE_TIMEOUT = 2.0
"""Seconds for the broker to agree to our closing the connection, where there is that much time."""

STEADY = 10.0
"""Seconds after which a connection counts as working, and the next loss begins with the shortest wait again."""


class Reporter(Protocol):
    """Who says what happens to the connections to the broker."""

    def up(self, role: str, address: BrokerAddress) -> None: ...

    def down(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None: ...

    def blocked(self, role: str, reason: str) -> None: ...

    def unblocked(self, role: str) -> None: ...


class Role(Watcher, Protocol):
    """What a connection is for."""

    name: str

    async def up(self, client: BrokerProtocol) -> None:
        """The broker has let us in: open channels, declare, consume. What this raises ends the connection."""

    def down(self) -> None:
        """The connection that `up` was called with is gone."""


class BrokerConnection(Worker):
    """Keeps one connection to the broker, for one role.

    Several addresses are tried in turn, one an attempt. What the broker does is dealt with here; only an exception of our own
    is this worker's end, for its supervisor to see.
    """

    def __init__(
        self,
        reactor: Any,
        turn: Turn,
        addresses: Sequence[BrokerAddress],
        role: Role,
        reporter: Reporter,
        *,
        heartbeat: int,
        connection_name: str | Callable[[], str],
        tls: Callable[[str], IOpenSSLClientConnectionCreator] | None = None,
        backoff: RetryDelay | None = None,
    ) -> None:
        """`heartbeat` in seconds. `connection_name` is asked for each time, where it can change. `tls(host)` makes what
        verifies an `amqps://` broker of that name.
        """
        super().__init__(reactor)
        self.setName(role.name)
        self._reactor = reactor
        self._clock: Clock = reactor
        self._turn = turn
        self._addresses = list(addresses)
        self.role = role
        self._reporter = reporter
        self._heartbeat = heartbeat
        self._connection_name = connection_name
        self._tls = tls
        self._backoff = backoff or RetryDelay()
        self._close_timeout = CLOSE_TIMEOUT
        self._client: BrokerProtocol | None = None
        self._over: Deferred[None] | None = None

    def startService(self) -> None:
        super().startService()
        self._over = self.watch(self._run())

    def stopService(self) -> Deferred[None]:
        self.running = 0
        return ensureDeferred(self._stop())

    def close_within(self, seconds: float) -> None:
        """Give the broker this long at most to agree to our closing the connection; 0: do not ask it."""
        self._close_timeout = min(self._close_timeout, seconds)

    def hurry(self) -> None:
        """Do not ask the broker when the connection is closed; if it is being asked, wait no longer."""
        self._close_timeout = 0.0
        if not self.running and self._client is not None:
            self._client.abort(ConnectionDone("closed by us"))

    async def _stop(self) -> None:
        client = self._client
        if client is not None:
            if self._close_timeout > 0:
                await client.shut(self._close_timeout)
            else:
                client.abort(ConnectionDone("closed by us"))
        super().stopService()  # it ends what still runs: a wait, or an attempt to connect
        if self._over is not None:
            await self._over
        if self._client is not None:
            # It ended in the middle, by an error of ours: then its role has not heard of it.
            self._client.abort(ConnectionDone("closed by us"))
            self._client = None
            self.role.down()

    async def _run(self) -> None:
        attempt = 0
        while self.running:
            address = self._addresses[attempt % len(self._addresses)]
            attempt += 1
            try:
                client = await self._connect(address)
            except ConnectingCancelledError:
                return  # it is to stop
            except EXPECTED as error:
                if not self.running:
                    return  # an attempt that our own stop ended: a name lookup fails then as one of an unknown host would
                self._reporter.failed(self.role.name, address, explain(error))
            else:
                await self._serve(client, address)
            if self.running:
                await self._wait(self._backoff.next())

    async def _connect(self, address: BrokerAddress) -> BrokerProtocol:
        factory = Factory.forProtocol(
            lambda: BrokerProtocol(
                self._clock,
                self._turn,
                username=address.username,
                password=address.password,
                vhost=address.vhost,
                heartbeat=self._heartbeat,
                name=self._connection_name if isinstance(self._connection_name, str) else self._connection_name(),
                watcher=_Watch(self.role, self._reporter),
            )
        )
        factory.noisy = False
        try:
            endpoint: Any = HostnameEndpoint(self._reactor, address.host, address.port, timeout=CONNECT_TIMEOUT)
            if address.tls:
                assert self._tls is not None
                endpoint = wrapClientTLS(self._tls(address.host), endpoint)
            client: BrokerProtocol = await endpoint.connect(factory)
        except ValueError as error:
            # A name that cannot be one, or that TLS cannot verify: it is this address's fault, and others may do.
            raise BrokerError(0, f"it cannot be connected to: {error}", scope="connection") from error
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
        return client

    async def _serve(self, client: BrokerProtocol, address: BrokerAddress) -> None:
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
            self._reporter.down(self.role.name, address, "stopped while it was set up")
            raise
        finally:
            if timeout.active():
                timeout.cancel()
        since = self._clock.seconds()
        if refused is None:
            self._reporter.up(self.role.name, address)
        reason = await client.lost
        self._client = None
        self.role.down()
        if not isinstance(reason, EXPECTED):
            self._reporter.down(self.role.name, address, "an error of our own")
            raise reason  # raised while what the broker sent was dealt with
        if refused is not None:
            self._reporter.failed(self.role.name, address, explain(refused))
            return
        if self._clock.seconds() - since >= STEADY:
            self._backoff.reset()
        if self.running:
            self._reporter.down(self.role.name, address, explain(reason))

    async def _wait(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        call = self._clock.callLater(seconds, waiting.callback, None)
        try:
            await waiting
        finally:
            if call.active():
                call.cancel()


class _Watch:
    """Tells a role and the reporter what the broker says of the whole connection."""

    __slots__ = ("_reporter", "_role")

    def __init__(self, role: Role, reporter: Reporter) -> None:
        self._role = role
        self._reporter = reporter

    def blocked(self, reason: str) -> None:
        self._role.blocked(reason)
        self._reporter.blocked(self._role.name, reason)

    def unblocked(self) -> None:
        self._role.unblocked()
        self._reporter.unblocked(self._role.name)


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
"""What a broker, or the network, may do to us."""


def explain(error: BaseException | Any) -> str:
    """An error in a person's words, without a class name and without a traceback."""
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
    if isinstance(error, WireError | BrokerError | TimeoutError):
        return str(error)
    if isinstance(error, ConnectTimeout):
        return "no answer: connecting timed out"
    if isinstance(error, ConnectError):
        return str((error.args and error.args[0]) or error).rstrip(".")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _tls_reason(error: SSL.Error) -> str:
    try:
        return str(error.args[0][-1][-1])  # the last one says what came of it
    except (IndexError, TypeError):
        return str(error) or "the handshake failed"
