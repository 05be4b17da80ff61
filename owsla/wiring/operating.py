"""Reloads and the stop of a process, as its signals and its operators request them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from .. import http
from ..events import DrainRequested, Event
from ..runtime.process import OrderlyStop, install_signal_handlers
from .reload import Reloads
from .service_manager import ServiceManagerReports


class Operating:
    """Reloads and the stop of a process."""

    def __init__(
        self,
        stop: OrderlyStop,
        reloads: Reloads,
        reports: ServiceManagerReports | None,
        *,
        reopen: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """`reopen` opens the files of events again, which a program may have renamed."""
        self._stop = stop
        self._reloads = reloads
        self._reports = reports
        self._reopen = reopen
        self._emit = emit

    @property
    def actions(self) -> http.Actions:
        """The actions, for the API."""
        return http.Actions(self.reload, self.drain)

    def reload(self, by: str | None = None) -> Deferred[tuple[bool, str]]:
        """Reload the configuration at the request of `by`; `None` is a signal.

        The Deferred fires with the success, and with the changes or the fault as a sentence.
        """
        self._reopen()
        requested = self._reloads.request(by)
        if self._reports is not None:
            self._reports.reloading(requested)
        return requested.addCallback(lambda success: (success, self._reloads.result))

    def drain(self, by: str) -> bool:
        """Begin the orderly stop at the request of `by`. Return `False` if it has begun already."""
        begun = self._stop.request()
        if begun:
            self._emit(DrainRequested(by))
        return begun

    def handle_signals(self, reactor: Any, replace: Callable[[], None]) -> None:
        """Handle the signals of the process. `replace` is called for SIGUSR2."""
        install_signal_handlers(reactor, self._stop, reload=self.reload, replace=replace)
