"""Warnings about arguments and policies of queues that break a promise, when the broker is there.

Theory of operation. Each time that all connections are ready (`begin`), the queues are looked at, in the background: nothing
waits for it. With `--broker-management` the management API is asked, which shows policies. It is asked again, with back-off,
while it does not answer, and some times more while it does not show everything yet: RabbitMQ collects what it shows of a new
queue within some seconds. Without it AMQP shows the arguments of queues, on the connection of the consumers. RabbitMQ logs
each refusal by which it names an argument (`arguments`). So a look begins with the arguments that the last one found, and a
queue whose arguments RabbitMQ refuses to tell is left alone for an hour: where nothing has changed, a further connect leads to
no line in its log.

A fault is reported once, until a look does not find it any more. The look that a later `begin` overtakes is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger
from txamqp.client import Closed

from ..amqp.wire import WireError
from ..config.addresses import ManagementAddress
from ..events import BrokerWarning, Event
from ..interfaces import Clock
from ..supervision import Worker
from .arguments import read_arguments
from .client import BrokerClient, BrokerError, Credentials
from .management import ManagementError, ShownQueue
from .promises import GatewayQueue, QueueRules, broken_promises
from .queues import Queue, declared_arguments
from .retry_delay import RetryDelay

CHANNEL: Final = 6
"""Channel on the connection of the consumers."""

LOOK_AGAIN: Final = 5.0
"""Seconds after which a queue that the management API does not show completely is looked at again. A queue tells its policies
within 5 seconds (`collect_statistics_interval`), and the API collects that every 5 seconds."""

MOST_LOOKS: Final = 6
"""Number of such looks."""

UNTOLD: Final = 3600.0
"""Seconds for which a queue is not looked at over AMQP after the broker refused to tell its arguments."""


class ManagementApi(Protocol):
    """The interface of the management API (`Management`)."""

    async def queue(self, name: str, login: Credentials) -> ShownQueue | None: ...


@dataclass(frozen=True, slots=True)
class InspectionParts:
    """Parts of a node that an inspection of its queues asks."""

    queues: Callable[[], Sequence[GatewayQueue]]
    client: Callable[[], BrokerClient | None]
    """Function that returns the connection of the consumers, if there is one."""
    login: Callable[[], Awaitable[Credentials]]
    """Function that returns the login to the broker now."""
    management: Callable[[ManagementAddress], ManagementApi]
    """Function that makes the management API at an address."""


class QueueInspection(Worker):
    """Service that looks at the queues after each connect."""

    _log = Logger(namespace="owsla")

    def __init__(
        self,
        clock: Clock,
        emit: Callable[[Event], None],
        parts: InspectionParts,
        *,
        management: ManagementAddress | None,
        backoff: RetryDelay | None = None,
    ) -> None:
        super().__init__(clock)
        self.setName("queues")
        self._clock = clock
        self._emit = emit
        self._parts = parts
        self._address = management
        self._management = None if management is None else parts.management(management)
        self._backoff = backoff or RetryDelay(first=2.0, most=300.0)
        self._turn = 0  # number of `begin` so far: a look of an earlier one is dropped
        self._looks = 0
        self._reported: frozenset[str] = frozenset()
        self._complained = ""
        self._lock = DeferredLock()  # for the channel
        self._read: dict[str, Mapping[str, Any]] = {}  # by queue: the arguments that AMQP showed last
        self._untold: dict[str, float] = {}  # by queue: when the broker refused to tell them

    @property
    def management(self) -> ManagementAddress | None:
        """Address of the management API that is asked."""
        return self._address

    def configure(self, management: ManagementAddress | None) -> None:
        """Ask another management API, or none."""
        if management != self._address:
            self._address = management
            self._management = None if management is None else self._parts.management(management)
            self._complained = ""
            self.begin()

    def begin(self) -> None:
        """Look at the queues: all connections to the broker are ready."""
        self._turn += 1
        self._looks = 0
        self._backoff.reset()
        if self.running:
            self.later(0, self._look, self._turn)

    async def _look(self, turn: int) -> None:
        if turn != self._turn:
            return
        try:
            found, complete = await self._found()
        except (BrokerError, Closed, WireError):
            return  # the connection has ended, which begins another turn
        except ManagementError as error:
            if turn == self._turn:
                self._complain(f"policies of queues are not checked, trying again: {error}")
                self.later(self._backoff.next(), self._look, turn)
            return
        if turn != self._turn:
            return
        self._complained = ""
        self._looks += 1
        again = not complete and self._looks < MOST_LOOKS
        if not complete and not again:
            self._complain_of_hidden([rules for rules, _ in found])
        texts = [
            text
            for rules, rabbitmq in found
            if self._management is None or rules.policy is not None or not again
            for text in broken_promises(rules, rabbitmq)
        ]
        for text in texts:
            if text not in self._reported:
                self._emit(BrokerWarning(text))
        self._reported = frozenset(texts)
        if self._management is not None and complete and found and not texts:
            self._log.info("Policies checked at {address}: none breaks a promise", address=self._address)
        if again:
            self.later(LOOK_AGAIN, self._look, turn)

    async def _found(self) -> tuple[list[tuple[QueueRules, tuple[int, int]]], bool]:
        """Return the rules of the queues that exist, with the version of the broker, and whether that is all."""
        client = self._parts.client()
        management, complete = self._management, True
        if client is None or (management is None and client.channel_max < CHANNEL):
            return [], True
        found: list[tuple[QueueRules, tuple[int, int]]] = []
        login = await self._parts.login() if management is not None else None
        for inspected in self._parts.queues():
            queue = inspected.queue
            if management is not None and login is not None:
                shown = await management.queue(queue.name, login)
                complete = complete and shown is not None and shown.policy is not None
                arguments, policy = (None, None) if shown is None else (shown.arguments, shown.policy)
            else:
                arguments, policy = await self._read_arguments(client, queue), None
            if arguments is not None:
                found.append((QueueRules(queue.name, inspected.use, arguments, policy), client.rabbitmq))
        return found, complete

    async def _read_arguments(self, client: BrokerClient, queue: Queue) -> Mapping[str, Any] | None:
        # An overtaken look may still use the channel, on the same connection.
        await self._lock.acquire()
        try:
            name, now = queue.name, self._clock.seconds()
            if now - self._untold.get(name, -UNTOLD) < UNTOLD:
                return None
            expected = self._read.get(name) or declared_arguments(client, queue)
            found = await read_arguments(client, CHANNEL, name, expected)
        except WireError as error:
            client.abort(error)  # the broker does not speak AMQP: nobody knows the state of the channel
            raise
        finally:
            self._lock.release()
        if found is None:
            self._untold[name] = now
            self._read.pop(name, None)
        else:
            self._read[name] = found
        return found

    def _complain_of_hidden(self, shown: Sequence[QueueRules]) -> None:
        """Warn that the management API does not show policies, or none of the queues."""
        if not shown:
            self._complain(
                f"policies of queues are not checked: {self._address} has none of the queues; "
                "is it the management API of this broker, and is its path right?"
            )
        elif any(rules.policy is None for rules in shown):
            self._complain(
                f"policies of queues are not checked: {self._address} does not show them "
                "(management_agent.disable_metrics_collector)"
            )

    def _complain(self, text: str) -> None:
        """Warn that queues are not checked; once for each reason."""
        if text != self._complained:
            self._complained = text
            self._emit(BrokerWarning(text))
