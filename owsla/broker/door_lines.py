"""The role that publishes the lines of all doors: one connection, with a publisher for each door.

Theory of operation. Each door has a `DoorPublisher`: a channel, a window and a destination of its own. So a queue that is full
or missing, or an exchange that is, stops the devices of its doors, and of no others:

- Refused lines stay in the window of their door. In a common window they would soon leave no room for the lines of others.
- RabbitMQ closes the channel on which a line is published to a missing exchange, one that may not be written to, or for a line
  above its size limit. With several doors only that channel is opened again, with back-off.
- A quorum queue without a majority leaves lines unanswered. Those of other doors are confirmed meanwhile.

With one door nothing is to be gained from that: a fault of its channel ends the connection, and is reported as a fault of the
broker, since no device is served until it is over. With several doors, faults of channels end the connection only in `up`, if
no door can publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from txamqp.client import Closed

from ..interfaces import Clock, DelayedCall, LineSource
from .client import BrokerClient, BrokerError, as_failure
from .door_publisher import DoorPublisher
from .retry_delay import RetryDelay

LONGEST_DELAY: Final = 5.0
"""Seconds between two attempts to open the channel of a door again, at most: as for a connection."""

LASTING: Final = 10.0
"""Seconds for which a channel must have lasted for the next fault to be the first one again. Where a user may not write to an
exchange, each attempt gets as far as the first line.
"""


ANSWER_TIMEOUT: Final = 60.0
"""Seconds to open the channel of a door again, for a broker that answers only heartbeats: as for a new connection."""


def line_channel(door: int) -> int:
    """Return the number of the channel for the lines of a door; `door` counts from 0. The next number is for declarations.

    The number is part of the packed lines in the window, so that it never changes.
    """
    return 2 * door + 1


class _DoorChannel:
    """The publisher of a door, and the attempts to open its channel again."""

    __slots__ = ("call", "delay", "opened", "publisher")

    def __init__(self, publisher: DoorPublisher) -> None:
        self.publisher = publisher
        self.delay = RetryDelay(most=LONGEST_DELAY)
        self.call: DelayedCall | None = None
        self.opened: float | None = None
        """Time at which the channel was opened; `None` while it is not open."""

    def cancel(self) -> None:
        if self.call is not None and self.call.active():
            self.call.cancel()
        self.call = None


class DoorLines:
    """Role of the connection that publishes lines, for all doors."""

    name = "producer"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._doors: dict[str, _DoorChannel] = {}
        self._client: BrokerClient | None = None

    def add(self, door: str, publisher: DoorPublisher) -> None:
        """Add the publisher of a door, before the first `up`. `channel_failed` must be its `failed`."""
        self._doors[door] = _DoorChannel(publisher)

    @property
    def publishers(self) -> Mapping[str, DoorPublisher]:
        """Publishers of the doors by name: each is the `LineSink` of its door."""
        return {door: each.publisher for door, each in self._doors.items()}

    def answer_to(self, reply_to: bytes) -> None:
        """Have replies to later lines sent to another queue, whose name has the same length."""
        for each in self._doors.values():
            each.publisher.answer_to(reply_to)

    def stop_waiting(self) -> None:
        """Publish lines without a wait for others of their batch from now on: the node stops."""
        for each in self._doors.values():
            each.publisher.stop_waiting()

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        faults: list[tuple[_DoorChannel, BrokerError]] = []
        for each in self._doors.values():
            fault = await self._open(each, client)
            if fault is not None:
                faults.append((each, fault))
        if len(faults) == len(self._doors):
            raise faults[0][1]
        for each, fault in faults:
            self._suspend(each, fault)

    def down(self) -> None:
        self._client = None
        for each in self._doors.values():
            each.cancel()
            each.opened = None
            each.publisher.down()

    def blocked(self, reason: str) -> None:
        for each in self._doors.values():
            each.publisher.blocked(reason)

    def unblocked(self) -> None:
        for each in self._doors.values():
            each.publisher.unblocked()

    # -- channels --------------------------------------------------------------------------------------------------------

    async def _open(self, each: _DoorChannel, client: BrokerClient) -> BrokerError | None:
        """Open the channel of a door. Return the fault if only this door is concerned, and raise any other."""
        try:
            await each.publisher.up(client)
        except (BrokerError, Closed) as error:
            fault = as_failure(error).value
            if client.closed or not isinstance(fault, BrokerError) or fault.scope != "channel":
                raise
            return fault
        each.opened = self._clock.seconds()
        return None

    def channel_failed(self, door: str, client: BrokerClient, reason: BaseException) -> None:
        """Open the channel of a door again; with one door, as part of another connection."""
        if len(self._doors) == 1 or not isinstance(reason, BrokerError) or reason.scope != "channel":
            client.abort(reason)
        else:
            self._suspend(self._doors[door], reason)

    def _suspend(self, each: _DoorChannel, fault: BrokerError) -> None:
        """Let the devices of a door wait, and try again later."""
        now = self._clock.seconds()
        if each.opened is not None and now >= each.opened + LASTING:
            each.delay.reset()
        each.opened = None
        each.publisher.suspend(fault)
        each.cancel()
        each.call = self._clock.callLater(each.delay.next(), self._try_again, each)

    def _try_again(self, each: _DoorChannel) -> None:
        client = self._client
        if client is not None:
            client.run(self._open_again(each, client))

    async def _open_again(self, each: _DoorChannel, client: BrokerClient) -> None:
        late = TimeoutError(f"no channel for the lines of a door within {ANSWER_TIMEOUT:g} s")
        timeout = self._clock.callLater(ANSWER_TIMEOUT, client.abort, late)
        try:
            # A channel that the broker has not closed: a refusal may be its fault.
            await client.end_channel(each.publisher.channel)
            fault = await self._open(each, client)
        finally:
            if timeout.active():
                timeout.cancel()
        if fault is not None and client is self._client:
            self._suspend(each, fault)

    # -- all doors -------------------------------------------------------------------------------------------------------

    @property
    def unconfirmed(self) -> int:
        """Number of published, unconfirmed lines."""
        return sum(each.publisher.unconfirmed for each in self._doors.values())

    def settled(self, source: LineSource) -> bool:
        """Return whether the broker has confirmed all lines of a connection."""
        return all(each.publisher.settled(source) for each in self._doors.values())
