"""Tests of the channel on which the lines of a door are published."""

from __future__ import annotations

from owsla.amqp.wire import WireError
from owsla.broker.client import BaseHandler, BrokerClient
from owsla.broker.confirm_channel import ConfirmChannel
from owsla.broker.destination import Destination
from owsla.broker.queues import Queue

from .fakes import BrokerTestCase, Result, Server

NUMBER = 3


class ConfirmChannelTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()
        self.client = self.server.client
        self.faults: list[tuple[str, BrokerClient, str]] = []
        self.destination = Destination(Queue("from_device"), lambda text: None, NUMBER + 1)
        self.channel = ConfirmChannel(NUMBER, self.destination, door="meters", failed=self.failed)

    def failed(self, door: str, client: BrokerClient, reason: BaseException) -> None:
        self.faults.append((door, client, str(reason)))

    def open(self) -> Result:
        result = Result(self.channel.open(self.client, BaseHandler()))
        self.server.settle()
        return result

    def prepared(self, *, new_channel: bool = False) -> Result:
        result = Result(self.channel.prepare_again(new_channel))
        self.server.settle()
        return result

    def test_open(self) -> None:
        """A channel is open once it has confirms, and not when its queue cannot be declared."""
        self.server.refusals["from_device", False] = self.server.refusals["from_device", True] = (403, "ACCESS_REFUSED - no")
        self.assertIsNotNone(self.open().failure)
        self.assertEqual((self.channel.client, self.channel.serving), (None, False))
        self.server.refusals.clear()
        self.assertIsNone(self.open().failure)
        self.assertEqual((self.channel.client, self.channel.serving), (self.client, True))
        self.assertEqual(self.server.calls[-1][:2], (NUMBER, "confirm.select"))
        self.channel.close()
        self.assertEqual((self.channel.client, self.channel.serving), (None, False))

    def test_blocked(self) -> None:
        """An open channel does not serve while the broker blocks. A block may begin before the channel is open."""
        self.channel.block()
        self.open()
        self.assertEqual((self.channel.client, self.channel.serving), (self.client, False))
        self.channel.unblock()
        self.assertTrue(self.channel.serving)

    def test_fail(self) -> None:
        """A fault asks for another channel for the door, but not once the connection has ended, which brings one anyway."""
        self.channel.fail(ValueError("early"))
        self.open()
        self.channel.fail(ValueError("no"))
        self.assertEqual(self.faults, [("meters", self.client, "no")])
        self.server.drop()
        self.channel.fail(ValueError("late"))
        self.assertEqual(len(self.faults), 1)

    def test_protest(self) -> None:
        """A violation of the protocol ends the connection, if there is one."""
        self.channel.protest(ValueError("too early"))
        self.open()
        self.channel.protest(ValueError("no such tag"))
        self.server.settle()
        (reason,) = self.server.lost
        self.assertIsInstance(reason, WireError)
        self.assertEqual(str(reason), "no such tag")

    def test_prepare_again(self) -> None:
        """Refused lines are published on the same channel. If the queue is missing, it is declared first."""
        self.assertIsNone(self.prepared().value)
        self.open()
        declared = len(self.server.called("queue.declare"))
        self.assertIs(self.prepared().value, self.client)
        self.assertEqual(len(self.server.called("queue.declare")), declared)
        self.destination.unroutable()
        self.assertIs(self.prepared().value, self.client)
        self.assertEqual(len(self.server.called("queue.declare")), declared + 1)
        self.assertEqual(self.faults, [])

    def test_another_channel(self) -> None:
        """Refused lines wait for another channel if the caller wants one, or if the queue cannot be declared."""
        self.open()
        self.assertIsNone(self.prepared(new_channel=True).value)
        self.destination.unroutable()
        self.server.refusals["from_device", False] = self.server.refusals["from_device", True] = (403, "ACCESS_REFUSED - no")
        self.assertIsNone(self.prepared().value)
        texts = [text for _, _, text in self.faults]
        self.assertEqual(len(texts), 2)
        self.assertIn("is full or unavailable, or only on this channel: trying another", texts[0])
        self.assertIn("ACCESS_REFUSED - no", texts[1])

    def test_another_connection_while_preparing(self) -> None:
        """If there is another connection when the queue is declared, nothing is published on the earlier one, and its
        faults are not those of the later one.
        """
        for refused in (False, True):
            self.setUp()
            self.open()
            self.destination.unroutable()
            self.server.silent.add("queue.declare")
            result = self.prepared()
            earlier = self.server
            self.server = Server().ready()
            self.client = self.server.client
            self.open()
            earlier.silent.clear()
            if refused:
                earlier.refusals["from_device", True] = (403, "ACCESS_REFUSED - no")
                earlier.close_channel(NUMBER + 1, 403, "ACCESS_REFUSED - no")
            else:
                earlier.send(NUMBER + 1, "queue.declare-ok", queue="from_device", message_count=0, consumer_count=0)
            earlier.settle()
            self.assertEqual((result.done, result.failure, result.value, self.faults), (True, None, None, []))

    def test_connection_lost_while_preparing(self) -> None:
        """If the channel ends while the queue is declared, nothing is published, and no other fault is reported."""
        self.open()
        self.destination.unroutable()
        self.server.silent.add("queue.declare")
        result = self.prepared()
        self.assertFalse(result.done)
        self.server.drop()
        self.channel.close()
        self.server.settle()
        self.assertEqual((result.done, result.failure, result.value, self.faults), (True, None, None, []))
