"""Decisions of a supervisor: whether to restart a child, which siblings with it, after which delay, and when to give up.

Pure: no service, no reactor, no clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

RestartType: TypeAlias = Literal["permanent", "transient", "temporary"]
"""Rule for restarting a child. permanent: always; transient: after a failure, not after a normal end; temporary: never."""

Strategy: TypeAlias = Literal["one_for_one", "rest_for_one", "one_for_all"]
"""Siblings restarted with a child. one_for_one: none; rest_for_one: those started after it; one_for_all: all."""


def should_restart(restart: RestartType, failed: bool) -> bool:
    """Return whether to restart a child that ended, with a failure or normally."""
    return restart == "permanent" or (restart == "transient" and failed)


@dataclass(frozen=True, slots=True)
class RestartPlan:
    """Ids of the children to stop and to start when one child is restarted."""

    stop: tuple[str, ...]
    """Siblings to stop, in reverse order of starting. The child itself has ended already."""
    start: tuple[str, ...]
    """Children to start, in order of starting. A sibling that is stopped and not started again was temporary: forget it."""


def plan_restart(strategy: Strategy, children: Sequence[tuple[str, RestartType]], ended: str) -> RestartPlan:
    """Plan the restart of the child `ended`. `children` are all children, in order of starting."""
    ids = [child for child, _ in children]
    position = ids.index(ended)
    if strategy == "one_for_one":
        group = children[position : position + 1]
    elif strategy == "rest_for_one":
        group = children[position:]
    else:
        group = children
    return RestartPlan(
        stop=tuple(child for child, _ in reversed(group) if child != ended),
        start=tuple(child for child, restart in group if restart != "temporary" or child == ended),
    )


@dataclass(frozen=True, slots=True)
class Intensity:
    """Limit of restarts: a supervisor gives up at more than `restarts` within `period` seconds."""

    restarts: int = 5
    """Number of restarts. Six failures in a minute are a defect that restarting does not cure."""
    period: float = 60.0
    """Seconds. Long against the delays before five restarts (1.5 s, see `RestartBackoff`), also in nested supervisors."""

    def __post_init__(self) -> None:
        if self.restarts < 0 or not self.period > 0:
            raise ValueError(f"invalid intensity: {self.restarts} restarts in {self.period} s")

    @property
    def longest_delay(self) -> float:
        """Longest delay of a restart, in seconds.

        With longer delays, the failures of a child that always fails at once would leave the period before there are too many
        of them, and the supervisor would never give up.
        """
        return self.period / (2 * (self.restarts + 1))


@dataclass(frozen=True, slots=True)
class RestartBackoff:
    """Delays of restarts: none before the first restart of a child, then exponential, with jitter.

    OTP restarts at once. The delay keeps a failing child from using up a core; the jitter keeps nodes from failing in step.
    """

    first: float = 0.1
    """Seconds before the second restart, without jitter. The delay doubles with each further restart."""
    longest: float = 10.0
    """Longest delay, in seconds."""
    jitter: Callable[[], float] = random.random
    """Source of the jitter: random numbers from 0 to 1. Half of a delay is jitter."""

    def delay(self, streak: int) -> float:
        """Return the seconds to wait after `streak` restarts in a row that did not help."""
        if streak == 0:
            return 0.0
        # The exponent is bounded: a power of a float that is too large raises OverflowError.
        return min(self.longest, self.first * 2.0 ** min(streak - 1, 32)) * (0.5 + self.jitter() / 2)


class RestartHistory:
    """Failures of a supervisor's children: a sliding window over all of them, and the present streak of each child."""

    __slots__ = ("_backoff", "_failures", "_intensity", "_streaks")

    def __init__(self, intensity: Intensity, backoff: RestartBackoff) -> None:
        self._intensity = intensity
        self._backoff = backoff
        self._failures: deque[tuple[float, str]] = deque()
        self._streaks: dict[str, int] = {}

    def add(self, child: str, now: float) -> bool:
        """Count a failure. Return whether the intensity allows the restart.

        As in OTP, a failure counts up to and including the last instant of the period.
        """
        failures = self._failures
        failures.append((now, child))
        while now - failures[0][0] > self._intensity.period:
            failures.popleft()
        return len(failures) <= self._intensity.restarts

    @property
    def total(self) -> int:
        """Number of failures within the period that ends with the last failure."""
        return len(self._failures)

    def count(self, child: str) -> int:
        """Return how many of the failures in the window are this child's."""
        return sum(1 for _, each in self._failures if each == child)

    def ran(self, child: str, seconds: float) -> None:
        """Note how long a child ran before it ended. A whole period ends its streak: the last restart did help."""
        if seconds >= self._intensity.period:
            self._streaks.pop(child, None)

    def next_delay(self, child: str) -> float:
        """Add a restart to the streak of a child. Return the seconds to wait before it."""
        streak = self._streaks.get(child, 0)
        self._streaks[child] = streak + 1
        return min(self._backoff.delay(streak), self._intensity.longest_delay)
