"""What a supervisor decides: whether to restart, whom, after which wait, and when to give up.

Pure: no service, no reactor, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
"""When a child is restarted: always; after a failure but not after a normal end; never."""

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Who is restarted with a child: nobody; all its siblings; those that are listed, and so started, after it."""


def to_be_restarted(restart: Restart, failed: bool) -> bool:
    """Whether a child that ended is started again. `failed`: with a failure."""
    return restart == "permanent" or (restart == "transient" and failed)


@dataclass(frozen=True, slots=True)
class RestartPlan:
    """What is done when a child is to be restarted."""

    stop: tuple[str, ...]
    """The siblings to stop, in this order: the reverse of that of starting. The child itself has ended already."""
    start: tuple[str, ...]
    """Those to start, in this order. Whoever is stopped and not started again was temporary, and is forgotten."""


def plan_restart(strategy: Strategy, children: Sequence[tuple[str, Restart]], failed: str) -> RestartPlan:
    """Who is stopped and started when `failed` is to be restarted; `children` are all, in the order of starting."""
    ids = [child for child, _ in children]
    position = ids.index(failed)
    if strategy == "one_for_one":
        group = children[position : position + 1]
    elif strategy == "rest_for_one":
        group = children[position:]
    else:
        group = children
    return RestartPlan(
        stop=tuple(child for child, _ in reversed(group) if child != failed),
        start=tuple(child for child, restart in group if restart != "temporary" or child == failed),
    )


@dataclass(frozen=True, slots=True)
class Intensity:
    """How often a supervisor's children may be restarted before it gives up: more than `restarts` within `period` seconds."""

    restarts: int = 5
    """Six failures in a minute are a defect that restarting does not cure."""
    period: float = 60.0
    """Long against the waits before five restarts (1.5 s, see `Backoff`), also where one supervisor is within another."""

    def __post_init__(self) -> None:
        if self.restarts < 0 or not self.period > 0:
            raise ValueError(f"no such intensity: {self.restarts} restarts in {self.period} s")

    @property
    def longest_wait(self) -> float:
        """Seconds that a restart may wait at most, so that a child that always fails at once reaches the end of it."""
        return self.period / (2 * (self.restarts + 1))


class RestartWindow:
    """The failures of a supervisor's children within the last period."""

    __slots__ = ("_failures", "_intensity")

    def __init__(self, intensity: Intensity) -> None:
        self._intensity = intensity
        self._failures: deque[tuple[float, str]] = deque()

    def failed(self, child: str, now: float) -> bool:
        """Count a failure that is to be answered by a restart. Whether that restart is still allowed.

        As in OTP, a failure is in the period up to and including its last instant.
        """
        failures = self._failures
        failures.append((now, child))
        while now - failures[0][0] > self._intensity.period:
            failures.popleft()
        return len(failures) <= self._intensity.restarts

    @property
    def total(self) -> int:
        """Failures within the period that ended with the last one."""
        return len(self._failures)

    def of(self, child: str) -> int:
        """How many of them were this child's."""
        return sum(1 for _, each in self._failures if each == child)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a child waits for its restart: not at all the first time, then longer each time, with jitter.

    OTP restarts at once; a wait keeps a failing child from using up a core, and the jitter several nodes from failing in step.
    """

    first: float = 0.1
    """Seconds before the second restart, without jitter; each further one waits twice as long."""
    most: float = 10.0
    """Seconds that no wait exceeds."""

    def wait(self, streak: int, random: float) -> float:
        """Seconds to wait after `streak` restarts that did not help. `random` is from 0 to 1: half of a wait is up to it."""
        if streak == 0:
            return 0.0
        return min(self.most, self.first * 2.0 ** min(streak - 1, 32)) * (0.5 + random / 2)
