"""Arguments and policies of queues, from the management API of RabbitMQ.

A user needs the tag `management`, and a permission in the virtual host. RabbitMQ collects what it shows of a queue every few
seconds: the policies of a queue that was declared just now are missing. They are missing for good where the collection is off
(`management_agent.disable_metrics_collector`).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from ..config.addresses import ManagementAddress
from .client import Credentials
from .connection import EXPECTED, explain
from .promises import Policy

CONNECT_TIMEOUT: Final = 10.0
ANSWER_TIMEOUT: Final = 20.0
"""Seconds for one question, the connection included."""

LONGEST_ANSWER: Final = 1 << 20
"""Bytes, with the HTTP headers. The columns that are asked for have some hundred."""

_COLUMNS: Final = "type,arguments,policy,operator_policy,effective_policy_definition"

_OK, _UNAUTHORIZED, _NOT_FOUND = 200, 401, 404


class ManagementError(Exception):
    """The management API cannot be asked; the text has the reason, without a password."""


@dataclass(frozen=True, slots=True)
class ShownQueue:
    """A queue as the management API shows it."""

    arguments: Mapping[str, Any]
    policy: Policy | None
    """`None` if the API does not show policies yet, or at all."""


class Management:
    """The management API at one address, for the queues of a virtual host."""

    def __init__(
        self, reactor: Any, address: ManagementAddress, tls: Callable[[str], IOpenSSLClientConnectionCreator]
    ) -> None:
        """`tls` makes connections to an `https://` address from its host name."""
        self._reactor = reactor
        self._address = address
        self._tls = tls

    def __str__(self) -> str:
        return str(self._address)

    async def queue(self, name: str, login: Credentials) -> ShownQueue | None:
        """Return a queue of the virtual host of a login, with its user unless the address names one; `None` if there is none.

        Raise `ManagementError`.
        """
        user = self._address.username or login.username
        password = self._address.password if self._address.username else login.password
        path = f"{self._address.path}/api/queues/{quote(login.vhost, safe='')}/{quote(name, safe='')}?columns={_COLUMNS}"
        uri = f"{'https' if self._address.tls else 'http'}://{self._address.authority}{path}"
        basic = b64encode(f"{user}:{password}".encode()).decode()
        headers = Headers({"Authorization": [f"Basic {basic}"], "Accept": ["application/json"]})
        status, body = await self._get(uri.encode(), headers)
        if status == _NOT_FOUND:
            return None
        if status == _UNAUTHORIZED:
            raise ManagementError(
                f"{self._address} refuses the user {user} (401): wrong password, or the user lacks the tag management "
                f"(rabbitmqctl set_user_tags {user} management) or a permission in the virtual host {login.vhost}"
            )
        if status != _OK:
            raise ManagementError(f"{self._address} answers with the HTTP status {status}")
        try:
            return _shown(json.loads(body))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ManagementError(f"{self._address} does not answer like the management API of RabbitMQ") from None

    async def _get(self, uri: bytes, headers: Headers) -> tuple[int, bytes]:
        asking: Deferred[tuple[int, bytes]] = Deferred.fromCoroutine(self._ask(uri, headers))
        asking.addTimeout(ANSWER_TIMEOUT, self._reactor, _overdue)
        try:
            return await asking
        except _Overdue:
            raise ManagementError(f"{self._address}: no answer within {ANSWER_TIMEOUT:g} s") from None
        except _TooLong:
            raise ManagementError(f"{self._address}: its answer is too long") from None
        except (*EXPECTED, ResponseFailed) as error:
            raise ManagementError(f"{self._address}: {_reason(error)}") from None

    async def _ask(self, uri: bytes, headers: Headers) -> tuple[int, bytes]:
        connection = _Connection(self._reactor, self._address, self._tls)
        agent: Any = Agent.usingEndpointFactory(self._reactor, connection)
        body = _Body()
        try:
            response: Any = await agent.request(b"GET", uri, headers, None)
            response.deliverBody(body)
            whole = await body.complete
        except (*EXPECTED, ResponseFailed) as error:
            if connection.too_long or (connection.left and _is_closed(error)):
                raise _TooLong from None
            raise
        else:
            if connection.too_long:  # an answer with no length of its own
                raise _TooLong
            return response.code, whole
        finally:
            # Without the handshakes that end HTTP and TLS: the server may have stopped answering.
            connection.abort()


class _Overdue(Exception):
    """Missing answer: the time for it is over."""


class _TooLong(Exception):
    """Answer above the limit of its size."""


def _overdue(result: object, timeout: float) -> Failure:
    return Failure(_Overdue())


def _is_closed(error: BaseException) -> bool:
    """Return whether a connection was closed in order, while more of an answer was expected."""
    return isinstance(_cause(error), ConnectionDone)


def _cause(error: BaseException) -> BaseException:
    return error.reasons[0].value if isinstance(error, ResponseFailed) and error.reasons else error


def _reason(error: BaseException) -> str:
    error = _cause(error)
    # Twisted has many exceptions for answers that it cannot read.
    return explain(error) if isinstance(error, EXPECTED) else "its answer is not HTTP"


def _shown(document: Any) -> ShownQueue:
    policy = None
    if "effective_policy_definition" in document:
        # RabbitMQ shows an empty object as an empty array.
        definition = document["effective_policy_definition"] or {}
        policy = Policy(dict(definition), document.get("policy") or None, document.get("operator_policy") or None)
    kind = {"x-queue-type": document["type"]} if "type" in document else {}
    return ShownQueue({**kind, **(document.get("arguments") or {})}, policy)


class _Body(Protocol):
    """The body of an answer."""

    def __init__(self) -> None:
        self.complete: Deferred[bytes] = Deferred()
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        if self.complete.called:
            return
        # An answer with no length of its own ends with the connection. Its JSON tells whether it is whole.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(reason)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """The connection for one question, to one address only: an agent with it follows no redirect and no proxy."""

    def __init__(
        self, reactor: Any, address: ManagementAddress, tls: Callable[[str], IOpenSSLClientConnectionCreator]
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._tls = tls
        self._limited: _Limited | None = None

    @property
    def too_long(self) -> bool:
        """True if the answer was longer than `LONGEST_ANSWER`."""
        return self._limited is not None and self._limited.too_long

    @property
    def left(self) -> bool:
        """True if the HTTP client has closed the connection by itself, which it does without an error if a line is too long."""
        return self._limited is not None and self._limited.left

    def endpointForURI(self, uri: Any) -> Any:
        return self

    def connect(self, protocolFactory: Any) -> Any:
        protocolFactory.noisy = False  # it would log that it starts and stops
        factory = WrappingFactory(protocolFactory)
        factory.noisy = False
        factory.protocol = _Limited
        address = self._address
        endpoint: Any = HostnameEndpoint(self._reactor, address.host, address.port, timeout=CONNECT_TIMEOUT)
        if address.tls:
            endpoint = wrapClientTLS(self._tls(address.host), endpoint)
        return endpoint.connect(factory).addCallback(self._connected)

    def _connected(self, limited: _Limited) -> Any:
        self._limited = limited
        return limited.wrappedProtocol

    def abort(self) -> None:
        """Close the connection at once, if it is open."""
        if self._limited is not None and self._limited.wrappedProtocol is not None:
            self._limited.abortConnection()


class _Limited(ProtocolWrapper):
    """A protocol that receives `LONGEST_ANSWER` bytes at most."""

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self.too_long = False
        self.left = False
        self._received = 0

    def loseConnection(self) -> None:
        self.left = True
        super().loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= LONGEST_ANSWER:
            super().dataReceived(data)
        elif not self.too_long:
            self.too_long = True
            self.abortConnection()
