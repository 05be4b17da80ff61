"""The supervisor of children that come and go by the thousand."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._interfaces import Clock, DelayedCall, TemporaryChild
from ._reports import explain
from ._tree import Node, State

AT_ONCE: Final = 200
"""Children that are told to stop in one turn of the reactor: a goodbye each is a few milliseconds for everybody else."""

TRACEBACKS: Final = 10
"""Failures logged with a traceback within a `QUIET`; what fails in one connection may fail in ten thousand at once."""

QUIET: Final = 60.0
"""Seconds."""

C = TypeVar("C", bound=TemporaryChild)


class NotRunning(RuntimeError):
    """A supervisor that does not run starts no children."""


class DynamicSupervisor(Service, Generic[C]):
    """OTP's `simple_one_for_one`, for temporary children only, each of which costs an entry in a set.

    Nothing is restarted, so nothing counts against an intensity, however many end, and however they do. A child that is to be
    restarted is one for `Supervisor.start_child`.
    """

    _log = Logger(namespace="owsla.supervision")

    def __init__(self, clock: Clock, *, name: str | None = None, shutdown: float = 5.0) -> None:
        """When this stops, its children have `shutdown` seconds to end, all together; then they are left alone, and counted."""
        self._clock = clock
        self._shutdown = shutdown
        self._children: set[C] = set()
        self._to_stop: list[C] = []
        self._stopped: Deferred[None] | None = None
        self._calls: list[DelayedCall] = []
        self._started: float | None = None
        self._quiet_since = 0.0
        self._logged = 0
        self.failures = 0
        """Children that ended with a failure."""
        self.last_failure: str | None = None
        if name is not None:
            self.setName(name)

    def start_child(self, child: C) -> None:
        """Count it as a child until it `ended`. `NotRunning` while this does not run, or stops."""
        if not self.running:
            raise NotRunning(f"{self.name} does not run")
        self._children.add(child)

    def ended(self, child: C, reason: Failure | None = None) -> None:
        """A child is gone: normally, or by a failure of our own code. What is no child any more is left out."""
        self._children.discard(child)
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
        """Tell every child to stop, some in each turn of the reactor; fires when the last one ended, or the time is over."""
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
        some, self._to_stop = self._to_stop[-AT_ONCE:], self._to_stop[:-AT_ONCE]
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
                "{count} children of {name} did not end within {shutdown:g} s",
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
        if self._logged and now - self._quiet_since >= QUIET:
            self._logged = 0
        if not self._logged:
            self._quiet_since = now
        self._logged += 1
        if self._logged <= TRACEBACKS:
            self._log.failure("A child of {name} failed ({failures} so far)", reason, name=self.name, failures=self.failures)
            if self._logged == TRACEBACKS:
                self._log.warn("Failures of further children of {name} are only counted for a while", name=self.name)

    def tree(self) -> Node:
        """A snapshot. Its children are only counted."""
        if self._stopped is not None:
            state: State = "stopping"
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
