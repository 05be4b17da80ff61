"""Tests of presence messages: a role of a broker connection, and an event handler."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from twisted.python.failure import Failure

from owsla.amqp import wire
from owsla.amqp.methods import encode_method
from owsla.amqp.wire import WireError
from owsla.broker.presence import INSPECT_INTERVAL, LONG, PUBLISH_CHANNEL, QUEUE, SHORT, PresenceRole
from owsla.events import BrokerUnblocked, BrokerWarning, DeviceConnected, Event, EventManager, HandlerService
from tests.unit.broker.fakes import BrokerTestCase, Publish, Result, Server, message

from ..events.doubles import NODE, Supervised, connected, disconnected


class Base(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server(heartbeat=1000)
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.live: list[DeviceConnected] = []
        self.role = PresenceRole(
            self.clock, self.events.append, node=lambda: NODE, live=lambda: self.live, now=self.now
        )

    def now(self) -> float:
        return 1000.0 + float(self.clock.seconds())

    def connect(self) -> Result:
        if self.server.client.transport is not None:
            refusals = self.server.refusals
            self.server = Server(self.clock, heartbeat=1000)
            self.server.refusals = refusals
        self.server.ready()
        up = Result(self.role.up(self.server.client))
        self.server.settle()
        assert up.done
        return up

    def lose(self) -> None:
        self.server.drop()
        self.role.down()

    def come(self, *keys: str) -> None:
        for key in keys:
            self.role.handle(connected(key), NODE, self.now())

    def go(self, *keys: str) -> None:
        for key in keys:
            self.role.handle(disconnected(key), NODE, self.now())

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)
            self.server.settle()

    def told(self) -> list[str]:
        return [describe(publish) for publish in self.server.take()]


def describe(publish: Publish) -> str:
    body: dict[str, Any] = json.loads(publish.body)
    mark = {"connected": "+", "disconnected": "-", "node-lost": "!"}[body["event"]]
    again = "*" if body.get("resync") else ""
    return f"{mark}{body.get('connection_id', body['node'])}{again}"


class PublishingTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_the_queue(self) -> None:
        """The queue is durable and has no arguments, so that a declaration of a back end matches. Confirms are on."""
        (declared,) = [call for call in self.server.called("queue.declare") if not call["passive"]]
        self.assertEqual((declared["queue"], declared["durable"], declared["arguments"]), ("connection_events", True, {}))
        self.assertEqual(len(self.server.called("confirm.select")), 1)

    def test_the_message(self) -> None:
        """A message is mandatory, persistent, JSON, with the headers of the contract."""
        self.role.handle(connected("a", "sensor 7"), NODE, self.now())
        (publish,) = self.server.take()
        self.assertTrue(publish.method["mandatory"])
        self.assertEqual((publish.method["exchange"], publish.queue), ("", QUEUE))
        self.assertEqual(
            publish.headers, {"event": "connected", "connection_id": "a", "device_id": "sensor 7", "node": "a"}
        )
        properties = publish.properties
        self.assertEqual(
            (properties["delivery_mode"], properties["content_type"], properties["timestamp"], properties["app_id"]),
            (2, "application/json", 1000, "owsla"),
        )
        self.assertEqual(json.loads(publish.body)["peer"], "192.0.2.1:1234")

    def test_several_doors(self) -> None:
        """Where there are several doors, announcements name that of the connection, the first one too."""
        self.role = PresenceRole(
            self.clock, self.events.append, node=lambda: NODE, live=lambda: self.live, now=self.now, several_doors=True
        )
        self.connect()
        for door in ("default", "meters"):
            self.role.handle(replace(connected(door), door=door), NODE, self.now())
        sent = self.server.take()
        self.assertEqual([publish.headers["door"] for publish in sent], ["default", "meters"])
        self.assertEqual([json.loads(publish.body)["door"] for publish in sent], ["default", "meters"])

    def test_strange_names(self) -> None:
        """A name from a certificate that is not text is announced."""
        self.role.handle(connected("a", "x\ud800\0\u00e9"), NODE, self.now())
        (publish,) = self.server.take()
        self.assertEqual(publish.headers["device_id"], "x?\0\u00e9")
        self.assertEqual(json.loads(publish.body)["device_id"], "x\ud800\0\u00e9")

    def test_other_events(self) -> None:
        """Other events are ignored."""
        self.role.handle(BrokerUnblocked(), NODE, self.now())
        self.assertEqual(self.told(), [])

    def test_in_order(self) -> None:
        """`disconnected` follows the confirm of `connected`."""
        self.come("a")
        self.go("a")
        self.assertEqual(self.told(), ["-a"])  # both events in one turn
        self.come("b")
        self.assertEqual(self.told(), ["+b"])
        self.go("b")
        self.assertEqual(self.told(), [])
        self.server.ack(PUBLISH_CHANNEL, 2, True)
        self.assertEqual(self.told(), ["-b"])
        self.server.ack(PUBLISH_CHANNEL, 3)
        self.assertEqual(self.role.unconfirmed, 0)

    def test_another_node(self) -> None:
        """The loss of another node is announced too."""
        self.role.node_lost("89abcdef")
        (publish,) = self.server.take()
        self.assertEqual((describe(publish), publish.properties["message_id"]), ("!89abcdef", "89abcdef"))
        self.assertFalse(self.role.has_announced("89abcdef"))
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.assertTrue(self.role.has_announced("89abcdef"))

    def test_again(self) -> None:
        """All connections are announced again on demand."""
        self.come("a")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.role.resync()
        self.assertEqual(self.told(), ["+a*"])

    def test_refused(self) -> None:
        """Refused announcements are published again after a delay, with one warning."""
        self.come("a", "b")
        self.assertEqual(self.told(), ["+a", "+b"])
        self.server.nack(PUBLISH_CHANNEL, 2, True)
        self.assertEqual(self.told(), [])
        self.pass_time(1)
        self.assertEqual(self.told(), ["+a", "+b"])
        self.server.ack(PUBLISH_CHANNEL, 4)
        self.server.nack(PUBLISH_CHANNEL, 3)
        opened = len(self.server.called("confirm.select"))
        self.pass_time(1)
        self.assertEqual(self.told(), ["+a"])
        self.assertEqual(len(self.server.called("confirm.select")), opened, "it takes others, and so is good")
        self.assertEqual(len(self.events), 2)
        self.assertEqual({type(event) for event in self.events}, {BrokerWarning})

    def test_a_long_queue(self) -> None:
        """While the queue is long, new devices are held, with one warning. Announced devices are announced when they
        disconnect; all others when the queue is short again.
        """
        self.come("a")
        self.server.found[QUEUE] = (LONG, 0)
        self.pass_time(INSPECT_INTERVAL + 1)
        self.assertEqual(self.told(), ["+a"])
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.come("b", "c")
        self.go("a", "c")
        self.pass_time(2 * INSPECT_INTERVAL)
        self.assertEqual(self.told(), ["-a"])
        self.server.ack(PUBLISH_CHANNEL, 2)
        (event,) = self.events
        self.assertIn(f"the queue connection_events has {LONG} messages and no consumer", str(event))
        self.assertEqual(self.role.unconfirmed, 0)
        self.server.found[QUEUE] = (SHORT, 1)
        self.pass_time(INSPECT_INTERVAL + 1)
        self.assertEqual(self.told(), [])
        self.server.found[QUEUE] = (SHORT - 1, 1)
        self.pass_time(INSPECT_INTERVAL + 1)
        self.assertEqual(sorted(self.told()), ["+b", "-c"])

    def test_not_receiving(self) -> None:
        """A device is announced as connected when the node can receive messages to it."""
        self.role.receiving(False)
        self.come("a", "b")
        self.go("b")
        self.assertEqual(self.told(), ["-b"])
        self.role.receiving(True)
        self.pass_time(0.1)
        self.assertEqual(self.told(), ["+a"])

    def test_long_from_the_start(self) -> None:
        """A node that is restarted again and again does not make a long queue longer each time."""
        self.lose()
        self.server.found[QUEUE] = (LONG, 3)
        found = self.server.found
        self.role = PresenceRole(
            self.clock, self.events.append, node=lambda: NODE, live=lambda: self.live, now=self.now
        )
        self.come("a")
        self.server = Server(self.clock, heartbeat=1000)
        self.server.found = found
        self.server.ready()
        Result(self.role.up(self.server.client))
        self.pass_time(1)
        self.assertEqual(self.told(), [])
        self.assertIn("3 consumers", str(self.events[-1]))

    def test_a_look_that_fails(self) -> None:
        """An inspection that fails changes nothing; an idle node does not inspect."""
        looks = len(self.server.called("queue.declare"))
        self.pass_time(5 * INSPECT_INTERVAL)
        self.assertEqual(len(self.server.called("queue.declare")), looks)
        self.server.refusals[QUEUE, True] = (403, "ACCESS_REFUSED - no")
        for key in ("a", "b"):
            self.come(key)
            self.pass_time(INSPECT_INTERVAL + 1)
        self.assertEqual((self.told(), self.events), (["+a", "+b"], []))
        self.assertFalse(self.server.transport.ended)

    def test_a_channel_that_takes_nothing(self) -> None:
        """Announcements are tried on new channels for a while, if the queue accepted nothing on this one."""
        self.come("a")
        tried: list[bool] = []
        for _ in range(9):
            opened = len(self.server.called("confirm.select"))
            self.assertEqual(self.told(), ["+a"])
            self.server.nack(PUBLISH_CHANNEL, 0, True)
            self.pass_time(30)
            tried.append(len(self.server.called("confirm.select")) > opened)
        self.assertEqual([number for number, new in enumerate(tried, 1) if new], [3, 4, 5, 6, 7])
        self.assertEqual([type(event) for event in self.events], [BrokerWarning])

    def test_returned(self) -> None:
        """A deleted queue is declared again, and all connections are announced again on a new channel."""
        self.come("a")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.come("b", "c")
        b, c = self.server.take()
        self.server.give_back(b)
        self.server.give_back(c)
        self.pass_time(1)
        self.assertEqual(len([call for call in self.server.called("queue.declare") if not call["passive"]]), 2)
        self.assertEqual(sorted(self.told()), ["+a*", "+b", "+c"])

    def test_a_channel_that_is_closed(self) -> None:
        """If the broker closes the channel, a warning is logged, and another channel is opened on the same connection after a
        wait.
        """
        self.come("a")
        self.server.take()
        self.server.close_channel(PUBLISH_CHANNEL, 403, "ACCESS_REFUSED - not you")
        self.come("b")
        self.assertEqual(self.told(), [])
        self.pass_time(1)
        self.assertFalse(self.server.transport.ended)
        self.assertEqual(sorted(self.told()), ["+a*", "+b"])
        self.assertIn("ACCESS_REFUSED", str(self.events[0]))

    def test_an_unknown_tag(self) -> None:
        """A confirm of an unknown tag ends the connection."""
        self.server.ack(PUBLISH_CHANNEL, 7)
        self.assertTrue(self.server.transport.ended)

    def test_lost(self) -> None:
        """After a lost connection announcements wait; those in flight and all open connections are announced again."""
        self.come("a", "b")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.lose()
        self.go("a")
        self.come("c")
        self.connect()
        self.assertEqual(sorted(self.told()), ["+b*", "+c", "-a"])

    def test_a_queue_that_vanished(self) -> None:
        """If the queue is gone after a reconnect, all connections are announced again."""
        self.come("a")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.lose()
        self.server.refusals[QUEUE, True] = (404, "NOT_FOUND - no queue")
        self.connect()
        self.assertEqual(self.told(), ["+a*"])

    def test_no_gap(self) -> None:
        """After a reconnect without a gap nothing is announced again."""
        self.come("a")
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 1)
        self.lose()
        self.connect()
        self.assertEqual(self.told(), [])

    def test_nothing_left(self) -> None:
        """A lost connection leaves no timer."""
        self.come("a")
        self.server.take()
        self.server.nack(PUBLISH_CHANNEL, 1)
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RefusedTests(Base):
    def test_a_queue_that_may_not_be_used(self) -> None:
        """A queue that cannot be used is reported once and tried again; the port does not wait for it."""
        self.server.refusals[QUEUE, False] = (403, "ACCESS_REFUSED - no")
        self.server.refusals[QUEUE, True] = (403, "ACCESS_REFUSED - no")
        self.come("a")
        up = self.connect()
        self.assertIsNone(up.failure)
        self.pass_time(3)
        self.assertFalse(self.server.transport.ended)
        self.assertEqual(len(self.events), 1)
        self.server.refusals.clear()
        self.pass_time(30)
        self.assertEqual(self.told(), ["+a"])

    def test_a_connection_that_is_lost_meanwhile(self) -> None:
        """A set-up fails with its connection."""
        self.server.silent.add("queue.declare")
        self.server.ready()
        up = Result(self.role.up(self.server.client))
        self.server.settle()
        self.lose()
        self.assertIsNotNone(up.failure)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HandlerTests(Base):
    def test_reinstalled(self) -> None:
        """A handler that is installed again announces what it missed, and all connections."""
        self.connect()
        manager = EventManager(lambda: NODE)
        report = Supervised()
        service = HandlerService(manager, self.role, "amqp")
        service.supervise(report)
        service.startService()
        for key in "ab":
            manager.emit(connected(key))
        self.server.take()
        self.server.ack(PUBLISH_CHANNEL, 2, True)
        self.role._failed(Failure(ZeroDivisionError()))
        self.assertEqual([type(reason) for reason in report.reports], [ZeroDivisionError])
        service.stopService()
        self.lose()
        self.live = [connected("b"), connected("c")]
        HandlerService(manager, self.role, "amqp").startService()
        self.connect()
        self.assertEqual(sorted(self.told()), ["+b*", "+c", "-a"])

    def test_a_return_that_is_none_of_ours(self) -> None:
        """A return of a message that was not published ends the connection."""
        for headers in (None, {}, {"connection_id": 7}, {"node": None}, {"connection_id": ["a"], "node": NODE}):
            self.setUp()
            self.connect()
            self.come("a")
            self.server.take()
            header = message(b"", headers)
            method = wire.frame(wire.FRAME_METHOD, PUBLISH_CHANNEL, encode_method("basic.return", reply_code=312))
            self.server.raw(method + wire.content_frames(PUBLISH_CHANNEL, header, b"", 4096))
            self.assertEqual([type(error) for error in self.server.lost], [WireError])
            self.role.down()
            self.connect()
            self.assertEqual(len(self.told()), 1)

    def test_the_first_start(self) -> None:
        """A handler that starts first has missed nothing."""
        self.connect()
        self.live = [connected("a")]
        self.role.start(lambda failure: None)
        self.assertEqual(self.told(), [])

    def test_a_defect(self) -> None:
        """An error in encoding is a failure of the handler, or else logged."""
        self.connect()
        self.role._encode = lambda *arguments: 1 // 0  # type: ignore[method-assign, assignment]
        self.come("a")
        self.server.settle()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(self.server.transport.aborted)
