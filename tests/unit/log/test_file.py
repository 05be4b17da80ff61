"""Log observer for the file of `twistd --logfile`."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.log._file import FileObserver, WholeLinesFile
from owsla.log._formats import json_line

from .test_formats import event


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "log"

    def open(self, **options: Any) -> Any:
        file = WholeLinesFile.fromFullPath(str(self.path), **options)
        self.addCleanup(file.close)
        return file

    def texts(self, path: Path | None = None) -> list[str]:
        return [json.loads(line)["text"] for line in (path or self.path).read_text().splitlines()]

    def test_appends(self) -> None:
        """Lines are appended to what is in the file."""
        for text in ("a", "b"):
            FileObserver(self.open(), json_line)(event(text))
        self.assertEqual(self.texts(), ["a", "b"])

    def test_rotate(self) -> None:
        """The file is rotated before the next line when that was asked for, once."""
        observer = FileObserver(self.open(), json_line)
        observer(event("a"))
        observer.rotate()
        self.assertEqual(self.texts(), ["a"])
        observer(event("b"))
        observer(event("c"))
        self.assertEqual((self.texts(), self.texts(self.path.with_name("log.1"))), (["b", "c"], ["a"]))

    def test_size(self) -> None:
        """The file is rotated at the size at which Twisted rotates."""
        file = self.open(rotateLength=10)
        for _ in range(3):
            file.write(b"12345\n")
        self.assertEqual((self.path.read_bytes(), self.path.with_name("log.1").read_bytes()), (b"12345\n", b"12345\n" * 2))

    def test_full_halfway(self) -> None:
        """A disk that is full in the middle of a line keeps no part of it, and later lines are whole."""
        file = self.open()
        file.write(b"one\n")

        class Full:
            def __init__(self, real: Any) -> None:
                self.real = real
                self.left = 3

            def write(self, data: bytes) -> int:
                if not self.left:
                    raise OSError(errno.ENOSPC, "No space left on device")
                written = self.real.write(data[: self.left])
                self.left = 0
                return int(written)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        real = file._file
        file._file = Full(real)
        self.assertRaises(OSError, file.write, b"two\n")
        file._file = real
        file.write(b"3\n")
        self.assertEqual(self.path.read_bytes(), b"one\n3\n")
