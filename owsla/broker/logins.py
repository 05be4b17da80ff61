"""Logins of all connections of a process: brokers, passwords, and the names by which brokers know their user.

Theory of operation
===================

`BrokerLogins` has the present addresses of the brokers with their passwords. Passwords change in two ways:

- A reload of the settings passes new addresses (`use`), with the passwords of their URLs or of `--broker-password-file`.
- Each login reads that file again (`PasswordFile`). So a connection that the broker cuts comes back with the new password,
  whether the settings were loaded again or not.

A password that has changed is sent on every living connection as well (connection.update-secret). RabbitMQ's own users do not
need that. The secret of the OAuth 2 back end is a token, which expires: then RabbitMQ 3.10 refuses what the connection does,
and RabbitMQ 4 closes it. A secret that RabbitMQ does not accept closes the connection, which reconnects as after any loss.

The user of the notices between nodes (`user_id`) must be the one that the broker knows. It is the user of the URL, except after
a login with a certificate (EXTERNAL) or a token: see `BrokerClient.learn_user`. What was learned is kept for later connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..config.addresses import BrokerAddress
from ..config.passwords import read_password
from ..errors import ConfigError
from ..interfaces import Clock
from ..runtime.daemon_thread import in_daemon_thread
from .client import BrokerClient, Credentials

READ_TIMEOUT: Final = 3.0
"""Seconds to wait for the password file at a login."""

ANSWER_TIMEOUT: Final = 30.0
"""Seconds after which a missing answer to connection.update-secret is reported."""

UPDATE_SECRET_SINCE: Final = (3, 8)
"""First version of RabbitMQ with connection.update-secret."""

_FIRST_GUESS: Final = "owsla"
"""Name of the user after a login by certificate, until it is learned, where the certificate has no common name."""


class PasswordFile:
    """The file of `--broker-password-file`.

    It is read in a thread, one at a time: a file on a network drive may answer late or never, and a named pipe waits for a
    writer.
    """

    def __init__(
        self,
        reactor: Any,
        path: Path,
        password: str,
        warn: Callable[[str], None],
        *,
        run: Callable[[str, Callable[[], str]], Deferred[str]] | None = None,
    ) -> None:
        """Start with the `password` that the file had when the settings were loaded. `path` is absolute: twistd changes the
        working folder. `run` makes a call in a thread (`in_daemon_thread`).
        """
        self._reactor = reactor
        self.path = path
        self.password = password
        """The last password that could be read."""
        self._warn = warn
        self._run = run or partial(in_daemon_thread, reactor)
        self._reading = False
        self._loads = 0  # reloads so far: a read that began before the last one has an older password
        self._waiting: list[Deferred[None]] = []
        self._warned = False

    def use(self, password: str) -> None:
        """Use the password that a reload of the settings has read."""
        self.password = password
        self._loads += 1

    async def read(self) -> str:
        """Return the password in the file, or, with a warning, the last one if the file cannot be read in time."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if not self._reading:
            self._begin()
        timeout = self._reactor.callLater(READ_TIMEOUT, self._timed_out, waiting)
        try:
            await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if timeout.active():
                timeout.cancel()
        return self.password

    def _begin(self) -> None:
        self._reading = True
        # maybeDeferred: a machine may have no room for another thread.
        reading = maybeDeferred(self._run, "read the password file", lambda: read_password(self.path))
        reading.addBoth(self._was_read, self._loads)

    def _was_read(self, result: str | Failure, loads: int) -> None:
        self._reading = False
        if isinstance(result, Failure):
            known = result.check(ConfigError)
            self._complain(result.getErrorMessage() if known else f"{self.path}: {result.value!r}")
        elif loads == self._loads:
            self._warned = False
            self.password = result
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def _timed_out(self, waiting: Deferred[None]) -> None:
        self._complain(f"{self.path}: it could not be read within {READ_TIMEOUT:g} s")
        self._waiting.remove(waiting)
        waiting.callback(None)

    def _complain(self, fault: str) -> None:
        """Warn of a fault, once until the file can be read again."""
        if not self._warned:
            self._warned = True
            self._warn(f"--broker-password-file: {fault}; the last password is used")


@dataclass(slots=True)
class _LivingLogin:
    """The login of a connection that is open."""

    address: BrokerAddress
    password: str = field(repr=False)
    """Last password that was sent on the connection."""
    updating: bool = False


class BrokerLogins:
    """Addresses of the brokers of a process, and how its connections log in to them."""

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[BrokerAddress],
        password_file: Path | None = None,
        *,
        warn: Callable[[str], None] = lambda text: None,
        common_name: Callable[[], str] = lambda: "",
    ) -> None:
        """`password_file` is an absolute path. `common_name()` returns that of the client certificate, or an empty text."""
        self._reactor = reactor
        self._clock: Clock = reactor
        self._warn = warn
        self._common_name = common_name
        self._living: dict[BrokerClient, _LivingLogin] = {}
        self._learned: dict[BrokerAddress, str] = {}
        self._file: PasswordFile | None = None
        self._no_answer_reported = False
        self.users: Final[set[str]] = set()
        """Names of the users of nodes. It only grows: other nodes may still log in as before a reload."""
        self.addresses: tuple[BrokerAddress, ...] = ()
        """The present addresses, in the order of the settings."""
        self.use(addresses, password_file)

    def use(self, addresses: Sequence[BrokerAddress], password_file: Path | None = None) -> None:
        """Use these addresses, with their passwords, from the next login on.

        Send passwords that have changed on living connections, too. A living connection to an address that is no longer in the
        list remains until it ends.
        """
        password = next((address.password for address in addresses if not address.external), "")
        if password_file is None:
            self._file = None
        elif self._file is None or self._file.path != password_file:
            self._file = PasswordFile(self._reactor, password_file, password, self._warn)
        else:
            self._file.use(password)
        self._set_addresses(addresses)

    def _set_addresses(self, addresses: Sequence[BrokerAddress]) -> None:
        self.addresses = tuple(addresses)
        for address in self.addresses:
            self.users.add(self._user(address))
        for client, login in list(self._living.items()):
            self._update(client, login)

    # -- users -----------------------------------------------------------------------------------------------------------

    def _user(self, address: BrokerAddress) -> str:
        """Return the name by which the broker knows our user, as far as it is known."""
        return self._learned.get(replace(address, password="")) or address.username or self._common_name() or _FIRST_GUESS

    def learned(self, address: BrokerAddress, user: str) -> None:
        """Note the name by which the broker at an address knows our user."""
        address = replace(address, password="")
        self._learned[address] = user
        self.users.add(user)
        for client, login in self._living.items():
            if replace(login.address, password="") == address:
                client.known_as(user)

    # -- logins ----------------------------------------------------------------------------------------------------------

    async def credentials(self, address: BrokerAddress) -> Credentials:
        """Return the credentials for a login now. This reads the password file again."""
        if self._file is not None and not address.external:
            file = self._file
            password = await file.read()
            if file is not self._file:  # a reload meanwhile has put other passwords in force
                password = next((one.password for one in self.addresses if not one.external), password)
            elif any(one.password != password for one in self.addresses if not one.external):
                self._set_addresses([one if one.external else replace(one, password=password) for one in self.addresses])
            address = replace(address, password=password)
        return Credentials(address.username, address.password, address.vhost, self._user(address))

    def opened(self, client: BrokerClient, address: BrokerAddress, credentials: Credentials) -> None:
        """Note a connection that has logged in to an address."""
        login = self._living[client] = _LivingLogin(address, credentials.password)
        self._update(client, login)  # the password may have changed during the login

    def ended(self, client: BrokerClient) -> None:
        """Note the end of a connection."""
        self._living.pop(client, None)

    # -- living connections ----------------------------------------------------------------------------------------------

    def _update(self, client: BrokerClient, login: _LivingLogin) -> None:
        """Send the present password on a connection, if it has another one."""
        if not login.updating and self._new_password(login) is not None and client.rabbitmq >= UPDATE_SECRET_SINCE:
            login.updating = True
            client.run(self._send_passwords(client, login))

    def _new_password(self, login: _LivingLogin) -> str | None:
        """Return the present password for a connection; `None` if the connection has it, or its address is not used now."""
        for address in self.addresses:
            if address.same_login(login.address):
                return address.password if address.password != login.password else None
        return None

    async def _send_passwords(self, client: BrokerClient, login: _LivingLogin) -> None:
        """Send the password, and then another one if it has changed again meanwhile."""
        while not client.closed and (password := self._new_password(login)) is not None:
            login.password = password
            overdue = self._clock.callLater(ANSWER_TIMEOUT, self._report_no_answer, login.address)
            try:
                await client.update_secret(password)
            except Closed:
                return  # the connection has ended, perhaps over this password; its reason is reported with its loss
            finally:
                if overdue.active():
                    overdue.cancel()
            self._no_answer_reported = False
        login.updating = False

    def _report_no_answer(self, address: BrokerAddress) -> None:
        if not self._no_answer_reported:
            self._no_answer_reported = True
            self._warn(
                f"broker {address}: no answer to connection.update-secret within {ANSWER_TIMEOUT:g} s; "
                "the new password is used from the next login on"
            )
