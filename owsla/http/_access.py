"""Access to the API: who may read, who may act, and the name of who acts."""

from __future__ import annotations

import hmac
import pwd
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.web.server import Request

from ..interfaces import Clock
from ._errors import HttpError

NAMING: Final = 1.0
"""Seconds for the name of a user. It may come from a directory server that does not answer."""

RunInThread = Callable[[str, Callable[[], str]], Deferred[str]]
"""A function that makes a call in a thread of a name."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of clients of the API over TCP; `None`: there is none of this kind."""

    full: str | None = field(default=None, repr=False)
    """Token that may do everything."""
    reading: str | None = field(default=None, repr=False)
    """Token that may read, and neither act nor trace devices."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Sender of a request that may use the API."""

    may_act: bool
    name: Callable[[], Deferred[str]]
    """Return the name of the sender for events."""
    admitted: Callable[[], bool] = lambda: True
    """Return whether the sender still has the same rights. A stream lasts, and a reload may have replaced the tokens."""


class Access(Protocol):
    """Decision who may use the API at an address where it is served."""

    def caller(self, request: Request) -> Caller:
        """Return the sender of a request. Raise `HttpError` if it may not use the API."""


class SocketAccess:
    """Access over a unix socket: everybody who may connect to it may do everything."""

    def __init__(self, clock: Clock, run: RunInThread) -> None:
        self._clock = clock
        self._run = run

    def caller(self, request: Request) -> Caller:
        return Caller(True, lambda: self._name(request))

    def _name(self, request: Request) -> Deferred[str]:
        channel: Any = request.channel
        peer: socket.socket = channel.transport.getHandle()
        size = struct.calcsize("3i")
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        named = self._run("user", lambda: f"user {pwd.getpwuid(uid).pw_name} (uid {uid})")
        named.addTimeout(NAMING, self._clock)  # type: ignore[arg-type]  # Twisted asks for more than it uses
        return named.addErrback(lambda _: f"uid {uid}")


class TokenAccess:
    """Access over TCP, for senders of a token (`Authorization: Bearer`, RFC 6750)."""

    def __init__(self, tokens: Callable[[], Tokens]) -> None:
        """`tokens` returns the tokens in force."""
        self._tokens = tokens

    def caller(self, request: Request) -> Caller:
        if self._tokens() == Tokens():
            raise HttpError(
                404, "The API is not served here: it takes --http-token-file or --http-read-token-file, or the control socket."
            )
        headers = request.requestHeaders.getRawHeaders(b"authorization", [])
        scheme, _, sent = (headers[0] if len(headers) == 1 else b"").partition(b" ")
        sent = sent.strip(b" ")
        rights = full, reading = self._rights(sent)
        if scheme.lower() != b"bearer" or not (full or reading):
            raise HttpError(
                401,
                "The token is unknown." if headers else "The API takes a token (Authorization: Bearer).",
                headers={"www-authenticate": 'Bearer realm="owsla"'},
            )
        peer: Any = request.getClientAddress()
        return Caller(full, lambda: succeed(f"token from {peer.host}"), lambda: self._rights(sent) == rights)

    def _rights(self, sent: bytes) -> tuple[bool, bool]:
        """Return whether a token is the one that may do everything, and whether it is the one that may read."""
        tokens = self._tokens()
        # Both are compared in any case: the time tells nothing about either.
        return _same(sent, tokens.full), _same(sent, tokens.reading)


def _same(sent: bytes, token: str | None) -> bool:
    """Return whether a token was sent, in a time that does not depend on it."""
    return hmac.compare_digest(sent, (token or "").encode()) and token is not None
