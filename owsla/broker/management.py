"""What the management API of RabbitMQ says of a queue: its arguments, and the policies that apply to it.

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
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone, ResponseFailed
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
"""Bytes. The columns that are asked for have some hundred."""

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
        self._agent: Any = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, address, tls))

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
        except (*EXPECTED, ResponseFailed, _TooLong) as error:
            raise ManagementError(f"{self._address}: {_reason(error)}") from None

    async def _ask(self, uri: bytes, headers: Headers) -> tuple[int, bytes]:
        response: Any = await self._agent.request(b"GET", uri, headers, None)
        body = _Body()
        response.deliverBody(body)
        return response.code, await body.complete


class _Overdue(Exception):
    """There was no answer in time."""


class _TooLong(Exception):
    """The answer is too long."""


def _overdue(result: object, timeout: float) -> Failure:
    return Failure(_Overdue())


def _reason(error: BaseException) -> str:
    if isinstance(error, ResponseFailed) and error.reasons:
        return _reason(error.reasons[0].value)
    if isinstance(error, _TooLong):
        return "its answer is too long"
    return explain(error)


def _shown(document: Any) -> ShownQueue:
    policy = None
    if "effective_policy_definition" in document:
        # RabbitMQ shows an empty object as an empty array.
        definition = document["effective_policy_definition"] or {}
        policy = Policy(dict(definition), document.get("policy") or None, document.get("operator_policy") or None)
    kind = {"x-queue-type": document["type"]} if "type" in document else {}
    return ShownQueue({**kind, **(document.get("arguments") or {})}, policy)


class _Body(Protocol):
    """The body of an answer, of `LONGEST_ANSWER` bytes at most."""

    def __init__(self) -> None:
        self.complete: Deferred[bytes] = Deferred(self._cancelled)
        self._parts: list[bytes] = []
        self._length = 0

    def _cancelled(self, complete: Deferred[bytes]) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._length += len(data)
        if self._length <= LONGEST_ANSWER:
            self._parts.append(data)
        elif not self.complete.called:
            self.complete.errback(_TooLong())
            self._cancelled(self.complete)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        if self.complete.called:
            return
        if reason.check(ResponseDone):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(reason)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Endpoints of an agent that connects to one address only: it follows no redirect and no proxy."""

    def __init__(
        self, reactor: Any, address: ManagementAddress, tls: Callable[[str], IOpenSSLClientConnectionCreator]
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._tls = tls

    def endpointForURI(self, uri: Any) -> Any:
        address = self._address
        endpoint: Any = HostnameEndpoint(self._reactor, address.host, address.port, timeout=CONNECT_TIMEOUT)
        return _Quiet(wrapClientTLS(self._tls(address.host), endpoint) if address.tls else endpoint)


@implementer(IStreamClientEndpoint)
class _Quiet:
    """An endpoint whose factories do not log that they start and stop."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: Any) -> Any:
        protocolFactory.noisy = False
        return self._endpoint.connect(protocolFactory)
