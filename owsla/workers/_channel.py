"""Channel between a parent and a worker: lines of JSON over a socket pair, each an object with a `type`.

    parent to worker
        start   argv, files, number, count, broker_port first line, read before the reactor runs
        stop                                            stop in order, as after SIGTERM
        hurry                                           stop waiting for anything
        reopen                                          open the files of event handlers again, as after SIGHUP
        reload  generation, files                       load a configuration from these contents of its files
        apply   generation                              put that configuration in force
        cancel  generation                              forget that configuration
        gone    node, served                            the process of this node has died; whether its port was open
        ask     id, what, args                          `owsla.http.QUESTIONS`, or a question of `owsla.desk`
        ping
    worker to parent
        node    node                                    name of the node: at the start, and when it takes another
        ready   drain_timeout, certificate, not_after   the port is open; limit of a shutdown, certificate shown to devices
        log     level, namespace, text
        event   time, node, event                       `owsla.events.to_wire`
        answer  id, value                               null if this version does not know the question, or has failed
        pong
        prepared  generation, fault                     whether the configuration could be loaded; fault is null, or why not
        applied   generation, drain_timeout, certificate, not_after
                                                        it is in force; the rest as in ready
        fatal   text                                    the worker cannot start with these settings

During a rolling restart the two may be of different versions. Each ignores messages that it does not know.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import Clock, DelayedCall

LONGEST: Final = 64 << 20
"""Bytes of a line at most. The metrics of a worker are some 50 KB."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds for the other end to read the last messages."""

READ_SIZE: Final = 1 << 16
"""Bytes to read at once before the reactor runs."""

WAITING: Final = 20_000
"""Log lines and events that wait for a parent that does not read, at most. That is some 5 MB, or 10 s of a stampede of
connections.
"""


@implementer(IPushProducer)
class Channel(LineOnlyReceiver):
    """End of the channel, in either process. Sending never blocks, whatever the other end does."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST

    transport: Any
    _log = Logger(namespace="owsla")

    def __init__(self, clock: Clock, receive: Callable[[dict[str, Any]], None], lost: Callable[[], None]) -> None:
        """`receive` is called with each message, and `lost` once at the end of the connection."""
        self._clock = clock
        self._receive = receive
        self._lost = lost
        self._paused = False
        self._later: deque[bytes] = deque()
        self._closed: Deferred[None] | None = None
        self._abort: DelayedCall | None = None
        self._pieces: list[bytes] = []  # of a line whose end has not arrived
        self.open = False

    def connectionMade(self) -> None:
        self.open = True
        self.transport.registerProducer(self, True)

    def send(self, type: str, **values: Any) -> None:
        """Send a message that must not be dropped. After the end of the connection, do nothing."""
        if self.open:
            self.sendLine(_line(type, values))

    def offer(self, type: str, **values: Any) -> bool:
        """Send a message that is dropped if the other end does not keep up. Return whether it was sent or queued."""
        if not self.open or len(self._later) >= WAITING:
            return False
        line = _line(type, values)
        if self._paused:
            self._later.append(line)
        else:
            self.sendLine(line)
        return True

    def dataReceived(self, data: bytes) -> None:
        # A line with the contents of files may have megabytes, and comes in pieces of 64 KB. The base class would copy and
        # search everything for each of them: 43 s for 40 MB.
        self._pieces.append(data)
        if b"\n" in data:
            data, self._pieces = b"".join(self._pieces), []
            super().dataReceived(data)
        elif sum(map(len, self._pieces)) > LONGEST:
            self.transport.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        try:
            self._receive(json.loads(line))
        except Exception:
            # Raised further, it would end the connection and with it the worker: for a page that could not be made, say.
            self._log.failure("A message between parent and worker could not be handled")

    def close(self) -> Deferred[None]:
        """Close the connection once all messages are sent, or after `CLOSE_TIMEOUT`. The Deferred fires when it is closed."""
        closed: Deferred[None] = Deferred()
        if not self.open:
            closed.callback(None)
            return closed
        self._closed = closed
        while self._later:
            self.sendLine(self._later.popleft())
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._abort = self._clock.callLater(CLOSE_TIMEOUT, self.transport.abortConnection)
        return closed

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False
        self._later.clear()
        try:
            self._lost()
        finally:
            if self._abort is not None and self._abort.active():
                self._abort.cancel()
            if self._closed is not None:
                self._closed.callback(None)

    # -- IPushProducer: the transport tells whether the other end keeps up -------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._later and not self._paused:
            self.sendLine(self._later.popleft())

    def stopProducing(self) -> None:
        self._paused = True


def _line(type: str, values: dict[str, Any]) -> bytes:
    return json.dumps({"type": type, **values}, separators=(",", ":")).encode()


def read_first(channel: socket.socket) -> dict[str, Any]:
    """Return the first message from a blocking socket, and leave the following ones in it.

    Raise `EOFError` if the connection ends before that.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        # Single bytes would take minutes for the contents of large files.
        waiting = channel.recv(READ_SIZE, socket.MSG_PEEK)
        if not waiting:
            raise EOFError("the parent is gone")
        line += channel.recv(waiting.find(b"\n") + 1 or len(waiting))
    message: dict[str, Any] = json.loads(line)
    return message
