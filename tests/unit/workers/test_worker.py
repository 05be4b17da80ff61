"""Tests of the worker end of the channel: messages to the parent, and orders of the parent."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import NodeDesk
from owsla.events import BrokerUnblocked, HandlerStats, from_wire
from owsla.log import FIELDS
from owsla.tls.expiry import ServedCertificate
from owsla.workers._channel import WAITING
from owsla.workers._worker import ORPHAN_TIMEOUT, EventsToParent, LogToParent, NodeInterface, ParentLink


class FakeReactor(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning


class FakeGateway:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def hurry(self) -> None:
        self.calls.append("hurry")

    def shorten(self, drain_timeout: float) -> None:
        self.calls.append(("shorten", drain_timeout))


class FakeReloads:
    def __init__(self, done: list[Any]) -> None:
        self.done = done

    def prepare(self, generation: int, contents: Mapping[str, str]) -> None:
        self.done.append(("prepare", generation, contents))

    def apply(self, generation: int) -> None:
        self.done.append(("apply", generation))

    def cancel(self, generation: int) -> None:
        self.done.append(("cancel", generation))


class LinkTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.link = ParentLink(self.reactor, 1)
        self.transport = StringTransport()
        self.link.channel.makeConnection(self.transport)
        self.gateway = FakeGateway()
        self.done: list[Any] = []
        self.later: Deferred[dict[str, Any]] = Deferred()
        self.desk = NodeDesk(
            {
                "devices": lambda args: {"devices": [args["query"]]},
                "later": lambda args: self.later,
            }
        )
        self.link.introduce(
            NodeInterface(
                readings=cast(Any, None),
                desk=self.desk,
                service=self.gateway,
                reopen=lambda: self.done.append("reopen"),
                gone=lambda *who: self.done.append(who),
                reloads=FakeReloads(self.done),
            )
        )

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.transport.value().splitlines()]

    def says(self, type: str, **values: Any) -> None:
        self.link.channel.dataReceived(json.dumps({"type": type, **values}).encode() + b"\n")


class ParentLinkTests(LinkTestCase):
    def test_orders(self) -> None:
        """The worker obeys its orders, and ignores unknown ones."""
        self.says("reopen")
        self.says("gone", node="0123abcd")
        self.says("gone", node="4567abcd", served=False)
        self.says("reload", generation=1, files={"a": "Yg=="})
        self.says("apply", generation=1)
        self.says("cancel", generation=2)
        self.says("hurry")
        self.says("dance")
        self.says("ping")
        self.assertEqual(
            self.done,
            [
                "reopen",
                ("0123abcd", True),
                ("4567abcd", False),
                ("prepare", 1, {"a": "Yg=="}),
                ("apply", 1),
                ("cancel", 2),
            ],
        )
        self.assertEqual(self.gateway.calls, ["hurry"])
        self.assertEqual(self.told(), [{"type": "pong"}])

    def test_questions(self) -> None:
        """A question of the parent is answered, once the answer is there; an unknown one, or one that fails, with null."""
        self.says("ask", id=1, what="devices", args={"query": "door"})
        self.says("ask", id=2, what="later", args={})
        self.says("ask", id=3, what="dance")
        self.says("ask", id=4, what="devices", args={})
        self.assertEqual(
            [(message["id"], message["value"]) for message in self.told()], [(1, {"devices": ["door"]}), (3, None), (4, None)]
        )
        self.assertEqual([type(failure.value) for failure in self.flushLoggedErrors()], [KeyError])
        self.later.callback({"a": 1})
        self.assertEqual(self.told()[-1], {"type": "answer", "id": 2, "value": {"a": 1}})

    def test_stop(self) -> None:
        """Several stops, by order or by signal, stop the worker once; also after it was stopped otherwise."""
        self.says("stop")
        self.link.stop("Received SIGTERM")
        self.assertEqual(self.reactor.stops, 1)
        other = ParentLink(self.reactor, 2)
        other.stop("Received SIGTERM")

    def test_ready_once(self) -> None:
        """The parent is told once of the settings that this worker has read. A reconnected broker is not reported again."""
        self.link.ready(30.0, ServedCertificate("server.pem", 1e9))
        self.link.ready(30.0, ServedCertificate("server.pem", 1e9))
        self.assertEqual(
            self.told(), [{"type": "ready", "drain_timeout": 30.0, "certificate": "server.pem", "not_after": 1e9}]
        )

    def test_parent_is_gone(self) -> None:
        """Without a parent the worker stops soon."""
        self.link.channel.connectionLost()
        self.assertEqual(self.gateway.calls, [("shorten", ORPHAN_TIMEOUT)])
        self.assertEqual(self.reactor.stops, 1)

    def test_end_of_a_stop(self) -> None:
        """The end of the channel is part of a stop, and no reason to hurry."""
        self.says("stop")
        self.link.channel.connectionLost()
        self.assertEqual(self.gateway.calls, [])


class EventsTests(LinkTestCase):
    def test_passed_on(self) -> None:
        """An event goes to the parent with its node and its time."""
        stats = HandlerStats("parent")
        EventsToParent(self.link, stats).handle(BrokerUnblocked(), "0123abcd", 12.5)
        (message,) = self.told()
        self.assertEqual((message["type"], message["node"], message["time"]), ("event", "0123abcd", 12.5))
        self.assertEqual(from_wire(message["event"]), BrokerUnblocked())
        self.assertEqual(stats.dropped, 0)

    def test_parent_is_slow(self) -> None:
        """Messages that a slow parent cannot take are counted, and it is told the number as soon as it reads again."""
        stats = HandlerStats("parent")
        handler = EventsToParent(self.link, stats)
        self.link.channel.pauseProducing()
        for _ in range(WAITING + 3):
            handler.handle(BrokerUnblocked(), "0123abcd", 1.0)
        self.assertEqual(stats.dropped, 3)
        self.link.channel.resumeProducing()
        handler.handle(BrokerUnblocked(), "0123abcd", 2.0)
        last_but_one, last = (from_wire(message["event"]) for message in self.told()[-2:])
        self.assertEqual(str(last_but_one), "Events dropped: parent has missed 3")
        self.assertEqual(last, BrokerUnblocked())


class LogTests(LinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.from_threads: list[tuple[Any, ...]] = []
        observer = LogToParent(self.link.channel, lambda *call: self.from_threads.append(call))
        self.log = Logger(namespace="owsla.somewhere", observer=cast(Any, observer))

    def test_lines(self) -> None:
        """A log line is sent as level, namespace and text. Debug lines are not sent."""
        self.log.debug("unheard")
        self.log.warn("{count} devices", count=3)
        self.assertEqual(
            self.told(), [{"type": "log", "level": "warn", "namespace": "owsla.somewhere", "text": "3 devices"}]
        )

    def test_other_threads(self) -> None:
        """Output of other threads, logged or printed, is written to the channel in the reactor thread only."""
        thread = threading.Thread(target=lambda: self.log.info("from a thread"))
        thread.start()
        thread.join()
        self.assertEqual(self.told(), [])
        ((tell, *line),) = self.from_threads
        tell(*line)
        self.assertEqual([message["text"] for message in self.told()], ["from a thread"])

    def test_failure(self) -> None:
        """A failure is sent with its traceback."""
        try:
            raise ValueError("ours")
        except ValueError:
            self.log.failure("It failed", Failure())
        (message,) = self.told()
        self.assertEqual(message["level"], LogLevel.critical.name)
        self.assertTrue(message["text"].startswith("It failed\nTraceback"), message["text"])
        self.assertIn("ValueError: ours", message["text"])
        self.assertEqual(message["text"], f"It failed\n{message['traceback']}")

    def test_fields(self) -> None:
        """The fields of an event are sent with its line."""
        self.log.info("It works", **{FIELDS: {"event": "a", "fields": {"names": ("b",)}}})
        self.assertEqual(self.told()[0]["fields"], {"event": "a", "fields": {"names": ["b"]}})

    def test_parent_is_slow(self) -> None:
        """Omitted log lines are reported as a number."""
        self.link.channel.pauseProducing()
        for _ in range(WAITING + 2):
            self.log.info("a line")
        self.link.channel.resumeProducing()
        self.log.info("the next")
        self.assertEqual(
            [message["text"] for message in self.told()[-2:]],
            ["The log has lost 2 lines here: the parent is too slow", "the next"],
        )
