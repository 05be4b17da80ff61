"""What a reload changes in the running parts of a node."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Base
from .configuration import Configuration, changed_files
from .consuming import Consuming
from .devices import Devices


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """Names of the options that a reload has changed."""

    applied: tuple[str, ...]
    """Options whose value, or whose file, has changed and applies now."""
    restart: tuple[str, ...] = ()
    """Options whose value has changed and takes a restart."""


class NodeChanges:
    """Application of another configuration to the parts of a node."""

    def __init__(self, base: Base, devices: Devices, consuming: Consuming) -> None:
        self._base = base
        self._devices = devices
        self._consuming = consuming

    def apply(self, new: Configuration) -> AppliedChanges:
        """Make a configuration the current one, and tell all parts. This cannot fail: `new` was checked when it was loaded."""
        old = self._base.current.configuration
        changes = AppliedChanges(changed_files(old, new))
        self._base.current.replace(new)
        self._devices.listener.use_context(new.context)
        self._consuming.use(new)
        return changes
