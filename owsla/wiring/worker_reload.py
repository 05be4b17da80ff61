"""Reloads of the configuration of a worker, which its parent leads.

The parent sends the contents of all files (`reload`), and the worker loads a configuration from them, in a thread, and tells
the parent whether it could (`prepared`). Then the parent tells it to `apply` that configuration, or to forget it (`cancel`),
since another worker could not. A worker that had no chance to prepare, because it was starting, gets both messages at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import ConfigError
from ..runtime.files import Files
from ..workers import Channel
from .applying import NodeChanges
from .configuration import Configuration, CurrentConfiguration, reload_configuration
from .reload import RunInThread


class WorkerReloads:
    """Reloads of the configuration of a worker. A generation is the number of a configuration in its parent."""

    _log = Logger(namespace="owsla")

    def __init__(self, run: RunInThread, channel: Channel, current: CurrentConfiguration, changes: NodeChanges) -> None:
        self._run = run
        self._channel = channel
        self._current = current
        self._changes = changes
        self._generation = 0
        self._prepared: Configuration | None = None
        self._apply = False

    def prepare(self, generation: int, contents: Mapping[str, str]) -> None:
        """Load the configuration of a generation, and report whether that succeeded."""
        self._generation, self._prepared, self._apply = generation, None, False
        current = self._current.configuration

        def load() -> Configuration:
            return reload_configuration(current, Files.from_wire(contents), make_certificates=False)

        loading = self._run("reload", load)
        loading.addCallback(self._loaded, generation).addErrback(self._failed, generation)

    def _loaded(self, configuration: Configuration, generation: int) -> None:
        self._channel.send("prepared", generation=generation, fault=None)
        if generation == self._generation:
            self._prepared = configuration
            if self._apply:
                self.apply(generation)

    def _failed(self, failure: Failure, generation: int) -> None:
        if failure.check(ConfigError):
            fault = failure.getErrorMessage()
        else:
            fault = "an internal error, which the log describes"
            self._log.failure("A reload of the configuration failed", failure)
        self._channel.send("prepared", generation=generation, fault=fault)

    def apply(self, generation: int) -> None:
        """Apply the configuration of this generation, at once or when it is loaded."""
        if generation != self._generation:
            return
        if self._prepared is None:
            self._apply = True
            return
        configuration, self._prepared = self._prepared, None
        self._changes.apply(configuration)
        shown = self._current.shown()
        self._channel.send(
            "applied",
            generation=generation,
            drain_timeout=configuration.settings.drain_timeout,
            **(shown._asdict() if shown is not None else {}),
        )

    def cancel(self, generation: int) -> None:
        """Forget the configuration of this generation."""
        if generation == self._generation:
            self._prepared, self._apply = None, False
