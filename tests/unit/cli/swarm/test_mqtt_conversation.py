"""The lines of a device that speaks MQTT, without sockets."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parser
from owsla.cli.swarm import _mqtt
from owsla.cli.swarm._device import UP, Device
from owsla.cli.swarm._errors import SwarmError
from owsla.cli.swarm._measurements import Measurements
from owsla.cli.swarm._mqtt_conversation import MQTTConversation
from owsla.cli.swarm._planning import plan

CONNACK = b"\x20\x02\x00\x00"
SUBACK = b"\x90\x03\x00\x01\x01"
ANSWER = b"\x32\x10\x00\x09answers/3\x00\x013 0"


class ConversationTests(SynchronousTestCase):
    """The conversation of a device."""

    def begin(self, mode: str, *more: str) -> MQTTConversation:
        made = plan(parser().parse_args(["swarm", "--protocol", "mqtt", "--mode", mode, "--line", "{device} {n}", *more]))
        self.measured = Measurements(scheduled=bool(made.rate))
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.device = Device(3, ours, self.measured.counts.answers, 0)
        return MQTTConversation(made, self.measured)

    def test_echo(self) -> None:
        """A device is ready after CONNACK and SUBACK, in pieces too. Its answers are matched and acknowledged, once."""
        conversation = self.begin("echo")
        self.assertTrue(conversation.greeting(self.device).endswith(_mqtt.subscribe(3)))
        greeting = CONNACK + SUBACK
        found = [conversation.greeted(self.device, greeting[n : n + 1]) for n in range(len(greeting))]
        self.assertEqual(found, [False] * (len(greeting) - 1) + [True])
        self.device.state = UP
        self.assertEqual(conversation.next_lines(self.device, None, 1), _mqtt.publish(3, 0, b"3 0"))
        self.assertFalse(conversation.may_send(self.device))
        self.assertIsNone(conversation.received(self.device, b"\x40\x02\x00\x01" + ANSWER[:5]))
        self.assertTrue(conversation.unfinished(self.device))
        self.assertIsNone(conversation.received(self.device, ANSWER[5:]))
        self.assertEqual(conversation.replies(self.device), _mqtt.puback(b"\x00\x01"))
        self.assertEqual(conversation.replies(self.device), b"")
        self.assertEqual((self.measured.counts.acked, self.measured.counts.answers.answers), (1, 1))
        self.assertFalse(conversation.unfinished(self.device))

    def test_flood(self) -> None:
        """A device that takes no answers subscribes to none, and sends at most 20 lines that are not acknowledged."""
        conversation = self.begin("flood")
        self.assertFalse(conversation.greeting(self.device).endswith(_mqtt.subscribe(3)))
        self.assertTrue(conversation.greeted(self.device, CONNACK))
        for _ in range(20):
            self.assertTrue(conversation.may_send(self.device))
            conversation.next_lines(self.device, None, 1)
        self.assertFalse(conversation.may_send(self.device))
        conversation.received(self.device, b"\x40\x02\x00\x01")
        self.assertTrue(conversation.may_send(self.device))

    def test_bursts(self) -> None:
        """A device sends a burst when all of it is within the limit of unacknowledged lines."""
        conversation = self.begin("flood", "--burst", "4", "--in-flight", "6")
        self.assertTrue(conversation.greeted(self.device, CONNACK))
        self.assertTrue(conversation.may_send(self.device))
        packets = conversation.next_lines(self.device, None, 4)
        self.assertEqual(packets, b"".join(_mqtt.publish(3, number, b"3 %d" % number) for number in range(4)))
        self.assertFalse(conversation.may_send(self.device))
        conversation.received(self.device, b"\x40\x02\x00\x01")
        self.assertFalse(conversation.may_send(self.device))
        conversation.received(self.device, b"\x40\x02\x00\x02")
        self.assertTrue(conversation.may_send(self.device))

    def test_refused(self) -> None:
        """A refusal of the connection or of the subscription, and other packets, fail with a reason."""
        for answer, reason in (
            (b"\x20\x02\x00\x05", "connection refused with return code 5"),
            (CONNACK + b"\x90\x03\x00\x01\x80", "subscription refused with return code 128"),
            (b"\xd0\x00", "a packet of type 13"),
            (b"\x20\xff\xff\xff\xff\x01", "malformed"),
        ):
            conversation = self.begin("echo")
            with self.assertRaises(SwarmError) as caught:
                conversation.greeted(self.device, answer)
            self.assertIn(reason, str(caught.exception))

    def test_malformed(self) -> None:
        """Malformed packets, and those of another type, end the connection with a reason."""
        for data in (b"\x30\xff\xff\xff\xff\x01", b"\xd0\x00", b"\x32\x02\x00\x09", b"\x40\x00", b"\x40\x03\x00\x01\x00"):
            self.assertIn("malformed", self.begin("echo").received(self.device, data) or "")

    def test_order_of_acceptance(self) -> None:
        """CONNACK is the first packet, SUBACK the second: a device is not ready after two of the one, or the wrong order."""
        for answer in (CONNACK + CONNACK, SUBACK + CONNACK, SUBACK + SUBACK, SUBACK):
            with self.assertRaises(SwarmError) as caught:
                self.begin("echo").greeted(self.device, answer)
            self.assertIn("before the connection was accepted", str(caught.exception))

    def test_replies_of_another(self) -> None:
        """A device acknowledges its own messages only: not those of one whose packets were malformed."""
        conversation = self.begin("echo")
        self.assertIn("malformed", conversation.received(self.device, ANSWER + b"\xd0\x00") or "")
        self.assertIsNone(conversation.received(self.device, b""))
        self.assertEqual(conversation.replies(self.device), b"")

    def test_message_with_the_acceptance(self) -> None:
        """A message that comes with SUBACK is acknowledged, too."""
        conversation = self.begin("echo")
        self.assertTrue(conversation.greeted(self.device, CONNACK + SUBACK + ANSWER))
        self.assertEqual(conversation.replies(self.device), _mqtt.puback(b"\x00\x01"))
