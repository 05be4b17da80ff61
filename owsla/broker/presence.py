"""Presence for back ends, on the queue `connection_events`: `--events amqp`.

This is a role with a connection of its own, rather than a client of the courier. A node under a stampede has thousands of
announcements to publish, and messages of the courier must not wait behind them. The courier publishes in order of arrival, and
has no place for an announcement that a newer one replaces. And a queue of presence that cannot be used (no permission, say)
must not close the channel that undeliverable messages are recorded on. The price is one more connection for each node.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Final

from twisted.internet.defer import ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..amqp import wire
from ..events import BrokerWarning, DeviceConnected, DeviceDisconnected, DeviceIdentified, Event
from ..interfaces import Clock, DelayedCall
from . import queues as topology
from .announcements import Announcement, AnnouncementQueue
from .client import BrokerClient, BrokerError, as_failure
from .packing import APP_ID
from .publisher import Publisher
from .queue_state import QueueState, inspect_queue

QUEUE: Final = "connection_events"

PUBLISH_CHANNEL: Final = 1
DECLARE_CHANNEL: Final = 2
INSPECT_CHANNEL: Final = 3

INSPECT_INTERVAL: Final = 30.0
"""Seconds between two inspections of the length of the queue, if something was announced meanwhile. A thousand devices a second
that connect and disconnect are 60,000 messages until then."""

LONG: Final = 100_000
"""Messages in the queue past which announcements are held: some 60 MB on the disk of the broker. A queue that nobody consumes
would grow until the disk alarm stops all devices. Owsla sets no `x-max-length`, since back ends declare the queue without
arguments; and `drop-head` may drop the last announcement of a connection."""

SHORT: Final = LONG // 2
"""Messages in the queue below which held announcements are published."""


class PresenceRole:
    """The role that announces which devices are connected: also an event handler.

    A handler that is started again after events were missed compares its state with the open connections, and announces all of
    them again.
    """

    name = "presence"
    wants = (DeviceConnected, DeviceDisconnected, DeviceIdentified)
    _log = Logger()

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        *,
        node: Callable[[], str],
        live: Callable[[], Iterable[DeviceConnected]],
        several_doors: bool = False,
        queue: str = QUEUE,
        now: Callable[[], float] = time.time,
        announcements: AnnouncementQueue | None = None,
    ) -> None:
        """`node()` returns the name of this node, `live()` an event for each open connection, and `now()` the time since the
        epoch. With `several_doors` announcements name the door of the connection.
        """
        self._clock = clock
        self._emit = emit
        self._node = node
        self._live = live
        self._several_doors = several_doors
        self._queue = topology.Queue(queue)
        self._now = now
        self._announcements = announcements or AnnouncementQueue()
        self._publisher: Publisher[Announcement] = Publisher(clock, PUBLISH_CHANNEL, self, longest_delay=30.0)
        self._client: BrokerClient | None = None
        self._ready = False  # the channel takes announcements
        self._publish_call: DelayedCall | None = None
        self._inspect_call: DelayedCall | None = None
        self._published = False  # something was published since the last inspection
        self._warned: str | None = None
        self._was_up = False
        self._missed = False
        self._fail: Callable[[Failure], object] | None = None

    @property
    def unconfirmed(self) -> int:
        """Number of announcements that have not arrived yet. A stop waits for them, within its limit."""
        return self._announcements.unconfirmed

    @property
    def held(self) -> bool:
        """Return whether announcements wait until the queue is shorter."""
        return self._announcements.held

    @property
    def forgotten(self) -> int:
        """Number of short-lived connections dropped from the backlog: back ends never hear of them."""
        return self._announcements.forgotten

    # -- as an event handler ---------------------------------------------------------------------------------------------

    def start(self, fail: Callable[[Failure], object]) -> None:
        self._fail = fail
        if self._missed:
            self._missed = False
            self._announcements.missed(self._live(), self._now())
            self._publish_soon()

    def stop(self) -> None:
        """Miss events from here on. Pending announcements are still published, as long as there is a connection."""
        self._missed = True
        self._fail = None

    def handle(self, event: Event, node: str, when: float) -> None:
        if isinstance(event, DeviceConnected):
            self._announcements.connected(event, when)
        elif isinstance(event, DeviceDisconnected):
            self._announcements.disconnected(event, when)
        elif isinstance(event, DeviceIdentified):
            self._announcements.identified(event)
        else:
            return
        self._publish_soon()

    def node_lost(self, node: str) -> None:
        """Announce that another node is lost. Each node that empties its queue does so, too."""
        self._announcements.node_lost(node, self._now())
        self._publish_soon()

    def has_announced(self, node: str) -> bool:
        """Return whether the broker has confirmed all announcements about this node."""
        return not self._announcements.pending(node)

    def receiving(self, now: bool) -> None:
        """Note whether this node consumes its own queue: devices are announced as connected while it does."""
        self._announcements.away = not now
        if now:
            self._publish_soon()

    def resync(self) -> None:
        """Announce all connections again, since another node may have announced this one as lost."""
        self._announcements.resync()
        self._publish_soon()

    # -- publishing ------------------------------------------------------------------------------------------------------

    def _publish_soon(self) -> None:
        """Publish at the end of the turn of the event loop: once for all devices of a stampede."""
        if self._ready and self._publish_call is None and not self._publisher.retry.pending:
            self._publish_call = self._clock.callLater(0, self._publish)

    def _publish(self) -> None:
        self._publish_call = None
        try:
            while self._ready:
                announcement = self._announcements.next()
                if announcement is None:
                    return
                properties, body = self._encode(announcement)
                self._publisher.publish(announcement, self._queue.name, properties, body)
                self._published = True
        except Exception:
            self._failed(Failure())

    def _encode(self, announcement: Announcement) -> tuple[bytes, bytes]:
        """Return the properties and the body of an announcement."""
        body = json.dumps(announcement.body(self._node(), with_door=self._several_doors)).encode()
        headers = {
            name: _encodable(value) if isinstance(value, str) else value
            for name, value in announcement.headers(with_door=self._several_doors).items()
        }
        properties = {
            "content_type": "application/json",
            "headers": headers,
            "delivery_mode": 2,
            "timestamp": int(announcement.time),
            "app_id": APP_ID,
        }
        if announcement.change == "node-lost":
            properties["message_id"] = announcement.key  # several nodes may announce the same, and one node twice
        return wire.encode_properties(properties), body

    def _failed(self, failure: Failure) -> None:
        """Report a defect of this program, and begin again with a new channel."""
        if self._client is not None:
            self._client.abort(ConnectionDone("announcing presence failed"))  # the connection is not at fault
        if self._fail is not None:
            self._fail(failure)
        else:
            self._log.failure("Announcing presence failed", failure)

    # -- the connection --------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        self._client = client
        await self._set_up(client)

    async def _set_up(self, client: BrokerClient) -> None:
        """Declare the queue and open the channel. Try again what the broker refuses: devices do not wait for presence."""
        try:
            if self._was_up and await inspect_queue(client, INSPECT_CHANNEL, self._queue.name) is None:
                self._announcements.resync()  # the queue was deleted, with all announcements in it
            await topology.declare(client, DECLARE_CHANNEL, self._queue, self._warn)
            await self._publisher.open(client)
            found = await inspect_queue(client, INSPECT_CHANNEL, self._queue.name)
        except (BrokerError, Closed) as error:
            reason = as_failure(error).value
            if client is not self._client or not isinstance(reason, BrokerError) or reason.scope != "channel":
                raise
            self._warn(f"presence cannot be announced on {self._queue.name}: {reason}; trying again")
            self._publisher.retry.schedule(new_channel=True)
            return
        if client is self._client:
            self._ready = self._was_up = True
            self._hold_or_publish(found)
            self._announcements.begin()
            self._publish_soon()
            if self._inspect_call is None:
                self._inspect_call = self._clock.callLater(INSPECT_INTERVAL, self._inspect)

    def _inspect(self) -> None:
        self._inspect_call = self._clock.callLater(INSPECT_INTERVAL, self._inspect)
        client = self._client
        if client is not None and self._ready and (self._published or self._announcements.held):
            self._published = False
            client.run(self._inspect_queue(client))

    async def _inspect_queue(self, client: BrokerClient) -> None:
        try:
            found = await inspect_queue(client, INSPECT_CHANNEL, self._queue.name)
        except (BrokerError, Closed):
            return  # publishing meets the same error, and reports it
        if client is self._client and self._ready:
            self._hold_or_publish(found)
            self._publish_soon()

    def _hold_or_publish(self, found: QueueState | None) -> None:
        """Hold announcements while the queue is too long."""
        messages = 0 if found is None else found.messages
        held = self._announcements.held
        if found is not None and messages >= LONG and not held:
            self._announcements.hold(True)
            consumers = f"{found.consumers} consumers" if found.consumers else "no consumer"
            self._emit(
                BrokerWarning(
                    f"the queue {self._queue.name} has {messages} messages and {consumers}: devices that connect are announced "
                    f"when it has less than {SHORT}; consume it, or leave out --events amqp"
                )
            )
        elif messages < SHORT and held:
            self._announcements.hold(False)
            self._log.info("The queue {queue} is short again: devices are announced", queue=self._queue.name)

    def _warn(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            self._emit(BrokerWarning(text))

    def down(self) -> None:
        self._client = None
        for call in (self._publish_call, self._inspect_call):
            if call is not None and call.active():
                call.cancel()
        self._publish_call = self._inspect_call = None
        self._give_up_channel()

    def _give_up_channel(self) -> None:
        self._ready = False
        self._publisher.withdraw()
        self._announcements.lost()

    def blocked(self, reason: str) -> None:
        """Do nothing: at most a window of announcements waits in the socket, and is confirmed late."""

    def unblocked(self) -> None: ...

    # -- answers of the broker -------------------------------------------------------------------------------------------

    def messages_confirmed(self, accepted: list[Announcement], unroutable: list[Announcement]) -> None:
        for announcement in accepted:
            self._announcements.confirmed(announcement)
        for announcement in unroutable:
            self._announcements.returned(announcement)
        if unroutable:
            self._ready = False
            self._warn(f"the queue {self._queue.name} is gone; declaring it again")
            self._publisher.retry.schedule(new_channel=True)
        else:
            self._publisher.retry.refusals.accepted(self._queue.name)
            self._publisher.retry.reset_delay()
            self._warned = None
            self._publish_soon()

    def messages_refused(self, messages: list[Announcement]) -> None:
        for announcement in messages:
            self._announcements.refused(announcement)
        self._warn(f"the queue {self._queue.name} refuses presence; trying again")
        self._publisher.retry.refusals.refused(self._queue.name)
        self._publisher.retry.schedule()

    def channel_closed(self, reason: BaseException) -> None:
        client = self._client
        if client is None or client.closed or not self._ready:
            return
        self._give_up_channel()
        self._warn(f"presence cannot be announced on {self._queue.name}: {reason}; trying again")
        self._publisher.retry.schedule(new_channel=True)

    def retry_due(self, new_channel: bool) -> None:
        self._publisher.retry.done()
        client = self._client
        if not new_channel:
            self._publish_soon()
        elif client is not None:
            self._give_up_channel()
            ensureDeferred(self._set_up_again(client)).addErrback(self._failed)

    async def _set_up_again(self, client: BrokerClient) -> None:
        """Begin again with a new channel on the same connection."""
        try:
            await client.end_channel(PUBLISH_CHANNEL)
            await self._set_up(client)
        except (BrokerError, Closed) as error:
            if client is self._client and not client.closed:
                client.abort(as_failure(error).value or error)


def _encodable(text: str) -> str:
    """Return text with halves of surrogate pairs replaced: they have no UTF-8, and the name in a certificate may have them."""
    return text.encode("utf-8", "replace").decode()
