"""Text of log lines."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.log import ESCAPED, escaped, with_traceback


def event(text: str, **values: Any) -> dict[str, Any]:
    return {"log_format": "{text}", "text": text, "log_level": LogLevel.info, "log_namespace": "owsla", **values}


class EscapedTests(SynchronousTestCase):
    def test_printable(self) -> None:
        """Printable text stays as it is, in any script."""
        for text in ("", "a b", "Gerät 7", "装置", "a\\nb"):
            self.assertEqual(escaped(text), text)

    def test_controls(self) -> None:
        """Characters that move the cursor, begin a line or change the direction of writing are escaped."""
        self.assertEqual(
            escaped("a\nb\r\t\x1b[2J\x00\x9b\u202e\u2028\udce9"), "a\\nb\\r\\t\\x1b[2J\\x00\\x9b\\u202e\\u2028\\udce9"
        )

    def test_bounded(self) -> None:
        """A text that is too long is cut, and its length is appended."""
        self.assertEqual(escaped("x" * 100, 10), "x" * 10 + "… (100 characters)")
        self.assertLess(len(escaped("\x1b" * 10_000_000)), 20_000)


class MessageTests(SynchronousTestCase):
    def test_forged_line(self) -> None:
        """A newline in a name does not begin a new line."""
        self.assertEqual(with_traceback(event("evil\n2026-11-28T00:00:00+0000 [owsla#info] forged")).count("\n"), 0)

    def test_traceback(self) -> None:
        """The lines of a traceback stay lines, and the message of the exception is escaped."""
        try:
            raise ValueError("from outside: \x1b[2J")
        except ValueError:
            text = with_traceback(event("It failed", log_failure=Failure()))
        self.assertTrue(text.startswith("It failed\nTraceback"), text)
        self.assertIn("ValueError: from outside: \\x1b[2J", text)

    def test_escaped_before(self) -> None:
        """Text that was escaped in a worker keeps its lines in the parent."""
        self.assertEqual(with_traceback(event("It failed\nTraceback", **{ESCAPED: True})), "It failed\nTraceback")

    def test_odd_exception(self) -> None:
        """An exception whose __str__ fails is logged without a traceback."""

        class Odd(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        try:
            raise Odd
        except Odd:
            self.assertTrue(with_traceback(event("It failed", log_failure=Failure())).startswith("It failed"))
