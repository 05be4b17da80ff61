"""A queue before observers that block."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from twisted.application.service import Application, Service
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.log import LoggedService, LogQueue

PATIENCE = 30.0


class Slow:
    """An observer that blocks until it is let go, and fails when told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.error: Exception | None = None
        self.texts: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.entered = threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.texts.append(event["log_text"])
        self.events.append(event)


class QueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.observer = Slow()
        self.queue = LogQueue([self.observer], limit=5000)
        self.log = Logger(namespace="owsla", observer=LogPublisher(self.queue))  # type: ignore[arg-type]
        self.addCleanup(self.observer.go.set)

    def test_never_blocks(self) -> None:
        """Logging returns while a write blocks; what waited is written in order."""
        for number in range(5):
            self.log.info("line {number}", number=number)
        self.assertEqual(self.observer.texts, [])
        self.assertFalse(self.queue.flush(0.01))
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, [f"line {number}" for number in range(5)])
        self.assertEqual(self.queue.lost, 0)

    def test_bounded(self) -> None:
        """What is too much is lost and counted, and a line in its place says how much it was."""
        for number in range(100):
            self.log.info("line {number}", number=number)
        lost = self.queue.lost
        self.assertGreater(lost, 80)
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.log.info("the next")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(
            self.observer.texts,
            [
                *(f"line {number}" for number in range(100 - lost)),
                f"The log has lost {lost} lines here: it is not read, or written too slowly",
                "the next",
            ],
        )
        self.assertEqual(self.queue.lost, lost)

    def test_cannot_be_written(self) -> None:
        """A disk that is full loses lines, which are counted; the first one that can be written again is told of them."""
        self.observer.go.set()
        self.observer.error = OSError(28, "No space left on device")
        for number in range(3):
            self.log.info("line {number}", number=number)
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual((self.queue.lost, self.observer.texts), (3, []))
        self.observer.error = None
        self.log.info("the next")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, ["The log has lost 3 lines here: no space left on device", "the next"])

    def test_broken_observer(self) -> None:
        """An observer of somebody else's that raises anything is no reason to end."""
        self.observer.go.set()
        self.observer.error = RuntimeError("a defect")
        self.log.info("line")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.observer.error = None
        self.log.info("the next")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts[0], "The log has lost 1 line here: RuntimeError: a defect")

    def test_text_is_fixed(self) -> None:
        """A line is what it was when it was logged, though it is written later."""
        devices = ["one"]
        self.log.info("{devices}", devices=devices)
        devices.clear()
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, ["['one']"])

    def test_failures(self) -> None:
        """A traceback is a part of the text; somebody else's observer gets the failure itself."""
        own = Slow()
        own.go.set()
        queue = LogQueue([own], keep_failures=True)
        self.observer.go.set()
        try:
            raise ValueError("no")
        except ValueError:
            for log in (self.log, Logger(observer=LogPublisher(queue))):  # type: ignore[arg-type]
                log.failure("It failed", Failure())
        self.assertTrue(self.queue.flush(PATIENCE) and queue.flush(PATIENCE))
        self.assertTrue(self.observer.texts[0].startswith("It failed\nTraceback"))
        self.assertNotIn("log_failure", self.observer.events[0])
        self.assertEqual(own.texts, ["It failed"])
        self.assertIsInstance(own.events[0]["log_failure"], Failure)


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.publisher: Any = LogPublisher()
        self.queue = LogQueue()
        self.observer = Slow()
        self.reactor: Any = MemoryReactorClock()

    def service(self, **options: Any) -> LoggedService:
        service = LoggedService(self.reactor, self.queue, publisher=self.publisher, **options)
        Service().setServiceParent(service)
        return service

    def test_instead_of_twistd(self) -> None:
        """Where twistd would log to standard output the application has this log, and twistd takes it."""
        application: Any = Application("owsla")
        self.service(replaces_twistd=True).setServiceParent(application)
        self.assertIs(ILogObserver(application), self.queue)

    def test_behind_the_queue(self) -> None:
        """Otherwise what twistd has installed is called behind the queue from the start of the service on."""
        self.publisher.addObserver(self.observer)
        application: Any = Application("owsla")
        service = self.service()
        service.setServiceParent(application)
        self.assertIsNone(application.getComponent(ILogObserver, None))
        service.startService()
        Logger(observer=self.publisher).info("a line")
        self.assertTrue(self.observer.entered.wait(PATIENCE))
        self.assertEqual(self.observer.texts, [])
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, ["a line"])

    def test_stopped(self) -> None:
        """A reactor that has stopped is a process that ends in order."""
        self.service().startService()
        statuses: list[int] = []
        self.patch(os, "_exit", statuses.append)
        self.patch(atexit, "register", lambda call: None)
        self.patch(self.queue, "flush", lambda: False)
        for call, args, kwargs in self.reactor.triggers["after"]["shutdown"]:
            call(*args, **kwargs)
        self.queue.end()
        self.assertEqual(statuses, [0])


class EndTests(SynchronousTestCase):
    def test_end(self) -> None:
        """At the end of the process what waits is written, or given up after a while. Then the status tells whether the process
        had stopped in order.
        """
        statuses: list[int] = []
        self.patch(os, "_exit", statuses.append)
        observer = Slow()
        queue = LogQueue([observer])
        queue.end()
        self.assertEqual(statuses, [])
        self.patch(queue, "flush", lambda: False)
        queue.end()
        self.assertEqual(statuses, [1])
        queue.stopped()
        queue.end()
        self.assertEqual(statuses, [1, 0])
