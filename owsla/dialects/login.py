"""A dialect in which a device logs in with its first line.

    device   HELLO <id> <token>
    Owsla    WELCOME <id>            from then on lines pass through unchanged
             DENIED                  then the connection is closed

Twisted's cred checks the token, with the checker of `--login-checker`. Lines that follow the first one wait for the result.
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
from ._interfaces import REFUSED, Conversation, DeviceRefused, Dialect, DialectSettings, Factory, Refused
from ._throttle import Throttle

# States of a login.
WAITING: Final = 0
CHECKING: Final = 1
WELCOME: Final = 2


class IDevice(Interface):  # type: ignore[misc]  # zope has no types
    """The interface to which devices log in. An avatar is the device id, a `str`."""


@implementer(IRealm)
class DeviceRealm:
    """The realm of devices. The avatar id of the checker is the device id."""

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> tuple[Any, str, Callable[[], None]]:
        if IDevice not in interfaces:
            raise NotImplementedError("devices log in to IDevice")
        name = avatarId.decode() if isinstance(avatarId, bytes) else avatarId
        if not isinstance(name, str) or not name:
            raise UnauthorizedLogin("the checker gave no id")
        return IDevice, name, lambda: None


class WrongCredentials(Exception):
    """The checker does not know the device id, or the token is wrong."""


class TooManyFailures(Exception):
    """The login was refused without a check, since too many have failed. The text says which limit was reached."""


class LoginService:
    """Login of all devices: the checker, and the limits on failed logins."""

    _log = Logger()

    def __init__(self, checker: ICredentialsChecker, now: Callable[[], float] = time.monotonic) -> None:
        realm: Any = DeviceRealm()
        if isinstance(checker, ConfiguredChecker):
            checker = checker.checker
        self._portal = Portal(realm, [checker])
        self._name = type(checker).__name__
        self._checker_errors = Throttle(now)
        self._refusals = Throttle(now)
        self._now = now
        self._limits = FailedLogins()

    def succeed(self, predecessor: LoginService) -> None:
        """Go on with the limits of the service in use before, so that another checker gives nobody more attempts."""
        self._limits = predecessor._limits
        self._refusals = predecessor._refusals

    def login(self, name: bytes, token: bytes, source: str) -> Deferred[str]:
        """Check a login from an address. The result is the device id that the checker returns.

        The failure is `WrongCredentials` or `TooManyFailures`, or else an error of the checker.
        """
        limits, now = self._limits, self._now
        attempt = limits.begin(name, source, now())
        if isinstance(attempt, str):
            return fail(TooManyFailures(attempt))

        def succeeded(logged_in: tuple[Any, str, Any]) -> str:
            limits.succeeded(attempt)
            return logged_in[1]

        def failed(failure: Failure) -> Failure:
            if failure.check(UnauthorizedLogin, LoginDenied):
                limits.failed(attempt, now())
                raise WrongCredentials("unknown device id, or wrong token")
            limits.unchecked(attempt)
            return failure

        credentials: Any = UsernamePassword(name, token)
        checking: Deferred[Any] = self._portal.login(credentials, None, IDevice)
        return checking.addCallbacks(succeeded, failed)

    def unreported_refusals(self) -> int | None:
        """Count a login that was refused without a check.

        Return the number of earlier ones that were not reported, or `None` if this one is not to be reported, either.
        """
        return self._refusals.take_suppressed() if self._refusals.allows() else None

    def log_error(self, failure: Failure, token: bytes) -> None:
        """Log that the checker failed, without the token."""
        if not self._checker_errors.allows():
            return
        suppressed = self._checker_errors.take_suppressed()
        self._log.warn(
            "The login checker {checker} failed, and the device was denied: {reason}{more}",
            checker=self._name,
            reason=_explain_without(token, failure),
            more=f" ({suppressed} more since the last such line)" if suppressed else "",
        )


def _explain_without(token: bytes, failure: Failure) -> str:
    # An error of a database, for example, may quote the query with the token.
    text = str(failure.value)
    if token.decode("utf-8", "replace") in text or repr(token)[2:-1] in text:
        return f"{type(failure.value).__name__}, with the token in its text"
    return explain(failure)


class Login(Dialect):
    """The login of one device. Before it succeeds nothing is published, and messages are refused."""

    __slots__ = ("_service", "_state", "_timeout")

    def __init__(self, conversation: Conversation, service: LoginService, timeout: float) -> None:
        """`timeout` is in seconds, from the handshake to the whole first line."""
        super().__init__(conversation)
        self._service = service
        self._timeout = timeout
        self._state = WAITING

    @classmethod
    def configured(cls, settings: DialectSettings) -> Factory:
        if settings.login_checker is None:
            raise ConfigError("the login dialect needs --login-checker, such as file:/etc/owsla/devices")
        return LoginFactory(cls, LoginService(settings.login_checker), settings.login_timeout)

    def connected(self) -> None:
        self.conversation.hold()
        self.conversation.set_timeout(self._timeout, of_device=True)

    def line(self, line: bytes) -> None:
        if self._state == WAITING:
            self._hello(line)
        else:
            self.conversation.publish(line)  # kept while the token is checked

    def _hello(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        name, _, token = rest.partition(b" ")
        if word != b"HELLO" or not name or not token:
            self._deny(None, "not a login")  # without a quotation: it may be a token
            return
        known = self.conversation.device_id
        if known is not None and name != known.encode():
            # The identity of a certificate takes precedence.
            self._deny(name, "its certificate is for another device id")
            return
        self._state = CHECKING
        self.conversation.clear_timeout()
        checking = self._service.login(name, token, self.conversation.source)
        checking.addCallbacks(self._succeeded, self._failed, callbackArgs=(name, token), errbackArgs=(name, token))
        checking.addErrback(self.conversation.fail)

    def _succeeded(self, device_id: str, name: bytes, token: bytes) -> None:
        try:
            self.conversation.identify(device_id)
        except DeviceRefused as refused:
            if not refused.reported:
                self.conversation.login_failed(_shown(name), str(refused))
            self._close(str(refused))
            return
        except ValueError:  # the id that the checker returned is not a possible device id
            self._failed(Failure(), name, token)
            return
        self._state = WELCOME
        self.conversation.answer(b"WELCOME " + device_id.encode())
        self.conversation.release()

    def _failed(self, failure: Failure, name: bytes, token: bytes) -> None:
        if failure.check(WrongCredentials):
            self._deny(name, str(failure.value))
        elif failure.check(TooManyFailures):
            unreported = self._service.unreported_refusals()
            if unreported is not None:
                self.conversation.login_failed(_shown(name), str(failure.value), unreported)
            self._close("too many failed logins")
        else:
            # An error of the checker or its database is not the fault of the device: it is denied now, and may try again.
            self._service.log_error(failure, token)
            self._deny(name, "login could not be checked", "login could not be checked")

    def _deny(self, name: bytes | None, why: str, reason: str = "login denied") -> None:
        self.conversation.login_failed(None if name is None else _shown(name), why)
        self._close(reason)

    def _close(self, reason: str) -> None:
        self.conversation.answer(b"DENIED")
        self.conversation.hang_up(reason)

    def redact(self, line: bytes) -> str | None:
        return "login line, not shown"  # lines after it are published as they came, and shown

    def timed_out(self) -> None:
        why = f"no login within {self._timeout:g} s"
        self._deny(None, why, why)

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        return (line,) if self._state == WELCOME else REFUSED


class LoginFactory:
    """The logins of all devices that connect until the next reload with another checker or timeout."""

    def __init__(self, dialect: type[Login], service: LoginService, timeout: float) -> None:
        """`timeout` is in seconds."""
        self._dialect = dialect
        self._timeout = timeout
        self.service = service

    def __call__(self, conversation: Conversation) -> Login:
        return self._dialect(conversation, self.service, self._timeout)

    def succeed(self, predecessor: Factory) -> None:
        """Go on with the limits on failed logins (`Successor`)."""
        if isinstance(predecessor, LoginFactory):
            self.service.succeed(predecessor.service)


def _shown(name: bytes) -> str:
    """Return an unverified id for an event, as printable text of a limited length: it may be arbitrary bytes."""
    text = name[:LONGEST].decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


@implementer(ICredentialsChecker)
class ConfiguredChecker:
    """A credentials checker, and the text that names it. Two are equal if they have the same text."""

    def __init__(self, text: str, checker: Any) -> None:
        self._text = text
        self.checker = checker

    @property
    def credentialInterfaces(self) -> Any:
        return self.checker.credentialInterfaces

    def requestAvatarId(self, credentials: Any) -> Any:
        return self.checker.requestAvatarId(credentials)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfiguredChecker) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {type(self.checker).__name__}>"  # the text may have a password


def make_login_checker(text: str, folder: Path | None = None) -> ICredentialsChecker:
    """Return the checker for a text in the form of twistd's `--auth`: `file:PATH`, or another cred plugin. A relative path is
    relative to `folder`, by default the working folder.

    Raise `ConfigError` if there is no such checker, or it cannot be used.
    """
    kind, _, argument = text.partition(":")
    if kind == "memory":
        raise ConfigError("memory: the tokens would be visible in the process list; put them into a file: file:PATH")
    if kind == "file":
        try:
            made: Any = DevicesFile(_path(argument), folder=folder)
        except ConfigError as error:
            raise ConfigError(f"file: {error}") from None
        return made  # type: ignore[no-any-return]
    try:
        made = makeChecker(text)
    except InvalidAuthType:
        kinds = sorted(
            {each.authType for each in findCheckerFactories() if IUsernamePassword in each.credentialInterfaces} - {"memory"}
        )
        raise ConfigError(f"there is no checker named {kind!r} ({', '.join(kinds)})") from None
    except (InvalidAuthArgumentString, ValueError, TypeError) as error:
        raise ConfigError(f"{kind}: {error or 'the argument cannot be used'}") from None
    if IUsernamePassword not in made.credentialInterfaces:
        raise ConfigError(f"{kind}: this checker does not take a name and a token")
    return made  # type: ignore[no-any-return]


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ConfigError("the path is missing: file:PATH")
    return Path(text)
