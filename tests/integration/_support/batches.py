"""Lines in batches (`--batch`): tests that hold with and without, and what is in a batch, read with somebody else's decoder."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import pika
import pytest

from tests import ONE_WAY

BATCHES: Final[dict[str, Any]] = {"batch": 50, "batch_delay": "5ms"}
"""Options of an Owsla that publishes lines in batches."""

_WAYS: Final = {"lines": False} if ONE_WAY else {"lines": False, "batches": True}

both_ways = pytest.mark.parametrize("batching", list(_WAYS.values()), ids=list(_WAYS), indirect=True)
"""Mark of a test that proves a guarantee of lines: it runs with a message for each line, and with batches."""


def lines_of(properties: Any, body: bytes) -> list[tuple[Any, bytes]]:
    """Return the properties and the body of each line in a message, with the headers that it has without batches.

    A message that is no batch is returned as it is.
    """
    headers = properties.headers or {}
    if "owsla_batch" not in headers:
        return [(properties, body)]
    assert properties.content_type == "application/x-msgpack"
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    lines = list(unpacker)
    assert len(lines) == headers["owsla_batch"]
    others = {name: value for name, value in headers.items() if name != "owsla_batch"}
    return [(_of_line(properties, others, line), line[4]) for line in lines]


def _of_line(properties: Any, others: dict[str, Any], line: list[Any]) -> pika.BasicProperties:
    connection_id, seq, received, device_id, _ = line
    device = {} if device_id is None else {"device_id": device_id}
    headers = {"connection_id": connection_id, **device, **others, "from_device_seq": seq}
    return pika.BasicProperties(
        headers=headers,
        delivery_mode=properties.delivery_mode,
        reply_to=properties.reply_to,
        timestamp=received // 1000,
        app_id=properties.app_id,
    )
