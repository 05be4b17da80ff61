"""Client connections over a transport in memory: the answers to bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import methods, wire
from owsla.embedded.broker import Broker
from owsla.embedded.protocol import MAX_UNREAD, ServerProtocol
from owsla.runtime.end_of_turn import EndOfTurn

Frame = tuple[int, int, bytes]


def split(data: bytes) -> list[Frame]:
    frames = []
    while data:
        size = int.from_bytes(data[3:7])
        frames.append((data[0], int.from_bytes(data[1:3]), data[7 : 7 + size]))
        assert data[7 + size] == 0xCE
        data = data[8 + size :]
    return frames


class Transport(StringTransport):
    """Transport that closes only without a producer, like a TCP transport."""

    aborted = False
    half_closed = False

    def loseWriteConnection(self) -> None:
        assert self.producer is None
        self.half_closed = True

    def loseConnection(self) -> None:
        assert self.producer is None
        super().loseConnection()

    def abortConnection(self) -> None:
        self.aborted = True
        self.producer = None
        super().loseConnection()


CAPABLE = {"consumer_cancel_notify": True, "connection.blocked": True, "authentication_failure_close": True}


class Client:
    """Client end of a connection."""

    def __init__(self, broker: Broker, clock: Any, capabilities: dict[str, bool] | None = None) -> None:
        self.clock = clock
        self.capabilities = CAPABLE if capabilities is None else capabilities
        self.transport = Transport()
        self.protocol = ServerProtocol(broker, clock, EndOfTurn(clock), ("guest", "guest"))
        self.protocol.makeConnection(self.transport)

    def method(self, name: str, channel: int = 1, **fields: Any) -> bytes:
        return wire.frame(1, channel, methods.encode_method(name, **fields))

    def publish_bytes(self, body: bytes, key: str = "q", exchange: str = "", **options: Any) -> bytes:
        properties = wire.encode_properties(options.pop("properties", {}))
        return self.method("basic.publish", exchange=exchange, routing_key=key, **options) + wire.content_frames(
            1, wire.header_payload(len(body), properties), body, 4096
        )

    def start_bytes(self, response: bytes = b"\0guest\0guest", mechanism: str = "PLAIN", heartbeat: int = 0) -> bytes:
        return (
            wire.PROTOCOL_HEADER
            + self.method(
                "connection.start-ok",
                0,
                client_properties={"capabilities": self.capabilities},
                mechanism=mechanism,
                response=response,
                locale="en_US",
            )
            + self.method("connection.tune-ok", 0, channel_max=10, frame_max=4096, heartbeat=heartbeat)
            + self.method("connection.open", 0, virtual_host="/")
        )

    def open(self, **options: Any) -> Client:
        self.send(self.start_bytes(**options) + self.method("channel.open"))
        assert self.received()[-1][0] == "channel.open-ok"
        return self

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)
        self.clock.advance(0)

    def call(self, name: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
        self.send(self.method(name, **fields))
        return self.received()

    def received(self) -> list[tuple[str, dict[str, Any]]]:
        data = self.transport.value()
        self.transport.clear()
        found: list[tuple[str, dict[str, Any]]] = []
        for kind, _, payload in split(data):
            if kind == 1:
                method, fields = methods.decode_method(payload)
                found.append((method.name, fields))
            elif kind == 2:
                found[-1][1]["properties"] = wire.decode_properties(payload, 12)
                found[-1][1]["body"] = b""
            elif kind == 3:
                found[-1][1]["body"] += payload
            else:
                found.append(("heartbeat", {}))
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.received()]

    def bodies(self) -> list[bytes]:
        return [fields["body"] for name, fields in self.received() if name == "basic.deliver"]


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.fresh()
        observer: Any = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def fresh(self) -> None:
        self.clock = Clock()
        self.broker = Broker(self.clock.seconds, 100_000)
        self.log: list[str] = []
        self.failures: list[object] = []

    def observe(self, event: LogEvent) -> None:
        text = formatEvent(event)
        text.encode()  # a log file is written in UTF-8
        self.log.append(text)
        if "log_failure" in event:
            self.failures.append(event["log_failure"])

    def client(self, **options: Any) -> Client:
        return Client(self.broker, self.clock, options.pop("capabilities", None)).open(**options)

    def refused(self, client: Client, code: int) -> str:
        """Check that the connection was closed with this code, and return the reply text."""
        closes = [fields for name, fields in client.received() if name == "connection.close"]
        self.assertEqual([close["reply_code"] for close in closes], [code])
        client.send(client.method("connection.close-ok", 0))
        self.assertTrue(client.transport.half_closed)
        return str(closes[0]["reply_text"])


class HandshakeTests(Base):
    def test_wrong_protocol_header(self) -> None:
        """A client of another protocol gets the AMQP 0-9-1 header, and is disconnected."""
        for start in (b"GET / HTTP/1.1\r\n", b"AMQP\x01\x01\x00\x0a", b"\x16\x03\x01"):
            client = Client(self.broker, self.clock)
            client.send(start)
            self.assertEqual(client.transport.value(), wire.PROTOCOL_HEADER)
            self.assertTrue(client.transport.half_closed)
        self.assertEqual(len(self.log), 3)

    def test_byte_by_byte(self) -> None:
        """Frames may arrive split at any byte."""
        client = Client(self.broker, self.clock)
        for byte in client.start_bytes():
            client.send(bytes([byte]))
        self.assertEqual(client.names(), ["connection.start", "connection.tune", "connection.open-ok"])

    def test_amqplain(self) -> None:
        """The mechanism AMQPLAIN is accepted like PLAIN."""
        self.client(mechanism="AMQPLAIN", response=wire.encode_table({"LOGIN": "guest", "PASSWORD": "guest"})[4:])

    def test_wrong_password(self) -> None:
        """A failed login is answered with 403 to clients with the capability, and with a closed socket to others."""
        for response in (b"\0guest\0wrong", b"", b"\0\0\0\0", b"\0other\0guest"):
            client = Client(self.broker, self.clock)
            client.send(client.start_bytes(response))
            self.assertIn("Login was refused", self.refused(client, 403))
            client = Client(self.broker, self.clock, {})
            client.send(client.start_bytes(response))
            self.assertEqual(client.names(), ["connection.start"])
            self.assertTrue(client.transport.half_closed)

    def test_vhost(self) -> None:
        """A virtual host other than / is refused with 530."""
        client = Client(self.broker, self.clock)
        client.send(client.start_bytes()[: -len(client.method("connection.open", 0, virtual_host="/"))])
        client.send(client.method("connection.open", 0, virtual_host="x"))
        self.assertEqual(self.refused(client, 530), "NOT_ALLOWED - vhost x not found")

    def test_too_slow(self) -> None:
        """A client that does not open its connection in time is disconnected."""
        client = Client(self.broker, self.clock)
        client.send(wire.PROTOCOL_HEADER)
        self.clock.advance(10)
        self.assertTrue(client.transport.aborted)

    def test_close(self) -> None:
        """Input after close-ok is discarded for at most 30 seconds, while the client may close the socket."""
        client = self.client(heartbeat=10)
        client.send(client.method("connection.close", 0) + client.method("queue.declare", queue="late"))
        self.assertEqual(client.names(), ["connection.close-ok"])
        client.send(client.method("queue.declare", queue="later") + b"what is no frame")
        self.clock.pump([5] * 5)
        self.assertEqual((client.names(), self.broker.queues), ([], {}))
        self.assertFalse(client.transport.half_closed or client.transport.disconnecting)
        self.clock.advance(5)
        self.assertTrue(client.transport.disconnecting)
        self.assertFalse(client.transport.aborted)
        self.clock.advance(5)
        self.assertTrue(client.transport.aborted)

    def test_heartbeats(self) -> None:
        """A silent client gets heartbeats, and is disconnected after two intervals; any byte that it sends counts."""
        client = self.client(heartbeat=10)
        for _ in range(10):
            self.clock.advance(5)
            client.send(wire.HEARTBEAT_FRAME)
        self.assertGreaterEqual(client.names().count("heartbeat"), 5)
        self.assertFalse(client.transport.aborted)
        self.clock.pump([5] * 6)
        self.assertTrue(client.transport.aborted)


class UpdateSecretTests(Base):
    def test_update_secret(self) -> None:
        """A new password on an open connection is accepted, as by RabbitMQ with users of its own, which do not need it."""
        client = self.client()
        self.assertEqual(
            client.call("connection.update-secret", channel=0, new_secret=b"x", reason="renewed"),
            [("connection.update-secret-ok", {})],
        )
        self.assertEqual(client.call("queue.declare", queue="q")[0][0], "queue.declare-ok")


class ChannelTests(Base):
    def test_deliveries_repeat_the_bytes(self) -> None:
        """Properties and body are delivered as they were published, in frames no larger than negotiated."""
        client = self.client()
        client.call("queue.declare", queue="q")
        properties = {"headers": {"n": -1, "b": b"\xff", "t": {"x": [1, None]}}, "app_id": "é", "delivery_mode": 2}
        body = bytes(range(256)) * 60
        client.send(client.publish_bytes(body, properties=properties))
        client.send(client.method("basic.consume", queue="q", consumer_tag="t"))
        frames = split(client.transport.value())
        self.assertTrue(all(len(payload) + 8 <= 4096 for _, _, payload in frames))
        _, (name, fields) = client.received()
        self.assertEqual((name, fields["body"], fields["properties"]), ("basic.deliver", body, properties))
        self.assertEqual((fields["routing_key"], fields["delivery_tag"], fields["redelivered"]), ("q", 1, False))

    def test_confirms_are_coalesced_and_follow_returns(self) -> None:
        """Publishes that arrive together get one ack, after the return of an unroutable one."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.call("confirm.select")
        client.send(
            client.publish_bytes(b"1") + client.publish_bytes(b"2", "nowhere", mandatory=True) + client.publish_bytes(b"3")
        )
        (first, returned), (second, ack) = client.received()
        self.assertEqual((first, returned["reply_code"], returned["body"]), ("basic.return", 312, b"2"))
        self.assertEqual((second, ack["delivery_tag"], ack["multiple"]), ("basic.ack", 3, True))

    def test_a_full_queue_nacks(self) -> None:
        """A publish that a full queue rejects gets a nack, in order with the acks."""
        client = self.client()
        client.call("queue.declare", queue="q", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        client.call("queue.declare", queue="other")
        client.call("confirm.select")
        client.send(
            client.publish_bytes(b"1")
            + client.publish_bytes(b"2", "other")
            + client.publish_bytes(b"3")
            + client.publish_bytes(b"4", "other")
        )
        found = [(name, fields["delivery_tag"], fields["multiple"]) for name, fields in client.received()]
        self.assertEqual(found, [("basic.ack", 2, True), ("basic.nack", 3, False), ("basic.ack", 4, False)])

    def test_prefetch(self) -> None:
        """A consumer has at most its prefetch of unacknowledged messages; an ack makes room."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.call("basic.qos", prefetch_count=2)
        for number in range(5):
            client.send(client.publish_bytes(b"%d" % number))
        client.send(client.method("basic.consume", queue="q"))
        self.assertEqual(client.bodies(), [b"0", b"1"])
        client.send(client.method("basic.ack", delivery_tag=2, multiple=True))
        self.assertEqual(client.bodies(), [b"2", b"3"])

    def test_global_prefetch(self) -> None:
        """With global, the consumers of a channel share the prefetch limit."""
        client = self.client()
        client.call("basic.qos", prefetch_count=2, **{"global": True})
        for queue in ("a", "b"):
            client.call("queue.declare", queue=queue)
        client.send(client.publish_bytes(b"1", "a") + client.publish_bytes(b"2", "a") + client.publish_bytes(b"3", "b"))
        client.send(client.method("basic.consume", queue="a") + client.method("basic.consume", queue="b"))
        self.assertEqual(client.bodies(), [b"1", b"2"])
        client.send(client.method("basic.ack", delivery_tag=1))
        self.assertEqual(client.bodies(), [b"3"])

    def test_nack_and_close_restore_the_order(self) -> None:
        """The unacknowledged messages of a closing channel are requeued in order and marked as redelivered."""
        client = self.client()
        client.call("queue.declare", queue="q")
        for number in range(4):
            client.send(client.publish_bytes(b"%d" % number))
        for _ in range(3):
            client.call("basic.get", queue="q")
        client.send(client.method("basic.nack", delivery_tag=2, requeue=True))
        self.assertEqual(client.call("channel.close")[0][0], "channel.close-ok")
        client.call("channel.open")
        client.send(client.method("basic.consume", queue="q", no_ack=True))
        found = [(f["body"], f["redelivered"]) for name, f in client.received() if name == "basic.deliver"]
        self.assertEqual(found, [(b"0", True), (b"1", True), (b"2", True), (b"3", False)])
        self.assertEqual(self.broker.memory.used, 0)

    def test_lost_connection_requeues(self) -> None:
        """The unacknowledged messages of a lost connection are requeued, and the next consumer begins with them."""
        one, two = self.client(), self.client()
        one.call("queue.declare", queue="q")
        one.send(one.publish_bytes(b"1") + one.publish_bytes(b"2"))
        one.call("basic.qos", prefetch_count=1)
        one.call("basic.consume", queue="q")
        two.call("basic.qos", prefetch_count=1)
        two.send(two.method("basic.consume", queue="q"))
        self.assertEqual(two.bodies(), [b"2"])
        one.protocol.connectionLost(Failure(ConnectionDone()))
        two.send(two.method("basic.ack", delivery_tag=1))
        self.assertEqual(two.bodies(), [b"1"])

    def test_recover(self) -> None:
        """basic.recover redelivers the unacknowledged messages."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.send(client.publish_bytes(b"1"))
        client.call("basic.consume", queue="q")
        names = [(name, fields.get("redelivered")) for name, fields in client.call("basic.recover", requeue=True)]
        self.assertIn(("basic.deliver", True), names)

    def test_cc_and_bcc(self) -> None:
        """The headers CC and BCC are further routing keys; BCC is removed from deliveries."""
        client = self.client()
        for queue in "qrs":
            client.call("queue.declare", queue=queue)
        client.send(client.publish_bytes(b"1", properties={"headers": {"CC": ["r"], "BCC": ["s"], "x": 1}}))
        for queue in "qrs":
            ((name, fields),) = client.call("basic.get", queue=queue, no_ack=True)
            self.assertEqual((name, fields["properties"]), ("basic.get-ok", {"headers": {"CC": ["r"], "x": 1}}))
        self.assertEqual(self.broker.memory.used, 0)

    def test_channel_errors_keep_the_connection(self) -> None:
        """A soft error closes the channel, whose input is ignored until close-ok; then its number can be used again."""
        client = self.client()
        ((name, fields),) = client.call("basic.ack", delivery_tag=7)
        self.assertEqual(
            (name, fields["reply_code"], fields["reply_text"]),
            ("channel.close", 406, "PRECONDITION_FAILED - unknown delivery tag 7"),
        )
        self.assertEqual(client.call("queue.declare", queue="ignored"), [])
        client.send(client.method("channel.close-ok"))
        self.assertEqual(client.call("channel.open")[0][0], "channel.open-ok")
        self.assertNotIn("ignored", self.broker.queues)

    def test_errors_name_the_method(self) -> None:
        """A close names the refused method."""
        ((_, fields),) = self.client().call("queue.declare", queue="none", passive=True)
        self.assertEqual((fields["reply_code"], fields["class_id"], fields["method_id"]), (404, 50, 10))

    def test_looking_for_a_queue(self) -> None:
        """A missing queue is logged as a warning, except for a passive declaration, which asks for that."""
        self.client().call("queue.declare", queue="none", passive=True)
        self.assertEqual([line for line in self.log if "none" in line], [])
        self.client().call("basic.consume", queue="none")
        self.assertEqual(len([line for line in self.log if "none" in line]), 1)

    def test_cancel_notification(self) -> None:
        """A consumer whose queue is deleted is notified, if its client has the capability."""
        for capabilities, expected in [(CAPABLE, ["basic.cancel"]), ({}, [])]:
            client = self.client(capabilities=capabilities)
            client.call("queue.declare", queue="q")
            client.call("basic.consume", queue="q")
            other = self.client()
            other.call("queue.delete", queue="q")
            self.assertEqual(client.names(), expected)

    def test_blocked_publisher(self) -> None:
        """A publisher above the memory limit is blocked and told so; consumers continue; then it is unblocked."""
        publisher, consumer = self.client(), self.client()
        publisher.call("queue.declare", queue="q")
        one = publisher.publish_bytes(b"x" * 4000)
        publisher.send(one * 60)
        self.assertEqual(publisher.names(), ["connection.blocked"])
        self.assertEqual(publisher.transport.producerState, "paused")
        waiting = len(self.broker.queues["q"].ready)
        self.assertLess(waiting, 30)
        self.assertLess(self.broker.memory.used, 110_000)
        consumer.send(consumer.method("basic.consume", queue="q", no_ack=True))
        total = len(consumer.bodies())
        for _ in range(5):
            self.clock.advance(0)
            total += len(consumer.bodies())
        self.assertEqual(total, 60)
        self.assertEqual(publisher.names(), ["connection.unblocked"])
        self.assertEqual(publisher.transport.producerState, "producing")

    def test_acknowledgements_of_a_blocked_connection(self) -> None:
        """A connection that also consumes publishes and acknowledges above the memory limit, until there is room."""
        publisher, echo = self.client(), self.client()
        for queue in ("q", "answers"):
            publisher.call("queue.declare", queue=queue)
        publisher.send(publisher.publish_bytes(b"x" * 4000) * 60)
        publisher.received()
        echo.send(echo.method("basic.consume", queue="q"))
        answer = echo.publish_bytes(b"y" * 4000, "answers")
        taken = 0
        while deliveries := [fields["delivery_tag"] for name, fields in echo.received() if name == "basic.deliver"]:
            # All answers first, as a client with confirms does: each acknowledgement comes behind a publish.
            echo.send(answer * len(deliveries))
            echo.send(b"".join(echo.method("basic.ack", delivery_tag=tag) for tag in deliveries))
            taken += len(deliveries)
            self.assertLess(self.broker.memory.used, 210_000)
            self.broker.queues["answers"].purge()
            self.clock.advance(0)
        self.assertEqual(taken, 60)
        self.assertIn("connection.unblocked", publisher.names())

    def test_answers_without_end(self) -> None:
        """At twice the memory limit a connection that also consumes waits, and continues when there is room."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.call("queue.declare", queue="answers")
        client.send(client.publish_bytes(b"1"))
        client.send(client.method("basic.consume", queue="q"))
        client.send(client.publish_bytes(b"x" * 4000, "answers") * 60 + client.method("basic.ack", delivery_tag=1))
        self.assertEqual(client.transport.producerState, "paused")
        self.assertLess(self.broker.memory.used, 210_000)
        self.assertEqual(len(self.broker.queues["q"].ready), 0)
        self.assertTrue(client.protocol.channels.by_number[1].consumers.unacked)
        other = self.client()
        total = 0
        other.send(other.method("basic.consume", queue="answers", no_ack=True))
        for _ in range(5):
            self.clock.advance(0)
            total += len(other.bodies())
        self.assertEqual(total, 60)
        self.assertEqual(client.transport.producerState, "producing")
        self.assertFalse(client.protocol.channels.by_number[1].consumers.unacked)

    def test_a_blocked_client_is_read(self) -> None:
        """A blocked client that stops publishing is read: its other commands are executed."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.send(client.publish_bytes(b"x" * 4000) * 23)
        self.assertEqual(client.names(), ["connection.blocked"])
        client.send(client.method("queue.purge", queue="q"))
        self.assertEqual(client.names(), ["connection.unblocked", "queue.purge-ok"])

    def test_replies_wait_for_a_slow_reader(self) -> None:
        """Direct replies to a client that does not read wait, count as memory, and are dropped with its channel."""
        asker, other = self.client(), self.client()
        asker.call("queue.declare", queue="q")
        asker.send(asker.method("basic.consume", queue="amq.rabbitmq.reply-to", no_ack=True))
        asker.send(asker.publish_bytes(b"1", properties={"reply_to": "amq.rabbitmq.reply-to"}))
        ((_, question),) = other.call("basic.get", queue="q", no_ack=True)
        name = question["properties"]["reply_to"]
        asker.received()
        asker.protocol.pauseProducing()
        other.send(other.publish_bytes(b"a", name) + other.publish_bytes(b"b", name))
        self.assertEqual(asker.bodies(), [])
        self.assertGreater(self.broker.memory.used, 0)
        asker.protocol.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(asker.bodies(), [b"a", b"b"])
        asker.protocol.pauseProducing()
        other.send(other.publish_bytes(b"c", name))
        asker.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.broker.memory.used, 0)

    def test_the_end_of_a_connection_with_a_defect(self) -> None:
        """An error at the end of a connection leaves neither an exclusive queue of it nor a stop that waits for it."""
        client = self.client()
        client.call("queue.declare", queue="mine", exclusive=True)
        lost: list[object] = []
        self.patch(client.protocol, "_lost", lost.append)
        self.patch(type(client.protocol.channels), "end", lambda _: 1 // 0)
        self.assertRaises(ZeroDivisionError, client.protocol.connectionLost, Failure(ConnectionDone()))
        self.assertEqual(lost, [client.protocol])
        self.assertNotIn("mine", self.broker.queues)

    def test_a_transaction_counts_as_memory(self) -> None:
        """Messages of a transaction count as memory until they are committed and consumed, or rolled back."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.call("tx.select")
        for end in ("tx.rollback", "channel.close"):
            client.send(client.publish_bytes(b"x" * 1000))
            self.assertGreater(self.broker.memory.used, 1000)
            client.call(end)
            self.assertEqual(self.broker.memory.used, 0)
        self.assertEqual(len(self.broker.queues["q"].ready), 0)

    def test_slow_reader_gets_nothing_more(self) -> None:
        """Nothing is delivered while the transport asks to pause; afterwards all messages are, in order."""
        client = self.client()
        client.call("queue.declare", queue="q")
        client.call("basic.consume", queue="q")
        client.protocol.pauseProducing()
        for number in range(3):
            client.send(client.publish_bytes(b"%d" % number))
        self.assertEqual(client.bodies(), [])
        client.protocol.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(client.bodies(), [b"0", b"1", b"2"])

    def test_unread_answers_are_bounded(self) -> None:
        """A client that sends commands without reading the answers is not read either."""
        client = self.client()
        client.protocol.pauseProducing()
        asked = client.method("queue.declare", queue="q" * 200) * 1000
        for _ in range(20):
            client.send(asked)
            if client.transport.producerState == "paused":
                break
        self.assertEqual(client.transport.producerState, "paused")
        self.assertLess(len(client.transport.value()), 2 * MAX_UNREAD)
        client.protocol.resumeProducing()
        self.assertEqual(client.transport.producerState, "producing")


class HostileTests(Base):
    def test_malformed_input(self) -> None:
        """Malformed frames, methods and contents close the connection with their code and one log line."""
        client = Client(self.broker, self.clock)
        publish = client.method("basic.publish", routing_key="q")
        for data, code in [
            (b"\x09\0\x01\0\0\0\0\xce", 501),
            (b"\x01\0\x01\0\0\0\x04\0\x32\0\x0a\xcd", 501),
            (b"\x01\0\x01\xff\xff\xff\xff", 501),
            (b"\x08\0\x01\0\0\0\0\xce", 501),
            (wire.frame(1, 1, b"\0\x32\x7f\x7f"), 540),
            (wire.frame(1, 1, b"\0"), 502),
            (wire.frame(1, 1, methods.encode_method("queue.declare", queue="q")[:-3]), 502),
            (wire.frame(1, 1, methods.encode_method("queue.declare", queue="q")[:-4] + b"\0\0\0\x05\x01aS\0\0"), 502),
            (wire.frame(2, 1, wire.header_payload(0, b"\0\0")), 505),
            (wire.frame(3, 1, b"x"), 505),
            (publish + client.method("queue.declare", queue="q"), 505),
            (publish + wire.frame(3, 1, b"x"), 505),
            (publish + wire.frame(2, 1, wire.header_payload(1, b"\0\0")) + wire.frame(3, 1, b"xx"), 505),
            (publish + wire.frame(2, 1, wire.header_payload(0, b"\x20\0\0\0\0\x09\x01aS\xff\xff\xff\xff")), 502),
            (publish + wire.frame(2, 1, wire.header_payload(0, b"\0\0x")), 502),
            (client.method("queue.declare-ok"), 503),
            (client.method("queue.declare", 7, queue="q"), 504),
            (client.method("channel.open"), 504),
            (client.method("channel.flow", active=False), 540),
            (client.method("queue.declare", queue="x", durable=True, arguments={"x-queue-type": "stream"}), 540),
            (client.method("basic.publish") + wire.frame(2, 1, bytes(4089)), 501),
            (client.method("basic.publish") + wire.frame(3, 1, bytes(4097)), 501),
            (client.method("basic.publish", immediate=True), 540),
            (client.method("exchange.declare", exchange="x", type="x-none"), 503),
            (client.method("connection.open", 0, virtual_host="/"), 503),
        ]:
            client = self.client()
            self.log.clear()
            client.send(data)
            self.refused(client, code)
            self.assertEqual(len(self.log), 1, self.log)
            client.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.broker.memory.used, 0)

    def test_odd_names_are_printed_in_one_line(self) -> None:
        """Names from a client appear in the log and in replies as printable text that fits."""
        client = self.client()
        name = b"a\n\xff\x1b" + "é".encode() * 120
        ((_, fields),) = client.call("queue.purge", queue=name)
        self.assertTrue(fields["reply_text"].startswith("NOT_FOUND - no queue 'a\\n\\udcff\\x1bé"))
        self.assertEqual(len([line for line in self.log if fields["reply_text"] in line]), 1)

    def test_no_close_ok(self) -> None:
        """A client that does not answer connection.close is disconnected."""
        client = self.client()
        client.send(b"\x09\0\x01\0\0\0\0\xce")
        self.clock.advance(5)
        self.assertTrue(client.transport.aborted)

    def session(self, client: Client) -> bytes:
        asking = {"reply_to": "amq.rabbitmq.reply-to", "headers": {"a": 1}, "delivery_mode": 2}
        return (
            client.start_bytes(heartbeat=5)
            + client.method("channel.open")
            + client.method("exchange.declare", exchange="x", type="topic", arguments={"a": [1, {"b": b"c"}]})
            + client.method("queue.declare", queue="q", arguments={"x-max-length": 5, "x-expires": 1000})
            + client.method("queue.bind", queue="q", exchange="x", routing_key="#")
            + client.method("confirm.select")
            + client.method("basic.qos", prefetch_count=3)
            + client.method("basic.consume", queue="q", consumer_tag="t")
            + client.publish_bytes(b"a" * 9000, "k", "x", properties={"headers": {"CC": ["q"]}, "expiration": "5"})
            + client.publish_bytes(b"", "none", mandatory=True)
            + client.method("basic.ack", delivery_tag=1)
            + client.method("basic.get", queue="q")
            + client.method("basic.nack", delivery_tag=1, requeue=True)
            + client.method("basic.cancel", consumer_tag="t")
            + client.method("queue.bind", queue="q", exchange="amq.match", arguments={"x-match": "any", "a": 1})
            + client.method("basic.consume", queue="amq.rabbitmq.reply-to", no_ack=True)
            + client.method("channel.open", 2)
            + client.method("tx.select", 2)
            + client.method("channel.close", 2)
            + client.publish_bytes(b"b" * 10, "", "amq.match", properties=asking)
            + client.method("channel.close")
            + client.method("channel.open")
            + client.method("tx.select")
            + client.publish_bytes(b"c" * 5000, "q")
            + client.method("basic.get", queue="q")
            + client.method("basic.ack", delivery_tag=1)
            + client.method("tx.rollback")
            + client.publish_bytes(b"d", "q")
            + client.method("tx.commit")
            + client.method("channel.close")
        )

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutated_sessions(self, data: st.DataObject) -> None:
        """A session with any bytes changed raises and logs no exception, and leaves no memory or timers behind."""
        self.fresh()
        client = Client(self.broker, self.clock)
        session = bytearray(self.session(client))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(session) - 1))
            change = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
            if change == "set":
                session[at] = data.draw(st.integers(0, 255))
            elif change == "cut":
                del session[at : at + data.draw(st.integers(1, 50))]
            elif change == "insert":
                session[at:at] = data.draw(st.binary(max_size=20))
            else:
                session[at:at] = session[at : at + data.draw(st.integers(1, 200))]
            if not session:
                return
        step = data.draw(st.integers(1, 5000))
        for start in range(0, len(session), step):
            client.send(bytes(session[start : start + step]))
        self.clock.advance(1)
        client.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.failures, [])
        self.assertEqual([line for line in self.log if "\n" in line], [])
        for name in list(self.broker.queues):
            self.broker.queues[name].purge()
        self.assertEqual(self.broker.memory.used, 0)
        self.assertEqual(self.clock.calls, [])
