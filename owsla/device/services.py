"""Collaborators that the device connections of all doors share, and their counters for metrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from ..events import Event
from ..interfaces import Clock, Courier, LineSink
from ..runtime.end_of_turn import EndOfTurn
from .connections import LINES_SENT, RECEIVED, SENT, Connections
from .deadlines import Deadlines
from .deliveries import Deliveries
from .denied import DeniedDevices
from .discards import Discards
from .fanout import GroupCourier
from .hangup import HangupWatch
from .housekeeping import Housekeeping
from .identified import IdentifiedDevices
from .paused_reading import PausedReading
from .reordering import ReorderLimits
from .settings import SharedSettings
from .skipped_lines import SkippedLines
from .slow_devices import SlowDevices


@dataclass(frozen=True, slots=True)
class DeviceRuntime:
    """Time, the end of the reactor turn, and the receiver of events."""

    clock: Clock
    turn: EndOfTurn
    emit: Callable[[Event], None]
    now: Callable[[], float]
    """Function that returns the time in seconds since the epoch."""


class TimedOut(Hashable, Protocol):
    """A connection whose dialect may set a time-out."""

    def timed_out(self) -> None: ...


class DeviceServices:
    """Collaborators of the device connections of all doors. Each job that concerns several connections is one of them.

    A device keeps its order and its identity whichever door it comes through. So there is one of each, and a `DeviceFactory`
    for each door.
    """

    def __init__(
        self,
        runtime: DeviceRuntime,
        settings: SharedSettings,
        connections: Connections,
        sink: LineSink,
        courier: Courier,
        hangups: HangupWatch | None = None,
    ) -> None:
        clock, emit = runtime.clock, runtime.emit
        self.runtime: Final = runtime
        self.connections: Final = connections
        self.sink: Final = sink
        self.courier: Final = GroupCourier(courier)
        self.reordering: Final = ReorderLimits(clock, emit, settings.gap_timeout, settings.reorder_limit)
        self.slow: Final = SlowDevices(clock, emit, settings.write_timeout)
        self.reading: Final = PausedReading(hangups)
        self.discards: Final = Discards()
        self.skipped: Final = SkippedLines(clock, emit)
        self.denied: Final = DeniedDevices(clock, runtime.now, connections)
        self.devices: Final = IdentifiedDevices(clock, runtime.now, emit, settings.replace, settings.max_flaps)
        self.deliveries: Final = Deliveries(clock, runtime.now, courier, self.reordering, self.slow)
        self.timers: Final[Deadlines[TimedOut]] = Deadlines()
        """Time-outs of dialects."""
        self.housekeeping: Final = Housekeeping(
            clock,
            (
                *((lambda now: hangups.tick(),) if hangups is not None else ()),
                lambda now: runtime.turn.read_time(),  # of devices on a transport that no `Poller` polls
                self.discards.tick,
                self.skipped.tick,
                self.reading.tick,
                self.devices.tick,
                self.denied.tick,
                self._time_out,
                self.reordering.tick,
                self.slow.tick,
            ),
        )

    def configure(self, settings: SharedSettings) -> None:
        """Change the settings. They apply to all connections."""
        self.reordering.configure(settings.gap_timeout, settings.reorder_limit)
        self.slow.configure(settings.write_timeout)
        self.devices.configure(settings.replace)
        self.devices.flaps.configure(settings.max_flaps)

    def _time_out(self, now: float) -> None:
        if self.timers:
            for waiter in self.timers.due(now):
                waiter.timed_out()


class DeviceTotals:
    """Counters of all device connections, for metrics."""

    def __init__(self, services: DeviceServices) -> None:
        self._services = services

    @property
    def paused_connections(self) -> int:
        """Number of connections that are not read now."""
        return self._services.reading.count

    @property
    def denied(self) -> int:
        """Number of connections that were refused after their device was identified, since it is denied."""
        return self._services.denied.refused

    @property
    def deny_entries(self) -> int:
        """Number of entries in force of the deny list."""
        return self._services.denied.in_force

    @property
    def held_off(self) -> int:
        """Number of connections that were refused, since their device was held off."""
        return self._services.devices.refused

    @property
    def duplicates(self) -> int:
        """Number of messages with a sequence number that was used before."""
        return self._services.deliveries.duplicates

    @property
    def skips(self) -> int:
        """Number of sequence numbers that were skipped."""
        return self._services.reordering.skips

    @property
    def bytes_in(self) -> int:
        """Number of bytes read from devices, delimiters included."""
        return self._services.connections.traffic[RECEIVED]

    @property
    def bytes_out(self) -> int:
        """Number of bytes of lines written to devices, without delimiters."""
        return self._services.connections.traffic[SENT]

    @property
    def lines_out(self) -> int:
        """Number of lines written to devices."""
        return self._services.connections.traffic[LINES_SENT]

    @property
    def discarded_lines(self) -> int:
        """Number of lines discarded of devices that left while the window was full."""
        return self._services.discards.lines

    @property
    def skipped_lines(self) -> int:
        """Number of lines that were skipped since they were too long."""
        return self._services.skipped.lines

    @property
    def discarded_bytes(self) -> int:
        """Number of bytes that were never read of such devices, TLS records included."""
        return self._services.discards.unread
