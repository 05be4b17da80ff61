"""The event manager: one place to report to, any number of handlers."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger

from ._types import Event


class Handler(Protocol):
    """Who is told of events."""

    def handle(self, event: Event) -> None: ...


class EventManager:
    """Hands each event to every handler. One that raises is logged, and hurts nobody else."""

    _log = Logger()

    def __init__(self) -> None:
        self._handlers: list[Handler] = []

    def add(self, handler: Handler) -> None:
        self._handlers.append(handler)

    def remove(self, handler: Handler) -> None:
        self._handlers.remove(handler)

    def emit(self, event: Event) -> None:
        """Report that something happened."""
        for handler in self._handlers:
            try:
                handler.handle(event)
            except Exception:
                self._log.failure("The event handler {handler} failed", handler=handler)
