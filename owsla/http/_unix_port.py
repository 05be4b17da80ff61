"""The port of the control socket.

Twisted's own port (`adoptStreamPort`, Twisted 26.10) lets everybody write to the path of a unix socket (mode 0666), and removes
the path when it stops, so that it could not be started again.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import os_reason

AT_ONCE: Final = 16
"""Connections that are accepted in one turn of the reactor."""

RETRY: Final = 1.0
"""Seconds until the next attempt after a connection could not be accepted, for example for want of open files."""


@implementer(IReadDescriptor)
class UnixPort:
    """Port on a unix socket that listens already."""

    _log = Logger(namespace="owsla")

    def __init__(self, reactor: Any, sock: socket.socket, factory: Any) -> None:
        self._reactor = reactor
        self._socket = sock
        self._factory = factory
        self._listening = False

    def startListening(self) -> None:
        """Begin to accept connections."""
        self._listening = True
        self._factory.doStart()
        self._reactor.addReader(self)

    def stopListening(self) -> None:
        """Stop accepting connections. The socket stays open."""
        if self._listening:
            self._listening = False
            self._reactor.removeReader(self)
            self._factory.doStop()

    # -- IReadDescriptor ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._log.warn("Control socket: a connection cannot be accepted: {reason}", reason=os_reason(error))
                self._reactor.removeReader(self)
                self._reactor.callLater(RETRY, self._resume)
                return
            with connection, contextlib.suppress(OSError):  # the client may have gone
                connection.setblocking(False)
                self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)  # duplicates it

    def _resume(self) -> None:
        if self._listening:
            self._reactor.addReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """Ignore that the reactor has stopped."""

    def logPrefix(self) -> str:
        return "HTTP"
