"""Direct reply-to (`amq.rabbitmq.reply-to`): replies that go to the channel that asked, without a queue.

A channel consumes from the name `amq.rabbitmq.reply-to` without acknowledgements. In what it publishes, a `reply_to` of that
name is replaced by one that nobody can guess. A message to the default exchange with that one as its routing key is delivered
to the channel. It is routed to no queue: a mandatory one is returned although it was delivered, as in RabbitMQ.

Replies for a client that does not read wait here, and count towards the broker's memory.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from .queues import Message

REPLY_TO: Final = "amq.rabbitmq.reply-to"
"""The name to consume from, and the `reply_to` that is replaced."""


class Asker(Protocol):
    """The channel that replies go to."""

    def can_take_reply(self) -> bool:
        """Whether the client reads; when that becomes true again, the consumer wants a `serve`."""

    def deliver_reply(self, tag: str, message: Message) -> None:
        """Write a reply to the client."""


class Memory(Protocol):
    """Where waiting replies are accounted."""

    def retain(self, message: Message) -> None:
        """One more holds the message."""

    def release(self, message: Message) -> None:
        """One fewer does."""


class ReplyConsumer:
    """A channel's consumer of direct replies."""

    __slots__ = ("_asker", "_memory", "_waiting", "name", "tag")

    def __init__(self, name: str, tag: str, asker: Asker, memory: Memory) -> None:
        self.name = name
        """The name that replies are sent to."""
        self.tag = tag
        self._asker = asker
        self._memory = memory
        self._waiting: deque[Message] = deque()

    def deliver(self, message: Message) -> None:
        """Take a reply."""
        if self._asker.can_take_reply() and not self._waiting:
            self._asker.deliver_reply(self.tag, message)
        else:
            self._memory.retain(message)
            self._waiting.append(message)

    def serve(self) -> None:
        """Deliver the replies that waited for the client."""
        while self._waiting and self._asker.can_take_reply():
            message = self._waiting.popleft()
            self._asker.deliver_reply(self.tag, message)
            self._memory.release(message)

    def end(self) -> None:
        """Drop the replies that still wait."""
        while self._waiting:
            self._memory.release(self._waiting.popleft())
