"""Signals, and the pid file of a killed process."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.process import (
    OrderlyStop,
    install_signal_handlers,
    install_worker_signal_handlers,
    name_passed_sockets,
    pid_file_fault,
    remove_own_pid_file,
)


class Reactor:
    """A reactor whose start a test triggers."""

    def __init__(self) -> None:
        self.starting: list[Callable[[], None]] = []
        self.stopped = 0

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.starting.append(call)

    def callFromThread(self, call: Callable[..., None], *args: Any) -> None:
        call(*args)

    def stop(self) -> None:
        if self.stopped:
            raise ReactorNotRunning
        self.stopped += 1


class SignalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.reactor = Reactor()
        self.hurried = 0
        self.reloaded: list[int] = []
        self.replaced: list[int] = []
        self.stop = OrderlyStop(self.reactor, hurry=self.hurry, within=lambda: 30.0)
        install_signal_handlers(
            self.reactor,
            self.stop,
            reload=lambda: self.reloaded.append(1),
            replace=lambda: self.replaced.append(1),
        )

    def hurry(self) -> None:
        self.hurried += 1

    def get(self, number: int) -> None:
        self.handlers[number](number, None)

    def test_once_the_reactor_runs(self) -> None:
        """Handlers are installed when the reactor runs, since its own handlers would replace earlier ones."""
        self.assertEqual(self.handlers, {})
        for call in self.reactor.starting:
            call()
        self.assertEqual(set(self.handlers), {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})

    def test_hangup(self) -> None:
        """SIGHUP reloads the configuration and the files of events, and stops nothing."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGHUP)
        self.assertEqual((self.reloaded, self.reactor.stopped), ([1], 0))

    def test_replace(self) -> None:
        """SIGUSR2 replaces workers, and stops nothing."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGUSR2)
        self.assertEqual((self.replaced, self.reactor.stopped), ([1], 0))

    def test_in_order_then_at_once(self) -> None:
        """The first signal stops the process in order, and each later one of either kind at once."""
        for call in self.reactor.starting:
            call()
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)
        self.get(signal.SIGTERM)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 0))
        self.assertEqual(lines, ["Received SIGTERM: stopping in order within 30 s; a second signal stops at once"])
        self.get(signal.SIGINT)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 1))

    def test_requested(self) -> None:
        """An operator stops the process in order, once. A signal after that is the first one, which a service manager sends in
        any case; the next one stops the process at once."""
        for call in self.reactor.starting:
            call()
        self.assertTrue(self.stop.request())
        self.assertFalse(self.stop.request())
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 0))
        self.get(signal.SIGTERM)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 0))
        self.get(signal.SIGTERM)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 1))

    def test_requested_late(self) -> None:
        """A request while the process stops changes nothing."""
        for call in self.reactor.starting:
            call()
        self.get(signal.SIGTERM)
        self.assertFalse(self.stop.request())
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 0))

    def test_while_it_stops_already(self) -> None:
        """A signal while the process stops for another reason, such as a supervisor that gave up, stops it at once."""
        for call in self.reactor.starting:
            call()
        self.reactor.stop()
        self.get(signal.SIGTERM)
        self.assertEqual((self.reactor.stopped, self.hurried), (1, 1))


class PidFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = f"{folder}/twistd.pid"

    def left(self, content: str) -> bool:
        """Return whether a pid file with this content is still there afterwards."""
        Path(self.path).write_text(content)
        remove_own_pid_file(self.path)
        return Path(self.path).exists()

    def test_own(self) -> None:
        """A file with the id of this process cannot be another server's: it is removed."""
        self.assertFalse(self.left(f"{os.getpid()}\n"))

    def test_not_own(self) -> None:
        """Any other file stays, and twistd deals with it."""
        for content in (str(os.getppid()), "", "nonsense"):
            self.assertTrue(self.left(content), content)

    def test_none(self) -> None:
        """A missing file is not an error."""
        remove_own_pid_file(self.path)


    def test_can_be_written(self) -> None:
        """A file that can be written is neither left behind nor changed."""
        self.assertEqual(pid_file_fault(self.path), "")
        self.assertFalse(Path(self.path).exists())
        Path(self.path).write_text("1")
        self.assertEqual(pid_file_fault(self.path), "")
        self.assertEqual(Path(self.path).read_text(), "1")

    def test_symbolic_link(self) -> None:
        """A symbolic link to a missing file stays, and that file stays missing: twistd rejects an empty one."""
        target = Path(f"{self.path}.target")
        Path(self.path).symlink_to(target.name)
        self.assertEqual(pid_file_fault(self.path), "")
        self.assertEqual((Path(self.path).is_symlink(), target.exists()), (True, False))

    def test_cannot_be_written(self) -> None:
        """The reason is the system's."""
        self.assertEqual(pid_file_fault(f"{self.path}/missing/x"), "no such file or directory")
        self.assertEqual(pid_file_fault(str(Path(self.path).parent)), "is a directory")
        os.mkfifo(self.path)
        self.assertEqual(pid_file_fault(self.path), "no such device or address")


class WorkerSignalTests(SynchronousTestCase):
    def test_taken(self) -> None:
        """A worker stops on SIGTERM, and ignores the signals that a terminal sends to its parent as well."""
        handlers: dict[int, Any] = {}
        self.patch(signal, "signal", handlers.__setitem__)
        reactor = Reactor()
        stops: list[int] = []
        install_worker_signal_handlers(reactor, stop=lambda: stops.append(1))
        self.assertEqual(handlers, {})
        for call in reactor.starting:
            call()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            self.assertEqual(handlers[number], signal.SIG_IGN)
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(stops, [1])


class NamePassedSocketsTests(SynchronousTestCase):
    def test_without_names(self) -> None:
        """Sockets that were passed without names are named `unknown`."""
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
        name_passed_sockets(environ)
        self.assertEqual(environ["LISTEN_FDNAMES"], "unknown:unknown")

    def test_unchanged(self) -> None:
        """Nothing is changed for sockets with names, for those of another process, and without sockets."""
        for environ in (
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "default"},
            {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1"},
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
            {},
        ):
            before = dict(environ)
            name_passed_sockets(environ)
            self.assertEqual(environ, before)
