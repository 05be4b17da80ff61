"""Application of changed settings: every option that a running node follows reaches the part that uses it."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.addresses import ManagementAddress
from owsla.config.options import OPTIONS
from owsla.config.settings import Settings
from owsla.config.sources import load_settings
from owsla.embedded import EmbeddedBroker
from owsla.interfaces import FIRST_DOOR
from owsla.runtime.files import Files
from owsla.runtime.sockets import bind
from owsla.wiring.applying import NodeChanges
from owsla.wiring.base import Base, make_base
from owsla.wiring.configuration import configure
from owsla.wiring.consuming import Consuming, make_consuming
from owsla.wiring.devices import Devices, make_devices
from owsla.wiring.opening import Opening
from owsla.wiring.publishing import Publishing, make_publishing
from owsla.wiring.shutdown import DeviceDrain

from ..device._sockets import Loop


@dataclasses.dataclass(frozen=True)
class Node:
    """Parts of a node that does not run."""

    base: Base
    publishing: Publishing
    devices: Devices
    consuming: Consuming
    drain: DeviceDrain
    embedded: EmbeddedBroker

    def apply(self, settings: Settings) -> None:
        NodeChanges(self.base, self.publishing, self.devices, self.consuming, self.drain, self.embedded).apply_settings(
            settings
        )


CONNECTIONS: Final = 100


def _lines(node: Any) -> Any:
    return node.publishing.lines.publishers[FIRST_DOOR]


OBSERVED: Mapping[str, tuple[dict[str, object], Callable[[Any], object]]] = {
    "embedded-memory": ({"embedded_memory": 5_000_000}, lambda node: node.embedded.broker.memory.limit),
    "broker-management": (
        {"broker_management": ManagementAddress("other.example")},
        lambda node: (node.consuming.inspection.management, node.consuming.inspection._management),
    ),
    "device-ack": ({"device_ack": "OK {seq}"}, lambda node: node.devices.first.factory.buildProtocol(None)._device_ack(5)),
    "device-timeout": ({"device_timeout": 7.0}, lambda node: node.consuming.by_name.locations.device_timeout),
    "max-rate": ({"max_rate": 7.0}, lambda node: node.devices.first.factory.settings.max_rate),
    "max-line": (
        {"max_line": 50},
        lambda node: (node.devices.first.factory.framing.max_line, node.consuming.router._handover.body_fault(bytes(51))),
    ),
    "on-long": ({"on_long": "skip"}, lambda node: node.devices.first.factory.settings.skip_long),
    "linger": ({"linger": 0.5}, lambda node: node.devices.sockets.poller._linger),
    "window": ({"window": 640}, lambda node: (_lines(node).window.max_messages, _lines(node).share)),
    "window-bytes": (
        {"window_bytes": 640_000}, lambda node: (_lines(node).window.max_bytes, _lines(node).line_size),
    ),
    "max-connections": (
        {"max_connections": 10},
        lambda node: (node.devices.admission.max_connections, node.devices.admission.max_silent),
    ),
    "max-handshakes": (
        {"max_handshakes": 3},
        lambda node: (node.devices.admission.max_handshakes, node.devices.admission.max_silent),
    ),
    "max-per-address": (
        {"max_per_address": 3},
        lambda node: node.devices.first.port._sources.limits,
    ),
    "max-connect-rate": ({"max_connect_rate": 7.5}, lambda node: node.devices.first.port._sources.limits),
    "max-flaps": ({"max_flaps": 3}, lambda node: node.devices.services.devices.flaps.limit),
    "handshake-timeout": ({"handshake_timeout": 3.0}, lambda node: node.devices.first.port._settings.handshake_timeout),
    "idle-timeout": ({"idle_timeout": 3.0}, lambda node: node.devices.first.factory._idle._timeout),
    "on-duplicate": ({"on_duplicate": "replace"}, lambda node: node.devices.services.devices.replace),
    "write-buffer": ({"write_buffer": 3}, lambda node: node.devices.first.factory.settings.write_buffer),
    "write-timeout": ({"write_timeout": 3.0}, lambda node: node.devices.first.factory.slow._timeout),
    "gap-timeout": ({"gap_timeout": 3.0}, lambda node: node.devices.first.factory.reordering._gap_timeout),
    "reorder-limit": ({"reorder_limit": 3}, lambda node: node.devices.first.factory.reordering._limit),
    "trace-lines": ({"trace_lines": 0.25}, lambda node: (_lines(node)._traces.rate, _lines(node)._pack.__qualname__)),
    "fanout-rate": ({"fanout_rate": 50.0}, lambda node: node.consuming.groups._fanout._rate),
    "drain-timeout": ({"drain_timeout": 3.0}, lambda node: node.base.deadline.timeout),
    "drain-spread": ({"drain_spread": 3.0}, lambda node: node.drain._spread),
}  # fmt: skip
"""For each option that `NodeChanges` applies: fields with other values, and what the node shows of them."""

ELSEWHERE: Final = frozenset({
    "cert", "key", "certs-dir", "client-ca", "client-cert", "client-crl", "crl-policy", "device-id", "ocsp-response",
    "broker", "broker-password-file", "broker-ca", "broker-cert", "broker-key", "watch", "login-checker", "login-timeout",
    "deny", "proxy-protocol", "http-token-file", "http-read-token-file", "batch-delay",
})  # fmt: skip
"""Options with tests of their own: TLS contexts, logins and the deny list, which a reload prepares; the interval of the
watch; trusted proxies, since a door without them stays without; tokens, of which HTTP asks for those in force; and the delay of
batches, which takes a door with batches."""


class ApplyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.make_node()

    def make_node(self, **other: Any) -> None:
        self.settings = dataclasses.replace(
            load_settings([], {}), max_connections=CONNECTIONS, interface="127.0.0.1", port=0, **other
        )
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        configuration = configure((), self.settings, Files(folder))
        reactor = Loop()
        base = make_base(reactor, configuration, None)
        publishing = make_publishing(base)
        sock = bind(0, "127.0.0.1")
        self.addCleanup(sock.close)
        devices = make_devices(base, publishing, {FIRST_DOOR: sock}, configuration, CONNECTIONS)
        devices.endpoints.startService()
        drain = DeviceDrain(reactor, base.deadline, publishing.lines, None)
        opening = Opening(base, publishing, devices, drain)
        consuming = make_consuming(base, publishing, devices, opening, [], configuration)
        self.node = Node(base, publishing, devices, consuming, drain, EmbeddedBroker(reactor))

    def test_every_option(self) -> None:
        """The node follows every option for which the table says so. A test must say how that shows."""
        followed = {option.name for option in OPTIONS if not option.restart}
        self.assertEqual(followed - ELSEWHERE, set(OBSERVED))

    def test_each_option(self) -> None:
        """Another value of each option shows in the part that uses it, and so does the former value after that."""
        for option in OPTIONS:
            if option.name not in OBSERVED:
                continue
            other, observe = OBSERVED[option.name]
            before = _observed(observe, self.node)
            self.node.apply(dataclasses.replace(self.settings, **other))  # type: ignore[arg-type]
            changed = _observed(observe, self.node)
            for value, former in zip(_each(changed), _each(before), strict=False):
                self.assertNotEqual(value, former, option.name)
            for field, value in other.items():
                if isinstance(value, int | float):
                    self.assertIn(str(value), str(changed), field)
            self.node.apply(self.settings)
            self.assertEqual(_observed(observe, self.node), before, option.name)


    def test_batch_delay(self) -> None:
        """The publisher of batches follows another delay."""
        self.make_node(batch=50)
        publisher = _lines(self.node)
        self.assertEqual(publisher._pacing._delay, 0.005)
        self.node.apply(dataclasses.replace(self.settings, batch_delay=0.25))
        self.assertEqual(publisher._pacing._delay, 0.25)


def _each(observed: object) -> tuple[object, ...]:
    return observed if isinstance(observed, tuple) else (observed,)


def _observed(observe: Callable[[Node], object], node: Node) -> object:
    """Return what a node shows of an option; `None` while the part that would show it does not exist."""
    try:
        return observe(node)
    except (AttributeError, TypeError):
        return None
