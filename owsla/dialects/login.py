"""A dialect in which a device says who it is before anything else.

    device   HELLO <id> <token>
    Owsla    WELCOME <id>            and from then on lines pass as they are
             DENIED                  and the connection is closed

The token is checked by Twisted's cred: `--login-checker` names a checker. Lines that follow the first one at once wait for the
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from twisted.cred.checkers import FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.cred.strcred import InvalidAuthArgumentString, InvalidAuthType, findCheckerFactories, makeChecker
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..config import ConfigError, Settings, read_file
from ._interfaces import REFUSED, Conversation, Dialect, Factory, Refused

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


class Login(Dialect):
    """Publishes nothing, and takes no message, before the device has logged in."""

    __slots__ = ("_portal", "_state", "_timeout")

    def __init__(self, conversation: Conversation, portal: Portal, timeout: float) -> None:
        """`timeout` is in seconds, from the handshake to the whole first line."""
        super().__init__(conversation)
        self._portal = portal
        self._timeout = timeout
        self._state = WAITING

    @classmethod
    def configured(cls, settings: Settings) -> Factory:
        if settings.login_checker is None:
            raise ConfigError("the login needs --login-checker, such as file:/etc/owsla/devices")
        realm: Any = Devices()
        portal = Portal(realm, [settings.login_checker])
        timeout = settings.login_timeout
        return lambda conversation: cls(conversation, portal, timeout)

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
        known = self.conversation.device_id
        if word != b"HELLO" or not name or not token or (known is not None and name != known.encode()):
            # Who has a certificate is who it says.
            self._deny()
            return
        self._state = CHECKING
        self.conversation.clear_timeout()
        credentials: Any = UsernamePassword(name, token)
        checking: Deferred[Any] = self._portal.login(credentials, None, IDevice)
        checking.addCallbacks(self._welcome, self._denied)
        checking.addErrback(self.conversation.fail)

    def _welcome(self, logged_in: tuple[Any, str, Any]) -> None:
        _, name, _ = logged_in
        self._state = WELCOME
        self.conversation.identify(name)
        self.conversation.answer(b"WELCOME " + name.encode())
        self.conversation.release()

    def _denied(self, failure: Failure) -> None:
        failure.trap(UnauthorizedLogin)
        self._deny()

    def _deny(self) -> None:
        self.conversation.answer(b"DENIED")
        self.conversation.hang_up("login denied")

    def timed_out(self) -> None:
        self.conversation.answer(b"DENIED")
        self.conversation.hang_up(f"no login within {self._timeout:g} s")

    def outgoing(self, line: bytes) -> Iterable[bytes] | Refused:
        return (line,) if self._state == WELCOME else REFUSED


def checker(text: str) -> ICredentialsChecker:
    """A checker in the words of twistd's `--auth`: `file:PATH`, or another plugin of cred's. `ConfigError`, if it is none."""
    kind, _, argument = text.partition(":")
    if kind == "memory":
        raise ConfigError("memory: its tokens would be in the process list; put them into a file: file:PATH")
    if kind == "file":
        # Twisted's own plugin reads the whole file for every login. This looks whether it has changed.
        try:
            read_file(_path(argument))
        except ConfigError as error:
            raise ConfigError(f"file: {error}") from None
        made: Any = FilePasswordDB(argument, cache=True)
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
