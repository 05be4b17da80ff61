"""What a supervisor says of its children: why one failed, that it is restarted, that it is too much."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from twisted.python.failure import Failure

EXIT_STATUS: Final = os.EX_SOFTWARE
"""The exit status of a process whose root supervisor gave up: 70, "internal software error" (sysexits(3))."""

LONGEST: Final = 300
"""Characters of an exception's message that are told: it is to stay one line of a log."""


def explain(failure: Failure | None) -> str:
    """Why a child ended, in one line."""
    if failure is None:
        return "it ended, without a failure"
    error = failure.value
    if isinstance(error, Untraced):
        return str(error)
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


class Untraced(Exception):
    """Why a child ended, where the text says it all: it is logged without a traceback, which would tell nothing."""


class GaveUp(Untraced):
    """A supervisor's children failed more often than its intensity allows. `str()` of it is the line that says so."""

    def __init__(
        self, supervisor: str, child: str, *, failures: int, of_child: int, restarts: int, period: float, reason: str
    ) -> None:
        super().__init__(supervisor, child, failures, of_child, restarts, period, reason)
        self.supervisor = supervisor
        """Its path."""
        self.child = child
        """The id of the child that failed last."""
        self.failures = failures
        """How often its children failed within the period."""
        self.of_child = of_child
        """How many of those failures were this child's."""
        self.restarts = restarts
        """How many restarts its intensity allows within the period."""
        self.period = period
        """In seconds."""
        self.reason = reason
        """Why the child ended the last time."""

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
class ChildRestarted:
    """A child ended and is restarted."""

    path: str
    """The child's."""
    reason: str
    """Why it ended."""
    restarts: int
    """How often it was restarted, this time included."""
    delay: float
    """Seconds until it is started."""
    siblings: tuple[str, ...]
    """The ids of those that are restarted with it."""


@dataclass(frozen=True, slots=True)
class SupervisorGaveUp:
    """A supervisor gave up; it now stops its children, and then fails."""

    gave_up: GaveUp

    @property
    def path(self) -> str:
        """The supervisor's."""
        return self.gave_up.supervisor
