"""Tests of lines of several doors: what happens to one door does not concern the others."""

from __future__ import annotations

from collections.abc import Collection

from owsla.broker import queues as topology
from owsla.broker.batch_pacing import BatchPacing
from owsla.broker.batch_packing import BatchPacker
from owsla.broker.batch_window import BatchWindow
from owsla.broker.batches import BatchPublisher
from owsla.broker.client import BrokerError
from owsla.broker.door_lines import ANSWER_TIMEOUT, LASTING, DoorLines, line_channel
from owsla.broker.door_publisher import DoorPublisher, PublisherOptions
from owsla.broker.lines import LinePublisher
from owsla.broker.packing import LinePacker, MessageArguments
from owsla.broker.refusals import RefusalHistory
from owsla.broker.window import Window
from owsla.events import Event, LinesAccepted, LinesRefused
from owsla.routing_key import RoutingKey
from owsla.runtime.end_of_turn import EndOfTurn

from .fakes import BrokerTestCase, Result, Server
from .test_lines import Device, Numbered, lines

DOORS: dict[str, topology.Queue | topology.Exchange] = {
    "default": topology.Queue("from_device"),
    "meters": topology.Queue("meters"),
    "trackers": topology.Exchange("tracks"),
}

HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"
"""A heartbeat frame (AMQP 0-9-1, 4.2.7)."""

NOT_FOUND = "NOT_FOUND - no exchange 'tracks'"


class Lab:
    """The lines of some doors, and their broker. The channels of the doors are 1, 3, 5 and so on."""

    def __init__(self, *names: str, messages: int = 4, batches: Collection[str] = ()) -> None:
        """The doors of `batches` publish batches, a second after the last ones."""
        self.server = Server()
        self.clock = self.server.clock
        self.events: list[Event] = []
        self.lines = DoorLines(self.clock)
        for number, name in enumerate(names or DOORS):
            target = DOORS[name]
            exchange = target.name if isinstance(target, topology.Exchange) else ""
            message = MessageArguments(
                channel=line_channel(number),
                exchange=exchange,
                routing_key=RoutingKey("all") if exchange else target.name,
                delivery_mode=2,
                reply_to=b"to_device.0123abcd",
                frame_max=131072,
                door=name if len(names) != 1 else None,
            )
            options = PublisherOptions(door=name, acknowledge=True, failed=self.lines.channel_failed)
            publisher: DoorPublisher
            if name in batches:
                publisher = BatchPublisher(
                    self.clock,
                    self.events.append,
                    queue=target,
                    packer=BatchPacker(most=100, **message),
                    window=BatchWindow(messages, 1 << 20),
                    pacing=BatchPacing(self.clock, EndOfTurn(self.clock), 1.0),
                    options=options,
                )
            else:
                packer = LinePacker(seq_header="from_device_seq", **message)
                window = Window(messages, 1 << 20)
                publisher = LinePublisher(
                    self.clock, self.events.append, queue=target, packer=packer, window=window, options=options
                )
            self.lines.add(name, publisher)
        self.devices = {name: Device(publisher, name[0]) for name, publisher in self.lines.publishers.items()}

    def connect(self) -> Result:
        if self.server.client.transport is not None:
            refusals = self.server.refusals
            self.server = Server(self.clock)
            self.server.refusals = refusals
        self.server.ready()
        result = Result(self.lines.up(self.server.client))
        self.server.settle()
        return result

    def lose(self) -> None:
        self.server.drop()
        self.lines.down()

    def publish(self, *doors: str) -> None:
        for door in doors:
            self.lines.publishers[door].publish(self.devices[door], b"line")

    def taken(self) -> list[Numbered]:
        return lines(self.server.take())

    def accepting(self) -> list[str]:
        """Return the doors whose devices are read."""
        return [name for name, publisher in self.lines.publishers.items() if publisher.accepting]

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.server.settle()

    def refusals(self) -> list[LinesRefused]:
        return [event for event in self.events if isinstance(event, LinesRefused)]


class DoorLinesTests(BrokerTestCase):
    def setUp(self) -> None:
        self.lab = Lab()

    def test_setting_up(self) -> None:
        """The queues are declared and the exchanges looked for, and each door has a channel with confirms."""
        self.lab.connect()
        calls = [(channel, name) for channel, name, _ in self.lab.server.calls if name.endswith(("declare", "select"))]
        self.assertEqual(
            calls,
            [
                (2, "queue.declare"),
                (1, "confirm.select"),
                (4, "queue.declare"),
                (3, "confirm.select"),
                (6, "exchange.declare"),
                (5, "confirm.select"),
            ],
        )
        self.assertEqual(self.lab.accepting(), ["default", "meters", "trackers"])

    def test_where_lines_go(self) -> None:
        """A line goes to the destination of its door, with the name of the door in a header."""
        self.lab.connect()
        self.lab.publish("default", "meters", "trackers")
        self.assertEqual(
            [(one.method["exchange"], one.queue, one.headers["door"]) for one in self.lab.server.take()],
            [("", "from_device", "default"), ("", "meters", "meters"), ("tracks", "all", "trackers")],
        )

    def test_one_door(self) -> None:
        """Lines of a node with one door do not name it."""
        lab = Lab("default")
        lab.connect()
        lab.publish("default")
        (published,) = lab.server.take()
        self.assertEqual(list(published.headers), ["connection_id", "from_device_seq"])

    def test_a_full_queue(self) -> None:
        """A queue that refuses lines pauses the devices of its door, and no others, however many lines it refuses."""
        self.lab.connect()
        self.lab.publish(*["meters"] * 10)
        refused = self.lab.server.take()
        self.lab.server.nack(3, refused[-1].tag, multiple=True)
        self.assertEqual(self.lab.accepting(), ["default", "trackers"])
        self.assertEqual(self.lab.events, [LinesRefused(10, "the queue meters is full or unavailable", "meters")])
        for number in range(20):
            self.lab.publish("default")
            self.assertEqual(self.lab.taken(), [("d", number)])
            self.lab.server.ack(1, number + 1)
        self.assertEqual(self.lab.devices["default"].safe, list(range(20)))
        self.lab.pass_time(0.2)
        self.assertEqual(self.lab.taken(), [("m", number) for number in range(10)])
        self.lab.server.ack(3, 20, multiple=True)
        self.assertEqual(self.lab.accepting(), ["default", "meters", "trackers"])
        self.assertEqual(self.lab.events[1:], [LinesAccepted("queue meters", "meters")])
        self.assertEqual(self.lab.devices["meters"].safe, list(range(10)))

    def test_unanswered(self) -> None:
        """A queue that leaves lines unanswered pauses the devices of its door when their window is full."""
        self.lab.connect()
        self.lab.publish(*["meters"] * 4, "default")
        self.assertEqual(self.lab.accepting(), ["default", "trackers"])
        self.lab.server.ack(1, 1)
        self.assertEqual(self.lab.devices["default"].safe, [0])

    def test_a_missing_exchange(self) -> None:
        """An exchange that is not there at the start is looked for with back-off. The other doors publish meanwhile."""
        self.lab.server.refusals["tracks", True] = (404, NOT_FOUND)
        up = self.lab.connect()
        self.assertIsNone(up.failure)
        self.lab.publish("trackers", "default")
        self.assertEqual((self.lab.taken(), self.lab.accepting()), ([("d", 0)], ["default", "meters"]))
        self.assertEqual(self.lab.events, [LinesRefused(0, f"exchange tracks: {NOT_FOUND} (404)", "trackers")])
        self.assertIn("refuses lines (door trackers): exchange tracks: NOT_FOUND", str(self.lab.events[0]))
        self.lab.pass_time(30)
        looked = len(self.lab.server.called("exchange.declare"))
        self.assertTrue(6 <= looked <= 14, looked)
        del self.lab.server.refusals["tracks", True]
        self.lab.pass_time(6)
        self.assertEqual((self.lab.taken(), self.lab.accepting()), ([("t", 0)], ["default", "meters", "trackers"]))
        self.assertNotIn(LinesAccepted("exchange tracks", "trackers"), self.lab.events)
        self.lab.server.ack(5, 1)
        self.assertEqual(self.lab.events[1:], [LinesAccepted("exchange tracks", "trackers")])
        self.assertEqual(self.lab.server.lost, [])
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.assertEqual(len(self.lab.refusals()), 2, "a fault after that is news")

    def test_an_exchange_that_goes(self) -> None:
        """RabbitMQ closes the channel when an exchange is gone. The channels of other doors go on, with lines in flight."""
        self.lab.connect()
        self.lab.publish("default", "trackers", "trackers")
        self.lab.server.take()
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.assertEqual(self.lab.accepting(), ["default", "meters"])
        self.lab.publish("default", "trackers")
        self.assertEqual(self.lab.taken(), [("d", 1)])
        self.lab.server.ack(1, 2, multiple=True)
        self.assertEqual(self.lab.devices["default"].safe, [0, 1])
        self.lab.pass_time(1)
        self.assertEqual(self.lab.taken(), [("t", 0), ("t", 1), ("t", 2)])
        self.lab.server.ack(5, 3, multiple=True)
        self.assertEqual(self.lab.devices["trackers"].safe, [0, 1, 2])
        self.assertEqual((self.lab.server.lost, self.lab.lines.unconfirmed), ([], 0))

    def test_no_permission(self) -> None:
        """A channel that is closed with its first line each time is opened again ever more rarely."""
        self.lab.connect()
        self.lab.publish("trackers")
        opened = 0
        for _ in range(600):
            if self.lab.server.take():
                opened += 1
                self.lab.server.close_channel(5, 403, "ACCESS_REFUSED - no")
            self.lab.pass_time(0.1)
        if self.lab.server.take():
            self.lab.server.close_channel(5, 403, "ACCESS_REFUSED - no")
        self.assertTrue(12 <= opened <= 30, opened)
        self.assertEqual((self.lab.server.lost, self.lab.accepting()), ([], ["default", "meters"]))
        self.assertEqual(len(self.lab.events), 1)

    def test_a_channel_that_lasted(self) -> None:
        """After a fault that is over for some time, the next one is mended as soon as the first."""
        self.lab.connect()
        for _ in range(10):
            self.lab.pass_time(LASTING)
            self.lab.server.close_channel(5, 404, NOT_FOUND)
            self.lab.pass_time(0.3)
            self.assertIn("trackers", self.lab.accepting())

    def test_another_channel(self) -> None:
        """Where only the channel may be at fault, that of the door is replaced, and no other."""
        self.lab.connect()
        self.lab.publish("meters", "default")
        opened = []
        for _ in range(RefusalHistory.FIRST):
            for one in self.lab.server.take():
                if one.channel == 3:
                    self.lab.server.nack(3, one.tag)
            self.lab.pass_time(2)
            opened = [channel for channel, name, _ in self.lab.server.calls if name == "channel.open" and channel in (1, 3, 5)]
        self.assertEqual(opened, [1, 3, 5, 3])
        self.assertEqual(self.lab.taken(), [("m", 0)])
        self.assertEqual((self.lab.lines.unconfirmed, self.lab.server.lost), (2, []))

    def test_a_line_too_large(self) -> None:
        """A line above the size limit of the broker closes the channel of its door, is given up, and its connection closed."""
        self.lab.connect()
        self.lab.publish("meters", "default")
        text = "PRECONDITION_FAILED - message size 4 is larger than configured max size 3"
        self.lab.server.close_channel(3, 406, text)
        self.assertEqual(len(self.lab.devices["meters"].closed), 1)
        self.assertEqual((self.lab.server.lost, self.lab.lines.unconfirmed), ([], 1))
        self.lab.pass_time(1)
        self.assertIn("meters", self.lab.accepting())

    def test_no_door_can_publish(self) -> None:
        """If no destination is there, the set-up fails with the reason, as with one door."""
        for name, target in DOORS.items():
            self.lab.server.refusals[target.name, False] = self.lab.server.refusals[target.name, True] = (403, f"no {name}")
        error = self.lab.connect().error
        self.assertIsInstance(error, BrokerError)
        self.assertIn("no default", str(error))
        self.assertEqual(self.lab.refusals(), [])

    def test_one_door_alone(self) -> None:
        """With one door a fault of the channel ends the connection."""
        lab = Lab("meters")
        lab.connect()
        lab.server.close_channel(1, 404)
        self.assertEqual(len(lab.server.lost), 1)

    def test_a_fault_of_the_connection(self) -> None:
        """A broker that makes no sense is left, with all doors."""
        self.lab.connect()
        self.lab.server.ack(3, 77)
        self.assertEqual(len(self.lab.server.lost), 1)

    def test_a_new_connection(self) -> None:
        """After the loss of the connection each door publishes again what was not confirmed, also one that was suspended."""
        self.lab.connect()
        self.lab.publish("default", "meters", "trackers")
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.lab.lose()
        self.lab.pass_time(10)
        self.assertEqual(self.lab.accepting(), [])
        self.lab.connect()
        self.assertEqual(self.lab.taken(), [("d", 0), ("m", 0), ("t", 0)])
        self.assertEqual(self.lab.accepting(), ["default", "meters", "trackers"])

    def test_lost_while_a_channel_is_opened(self) -> None:
        """A connection that ends while a door gets another channel is no fault of the door."""
        self.lab.connect()
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.lab.server.silent.add("exchange.declare")
        self.lab.pass_time(0.5)
        self.lab.lose()
        self.lab.pass_time(5)
        self.assertEqual(len(self.lab.refusals()), 1)
        self.lab.connect()
        self.assertEqual(self.lab.accepting(), ["default", "meters", "trackers"])

    def test_no_answer(self) -> None:
        """A broker that never answers when a door gets another channel is left: the door would wait for ever."""
        self.lab.connect()
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.lab.server.silent.add("exchange.declare")
        for _ in range(round(ANSWER_TIMEOUT) // 10 - 1):
            self.lab.pass_time(10)
            self.lab.server.raw(HEARTBEAT)
        self.lab.pass_time(9)
        self.assertEqual(self.lab.server.lost, [])
        self.lab.pass_time(3)
        self.assertIn("no channel for the lines of a door", str(self.lab.server.lost))

    def test_blocked(self) -> None:
        """A broker that blocks blocks all doors, also one whose channel is opened again meanwhile."""
        self.lab.connect()
        self.lab.lines.blocked("memory")
        self.assertEqual(self.lab.accepting(), [])
        self.lab.server.close_channel(5, 404, NOT_FOUND)
        self.lab.pass_time(1)
        self.assertEqual(self.lab.accepting(), [])
        self.lab.lines.unblocked()
        self.assertEqual(self.lab.accepting(), ["default", "meters", "trackers"])

    def test_settled(self) -> None:
        """A connection is settled when all its lines are confirmed, whichever door it came through."""
        self.lab.connect()
        self.lab.publish("meters")
        for settled, unconfirmed in (([True, False, True], 1), ([True, True, True], 0)):
            self.assertEqual([self.lab.lines.settled(device) for device in self.lab.devices.values()], settled)
            self.assertEqual(self.lab.lines.unconfirmed, unconfirmed)
            if unconfirmed:
                self.lab.server.ack(3, 1)

    def test_stop(self) -> None:
        """When the node stops, the open batches of all doors are published. A door without batches has none."""
        lab = Lab(messages=100, batches=("meters", "trackers"))
        lab.connect()
        lab.publish(*DOORS)
        lab.server.settle()
        lab.taken()
        lab.publish(*DOORS, *DOORS)
        lab.server.settle()
        self.assertEqual(lab.taken(), [("d", 1), ("d", 2)])
        self.assertEqual(lab.lines.unconfirmed, 9)
        lab.lines.stop_waiting()
        lab.server.settle()
        published = [(one.headers["door"], one.headers["owsla_batch"]) for one in lab.server.take()]
        self.assertEqual(published, [("meters", 2), ("trackers", 2)])

    def test_open_batch_of_a_missing_exchange(self) -> None:
        """Lines in a batch that is open when the channel of its door ends are published on the next one, behind others."""
        lab = Lab(messages=100, batches=("trackers",))
        lab.connect()
        lab.publish("trackers", "default")
        lab.server.settle()
        lab.publish("trackers")
        lab.taken()
        lab.server.close_channel(5, 404, NOT_FOUND)
        self.assertEqual(lab.accepting(), ["default", "meters"])
        lab.publish("trackers")
        lab.pass_time(2)
        self.assertEqual(lab.taken(), [("t", 0), ("t", 1), ("t", 2)])
        lab.publish("trackers")
        lab.pass_time(1)
        self.assertEqual(lab.taken(), [("t", 3)])
        lab.server.ack(5, 0, True)
        self.assertEqual((lab.devices["trackers"].safe, lab.lines.unconfirmed), ([0, 1, 2, 3], 1))

    def test_another_name(self) -> None:
        """All doors tell back ends the queue of another name of the node."""
        self.lab.connect()
        self.lab.lines.answer_to(b"to_device.89abcdef")
        self.lab.publish("default", "trackers")
        self.assertEqual({one.properties["reply_to"] for one in self.lab.server.take()}, {"to_device.89abcdef"})
