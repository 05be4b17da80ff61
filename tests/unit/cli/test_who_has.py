"""`owsla who-has`: the question, the answers, and how they are shown."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.cli import _who_has
from owsla.cli._running import Session
from owsla.cli._units import duration
from owsla.cli._who_has import Found, WhoHas, WhoHasOptions, as_objects, as_table, read_answer

from ..broker.fakes import BrokerTestCase, Result, Server, deliver, message

CONNECTION_ID = "01234567-89ab-8cde-8f01-23456789abcd"
CLAIM = {"device_id": "door-7", "connection_id": CONNECTION_ID, "since": 1763805600000, "age": 3_725_000, "door": "default"}
FOUND = Found("door-7", CONNECTION_ID, 1763805600000, 3_725_000, "default")


def answer(*claims: Any, notice: str = "has") -> tuple[bytes, bytes]:
    """Return content header and body of an answer."""
    body = json.dumps(claims).encode()
    return message(body, {"owsla_notice": notice}), body


class AnswerTests(SynchronousTestCase):
    """Reading answers."""

    def test_claims(self) -> None:
        """Each object in the array is a connection."""
        self.assertEqual(read_answer(*answer(CLAIM, {**CLAIM, "more": 1})), [FOUND, FOUND])

    def test_malformed(self) -> None:
        """A claim without a field, or with one of another type, is left out, and so is any other message."""
        wrong: list[Any] = [{**CLAIM, "since": "now"}, {**CLAIM, "age": True}, {**CLAIM, "device_id": None}, {}, [], None, 7]
        self.assertEqual(read_answer(*answer(*wrong, CLAIM)), [FOUND])
        self.assertEqual(read_answer(*answer(CLAIM, notice="here")), [])
        header = message(b"{}", {"owsla_notice": "has"})
        for body in (b"{}", b"[", b"\xff", b"[" * 100_000, b'"x"'):
            self.assertEqual(read_answer(header, body), [])

    @given(st.binary(max_size=60), st.binary(max_size=20))
    def test_nonsense(self, header: bytes, body: bytes) -> None:
        """Any bytes are read without an exception."""
        self.assertEqual(read_answer(bytes(12) + header, body), [])


class ShownTests(SynchronousTestCase):
    """The table and the JSON objects."""

    def setUp(self) -> None:
        zone = os.environ.get("TZ")
        os.environ["TZ"] = "UTC"
        time.tzset()

        def restore() -> None:
            if zone is None:
                del os.environ["TZ"]
            else:
                os.environ["TZ"] = zone
            time.tzset()

        self.addCleanup(restore)

    def test_table(self) -> None:
        """A row for each device in the order of the arguments, and `-` for one that was not found."""
        shown = as_table(["a b\x1b", "door-7"], {"door-7": FOUND}, 1763809325.0)
        self.assertEqual(
            shown,
            "a\\x20b\\x1b -                                    -        -                   -     -\n"
            f"door-7     {CONNECTION_ID} 01234567 2025-11-22T10:00:00 1h02m default\n",
        )

    def test_objects(self) -> None:
        """A JSON object for each device; its fields are null if it was not found."""
        lines = as_objects(["ö", "door-7"], {"door-7": FOUND}, 0.0).splitlines()
        self.assertEqual(
            [json.loads(line) for line in lines],
            [
                {"device_id": "ö", "connection_id": None, "node": None, "since": None, "age": None, "door": None},
                {**CLAIM, "node": "01234567"},
            ],
        )

    def test_durations(self) -> None:
        """A duration has at most two units, and a negative one is 0."""
        for seconds, text in ((-1, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (90061, "1d01h")):
            self.assertEqual(duration(seconds), text)


class _Output:
    """Standard output that keeps everything."""

    written = b""

    def __init__(self, reactor: Any, gone: Callable[[str], None]) -> None: ...

    def write(self, data: bytes, then: Callable[[], None]) -> None:
        self.written += data
        then()


class _Ended(Session):
    """Session that keeps its end."""

    end: tuple[int, str] | None = None

    def finish(self, status: int, text: str = "") -> None:
        self.end = self.end or (status, text)


class WhoHasTests(BrokerTestCase):
    """The role, with a broker in memory."""

    def setUp(self) -> None:
        self.patch(_who_has, "Output", _Output)

    def begin(self, *device_ids: str, wait: float = 1.0) -> None:
        """Start the command, and connect it to the broker."""
        self.server = Server(heartbeat=60_000)
        self.session = _Ended(self.server.clock, "who-has", patient=False)
        options = WhoHasOptions("to_device.all", device_ids, wait, 15.0, as_objects)
        self.role: Any = WhoHas(self.server.clock, self.server.turn, self.session, options=options, now=lambda: 0.0)
        self.server.ready()
        Result(self.role.up(self.server.client))
        self.server.settle()

    def answers(self, *claims: Any) -> None:
        """Send an answer of a node."""
        self.server.raw(deliver(1, 1, *answer(*claims)))

    def shown(self) -> list[Any]:
        """Return the connection ids that were shown."""
        return [json.loads(line)["connection_id"] for line in self.role._output.written.splitlines()]

    def test_question(self) -> None:
        """The question has the ids as JSON and a queue for answers, and expires when nobody waits for it any longer."""
        self.begin("door-7", "dör", wait=1.5)
        (question,) = self.server.take()
        self.assertEqual((question.method["exchange"], question.method["mandatory"]), ("to_device.all", True))
        self.assertEqual(json.loads(question.body), ["door-7", "dör"])
        self.assertEqual(question.headers, {"owsla_notice": "who-has"})
        self.assertEqual(question.properties["expiration"], "1500")
        self.assertIn("reply_to", question.properties)
        self.assertEqual(wire.read_header_payload(question.header)[1], len(question.body))

    def test_many_devices(self) -> None:
        """More than 500 devices are asked for in several questions."""
        names = [str(number) for number in range(1001)]
        self.begin(*names)
        questions = [json.loads(each.body) for each in self.server.take()]
        self.assertEqual([len(each) for each in questions], [500, 500, 1])
        self.assertEqual([name for each in questions for name in each], names)

    def test_found(self) -> None:
        """When all devices are found it ends a moment later, with status 0."""
        self.begin("door-7")
        self.server.ack(1, 1)
        self.answers(CLAIM)
        self.assertIsNone(self.session.end)
        self.server.clock.advance(0.1)
        self.assertEqual((self.session.end, self.shown()), ((0, ""), [CONNECTION_ID]))

    def test_newest(self) -> None:
        """Of several connections of a device the newest is shown."""
        newer = {**CLAIM, "connection_id": "b", "since": CLAIM["since"] + 1}  # type: ignore[operator]
        for claims in ((CLAIM, newer), (newer, CLAIM), ({**newer, "connection_id": "a"}, newer)):
            self.begin("door-7")
            self.server.ack(1, 1)
            for claim in claims:
                self.answers(claim)
            self.server.clock.advance(0.1)
            self.assertEqual(self.shown(), ["b"])

    def test_answer_before_the_confirm(self) -> None:
        """A confirm that comes after the last answer does not make it wait longer."""
        self.begin("door-7")
        self.answers(CLAIM)
        self.server.ack(1, 1)
        self.server.clock.advance(0.1)
        self.assertEqual(self.session.end, (0, ""))

    def test_some_found(self) -> None:
        """It waits for the others as long as it should, and the status is 0 if one was found."""
        self.begin("door-7", "door-8")
        self.server.ack(1, 1)
        self.answers(CLAIM)
        self.server.clock.advance(0.9)
        self.assertIsNone(self.session.end)
        self.server.clock.advance(0.1)
        self.assertEqual((self.session.end, self.shown()), ((0, ""), [CONNECTION_ID, None]))

    def test_silence(self) -> None:
        """If nobody answers the status is 1."""
        self.begin("door-7")
        self.server.ack(1, 1)
        self.server.clock.advance(1)
        self.assertEqual((self.session.end, self.shown()), ((1, ""), [None]))

    def test_no_gateway(self) -> None:
        """An exchange that does not exist, or reaches nobody, is an error in one line."""
        self.begin("door-7")
        self.server.give_back(self.server.take()[0])
        self.assertEqual(
            self.session.end, (1, "nobody listens to the exchange to_device.all: is the gateway running, on this broker?")
        )
        self.begin("door-7")
        self.server.close_channel(1, 404, "NOT_FOUND - no exchange 'to_device.all' in vhost '/'")
        assert self.session.end is not None
        self.assertIn("nobody listens to the exchange to_device.all", self.session.end[1])

    def test_no_permission(self) -> None:
        """A refusal is shown as the broker states it."""
        self.begin("door-7")
        self.server.close_channel(1, 403, "ACCESS_REFUSED - write access to exchange refused")
        assert self.session.end is not None
        self.assertEqual(self.session.end[0], 1)
        self.assertIn("ACCESS_REFUSED", self.session.end[1])

    def test_silent_broker(self) -> None:
        """A broker that does not confirm the question is an error."""
        self.begin("door-7")
        self.server.clock.advance(15)
        self.assertEqual(self.session.end, (1, "the broker has not confirmed the question (waited 15 s)"))
