"""The gateway of the demo, asked by a thread, so that a gateway that hangs delays neither Ctrl-C nor the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from .._control import JSON, Control, ControlError

INTERVAL: Final = 0.1
"""Seconds between two questions whether the gateway is ready."""


class GatewayWatch:
    """State and samples of the gateway. The thread replaces the values, and never changes them."""

    def __init__(self, control: Control, changed: Callable[[], None]) -> None:
        """Start the thread. It calls `changed` when there is something new."""
        self._control = control
        self._changed = changed
        self.state: JSON = None
        """State of the gateway, until it is ready."""
        self.ready = False
        self.sample: JSON = None
        """Sample of the last second."""
        threading.Thread(target=self._run, name="gateway", daemon=True).start()

    def problem(self) -> str:
        """Return why the gateway is not ready, as it says."""
        if self.state is None:
            return ""
        faults = {
            f"{connection['address']}: {connection['last_fault']['text']}"
            for connection in self.state["broker_connections"]
            if connection["last_fault"] is not None and connection["state"] != "up"
        }
        return "; ".join(sorted(faults)) or ", ".join(self.state["missing_checks"])

    def _run(self) -> None:
        while not self.ready:
            try:
                self.state = self._control.get("/api/v1/state")
                self.ready = bool(self.state["ready"])
            except ControlError:
                pass  # it has not opened its socket yet
            if not self.ready:
                time.sleep(INTERVAL)
        self._changed()
        while True:
            try:
                for sent in self._control.stream("/api/v1/live"):
                    if sent.kind == "sample":
                        self.sample = sent.data
                        self._changed()
            except ControlError:
                pass  # it has ended, which its parent notices
            time.sleep(INTERVAL)
