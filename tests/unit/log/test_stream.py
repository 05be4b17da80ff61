"""Log observer for a file descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.log import LineStream, StreamObserver, is_journal
from owsla.log._formats import journal_lines


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
        StreamObserver(LineStream(self.writing))(event("It works", LogLevel.warn))
        self.assertRegex(self.read(), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[owsla#warn\] It works\n$")

    def test_traceback(self) -> None:
        """A traceback follows the message once, and its lines are indented."""
        try:
            raise ValueError("no")
        except ValueError:
            StreamObserver(LineStream(self.writing))(event("It failed", LogLevel.critical, log_failure=Failure()))
        text = self.read()
        self.assertEqual(text.count("Traceback"), 1)
        self.assertTrue(all(line.startswith("\t") for line in text.splitlines()[1:]), text)

    def test_journal(self) -> None:
        """Each line for the journal has a priority, no time, and only the namespace below owsla."""
        observer = StreamObserver(LineStream(self.writing), journal_lines)
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
        StreamObserver(LineStream(self.writing))(event("It works"))
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
        observer = StreamObserver(LineStream(self.writing), journal_lines)
        with self.assertRaises(OSError):
            observer(event("It fails"))
        observer(event("It works"))
        self.assertEqual(self.read(), "<6>It\n<6>It works\n")

    def test_two_threads(self) -> None:
        """Lines of two threads are whole, though each write takes only a part of a line."""
        write = os.write

        def in_parts(descriptor: int, data: bytes) -> int:
            time.sleep(0)  # let the other thread run
            return write(descriptor, data[:7])

        self.patch(os, "write", in_parts)
        stream = LineStream(self.writing)

        def write_lines(text: str) -> None:
            for _ in range(100):
                stream.write(text)

        texts = "a" * 20 + "\n", "b" * 20 + "\n"
        threads = [threading.Thread(target=write_lines, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = self.read().splitlines(keepends=True)
        self.assertEqual((len(lines), set(lines)), (200, set(texts)))


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
