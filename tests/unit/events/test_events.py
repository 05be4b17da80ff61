"""Events, who is told of them, and how they read."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla import events
from owsla.events import BrokerUnblocked, BrokerWarning, Console, DeviceDisconnected, Event, EventManager, GapSkipped

KINDS: list[type[Event]] = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]

SAMPLES: dict[str, Any] = {"str": "Some Text", "int": 7, "float": 1.5, "str | None": None, "bool": True}


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

    def test_frozen(self) -> None:
        """An event does not change once it has happened."""
        for kind in KINDS:
            for field in dataclasses.fields(kind):
                with self.assertRaises(dataclasses.FrozenInstanceError):
                    setattr(sample(kind), field.name, 1)

    def test_gaps(self) -> None:
        """One number that was skipped reads as one, and several as a range."""
        self.assertIn("without number 3", str(GapSkipped("c", 3, 3)))
        self.assertIn("without numbers 3 to 5", str(GapSkipped("c", 3, 5)))

    def test_unterminated_rest(self) -> None:
        """Bytes of a line that was never finished are told of, where there are any."""
        self.assertIn("5 bytes", str(DeviceDisconnected("c", "d", "gone", 1, 2, 3.0, 5)))
        self.assertNotIn("unterminated", str(DeviceDisconnected("c", "d", "gone", 1, 2, 3.0, 0)))


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def handle(self, event: Event) -> None:
        self.seen.append(event)


class Broken:
    def handle(self, event: Event) -> None:
        raise ZeroDivisionError


class ManagerTests(SynchronousTestCase):
    def test_everybody_is_told(self) -> None:
        """Each handler is told of each event, until it is removed; one that raises is logged and hurts nobody else."""
        manager = EventManager()
        first, last = Recorder(), Recorder()
        for handler in (first, Broken(), last):
            manager.add(handler)
        one, two = BrokerWarning("one"), BrokerWarning("two")
        manager.emit(one)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        manager.remove(first)
        manager.emit(two)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((first.seen, last.seen), ([one], [one, two]))


class ConsoleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.console = Console(self.clock, burst=3)
        self.logged: list[tuple[Any, str]] = []

        def observe(event: LogEvent) -> None:
            if str(event.get("log_namespace")).startswith("owsla"):
                self.logged.append((event["log_level"], formatEvent(event)))

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)

    def test_levels(self) -> None:
        """An event is a line at info level, one that somebody should look at a warning."""
        self.console.handle(BrokerUnblocked())
        self.console.handle(BrokerWarning("odd {braces}"))
        self.assertEqual(
            self.logged, [(LogLevel.info, "Broker unblocked"), (LogLevel.warn, "Broker: odd {braces}")]
        )

    def test_a_stampede(self) -> None:
        """What comes by the hundred in a second is logged a few times and then counted, each kind for itself."""
        for number in range(10):
            self.console.handle(BrokerWarning(str(number)))
        self.console.handle(BrokerUnblocked())
        self.assertEqual(len(self.logged), 4)
        self.clock.advance(1)
        self.assertEqual(self.logged[4:], [(LogLevel.info, "… and 7 more: broker-warning")])
        self.console.handle(BrokerWarning("later"))
        self.assertEqual(self.logged[-1], (LogLevel.warn, "Broker: later"))

    def test_no_timer_when_nothing_happens(self) -> None:
        """A quiet console has nothing left to do."""
        self.console.handle(BrokerUnblocked())
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
