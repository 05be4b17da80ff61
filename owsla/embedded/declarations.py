"""Commands of a channel that declare, bind and delete exchanges and queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .broker import Broker
from .channel_output import ChannelOutput
from .errors import AMQPError
from .queues import ServerQueue


class Declarations:
    """Commands of a channel about exchanges, queues and bindings.

    `owner` is the connection of the channel, to which exclusive queues belong.
    """

    __slots__ = ("_broker", "_last_queue", "_output", "_owner")

    def __init__(self, broker: Broker, owner: object, output: ChannelOutput) -> None:
        self._broker = broker
        self._owner = owner
        self._output = output
        self._last_queue: str | None = None
        """Name of the queue that the channel declared last: the queue of a command without a name."""

    def queue_name(self, fields: dict[str, Any]) -> str:
        """Return the name of the queue in a command; without a name, that of the queue that the channel declared last."""
        name: str = fields["queue"]
        if name:
            return name
        if self._last_queue is None:
            raise AMQPError(404, "no previously declared queue")
        return self._last_queue

    def queue(self, fields: dict[str, Any]) -> ServerQueue:
        """Return the queue of a command."""
        return self._broker.queue(self.queue_name(fields), self._owner)

    def exchange_declare(self, fields: dict[str, Any]) -> None:
        name = _without_line_ends(fields["exchange"])
        if fields["passive"]:
            self._broker.exchange(name)
        else:
            self._broker.declare_exchange(
                name,
                fields["type"],
                durable=fields["durable"],
                auto_delete=fields["auto_delete"],
                internal=fields["internal"],
                arguments=fields["arguments"],
            )
        self._output.reply_unless_nowait(fields, "exchange.declare-ok")

    def exchange_delete(self, fields: dict[str, Any]) -> None:
        self._broker.delete_exchange(_without_line_ends(fields["exchange"]), if_unused=fields["if_unused"])
        self._output.reply_unless_nowait(fields, "exchange.delete-ok")

    def exchange_bind(self, fields: dict[str, Any]) -> None:
        destination = self._broker.exchange(_without_line_ends(fields["destination"]))
        self._broker.bind(_without_line_ends(fields["source"]), destination, fields["routing_key"], fields["arguments"])
        self._output.reply_unless_nowait(fields, "exchange.bind-ok")

    def exchange_unbind(self, fields: dict[str, Any]) -> None:
        if not fields["destination"]:
            raise AMQPError(403, "operation not permitted on the default exchange")
        destination = self._broker.exchanges.get(_without_line_ends(fields["destination"]))
        self._broker.unbind(_without_line_ends(fields["source"]), destination, fields["routing_key"], fields["arguments"])
        self._output.reply_unless_nowait(fields, "exchange.unbind-ok")

    def queue_declare(self, fields: dict[str, Any]) -> None:
        name = _without_line_ends(fields["queue"])
        if self._broker.is_reply_name(name):
            self._last_queue = name
            self._declared(fields, name, 0, 1)
            return
        if fields["passive"]:
            queue = self.queue({**fields, "queue": name})
            queue.mark_used()
        else:
            queue = self._broker.declare_queue(
                name,
                self._owner,
                durable=fields["durable"],
                exclusive=fields["exclusive"],
                auto_delete=fields["auto_delete"],
                arguments=fields["arguments"],
            )
        queue.expire()
        self._last_queue = queue.name
        self._declared(fields, queue.name, len(queue.ready), len(queue.consumers))

    def _declared(self, fields: dict[str, Any], name: str, messages: int, consumers: int) -> None:
        self._output.reply_unless_nowait(
            fields, "queue.declare-ok", queue=encode_name(name), message_count=messages, consumer_count=consumers
        )

    def queue_bind(self, fields: dict[str, Any]) -> None:
        queue = self.queue({**fields, "queue": _without_line_ends(fields["queue"])})
        key = fields["routing_key"]
        if not fields["queue"] and not key:
            key = queue.name  # specification: without queue and key, both are the name of the queue declared last
        self._broker.bind(_without_line_ends(fields["exchange"]), queue, key, fields["arguments"])
        self._output.reply_unless_nowait(fields, "queue.bind-ok")

    def queue_unbind(self, fields: dict[str, Any]) -> None:
        name = _without_line_ends(self.queue_name(fields))
        queue = self._broker.queue(name, self._owner) if name in self._broker.queues else None
        self._broker.unbind(_without_line_ends(fields["exchange"]), queue, fields["routing_key"], fields["arguments"])
        self._output.reply_unless_nowait(fields, "queue.unbind-ok")

    def queue_purge(self, fields: dict[str, Any]) -> None:
        self._output.reply_unless_nowait(fields, "queue.purge-ok", message_count=self.queue(fields).purge())

    def queue_delete(self, fields: dict[str, Any]) -> None:
        count = self._broker.delete_queue(
            _without_line_ends(self.queue_name(fields)), self._owner, if_unused=fields["if_unused"], if_empty=fields["if_empty"]
        )
        self._output.reply_unless_nowait(fields, "queue.delete-ok", message_count=count)


DECLARATIONS: Final[Mapping[str, Callable[[Declarations, dict[str, Any]], None]]] = {
    "exchange.declare": Declarations.exchange_declare,
    "exchange.delete": Declarations.exchange_delete,
    "exchange.bind": Declarations.exchange_bind,
    "exchange.unbind": Declarations.exchange_unbind,
    "queue.declare": Declarations.queue_declare,
    "queue.bind": Declarations.queue_bind,
    "queue.unbind": Declarations.queue_unbind,
    "queue.purge": Declarations.queue_purge,
    "queue.delete": Declarations.queue_delete,
}
"""Commands about exchanges, queues and bindings, by the names of their methods."""


def encode_name(name: str) -> bytes:
    """Encode a name as the client sent it: surrogate escapes become the bytes that were not UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _without_line_ends(name: str) -> str:
    """Remove line ends from a name, as RabbitMQ does in declarations."""
    return name.replace("\r", "").replace("\n", "")
