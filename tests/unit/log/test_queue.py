"""Log queue in front of observers that block."""

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

from owsla.log import LoggingService, LogQueue

PATIENCE = 30.0


class Slow:
    """Observer that blocks until `go` is set, and then may fail."""

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
        """Logging returns while a write blocks, and the waiting events are written in order."""
        for number in range(5):
            self.log.info("line {number}", number=number)
        self.assertEqual(self.observer.texts, [])
        self.assertFalse(self.queue.flush(0.01))
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, [f"line {number}" for number in range(5)])
        self.assertEqual(self.queue.lost, 0)

    def test_bounded(self) -> None:
        """Events past the limit are lost and counted, and a line in their place reports their number."""
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
        """Lines lost to a full disk are counted, and reported before the first line that can be written again."""
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
        """Any exception of an observer is a lost line, and the queue goes on."""
        self.observer.go.set()
        self.observer.error = RuntimeError("a defect")
        self.log.info("line")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.observer.error = None
        self.log.info("the next")
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts[0], "The log has lost 1 line here: RuntimeError: a defect")

    def test_text_is_fixed(self) -> None:
        """A line is formatted when it is logged, not when it is written."""
        devices = ["one"]
        self.log.info("{devices}", devices=devices)
        devices.clear()
        self.observer.go.set()
        self.assertTrue(self.queue.flush(PATIENCE))
        self.assertEqual(self.observer.texts, ["['one']"])

    def test_failures(self) -> None:
        """A traceback is a part of the text. With keep_failures an observer gets the failure instead."""
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

    def service(self, **options: Any) -> LoggingService:
        service = LoggingService(self.reactor, self.queue, publisher=self.publisher, **options)
        Service().setServiceParent(service)
        return service

    def test_instead_of_twistd(self) -> None:
        """Where twistd would log to standard output, it takes this log from the application."""
        application: Any = Application("owsla")
        self.service(replaces_twistd=True).setServiceParent(application)
        self.assertIs(ILogObserver(application), self.queue)

    def test_behind_the_queue(self) -> None:
        """Otherwise the observers that twistd has installed move behind the queue at the start of the service."""
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
        """After a stop of the reactor the process ends with status 0."""
        self.service().startService()
        statuses: list[int] = []
        self.patch(os, "_exit", statuses.append)
        self.patch(atexit, "register", lambda call: None)
        self.patch(self.queue, "flush", lambda: False)
        for call, args, kwargs in self.reactor.triggers["after"]["shutdown"]:
            call(*args, **kwargs)
        self.queue.flush_or_exit()
        self.assertEqual(statuses, [0])


class EndTests(SynchronousTestCase):
    def test_end(self) -> None:
        """A flush at the end that takes too long ends the process: status 0 after a clean stop, 1 otherwise."""
        statuses: list[int] = []
        self.patch(os, "_exit", statuses.append)
        observer = Slow()
        queue = LogQueue([observer])
        queue.flush_or_exit()
        self.assertEqual(statuses, [])
        self.patch(queue, "flush", lambda: False)
        queue.flush_or_exit()
        self.assertEqual(statuses, [1])
        queue.note_clean_stop()
        queue.flush_or_exit()
        self.assertEqual(statuses, [1, 0])
