"""Supervisor of short-lived children that come and go by the thousand."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Clock, DelayedCall
from ..supervision_tree import ChildState, TreeNode
from ._interfaces import TemporaryChild
from ._reports import explain

STOPS_PER_TURN: Final = 200
"""Number of children that are told to stop in one turn of the reactor. Their goodbyes take a few milliseconds in all, in which
the reactor serves nothing else."""

TRACEBACKS: Final = 10
"""Number of failures that are logged with a traceback within `TRACEBACK_PERIOD`. A defect that shows in one connection may show
in ten thousand at once."""

TRACEBACK_PERIOD: Final = 60.0
"""Period of `TRACEBACKS`, in seconds."""

C = TypeVar("C", bound=TemporaryChild)


class DynamicSupervisor(Service, Generic[C]):
    """Supervisor of temporary children: OTP's `simple_one_for_one`, at the cost of one entry in a dictionary for each child.

    Nothing is restarted, so there is no intensity: any number of children may end, in any way.
    """

    _log = Logger(namespace="owsla.supervision")

    def __init__(self, clock: Clock, *, name: str | None = None, shutdown: float = 5.0) -> None:
        """`shutdown` is the number of seconds that all children together have to stop. The rest is abandoned, and counted."""
        self._clock = clock
        self._shutdown = shutdown
        self._children: dict[C, None] = {}  # a set of thousands takes two to three times the memory
        self._to_stop: list[C] = []
        self._stopped: Deferred[None] | None = None
        self._calls: list[DelayedCall] = []
        self._started: float | None = None
        self._traceback_period_began = 0.0
        self._tracebacks = 0
        self.failures = 0
        """Number of children that ended with a failure."""
        self.last_failure: str | None = None
        """Reason of the last failure."""
        if name is not None:
            self.setName(name)

    def start_child(self, child: C) -> None:
        """Add a child. `RuntimeError` while the supervisor does not run, or stops."""
        if not self.running:
            raise RuntimeError(f"{self.name} does not run")
        self._children[child] = None

    def ended(self, child: C, reason: Failure | None = None) -> None:
        """Remove a child that ended, normally or by a defect of the program. Removing it twice has no effect."""
        self._children.pop(child, None)
        if reason is not None:
            self._failed(reason)
        if self._stopped is not None and not self._children:
            self._finish()

    def __len__(self) -> int:
        return len(self._children)

    def __bool__(self) -> bool:
        return True  # also without children

    def __contains__(self, child: object) -> bool:
        return child in self._children

    def startService(self) -> None:
        super().startService()
        self._started = self._clock.seconds()

    def stopService(self) -> Deferred[None]:
        """Tell every child to stop. The Deferred fires when the last one has ended, or the time is over."""
        super().stopService()
        if self._stopped is None:
            if not self._children:
                return succeed(None)
            self._stopped = Deferred()
            self._to_stop = list(self._children)
            self._calls = [self._clock.callLater(self._shutdown, self._finish)]
            self._stop_some()
        waiting: Deferred[None] = Deferred()
        if self._stopped is None:
            return succeed(None)
        self._stopped.addCallback(waiting.callback)
        return waiting

    def _stop_some(self) -> None:
        some, self._to_stop = self._to_stop[-STOPS_PER_TURN:], self._to_stop[:-STOPS_PER_TURN]
        for child in some:
            if child in self._children:
                try:
                    child.stop()
                except Exception:
                    self.ended(child, Failure())
        if self._to_stop and self._stopped is not None:
            self._calls[1:] = [self._clock.callLater(0, self._stop_some)]

    def _finish(self) -> None:
        stopped, self._stopped = self._stopped, None
        if stopped is None:
            return
        if self._children:
            self._log.warn(
                "{count} children of {name} did not stop within {shutdown:g} s",
                count=len(self._children),
                name=self.name,
                shutdown=self._shutdown,
            )
            self._children.clear()
        self._to_stop = []
        for call in self._calls:
            if call.active():
                call.cancel()
        stopped.callback(None)

    def _failed(self, reason: Failure) -> None:
        self.failures += 1
        self.last_failure = explain(reason)
        now = self._clock.seconds()
        if self._tracebacks and now - self._traceback_period_began >= TRACEBACK_PERIOD:
            self._tracebacks = 0
        if not self._tracebacks:
            self._traceback_period_began = now
        self._tracebacks += 1
        if self._tracebacks <= TRACEBACKS:
            self._log.failure("A child of {name} failed ({failures} so far)", reason, name=self.name, failures=self.failures)
            if self._tracebacks == TRACEBACKS:
                self._log.warn(
                    "{name}: further failures within this minute are counted, but not logged (see `owsla tree`)",
                    name=self.name,
                )

    def tree(self) -> TreeNode:
        """Return a snapshot. The children are counted, not listed."""
        if self._stopped is not None:
            state: ChildState = "stopping"
        elif self.running:
            state = "running"
        else:
            state = "planned" if self._started is None else "stopped"
        return {
            "id": self.name or "supervisor",
            "type": "supervisor",
            "restart": None,
            "state": state,
            "restarts": 0,
            "uptime": self._clock.seconds() - self._started if self.running and self._started is not None else None,
            "failure": self.last_failure,
            "strategy": "simple_one_for_one",
            "count": len(self._children),
            "failures": self.failures,
        }
