"""What a dialect is, and what it may do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias

from attrs import frozen
from twisted.cred.checkers import ICredentialsChecker
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer


class DialectSettings(Protocol):
    """Settings of Owsla, as a dialect sees them (`owsla.config.settings.Settings`)."""

    @property
    def login_checker(self) -> ICredentialsChecker | None:
        """Credentials checker (`--login-checker`)."""

    @property
    def login_timeout(self) -> float:
        """Seconds (`--login-timeout`)."""


class Conversation(Protocol):
    """One device's connection, as its dialect sees it.

    After the connection has ended, or began to, each of these does nothing.
    """

    connection_id: bytes
    """The connection's id, as back ends know it."""
    device_id: str | None
    """Who the device is: by its certificate, until `identify` says otherwise."""

    @property
    def peer(self) -> str:
        """The device's address, for people."""

    @property
    def source(self) -> str:
        """The address without the port: of IPv6 its /64 network. Limits for each address count by this."""

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is about to."""

    def publish(self, line: bytes) -> None:
        """Give a line to the back ends; while publication is held, later. In the order of these calls."""

    def answer(self, line: bytes) -> None:
        """Write a line to the device. `ValueError`, if it is too long, or would be two."""

    def hold(self) -> None:
        """Publish nothing until `release`: what is published meanwhile is kept, in order, up to a bound; past that the
        connection is closed. What is kept when it closes is dropped.
        """

    def release(self) -> None:
        """Publish what was kept, and from now on at once."""

    def identify(self, device_id: str) -> None:
        """Say who the device is: each line that is published carries it, so this comes before the first one.

        `ValueError`, if it is empty, unprintable or longer than 255 bytes; `RuntimeError`, if a line was published already.
        """

    def login_failed(self, claimed_id: str | None, reason: str, unreported: int = 0) -> None:
        """Report that the device could not prove that it is `claimed_id`: an event (`login-failed`). The connection stays open.

        `unreported`: failed logins before this one that were not reported.
        """

    def set_timeout(self, seconds: float, *, of_device: bool = False) -> None:
        """Call `Dialect.timed_out` in so many seconds, to a tenth. There is one time-out: this takes the place of the last.

        `of_device`: it is time for the device to say something. While the device is not read, since there is nowhere to publish
        to, such a time-out waits; the device has its whole time anew when it is read again.
        """

    def clear_timeout(self) -> None:
        """Wait no longer."""

    def hang_up(self, reason: str) -> None:
        """Close the connection after what was written; the dialect hears no further line. `reason` is for people."""

    def fail(self, failure: Failure) -> None:
        """Say that the dialect failed, where it cannot raise that: `deferred.addErrback(conversation.fail)`."""


class Refused:
    """What `Dialect.outgoing` returns for a message that is not to reach the device."""


REFUSED: Final = Refused()


class Dialect:
    """What the lines of one connection mean. There is one instance for each connection, made when its handshake is complete.

    This one passes everything through; a dialect overrides what it wants otherwise. All of it is called in the reactor's
    thread. What it raises closes its own connection, no other, and is told as an event.
    """

    __slots__ = ("conversation",)

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    @classmethod
    def configured(cls, settings: DialectSettings) -> Factory:
        """What makes an instance for a connection; called once, at the start. `ConfigError`, if `settings` do not do for it."""
        return cls

    def connected(self) -> None:
        """The handshake is complete. Nothing was said yet."""

    def line(self, line: bytes) -> None:
        """The device has said this line."""
        self.conversation.publish(line)

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        """What to write to the device for a back end's message whose turn has come.

        With the last of these lines handed over, so is the message. None at all means that the dialect itself has taken it.
        `REFUSED`: it goes on record as undeliverable, for the reason `refused-by-dialect`.
        """
        return (line,)

    def timed_out(self) -> None:
        """The time of `Conversation.set_timeout` is over."""

    def disconnected(self, reason: str) -> None:
        """The connection has ended. Not called for a dialect that failed."""


Factory: TypeAlias = Callable[[Conversation], Dialect]
"""Makes the dialect of a connection."""


class IDialect(Interface):  # type: ignore[misc]  # zope has no types
    """A dialect that can be chosen by a short name: a plugin of Twisted's, in a file under `twisted/plugins`."""

    name: str = Attribute("What `--dialect` calls it.")
    reference: str = Attribute("Where its class is: `package.module:Name`. It is imported only when it is chosen.")
    description: str = Attribute("What it does, in a line.")


@implementer(IPlugin, IDialect)
@frozen
class DialectPlugin:
    """A dialect's short name, for a plugin file."""

    name: str
    reference: str
    description: str
