"""Events, who is told of them, and how they read."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla import events
from owsla.events import (
    BrokerUnblocked,
    BrokerWarning,
    CertificateExpiring,
    ChildRestarted,
    ConfigurationReloaded,
    Console,
    DeviceConnected,
    DeviceDisconnected,
    DeviceKicked,
    DrainRequested,
    Event,
    FannedOut,
    GapSkipped,
    HandshakeFailed,
    Listening,
    ReloadFailed,
    TraceEnded,
    TraceStarted,
    Undeliverable,
    UndeliverableLost,
    UnknownEvent,
)
from owsla.events._json import COMMON
from owsla.log import FIELDS

from .doubles import NODE, NOW

KINDS: list[type[Event]] = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, UnknownEvent)
]

SAMPLES: dict[str, Any] = {
    "str": "Some Text",
    "int": 7,
    "float": 1.5,
    "str | None": None,
    "int | None": None,
    "bool": True,
    "tuple[str, ...]": ("a", "b"),
}


def sample(kind: type[Event]) -> Event:
    return kind(**{field.name: SAMPLES[str(field.type)] for field in dataclasses.fields(kind)})


class EventTests(SynchronousTestCase):
    def test_names(self) -> None:
        """Each event has a name of its own for machines: lower case with dashes."""
        names = [kind.name for kind in KINDS]
        self.assertEqual(len(set(names)), len(names))
        for name in names:
            self.assertRegex(name, r"\A[a-z]+(-[a-z]+)*\Z")
            self.assertNotEqual(name, Event.name)

    def test_one_line_each(self) -> None:
        """Each event reads as one line, with what it holds in it."""
        for kind in KINDS:
            text = str(sample(kind))
            self.assertNotIn("\n", text)
            self.assertNotIn("None", text)
            self.assertNotIn(kind.__name__ + "(", text)
            if any(field.type == "str" for field in dataclasses.fields(kind)):
                self.assertIn("Some Text", text)

    def test_recipient(self) -> None:
        """An undeliverable message is told with its connection, or else with the device or the selector that it was for."""
        for connection_id, device_id, text in (
            ("c-1", "door-7", ", c-1 (device door-7)"),
            ("c-1", None, ", c-1"),
            (None, "door-7", ", device door-7"),
            (None, None, ""),
        ):
            event = Undeliverable("expired", connection_id, device_id)
            self.assertEqual(str(event), f"Undeliverable: expired{text}")
            lost = UndeliverableLost("expired", connection_id, device_id, "full")
            self.assertEqual(str(lost), f"Undeliverable and not recorded (full): expired{text}")
        for selector in ("doors", ""):
            many = Undeliverable("bad-selector", None, None, selector)
            self.assertEqual(str(many), f"Undeliverable: bad-selector, owsla_to '{selector}'")

    def test_fields(self) -> None:
        """Each event is plain values by name, ready for JSON; none of the names is one that every event has."""
        for kind in KINDS:
            event = sample(kind)
            fields = event.fields()
            self.assertEqual(list(fields), [field.name for field in dataclasses.fields(kind)])
            self.assertEqual(kind(**fields), event)
            self.assertEqual(set(json.loads(json.dumps(fields))), set(fields))
            self.assertEqual(set(fields) & set(COMMON), set())

    def test_certificates(self) -> None:
        """A certificate that ends soon reads otherwise than one that has ended."""
        self.assertIn("expires in 3 days", str(CertificateExpiring("c.pem", "2030-01-01T00:00:00Z", 3.2)))
        self.assertIn("expired", str(CertificateExpiring("c.pem", "2030-01-01T00:00:00Z", -0.1)))

    def test_restarts(self) -> None:
        """A restart tells of its wait and of the siblings, where there are any."""
        self.assertEqual(str(ChildRestarted("owsla/http", "E: x", 1, 0.0, ())), "Restarting owsla/http (restart 1): E: x")
        text = str(ChildRestarted("owsla/http", "E: x", 2, 0.5, ("a", "b")))
        self.assertEqual(text, "Restarting owsla/http in 0.5 s, and with it a, b (restart 2): E: x")

    def test_actions(self) -> None:
        """Each action of an operator reads as what was done, to what, and by whom; a reload by a signal names nobody."""
        by = "user ada (uid 1000)"
        for event, text in (
            (DeviceKicked("c-1", "d", by), f"Device kicked: c-1 (device d) is closed (requested by {by})"),
            (TraceStarted("d", by, 300.0, False), f"Trace started: d, for 300 s, without bodies (requested by {by})"),
            (TraceStarted("d", by, 60.0, True), f"Trace started: d, for 60 s, with bodies (requested by {by})"),
            (TraceEnded("d", by, 5, 0, "closed"), f"Trace ended: d, closed; 5 records (requested by {by})"),
            (TraceEnded("d", by, 1, 2, "closed"), f"Trace ended: d, closed; 1 record (2 dropped) (requested by {by})"),
            (DrainRequested(by), f"Orderly stop begins (requested by {by})"),
            (ConfigurationReloaded(("cert",), (), (), by), f"Configuration reloaded (requested by {by}): cert"),
            (ConfigurationReloaded((), (), ()), "Configuration reloaded: nothing has changed"),
            (ReloadFailed("no", by), f"Reload failed, and nothing was changed (requested by {by}): no"),
            (ReloadFailed("no"), "Reload failed, and nothing was changed: no"),
        ):
            self.assertEqual(str(event), text)

    def test_refused_certificates(self) -> None:
        """A refused certificate reads with its subject and serial number, and with its device id unless the text has it."""
        for rest, text in (
            ((None, None, "default", None), "no"),
            (("CN=d", "0A", "default", None), "no (subject CN=d, serial 0A)"),
            ((None, "0A", "default", None), "no (serial 0A)"),
            (("CN=d", "0A", "default", "d"), "no (subject CN=d, serial 0A)"),
            (("CN=d", "0A", "default", "urn:7"), "no (subject CN=d, serial 0A), claims to be device urn:7"),
            ((None, None, "default", "no"), "no"),
        ):
            self.assertEqual(str(HandshakeFailed("192.0.2.1:5", "no", *rest)), f"Handshake failed: 192.0.2.1:5: {text}")

    def test_doors(self) -> None:
        """The text of an event names the door, unless it is the first one: a node without others reads as it always did."""
        for kind in KINDS:
            if "door" in {field.name for field in dataclasses.fields(kind)}:
                event: Any = sample(kind)
                self.assertIn(" (door meters)", str(dataclasses.replace(event, door="meters")))
                self.assertNotIn("door", str(dataclasses.replace(event, door="default")))

    def test_traces(self) -> None:
        """A trace is the last field of an event, and not in its text."""
        for kind in KINDS:
            if "traceparent" in {field.name for field in dataclasses.fields(kind)}:
                event: Any = sample(kind)
                self.assertEqual(list(event.fields())[-1], "traceparent")
                self.assertEqual(str(dataclasses.replace(event, traceparent="00-1-2-01")), str(event))

    def test_connections_without_tls(self) -> None:
        """A connection without TLS reads as what it is."""
        for peer, tls, transport in (
            ("192.0.2.1:5", "TLSv1.3", "TLSv1.3"),
            ("192.0.2.1:5", "", "TCP"),
            ("unix:/s", "", "unix socket"),
        ):
            text = str(DeviceConnected("c", "d", peer, tls))
            self.assertEqual(text, f"Device connected: c (device d) from {peer}, {transport}")

    def test_listening(self) -> None:
        """An open door reads as a port or the path of a unix socket, with TLS or without."""
        self.assertEqual(str(Listening("::1", 8883)), "Listening for devices on port 8883 (TLS, ::1)")
        self.assertEqual(str(Listening("::1", 9000, False)), "Listening for devices on port 9000 (TCP, ::1)")
        self.assertEqual(str(Listening("unix:/s", 0, False)), "Listening for devices on unix:/s (no TLS)")
        self.assertEqual(str(Listening("unix:/s", 0, True, "local")), "Listening for devices on unix:/s (TLS) (door local)")

    def test_frozen(self) -> None:
        """An event does not change once it has happened."""
        for kind in KINDS:
            for field in dataclasses.fields(kind):
                with self.assertRaises(dataclasses.FrozenInstanceError):
                    setattr(sample(kind), field.name, 1)

    def test_gaps(self) -> None:
        """One number that was skipped reads as one, and several as a range."""
        self.assertIn("without number 3", str(GapSkipped("c", None, 3, 3)))
        self.assertIn("without numbers 3 to 5", str(GapSkipped("c", None, 3, 5)))

    def test_fanned_out(self) -> None:
        """A message for many says how many devices have it, and whether it expired or closes their connections."""
        text = "Message for many devices (all): handed over to 7, 1 missed, in 2.5 s"
        self.assertEqual(str(FannedOut("all", 7, 1, 2.5, False, False)), text)
        ends = ", and then it expired; it closes their connections"
        self.assertEqual(str(FannedOut("all", 7, 1, 2.5, True, True)), text + ends)

    def test_unterminated_rest(self) -> None:
        """Bytes of a line that was never finished are told of, where there are any."""
        self.assertIn("5 bytes", str(DeviceDisconnected("c", "d", "p", "gone", 1, 2, 3.0, 5)))
        self.assertNotIn("unterminated", str(DeviceDisconnected("c", "d", "p", "gone", 1, 2, 3.0, 0)))


class ConsoleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.console = Console(self.clock, lambda: NODE, burst=3)
        self.logged: list[tuple[Any, str]] = []
        self.fields: list[Any] = []

        def observe(event: LogEvent) -> None:
            if str(event.get("log_namespace")).startswith("owsla"):
                self.logged.append((event["log_level"], formatEvent(event)))
                self.fields.append(event[FIELDS])

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)

    def test_counts(self) -> None:
        """The events of a kind beyond the limit can be counted without handling them: the number is logged after a second."""
        for number in range(5):
            if not self.console.counts(BrokerUnblocked()):
                self.console.handle(BrokerUnblocked(), NODE, NOW)
                self.assertLess(number, 3)
        self.clock.advance(1)
        self.assertEqual(len(self.logged), 4)
        self.assertIn("2 more", self.logged[-1][1])
        self.assertFalse(self.console.counts(BrokerUnblocked()))

    def test_levels(self) -> None:
        """An event is a line at info level, one that somebody should look at a warning."""
        self.console.handle(BrokerUnblocked(), NODE, NOW)
        self.console.handle(BrokerWarning("odd {braces}"), NODE, NOW)
        self.assertEqual(
            self.logged, [(LogLevel.info, "Broker unblocked"), (LogLevel.warn, "Broker: odd {braces}")]
        )

    def test_other_nodes(self) -> None:
        """An event of another node says so; of the own one it goes without saying."""
        self.console.handle(BrokerWarning("{x}"), "deadbeef", NOW)
        self.assertEqual(self.logged, [(LogLevel.warn, "Node deadbeef: Broker: {x}")])

    def test_a_stampede(self) -> None:
        """What comes by the hundred in a second is logged a few times and then counted, each kind for itself."""
        for number in range(10):
            self.console.handle(BrokerWarning(str(number)), NODE, NOW)
        self.console.handle(BrokerUnblocked(), NODE, NOW)
        self.assertEqual(len(self.logged), 4)
        self.clock.advance(1)
        self.assertEqual(self.logged[4:], [(LogLevel.info, "... and 7 more: broker-warning")])
        self.assertEqual(self.fields[4:], [{"event": "broker-warning", "more": 7}])
        self.console.handle(BrokerWarning("later"), NODE, NOW)
        self.assertEqual(self.logged[-1], (LogLevel.warn, "Broker: later"))

    def test_fields(self) -> None:
        """A line carries name, node and fields of its event, for a log in JSON."""
        self.console.handle(GapSkipped("c", None, 1, 2), "deadbeef", NOW)
        self.assertEqual(
            json.loads(json.dumps(self.fields)),
            [
                {
                    "event": "gap-skipped",
                    "node": "deadbeef",
                    "fields": {"connection_id": "c", "device_id": None, "first": 1, "last": 2, "traceparent": None},
                }
            ],
        )

    def test_stopping(self) -> None:
        """What was only counted is told at the end, and no timer is left."""
        for number in range(5):
            self.console.handle(BrokerWarning(str(number)), NODE, NOW)
        self.console.stop()
        self.assertEqual(self.logged[3:], [(LogLevel.info, "... and 2 more: broker-warning")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_timer_when_nothing_happens(self) -> None:
        """A quiet console has nothing left to do."""
        self.console.handle(BrokerUnblocked(), NODE, NOW)
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DocumentationTests(SynchronousTestCase):
    def test_every_event(self) -> None:
        """docs/events.md lists every event with its fields, and no others."""
        page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
        listed = re.findall(r"^\| `([a-z-]+)`( ⚠)? \| ([^|]*) \| [^|]+ \|$", page, re.MULTILINE)
        found = {name: (bool(mark), re.findall(r"`(\w+)`", fields)) for name, mark, fields in listed}
        expected = {kind.name: (kind.warning, [field.name for field in dataclasses.fields(kind)]) for kind in KINDS}
        self.assertEqual({name: found.get(name) for name in expected}, expected)
