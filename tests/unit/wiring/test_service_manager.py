"""Reports of the process to its service manager."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla.events import NodeStarted
from owsla.http import ReloadReadings, Source, State
from owsla.http._state import Numbers, WorkerState
from owsla.runtime.systemd import NotifySocket
from owsla.wiring.service_manager import (
    EXTEND_EVERY,
    RETRY,
    START_WITHIN,
    STATUS_EVERY,
    STOP_MARGIN,
    UNSENT,
    ServiceManagerReports,
    describe,
    make_reports,
)

EXTENDS_START = f"EXTEND_TIMEOUT_USEC={int(START_WITHIN * 1e6)}"


class Manager(NotifySocket):
    """A service manager that notes what it is told, unless it is busy or away."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.busy = False
        self.away = False

    def send(self, *assignments: str) -> bool:
        if self.away:
            raise ConnectionRefusedError(111, "Connection refused")
        if not self.busy:
            self.told.append(" ".join(assignments))
        return not self.busy

    def take(self) -> list[str]:
        told, self.told = self.told, []
        return told


def warnings_of(test: SynchronousTestCase) -> list[str]:
    """Return the list of the lines that a test logs from now on."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    publisher: Any = globalLogPublisher
    publisher.addObserver(observe)
    test.addCleanup(publisher.removeObserver, observe)
    return lines


class ReportsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.manager = Manager()
        self.text = "1 device"
        self.reports = self.make()

    def make(self, watchdog: float | None = None) -> ServiceManagerReports:
        return ServiceManagerReports(
            self.clock,
            self.manager,
            watchdog,
            status=lambda opened: succeed(f"{self.text}, {opened}"),
            drain_timeout=lambda: 20.0,
            monotonic=lambda: 5_000_000_999 + int(self.clock.seconds() * 1e9),
        )

    def start(self, watchdog: float | None = None) -> None:
        """Start reports of a process that opens its doors."""
        self.reports = self.make(watchdog)
        self.reports.startService()
        self.addCleanup(self.reports.stopService)
        self.reports.opened()
        self.manager.take()

    def test_start(self) -> None:
        """READY=1 is sent once, when the doors open. Until then the time for the start is extended."""
        self.reports.startService()
        self.addCleanup(self.reports.stopService)
        self.assertEqual(self.manager.take(), [EXTENDS_START, "STATUS=1 device, False"])
        self.clock.pump([EXTEND_EVERY / 2] * 4)
        self.assertEqual(self.manager.take(), [EXTENDS_START, EXTENDS_START])
        self.reports.handle(NodeStarted("host", "all interfaces", 8883, 0, 1), "node", 0.0)
        self.assertEqual(self.manager.take(), ["READY=1", "STATUS=1 device, True"])
        self.reports.opened()
        self.clock.pump([EXTEND_EVERY] * 5)
        self.assertEqual(self.manager.take(), [])

    def test_times(self) -> None:
        """The extension of a start outlasts the time until the next one."""
        self.assertGreater(START_WITHIN, 2 * EXTEND_EVERY)

    def test_status(self) -> None:
        """The status is sent when it has changed, at most every few seconds, on one line."""
        self.start()
        self.text = "2\ndevices"
        self.assertEqual(self.manager.take(), [])
        self.clock.advance(STATUS_EVERY)
        self.assertEqual(self.manager.take(), ["STATUS=2\\ndevices, True"])
        self.clock.pump([STATUS_EVERY] * 3)
        self.assertEqual(self.manager.take(), [])

    def test_reload(self) -> None:
        """A reload is reported with the time of its request, and its end, successful or not."""
        for success in (True, False):
            self.start()
            reload: Deferred[bool] = Deferred()
            self.clock.advance(1.5)
            self.reports.reloading(reload)
            seconds = 5 + self.clock.seconds()
            self.assertEqual(self.manager.take(), [f"RELOADING=1 MONOTONIC_USEC={int(seconds * 1e6)}"])
            self.text = f"after a reload: {success}"
            reload.callback(success)
            self.assertEqual(self.manager.take(), ["READY=1", f"STATUS=after a reload: {success}, True"])

    def test_reloads_together(self) -> None:
        """Of requests during a reload each is reported, and the end only once after the last one."""
        self.start()
        first, second = Deferred[bool](), Deferred[bool]()
        self.reports.reloading(first)
        self.clock.advance(1)
        self.reports.reloading(second)
        first.callback(True)
        self.assertEqual(
            self.manager.take(), ["RELOADING=1 MONOTONIC_USEC=5000000", "RELOADING=1 MONOTONIC_USEC=6000000"]
        )
        second.callback(True)
        self.assertEqual(self.manager.take(), ["READY=1"])

    def test_reload_before_ready(self) -> None:
        """A reload before the doors are open is not reported: READY=1 after it would end the start."""
        self.reports.startService()
        self.addCleanup(self.reports.stopService)
        self.manager.take()
        reload = Deferred[bool]()
        self.reports.reloading(reload)
        reload.callback(True)
        self.assertEqual(self.manager.take(), [])
        self.reports.opened()
        self.assertEqual(self.manager.take()[0], "READY=1")

    def test_stop(self) -> None:
        """STOPPING=1 comes with the time that the stop may take, and nothing contradicts it afterwards."""
        self.start()
        reload = Deferred[bool]()
        self.reports.reloading(reload)
        self.manager.take()
        self.reports.stopping()
        stopping = f"STOPPING=1 EXTEND_TIMEOUT_USEC={int((20 + STOP_MARGIN) * 1e6)}"
        self.assertEqual(self.manager.take(), [stopping])
        reload.callback(False)
        self.reports.reloading(succeed(True))
        self.reports.stopping()
        self.text = "Stopping"
        self.clock.advance(0)
        self.assertEqual(self.manager.take(), ["STATUS=Stopping, True"])

    def test_stop_before_ready(self) -> None:
        """A process that stops before its doors are open is never ready."""
        self.reports.startService()
        self.addCleanup(self.reports.stopService)
        self.reports.stopping()
        self.manager.take()
        self.reports.opened()
        self.clock.pump([EXTEND_EVERY] * 3)
        self.assertEqual(self.manager.take(), [])

    def test_watchdog(self) -> None:
        """WATCHDOG=1 is sent at the start, and at half of the time of the watchdog."""
        reports = self.make(watchdog=3.0)
        reports.startService()
        self.addCleanup(reports.stopService)
        self.assertIn("WATCHDOG=1", self.manager.take())
        self.clock.advance(1.4)
        self.assertNotIn("WATCHDOG=1", self.manager.take())
        self.clock.advance(0.1)
        self.assertIn("WATCHDOG=1", self.manager.take())
        self.clock.pump([0.5] * 6)
        self.assertEqual(self.manager.take(), ["WATCHDOG=1", "WATCHDOG=1"])

    def test_stopped_service(self) -> None:
        """A service that was stopped reports nothing. Started again, it goes on."""
        self.start(watchdog=3.0)
        self.reports.stopService()
        self.clock.advance(60)
        self.assertEqual(self.manager.take(), [])
        self.reports.startService()
        self.assertEqual(self.manager.take(), ["WATCHDOG=1"])
        self.clock.advance(1.5)
        self.assertEqual(self.manager.take(), ["WATCHDOG=1"])

    def test_busy(self) -> None:
        """Changes of the state that the service manager cannot take are sent again, in order, but no other reports."""
        self.start(watchdog=3.0)
        self.manager.busy = True
        reload = Deferred[bool]()
        self.reports.reloading(reload)
        reload.callback(True)
        self.clock.pump([RETRY] * 10)
        self.reports.stopping()
        self.assertEqual(self.manager.take(), [])
        self.manager.busy = False
        self.clock.advance(RETRY)
        reloading, *rest = self.manager.take()
        self.assertTrue(reloading.startswith("RELOADING=1 "), reloading)
        self.assertEqual(rest[0], "READY=1")
        self.assertTrue(rest[1].startswith("STOPPING=1"), rest)
        self.assertEqual(rest[2:], [])

    def test_busy_for_long(self) -> None:
        """The latest reports are kept while the service manager takes none."""
        self.start()
        self.manager.busy = True
        for _ in range(UNSENT):
            self.reports.reloading(succeed(True))
        self.manager.busy = False
        self.clock.advance(RETRY)
        told = self.manager.take()
        self.assertEqual((len(told), told[-1]), (UNSENT, "READY=1"))

    def test_status_after_busy(self) -> None:
        """A status that could not be sent is sent with the next report of the status, also if it is the same."""
        self.start()
        self.manager.busy = True
        self.text = "2 devices"
        self.clock.advance(STATUS_EVERY)
        self.manager.busy = False
        self.clock.advance(STATUS_EVERY)
        self.assertEqual(self.manager.take(), ["STATUS=2 devices, True"])

    def test_unreachable(self) -> None:
        """A service manager that is away is one warning, and is told when it is back."""
        warnings = warnings_of(self)
        self.manager.away = True
        self.reports.startService()
        self.addCleanup(self.reports.stopService)
        self.reports.opened()
        self.clock.pump([RETRY] * 20)
        self.assertEqual(warnings, ["The service manager (NOTIFY_SOCKET) cannot be told: connection refused"])
        self.manager.away = False
        self.clock.advance(RETRY)
        self.assertEqual(self.manager.take(), ["READY=1"])


class FakeReactor(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.triggers: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, call: Any) -> None:
        self.triggers.append((phase, event, call))


class Reloads:
    successful = True
    success_time = 0.0


class MakeReportsTests(SynchronousTestCase):
    def make(self, reactor: FakeReactor, environ: dict[str, str], source: Any = None) -> ServiceManagerReports | None:
        return make_reports(
            reactor,
            cast(Source, source),
            doors=lambda: 2,
            reloads=cast(ReloadReadings, Reloads()),
            drain_timeout=lambda: 20.0,
            environ=environ,
        )

    def test_without_service_manager(self) -> None:
        """Without NOTIFY_SOCKET there are no reports. The variables of the watchdog are removed all the same."""
        environ = {"WATCHDOG_USEC": "1", "HOME": "/root"}
        self.assertIsNone(self.make(FakeReactor(), environ))
        self.assertEqual(environ, {"HOME": "/root"})

    def test_bad_address(self) -> None:
        """An address that cannot be used is a warning, and does not keep the gateway from starting."""
        warnings = warnings_of(self)
        self.assertIsNone(self.make(FakeReactor(), {"NOTIFY_SOCKET": "vsock:2:1"}))
        self.assertEqual(len(warnings), 1)
        self.assertIn("No reports to the service manager: NOTIFY_SOCKET: 'vsock:2:1'", warnings[0])

    def test_reports(self) -> None:
        """The reports are those of the source of the pages. The stop is reported before the reactor stops."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.settimeout(5)

            class Pages:
                def state(self) -> Deferred[State]:
                    return succeed(state(open=3))

            reactor = FakeReactor()
            environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
            reports = self.make(reactor, environ, Pages())
            assert reports is not None
            self.assertEqual(environ, {})
            reports.startService()
            self.addCleanup(reports._notify.close)
            self.addCleanup(reports.stopService)
            reports.opened()
            ((phase, event, call),) = reactor.triggers
            self.assertEqual((phase, event), ("before", "shutdown"))
            call()
            told = [manager.recv(4096).decode() for _ in range(6)]
            self.assertEqual(
                told,
                [
                    EXTENDS_START,
                    "STATUS=Starting: the doors are closed",
                    "WATCHDOG=1",
                    "READY=1",
                    "STATUS=Ready: 3 devices on 2 doors, 0 lines unconfirmed, broker connected",
                    f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((20 + STOP_MARGIN) * 1e6)}",
                ],
            )


def state(broker: bool = True, accepting: bool = True, draining: bool = False, **numbers: int) -> State:
    checks = {"broker_connected": broker, "listener_accepting": accepting, "not_draining": not draining}
    return State("node", checks, Numbers(**numbers), cast(Any, {}))


def state_of_parent(*says: State | None, draining: bool = False) -> State:
    workers = [WorkerState(f"worker-{number}", "ready", one) for number, one in enumerate(says, 1)]
    ready = any(one is not None and one.ready for one in says)
    numbers = sum((one.numbers for one in says if one is not None), Numbers())
    return State("", {"worker_ready": ready, "not_draining": not draining}, numbers, cast(Any, {}), workers)


class DescribeTests(SynchronousTestCase):
    def check(self, expected: str, state: State, doors: int = 1, opened: bool = True, reload_failed: bool = False) -> None:
        self.assertEqual(describe(state, doors, opened=opened, reload_failed=reload_failed), expected)

    def test_ready(self) -> None:
        """A ready process is described with its devices, its doors and unconfirmed lines."""
        self.check(
            "Ready: 1234 devices on 2 doors, 17 lines unconfirmed, broker connected",
            state(open=1234, unconfirmed=17),
            doors=2,
        )
        self.check("Ready: 1 device on 1 door, 1 line unconfirmed, broker connected", state(open=1, unconfirmed=1))

    def test_not_ready(self) -> None:
        """A process that is not ready is described with the reasons."""
        self.check(
            "Not ready: 3 devices on 1 door, 0 lines unconfirmed; the broker is not connected", state(broker=False, open=3)
        )
        self.check(
            "Not ready: 3 devices on 1 door, 0 lines unconfirmed, broker connected; no devices are accepted",
            state(accepting=False, open=3),
        )

    def test_start(self) -> None:
        """Before the doors are open, the description says whether the process waits for the broker."""
        closed = state(broker=False, accepting=False)
        self.check("Waiting for the broker: the door is closed", closed, opened=False)
        self.check("Waiting for the broker: the doors are closed", closed, doors=2, opened=False)
        self.check("Starting: the door is closed", state(accepting=False), opened=False)

    def test_start_with_workers(self) -> None:
        """A parent waits for the broker while all workers that answer do."""
        closed = state(broker=False, accepting=False)
        self.check("Starting: the door is closed", state_of_parent(None, None), opened=False)
        self.check("Waiting for the broker: the door is closed", state_of_parent(closed, None), opened=False)
        self.check("Starting: the door is closed", state_of_parent(closed, state(accepting=False)), opened=False)

    def test_workers(self) -> None:
        """With workers it says how many are ready."""
        self.check(
            "Ready: 5 devices on 2 doors and 1 of 2 workers, 0 lines unconfirmed",
            state_of_parent(state(open=5), None),
            doors=2,
        )
        self.check(
            "Not ready: 0 devices on 1 door and 0 of 1 worker, 0 lines unconfirmed; no worker is ready", state_of_parent(None)
        )

    def test_stop(self) -> None:
        """While it stops, the description says what is left."""
        self.check(
            "Stopping: 3 devices on 1 door, 2 lines unconfirmed", state(draining=True, open=3, unconfirmed=2), opened=False
        )

    def test_failed_reload(self) -> None:
        """A failed reload is in the description until one succeeds."""
        self.check(
            "Ready: 0 devices on 1 door, 0 lines unconfirmed, broker connected; the last reload failed",
            state(),
            reload_failed=True,
        )
