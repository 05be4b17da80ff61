"""An event handler as a supervised service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._manager import EventManager, Handler, Running


class HandlerService(Service):
    """Service that installs a handler while it runs, and ends when the handler fails.

    It implements `owsla.supervision.Supervised`.
    """

    _log = Logger()

    def __init__(self, manager: EventManager, handler: Handler, name: str) -> None:
        self.setName(name)
        self._manager = manager
        self._handler = handler
        self._report: Callable[[Failure | None], None] | None = None
        self._ended = False

    def supervise(self, report: Callable[[Failure | None], None]) -> None:
        """Set the callback for the end of the service. The supervisor calls this before each start."""
        self._report = report
        self._ended = False

    def startService(self) -> None:
        super().startService()
        self._ended = False
        assert self.name is not None
        if isinstance(self._handler, Running):
            self._handler.start(self._failed_outside_handle)
        self._manager.add(self._handler, self.name, self._end)

    def stopService(self) -> Any:
        """Remove the handler, and wait until it has finished its pending work, within its time limit."""
        super().stopService()
        self._manager.remove(self._handler)
        return self._handler.stop() if isinstance(self._handler, Running) else None

    def _failed_outside_handle(self, failure: Failure) -> None:
        """Handle a failure outside of `handle`, which the manager does not see."""
        if not self._ended:
            self._manager.remove(self._handler)
            assert self.name is not None
            self._manager.report_failure(self._manager.stats(self.name), failure)
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        self._ended = True
        if self._report is not None:
            self._report(failure)
        else:
            self._log.failure("The event handler {handler} failed", failure, handler=self.name)
