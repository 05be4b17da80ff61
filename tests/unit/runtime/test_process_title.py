"""Tests of `owsla.runtime.process_title`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping

from twisted.trial.unittest import SynchronousTestCase

from owsla.runtime.process_title import mask_passwords

_PROGRAM = """
import os, sys
from owsla.runtime.process_title import hide_passwords
hidden = hide_passwords()
shown, name = (open(f"/proc/self/{file}", "rb").read() for file in ("cmdline", "comm"))
print([hidden, shown, name, os.environ.get("SOME_VARIABLE"), sys.argv[1:]])
"""


class MaskTests(SynchronousTestCase):
    """Passwords in arguments."""

    def test_passwords(self) -> None:
        """The passwords of broker and database URLs are replaced."""
        for argument, masked in (
            ("amqp://u:pw@h", "amqp://u:***@h"),
            ("--broker=AMQPS://u:pw@h/v", "--broker=AMQPS://u:***@h/v"),
            ("amqp://:pw@h", "amqp://:***@h"),
            ("--broker-management=https://u:pw@h:443/x", "--broker-management=https://u:***@h:443/x"),
            ("database:postgresql://h/d?user=u&password=pw", "database:postgresql://h/d?user=u&password=***"),
            ("POSTGRES://u@h/d?PASSWORD=pw", "POSTGRES://u@h/d?PASSWORD=***"),
        ):
            self.assertEqual(mask_passwords(argument), masked)

    def test_unescaped_characters(self) -> None:
        """The replaced part includes unescaped delimiters in a password, and the text between two passwords."""
        for argument, masked in (
            ("amqp://u:p@w/x@h", "amqp://u:***@h"),
            ("amqp://u:pw@h,amqp://v:pw@i", "amqp://u:***@i"),
            ("amqp://u:p\nw@h", "amqp://u:***@h"),
            ("postgresql://h/d?password=p&w", "postgresql://h/d?password=***"),
            ("postgresql://u:pw@h/d?sslpassword=pw", "postgresql://u:***"),
            ("postgresql://h:5432/d?password=p@w", "postgresql://h:***"),
        ):
            self.assertEqual(mask_passwords(argument), masked)

    def test_other_arguments(self) -> None:
        """Arguments without a password stay."""
        for argument in (
            *("amqp://h:5672", "amqp://u@h", "a@b", "http://h:15672", "ftp://u:pw@h", "http://h?password=x", "?password=y", ""),
        ):
            self.assertEqual(mask_passwords(argument), argument)


class ProcessTests(SynchronousTestCase):
    """The title of a real process."""

    def run_with(self, *arguments: str, env: Mapping[str, str]) -> tuple[bool, bytes, bytes, str | None, list[str]]:
        """Return the result, the process list entry, the process name, an environment variable and `sys.argv`."""
        command = [sys.executable, "-c", _PROGRAM, *arguments]
        done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path), **env}, capture_output=True, check=True)
        self.assertEqual(done.stderr, b"")
        hidden, shown, name, variable, argv = ast.literal_eval(done.stdout.decode())
        return hidden, shown.rstrip(b"\0"), name, variable, argv

    def test_hidden(self) -> None:
        """The password disappears from the process list, and nothing else changes: name, environment, `sys.argv`."""
        arguments = ["--broker", "amqp://u:s3cret@h/v", "--from-device", "ü"]
        hidden, shown, name, variable, argv = self.run_with(*arguments, env={"SOME_VARIABLE": "value"})
        self.assertTrue(hidden)
        self.assertTrue(shown.endswith(" --broker amqp://u:***@h/v --from-device ü".encode()), shown)
        self.assertTrue(name.startswith(b"python"), name)
        self.assertEqual((variable, argv), ("value", arguments))

    def test_short_password(self) -> None:
        """A password shorter than its replacement is hidden, too."""
        hidden, shown, *_ = self.run_with("amqp://u:p@h", "--last", env={})
        self.assertTrue(hidden)
        self.assertTrue(shown.endswith(b" amqp://u:***@h --last"), shown)

    def test_long_command_line(self) -> None:
        """The password is hidden in a command line of 50 KB."""
        long = [f"--option-{number}={'x' * 90}" for number in range(500)]
        hidden, shown, *_ = self.run_with(*long, "amqp://u:s3cret@h", env={})
        self.assertTrue(hidden)
        self.assertNotIn(b"s3cret", shown)

    def test_not_utf8(self) -> None:
        """The password is hidden beside an argument that is not UTF-8."""
        hidden, shown, *_ = self.run_with("\udcff", "amqp://u:s3cret@h", env={})
        self.assertTrue(hidden)
        self.assertNotIn(b"s3cret", shown)

    def test_no_password(self) -> None:
        """Without a password the process list stays as it is."""
        hidden, shown, *_ = self.run_with("--broker", "amqp://u@h", env={})
        self.assertTrue(hidden)
        self.assertTrue(shown.endswith(b"\0--broker\0amqp://u@h"), shown)

    def test_too_long(self) -> None:
        """`False` says that the password is still visible: `setproctitle` does nothing for more than 100 KB of arguments."""
        hidden, shown, *_ = self.run_with("x" * 120_000, "amqp://u:s3cret@h", env={})
        self.assertFalse(hidden)
        self.assertIn(b"s3cret", shown)
