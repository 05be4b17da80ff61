"""Connections to the brokers of the settings, one to each, for a check. All of them are closed in the end."""

from __future__ import annotations

import os
import re
import socket
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..broker.client import BrokerClient
from ..broker.connection import BrokerConnection, ConnectionSettings
from ..broker.logins import BrokerLogins
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..interfaces import Clock, DelayedCall
from ..runtime.end_of_turn import EndOfTurn
from ..runtime.files import Files
from ..tls.broker import BrokerTLS

_LOGIN_REFUSED: Final = re.compile(r"\((403|530)\)$")
"""Reply codes of a login: ACCESS_REFUSED for the password, NOT_ALLOWED for the vhost."""


OUTCOME_TIMEOUT: Final = 40.0
"""Seconds for an attempt. TCP, TLS and login have limits of their own. Looking up a name has none, and takes up to half a
minute where no name server answers."""


class Refusal(Exception):
    """Failure of a connection to a broker; the text has the reason."""

    @property
    def by_broker(self) -> bool:
        """True if the broker was reached, and refused the login."""
        return _LOGIN_REFUSED.search(str(self)) is not None


class Attempt:
    """Attempt to connect to a broker and to log in, and the connection if it succeeds."""

    def __init__(
        self, reactor: Any, turn: EndOfTurn, address: BrokerAddress, settings: Settings, files: Files, tls: BrokerTLS
    ) -> None:
        self.address = address
        self.outcome: Deferred[BrokerClient] = Deferred()
        """The connection after its login. It fails with `Refusal`, or with a defect of Owsla."""
        self._clock: Clock = reactor
        self._overdue: DelayedCall | None = None
        self.blocked_because = ""
        """Reason of the broker for not reading messages from anybody; empty while it reads them."""
        password_file = settings.broker_password_file
        logins = BrokerLogins(reactor, [address], None if password_file is None else files.folder / password_file)
        name = f"owsla check ({socket.gethostname()}, process {os.getpid()})"
        self._connection = BrokerConnection(
            reactor, turn, logins, _Role(self), self, ConnectionSettings(settings.heartbeat, lambda: name, tls)
        )
        self._connection.supervise(self._ended)

    def start(self) -> None:
        """Connect."""
        overdue = Refusal(f"no connection within {OUTCOME_TIMEOUT:g} s")
        self._overdue = self._clock.callLater(OUTCOME_TIMEOUT, self._fail, overdue)
        self._connection.startService()

    def stop(self) -> Deferred[None]:
        """Close the connection, and connect no more."""
        if self._overdue is not None and self._overdue.active():
            self._overdue.cancel()
        return self._connection.stopService()

    def connected(self, client: BrokerClient) -> None:
        """Note that the login succeeded."""
        if not self.outcome.called:
            self.outcome.callback(client)

    def _fail(self, reason: BaseException | Failure) -> None:
        if not self.outcome.called:
            self.outcome.errback(reason)

    def _ended(self, failure: Failure | None) -> None:
        self._fail(failure or Refusal("the connection was closed"))

    # -- events of the connection

    def up(self, role: str, address: BrokerAddress) -> None: ...

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._fail(Refusal(reason))

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._fail(Refusal(reason))

    def blocked(self, role: str, reason: str) -> None:
        self.blocked_because = reason

    def unblocked(self, role: str) -> None:
        self.blocked_because = ""


class _Role:
    """The role of the connection of an attempt: it does nothing by itself."""

    name = "check"

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    async def up(self, client: BrokerClient) -> None:
        self._attempt.connected(client)

    def down(self) -> None: ...

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...
