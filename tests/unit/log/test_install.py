"""Choice of the observer of the log."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.log import LoggingService, install_log
from owsla.log._file import FileObserver

PATIENCE = 30.0


class InstallTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.patch(atexit, "register", lambda call: None)
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def install(self, twistd: dict[str, Any] | None, log_format: Any = "json") -> LoggingService:
        service = install_log(MemoryReactorClock(), twistd, log_format)
        for observer in service.log._observers:
            if isinstance(observer, FileObserver):
                self.addCleanup(observer._file.close)
        return service

    def test_twistd_writes(self) -> None:
        """In the text format the log files of twistd are its own."""
        path = str(self.folder / "x")
        for options in (None, {"logfile": path}, {"nodaemon": 1, "logfile": path}, {"nodaemon": 1, "syslog": 1}):
            self.assertFalse(self.install(options, "text").replaces_twistd, options)
        self.assertTrue(self.install({"nodaemon": 1}, "text").replaces_twistd)

    def test_refused(self) -> None:
        """JSON is refused where twistd writes the lines, and so is a file that cannot be opened."""
        path = f"{self.folder}/missing/log"
        for options, says in (
            (None, "--log-format json: not with a .tac file; start `twistd owsla`"),
            ({"nodaemon": 1, "syslog": 1}, "--log-format json: not with twistd --syslog, which has a format of its own"),
            ({"nodaemon": 1, "logger": "x"}, "--log-format json: not with twistd --logger, which has a format of its own"),
            ({"logfile": "-"}, "twistd --logfile=-: only with twistd -n; a daemon has no standard output"),
            ({"nodaemon": 1, "logfile": path}, f"twistd --logfile={path}: no such file or directory"),
        ):
            self.assertEqual(str(self.assertRaises(ConfigError, self.install, options)), says)
        error = self.assertRaises(ConfigError, self.install, {"logfile": path}, "text")  # twistd would end with a traceback
        self.assertEqual(str(error), f"twistd --logfile={path}: no such file or directory")

    def test_daemon(self) -> None:
        """A daemon has no standard output, and begins to write when the service starts: a thread would not survive the fork."""
        path = self.folder / "log"
        service = self.install({"logfile": str(path)})
        self.assertIsNone(service.stdout)
        publisher: Any = LogPublisher(service.log)  # type: ignore[arg-type]
        Logger(observer=publisher).info("before the fork")
        self.assertIsNone(service.log._thread)
        service.log.start()
        self.assertTrue(service.log.flush(PATIENCE))
        self.assertEqual(json.loads(path.read_text())["text"], "before the fork")

    def test_failed_daemon(self) -> None:
        """A daemon that ends before its service has started writes its log."""
        path = self.folder / "log"
        service = self.install({"logfile": str(path)})
        Logger(observer=LogPublisher(service.log)).info("It cannot start")  # type: ignore[arg-type]
        service.log.flush_or_exit()
        self.assertEqual(json.loads(path.read_text())["text"], "It cannot start")

    def test_usr1(self) -> None:
        """SIGUSR1 rotates the JSON file of the log, as it does with twistd's own."""
        path = self.folder / "log"
        service = self.install({"nodaemon": 1, "logfile": str(path)})
        log = Logger(observer=LogPublisher(service.log))  # type: ignore[arg-type]
        log.info("one")
        self.assertTrue(service.log.flush(PATIENCE))
        os.kill(os.getpid(), signal.SIGUSR1)
        log.info("two")
        self.assertTrue(service.log.flush(PATIENCE))
        self.assertEqual(json.loads(path.read_text())["text"], "two")
        self.assertEqual(json.loads(path.with_name("log.1").read_text())["text"], "one")

    def test_closed(self) -> None:
        """A standard output that was closed at the start is not descriptor 1, which may be a socket by now."""
        self.patch(sys, "stdout", None)
        stdout = self.install({"nodaemon": 1}).stdout
        assert stdout is not None
        self.assertRaises(OSError, stdout.write, "x\n")
