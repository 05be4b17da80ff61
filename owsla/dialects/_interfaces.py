"""Interfaces between a dialect, the connection of its device, and the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeAlias, runtime_checkable

from attrs import frozen
from twisted.cred.checkers import ICredentialsChecker
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer


class DialectSettings(Protocol):
    """The settings of the gateway that `Dialect.configured` may read."""

    @property
    def login_checker(self) -> ICredentialsChecker | None:
        """Checker of `--login-checker`."""

    @property
    def login_timeout(self) -> float:
        """Seconds of `--login-timeout`."""


class DeviceRefused(ValueError):
    """A device may not connect now: `--deny` names it, or it connects too often (`--max-flaps`).

    The connection of a dialect that does not catch this is closed.
    """

    def __init__(self, reason: str, *, reported: bool) -> None:
        """`reported` is true if an event has reported the reason already."""
        super().__init__(reason)
        self.reported = reported


class Conversation(Protocol):
    """The connection of one device, as its dialect sees it.

    When the connection has ended, or begins to end, each of these methods does nothing.
    """

    connection_id: bytes
    """Id of the connection, as back ends know it."""
    device_id: str | None
    """Id of the device: that of its certificate, until `identify` is called."""

    @property
    def peer(self) -> str:
        """Address of the device, for people."""

    @property
    def source(self) -> str:
        """Address without the port; for IPv6 the /64 network. Limits for each address count by this.

        Empty if the address is not known: on a unix socket without a PROXY protocol header, or with a header that does not say
        it. Such devices must not share the limit for an address.
        """

    @property
    def closed(self) -> bool:
        """True if the connection has ended, or is about to end."""

    def publish(self, line: bytes) -> None:
        """Publish a line to the back ends, in the order of the calls. Between `hold` and `release` the line is kept."""

    def answer(self, line: bytes) -> None:
        """Write a line to the device. Raise `ValueError` if it is too long, or cannot be sent in the framing of the device."""

    def hold(self) -> None:
        """Keep published lines until `release`, in order. If they exceed a limit, the connection is closed.

        Lines that are kept when the connection closes are dropped.
        """

    def release(self) -> None:
        """Publish the lines that were kept, and later lines at once."""

    def identify(self, device_id: str) -> None:
        """Set the device id. Each published line has it, so call this before the first one.

        Raise `ValueError` if the id is empty, unprintable or longer than 255 bytes, `DeviceRefused` if this device may not
        connect now, and `RuntimeError` if a line was published already.
        """

    def login_failed(self, claimed_id: str | None, reason: str, unreported: int = 0) -> None:
        """Report the event `login-failed`: the device could not prove that it is `claimed_id`. The connection stays open.

        `unreported` is the number of earlier failed logins that were not reported.
        """

    def set_timeout(self, seconds: float, *, of_device: bool = False) -> None:
        """Call `Dialect.timed_out` after a time, to a tenth of a second. A connection has one timeout: this replaces it.

        With `of_device` the timeout is for the device to send something. It stops while the device is not read, since lines
        cannot be published, and starts from the beginning when the device is read again.
        """

    def clear_timeout(self) -> None:
        """Cancel the timeout."""

    def hang_up(self, reason: str) -> None:
        """Close the connection after the lines written so far. The dialect gets no further line. `reason` is for people."""

    def fail(self, failure: Failure) -> None:
        """Report that the dialect failed, where it cannot raise: `deferred.addErrback(conversation.fail)`."""


class Refused:
    """The type of `REFUSED`."""


REFUSED: Final = Refused()
"""Result of `Dialect.outgoing` for a message that must not reach the device."""


REDACTED: Final = "line for the dialect, not shown"
"""Text that a trace shows in place of a line that only the dialect gets."""


class Dialect:
    """The protocol of one device. Each connection has an instance, which is made when its handshake is complete.

    This class passes everything through; a dialect overrides methods. All methods are called in the reactor thread. An
    exception closes the connection of the dialect, and no other, with an event.
    """

    __slots__ = ("conversation",)

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    @classmethod
    def configured(cls, settings: DialectSettings) -> Factory:
        """Return what makes an instance for a connection. Called at the start.

        Called again, in a thread, for a reload that changes one of these settings. The result is for connections that come
        after that; if it provides `Successor`, it is told what it succeeds.

        Raise `ConfigError` if a setting is missing or wrong.
        """
        return cls

    def connected(self) -> None:
        """Handle a new connection: its handshake is complete, and no line has come yet."""

    def line(self, line: bytes) -> None:
        """Handle a line from the device. By default publish it."""
        self.conversation.publish(line)

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        """Return the lines to write to the device for a message from a back end.

        The message counts as delivered when the last of these lines is handed over, and at once if there is none. A message for
        which this returns `REFUSED` is recorded as undeliverable, with the reason `refused-by-dialect`.
        """
        return (line,)

    def redact(self, line: bytes) -> str | None:
        """Return the text that a trace shows in place of a line from the device; `None` to show the line.

        Called before `line`, only while an operator traces the device. A line that the dialect publishes as it came is shown in
        any case, since back ends get it. By default no other is: it may be a login with a password or a token.
        """
        return REDACTED

    def timed_out(self) -> None:
        """Handle the end of the time of `Conversation.set_timeout`."""

    def disconnected(self, reason: str) -> None:
        """Handle the end of the connection. Not called for a dialect that failed."""


Factory: TypeAlias = Callable[[Conversation], Dialect]
"""A function that makes the dialect of a connection."""


@runtime_checkable
class Successor(Protocol):
    """A factory that goes on with what its predecessor knows, such as failed logins."""

    def succeed(self, predecessor: Factory) -> None:
        """Take over from the factory that was in use before a reload. Called in the reactor thread."""


class IDialect(Interface):  # type: ignore[misc]  # zope has no types
    """A dialect with a short name: a Twisted plugin, in a file under `twisted/plugins`."""

    name: str = Attribute("Its name for `--dialect`.")
    reference: str = Attribute("Location of its class: `package.module:Name`. It is imported only when it is chosen.")
    description: str = Attribute("A description in one line.")


@implementer(IPlugin, IDialect)
@frozen
class DialectPlugin:
    """The short name of a dialect, for a plugin file."""

    name: str
    reference: str
    description: str
