"""From `--events` to handlers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, cast
from unittest import skipUnless
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.events import (
    BrokerUnblocked,
    ChildRestarted,
    DuplicatesDropped,
    DuplicatesWatch,
    Event,
    SupervisorGaveUp,
    check_handlers,
    handler_spec,
    handlers_from,
    supervision_event,
)
from owsla.supervision import GaveUp, RestartReport

from .doubles import NODE, Recorder, Supervised, free_path, manager

try:
    importlib.import_module("psycopg")
    PSYCOPG = True
except ImportError:
    PSYCOPG = False


class SpecTests(SynchronousTestCase):
    def test_good_ones(self) -> None:
        """What there is, and how it reads in a log."""
        for text, kind, path in (
            ("console", "console", None),
            ("amqp", "amqp", None),
            ("json:events.json", "json", Path("events.json")),
            ("json:-", "json", None),
            ("json:/var/log/a:b.json", "json", Path("/var/log/a:b.json")),
            ("database:events.db", "database", Path("events.db")),
            ("database:/var/lib/events.db", "database", Path("/var/lib/events.db")),
            ("database:sqlite:///var/lib/e%20v.db", "database", Path("/var/lib/e v.db")),
            ("database:sqlite:////var/lib/events.db", "database", Path("//var/lib/events.db")),
            ("database:sqlite:events.db", "database", Path("events.db")),
            ("json:./u:x@y.json", "json", Path("u:x@y.json")),
            ("database:C:events.db", "database", Path("C:events.db")),
        ):
            spec = handler_spec(text)
            self.assertEqual((spec.kind, spec.path, spec.url), (kind, path, None), text)
        self.assertEqual(str(handler_spec("json:a.json")), "json:a.json")

    def test_bad_ones(self) -> None:
        """Each is one line that says what is wrong, without a URL in it."""
        for text, says in (
            ("", "not an event handler"),
            ("konsole", "'konsole' is not an event handler (console, json:FILE, json:-, database:URL, amqp)"),
            ("console:x", "console takes no value after a colon"),
            ("amqp://guest:secret@host", "amqp takes no value after a colon"),
            ("json", "json needs a file"),
            ("json:", "json needs a file"),
            ("database", "database needs a file or a URL"),
            ("database:", "database needs a file or a URL"),
            ("database:sqlite:", "SQLite needs a file"),
            ("database:sqlite:///", "SQLite needs a file"),
            ("database:sqlite://host/events.db", "SQLite has no host"),
            ("database:mysql://u:secret@h/d", "mysql is not a supported database"),
            ("postgresql://u:secret@h/d", "a database is written database:postgresql:"),
            ("u:secret@h", "'u' is not an event handler"),
            ("/secret@h", "this is not an event handler"),
            ("database:postgresql:/u:secret@h/d", "looks like a mistyped URL"),
            ("database:postgresql//u:secret@h/d", "looks like a mistyped URL"),
            ("database:postgresql:u:secret@h/d", "looks like a mistyped URL"),
            ("database:postgers:u:secret@h/d", "looks like a mistyped URL"),
            ("database://u:secret@h/d", "looks like a mistyped URL"),
            ("database:u:secret@h/d", "looks like a mistyped URL"),
            ("json:postgresql://u:secret@h/d", "looks like a mistyped URL"),
            ("json:u:secret@h", "looks like a mistyped URL"),
            ("databse//u.secret", "this is not an event handler"),
        ):
            with self.assertRaises(ConfigError) as caught:
                handler_spec(text)
            said = str(caught.exception)
            self.assertIn(says, said)
            self.assertNotIn("secret", said)
            self.assertNotIn("\n", said)

    def test_twice(self) -> None:
        """One that is given twice is refused."""
        check_handlers([handler_spec(text) for text in ("console", "json:a", "json:b")])
        with self.assertRaises(ConfigError):
            check_handlers([handler_spec(text) for text in ("json:a", "console", "json:a")])

    @skipUnless(PSYCOPG, "psycopg is not installed")
    def test_postgresql(self) -> None:
        """A password is in no text of it; what cannot be read is not quoted."""
        for text, where in (
            ("postgresql://me:s3cret@db.example:5433/events", "db.example:5433/events"),
            ("postgres://db.example/events?user=me&password=s3cret", "db.example/events"),
            ("postgresql:///events", "the local server/events"),
        ):
            spec = handler_spec(f"database:{text}")
            self.assertEqual(str(spec), f"database:{where}")
            self.assertNotIn("s3cret", repr(spec) + str(spec))
            self.assertEqual(spec.url, text)
        with self.assertRaises(ConfigError) as caught:
            handler_spec("database:postgresql://me:s3cret@host/db?s3cret=s3cret")
        self.assertNotIn("s3cret", str(caught.exception))

    def test_without_psycopg(self) -> None:
        """Where psycopg is not installed it is said what to install."""
        real = importlib.import_module

        def without(name: str, package: str | None = None) -> Any:
            if name.startswith("psycopg"):
                raise ImportError(name)
            return real(name, package)

        with patch.object(importlib, "import_module", without), self.assertRaises(ConfigError) as caught:
            handler_spec("database:postgresql://me:s3cret@host/db")
        self.assertEqual(str(caught.exception), "PostgreSQL needs psycopg: pip install 'owsla[postgresql]'")


class HandlersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.clock.callFromThread = lambda f, *args, **more: f(*args, **more)
        self.manager = manager()

    def test_children(self) -> None:
        """One child each, in order, with names of their own that can stand in a tree."""
        specs = [handler_spec(text) for text in ("json:a", "console", "json:b", "database:c", "amqp")]
        children = handlers_from(specs, self.clock, self.manager, presence=Recorder())
        self.assertEqual([child.id for child in children], ["json", "console", "json-2", "database", "amqp"])

    def test_a_console(self) -> None:
        """Each start makes a new service; the handler is told of events from then on."""
        (child,) = handlers_from([handler_spec("console")], self.clock, self.manager)
        service = child.start()
        self.assertIsNot(service, child.start())
        service.startService()
        self.manager.emit(BrokerUnblocked())
        self.clock.advance(0)
        self.assertEqual(self.manager.stats("console").handled, 1)
        service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_file(self) -> None:
        """A file gets its events by way of its thread, all of them before the stop is over."""
        path = free_path(self)
        spec = handler_spec(f"json:{path}")
        (child,) = handlers_from([spec], self.clock, self.manager)
        service = child.start()
        service.startService()
        self.manager.emit(BrokerUnblocked())
        stopped = service.stopService()
        outbox: Any = service._handler
        outbox._thread.join(10)
        self.successResultOf(stopped)
        self.assertEqual(
            json.loads(path.read_text()),
            {"time": "1970-01-01T00:16:40.250000Z", "node": NODE, "number": 1, "event": "broker-unblocked", "warning": False},
        )

    def test_presence_without_its_role(self) -> None:
        """Forgetting to make what announces presence is a defect, not a quiet omission."""
        (child,) = handlers_from([handler_spec("amqp")], self.clock, self.manager)
        with self.assertRaises(ValueError):
            child.start()


class SupervisionTests(SynchronousTestCase):
    def test_reports(self) -> None:
        """A supervisor's reports become events."""
        self.assertEqual(
            supervision_event(RestartReport("owsla/http", "E: x", 2, 0.5, ("a",))),
            ChildRestarted("owsla/http", "E: x", 2, 0.5, ("a",)),
        )
        gave_up = GaveUp("owsla/events", "json", failures=4, of_child=3, restarts=3, period=60.0, reason="E: x")
        self.assertEqual(supervision_event(gave_up), SupervisorGaveUp("owsla/events", "json", 4, 60.0, "E: x"))


class DuplicatesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = cast("Any", Clock())
        self.events: list[Event] = []
        self.count = 3
        self.watch = DuplicatesWatch(self.clock, self.events.append, lambda: self.count)

    def test_now_and_then(self) -> None:
        """Every ten seconds it tells how many more there are, if any; and at the end."""
        self.watch.startService()
        self.count = 5
        self.clock.advance(10)
        self.clock.advance(10)
        self.count = 6
        self.watch.stopService()
        self.assertEqual(self.events, [DuplicatesDropped(2), DuplicatesDropped(1)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failing(self) -> None:
        """What goes wrong in its timer reaches its supervisor."""
        report = Supervised()
        self.watch.supervise(report)
        self.watch.startService()
        self.watch._count = lambda: 1 // 0
        self.clock.advance(10)
        self.assertEqual([type(reason) for reason in report.reports], [ZeroDivisionError])
