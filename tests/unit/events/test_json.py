"""Events in a file: whole lines, whatever happens to it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from owsla.events import BrokerWarning, JSONStreamWriter, JSONWriter, Record, Trouble, UnknownEvent
from owsla.log import LineStream

from .doubles import NODE, NOW, connected, free_path


def warnings(*texts: str) -> list[Record]:
    return [Record(NODE, number, NOW, BrokerWarning(text)) for number, text in enumerate(texts, 1)]


@contextmanager
def disk_of(room: int) -> Iterator[None]:
    """Let writes take this number of bytes together, as on a disk that becomes full."""
    real = os.write

    def write(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, data[:room])
        room -= written
        return written

    with patch.object(os, "write", write):
        yield


class JSONTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = free_path(self)
        self.writer = JSONWriter(self.path)
        self.addCleanup(self.writer.close)

    def lines(self, path: Path | None = None) -> list[dict[str, Any]]:
        text = (path or self.path).read_text()
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    def texts(self, path: Path | None = None) -> list[str]:
        return [line["text"] for line in self.lines(path)]

    def test_a_line(self) -> None:
        """An event is one flat object on one line: what all have first, then its own fields."""
        self.writer.write([Record(NODE, 7, NOW, connected("a", "x\n\u00e9\ud800"))])
        (line,) = self.lines()
        self.assertEqual(list(line)[:5], ["time", "node", "number", "event", "warning"])
        self.assertEqual(
            line,
            {
                "time": "1970-01-01T00:16:40.250000Z",
                "node": "0123abcd",
                "number": 7,
                "event": "device-connected",
                "warning": False,
                "connection_id": "a",
                "device_id": "x\n\u00e9\ud800",
                "peer": "192.0.2.1:1234",
                "tls": "TLSv1.3",
                "door": "default",
                "since": None,
            },
        )

    def test_several_nodes(self) -> None:
        """Each event names its own node; an event that is not known here is written as it was sent."""
        new = UnknownEvent("new-thing", True, "New: 5", {"count": 5, "what": ["a", {"b": None}]})
        self.writer.write([Record("a", 1, NOW, BrokerWarning("x")), Record("b", 1, NOW, new)])
        first, second = self.lines()
        self.assertEqual((first["node"], second["node"]), ("a", "b"))
        self.assertEqual(
            {key: second[key] for key in second if key not in ("time", "node", "number")},
            {"event": "new-thing", "warning": True, "count": 5, "what": ["a", {"b": None}]},
        )

    def test_appends(self) -> None:
        """What is in the file stays; nobody else on the machine can read it."""
        self.writer.write(warnings("a"))
        again = JSONWriter(self.path)
        again.write(warnings("b"))
        again.close()
        self.assertEqual(self.texts(), ["a", "b"])
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode) & 0o007, 0)

    def test_rotated(self) -> None:
        """After a rename it writes to the old file until it is told to open it again; then to a new one."""
        old = free_path(self)
        self.writer.write(warnings("a"))
        self.path.rename(old)
        self.writer.write(warnings("b"))
        self.writer.reopen()
        self.writer.write(warnings("c"))
        self.assertEqual((self.texts(old), self.texts()), (["a", "b"], ["c"]))

    def test_a_missing_folder(self) -> None:
        """It is trouble, and over when the folder is there."""
        path = self.path / "events.json"
        writer = JSONWriter(path)
        self.addCleanup(writer.close)
        with self.assertRaises(Trouble) as caught:
            writer.write(warnings("a"))
        self.assertEqual(str(caught.exception), f"{path}: no such file or directory")
        self.path.mkdir()
        writer.write(warnings("a"))
        self.assertEqual(self.texts(path), ["a"])

    def test_a_full_disk(self) -> None:
        """It is trouble."""
        writer = JSONWriter(Path("/dev/full"))
        with self.assertRaises(Trouble) as caught:
            writer.write(warnings("a"))
        self.assertEqual(str(caught.exception), "/dev/full: no space left on device")

    def test_full_halfway(self) -> None:
        """What was written of a batch when the disk was full is taken back: the batch comes again, and lines stay whole."""
        self.writer.write(warnings("a"))
        with disk_of(20), self.assertRaises(Trouble):
            self.writer.write(warnings("b"))
        self.assertEqual(self.texts(), ["a"])
        self.writer.write(warnings("b"))
        self.assertEqual(self.texts(), ["a", "b"])

    def test_several_processes(self) -> None:
        """Workers that write to one file write their batches one after the other."""
        self.writer.write(warnings("a"))
        thread = threading.Thread(target=self.writer.write, args=(warnings("b"),))
        with self.path.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            thread.start()
            thread.join(0.1)
            self.assertEqual(self.texts(), ["a"])
        thread.join(10)
        self.assertEqual(self.texts(), ["a", "b"])

    def test_after_a_crash(self) -> None:
        """The half of a line that a crash has left does not spoil the next one."""
        self.path.write_text('{"time": "19')
        self.writer.write(warnings("a"))
        self.assertEqual(json.loads(self.path.read_text().splitlines()[1])["text"], "a")


class StreamTests(SynchronousTestCase):
    """Events on standard output."""

    def setUp(self) -> None:
        self.path = free_path(self)
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        self.addCleanup(os.close, self.file)
        self.writer = JSONStreamWriter(LineStream(self.file))

    def test_lines(self) -> None:
        """Each event is a line, as in a file. Neither a reopening nor the end of the handler closes standard output."""
        self.writer.write(warnings("a", "b"))
        self.writer.reopen()
        self.writer.close()
        self.writer.write(warnings("c"))
        self.assertEqual([json.loads(line)["text"] for line in self.path.read_text().splitlines()], ["a", "b", "c"])

    def test_fails_in_between(self) -> None:
        """After trouble in the middle of a batch only the rest is written; a torn line is written again, on a new line."""
        batch = warnings(*"abc")
        with disk_of(200), self.assertRaises(Trouble) as caught:
            self.writer.write(batch)
        self.assertEqual(str(caught.exception), "standard output: no space left on device")
        self.writer.write(batch)
        self.writer.write(warnings("d"))
        first, torn, *rest = self.path.read_text().splitlines()
        self.assertEqual([json.loads(line)["text"] for line in (first, *rest)], list("abcd"))
        self.assertTrue(rest[0].startswith(torn))
