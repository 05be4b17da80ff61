"""Back end made with pika, in a thread of its own. Its coroutines run in the thread of the reactor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from twisted.internet.defer import Deferred

from .batches import lines_of
from .waiting import PATIENCE, Inbox, in_thread_order, until, within

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as pika shows it."""

    queue: str
    body: bytes
    properties: Any
    redelivered: bool = False

    @property
    def headers(self) -> dict[str, Any]:
        headers: dict[str, Any] | None = self.properties.headers
        return headers or {}

    @property
    def connection_id(self) -> str:
        connection_id = self.headers["connection_id"]
        assert isinstance(connection_id, str)
        return connection_id

    @property
    def seq(self) -> int:
        seq = self.headers["from_device_seq"]
        assert isinstance(seq, int)
        return seq


def _get(channel: Any, queue: str, limit: int) -> list[Message]:
    """Take up to `limit` messages with basic.get, in the thread of the channel."""
    messages: list[Message] = []
    while len(messages) < limit:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            break
        messages.append(Message(queue, body, properties, method.redelivered))
    return messages


class Backend:
    """Connection to a broker that consumes `queues` and publishes.

    `inbox[queue]` has the received messages, in order. The lines of a batch become messages of their own.
    """

    def __init__(self, url: str, queues: Sequence[str] = ()) -> None:
        self._parameters = pika.URLParameters(url)
        self._parameters.socket_timeout = 10
        self._queues = list(queues)
        self._thread = threading.Thread(target=self._run, name="backend", daemon=True)
        self._ready = threading.Event()
        self._stopping = False
        self._connection: Any = None
        self._channel: Any = None
        self.error: BaseException | None = None
        self.inbox: dict[str, Inbox[Message]] = {queue: Inbox(f"messages of {queue}") for queue in queues}

    async def start(self, timeout: float = PATIENCE) -> Backend:
        """Connect and begin to consume."""
        self._thread.start()
        await until(lambda: self._ready.is_set() or self.error, timeout, "the back end's connection")
        if self.error is not None:
            raise AssertionError(f"the back end could not begin: {self.error!r}") from self.error
        return self

    async def get(self, queue: str, timeout: float = PATIENCE) -> Message:
        """Take the next message of a consumed queue."""
        return await self.inbox[queue].get(timeout)

    async def publish(
        self,
        routing_key: str,
        body: bytes,
        headers: Mapping[str, Any] | None = None,
        *,
        exchange: str = "",
        mandatory: bool = True,
        **properties: Any,
    ) -> None:
        """Publish a message and wait for its confirm. Raises pika's UnroutableError when it is returned."""
        shape = pika.BasicProperties(headers=dict(headers) if headers is not None else None, **properties)
        await self.call(lambda channel: channel.basic_publish(exchange, routing_key, body, shape, mandatory))

    async def count(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""

        def ask(channel: Any) -> int:
            count: int = channel.queue_declare(queue, passive=True).method.message_count
            return count

        return await self.call(ask)

    async def fetch(self, queue: str) -> Message | None:
        """Take one message with basic.get."""
        found = await self.call(lambda channel: _get(channel, queue, 1))
        return found[0] if found else None

    async def fetch_all(self, queue: str) -> list[Message]:
        """Take all messages that are in a queue with basic.get."""
        messages: list[Message] = []
        while found := await self.call(lambda channel: _get(channel, queue, 100)):
            messages += found
        return messages

    async def fetch_lines(self, queue: str) -> list[Message]:
        """Take all messages that are in a queue with basic.get. The lines of a batch become messages of their own."""
        lines: list[Message] = []
        for found in await self.fetch_all(queue):
            shapes = lines_of(found.properties, found.body)
            lines += [Message(queue, line, shape, found.redelivered) for shape, line in shapes]
        return lines

    async def call(self, function: Callable[[Any], T], timeout: float = PATIENCE) -> T:
        """Run a function with the pika channel in the back end's thread."""
        done: Deferred[T] = Deferred()

        @in_thread_order
        def succeed(value: T) -> None:
            if not done.called:
                done.callback(value)

        @in_thread_order
        def fail(error: BaseException) -> None:
            if not done.called:
                done.errback(error)

        def run() -> None:
            try:
                value = function(self._channel)
            except BaseException as error:  # any exception is raised in the test
                fail(error)
            else:
                succeed(value)

        self._connection.add_callback_threadsafe(run)
        return await within(done, timeout, "an answer to the back end")

    async def close(self) -> None:
        """Close the connection and end the thread, in any state."""
        self._stopping = True
        if self._connection is not None:
            try:
                self._connection.add_callback_threadsafe(lambda: None)
            except pika.exceptions.ConnectionWrongStateError:
                pass
        if self._thread.ident is not None:
            await until(lambda: not self._thread.is_alive(), 30, "the end of the back end's thread")

    def _run(self) -> None:
        try:
            self._connection = connection = BlockingConnection(self._parameters)
        except BaseException as error:  # to be shown by start()
            self.error = error
            return
        try:
            self._channel = channel = connection.channel()
            channel.confirm_delivery()
            for queue in self._queues:
                self._consume(channel, queue)
            self._ready.set()
            while not self._stopping:
                connection.process_data_events(time_limit=1)
        except BaseException as error:  # the broker went away: fail every waiting reader
            self.error = error
            self._finish(error)
        finally:
            if connection.is_open:
                connection.close()

    def _consume(self, channel: BlockingChannel, queue: str) -> None:
        def arrived(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            for shape, line in lines_of(properties, body):
                self._arrived(Message(queue, line, shape, method.redelivered))

        channel.basic_consume(queue, arrived, auto_ack=True)

    def _arrived(self, message: Message) -> None:
        in_thread_order(self.inbox[message.queue].put)(message)

    def _finish(self, error: BaseException) -> None:
        for inbox in self.inbox.values():
            in_thread_order(inbox.finish)(ConnectionError(f"the back end lost its broker: {error!r}"))
