"""The status of a connection to the broker, for operators. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from cryptography import x509

from ..config.addresses import BrokerAddress
from ..tls.inventory import InventoryEntry, certificate_entries

ConnectionState = Literal["waiting", "connecting", "up", "blocked", "stopped"]
"""State of a connection to the broker:

- `waiting`: until the next attempt, or until the connections that go first are up
- `connecting`: TCP, TLS, login, declaration of queues
- `up`
- `blocked`: up, but RabbitMQ takes no messages because of an alarm
- `stopped`
"""


class ConnectionStatus:
    """State of a connection to the broker, the time of its last change, and the last fault.

    Times are in seconds since the epoch.
    """

    __slots__ = ("_now", "address", "certificate", "fault", "fault_time", "role", "since", "state")

    def __init__(self, role: str, now: Callable[[], float]) -> None:
        self._now = now
        self.role: Final = role
        self.state: ConnectionState = "stopped"
        self.since = now()
        """Time since which the connection is in this state."""
        self.address: str | None = None
        """Address of the last attempt, without a password; `None` before the first one."""
        self.certificate: InventoryEntry | None = None
        """Certificate that the broker showed last; `None` without TLS."""
        self.fault: str | None = None
        """Description of the last fault. It stays when the connection is up again; `None`: no fault so far."""
        self.fault_time: float | None = None

    def become(self, state: ConnectionState) -> None:
        """Note the state."""
        if state != self.state:
            self.state = state
            self.since = self._now()

    def connect(self, address: BrokerAddress) -> None:
        """Note an attempt to connect."""
        self.address = str(address)
        self.become("connecting")

    def secured(self, certificate: x509.Certificate | None) -> None:
        """Note the certificate that the broker shows; `None` without TLS, or if it cannot be read."""
        shown = [certificate] if certificate is not None else []
        self.certificate = next(iter(certificate_entries("broker", str(self.address), shown)), None)

    def failed(self, fault: str) -> None:
        """Note the failure of an attempt, or the loss of the connection."""
        self.fault = fault
        self.fault_time = self._now()
        self.become("waiting")
