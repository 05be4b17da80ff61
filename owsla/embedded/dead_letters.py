"""Dead letters: a message that a queue gave up, as it is published to the queue's dead-letter exchange."""

from __future__ import annotations

from typing import Any, NamedTuple

from owsla.amqp import wire

from .queues import NO_HEADERS, Message, Queue, fits


class DeadLetter(NamedTuple):
    """A message for a dead-letter exchange, with the routing keys that it is published with."""

    message: Message
    keys: list[str]
    deaths: list[dict[str, Any]]

    def cycles_at(self, queue: str) -> bool:
        """Whether it came round to this queue without ever having been rejected: RabbitMQ drops it there."""
        return any(death.get("queue") == queue for death in self.deaths) and not any(
            death.get("reason") == "rejected" for death in self.deaths
        )


def dead_letter(queue: Queue, message: Message, reason: str, time: float) -> DeadLetter | None:
    """The message with the history of its deaths (x-death); `None` where it cannot be written again.

    The history is what makes headers grow. Where it would not fit a frame, its oldest entries are left out, and then all of it.
    """
    exchange, dead_key = queue.policy.dead_exchange or "", queue.policy.dead_key
    values = wire.split_properties(message.header, 12)
    headers = message.headers()
    keys = [message.routing_key, *(key for key in _list(headers.get("CC")) if isinstance(key, str))]
    deaths = [death for death in _list(headers.get("x-death")) if isinstance(death, dict)]
    death = next((d for d in deaths if d.get("queue") == queue.name and d.get("reason") == reason), None)
    if death is None:
        death = {
            "count": 0,
            "reason": reason,
            "queue": queue.name,
            "time": wire.Timestamp(time),
            "exchange": message.exchange,
            "routing-keys": keys,
        }
        if "expiration" in values:
            death["original-expiration"] = values["expiration"][1:].decode("utf-8", "replace")
    else:
        deaths.remove(death)
    count = death.get("count")
    death["count"] = count + 1 if isinstance(count, int) else 1
    deaths = [death, *deaths]
    # What is not ours to change is kept as it stands on the wire, with the types that decoding would forget.
    dropped = (b"x-death", b"BCC") if dead_key is None else (b"x-death", b"BCC", b"CC")
    entries = [entry for entry in wire.split_table(values.get("headers", NO_HEADERS)) if entry[0] not in dropped]
    values.pop("expiration", None)
    key = message.routing_key if dead_key is None else dead_key
    try:
        address = wire.short_string(exchange) + wire.short_string(key)
        first = [
            (f"x-first-death-{name}".encode(), wire.encode_value(value))
            for name, value in [("reason", reason), ("queue", queue.name), ("exchange", message.exchange)]
            if f"x-first-death-{name}" not in headers
        ]
        kept = len(deaths)
        while True:
            history = [*first, (b"x-death", wire.encode_value(deaths[:kept]))] if kept else []
            values["headers"] = wire.join_table([*entries, *history])
            header = wire.header_payload(len(message.body), wire.join_properties(values))
            if fits(header) or not kept:
                break
            kept //= 2
    except (wire.WireError, UnicodeEncodeError):
        return None  # a key of odd bytes cannot be written again; RabbitMQ would have refused it on arrival
    copy = Message(exchange, key, address, header, message.body)
    return DeadLetter(copy, keys if dead_key is None else [key], deaths)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
