"""Tests of traces: whom they record, what they show, and how they end."""

from __future__ import annotations

import gc
import sys
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import NodeTraces, TooManyTraces, Traces, node_traces, parent_traces
from owsla.desk._device_trace import CONNECTIONS
from owsla.desk._merging import MERGES
from owsla.desk._trace_buffer import RECORDS
from owsla.desk._traces import ABANDONED, LIMIT
from owsla.device import sliced_check
from owsla.device.protocol import DeviceProtocol
from owsla.events import (
    DeviceDisconnected,
    DeviceIdentified,
    Event,
    EventManager,
    HandshakeFailed,
    TraceEnded,
    TraceStarted,
    Undeliverable,
)

from ..device._fakes import Source, World


class EventWorld(World):
    """A node whose events go to handlers."""

    def __init__(self, **settings: Any) -> None:
        self.manager = EventManager(lambda: "01234567", now=lambda: self.epoch)
        super().__init__(**settings)

    def _emit(self, event: Event) -> None:
        super()._emit(event)
        self.manager.emit(event)


class TraceCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = EventWorld()
        self.node = self.node_traces("aaaaaaaa")
        self.traces = self.make(self.world._emit)

    def node_traces(self, instance: str) -> NodeTraces:
        world = self.world
        return NodeTraces(world.clock, lambda: world.epoch, world.registry, world.services.devices, world.manager, instance)

    def make(self, report: Any) -> Traces:
        return node_traces(self.world.clock, lambda: self.world.epoch, self.node.begin, report)

    def poll(self, target: str = "d1", id: str = "t", seconds: float = 300, **args: Any) -> dict[str, Any]:
        until = int((self.world.epoch + seconds) * 1000)
        return self.traces.poll({"id": id, "target": target, "until": until, "bodies": True, "by": "user me (uid 7)", **args})

    def shown(self, target: str = "d1", **args: Any) -> list[str]:
        return [each.get("body") or each.get("event") or each["text"] for each in self.poll(target, **args)["records"]]

    def of_type(self, kind: type[Any]) -> list[Any]:
        return self.world.of_type(kind)


class WhoTests(TraceCase):
    def test_by_each_name(self) -> None:
        """An open connection is traced by its id, its device id, its address, and its address with the port."""
        endpoint, _ = self.world.connect(device_id="d1")
        other, _ = self.world.connect(device_id="d2", peer="192.0.2.2:1234")
        targets = (endpoint.connection_id.decode().upper(), "d1", "192.0.2.1", "192.0.2.1:1234")
        for target in targets:
            self.poll(target, id=target)
        self.world.turns()
        endpoint.dataReceived(b"one\n")
        other.dataReceived(b"two\n")
        for target in targets:
            answer = self.poll(target, id=target)
            self.assertEqual([each["body"] for each in answer["records"]], ["one"])
            self.assertEqual(answer["connections"], [endpoint.connection_id.decode()])
            self.assertEqual((answer["dropped"], answer["ended"]), (0, None))

    def test_not_connected_yet(self) -> None:
        """A device that is not connected is traced from its next connection on, and when it comes again."""
        self.assertEqual(self.poll()["connections"], [])
        for line in (b"one", b"two"):
            endpoint, _ = self.world.connect(device_id="d1")
            stranger, _ = self.world.connect(device_id="d2")
            endpoint.dataReceived(line + b"\n")
            stranger.dataReceived(b"strange\n")
            self.world.end(endpoint)
        self.assertEqual(
            self.shown(), ["device-connected", "one", "device-disconnected", "device-connected", "two", "device-disconnected"]
        )

    def test_identified_by_its_dialect(self) -> None:
        """A device that a dialect identifies is traced from then on."""
        self.poll()
        endpoint, _ = self.world.connect()
        endpoint.dataReceived(b"login\n")
        endpoint.device_id = "d1"
        self.world._emit(DeviceIdentified(endpoint.connection_id.decode(), "d1"))
        endpoint.dataReceived(b"one\n")
        self.assertEqual(self.shown(), ["device-identified", "one"])

    def test_identified_at_its_end(self) -> None:
        """A connection that is identified while it ends is not traced: nobody would tell the trace of the end."""
        self.poll()
        endpoint, _ = self.world.connect()

        def identify() -> None:
            endpoint.device_id = "d1"
            self.world._emit(DeviceIdentified(endpoint.connection_id.decode(), "d1"))

        with patch.object(DeviceProtocol, "_publish_buffered", lambda _: identify()):
            self.world.end(endpoint)
        self.assertEqual(self.poll()["connections"], [])
        self.assertEqual((type(endpoint), len(self.node.tracing)), (DeviceProtocol, 0))

    def test_several_connections(self) -> None:
        """All connections of a device are traced. A bound keeps a trace of all devices behind one address small."""
        first, _ = self.world.connect(device_id="d1")
        self.poll()
        second, _ = self.world.connect(device_id="d1")
        first.dataReceived(b"one\n")
        second.dataReceived(b"two\n")
        self.assertEqual(self.shown(), ["device-connected", "one", "two"])
        self.assertEqual(len(self.poll()["connections"]), 2)
        for number in range(CONNECTIONS + 3):
            self.world.connect(device_id=f"other-{number}")
        answer = self.poll("192.0.2.1", id="address")
        self.assertEqual(len(answer["connections"]), CONNECTIONS)
        self.assertEqual(
            [each["text"] for each in answer["records"]], ["more than 64 connections are to be traced: the others are left out"]
        )

    def test_two_traces(self) -> None:
        """Two traces of a device each have all its records, with bodies or without; one may end before the other."""
        endpoint, _ = self.world.connect(device_id="d1")
        self.poll(bodies=False)
        self.poll(id="second")
        endpoint.dataReceived(b"one\n")
        self.assertEqual([each.get("body") for each in self.poll()["records"]], [None])
        self.traces.end({"id": "t"})
        endpoint.dataReceived(b"two\n")
        self.assertEqual(self.shown(id="second"), ["one", "two"])


class EventTests(TraceCase):
    def test_end_of_a_connection(self) -> None:
        """The end of a connection is shown with its reason, and a message that comes too late as well."""
        endpoint, _ = self.world.connect(device_id="d1")
        self.poll()
        self.world.end(endpoint)
        self.world._emit(Undeliverable("connection-closed", endpoint.connection_id.decode(), None))
        self.world._emit(Undeliverable("connection-closed", "0" * 36, None))
        records = self.poll()["records"]
        self.assertEqual([each["event"] for each in records], ["device-disconnected", "undeliverable"])
        self.assertEqual(records[0]["text"], str(self.of_type(DeviceDisconnected)[0]))
        self.assertEqual(records[0]["connection_id"], endpoint.connection_id.decode())
        self.assertEqual(records[0]["time"], round(self.world.epoch * 1000))

    def test_before_a_connection(self) -> None:
        """Failed handshakes of the address, and of a certificate with the name, are shown; those of others are not."""
        self.poll()
        self.poll("192.0.2.1", id="address")
        self.world._emit(HandshakeFailed("192.0.2.1:5", "no handshake within 15 s"))
        self.world._emit(HandshakeFailed("192.0.2.2:5", "certificate expired", "CN=d1", "0A", claimed_id="d1"))
        self.world._emit(HandshakeFailed("192.0.2.2:5", "certificate expired", "CN=d2", "0B", claimed_id="d2"))
        self.assertIn("no handshake", self.poll("192.0.2.1", id="address")["records"][0]["text"])
        records = self.poll()["records"]
        self.assertEqual(len(records), 1)
        self.assertIn("CN=d1", records[0]["text"])

    def test_handler_only_while_a_trace_runs(self) -> None:
        """Events are looked at only while a trace runs."""
        handled: list[Event] = []
        self.patch(self.node, "handle", lambda event, node, when: handled.append(event))
        self.world.connect(device_id="d1")
        self.poll(), self.poll(id="second")
        self.world.connect(device_id="d2")
        self.assertEqual(len(handled), 1)
        self.traces.end({"id": "t"})
        self.world.connect(device_id="d2")
        self.assertEqual(len(handled), 2)
        self.traces.end({"id": "second"})
        self.world.connect(device_id="d2")
        self.assertEqual(len(handled), 2)

    def test_error(self) -> None:
        """An error in a trace ends its recording, is logged, and costs neither the event nor other traces."""
        endpoint, _ = self.world.connect(device_id="d1")
        self.poll(id="bad")
        bad = self.node._traces[0]
        self.poll(id="good")
        self.patch(bad, "event", lambda event, when: 1 // 0)
        again, _ = self.world.connect(device_id="d1")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        endpoint.dataReceived(b"one\n")
        again.dataReceived(b"two\n")
        self.assertEqual(self.shown(id="good"), ["device-connected", "one", "two"])
        self.assertEqual(self.shown(id="bad"), [])
        self.assertEqual(self.poll(id="bad")["ended"], "an error in the gateway: see its log")
        self.assertEqual(self.world.manager.stats("traces").failures, 0)


class EndTests(TraceCase):
    def test_events(self) -> None:
        """Start and end are events: target, operator, time, and how many records were taken or dropped."""
        endpoint, _ = self.world.connect(device_id="d1")
        answer = self.poll()
        self.assertEqual(self.of_type(TraceStarted), [TraceStarted("d1", "user me (uid 7)", 300.0, True)])
        for _ in range(3):
            endpoint.dataReceived(b"one\n")
            answer = self.poll(after=answer["next"])
        self.traces.end({"id": "t", "after": answer["next"]})
        self.traces.end({"id": "t"})
        self.assertEqual(self.of_type(TraceEnded), [TraceEnded("d1", "user me (uid 7)", 3, 0, "ended by its reader")])
        self.assertEqual(len(self.of_type(TraceStarted)), 1)
        self.assertIs(type(endpoint), DeviceProtocol)

    def test_dropped(self) -> None:
        """Records beyond the buffer are dropped: the answer and the event have their number. An answer has only some."""
        endpoint, _ = self.world.connect(device_id="d1")
        answer = self.poll()
        endpoint.dataReceived(b"x\n" * (RECORDS + 500))
        taken: list[int] = []
        dropped: list[int] = []
        while answer["more"] or not taken:
            answer = self.poll(after=answer["next"])
            taken.append(len(answer["records"]))
            dropped.append(answer["dropped"])
        self.assertEqual((sum(taken), sum(dropped), dropped[0]), (RECORDS, 500, 500))
        self.assertLess(max(taken), 400)
        endpoint.dataReceived(b"x\n")
        answer = self.poll(after=answer["next"])
        self.assertEqual((len(answer["records"]), answer["dropped"]), (1, 0))
        self.traces.end({"id": "t", "after": answer["next"], "reason": "its reader is gone"})
        self.assertEqual(
            self.of_type(TraceEnded), [TraceEnded("d1", "user me (uid 7)", RECORDS + 1, 500, "its reader is gone")]
        )

    def test_time_is_over(self) -> None:
        """At `until` nothing more is recorded. What was recorded can still be taken, and the trace does not start again."""
        endpoint, _ = self.world.connect(device_id="d1")
        self.poll(seconds=20)
        endpoint.dataReceived(b"one\n")
        until = int((self.world.epoch + 20) * 1000)
        self.world.clock.advance(20)
        self.world.epoch += 20
        endpoint.dataReceived(b"two\n")
        answer = self.poll(until=until)
        self.assertEqual(([each["body"] for each in answer["records"]], answer["ended"]), (["one"], "its time is over"))
        self.assertIs(type(endpoint), DeviceProtocol)
        self.assertEqual(self.of_type(TraceEnded), [])
        self.traces.end({"id": "t", "after": answer["next"]})
        self.assertEqual(self.of_type(TraceEnded), [TraceEnded("d1", "user me (uid 7)", 1, 0, "its time is over")])
        answer = self.poll(until=until)
        self.assertEqual((answer["records"], answer["ended"]), ([], "its time is over"))
        self.assertEqual(len(self.of_type(TraceStarted)), 1)

    def test_abandoned(self) -> None:
        """A trace that nobody asks for ends after 30 s, whether its time is over or not."""
        endpoint, _ = self.world.connect(device_id="d1")
        for seconds in (300, 10):
            self.poll(seconds=seconds)
            self.world.clock.advance(ABANDONED - 1)
            self.poll(seconds=seconds)
            self.world.clock.advance(ABANDONED - 1)
            self.assertEqual(len(self.traces.running({})["traces"]), 1)
            self.world.clock.advance(1)
            self.assertEqual(self.traces.running({})["traces"], [])
            self.assertIs(type(endpoint), DeviceProtocol)
        reasons = [event.reason for event in self.of_type(TraceEnded)]
        self.assertEqual(reasons, ["its reader has not asked for 30 s", "its time is over"])
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_connection_ended(self) -> None:
        """A trace of a connection id says that the connection has ended, since it does not come again."""
        endpoint, _ = self.world.connect(device_id="d1")
        target = endpoint.connection_id.decode()
        self.assertIsNone(self.poll(target)["ended"])
        self.world.end(endpoint)
        answer = self.poll(target)
        self.assertEqual(answer["ended"], "the connection has ended")
        self.assertEqual([each["event"] for each in answer["records"]], ["device-disconnected"])

    def test_limit(self) -> None:
        """There are 16 traces at once."""
        for number in range(LIMIT):
            self.poll(id=str(number))
        with self.assertRaisesRegex(TooManyTraces, "16 traces run already"):
            self.poll(id="one more")
        self.assertEqual(len(self.of_type(TraceStarted)), LIMIT)
        self.traces.end({"id": "3"})
        self.poll(id="one more")

    def test_running(self) -> None:
        """The traces that run are listed, with who reads them."""
        self.poll()
        until = int((self.world.epoch + 300) * 1000)
        listed = {"id": "t", "target": "d1", "until": until, "bodies": True, "by": "user me (uid 7)"}
        self.assertEqual(self.traces.running({}), {"traces": [listed]})
        self.assertEqual(
            MERGES["traces"]([("worker-1", {"traces": [listed]}), ("worker-2", {"traces": [listed]})], {}), {"traces": [listed]}
        )

    def test_ended_within_the_search(self) -> None:
        """A trace that ends while connections are looked for leaves none traced."""
        for number in range(50):
            self.world.connect(device_id=f"d{number}")
        self.patch(sliced_check, "SLICE", -1)  # one connection in a turn
        self.poll("192.0.2.1")
        self.assertEqual(len(self.node.tracing), 1)
        self.traces.end({"id": "t"})
        self.world.turns()
        self.assertEqual(len(self.node.tracing), 0)


class CostTests(TraceCase):
    def test_nothing_for_others(self) -> None:
        """A line costs the connections that are not traced no call more: before, during and after traces of others, and after
        one of their own.
        """
        endpoint, _ = self.world.connect(device_id="d2")
        before = self.calls(endpoint)
        self.world.connect(device_id="d1")
        self.poll()
        self.assertEqual(self.calls(endpoint), before)
        self.poll("d2", id="own")
        self.assertGreater(self.calls(endpoint), before)
        self.traces.end({"id": "own"})
        self.assertEqual(self.calls(endpoint), before)
        self.traces.end({"id": "t"})
        self.assertEqual(self.calls(endpoint), before)

    def calls(self, endpoint: DeviceProtocol) -> int:
        """Return the number of calls, of Python and C functions, for some lines in both directions."""
        self.world.turns()
        self.world.turn.call_first(lambda: None)  # a `task.Clock` has more to sort with each delayed call
        source = Source()
        tags = [source.next() for _ in range(20)]
        count = 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        gc.disable()  # a collection calls what others have registered in gc.callbacks
        sys.setprofile(profile)
        try:
            endpoint.dataReceived(b"line\n" * 20)
            for tag in tags:
                endpoint.send(source, tag, b"header", b"message", endpoint.connection_id, None)
        finally:
            sys.setprofile(None)
            gc.enable()
        self.world.turns()
        return count


class MergeTests(TraceCase):
    def test_workers(self) -> None:
        """A parent merges the records of all workers by time, and its cursor is good for all of them. It reports the trace
        once, with the sum of the records; workers do not.
        """
        parent = parent_traces(self.world.clock, lambda: self.world.epoch, self.world._emit)
        worlds = [(self.world, self.node)]
        self.world = EventWorld()
        worlds.append((self.world, self.node_traces("bbbbbbbb")))
        workers = [
            node_traces(world.clock, lambda world=world: world.epoch, node.begin, None)  # type: ignore[misc]
            for world, node in worlds
        ]
        args = {"id": "t", "target": "d1", "until": 2_000_000_000, "by": "me"}

        def ask(*asked: Traces, **more: Any) -> dict[str, Any]:
            return dict(MERGES["trace"]([("name", each.poll({**args, **more})) for each in asked], {**args, **more}))

        answer = ask(parent, *workers)
        endpoints = [world.connect(device_id="d1")[0] for world, _ in worlds]
        for number in range(4):
            world, _ = worlds[number % 2]
            world.epoch = 1_000_001.0 + number
            endpoints[number % 2].dataReceived(b"%d\n" % number)
        answer = ask(parent, *workers, after=answer["next"])
        self.assertEqual([each["seq"] for each in answer["records"]], [None, None, 0, 0, 1, 1])
        self.assertEqual(sorted(answer["connections"]), sorted(each.connection_id.decode() for each in endpoints))
        for endpoint in endpoints:
            endpoint.dataReceived(b"late\n")
        # One worker does not answer in time: its place in the cursor stays. An answer that is lost costs no record.
        answer = ask(parent, workers[0], after=answer["next"])
        self.assertEqual(len(answer["records"]), 1)
        ask(parent, *workers, after=answer["next"])
        answer = ask(parent, *workers, after=answer["next"])
        self.assertEqual([each["connection_id"] for each in answer["records"]], [endpoints[1].connection_id.decode()])
        for traces in (parent, *workers):
            traces.end({"id": "t", "after": answer["next"]})
        first = worlds[0][0]
        self.assertEqual(first.of_type(TraceStarted), [TraceStarted("d1", "me", 1_000_000.0, False)])
        self.assertEqual(first.of_type(TraceEnded), [TraceEnded("d1", "me", 8, 0, "ended by its reader")])
        self.assertEqual(self.world.of_type(TraceStarted), [])
        self.assertEqual([type(endpoint) for endpoint in endpoints], [DeviceProtocol, DeviceProtocol])

    def test_message_while_traced(self) -> None:
        """Messages of back ends to a traced device are acknowledged as ever, and shown with their number."""
        endpoint, wire = self.world.connect(device_id="d1")
        source = Source()
        self.poll()
        self.world.send(endpoint, source, b"one", 0)
        self.world.turns()
        self.assertEqual((wire.data, source.outstanding), (b"one\r\n", 0))
        record = self.poll()["records"][0]
        self.assertEqual((record["kind"], record["seq"], record["size"], record["body"]), ("out", 0, 3, "one"))
