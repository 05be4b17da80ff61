"""A node with connections in memory, and its answers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed

from owsla.desk import CloseConnections, DeviceDetails, DeviceList, Lookup, NodeDesk, Rows, Slices, TopDevices
from owsla.device.protocol import DeviceProtocol

from ..device._fakes import Source, Wire, World


class Gateway(World):
    """Connections of a node, and its desk."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.past: dict[str, list[dict[str, Any]]] = {}
        """Last ends, by id."""
        now = self.factory.now
        slices = Slices(self.clock)
        rows = Rows(self.clock, now, self.services.slow)
        lookup = Lookup(self.registry, self.services.devices, slices)
        details = DeviceDetails(
            self.clock, now, lookup, rows, self.services, lambda text, limit: succeed(self.past.get(text, [])[:limit])
        )
        self.desk = NodeDesk(
            {
                "close": CloseConnections(lookup, rows, slices, self.events.append).answer,
                "device": details.answer,
                "devices": DeviceList(self.registry, rows, slices).answer,
                "top": TopDevices(self.clock, self.registry, self.services.slow, self.services.reordering, rows, slices).answer,
            }
        )

    def asked(self, what: str, **args: Any) -> Deferred[dict[str, Any]]:
        """Ask a question, and run what it needs of this turn and the next ones."""
        answer = self.desk.answer(what, args)
        for _ in range(20):
            self.turns()
        return answer

    def ask(self, what: str, **args: Any) -> dict[str, Any]:
        """Return the answer to a question."""
        answers: list[Any] = []
        self.asked(what, **args).addCallback(answers.append).addErrback(lambda failure: failure.raiseException())
        [answer] = answers
        assert isinstance(answer, dict)
        return answer

    def row(self, endpoint: DeviceProtocol) -> dict[str, Any]:
        """Return the row of a connection in the list."""
        [row] = self.ask("devices", query=endpoint.connection_id.decode())["devices"]
        assert isinstance(row, dict)
        return row

    def say(self, endpoint: DeviceProtocol, *lines: bytes) -> None:
        """Receive lines of a device."""
        endpoint.dataReceived(b"".join(line + b"\n" for line in lines))

    def talk(self, endpoint: DeviceProtocol, lines_in: int, lines_out: int) -> None:
        """Receive and send some lines of 4 bytes."""
        source = Source()
        self.say(endpoint, *(lines_in * [b"in--"]))
        for _ in range(lines_out):
            self.send(endpoint, source, b"out-")
        self.turns()

    def device(self, device_id: str | None = None, **where: Any) -> DeviceProtocol:
        """Connect a device."""
        endpoint: DeviceProtocol = self.connect(device_id=device_id, **where)[0]
        return endpoint

    def slow_device(self, device_id: str | None = None) -> tuple[DeviceProtocol, Wire]:
        """Connect a device that takes nothing more after the first byte."""
        return self.connect(room=0, device_id=device_id)
