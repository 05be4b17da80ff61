"""Direct reply-to (`amq.rabbitmq.reply-to`): replies to the channel that asked, without a queue.

A channel consumes from the name `amq.rabbitmq.reply-to` without acknowledgements. In its publishes, a `reply_to` of that name
is replaced by a name that cannot be guessed. A message to the default exchange with that name as its routing key is delivered
to the channel. It is routed to no queue: a mandatory reply is returned although it was delivered, as in RabbitMQ.

Replies for a client that does not read wait here, and count towards the memory of the broker.
"""

from __future__ import annotations

import base64
import secrets
from collections import deque
from typing import Final, Protocol

from .memory import MemoryAccount
from .messages import Message

REPLY_TO: Final = "amq.rabbitmq.reply-to"
"""Name to consume replies from, and `reply_to` that is replaced."""


_NODE: Final = b"owsla@localhost"


def reply_name() -> str:
    """Return a new name for the replies to a channel.

    It has the form of RabbitMQ's: an Erlang process id in base64, and a key. Owsla sends nothing to names of another form.
    """
    process = b"\x83Xw" + bytes([len(_NODE)]) + _NODE + secrets.token_bytes(12)
    return f"{REPLY_TO}.{base64.b64encode(process).decode()}.{secrets.token_urlsafe(16)}"


class ReplyChannel(Protocol):
    """Channel that gets the replies."""

    def can_take_reply(self) -> bool:
        """Return whether the client reads. When it does again, the channel calls `ReplyConsumer.serve`."""

    def deliver_reply(self, tag: str, message: Message) -> None:
        """Send a reply to the client."""


class ReplyConsumer:
    """Consumer of the direct replies to a channel."""

    __slots__ = ("_channel", "_memory", "_waiting", "name", "tag")

    def __init__(self, name: str, tag: str, channel: ReplyChannel, memory: MemoryAccount) -> None:
        self.name = name
        """Routing key of the replies."""
        self.tag = tag
        self._channel = channel
        self._memory = memory
        self._waiting: deque[Message] = deque()

    def deliver(self, message: Message) -> None:
        """Deliver a reply, or keep it until the client reads."""
        if self._channel.can_take_reply() and not self._waiting:
            self._channel.deliver_reply(self.tag, message)
        else:
            self._memory.retain(message)
            self._waiting.append(message)

    def serve(self) -> None:
        """Deliver the replies that wait, as long as the client reads."""
        while self._waiting and self._channel.can_take_reply():
            message = self._waiting.popleft()
            self._channel.deliver_reply(self.tag, message)
            self._memory.release(message)

    def end(self) -> None:
        """Drop the replies that still wait."""
        while self._waiting:
            self._memory.release(self._waiting.popleft())
