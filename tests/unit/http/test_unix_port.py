"""The port of the control socket."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import claim_control
from owsla.http._unix_port import AT_ONCE, RETRY, UnixPort


class Reactor(Clock):
    """A reactor with readers, which notes the connections that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.adopted: list[int] = []

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        self.adopted.append(os.dup(descriptor))

    def close(self) -> None:
        for descriptor in self.adopted:
            os.close(descriptor)


class Factory:
    def __init__(self) -> None:
        self.running = 0

    def doStart(self) -> None:
        self.running += 1

    def doStop(self) -> None:
        self.running -= 1


class UnixPortTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "owsla.sock")
        self.socket = claim_control(self.path)
        self.addCleanup(self.socket.close)
        self.reactor = Reactor()
        self.addCleanup(self.reactor.close)
        self.factory = Factory()
        self.port = UnixPort(self.reactor, self.socket, self.factory)

    def connect(self, count: int) -> None:
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX)
            self.addCleanup(sock.close)
            sock.connect(str(self.path))

    def test_again(self) -> None:
        """A port that was stopped can be started again: neither changes the path or its permissions."""
        for _ in range(2):
            self.port.startListening()
            self.assertEqual((self.reactor.readers, self.factory.running), ({self.port}, 1))
            self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
            self.connect(1)
            self.port.doRead()
            self.port.stopListening()
            self.assertEqual((self.reactor.readers, self.factory.running), (set(), 0))
        self.assertEqual(len(self.reactor.adopted), 2)
        self.assertTrue(self.path.is_socket())

    def test_turn(self) -> None:
        """A turn of the reactor accepts some connections, and leaves the others to the next one."""
        self.port.startListening()
        self.connect(AT_ONCE + 1)
        self.port.doRead()
        self.assertEqual(len(self.reactor.adopted), AT_ONCE)
        self.port.doRead()
        self.assertEqual(len(self.reactor.adopted), AT_ONCE + 1)

    def test_no_files(self) -> None:
        """Without open files the port waits a while, and does not try in each turn."""

        class Full:
            def accept(self) -> Any:
                raise OSError(errno.EMFILE, "Too many open files")

        port = UnixPort(self.reactor, Full(), self.factory)  # type: ignore[arg-type]
        port.startListening()
        port.doRead()
        self.assertEqual(self.reactor.readers, set())
        self.reactor.advance(RETRY)
        self.assertEqual(self.reactor.readers, {port})
        port.doRead()
        port.stopListening()
        self.reactor.advance(RETRY)
        self.assertEqual(self.reactor.readers, set())
