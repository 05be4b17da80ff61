"""Findings of a check: what they say, and how they are printed."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..log import escaped

_WIDTH: Final = 12
"""Columns of the subject, so that the texts are below each other."""


class Level(enum.Enum):
    """Levels of findings, as they are printed."""

    OK = "ok"
    WARN = "warn"
    """Owsla starts and works, but something will fail, or fails for some devices."""
    SKIP = "skip"
    """Not checked."""
    FAIL = "FAIL"
    """Owsla cannot start, or cannot do its work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    subject: str
    """Subject of the check, in one word."""
    text: str

    def __str__(self) -> str:
        return f"{self.level.value:<4}  {self.subject:<{_WIDTH}}  {escaped(self.text)}"


def ok(subject: str, text: str) -> Finding:
    """Return a finding: this is as it should be."""
    return Finding(Level.OK, subject, text)


def warn(subject: str, text: str) -> Finding:
    """Return a finding: this does not keep Owsla from its work, and somebody should look at it."""
    return Finding(Level.WARN, subject, text)


def skip(subject: str, text: str) -> Finding:
    """Return a finding: this was not checked."""
    return Finding(Level.SKIP, subject, text)


def fail(subject: str, text: str) -> Finding:
    """Return a finding: Owsla cannot start, or cannot do its work."""
    return Finding(Level.FAIL, subject, text)


class Report:
    """Printer of findings, one line each."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self.failed = False
        """True if a finding was `FAIL`."""

    def add(self, finding: Finding) -> None:
        """Print a finding."""
        self.failed = self.failed or finding.level is Level.FAIL
        self._write(f"{finding}\n")
