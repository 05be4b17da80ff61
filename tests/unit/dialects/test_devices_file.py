"""The file with device ids and tokens."""

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

KEPT = "its previous content applies until the file is corrected"


class ContentTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """Each device has a line. The last one for an id counts. Tokens are bytes, ids are text."""
        self.assertEqual(
            read_tokens("d1:one\nd2: two x \r\nd\u00e9:t\u00e9\nd1:three".encode() + b"\nd3:\xff\n"),
            {b"d1": b"three", b"d2": b" two x", "d\u00e9".encode(): "t\u00e9".encode(), b"d3": b"\xff"},
        )
        self.assertEqual(read_tokens(b""), {})

    def test_no_devices(self) -> None:
        """Blank lines, lines that begin with #, and a byte order mark are ignored."""
        content = b"\xef\xbb\xbf# devices\n\n \t\n  # of: the: hall\n#\n#d1:one\n# K\xfcche\r\n\r\nd2:two\n\n"
        self.assertEqual(read_tokens(content), {b"d2": b"two"})

    def test_refused(self) -> None:
        """A wrong line is an error with its number, without its text."""
        for content, reason in [
            (b"\x7fELF\0s3cret:\n", "this is not a text file"),
            ("d1:s3cret\n".encode("utf-16"), "this is not a text file"),
            (b"s3cret\n", "line 1: the colon is missing"),
            (b"# devices\n\nd1:one\nd2 s3cret\n", "line 4: the colon is missing"),
            (b"d1:one\nd2:s3:cret", "line 2: there is more than one colon"),
            (b"d1:one\nd2:s3cret:\n", "line 2: there is more than one colon"),
            (b":s3cret\n", "line 1: the id before the colon must be"),
            (b"d 1:s3cret\n", "line 1: the id before the colon must be"),
            (b"d\x1b1:s3cret\n", "line 1: the id before the colon must be"),
            (b"\xff:s3cret\n", "line 1: the id before the colon must be"),
            (b"x" * 256 + b":s3cret\n", "line 1: the id before the colon must be"),
        ]:
            message = str(self.assertRaises(ConfigError, read_tokens, content))
            self.assertTrue(message.startswith(reason), message)
            self.assertNotIn("cret", message)
            self.assertEqual(len(message.splitlines()), 1)

    @given(st.binary(max_size=50) | st.text(":#\n d", max_size=20).map(str.encode))
    def test_any(self, content: bytes) -> None:
        """Any content is read, or is a `ConfigError`."""
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
        """Write into the same file, with a new modification time."""
        self.path.write_bytes(content)
        self.ticks += 1
        os.utime(self.path, ns=(0, 10**18 + self.ticks))

    def open(self, content: bytes) -> None:
        self.write(content)
        self.file = DevicesFile(self.path, self.clock.seconds)

    def known(self, *logins: bytes) -> tuple[list[bytes], list[str]]:
        """Return the ids that can log in, of texts such as `id token`, and the log lines."""
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
        """A device with the whole token of its id can log in. An empty token never works."""
        self.open(b"d1:one\nd2:\n")
        self.assertEqual(
            self.known(
                b"d1 one", b"d1 on", b"d1 onee", b"d1 ", b"d2 ", b"d2 two", b"d3 ", b"d3 one", b"d1 one:two", b"d1 \xff"
            ),
            ([b"d1"], []),
        )

    def test_start(self) -> None:
        """A file that cannot be used is an error at the start, with its name."""
        for content, reason in [(None, "no such file or directory"), (b"d1:one\nd2\n", "line 2: the colon is missing")]:
            if content is not None:
                self.write(content)
            message = str(self.assertRaises(ConfigError, DevicesFile, self.path))
            self.assertTrue(message.startswith(f"{self.path}: {reason}"), message)

    def test_changed(self) -> None:
        """A change applies to the next login: another modification time, or another file of that name."""
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
        """While the file is missing, its last content applies. One line says so, and one that it is back."""
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
        """A file that is moved back unchanged is in use again."""
        self.open(b"d1:one\n")
        away = self.path.with_name("away")
        self.path.rename(away)
        self.known(b"d1 one")
        away.rename(self.path)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], [f"info: {self.path} is in use again"]))

    def test_not_readable(self) -> None:
        """While the file cannot be read, its last content applies. It is tried again at the next login."""
        self.open(b"d1:one\n")
        self.path.unlink()
        self.path.mkdir()
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], [f"warn: {self.path}: is a directory; {KEPT}"]))
        self.path.rmdir()
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 two")[0], [b"d1"])

    def test_a_pipe(self) -> None:
        """A pipe in the place of the file, which nobody may ever write to, does not hold up the process."""
        self.open(b"d1:one\n")
        self.path.unlink()
        os.mkfifo(self.path)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], [f"warn: {self.path}: a pipe cannot be read again; {KEPT}"]))

    def test_spoilt(self) -> None:
        """Wrong content is not used, not even in part, and is logged once."""
        self.open(b"d1:one\n")
        self.write(b"d1:two\nd2 s3cret\n")
        found, said = self.known(b"d1 one", b"d1 two", b"d1 one")
        self.assertEqual(found, [b"d1", b"d1"])
        self.assertEqual(said, [f"warn: {self.path}: line 2: the colon is missing, as in id:token; {KEPT}"])
        self.clock.advance(3600.0)
        self.assertEqual(self.known(b"d1 one"), ([b"d1"], []))
        self.write(b"d1:two\nd2 s3cre\n")
        self.assertEqual(len(self.known(b"d1 one")[1]), 1)
        self.write(b"d1:two\nd2:s3cret\n")
        self.assertEqual(self.known(b"d1 one", b"d2 s3cret"), ([b"d2"], [f"info: {self.path} is in use again"]))

    def test_sparingly(self) -> None:
        """There is one warning a minute at most. A problem that lasts is logged later."""
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
        """A relative path is relative to the working folder at the start."""
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        self.write(b"d1:one\n")
        os.chdir(self.path.parent)
        self.file = DevicesFile(Path("devices"), self.clock.seconds)
        os.chdir(before)
        self.write(b"d1:two\n")
        self.assertEqual(self.known(b"d1 two"), ([b"d1"], []))
