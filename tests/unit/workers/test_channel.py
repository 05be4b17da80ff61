"""Tests of the channel between a parent and a worker: lines of JSON, and an end that does not read."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from owsla.workers._channel import CLOSE_TIMEOUT, WAITING, Channel, read_first


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.received: list[dict[str, Any]] = []
        self.ends = 0
        self.channel = Channel(cast(Any, self.clock), self.received.append, self.ended)
        self.transport = StringTransport()
        self.aborted = False
        self.transport.abortConnection = self.abort  # type: ignore[method-assign]
        self.channel.makeConnection(self.transport)

    def ended(self) -> None:
        self.ends += 1

    def abort(self) -> None:
        self.aborted = True

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.transport.value().splitlines()]

    def test_both_ways(self) -> None:
        """A message is one line, and arrives unchanged, for any cuts of the stream."""
        self.channel.send("log", text="line 1\nline 2 \udce9 é")
        data = self.transport.value()
        self.assertEqual(data.count(b"\n"), 1)
        for byte in data:
            self.channel.dataReceived(bytes([byte]))
        self.assertEqual(self.received, [{"type": "log", "text": "line 1\nline 2 \udce9 é"}])

    def test_large(self) -> None:
        """A message of megabytes, with others before and behind it, arrives in pieces."""
        self.channel.send("ping")
        self.channel.send("reload", text="x" * 3_000_000)
        self.channel.send("pong")
        data = self.transport.value()
        for start in range(0, len(data), 65536):
            self.channel.dataReceived(data[start : start + 65536])
        self.assertEqual([message["type"] for message in self.received], ["ping", "reload", "pong"])
        self.assertEqual(len(self.received[1]["text"]), 3_000_000)

    def test_other_end_does_not_read(self) -> None:
        """Optional messages wait, up to a limit, while required ones are sent. Then they follow in order."""
        self.channel.offer("event", number=0)
        self.channel.pauseProducing()
        taken = [self.channel.offer("event", number=number) for number in range(1, WAITING + 11)]
        self.assertEqual(taken, [True] * WAITING + [False] * 10)
        self.channel.send("ready")
        self.assertEqual([message["type"] for message in self.sent()], ["event", "ready"])
        self.channel.resumeProducing()
        numbers = [message["number"] for message in self.sent() if message["type"] == "event"]
        self.assertEqual(numbers, list(range(WAITING + 1)))

    def test_paused_again_meanwhile(self) -> None:
        """Waiting messages are not written faster than the transport accepts them."""
        self.channel.pauseProducing()
        for number in range(3):
            self.channel.offer("event", number=number)
        write = self.transport.write

        def full(data: bytes) -> None:
            write(data)
            self.channel.pauseProducing()

        self.transport.write = full  # type: ignore[method-assign]
        self.transport.writeSequence = lambda data: full(b"".join(data))  # type: ignore[method-assign]
        self.channel.resumeProducing()
        self.assertEqual(len(self.sent()), 1)
        self.channel.resumeProducing()
        self.assertEqual(len(self.sent()), 2)

    def test_an_error_in_dealing_with_it(self) -> None:
        """A message whose handler raises is logged and dropped: the channel stays open, since its end would end the worker."""
        receive = self.received.append

        def fail(message: dict[str, Any]) -> None:
            receive(message)
            if message["type"] == "ask":
                raise RuntimeError("ours")

        channel = Channel(cast(Any, self.clock), fail, self.ended)
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(b'{"type":"ask"}\nno json\n{"type":"stop"}\n')
        self.assertEqual([message["type"] for message in self.received], ["ask", "stop"])
        self.assertFalse(transport.disconnecting)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_close(self) -> None:
        """A close sends waiting messages first, and is complete when the connection is gone."""
        self.channel.pauseProducing()
        self.channel.offer("log", text="the last line")
        closed = self.channel.close()
        self.assertEqual(self.sent(), [{"type": "log", "text": "the last line"}])
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(closed)
        self.channel.connectionLost()
        self.successResultOf(closed)
        self.assertEqual(self.ends, 1)
        self.clock.advance(CLOSE_TIMEOUT)
        self.assertFalse(self.aborted)

    def test_close_with_a_defect(self) -> None:
        """A close is complete when the connection is gone, also if the code that is told of its end fails."""
        self.patch(self.channel, "_lost", lambda: 1 // 0)
        closed = self.channel.close()
        self.assertRaises(ZeroDivisionError, self.channel.connectionLost)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_in_vain(self) -> None:
        """A close does not wait long for an end that reads nothing."""
        self.channel.close()
        self.clock.advance(CLOSE_TIMEOUT)
        self.assertTrue(self.aborted)

    def test_after_the_end(self) -> None:
        """Messages after the end are dropped, and another close is complete at once."""
        self.channel.connectionLost()
        self.channel.send("ready")
        self.assertFalse(self.channel.offer("log", text="unheard"))
        self.assertEqual(self.sent(), [])
        self.successResultOf(self.channel.close())


class FirstTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.near, self.far = socket.socketpair()
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)

    def test_takes_no_more(self) -> None:
        """The first message is read, and no byte after it."""
        self.far.sendall(b'{"type":"start"}\n{"type":"stop"}\n')
        self.assertEqual(read_first(self.near), {"type": "start"})
        self.assertEqual(self.near.recv(1000), b'{"type":"stop"}\n')

    def test_long(self) -> None:
        """A message with the contents of large files takes few calls."""
        message = {"type": "start", "files": {"x": "A" * 3_000_000}}
        calls = []

        class Counting:
            def recv(self, size: int, flags: int = 0) -> bytes:
                calls.append(size)
                return near.recv(size, flags)

        near = self.near
        sender = threading.Thread(target=self.far.sendall, args=[json.dumps(message).encode() + b"\n"])
        sender.start()
        self.assertEqual(read_first(cast(Any, Counting())), message)
        sender.join()
        self.assertLess(len(calls), 3_000_000 / 1000)

    def test_no_parent(self) -> None:
        """An end before the first message is reported."""
        self.far.sendall(b'{"type":')
        self.far.close()
        self.assertRaises(EOFError, read_first, self.near)
