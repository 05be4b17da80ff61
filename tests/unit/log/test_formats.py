"""JSON lines of the log. The other formats are tested in `test_stream`."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.log import ESCAPED, FIELDS, TRACEBACK, LogQueue
from owsla.log._formats import format_for, json_line

PATIENCE = 30.0


def event(text: str, level: Any = LogLevel.info, **values: Any) -> dict[str, Any]:
    return {"log_format": "{text}", "text": text, "log_level": level, "log_namespace": "owsla", "log_time": 1000.25, **values}


class JSONTests(SynchronousTestCase):
    def line(self, event: dict[str, Any]) -> dict[str, Any]:
        text = json_line(event)
        self.assertEqual((text.count("\n"), text[-1]), (1, "\n"))
        found: dict[str, Any] = json.loads(text)
        return found

    def test_a_line(self) -> None:
        """A line is one object with time, level, namespace and text, whose unprintable characters are escaped."""
        self.assertEqual(
            self.line(event("two\nlines\x1b \u00e9 \ud800", LogLevel.warn)),
            {
                "time": "1970-01-01T00:16:40.250000Z",
                "level": "warn",
                "namespace": "owsla",
                "text": "two\\nlines\\x1b \u00e9 \\ud800",
            },
        )

    def test_fields(self) -> None:
        """Fields of an event are keys of their own, and do not replace those that all lines have."""
        line = self.line(event("It works", **{FIELDS: {"event": "a", "text": "forged", "fields": {"count": 3}}}))
        self.assertEqual((line["event"], line["fields"], line["text"]), ("a", {"count": 3}, "It works"))
        self.assertEqual(list(line)[:4], ["time", "level", "namespace", "text"])

    def test_worker(self) -> None:
        """A traceback that comes with the text of a worker is a key of its own."""
        line = self.line(event("It failed\nTraceback\n  a", **{ESCAPED: True, TRACEBACK: "Traceback\n  a"}))
        self.assertEqual((line["text"], line["traceback"]), ("It failed", "Traceback\n  a"))

    def test_journal(self) -> None:
        """On the journal the object follows the priority, as in the text format."""
        text = format_for("json", journal=True)(event("It works", LogLevel.error))
        self.assertEqual(text[:3], "<3>")
        self.assertEqual(json.loads(text[3:])["text"], "It works")
        self.assertTrue(format_for("text", journal=True)(event("It works")).startswith("<6>It works"))


class QueuedJSONTests(SynchronousTestCase):
    """Tracebacks through the queue, as in a process."""

    def line(self, log: Any) -> dict[str, Any]:
        lines: list[str] = []
        queue = LogQueue([lambda event: lines.append(json_line(event))])
        try:
            raise ValueError("no")
        except ValueError:
            log(LogPublisher(queue))  # type: ignore[arg-type]
        self.assertTrue(queue.flush(PATIENCE))
        found: dict[str, Any] = json.loads(*lines)
        return found

    def test_traceback(self) -> None:
        """A traceback is a key of its own, with line ends."""
        line = self.line(lambda publisher: Logger(observer=publisher).failure("It failed", Failure()))
        self.assertEqual((line["text"], line["level"]), ("It failed", "critical"))
        self.assertRegex(line["traceback"], r"^Traceback .*:\n(.*\n)+.*ValueError: no$")

    def test_legacy_traceback(self) -> None:
        """So is one that Twisted's older interface has put into the text."""

        def log(publisher: Any) -> None:
            legacy.LogPublisher(observerPublisher=publisher, publishPublisher=publisher).msg(
                failure=Failure(), why="It failed", isError=1
            )

        line = self.line(log)
        self.assertEqual(line["text"], "It failed")
        self.assertRegex(line["traceback"], r"^Traceback .*:\n(.*\n)+.*ValueError: no$")
