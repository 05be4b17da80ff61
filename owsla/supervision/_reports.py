"""Reports of a supervisor: the reason of a child's end, its restart, and giving up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from twisted.python.failure import Failure

EXIT_STATUS: Final = os.EX_SOFTWARE
"""Exit status of a process whose root supervisor gave up: 70, "internal software error" in sysexits(3)."""

LONGEST: Final = 300
"""Longest message of an exception in a report, in characters: a report stays one line of a log."""


def explain(failure: Failure | None) -> str:
    """Return the reason of a child's end, in one line."""
    if failure is None:
        return "ended without a failure"
    error = failure.value
    if isinstance(error, Untraced):
        return str(error)
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


class Untraced(Exception):
    """Failure that is logged without a traceback, because its text says everything."""


class GaveUp(Untraced):
    """Failure of a supervisor whose children failed more often than its intensity allows."""

    def __init__(
        self, supervisor: str, child: str, *, failures: int, of_child: int, restarts: int, period: float, reason: str
    ) -> None:
        super().__init__(supervisor, child, failures, of_child, restarts, period, reason)
        self.supervisor = supervisor
        """Path of the supervisor."""
        self.child = child
        """Id of the child that failed last."""
        self.failures = failures
        """Number of failures of all children within the period."""
        self.of_child = of_child
        """Number of failures of this child within the period."""
        self.restarts = restarts
        """Number of restarts that the intensity allows within the period."""
        self.period = period
        """Period of the intensity, in seconds."""
        self.reason = reason
        """Reason of the last failure."""

    def __str__(self) -> str:
        within = f"within {self.period:g} s"
        if self.failures == 1:
            what = f"{self.child} failed"
        elif self.failures == self.of_child:
            what = f"{self.child} failed {self.failures} times {within}"
        else:
            what = f"{self.failures} failures {within}, {self.of_child} of {self.child}, the last one"
        return f"{self.supervisor} gave up: {what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RestartReport:
    """Report of a child that ended and is going to be restarted."""

    path: str
    """Path of the child."""
    reason: str
    """Reason of its end."""
    restarts: int
    """Number of its restarts, including this one."""
    delay: float
    """Seconds until the restart."""
    siblings: tuple[str, ...]
    """Ids of the siblings that are restarted with it."""
