"""`owsla health`: what it asks, what it says, and its status."""

from __future__ import annotations

import socket
from typing import Any

from owsla.cli import _health

from ._fake_gateway import FakeGateway, Route
from ._running import CommandTestCase


def always(body: Any) -> Route:
    return lambda rest, query: (200, body)


class HealthTests(CommandTestCase):
    def serve(self, path: str, status: int, body: Any) -> None:
        self.gateway().routes[f"GET {path}"] = lambda rest, query: (status, body)

    def test_alive(self) -> None:
        """A gateway whose event loop answers is alive, whatever it is ready for."""
        self.serve("/healthz", 200, b"ok\n")
        self.assertEqual(self.output("health"), "The gateway is alive.\n")

    def test_ready(self) -> None:
        """With --ready, one that accepts devices is ready."""
        self.serve("/readyz", 200, {"ready": True, "checks": {"broker_connected": True}})
        self.assertEqual(self.output("health", "--ready"), "The gateway is ready.\n")

    def test_not_ready(self) -> None:
        """The error names the checks that fail."""
        checks = {"broker_connected": False, "listener_accepting": False, "not_draining": True}
        self.serve("/readyz", 503, {"ready": False, "checks": checks})
        self.assertEqual(
            self.refused("health", "--ready"),
            f"owsla health: {self.socket}: the gateway is not ready: broker_connected, listener_accepting",
        )

    def test_workers_not_ready(self) -> None:
        """A gateway may not be ready though no check of its own has failed."""
        self.serve("/readyz", 503, {"ready": False, "checks": {}})
        self.assertIn("is not ready: it does not say why", self.refused("health", "--ready"))

    def test_another_program(self) -> None:
        """What is not the answer of a gateway fails, and does not count as alive or ready."""
        gateway = self.gateway()
        self.assertIn("(status 404): is that a gateway?", self.refused("health"))
        bodies: list[Any] = [b"<html>", [], {"ready": True}, {"ready": True, "checks": []}]
        for body in bodies:
            gateway.routes["GET /readyz"] = always(body)
            self.assertIn("(status 200): is that a gateway?", self.refused("health", "--ready"))
        gateway.routes["GET /readyz"] = always({"ready": "yes", "checks": {}})
        self.assertIn("is not ready", self.refused("health", "--ready"))

    def test_nobody(self) -> None:
        """Without a gateway the check fails, in one line."""
        self.assertIn(self.socket, self.refused("health"))

    def test_hanging(self) -> None:
        """A gateway that accepts the connection and does not answer fails in time."""
        self.patch(_health, "PATIENCE", 0.05)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.socket)
            silent.listen()
            self.assertIn("no answer", self.refused("health"))

    def test_http(self) -> None:
        """OWSLA_HTTP, as set for the gateway, is enough: no token is needed."""
        gateway = FakeGateway()
        self.addCleanup(gateway.close)
        gateway.routes["GET /healthz"] = lambda rest, query: (200, b"ok\n")
        environ = {"OWSLA_HTTP": f"all:{gateway.port}"}
        self.assertEqual(self.run_it("health", environ=environ), (0, "The gateway is alive.\n", ""))
