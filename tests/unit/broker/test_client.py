"""Tests of a broker connection over a transport in memory."""

from __future__ import annotations

import socket
import struct
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from txamqp.client import Closed
from zope.interface import implementer

from owsla import __version__
from owsla.amqp import wire
from owsla.amqp.methods import BY_NAME, encode_method
from owsla.amqp.wire import WireError
from owsla.broker.client import FRAME_MAX, HEADER_MAX, BaseHandler, BrokerError, Credentials, Getter, as_failure

from .fakes import START, BrokerTestCase, Result, Server, Transport, deliver, message


class Noter(BaseHandler):
    """Handler that records its callbacks."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.ends: list[Failure] = []

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.notes.append(("deliver", tag, redelivered, header, body))

    def confirmed(self, tag: int, multiple: bool) -> None:
        self.notes.append(("confirmed", tag, multiple))

    def refused(self, tag: int, multiple: bool) -> None:
        self.notes.append(("refused", tag, multiple))

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        self.notes.append(("returned", reason, routing_key, header, body))

    def cancelled(self, consumer_tag: str) -> None:
        self.notes.append(("cancelled", consumer_tag))

    def closed(self, reason: Failure) -> None:
        self.ends.append(reason)


class Watcher:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def blocked(self, reason: str) -> None:
        self.notes.append(reason)

    def unblocked(self) -> None:
        self.notes.append("unblocked")


def open_channel(server: Server, number: int = 1) -> tuple[Noter, Any]:
    handler = Noter()
    result = Result(server.client.open_channel(number, handler))
    server.settle()
    assert result.done
    assert result.failure is None
    return handler, result.value


def _broker_closes(server: Server) -> None:
    server.send(0, "connection.close", reply_code=320, reply_text="CONNECTION_FORCED - bye", class_id=0, method_id=0)


class OpeningTests(BrokerTestCase):
    def test_greeting(self) -> None:
        """The first bytes are the protocol header of AMQP 0-9-1. Nothing follows until the broker has answered."""
        server = Server().connect()
        self.assertEqual(server.greeted, b"AMQP\0\0\x09\x01")
        self.assertEqual((server.calls, server.transport.writes), ([], 1))

    def test_start_ok(self) -> None:
        """start-ok has the login, the name of the product, and its capabilities: without those the broker would not announce a
        blocked connection or a cancelled consumer.
        """
        server = Server().ready()
        (told,) = server.called("connection.start-ok")
        self.assertEqual((told["mechanism"], told["response"], told["locale"]), ("PLAIN", b"\0me\0secret", "en_US"))
        ours = told["client_properties"]
        self.assertEqual((ours["product"], ours["version"], ours["connection_name"]), ("Owsla", __version__, "owsla test"))
        for name in ("publisher_confirms", "consumer_cancel_notify", "connection.blocked", "basic.nack"):
            self.assertIs(ours["capabilities"][name], True)
        self.assertIs(ours["capabilities"]["authentication_failure_close"], True)

    def test_open(self) -> None:
        """The virtual host is opened, and then `ready` fires with the protocol."""
        server = Server()
        ready = Result(server.client.ready)
        server.ready()
        self.assertEqual(server.called("connection.open")[0]["virtual_host"], "/there")
        self.assertIs(ready.value, server.client)

    def test_a_start_that_fails(self) -> None:
        """An error while the connection begins ends it. Whoever waits for the login is told."""
        server = Server()
        ready = Result(server.client.ready)
        self.patch(server.client, "write", lambda data: 1 / 0)
        server.client.makeConnection(server.transport)
        server.clock.advance(0)
        self.assertTrue(server.transport.aborted)
        self.assertIsInstance(ready.error, ZeroDivisionError)

    def test_version(self) -> None:
        """The version is known after connection.start, if the broker is RabbitMQ."""
        for product, version, known in (
            ("RabbitMQ", "4.0.5", (4, 0)),
            ("RabbitMQ", "3.13.7+1.gabc", (3, 13)),
            ("RabbitMQ", None, (0, 0)),
            ("RabbitMQ", "4", (0, 0)),
            ("Owsla embedded broker", "4.0.5", (0, 0)),
        ):
            server = Server().connect()
            server.send(0, "connection.start", **{**START, "server_properties": {"product": product, "version": version}})
            self.assertEqual(server.client.rabbitmq, known)

    def test_tuning(self) -> None:
        """The lower limit of both sides counts, and 0 is no limit."""
        for proposed, agreed in (
            ((0, 0, 0), (2047, FRAME_MAX, 20)),
            ((100, 4096, 5), (100, 4096, 5)),
            ((65535, 1 << 20, 60), (2047, FRAME_MAX, 20)),
        ):
            server = Server(heartbeat=20, tune=proposed).ready()
            (told,) = server.called("connection.tune-ok")
            self.assertEqual((told["channel_max"], told["frame_max"], told["heartbeat"]), agreed)
            client = server.client
            self.assertEqual((client.channel_max, client.frame_max, client.heartbeat), agreed)

    def test_tiny_frames(self) -> None:
        """The connection to a broker that proposes frames smaller than the AMQP minimum is closed."""
        for frame_max in (1, 8, 4095):
            server = Server(tune=(0, frame_max, 0))
            ready = Result(server.client.ready)
            server.ready()
            self.assertTrue(server.transport.ended)
            self.assertIsInstance(ready.error, WireError)

    def login(self, username: str, mechanisms: bytes) -> tuple[Server, Result]:
        """Log in, with a password or, without a user name, with a certificate, at a broker that offers `mechanisms`."""
        server = Server(login=Credentials(username, "secret", "/there")).connect()
        ready = Result(server.client.ready)
        server.send(0, "connection.start", **{**START, "mechanisms": mechanisms})
        return server, ready

    def test_mechanisms(self) -> None:
        """A login with a password is PLAIN, or else AMQPLAIN; a login with a certificate is EXTERNAL."""
        plain, amqplain = b"\0me\0secret", b"\x05LOGINS\0\0\0\x02me\x08PASSWORDS\0\0\0\x06secret"
        for username, offered, expected in (
            ("me", b"AMQPLAIN PLAIN EXTERNAL", ("PLAIN", plain)),
            ("me", b"EXTERNAL AMQPLAIN", ("AMQPLAIN", amqplain)),
            ("", b"PLAIN EXTERNAL", ("EXTERNAL", b"")),
        ):
            server, ready = self.login(username, offered)
            (told,) = server.called("connection.start-ok")
            self.assertEqual((told["mechanism"], told["response"]), expected)
            self.assertIs(ready.value, server.client)

    def test_no_mechanism(self) -> None:
        """The connection to a broker that offers no mechanism for the login is closed, with that reason."""
        for username, offered, reason in (
            ("me", b"EXTERNAL", "neither PLAIN nor AMQPLAIN, only EXTERNAL"),
            ("me", b"", "only nothing"),
            ("", b"PLAIN AMQPLAIN", "does not offer the login by client certificate (EXTERNAL), only PLAIN AMQPLAIN"),
        ):
            server, ready = self.login(username, offered)
            self.assertIn(reason, str(ready.error))
            self.assertEqual(len(server.lost), 1)
            self.assertEqual(server.called("connection.start-ok"), [])

    def test_learned_user(self) -> None:
        """The refusal of a message with a wrong user_id tells how the broker calls our user. Nothing else does."""
        learned: list[str] = []
        client = Server(login=Credentials("", "", "/", user_id="guess"), user_learned=learned.append).client
        self.assertEqual(client.username, "guess")
        refusal = "PRECONDITION_FAILED - user_id property set to '%s' but authenticated user was '%s'"
        for reason, taught in (
            (None, False),
            (ConnectionDone(), False),
            (BrokerError(406, "PRECONDITION_FAILED - inequivalent arg", scope="channel"), False),
            (BrokerError(404, refusal % ("guess", "CN=me"), scope="channel"), False),
            (BrokerError(406, (refusal % ("guess", "CN=" + "x" * 99))[:160] + "...", scope="channel"), False),
            (BrokerError(406, refusal % ("guess", "guess"), scope="channel"), False),
            (BrokerError(406, refusal % ("guess", "CN=it's me,O=we"), scope="channel"), True),
            (BrokerError(406, refusal % ("CN=it's me,O=we", "CN=it's me,O=we"), scope="channel"), False),
            # Of a message that was on its way when the name was learned.
            (BrokerError(406, refusal % ("guess", "CN=it's me,O=we"), scope="channel"), True),
        ):
            self.assertIs(client.learn_user(reason), taught, reason)
        self.assertEqual((client.username, learned), ("CN=it's me,O=we", ["CN=it's me,O=we"]))

    def test_update_secret(self) -> None:
        """A new password is sent on a living connection. If the broker refuses it, the connection ends with that reason."""
        server = Server().ready()
        updated = Result(server.client.update_secret("new"))
        server.settle()
        (told,) = server.called("connection.update-secret")
        self.assertEqual(told["new_secret"], b"new")
        self.assertTrue(updated.done)
        server.silent.add("connection.update-secret")
        updated = Result(server.client.update_secret("worse"))
        server.send(0, "connection.close", reply_code=530, reply_text="NOT_ALLOWED - New secret was refused")
        self.assertIsInstance(updated.error, Closed)
        self.assertEqual(
            str(server.lost[0]), "the broker did not accept the new password: NOT_ALLOWED - New secret was refused (530)"
        )

    def test_closing_during_an_update(self) -> None:
        """A close waits for its own answer, also while another one is pending."""
        server = Server().ready()
        server.silent |= {"connection.update-secret", "connection.close"}
        updated, closed = Result(server.client.update_secret("new")), Result(server.client.shut(5))
        server.send(0, "connection.update-secret-ok")
        self.assertEqual((updated.done, closed.done), (True, False))
        server.send(0, "connection.close-ok")
        self.assertTrue(closed.done)
        self.assertEqual(len(server.lost), 1)

    def test_refused_login(self) -> None:
        """A refused login fails `ready` with the reason of the broker."""
        server = Server().connect()
        server.silent.add("connection.start-ok")
        ready = Result(server.client.ready)
        server.send(0, "connection.start", **START)
        server.send(0, "connection.close", reply_code=403, reply_text="ACCESS_REFUSED - Login was refused")
        self.assertIsInstance(ready.error, BrokerError)
        self.assertEqual((ready.error.code, ready.error.scope), (403, "connection"))
        self.assertIn("Login was refused", str(ready.error))
        self.assertEqual(server.called("connection.close-ok"), [{}])

    def test_gone_before_it_was_ready(self) -> None:
        """A connection that ends during the login fails `ready`, and fires `lost`."""
        for silent in ("connection.start-ok", "connection.open"):
            server = Server()
            server.silent.add(silent)
            ready = Result(server.client.ready)
            server.ready() if silent == "connection.open" else server.connect()
            server.drop()
            self.assertIsInstance(ready.error, ConnectionDone)
            self.assertEqual([type(error) for error in server.lost], [ConnectionDone])

    def test_another_protocol(self) -> None:
        """A server that answers with another AMQP version, or with another protocol, is left, with a reason that names it."""
        for data, words in ((b"AMQP\0\0\x09\0", "0-9-0"), (b"AMQP\x03\1\0\0", "1-0-0"), (b"HTTP/1.1 400", "does not speak")):
            server = Server()
            ready = Result(server.client.ready)
            server.connect()
            server.raw(data)
            self.assertTrue(server.transport.aborted)
            self.assertIn(words, str(ready.error))


class ReceivingTests(BrokerTestCase):
    def setUp(self) -> None:
        self.server = Server().ready()
        self.handler, self.channel = open_channel(self.server, 5)

    def notes(self) -> list[Any]:
        notes, self.handler.notes = self.handler.notes, []
        return notes

    def test_a_delivery_in_one_piece(self) -> None:
        """A delivery is passed on with its tag, its header and its body as `bytes`."""
        header = message(b"\xff body", {"n": 1})
        self.server.raw(deliver(5, 7, header, b"\xff body", redelivered=True))
        self.assertEqual(self.notes(), [("deliver", 7, True, header, b"\xff body")])

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([9, 20, 4096])), min_size=1, max_size=4),
        st.lists(st.integers(1, 60), max_size=30),
    )
    def test_deliveries_however_cut(self, bodies: list[tuple[bytes, int]], cuts: list[int]) -> None:
        """Deliveries do not depend on the number of frames or on the cuts of the stream, with other frames in between."""
        self.handler.notes.clear()
        data = b""
        expected: list[Any] = []
        for tag, (body, room) in enumerate(bodies, 1):
            header = message(body, {"n": tag})
            data += deliver(5, tag, header, body, room=room) + wire.HEARTBEAT_FRAME
            data += wire.frame(wire.FRAME_METHOD, 5, encode_method("basic.ack", delivery_tag=tag))
            expected += [("deliver", tag, False, header, body), ("confirmed", tag, False)]
        for cut in cuts:
            self.server.client.dataReceived(data[:cut])
            data = data[cut:]
        self.server.client.dataReceived(data)
        self.assertEqual(self.notes(), expected)

    def test_byte_by_byte(self) -> None:
        """A delivery that arrives byte by byte is passed on at its last byte."""
        for body, room in ((b"", 100), (b"hello", 100), (b"hello", 10)):
            header = message(body, {"a": "b"})
            data = deliver(5, 1, header, body, room=room)
            for index in range(len(data) - 1):
                self.server.client.dataReceived(data[index : index + 1])
            self.assertEqual(self.notes(), [])
            self.server.client.dataReceived(data[-1:])
            self.assertEqual(self.notes(), [("deliver", 1, False, header, body)])

    def test_headers_larger_than_a_frame(self) -> None:
        """A content header may be larger than the negotiated frames, wherever the stream is cut: RabbitMQ applies the limit to
        publishers only.
        """
        for size in (FRAME_MAX - 7, FRAME_MAX, 200_000, HEADER_MAX - 100):
            for body, room in ((b"", 100), (b"hello", 100), (b"hello" * 5, 10)):
                header = message(body, {"a": "x" * size})
                data = deliver(5, 1, header, body, room=room) + deliver(5, 2, message(b"next"), b"next")
                cuts = [0, len(data) - len(header) - 100, 65536, len(data) - 200, len(data)]
                for start, stop in pairwise(cuts):
                    self.server.client.dataReceived(data[start:stop])
                expected = [("deliver", 1, False, header, body), ("deliver", 2, False, message(b"next"), b"next")]
                self.assertEqual(self.notes() == expected, True, (size, body))

    def test_headers_larger_than_any_that_is_kept(self) -> None:
        """A content header above the limit is passed on without its properties. Its message and later ones arrive."""
        for body, room in ((b"", 100), (b"hello", 100), (b"hello" * 5, 10)):
            header = message(body, {"a": "x" * HEADER_MAX})
            data = deliver(5, 1, header, body, room=room) + deliver(5, 2, message(b"next"), b"next")
            expected = [("deliver", 1, False, header[:12], body), ("deliver", 2, False, message(b"next"), b"next")]
            start = data.index(header[:12])  # of the payload of the header
            for cut in (0, start - 8, start - 7, start - 1, start, start + 13, start + 14, start + 5000):
                self.server.client.dataReceived(data[:cut])
                rest = data[cut:]
                for offset in range(0, len(rest), 65536):
                    self.server.client.dataReceived(rest[offset : offset + 65536])
                self.assertEqual(self.notes(), expected)
            end = start + len(header)
            for cut in (end - 1, end, end + 1, end + 2):
                self.server.client.dataReceived(data[:cut])
                self.server.client.dataReceived(data[cut:])
                self.assertEqual(self.notes(), expected)
        self.assertFalse(self.server.transport.ended)

    def test_the_memory_of_a_header_that_is_not_kept(self) -> None:
        """A header above the limit uses no memory, whatever size it declares, and ends at that size."""
        body = b"body"
        method, *_ = deliver(5, 1, message(body), body).split(b"\xce")
        self.server.client.dataReceived(method + b"\xce" + struct.pack(">BHI", 2, 5, 1 << 31) + wire.header_payload(4, b"\0\0"))
        chunk = bytes(1 << 16)
        for _ in range(100):
            self.server.client.dataReceived(chunk)
        self.assertLess(sum(map(len, self.server.client._rest)), 100)
        self.assertFalse(self.server.transport.ended)

    def test_frames_that_may_not_be_large(self) -> None:
        """Methods and bodies larger than a frame, and a large header without a method, end the connection at once; so does a
        discarded header that does not end at its size.
        """
        method = deliver(5, 1, message(b"x"), b"x").split(b"\xce")[0] + b"\xce"
        header = wire.frame(2, 5, message(b"x"))
        large = wire.frame(2, 5, wire.header_payload(1, b"\0\0" + bytes(HEADER_MAX)))[:-1] + b"\0"
        for data in (
            struct.pack(">BHI", 1, 5, FRAME_MAX + 1) + b"x",
            method + header + struct.pack(">BHI", 3, 5, FRAME_MAX + 1) + b"x",
            struct.pack(">BHI", 2, 5, HEADER_MAX + 1) + message(b"x"),
            method + large,
        ):
            self.setUp()
            self.server.raw(data)
            self.assertTrue(self.server.transport.aborted)
            self.assertIsInstance(self.server.lost[0], WireError)

    def test_channels_interleaved(self) -> None:
        """Frames of messages on several channels may alternate."""
        other, _ = open_channel(self.server, 6)
        one = deliver(5, 1, message(b"one" * 10), b"one" * 10, room=20)
        two = deliver(6, 2, message(b"two" * 10), b"two" * 10, room=20)

        def frames(data: bytes) -> list[bytes]:
            found = []
            while data:
                size = 8 + int.from_bytes(data[3:7])
                found.append(data[:size])
                data = data[size:]
            return found

        self.server.raw(b"".join(a + b for a, b in zip(frames(one), frames(two), strict=True)))
        self.assertEqual([note[4] for note in self.notes()], [b"one" * 10])
        self.assertEqual([note[4] for note in other.notes], [b"two" * 10])

    def test_a_method_before_another_channels_content(self) -> None:
        """A frame between the method of a delivery and its content, on another channel, is not taken for its content."""
        other, _ = open_channel(self.server, 6)
        one, two = deliver(5, 1, message(b"one"), b"one"), deliver(6, 2, message(b"two"), b"two")
        size = 8 + int.from_bytes(one[3:7])
        self.server.raw(one[:size] + two[:size] + one[size:] + two[size:])
        self.server.raw(two[:size] + one[:size] + one[size:] + two[size:])
        self.assertEqual([(note[1], note[4]) for note in self.notes()], [(1, b"one")] * 2)
        self.assertEqual([(note[1], note[4]) for note in other.notes], [(2, b"two")] * 2)

    def test_confirms(self) -> None:
        """Confirms and nacks are passed on with their tag and `multiple`."""
        self.server.ack(5, 3)
        self.server.ack(5, 1 << 63, True)
        self.server.nack(5, 4)
        self.server.nack(5, 5, True)
        # The bit beside `multiple` in a nack is `requeue`.
        self.server.send(5, "basic.nack", delivery_tag=6, multiple=False, requeue=True)
        self.assertEqual(
            self.notes(),
            [
                ("confirmed", 3, False),
                ("confirmed", 1 << 63, True),
                ("refused", 4, False),
                ("refused", 5, True),
                ("refused", 6, False),
            ],
        )

    def test_returns(self) -> None:
        """A returned message is passed on with reason, routing key and content, before its confirm."""
        for body, room in ((b"lost", 4096), (b"lost" * 9, 20), (b"", 100)):
            header = message(body, {"n": 1})
            returned = encode_method("basic.return", reply_code=312, reply_text="NO_ROUTE", routing_key="gone")
            self.server.raw(
                wire.frame(1, 5, returned)
                + wire.content_frames(5, header, body, room)
                + wire.frame(1, 5, encode_method("basic.ack", delivery_tag=1))
            )
            self.assertEqual(self.notes(), [("returned", "NO_ROUTE", "gone", header, body), ("confirmed", 1, False)])

    def test_cancel(self) -> None:
        """The cancellation of a consumer is passed on. The connection stays open."""
        self.server.send(5, "basic.cancel", consumer_tag="owsla", nowait=True)
        self.assertEqual(self.notes(), [("cancelled", "owsla")])
        self.assertFalse(self.server.transport.ended)

    def test_a_channel_of_nobodys(self) -> None:
        """A late frame on a channel without a handler is read and dropped."""
        closing = Result(self.server.client.end_channel(5))
        self.server.client.dataReceived(deliver(5, 1, message(b"x"), b"x") + deliver(5, 2, message(b"xy"), b"xy", room=9))
        self.server.settle()
        self.assertTrue(closing.done)
        self.assertIsNone(closing.failure)
        self.assertEqual((self.notes(), self.handler.ends), ([], []))
        self.assertFalse(self.server.transport.ended)

    def test_a_message_that_answers_a_call(self) -> None:
        """The answer to basic.get has its body as `bytes`, for any size."""
        for body in (b"", b"plain", b"\xff" * 50):
            self.server.silent.add("basic.get")
            got = Result(self.channel.basic_get(queue="q"))
            self.server.settle()
            self.server.raw(
                wire.frame(1, 5, encode_method("basic.get-ok", delivery_tag=1, message_count=2))
                + wire.content_frames(5, message(body, {"n": 1}, app_id="x"), body, 20)
            )
            self.assertEqual((got.value.delivery_tag, got.value.message_count), (1, 2))
            self.assertEqual(got.value.content.body or b"", body)

    def test_messages_asked_for_one_by_one(self) -> None:
        """On a channel for basic.get the messages are passed on with their raw headers, in order."""

        class Got(Getter):
            def __init__(self) -> None:
                self.messages: list[tuple[int, bytes, bytes] | None] = []

            def got(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
                assert redelivered is (tag == 2)
                self.messages.append((tag, header, body))

            def got_nothing(self) -> None:
                self.messages.append(None)

        handler = Got()
        Result(self.server.client.open_channel(6, handler))
        self.server.settle()
        for _ in range(3):
            self.server.client.get(6, "q")
        self.server.settle()
        self.assertEqual([one["queue"] for one in self.server.called("basic.get")], ["q"] * 3)
        bodies = (b"x" * 50, b"")
        headers = [message(body, {"n": 1}) for body in bodies]
        for tag, (header, body) in enumerate(zip(headers, bodies, strict=True), 1):
            self.server.raw(
                wire.frame(1, 6, encode_method("basic.get-ok", delivery_tag=tag, redelivered=tag == 2))
                + wire.content_frames(6, header, body, 20)
            )
        self.server.send(6, "basic.get-empty")
        self.assertEqual(handler.messages, [(1, headers[0], bodies[0]), (2, headers[1], bodies[1]), None])


class WatchingTests(BrokerTestCase):
    def test_blocked(self) -> None:
        """The watcher is called when the broker blocks the connection and when it unblocks it."""
        watcher = Watcher()
        server = Server(watcher=watcher).ready()
        server.send(0, "connection.blocked", reason="low on memory")
        server.send(0, "connection.unblocked")
        self.assertEqual(watcher.notes, ["low on memory", "unblocked"])

    def test_nobody_watches(self) -> None:
        """Without a watcher a blocked connection does no harm."""
        server = Server().ready()
        server.send(0, "connection.blocked", reason="low on memory")
        server.send(0, "connection.unblocked")
        self.assertFalse(server.transport.ended)


class SendingTests(BrokerTestCase):
    def test_one_write_a_turn(self) -> None:
        """All writes of a turn go to the socket at its end, in one piece and in order."""
        server = Server().ready()
        before = server.transport.writes
        for tag in range(100):
            server.client.ack(1, tag, bool(tag % 2))
        self.assertEqual(server.transport.writes, before)
        server.clock.advance(0)
        self.assertEqual(server.transport.writes, before + 1)
        server.settle()
        self.assertEqual(
            server.calls[-100:],
            [(1, "basic.ack", {"delivery_tag": tag, "multiple": bool(tag % 2)}) for tag in range(100)],
        )

    def test_nothing_after_the_end(self) -> None:
        """Writes after the end of the connection are dropped."""
        server = Server().ready()
        server.drop()
        server.client.ack(1, 1, False)
        server.clock.advance(0)
        self.assertEqual(len(server.lost), 1)


@implementer(ISystemHandle)
class SocketTransport(Transport):
    """Transport in memory that has a socket, too."""

    def __init__(self, clock: Any, sock: socket.socket) -> None:
        super().__init__(clock)
        self.socket = sock

    def getHandle(self) -> socket.socket:
        return self.socket

    def setTcpNoDelay(self, enabled: bool) -> None: ...


class UrgentTests(BrokerTestCase):
    def connect(self, server: Server, *, tls: bool = False) -> socket.socket:
        """Connect a client over a socket. Return the end of the broker."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        server.transport = SocketTransport(server.clock, ours)
        protocol: Any = server.client
        if tls:
            factory: Any = Factory.forProtocol(lambda: server.client)
            protocol = TLSMemoryBIOFactory(optionsForClientTLS("broker"), True, factory, server.clock).buildProtocol(None)
        server.transport.protocol = protocol
        protocol.makeConnection(server.transport)
        return theirs

    def test_data_of_the_broker(self) -> None:
        """Data that the broker has sent interrupts long work while it is not read, with and without TLS, until the connection
        has ended.
        """
        for tls in (False, True):
            server = Server()
            theirs = self.connect(server, tls=tls)
            self.assertFalse(server.turn.urgent(), tls)
            theirs.send(b"a")
            self.assertTrue(server.turn.urgent())
            server.client.transport.abortConnection()
            server.clock.advance(0)
            self.assertEqual(len(server.lost), 1)
            self.assertFalse(server.turn.urgent())


class HeartbeatTests(BrokerTestCase):
    def test_a_quiet_connection(self) -> None:
        """An idle connection sends a heartbeat at each interval, while the broker does too."""
        server = Server(heartbeat=10).ready()
        for _ in range(60):
            server.clock.advance(1)
            server.raw(wire.HEARTBEAT_FRAME)
        self.assertTrue(5 <= server.heartbeats <= 13, server.heartbeats)
        self.assertFalse(server.transport.ended)

    def test_a_busy_connection(self) -> None:
        """A connection with traffic sends no heartbeats."""
        server = Server(heartbeat=10).ready()
        for _ in range(60):
            server.clock.advance(1)
            server.client.ack(1, 1, False)
            server.raw(wire.HEARTBEAT_FRAME)
        self.assertEqual(server.heartbeats, 0)

    def test_silence(self) -> None:
        """A connection without data from the broker for the heartbeat interval, plus half of it at most, is dropped."""
        for alive in (0, 1, 2, 3, 4, 26):
            server = Server(heartbeat=10).ready()
            for _ in range(alive):
                server.clock.advance(1)
                server.raw(wire.HEARTBEAT_FRAME)
            for _ in range(10):
                server.clock.advance(1)
            self.assertFalse(server.transport.aborted)
            for _ in range(5):
                server.clock.advance(1)
            server.settle()
            self.assertTrue(server.transport.aborted)
            self.assertEqual([type(error) for error in server.lost], [TimeoutError])

    def test_any_byte_is_a_sign_of_life(self) -> None:
        """Any received byte counts: a large message that takes long to arrive does not end the connection."""
        server = Server(heartbeat=10).ready()
        handler, _ = open_channel(server)
        body = b"x" * 100
        for byte in deliver(1, 1, message(body), body):
            server.clock.advance(3)
            server.client.dataReceived(bytes([byte]))
        self.assertEqual(len(handler.notes), 1)

    def test_no_timer_left(self) -> None:
        """A connection that has ended leaves no timer."""
        server = Server().ready()
        server.drop()
        self.assertEqual(server.clock.getDelayedCalls(), [])


class ClosingTests(BrokerTestCase):
    def test_the_broker_closes_a_channel(self) -> None:
        """The handler gets the reason, pending calls fail, channel.close is answered, and the connection stays open."""
        server = Server().ready()
        handler, channel = open_channel(server, 3)
        other, _ = open_channel(server, 4)
        server.silent.add("queue.declare")
        call = Result(channel.queue_declare(queue="q"))
        server.settle()
        server.close_channel(3, 404, "NOT_FOUND - no queue 'q'")
        (reason,) = handler.ends
        assert isinstance(reason.value, BrokerError)
        self.assertEqual((reason.value.code, reason.value.scope), (404, "channel"))
        self.assertIn("no queue 'q'", str(reason.value))
        self.assertIsInstance(call.error, Closed)
        self.assertIs(type(as_failure(call.failure).value), BrokerError)
        self.assertEqual(server.called("channel.close-ok"), [{}])
        self.assertEqual((other.ends, server.transport.ended), ([], False))

    def test_a_channel_is_closed_twice(self) -> None:
        """A broker that sends on a channel which it has closed violates AMQP: the connection ends, without a failure in the
        log.
        """
        server = Server().ready()
        open_channel(server, 3)
        server.close_channel(3, 406, "PRECONDITION_FAILED")
        server.close_channel(3, 406, "PRECONDITION_FAILED")
        server.drop()
        self.assertEqual([type(error) for error in server.lost], [WireError])

    def test_a_closed_channel_is_opened_again(self) -> None:
        """A channel number can be used again, and half-read content of the old channel is dropped."""
        server = Server().ready()
        open_channel(server, 3)
        half = deliver(3, 1, message(b"x" * 50), b"x" * 50, room=20)[:-30]
        server.raw(half[: half.rindex(b"\xce") + 1])
        server.close_channel(3)
        handler, _ = open_channel(server, 3)
        server.raw(deliver(3, 1, message(b"new"), b"new"))
        self.assertEqual([note[4] for note in handler.notes], [b"new"])

    def test_the_broker_closes_the_connection(self) -> None:
        """Handlers are told, calls fail, connection.close is answered, and `lost` fires with the reason of the broker."""
        server = Server().ready()
        handler, channel = open_channel(server)
        server.silent.add("queue.declare")
        call = Result(channel.queue_declare(queue="q"))
        server.settle()
        server.send(0, "connection.close", reply_code=320, reply_text="CONNECTION_FORCED - shutdown")
        self.assertEqual(len(handler.ends), 1)
        self.assertIsInstance(call.error, Closed)
        self.assertEqual(server.called("connection.close-ok"), [{}])
        (error,) = server.lost
        assert isinstance(error, BrokerError)
        self.assertEqual((error.code, error.scope), (320, "connection"))
        self.assertIn("CONNECTION_FORCED - shutdown", str(error))

    def test_the_connection_is_lost(self) -> None:
        """A broken connection tells its handlers once, fails calls, and fires `lost` with the reason."""
        server = Server().ready()
        handler, channel = open_channel(server)
        server.silent.add("queue.declare")
        call = Result(channel.queue_declare(queue="q"))
        server.settle()
        server.drop()
        self.assertEqual([type(reason.value) for reason in handler.ends], [ConnectionDone])
        self.assertIsInstance(call.error, Closed)
        self.assertEqual([type(error) for error in server.lost], [ConnectionDone])

    def test_a_defect_at_the_end(self) -> None:
        """If a handler fails at the end of the connection, the other handlers are told all the same, and `lost` fires with the
        error: whoever waits for it would never connect again.
        """

        class Defective(Noter):
            def closed(self, reason: Failure) -> None:
                raise ZeroDivisionError

        for end in (Server.drop, _broker_closes):
            server = Server().ready()
            result = Result(server.client.open_channel(1, Defective()))
            handler, _ = open_channel(server, 2)
            self.assertTrue(result.done)
            end(server)
            server.settle()
            self.assertEqual(len(handler.ends), 1)
            self.assertEqual([type(error) for error in server.lost], [ZeroDivisionError])

    def test_aborted_with_a_reason(self) -> None:
        """A connection that was aborted is lost with the reason of the abort, not that of the socket."""
        server = Server().ready()
        server.client.abort(WireError("nonsense"))
        server.settle()
        self.assertTrue(server.transport.aborted)
        self.assertEqual([str(error) for error in server.lost], ["nonsense"])

    def test_nothing_hangs_on_an_ended_connection(self) -> None:
        """A request for a channel on a connection that has ended fails at once."""
        server = Server().ready()
        server.drop()
        result = Result(server.client.open_channel(1, Noter()))
        self.assertIsInstance(result.error, Closed)

    def test_who_asks_for_a_channel_while_it_ends(self) -> None:
        """A failed call that requests another channel in its errback does not prevent `lost`."""
        server = Server().ready()
        _, channel = open_channel(server)
        server.silent.add("queue.declare")

        async def persist() -> None:
            try:
                await channel.queue_declare(queue="q")
            except Closed:
                await server.client.open_channel(2, Noter())

        result = Result(persist())
        server.settle()
        server.client.abort(BrokerError(406, "PRECONDITION_FAILED", scope="channel"))
        server.settle()
        self.assertEqual(len(server.lost), 1)
        self.assertIsInstance(result.error, Closed)

    def test_shut(self) -> None:
        """An orderly close follows the data written before, and waits for the answer of the broker."""
        server = Server().ready()
        server.client.ack(1, 1, False)
        result = Result(server.client.shut(2))
        server.settle()
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)
        self.assertEqual([name for _, name, _ in server.calls[-2:]], ["basic.ack", "connection.close"])
        self.assertEqual(len(server.lost), 1)
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_shut_without_an_answer(self) -> None:
        """A broker that does not answer the close is left at the time limit."""
        server = Server().ready()
        server.silent.add("connection.close")
        result = Result(server.client.shut(2))
        server.clock.advance(1.9)
        self.assertFalse(result.done)
        server.clock.advance(0.2)
        server.settle()
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)
        self.assertEqual(len(server.lost), 1)

    def test_shut_and_lost(self) -> None:
        """A connection that breaks while it is being closed is closed."""
        server = Server().ready()
        server.silent.add("connection.close")
        result = Result(server.client.shut(2))
        server.settle()
        server.drop()
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_shut_twice(self) -> None:
        """A connection that has ended needs no close."""
        server = Server().ready()
        server.drop()
        result = Result(server.client.shut(2))
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)

    def test_end_channel(self) -> None:
        """A channel that the client closes is closed at the broker, and its handler is not called."""
        server = Server().ready()
        handler, _ = open_channel(server, 3)
        result = Result(server.client.end_channel(3))
        server.settle()
        self.assertTrue(result.done)
        self.assertEqual(len(server.called("channel.close")), 1)
        server.drop()
        self.assertEqual(handler.ends, [])
        self.assertTrue(Result(server.client.end_channel(9)).done)

    def test_end_a_channel_that_awaits_messages(self) -> None:
        """Answers to `basic.get` that arrive before channel.close-ok are discarded."""
        server = Server().ready()
        Result(server.client.open_channel(3, Getter()))
        server.settle()
        for _ in range(3):
            server.client.get(3, "q")
        server.silent.update({"channel.close", "queue.declare"})
        call = Result(server.client.channels[3].queue_declare(queue="q"))
        result = Result(server.client.end_channel(3))
        server.settle()
        get_ok = wire.frame(1, 3, encode_method("basic.get-ok", delivery_tag=1))
        server.raw(get_ok + wire.content_frames(3, message(b"x" * 50), b"x" * 50, 20))
        server.raw(get_ok + wire.content_frames(3, message(), b"", 20))
        server.send(3, "basic.get-empty")
        self.assertFalse(result.done)
        server.send(3, "queue.declare-ok", queue="q")
        self.assertTrue(call.done)
        self.assertIsNone(call.failure, "a call that was made before is answered")
        server.send(3, "channel.close-ok")
        self.assertTrue(result.done)
        self.assertIsNone(result.failure)
        self.assertEqual((server.client.handlers, server.transport.ended), ({}, False))


METHOD_FRAMES = st.builds(
    lambda name, channel, rest: wire.frame(1, channel, BY_NAME[name].prefix + rest),
    st.sampled_from(sorted(BY_NAME)),
    st.sampled_from([0, 1, 1, 7]),
    st.binary(max_size=30),
)
WELL_FORMED = st.builds(
    lambda name, channel: wire.frame(1, channel, encode_method(name)),
    st.sampled_from(sorted(BY_NAME)),
    st.sampled_from([0, 1, 1, 7]),
)
CONTENT = st.builds(
    lambda channel, size, body: wire.frame(2, channel, wire.header_payload(size, b"\0\0")) + wire.frame(3, channel, body),
    st.sampled_from([0, 1, 7]),
    st.sampled_from([0, 1, 5, 1 << 63]),
    st.binary(max_size=6),
)
NONSENSE = st.lists(
    st.one_of(
        METHOD_FRAMES,
        WELL_FORMED,
        CONTENT,
        st.binary(max_size=20),
        st.builds(wire.frame, st.integers(0, 9), st.sampled_from([0, 1, 7]), st.binary(max_size=20)),
        st.just(deliver(1, 1, message(b"body", {"connection_id": "x"}), b"body")),
        st.just(wire.HEARTBEAT_FRAME),
    ),
    max_size=8,
)


class HostileTests(BrokerTestCase):
    @settings(deadline=None, max_examples=200)
    @given(NONSENSE, st.booleans(), st.booleans())
    def test_nonsense(self, pieces: list[bytes], early: bool, in_one: bool) -> None:
        """Whatever the broker sends, before or after the login, no exception reaches the reactor, no failure is logged, and a
        connection that ends gives its reason once.
        """
        server = Server(watcher=Watcher())
        ready = Result(server.client.ready)
        call = None
        if early:
            server.connect()
        else:
            server.ready()
            _, channel = open_channel(server)
            server.silent.add("queue.declare")
            call = Result(channel.queue_declare(queue="q"))
            server.settle()
        for data in [b"".join(pieces)] if in_one else pieces:
            if not server.transport.ended:
                server.client.dataReceived(data)
                server.clock.advance(0)
        server.transport.end(ConnectionAborted())
        server.clock.advance(0)
        server.clock.advance(0)
        self.assertEqual(len(server.lost), 1)
        self.assertTrue(ready.done)
        if call is not None:
            self.assertTrue(call.done, "a call was left waiting")
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_what_is_no_amqp(self) -> None:
        """Each of these violations ends the connection at once."""
        header = message(b"body")
        deliver_method = wire.frame(1, 1, encode_method("basic.deliver", consumer_tag="t", delivery_tag=1))
        for data in (
            wire.frame(4, 0, b""),
            wire.frame(9, 0, b"x"),
            b"\x01\0\0\xff\xff\xff\xff",
            b"\x01\0\0\xff\xff\xff\xff\0",
            wire.HEARTBEAT_FRAME[:-1] + b"\xcd",
            wire.frame(1, 1, encode_method("basic.ack", delivery_tag=1))[:-1] + b"\xcd",
            wire.frame(1, 0, b""),
            wire.frame(1, 0, b"\xff\xff\xff\xff"),
            wire.frame(1, 7, encode_method("queue.declare-ok")),
            wire.frame(2, 1, header),
            wire.frame(3, 1, b"body"),
            deliver_method + wire.frame(3, 1, b"body"),
            deliver_method + wire.frame(2, 1, header) + wire.frame(3, 1, b"bodies"),
            deliver_method + wire.frame(2, 1, header) + wire.frame(2, 1, header),
            deliver_method + wire.frame(2, 1, header[:11]),
            wire.frame(1, 1, BY_NAME["basic.deliver"].prefix),
            wire.frame(1, 1, BY_NAME["basic.deliver"].prefix + b"\xff"),
            wire.frame(1, 1, BY_NAME["basic.ack"].prefix + bytes(8)),
            wire.frame(1, 1, BY_NAME["basic.nack"].prefix + bytes(10)),
        ):
            server = Server().ready()
            handler, _ = open_channel(server)
            server.client.dataReceived(data + wire.HEARTBEAT_FRAME)
            self.assertTrue(server.transport.aborted, data)
            server.clock.advance(0)
            self.assertIsInstance(server.lost[0], WireError)
            self.assertEqual([type(reason.value) for reason in handler.ends], [WireError])

    def test_nothing_is_read_after_the_end(self) -> None:
        """Data after a frame that ended the connection is ignored."""
        server = Server().ready()
        handler, _ = open_channel(server)
        server.client.dataReceived(wire.frame(9, 0, b"x") + deliver(1, 1, message(b"x"), b"x"))
        self.assertEqual(handler.notes, [])


class FailureTests(BrokerTestCase):
    def test_as_failure(self) -> None:
        """Each form of a reason in txAMQP becomes a failure with that reason."""
        error = ConnectionDone()
        for reason in (error, Failure(error), Closed(error), Closed(Failure(error)), Failure(Closed(error))):
            self.assertIs(as_failure(reason).value, error)
        self.assertIsInstance(as_failure("gone").value, ConnectionAborted)

    def test_words(self) -> None:
        """The reply code appears once."""
        self.assertEqual(str(BrokerError(404, "NOT_FOUND - q", scope="channel")), "NOT_FOUND - q (404)")
        self.assertEqual(str(BrokerError(404, "404 is it", scope="channel")), "404 is it")
