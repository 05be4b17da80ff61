"""The question `device`: what is known about one device, and why it may not work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred

from ..device.connections import Connection
from ..device.services import DeviceServices
from ..interfaces import Clock
from ._findings import Facts, at_several_workers, findings, refusals
from ._lookup import MATCHES, Lookup, read_address
from ._rows import Rows
from ._types import JSON, Args, BadArgument, NamedAnswers, named

ENDS: Final = 20
"""Last ends of connections, and refusals, that are shown."""


class DeviceDetails:
    """Answers the question `device` for one node."""

    def __init__(
        self,
        clock: Clock,
        now: Callable[[], float],
        lookup: Lookup,
        rows: Rows,
        services: DeviceServices,
        ends: Callable[[str, int], Deferred[list[JSON]]],
    ) -> None:
        """`now()` returns the time in seconds since the epoch. `ends(id, limit)` returns the last ends of connections of a
        connection id, device id or address, and refusals, the newest first.
        """
        self._clock = clock
        self._now = now
        self._lookup = lookup
        self._rows = rows
        self._services = services
        self._ends = ends

    def answer(self, args: Args) -> Deferred[JSON]:
        """Return `connections` (rows, each with its `findings`), `total`, `ends` and `findings` of the device itself.

        Raise `BadArgument`.
        """
        text = read_id(args)
        self._rows.adjust()

        return Deferred.fromCoroutine(self._answer(text))

    async def _answer(self, text: str) -> JSON:
        matches = await self._lookup.find(text)
        answer = {
            "connections": [self._details(connection) for connection in matches.connections],
            "total": matches.total,
            "findings": self._refused(text),
        }
        device_ids = {connection.device_id for connection in matches.connections}
        # Connections may close while their ends are searched for.
        return {**answer, "ends": await self._ends_of(text, device_ids)}

    def _details(self, connection: Connection) -> JSON:
        return {**self._rows.row(connection), "findings": findings(self._facts(connection))}

    async def _ends_of(self, text: str, device_ids: Collection[str | None]) -> list[JSON]:
        """Return the last ends of an id, and of the only device that has a connection with that id."""
        ends = await self._ends(text, ENDS)
        if len(device_ids) == 1:
            (device_id,) = device_ids
            if device_id is not None and device_id != text:
                ends = newest([*ends, *await self._ends(device_id, ENDS)], ENDS)
        return ends

    def _refused(self, text: str) -> list[str]:
        services, address = self._services, read_address(text)
        return refusals(
            denied_device=services.denied.denies_device(text),
            denied_address=address is not None and services.denied.denies_address(address.host),
            held_off=services.devices.held_off_for(text),
        )

    def _facts(self, connection: Connection) -> Facts:
        services, factory = self._services, connection.factory
        now, epoch = self._clock.seconds(), self._now()
        slow, stuck = services.slow.since(connection), services.slow.stuck_since(connection)
        missing_since = connection.missing_since
        device_id = connection.device_id
        others = services.devices.others_of(connection)
        addressed = services.devices.find(device_id) if device_id is not None and others else None
        return Facts(
            age=_before(now, connection.opened) or 0.0,
            lines_in=connection.lines_in,
            lines_out=connection.lines_out,
            bytes_in=connection.bytes_in,
            last_in=_before(epoch, connection.last_in),
            last_out=_before(epoch, connection.last_out),
            closing=connection.close_reason,
            pauses=connection.pauses,
            served=factory.sink.serves(connection),
            max_rate=factory.settings.max_rate,
            unpublished=connection.unpublished,
            delimiter=factory.framing.delimiter,
            held_back=connection.held_back,
            unconfirmed=connection.unconfirmed or 0,
            slow=_before(now, slow),
            stuck=_before(now, stuck),
            write_timeout=services.slow.write_timeout,
            waiting=connection.waiting,
            waiting_bytes=connection.waiting_bytes,
            untaken=connection.transport.untaken,
            held=connection.held,
            missing=connection.missing,
            missing_for=_before(services.reordering.clock(), missing_since),
            gap_timeout=services.reordering.gap_timeout,
            same_device=1 + others,
            newest=None if addressed is None or addressed is connection else addressed.connection_id.decode(),
        )


def _before(now: float, time: float | None) -> float | None:
    return None if time is None else max(0.0, now - time)


def read_id(args: Args) -> str:
    """Return the argument `id`. Raise `BadArgument` without one."""
    text = args.get("id")
    if not isinstance(text, str) or not text:
        raise BadArgument("`id` is a connection id, a device id or an address")
    return text


def newest(events: Iterable[JSON], limit: int) -> list[JSON]:
    """Return the newest events, each once, the newest first."""
    once = {_identity(event): event for event in events}
    return sorted(once.values(), key=_time, reverse=True)[:limit]


def _identity(event: Mapping[str, Any]) -> str:
    return repr(sorted(event.items(), key=lambda item: item[0]))


def _time(event: Mapping[str, Any]) -> Any:
    return event["time"]


def merge_device(answers: NamedAnswers, args: Args) -> JSON:
    """Merge what several workers know about a device."""
    connections = [{**row, "worker": worker} for worker, answer in answers for row in answer.get("connections", ())]
    connections.sort(key=lambda row: row["since"], reverse=True)
    shown = connections[:MATCHES]
    workers: dict[str, dict[str, int]] = {}  # numbers of connections, by device id and worker
    for row in connections:
        if row["device_id"] is not None:
            numbers = workers.setdefault(row["device_id"], {})
            numbers[row["worker"]] = numbers.get(row["worker"], 0) + 1
    spread = [
        at_several_workers(device_id, sum(numbers.values()), len(numbers))
        for device_id, numbers in workers.items()
        if len(numbers) > 1
    ]
    return {
        "connections": shown,
        "total": sum(answer.get("total", 0) for _, answer in answers),
        "ends": newest(named("ends", answers), ENDS),
        "findings": list(dict.fromkeys([*spread, *(each for _, answer in answers for each in answer.get("findings", ()))])),
    }
