"""Dead letters: messages that a queue dropped, in the form in which its dead-letter exchange gets them."""

from __future__ import annotations

from typing import Any, NamedTuple

from owsla.amqp import wire

from .messages import NO_HEADERS, Message, fits_frame
from .queues import ServerQueue


class DeadLetter(NamedTuple):
    """Message for a dead-letter exchange, with its routing keys and its history (`x-death`)."""

    message: Message
    keys: list[str]
    deaths: list[dict[str, Any]]

    def cycles_at(self, queue: str) -> bool:
        """Return whether the message returned to this queue without a rejection, which is where RabbitMQ drops it."""
        return any(death.get("queue") == queue for death in self.deaths) and not any(
            death.get("reason") == "rejected" for death in self.deaths
        )


def make_dead_letter(queue: ServerQueue, message: Message, reason: str, time: float) -> DeadLetter | None:
    """Copy the message with its history in the header `x-death`, or return `None` if it cannot be encoded again.

    The history grows with each death. If the header would not fit a frame, the oldest half of it is left out, repeatedly.
    That is a difference to RabbitMQ.
    """
    exchange, new_key = queue.policy.dead_letter_exchange or "", queue.policy.dead_letter_key
    values = wire.split_properties(message.header, 12)
    headers = message.headers()
    keys = [message.routing_key, *(key for key in _list(headers.get("CC")) if isinstance(key, str))]
    deaths = [death for death in _list(headers.get("x-death")) if isinstance(death, dict)]
    # RabbitMQ keeps one entry per queue and reason, with a count, and moves it to the front.
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
    # The other headers stay encoded: decoding would lose the width of integers. With x-dead-letter-routing-key RabbitMQ
    # removes CC, which would route the message by its old keys as well.
    dropped = (b"x-death", b"BCC") if new_key is None else (b"x-death", b"BCC", b"CC")
    entries = [entry for entry in wire.split_table(values.get("headers", NO_HEADERS)) if entry[0] not in dropped]
    # RabbitMQ removes the expiration, so that the message does not expire in the dead-letter queue as well.
    values.pop("expiration", None)
    key = message.routing_key if new_key is None else new_key
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
            if fits_frame(header) or not kept:
                break
            kept //= 2
    except (wire.WireError, UnicodeEncodeError):
        return None  # a routing key that is not UTF-8; RabbitMQ would have refused it on arrival
    copy = Message(exchange, key, address, header, message.body)
    return DeadLetter(copy, keys if new_key is None else [key], deaths)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
