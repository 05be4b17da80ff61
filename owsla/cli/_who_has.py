"""`owsla who-has`: asks all nodes which of them has a device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from twisted.python.failure import Failure

from ..amqp import wire
from ..amqp.methods import encode_method
from ..amqp.wire import WireError
from ..broker.client import BaseHandler, BrokerClient, BrokerError
from ..interfaces import DelayedCall
from ..runtime.end_of_turn import EndOfTurn
from ._output import Output
from ._running import Session
from ._text import word
from ._units import duration

CHANNEL: Final = 1

MOST: Final = 500
"""Maximum number of devices in one question (docs/contract.md)."""

GRACE: Final = 0.1
"""Seconds to wait when all devices are found: with `--on-duplicate keep` another node may have a newer connection."""

NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Found:
    """The connection of a device, as its node describes it."""

    device_id: str
    connection_id: str
    since: int
    """Time at which the device was identified, in milliseconds since the epoch, by the clock of the node."""
    age: int
    """Milliseconds since then."""
    door: str

    @property
    def node(self) -> str:
        return self.connection_id[:8]


def read_answer(header: bytes, body: bytes) -> list[Found]:
    """Return the connections in an answer to `who-has`; none if it is another message, or malformed."""
    try:
        headers = wire.decode_properties(header, wire.BARE_HEADER).get("headers", {})
        claims = json.loads(body) if headers.get("owsla_notice") == "has" else []
    except (WireError, ValueError, RecursionError):
        return []
    if not isinstance(claims, list):
        return []
    return [Found(**claim) for claim in map(_fields, claims) if claim is not None]


_FIELDS: Final[Mapping[str, type]] = {"device_id": str, "connection_id": str, "since": int, "age": int, "door": str}


def _fields(claim: Any) -> dict[str, Any] | None:
    """Return the fields of a claim, or `None` if one is missing or has another type."""
    if not isinstance(claim, dict):
        return None
    fields = {name: claim.get(name) for name in _FIELDS}
    return fields if all(type(fields[name]) is kind for name, kind in _FIELDS.items()) else None


Show = Callable[[Sequence[str], Mapping[str, Found], float], str]
"""A function that formats devices, those of them that were found, and the time at which they were found."""


def as_objects(device_ids: Sequence[str], found: Mapping[str, Found], now: float) -> str:
    """Return a JSON object for each device, in ASCII."""
    nothing: dict[str, Any] = dict.fromkeys(("connection_id", "node", "since", "age", "door"))
    lines = []
    for device_id in device_ids:
        claim = found.get(device_id)
        known = {} if claim is None else {**asdict(claim), "node": claim.node}
        lines.append(json.dumps({"device_id": device_id, **nothing, **known}) + "\n")
    return "".join(lines)


def as_table(device_ids: Sequence[str], found: Mapping[str, Found], now: float) -> str:
    """Return a line for each device, in columns."""
    rows = []
    for device_id in device_ids:
        claim = found.get(device_id)
        name = word(device_id)
        rows.append((name, *"-----") if claim is None else (name, *_columns(claim, now)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(" ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def _columns(claim: Found, now: float) -> tuple[str, ...]:
    # By the age, not by `since`: this clock is the one that the reader knows.
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now - claim.age / 1000))
    return word(claim.connection_id), word(claim.node), since, duration(claim.age / 1000), word(claim.door)


@dataclass(frozen=True, slots=True)
class WhoHasOptions:
    """The options of `owsla who-has`. Times are seconds."""

    exchange: str
    device_ids: Sequence[str]
    wait: float
    """Maximum time to wait for answers."""
    timeout: float
    """Maximum time to wait for the broker."""
    show: Show


class WhoHas(BaseHandler):
    """The `Role` of `owsla who-has`, and the handler of its only channel."""

    name = "who-has"

    def __init__(
        self,
        reactor: Any,
        turn: EndOfTurn,
        session: Session,
        *,
        options: WhoHasOptions,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._options = options
        self._now = now
        self._client: BrokerClient | None = None
        self._unconfirmed: set[int] = set()
        self._found: dict[str, Found] = {}
        self._complete = False
        self._output = Output(reactor, lambda why: session.finish(1, why))
        self._timeout: DelayedCall | None = None
        self._wait(options.timeout, lambda: session.finish(1, f"no connection to the broker (waited {options.timeout:g} s)"))

    # -- the connection ----------------------------------------------------------------------------------------------------

    async def up(self, client: BrokerClient) -> None:
        channel = await client.open_channel(CHANNEL, self)
        await channel.confirm_select()
        # Exclusive: the broker deletes it with this connection.
        declared = await channel.queue_declare(queue="", exclusive=True, auto_delete=True)
        await channel.basic_consume(queue=declared.queue, no_ack=True, exclusive=True)
        self._client = client
        device_ids = self._options.device_ids
        for first in range(0, len(device_ids), MOST):
            self._ask(client, device_ids[first : first + MOST], str(declared.queue))
        waited = f"(waited {self._options.timeout:g} s)"
        self._wait(
            self._options.timeout, lambda: self._session.finish(1, f"the broker has not confirmed the question {waited}")
        )

    def down(self) -> None:
        self._client = None

    def blocked(self, reason: str) -> None: ...

    def unblocked(self) -> None: ...

    def closed(self, reason: Failure) -> None:
        if self._client is None or self._client.closed:
            return
        error = reason.value
        if isinstance(error, BrokerError) and error.code == NOT_FOUND:
            self._no_gateway()
        else:
            self._session.finish(1, str(error))

    # -- the question ------------------------------------------------------------------------------------------------------

    def _ask(self, client: BrokerClient, device_ids: Sequence[str], reply_to: str) -> None:
        header = wire.encode_properties({
            "headers": {"owsla_notice": "who-has"},
            "content_type": "application/json",
            "reply_to": reply_to,
            "expiration": str(max(1, round(self._options.wait * 1000))),
        })  # fmt: skip
        body = json.dumps(list(device_ids)).encode()
        publish = encode_method("basic.publish", exchange=self._options.exchange, mandatory=True)
        self._unconfirmed.add(len(self._unconfirmed) + 1)
        client.write(
            wire.frame(wire.FRAME_METHOD, CHANNEL, publish)
            + wire.content_frames(CHANNEL, wire.header_payload(len(body), header), body, client.frame_max)
        )

    def returned(self, reason: str, routing_key: str, header: bytes, body: bytes) -> None:
        self._no_gateway()

    def _no_gateway(self) -> None:
        self._session.finish(
            1, f"nobody listens to the exchange {self._options.exchange}: is the gateway running, on this broker?"
        )

    def confirmed(self, tag: int, multiple: bool) -> None:
        self._unconfirmed -= {number for number in self._unconfirmed if number <= tag} if multiple else {tag}
        if not self._unconfirmed and not self._complete:
            self._wait(self._options.wait, self._show)

    def refused(self, tag: int, multiple: bool) -> None:
        self.confirmed(tag, multiple)  # by the queue of one node; the others have the question

    # -- answers -----------------------------------------------------------------------------------------------------------

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take an answer."""
        for claim in read_answer(header, body):
            known = self._found.get(claim.device_id)
            if known is None or (known.since, known.connection_id) < (claim.since, claim.connection_id):
                self._found[claim.device_id] = claim
        if not self._complete and self._found.keys() >= set(self._options.device_ids):
            self._complete = True
            self._wait(min(GRACE, self._options.wait), self._show)

    def _show(self) -> None:
        device_ids = self._options.device_ids
        found = any(device_id in self._found for device_id in device_ids)
        text = self._options.show(device_ids, self._found, self._now())
        self._output.write(text.encode("utf-8", "backslashreplace"), lambda: self._session.finish(0 if found else 1))

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after some time, unless something happens before."""
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        self._timeout = self._reactor.callLater(seconds, then)
