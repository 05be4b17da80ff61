"""A channel's commands about exchanges, queues and bindings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .broker import Broker
from .errors import AMQPError
from .queues import Queue

Reply = Callable[..., None]


class Declarations:
    """A channel's commands about exchanges and queues. `owner` is its connection; `reply(name, **fields)` sends the answer."""

    __slots__ = ("_broker", "_owner", "_reply", "last_queue")

    def __init__(self, broker: Broker, owner: object, reply: Reply) -> None:
        self._broker = broker
        self._owner = owner
        self._reply = reply
        self.last_queue: str | None = None
        """The queue that a command without a name means."""

    def name(self, fields: dict[str, Any]) -> str:
        """The queue that a command means: without a name, the one that this channel declared last."""
        name: str = fields["queue"]
        if name:
            return name
        if self.last_queue is None:
            raise AMQPError(404, "no previously declared queue")
        return self.last_queue

    def queue(self, fields: dict[str, Any]) -> Queue:
        """The queue that a command means."""
        return self._broker.queue(self.name(fields), self._owner)

    def exchange_declare(self, fields: dict[str, Any]) -> None:
        name = _stripped(fields["exchange"])
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
        self._ok(fields, "exchange.declare-ok")

    def exchange_delete(self, fields: dict[str, Any]) -> None:
        self._broker.delete_exchange(_stripped(fields["exchange"]), if_unused=fields["if_unused"])
        self._ok(fields, "exchange.delete-ok")

    def exchange_bind(self, fields: dict[str, Any]) -> None:
        destination = self._broker.exchange(_stripped(fields["destination"]))
        self._broker.bind(_stripped(fields["source"]), destination, fields["routing_key"], fields["arguments"])
        self._ok(fields, "exchange.bind-ok")

    def exchange_unbind(self, fields: dict[str, Any]) -> None:
        if not fields["destination"]:
            raise AMQPError(403, "operation not permitted on the default exchange")
        destination = self._broker.exchanges.get(_stripped(fields["destination"]))
        self._broker.unbind(_stripped(fields["source"]), destination, fields["routing_key"], fields["arguments"])
        self._ok(fields, "exchange.unbind-ok")

    def queue_declare(self, fields: dict[str, Any]) -> None:
        name = _stripped(fields["queue"])
        if self._broker.takes_replies(name):
            self.last_queue = name
            self._declared(fields, name, 0, 1)
            return
        if fields["passive"]:
            queue = self.queue({**fields, "queue": name})
            queue.touch()
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
        self.last_queue = queue.name
        self._declared(fields, queue.name, len(queue.ready), len(queue.consumers))

    def _declared(self, fields: dict[str, Any], name: str, messages: int, consumers: int) -> None:
        self._ok(fields, "queue.declare-ok", queue=raw(name), message_count=messages, consumer_count=consumers)

    def queue_bind(self, fields: dict[str, Any]) -> None:
        queue = self.queue({**fields, "queue": _stripped(fields["queue"])})
        key = fields["routing_key"]
        if not fields["queue"] and not key:
            key = queue.name  # specification: both left out mean the queue that was declared last
        self._broker.bind(_stripped(fields["exchange"]), queue, key, fields["arguments"])
        self._ok(fields, "queue.bind-ok")

    def queue_unbind(self, fields: dict[str, Any]) -> None:
        name = _stripped(self.name(fields))
        queue = self._broker.queue(name, self._owner) if name in self._broker.queues else None
        self._broker.unbind(_stripped(fields["exchange"]), queue, fields["routing_key"], fields["arguments"])
        self._ok(fields, "queue.unbind-ok")

    def queue_purge(self, fields: dict[str, Any]) -> None:
        self._ok(fields, "queue.purge-ok", message_count=self.queue(fields).purge())

    def queue_delete(self, fields: dict[str, Any]) -> None:
        count = self._broker.delete_queue(
            _stripped(self.name(fields)), self._owner, if_unused=fields["if_unused"], if_empty=fields["if_empty"]
        )
        self._ok(fields, "queue.delete-ok", message_count=count)

    def _ok(self, fields: dict[str, Any], name: str, **answer: Any) -> None:
        if not fields.get("nowait"):
            self._reply(name, **answer)


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


def raw(name: str) -> bytes:
    """A short string as the client sent it, odd bytes included."""
    return name.encode("utf-8", "surrogateescape")


def _stripped(name: str) -> str:
    """A name without line ends, which RabbitMQ takes out of what is declared."""
    return name.replace("\r", "").replace("\n", "")
