"""Tests of findings, and of how they are printed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.checking import findings  # not its `skip`, which trial would take for its own
from owsla.checking.findings import Report, fail, ok, warn


class FindingsTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """A finding is one line: level, subject, text, below each other in columns, which `grep` and `awk` can use."""
        printed: list[str] = []
        report = Report(printed.append)
        for finding in (ok("chain", "a"), warn("dates", "b"), findings.skip("broker", "c"), fail("certificate", "d")):
            report.add(finding)
        self.assertEqual(
            printed,
            [
                "ok    chain         a\n",
                "warn  dates         b\n",
                "skip  broker        c\n",
                "FAIL  certificate   d\n",
            ],
        )
        self.assertEqual([line.split()[0] for line in printed], ["ok", "warn", "skip", "FAIL"])

    def test_status(self) -> None:
        """Only `FAIL` makes the check fail, also if something good follows."""
        report = Report(lambda text: None)
        for finding in (ok("a", ""), warn("a", ""), findings.skip("a", "")):
            report.add(finding)
        self.assertFalse(report.failed)
        report.add(fail("a", ""))
        report.add(ok("a", ""))
        self.assertTrue(report.failed)

    def test_escaped(self) -> None:
        """A text from outside cannot begin another line, or command a terminal."""
        self.assertEqual(str(fail("queue", "a\nok    queue\x1b[2J")), "FAIL  queue         a\\nok    queue\\x1b[2J")
