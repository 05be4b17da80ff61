"""Changes of a reload in the running parts of a node.

`config.changes` decides which settings may change. Here each part of the node is given its new values. Nothing here can fail,
and no connection is closed: a limit below what is in use takes effect when enough of it is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.logger import Logger

from ..config.options import OPTIONS
from ..config.settings import Door, Settings
from ..dialects import Factory, Successor
from ..embedded import EmbeddedBroker
from .base import Base
from .configuration import Configuration, changed_files
from .consuming import Consuming
from .devices import Devices, device_protocol
from .publishing import Publishing
from .shutdown import DeviceDrain


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """Names of the options that a reload has changed."""

    applied: tuple[str, ...]
    """Options whose value, or whose file, has changed and applies now."""
    rolling_restart: tuple[str, ...] = ()
    """Options whose value has changed and applies to new workers."""
    restart: tuple[str, ...] = ()
    """Options whose value has changed and takes a restart of the process."""


def applied_changes(old: Configuration, new: Configuration, *, workers: bool) -> AppliedChanges:
    """Return what a configuration changes that `reload_configuration` has loaded. Without workers there is no rolling
    restart.
    """
    changes = new.changes
    files = changed_files(old, new)
    if changes is None:
        return AppliedChanges(files)
    applied = {*changes.applied, *files} - {*changes.rolling, *changes.restart}
    rolling, restart = {*changes.rolling}, {*changes.restart}
    if not workers:
        rolling, restart = set(), rolling | restart
    return AppliedChanges(_in_order(applied), _in_order(rolling), _in_order(restart))


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Sort names of options, and after them those of the options of doors (`DOOR.OPTION`)."""
    order = {option.name: at for at, option in enumerate(OPTIONS)}

    def place(name: str) -> tuple[str, int]:
        door, _, option = name.rpartition(".")
        return door, order[option]

    return tuple(sorted(names, key=place))


class NodeChanges:
    """Application of another configuration to the parts of a node."""

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        base: Base,
        publishing: Publishing,
        devices: Devices,
        consuming: Consuming,
        drain: DeviceDrain,
        embedded: EmbeddedBroker | None,
    ) -> None:
        self._base = base
        self._publishing = publishing
        self._devices = devices
        self._consuming = consuming
        self._drain = drain
        self._embedded = embedded
        self._dialects = {name: door.dialect for name, door in devices.doors.items()}

    def apply(self, new: Configuration) -> AppliedChanges:
        """Make a configuration the current one, and tell all parts. This cannot fail: `new` was checked when it was loaded."""
        old = self._base.current.configuration
        changes = applied_changes(old, new, workers=self._base.inherited is not None)
        self._base.current.replace(new)
        self._devices.use(new)
        self._consuming.use(new)
        self.apply_settings(new.settings)
        for door in new.settings.doors:
            if door.name in new.dialects:
                self._use_dialect(door, new.dialects[door.name])
        return changes

    def _use_dialect(self, door: Door, dialect: Factory) -> None:
        """Make the dialects of new connections of a door with another factory."""
        present = self._dialects[door.name]
        if present is not None and isinstance(dialect, Successor):
            try:
                dialect.succeed(present)
            except Exception:  # perhaps code of the user
                self._log.failure("The dialect does not know what it knew before the reload")
        self._dialects[door.name] = dialect
        self._devices.doors[door.name].factory.build_with(device_protocol(door.settings, dialect))

    def apply_settings(self, settings: Settings) -> None:
        """Have all parts follow settings, which differ from the present ones only in what may change."""
        self._base.deadline.configure(settings.drain_timeout)
        self._drain.configure(settings.drain_spread)
        if self._embedded is not None:
            self._embedded.configure(settings.embedded_memory)
        for door in settings.doors:
            acknowledge = door.settings.device_ack is not None
            lines = self._publishing.lines.publishers[door.name]
            lines.configure(settings.window, settings.window_bytes, acknowledge=acknowledge)
            lines.pace(door.settings.batch_delay)
            lines.trace(settings.trace_lines)
        self._devices.configure(settings)
        self._consuming.groups.configure(settings.fanout_rate)
        self._consuming.by_name.configure(settings.device_timeout)
        self._consuming.inspection.configure(settings.broker_management)
