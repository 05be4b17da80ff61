"""Log observer for a file descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.log import StreamObserver, is_journal


def event(text: str, level: Any = LogLevel.info, namespace: str = "owsla", **values: Any) -> dict[str, Any]:
    return {"log_format": "{text}", "text": text, "log_level": level, "log_namespace": namespace, "log_time": 0.0, **values}


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reading, self.writing = os.pipe()
        self.addCleanup(os.close, self.reading)
        self.addCleanup(os.close, self.writing)

    def read(self) -> str:
        return os.read(self.reading, 65536).decode()

    def test_plain(self) -> None:
        """A line has twistd's format: time, namespace, level and text."""
        StreamObserver(self.writing)(event("It works", LogLevel.warn))
        self.assertRegex(self.read(), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[owsla#warn\] It works\n$")

    def test_traceback(self) -> None:
        """A traceback follows the message once, and its lines are indented."""
        try:
            raise ValueError("no")
        except ValueError:
            StreamObserver(self.writing)(event("It failed", LogLevel.critical, log_failure=Failure()))
        text = self.read()
        self.assertEqual(text.count("Traceback"), 1)
        self.assertTrue(all(line.startswith("\t") for line in text.splitlines()[1:]), text)

    def test_journal(self) -> None:
        """Each line for the journal has a priority, no time, and only the namespace below owsla."""
        observer = StreamObserver(self.writing, journal=True)
        for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical):
            observer(event("text", level))
        observer(event("text", namespace="owsla.worker-1"))
        observer(event("text", namespace="twisted.internet.base"))
        observer(event("text\nTraceback", LogLevel.critical, owsla_escaped=True))
        self.assertEqual(
            self.read(),
            "<7>text\n<6>text\n<4>text\n<3>text\n<2>text\n<6>[worker-1] text\n<6>[twisted.internet.base] text\n"
            "<2>text\n<2>\tTraceback\n",
        )

    def test_non_blocking(self) -> None:
        """A descriptor that another program has made non-blocking gets whole lines."""
        fcntl.fcntl(self.writing, fcntl.F_SETFL, fcntl.fcntl(self.writing, fcntl.F_GETFL) | os.O_NONBLOCK)
        StreamObserver(self.writing)(event("It works"))
        self.assertTrue(self.read().endswith("It works\n"))

    def test_torn(self) -> None:
        """The event after a line that was written in part begins a new line."""
        sizes: Iterator[int | OSError] = iter([5, OSError(errno.ENOSPC, "No space left on device")])
        write = os.write

        def full(descriptor: int, data: bytes) -> int:
            size = next(sizes, len(data))
            if isinstance(size, OSError):
                raise size
            return write(descriptor, data[:size])

        self.patch(os, "write", full)
        observer = StreamObserver(self.writing, journal=True)
        with self.assertRaises(OSError):
            observer(event("It fails"))
        observer(event("It works"))
        self.assertEqual(self.read(), "<6>It\n<6>It works\n")


class JournalTests(SynchronousTestCase):
    def test_recognised(self) -> None:
        """A descriptor is the journal if its device and inode are those of JOURNAL_STREAM."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        status = os.fstat(writing)
        self.assertTrue(is_journal(writing, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}))
        for other in ("", "x", "1:2", f"{status.st_dev}:", f"{status.st_dev}:{status.st_ino + 1}"):
            self.assertFalse(is_journal(writing, {"JOURNAL_STREAM": other}), other)
        self.assertFalse(is_journal(writing, {}))
        self.assertFalse(is_journal(-1, {"JOURNAL_STREAM": "1:2"}))
