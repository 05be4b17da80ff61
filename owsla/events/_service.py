"""A handler as a service that a supervisor can restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._manager import EventManager, Handler, Running


class HandlerService(Service):
    """Installs a handler while it runs. When the handler fails, this ends with the failure, for its supervisor to see to.

    It is a child as `owsla.supervision.Supervised` wants it, without needing that package: `supervise` is told of the end.
    """

    _log = Logger()

    def __init__(self, manager: EventManager, handler: Handler, name: str) -> None:
        self.setName(name)
        self._manager = manager
        self._handler = handler
        self._report: Callable[[Failure | None], None] | None = None
        self._ended = False

    def supervise(self, report: Callable[[Failure | None], None]) -> None:
        """Called by the supervisor before each start, with whom to tell."""
        self._report = report
        self._ended = False

    def startService(self) -> None:
        super().startService()
        self._ended = False
        assert self.name is not None
        if isinstance(self._handler, Running):
            self._handler.start(self._failed_by_itself)
        self._manager.add(self._handler, self.name, self._end)

    def stopService(self) -> Any:
        """Tell it of no more events, and wait until it has dealt with those it has, within its own bound."""
        super().stopService()
        self._manager.remove(self._handler)
        return self._handler.stop() if isinstance(self._handler, Running) else None

    def _failed_by_itself(self, failure: Failure) -> None:
        """It failed outside of `handle`, where the manager does not notice."""
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
