"""The file with the devices that may log in."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from owsla.dialects._devices_file import DevicesFile, read_tokens
from owsla.errors import ConfigError

KEPT = "until that is mended the devices that were in it before are known"


class ContentTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """A line for each device; the last of two for the same id holds. Tokens are bytes, ids text."""
        self.assertEqual(
            read_tokens("d1:one\nd2: two x \r\nd\u00e9:t\u00e9\nd1:three".encode() + b"\nd3:\xff\n"),
            {b"d1": b"three", b"d2": b" two x", "d\u00e9".encode(): "t\u00e9".encode(), b"d3": b"\xff"},
        )
        self.assertEqual(read_tokens(b""), {})

    def test_no_devices(self) -> None:
        """Blank lines, those that begin with #, whatever is in them, and a byte order mark do not count."""
        content = b"\xef\xbb\xbf# devices\n\n \t\n  # of: the: hall\n#\n#d1:one\n# K\xfcche\r\n\r\nd2:two\n\n"
        self.assertEqual(read_tokens(content), {b"d2": b"two"})

    def test_refused(self) -> None:
        """What is no such file is refused, with the line's number and without its text."""
        for content, reason in [
            (b"\x7fELF\0s3cret:\n", "it is not a text file"),
            ("d1:s3cret\n".encode("utf-16"), "it is not a text file"),
            (b"s3cret\n", "line 1: there is no colon in it"),
            (b"# devices\n\nd1:one\nd2 s3cret\n", "line 4: there is no colon in it"),
            (b"d1:one\nd2:s3:cret", "line 2: there is more than one colon in it"),
            (b"d1:one\nd2:s3cret:\n", "line 2: there is more than one colon in it"),
            (b":s3cret\n", "line 1: what is before the colon is no id"),
            (b"d 1:s3cret\n", "line 1: what is before the colon is no id"),
            (b"d\x1b1:s3cret\n", "line 1: what is before the colon is no id"),
            (b"\xff:s3cret\n", "line 1: what is before the colon is no id"),
            (b"x" * 256 + b":s3cret\n", "line 1: what is before the colon is no id"),
        ]:
            message = str(self.assertRaises(ConfigError, read_tokens, content))
            self.assertTrue(message.startswith(reason), message)
            self.assertNotIn("cret", message)
            self.assertEqual(len(message.splitlines()), 1)

    @given(st.binary(max_size=50) | st.text(":#\n d", max_size=20).map(str.encode))
    def test_any(self, content: bytes) -> None:
        """Any content is devices, or a `ConfigError`."""
        try:
            tokens = read_tokens(content)
        except ConfigError:
            return
        for name, token in tokens.items():
            self.assertIn(name + b":" + token, content)
            self.assertNotIn(b":", token)


class DevicesFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.path = Path(folder, "devices")
        self.clock = Clock()
        self.ticks = 0

    def write(self, content: bytes) -> None:
        """Write into the same file, at another time."""
        self.path.write_bytes(content)
        self.ticks += 1
        os.utime(self.path, ns=(0, 10**18 + self.ticks))

    def open(self, content: bytes) -> None:
        self.write(content)
        self.file = DevicesFile(self.path, self.clock.seconds)

    def known(self, *logins: bytes) -> tuple[list[bytes], list[str]]:
        """Which of these, as in `id token`, are let in; and what is said meanwhile."""
        found = []
        with capturedLogs() as logs:
            for login in logins:
                credentials: Any = UsernamePassword(*login.split(b" ", 1))
                try:
                    found.append(self.file.requestAvatarId(credentials))
                except UnauthorizedLogin:
                    pass
        return found, [f"{event['log_level'].name}: {formatEvent(event)}" for event in logs]

    def test_known(self) -> None:
        """Who has the token of its id, the whole of it, is let in; nobody else is, least of all without a token."""
        self.open(b"d1:one\nd2:\n")
        self.assertEqual(
            self.known(
                b"d1 one", b"d1 on", b"d1 onee", b"d1 ", b"d2 ", b"d2 two", b"d3 ", b"d3 one", b"d1 one:two", b"d1 \xff"
            ),
            ([b"d1"], []),
        )

    def test_start(self) -> None:
        """A file that cannot be used is refused at the start, with its name."""
        for content, reason in [(None, "no such file or directory"), (b"d1:one\nd2\n", "line 2: there is no colon in it")]:
            if content is not None:
                self.write(content)
            message = str(self.assertRaises(ConfigError, DevicesFile, self.path))
            self.assertTrue(message.startswith(f"{self.path}: {reason}"), message)

    def test_changed(self) -> None:
        """A change holds for the next login: of its time to the nanosecond, either way, or another file of that name."""
        self.open(b"d1:one\n")
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 one", b"d1 two"), ([b"d1"], []))
        self.write(b"d1:six\n")
        os.utime(self.path, ns=(0, 10**17))
        self.assertEqual(self.known(b"d1 two", b"d1 six"), ([b"d1"], []))
        status = self.path.stat()
        other = self.path.with_name("other")
        other.write_bytes(b"d1:ten\n")
        os.utime(other, ns=(0, status.st_mtime_ns))
        other.rename(self.path)
        self.assertEqual(self.known(b"d1 six", b"d1 ten"), ([b"d1"], []))

    def test_not_read_again(self) -> None:
        """A file that has not changed is not read for each login."""
        self.open(b"d1:one\n")
        reads: list[Path] = []
        read = Path.read_bytes

        def counted(path: Path) -> bytes:
            reads.append(path)
            return read(path)

        self.patch(Path, "read_bytes", counted)
        self.known(b"d1 one", b"d1 two", b"d2 one")
        self.assertEqual(reads, [])
        self.write(b"d1 one\n")
        self.known(b"d1 one", b"d1 one")
        self.assertEqual(reads, [self.path])

    def test_removed(self) -> None:
        """While there is no file the devices that were in it are known; that is told once. So is that it is there again."""
        self.open(b"d1:one\n")
        self.path.unlink()
        found, said = self.known(*[b"d1 one", b"d1 two"] * 50)
        self.assertEqual(found, [b"d1"] * 50)
        self.assertEqual(said, [f"warn: {self.path}: no such file or directory; {KEPT}"])
        self.clock.advance(3600.0)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], []))
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 one", b"d1 two"), ([b"d1"], [f"info: {self.path} is in use again"]))
        self.assertEqual(self.known(b"d1 two"), ([b"d1"], []))

    def test_back(self) -> None:
        """It is in use again, too, when it is moved back as it was."""
        self.open(b"d1:one\n")
        away = self.path.with_name("away")
        self.path.rename(away)
        self.known(b"d1 one")
        away.rename(self.path)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], [f"info: {self.path} is in use again"]))

    def test_not_readable(self) -> None:
        """The same with a file that is there and cannot be read: it is tried again for the next login."""
        self.open(b"d1:one\n")
        self.path.unlink()
        self.path.mkdir()
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], [f"warn: {self.path}: is a directory; {KEPT}"]))
        self.path.rmdir()
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 two")[0], [b"d1"])

    def test_spoilt(self) -> None:
        """A change to what is no such file is not taken, not even in part, and is told once."""
        self.open(b"d1:one\n")
        self.write(b"d1:two\nd2 s3cret\n")
        found, said = self.known(b"d1 one", b"d1 two", b"d1 one")
        self.assertEqual(found, [b"d1", b"d1"])
        self.assertEqual(said, [f"warn: {self.path}: line 2: there is no colon in it, as in id:token; {KEPT}"])
        self.clock.advance(3600.0)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], []))
        self.write(b"d1:two\nd2 s3cre\n")
        self.assertEqual(len(self.known(b"d1 one")[1]), 1)
        self.write(b"d1:two\nd2:s3cret\n")
        self.assertEqual(self.known(b"d1 one", b"d2 s3cret"), ([b"d2"], [f"info: {self.path} is in use again"]))

    def test_sparingly(self) -> None:
        """A file that comes and goes is a warning a minute at most; what was not told then is told if it lasts."""
        self.open(b"d1:one\n")
        warnings = 0
        for _ in range(30):
            self.path.unlink()
            warnings += sum(line.startswith("warn") for line in self.known(b"d1 one")[1])
            self.write(b"d1:one\n")
            self.known(b"d1 one")
            self.clock.advance(1.0)
        self.assertEqual(warnings, 1)
        self.write(b"d1\n")
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], []))
        self.clock.advance(30.0)
        self.assertEqual(len(self.known(b"d1 one")[1]), 1)

    def test_other_folder(self) -> None:
        """A file name is relative to the folder that Owsla was started in, also after it has gone to another."""
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        self.write(b"d1:one\n")
        os.chdir(self.path.parent)
        self.file = DevicesFile(Path("devices"), self.clock.seconds)
        os.chdir(before)
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 two"), ([b"d1"], []))
