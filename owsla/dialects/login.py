"""A dialect in which a device says who it is before anything else.

    device   HELLO <id> <token>
    Owsla    WELCOME <id>            and from then on lines pass as they are
             DENIED                  and the connection is closed

The token is checked by Twisted's cred: `--login-checker` names a checker. Lines that follow the first one at once wait for the
answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import LoginDenied, UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.cred.strcred import InvalidAuthArgumentString, InvalidAuthType, findCheckerFactories, makeChecker
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..errors import ConfigError
from ..supervision import explain
from ._devices_file import DevicesFile
from ._failed_logins import LONGEST, FailedLogins
from ._interfaces import REFUSED, Conversation, Dialect, DialectSettings, Factory, Refused
from ._sparingly import Sparingly

WAITING: Final = 0
CHECKING: Final = 1
WELCOME: Final = 2


class IDevice(Interface):  # type: ignore[misc]  # zope has no types
    """What a device logs in to. Its avatar is its id, a `str`."""


@implementer(IRealm)
class Devices:
    """The realm of devices: whoever a checker knows is let in under the name that the checker has for it."""

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> tuple[Any, str, Callable[[], None]]:
        if IDevice not in interfaces:
            raise NotImplementedError("devices log in to IDevice")
        name = avatarId.decode() if isinstance(avatarId, bytes) else avatarId
        if not isinstance(name, str) or not name:
            raise UnauthorizedLogin("nobody in particular")
        return IDevice, name, lambda: None


class Denied(Exception):
    """The device is not known by this id and token. The text says why, without the token."""


class TooMany(Exception):
    """The login was not checked, since too many have failed. The text says which."""


class Gate:
    """The checker that all devices log in with, and the limits on logins that fail."""

    _log = Logger()

    def __init__(self, checker: ICredentialsChecker, now: Callable[[], float] = time.monotonic) -> None:
        realm: Any = Devices()
        self._portal = Portal(realm, [checker])
        self._name = type(checker).__name__
        self._sparingly = Sparingly(now)
        self._refusals = Sparingly(now)
        self._now = now
        self._limits = FailedLogins()

    def login(self, name: bytes, token: bytes, source: str) -> Deferred[str]:
        """Check a login from this address. The result is the id that the checker has for the device; the failure is `Denied` or
        `TooMany`, or otherwise the checker's own trouble.
        """
        limits, now = self._limits, self._now
        attempt = limits.begin(name, source, now())
        if isinstance(attempt, str):
            return fail(TooMany(attempt))

        def known(logged_in: tuple[Any, str, Any]) -> str:
            limits.succeeded(attempt)
            return logged_in[1]

        def unknown(failure: Failure) -> Failure:
            if failure.check(UnauthorizedLogin, LoginDenied):
                limits.failed(attempt, now())
                raise Denied("there is no such device, or it has another token")
            limits.unchecked(attempt)
            return failure

        credentials: Any = UsernamePassword(name, token)
        checking: Deferred[Any] = self._portal.login(credentials, None, IDevice)
        return checking.addCallbacks(known, unknown)

    def refused(self) -> int | None:
        """A login was refused unchecked: return how many before it were not reported, or `None` if this one is not to be."""
        return self._refusals.unsaid() if self._refusals.due() else None

    def failed(self, failure: Failure, token: bytes) -> None:
        """Say that a device could not be checked; `token` is what must not be in the log."""
        if not self._sparingly.due():
            return
        unsaid = self._sparingly.unsaid()
        self._log.warn(
            "The login's checker {checker} failed, and the device is denied: {reason}{more}",
            checker=self._name,
            reason=_explain_without(token, failure),
            more=f" (and {unsaid} more since the last such line)" if unsaid else "",
        )


def _explain_without(token: bytes, failure: Failure) -> str:
    # A database's errors, say, may quote what it was asked.
    text = str(failure.value)
    if token.decode("utf-8", "replace") in text or repr(token)[2:-1] in text:
        return f"{type(failure.value).__name__}, with the token in its text"
    return explain(failure)


class Login(Dialect):
    """Publishes nothing, and takes no message, before the device has logged in."""

    __slots__ = ("_gate", "_state", "_timeout")

    def __init__(self, conversation: Conversation, gate: Gate, timeout: float) -> None:
        """`timeout` is in seconds, from the handshake to the whole first line."""
        super().__init__(conversation)
        self._gate = gate
        self._timeout = timeout
        self._state = WAITING

    @classmethod
    def configured(cls, settings: DialectSettings) -> Factory:
        if settings.login_checker is None:
            raise ConfigError("the login needs --login-checker, such as file:/etc/owsla/devices")
        gate = Gate(settings.login_checker)
        timeout = settings.login_timeout
        return lambda conversation: cls(conversation, gate, timeout)

    def connected(self) -> None:
        self.conversation.hold()
        self.conversation.set_timeout(self._timeout, of_device=True)

    def line(self, line: bytes) -> None:
        if self._state == WAITING:
            self._hello(line)
        else:
            self.conversation.publish(line)  # while the token is checked: kept

    def _hello(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        name, _, token = rest.partition(b" ")
        if word != b"HELLO" or not name or not token:
            self._deny(None, "not a login")  # and nothing of it is told: it may be a token
            return
        known = self.conversation.device_id
        if known is not None and name != known.encode():
            # Who has a certificate is who it says.
            self._deny(name, "its certificate is another device's")
            return
        self._state = CHECKING
        self.conversation.clear_timeout()
        checking = self._gate.login(name, token, self.conversation.source)
        checking.addCallbacks(self._known, self._failed, callbackArgs=(name, token), errbackArgs=(name, token))
        checking.addErrback(self.conversation.fail)

    def _known(self, device_id: str, name: bytes, token: bytes) -> None:
        try:
            self.conversation.identify(device_id)
        except ValueError:  # the checker's name for it cannot be a device's
            self._failed(Failure(), name, token)
            return
        self._state = WELCOME
        self.conversation.answer(b"WELCOME " + device_id.encode())
        self.conversation.release()

    def _failed(self, failure: Failure, name: bytes, token: bytes) -> None:
        if failure.check(Denied):
            self._deny(name, str(failure.value))
        elif failure.check(TooMany):
            unreported = self._gate.refused()
            if unreported is not None:
                self.conversation.login_failed(_shown(name), str(failure.value), unreported)
            self._close("too many failed logins")
        else:
            # The checker's trouble, or its database's, and none of this device's: it is denied for now, and may come again.
            self._gate.failed(failure, token)
            self._deny(name, "login could not be checked", "login could not be checked")

    def _deny(self, name: bytes | None, why: str, reason: str = "login denied") -> None:
        self.conversation.login_failed(None if name is None else _shown(name), why)
        self._close(reason)

    def _close(self, reason: str) -> None:
        self.conversation.answer(b"DENIED")
        self.conversation.hang_up(reason)

    def timed_out(self) -> None:
        why = f"no login within {self._timeout:g} s"
        self._deny(None, why, why)

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        return (line,) if self._state == WELCOME else REFUSED


def _shown(name: bytes) -> str:
    """An id that nobody has proved, for an event: bounded, and in printable text. It may be anything."""
    text = name[:LONGEST].decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def checker(text: str) -> ICredentialsChecker:
    """A checker in the words of twistd's `--auth`: `file:PATH`, or another plugin of cred's. `ConfigError`, if it is none."""
    kind, _, argument = text.partition(":")
    if kind == "memory":
        raise ConfigError("memory: its tokens would be in the process list; put them into a file: file:PATH")
    if kind == "file":
        try:
            made: Any = DevicesFile(_path(argument))
        except ConfigError as error:
            raise ConfigError(f"file: {error}") from None
        return made  # type: ignore[no-any-return]
    try:
        made = makeChecker(text)
    except InvalidAuthType:
        kinds = sorted(
            {each.authType for each in findCheckerFactories() if IUsernamePassword in each.credentialInterfaces} - {"memory"}
        )
        raise ConfigError(f"there is no checker of the kind {kind!r} ({', '.join(kinds)})") from None
    except (InvalidAuthArgumentString, ValueError, TypeError) as error:
        raise ConfigError(f"{kind}: {error or 'its argument cannot be used'}") from None
    if IUsernamePassword not in made.credentialInterfaces:
        raise ConfigError(f"{kind}: this checker takes no name and token")
    return made  # type: ignore[no-any-return]


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError("it needs a file: file:PATH")
    return Path(text)
