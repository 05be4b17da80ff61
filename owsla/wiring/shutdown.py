"""The service of a node, and its orderly shutdown, which neither loses nor reorders lines or messages.

Theory of operation
-------------------

Start: connect to the broker, declare the queues, consume; then open the device ports (`wiring.opening`).

Stop, in this order:

1.  The ports close. A device that connects now reaches another node, or waits in the queue of a socket that systemd holds open.
2.  The devices are closed one after another, spread over a while, so that a fleet does not reconnect in one instant. Each
    device is served until its turn comes. Then the node stops reading it (without `--device-ack` it is told that the connection
    ends, and is read until it closes), its lines are published and confirmed, the confirms are sent to it, waiting messages are
    written, and the connection is closed. Handshakes in progress may finish, for a few seconds; then they are closed as well.
3.  The node stops consuming the shared queue. It goes on with its own queue, since back ends answer the last lines.
4.  Once all lines are confirmed and back ends were told of every closed connection, the node leaves the cluster.
5.  Messages for many devices end, since no device is left. Then the node stops consuming its own queue. Messages that it holds
    unacknowledged are recorded as undeliverable or go back into that queue.
6.  Remaining connections are aborted, the connections to the broker close, and the supervision tree stops.

One deadline bounds all of this (`StopDeadline`). Past the deadline each step does only the part that takes no waiting, and the
last log line counts the lines, messages and devices that were given up. Therefore a broker that has accepted the login and then
answers nothing cannot delay a stop beyond the deadline.

The node leaves its own queue to the other nodes. Back ends may still publish to it, and RabbitMQ confirms a message that it
routes to a classic queue in the instant in which that queue is deleted. Therefore the registrar deletes the queue when nothing
has arrived for a while (`cluster.cleanup`). A node that is alone in the cluster deletes its queue itself, if the queue falls
silent in time and no message from it waits for a device; otherwise the next node to start deletes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import Closed

from ..broker.client import BrokerError
from ..broker.connection import BrokerConnection, explain
from ..cluster.cleanup import SILENCE as CLEANUP_SILENCE
from ..device.connections import Connection, guard
from ..device.port import DevicePort
from ..events import Event, NodeStopped
from ..interfaces import Clock
from ..log import pluralize
from ..routing import Registry
from ..supervision import EXIT_STATUS, Supervisor, TreeNode

HANDSHAKES: Final = 3.0
"""Seconds that handshakes in progress may take. Their devices would otherwise see a reset before the end of a handshake."""

HAND_BACK: Final = CLEANUP_SILENCE - 1.0
"""Seconds to wait for unconfirmed records after the own queue lost its consumer, where another node deletes that queue. One
second less than that node waits, because the deletion would also delete messages that are held unacknowledged.
"""

PACE: Final = 0.05
"""Seconds from one device to the next with `--drain-spread auto`: a few devices that reconnect are no burst."""

LONGEST_SPREAD: Final = 10.0
"""Seconds for all devices at most with `--drain-spread auto`."""

STEP: Final = 0.05
"""Seconds between two checks of a condition while a step waits for it."""

SILENCE: Final = 1.0
"""Seconds without a message after which a node that is alone deletes its own queue. Back ends answer within that time, and have
been told by then that the devices are gone.
"""

T = TypeVar("T")


class LineConfirms(Protocol):
    """Line publisher, as a shutdown sees it."""

    @property
    def unconfirmed(self) -> int: ...

    def settled(self, source: Any) -> bool: ...

    def stop_waiting(self) -> None:
        """Publish lines without a wait for others from now on."""


class Handshakes(Protocol):
    """Connections by state, as a shutdown sees them."""

    @property
    def open(self) -> int: ...

    @property
    def connections(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def handshaking(self) -> int: ...


class DiscardCounts(Protocol):
    """Counter of discarded input, as a shutdown sees it."""

    def take_discards(self) -> tuple[int, int]:
        """Return the number of lines and of unread bytes of devices that were discarded since the last call."""


class Outgoing(Protocol):
    """Courier, presence or broadcast role, as a shutdown sees it."""

    @property
    def unconfirmed(self) -> int: ...


class Spreading(Protocol):
    """Messages for many devices, as a shutdown sees them."""

    @property
    def spreading(self) -> int: ...


class ClusterMembership(Protocol):
    """Registrar, as a shutdown sees it."""

    def leave(self) -> None:
        """Tell the other nodes that this node stops in order."""

    @property
    def unconfirmed(self) -> int:
        """Number of notices, the one of `leave` included, that the broker has not confirmed."""

    @property
    def listed(self) -> bool:
        """True while this node is the registrar and lists itself as a member."""

    @property
    def alone(self) -> bool:
        """True while this node is the registrar and lists no other member."""


class Consumption(Protocol):
    """Consumers, as a shutdown sees them."""

    @property
    def connected(self) -> bool: ...

    @property
    def handled(self) -> int:
        """Counter that changes when messages of the node's own queue are handled."""

    async def stop_consuming(self, *, own: bool) -> None:
        """Stop consuming the shared queue, or the node's own. Messages that arrived can still be acknowledged."""

    async def unbind_own_queue(self) -> None:
        """Unbind the node's own queue from the exchange of all nodes."""

    async def delete_own_queue(self) -> bool:
        """Delete the node's own queue if it is empty, and no message from it is unacknowledged. Return whether it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeParts:
    """Parts of a node that its shutdown acts on."""

    ports: Sequence[DevicePort]
    handshakes: Handshakes
    registry: Registry[Connection]
    lines: LineConfirms
    discards: DiscardCounts
    courier: Outgoing
    broadcast: Outgoing
    presence: Outgoing | None
    groups: Spreading
    consumers: Consumption
    membership: ClusterMembership
    connections: Sequence[BrokerConnection]
    """Connections to the broker."""

    @property
    def unannounced(self) -> int:
        """Number of announcements to back ends that are not confirmed."""
        return self.presence.unconfirmed if self.presence is not None else 0

    @property
    def outgoing(self) -> int:
        """Number of messages to other queues that are not confirmed."""
        return self.courier.unconfirmed + self.unannounced


class StopDeadline:
    """Deadline of a node's shutdown. It is never extended."""

    def __init__(self, clock: Clock, timeout: float) -> None:
        """`timeout` is in seconds (`--drain-timeout`)."""
        self._clock = clock
        self._end = 0.0
        self._hurried = False
        self.timeout = timeout
        self.stopping = False
        """True once the node stops."""

    def begin(self) -> None:
        """Begin the shutdown, and set its deadline."""
        self.stopping = True
        self._end = 0.0 if self._hurried else self._clock.seconds() + self.timeout

    def hurry(self) -> None:
        """Set the deadline to the past: end all waiting, also in a shutdown that begins later."""
        self._hurried = True
        self._end = 0.0

    def shorten(self, timeout: float) -> None:
        """Limit a shutdown that begins later to this many seconds."""
        self.timeout = min(self.timeout, timeout)

    def configure(self, timeout: float) -> None:
        """Change the time-out of a shutdown that begins later. One that has begun keeps its deadline."""
        if not self.stopping:
            self.timeout = timeout

    @property
    def passed(self) -> bool:
        return self._clock.seconds() >= self._end

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._end - self._clock.seconds())


class DeviceDrain:
    """Procedure that closes devices one after another, each once its lines and messages are settled."""

    def __init__(self, clock: Clock, deadline: StopDeadline, lines: LineConfirms, spread: float | None) -> None:
        """`spread` is in seconds (`--drain-spread`); `None` is `PACE` for each device."""
        self._log = Logger(namespace="owsla")
        self._clock = clock
        self._deadline = deadline
        self._lines = lines
        self._spread = spread

    def configure(self, spread: float | None) -> None:
        """Change the spread of closing devices that begins later."""
        self._spread = spread

    def close_all(self, connections: Iterable[Connection], reason: str) -> Deferred[None]:
        """Close these devices as in a shutdown, while the node goes on and accepts others. Close the rest after the timeout."""
        closing = ensureDeferred(self._close_all(list(connections), reason))
        closing.addErrback(lambda failure: self._log.failure("Closing devices in order failed", failure))
        return closing

    async def _close_all(self, connections: list[Connection], reason: str) -> None:
        await self.close_in_turn(connections, reason)
        for connection in connections:
            if connection.transport is not None:
                guard(connection, connection.close, reason)

    async def close_in_turn(self, waiting: list[Connection], reason: str) -> None:
        """Close each device when its turn has come and it is settled. Return at the deadline at the latest."""
        devices = len(waiting)
        began = self._clock.seconds()
        latest = began + self._deadline.timeout
        wanted = min(PACE * (devices - 1), LONGEST_SPREAD) if self._spread is None else self._spread
        # The second half of the time is for devices that take long to settle.
        spread = min(wanted, self._deadline.timeout / 2)
        leaving: list[Connection] = []
        while (waiting or leaving) and not self._late(latest):
            elapsed = self._clock.seconds() - began + STEP
            due = devices if elapsed >= spread else int(devices * elapsed / spread)
            count = due - (devices - len(waiting))
            for connection in waiting[:count]:
                guard(connection, connection.drain)
            leaving += waiting[:count]
            waiting = waiting[count:]
            leaving = [connection for connection in leaving if connection.transport is not None]
            for connection in leaving:
                guard(connection, self._close_settled, connection, reason)
            await pause(self._clock, STEP)

    def _close_settled(self, connection: Connection, reason: str) -> None:
        if not connection.backlog and (not connection.acknowledges or self._lines.settled(connection)):
            connection.close(reason)

    def _late(self, latest: float) -> bool:
        # A shutdown that begins meanwhile has the nearer deadline, or none left after a second signal.
        return self._deadline.passed if self._deadline.stopping else self._clock.seconds() >= latest


class NodeService(MultiService):
    """Service of a node: its supervision tree, and its orderly shutdown."""

    def __init__(
        self,
        clock: Clock,
        parts: NodeParts,
        *,
        deadline: StopDeadline,
        drain: DeviceDrain,
        emit: Callable[[Event], None],
        fail: Callable[[str, int], None],
    ) -> None:
        """`fail` ends the process with an error message and an exit status."""
        super().__init__()
        self._log = Logger(namespace="owsla")
        self._clock = clock
        self._parts = parts
        self._deadline = deadline
        self._drain = drain
        self._emit = emit
        self._fail = fail
        self._root: Supervisor | None = None

    def supervise(self, root: Supervisor) -> None:
        """Make `root` the supervision tree of this node."""
        self._root = root
        root.setServiceParent(self)

    def tree(self) -> TreeNode:
        """Return the supervision tree as it is now, or as planned."""
        assert self._root is not None
        return self._root.tree()

    def stopService(self) -> Deferred[Any]:
        self.running = 0
        self._deadline.begin()
        return ensureDeferred(self._stop())

    def hurry(self) -> None:
        """End all waiting, also in a shutdown that begins later."""
        self._deadline.hurry()
        for connection in self._parts.connections:
            connection.hurry()

    def shorten(self, drain_timeout: float) -> None:
        """Limit a shutdown that begins later to this many seconds."""
        self._deadline.shorten(drain_timeout)

    def give_up(self, reason: str) -> None:
        """End the process because the root supervisor gave up: systemd or another service manager starts a new one."""
        self.hurry()
        self._fail(reason, EXIT_STATUS)

    async def _stop(self) -> None:
        parts = self._parts
        devices = len(parts.registry)
        self._log.info("Stopping: {devices} connected", devices=pluralize(devices, "device is", "devices are"))
        await self._step(self._close_devices())
        cut = len(parts.registry)
        for device in list(parts.registry):
            guard(device, device.close, "the gateway stops")
        await self._answer(parts.consumers.stop_consuming(own=False))
        # Messages for many, too: they go to this node as well, as long as its queue is bound.
        await self._until(lambda: not (parts.lines.unconfirmed or parts.unannounced or parts.broadcast.unconfirmed))
        await self._step(self._leave_cluster())
        await self._step(self._abort_devices())
        discarded, unread = parts.discards.take_discards()
        lines, messages = parts.lines.unconfirmed + discarded, parts.outgoing
        # Equal shares: the sum of the waits stays within the deadline, also if the connections close one after another.
        left = self._deadline.left
        for connection in parts.connections:
            connection.close_within(left / len(parts.connections))
        self._emit(NodeStopped(devices))  # before the event handlers stop
        if self._root is not None:
            await self._root.stopService()
        if lines or messages or cut or unread:
            self._log.warn(
                "Stopped at the deadline (--drain-timeout): gave up {lines} that the broker has not confirmed, {messages} "
                "to other queues (RabbitMQ delivers them again), left {unread} of devices unread, "
                "and closed {cut} before their turn",
                lines=pluralize(lines, "line"),
                messages=pluralize(messages, "message"),
                unread=pluralize(unread, "byte"),
                cut=pluralize(cut, "device"),
            )
        else:
            self._log.info("Stopped: {devices} closed, everything confirmed", devices=pluralize(devices, "device"))

    async def _step(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step of the shutdown. If it fails, the others are done all the same."""
        try:
            await step
        except Exception:
            self._log.failure("A step of the shutdown failed; the shutdown continues")

    async def _close_devices(self) -> None:
        """Accept no more devices, and close those that are connected, each in its turn."""
        parts = self._parts
        for port in parts.ports:
            port.stopListening()
        parts.lines.stop_waiting()
        await self._drain.close_in_turn(list(parts.registry), "the gateway stops")
        await self._finish_handshakes()

    async def _finish_handshakes(self) -> None:
        """Wait a few seconds for handshakes in progress."""
        handshakes = self._parts.handshakes
        if handshakes.connections > handshakes.open:
            await pause(self._clock, STEP)  # a ClientHello may have arrived and not been read yet
        await self._until(lambda: not handshakes.waiting and not handshakes.handshaking, HANDSHAKES)

    async def _leave_cluster(self) -> None:
        """Leave the cluster and stop consuming the own queue, in the order that loses no message."""
        parts = self._parts
        await self._answer(parts.consumers.unbind_own_queue())  # the questions of other nodes would keep it from being silent
        if not parts.unannounced and not len(parts.registry):
            # Back ends were told of every connection. Otherwise the other nodes must report that this node is lost.
            parts.membership.leave()
            if parts.membership.alone and await self._silent() and await self._answer(parts.consumers.delete_own_queue()):
                await self._until(lambda: not parts.membership.listed)
        await self._until(lambda: not parts.groups.spreading)  # no device is left that they would wait for
        await self._answer(parts.consumers.stop_consuming(own=True))
        # From here on the registrar may delete the own queue, whatever is held unacknowledged. A message that is not recorded
        # in time must go back into the queue while the queue still exists.
        longest = math.inf if parts.membership.alone else HAND_BACK
        await self._until(lambda: not parts.outgoing and not parts.groups.spreading, longest)
        if not parts.outgoing:
            await self._until(lambda: not parts.membership.unconfirmed)

    async def _abort_devices(self) -> None:
        """Abort the connections that are still open, without waiting for the close_notify of TLS."""
        for device in list(self._parts.registry):
            if device.transport is not None:
                guard(device, device.transport.abortConnection)
        await pause(self._clock, 0)  # connections publish and count their last lines when they are closed

    async def _silent(self) -> bool:
        """Wait until the own queue is silent and its messages are settled. Return `False` at the deadline, or without a
        broker."""
        consumers = self._parts.consumers
        handled, since = consumers.handled, self._clock.seconds()
        while consumers.connected and not self._deadline.passed:
            if self._clock.seconds() - since >= SILENCE:
                return True
            await pause(self._clock, STEP)
            if consumers.handled != handled or self._parts.courier.unconfirmed:
                handled, since = consumers.handled, self._clock.seconds()
        return False

    async def _answer(self, request: Coroutine[Any, Any, T]) -> T | None:
        """Wait for the broker's answer until the deadline. Return `None` if the broker does not answer or refuses."""
        answers: list[T | Failure] = []
        ensureDeferred(request).addBoth(answers.append)
        await self._until(lambda: answers)
        answer = answers[0] if answers else None
        if not isinstance(answer, Failure):
            return answer
        if answer.check(BrokerError, Closed):
            self._log.info("The broker refused a step of the shutdown, which continues: {error}", error=explain(answer))
        else:
            self._log.failure("A step of the shutdown failed; the shutdown continues", answer)
        return None

    async def _until(self, condition: Callable[[], Any], longest: float = math.inf) -> None:
        """Wait until `condition()` is true, `longest` seconds are over, or the deadline has passed."""
        end = self._clock.seconds() + longest
        while not condition() and not self._deadline.passed and self._clock.seconds() < end:
            await pause(self._clock, STEP)


async def pause(clock: Clock, seconds: float) -> None:
    """Wait for some seconds."""
    waiting: Deferred[None] = Deferred()
    clock.callLater(seconds, waiting.callback, None)
    await waiting
