"""Tests of the trace on events about a device: the one of the last line of its connection that had one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.framings import read_framing
from owsla.device.framing import make_framing
from owsla.device.protocol import DeviceProtocol
from owsla.events import (
    BadFrame,
    DeviceDisconnected,
    DeviceReplaced,
    Event,
    GapSkipped,
    LinesSkipped,
    LineTooLong,
    SlowDevice,
)

from ._fakes import Source, World

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _too_long(world: World, endpoint: DeviceProtocol) -> None:
    endpoint.dataReceived(b"x" * 20_000 + b"\n")


def _skipped(world: World, endpoint: DeviceProtocol) -> None:
    _too_long(world, endpoint)
    world.end(endpoint)


def _malformed(world: World, endpoint: DeviceProtocol) -> None:
    endpoint.dataReceived(b"x")


def _gap(world: World, endpoint: DeviceProtocol) -> None:
    world.send(endpoint, Source(), b"x", 3)
    world.later(3)


def _slow(world: World, endpoint: DeviceProtocol) -> None:
    world.send(endpoint, Source(), b"x" * 20)
    world.later(10)


def _twice(world: World, endpoint: DeviceProtocol) -> None:
    world.connect(device_id="d1")


def _end(world: World, endpoint: DeviceProtocol) -> None:
    world.end(endpoint)


class EventTests(SynchronousTestCase):
    def check(self, kind: type[Event], happens: Callable[[World, DeviceProtocol], None], **settings: Any) -> None:
        """Let something happen to a device with a trace and to one without: the event has the trace, or none."""
        for trace in (TRACE, None):
            world = World(**settings)
            endpoint, _ = world.connect(room=10, device_id="d1")
            if trace is not None:
                world.sink.traces[endpoint.connection_id] = trace
            happens(world, endpoint)
            (event,) = world.of_type(kind)
            self.assertEqual(event.fields()["traceparent"], trace)

    def test_lines(self) -> None:
        """Events about lines of a device have its trace."""
        self.check(LineTooLong, _too_long)
        self.check(LinesSkipped, _skipped, skip_long=True)
        self.check(BadFrame, _malformed, framing=make_framing(read_framing("netstring"), b"\n", 16384))

    def test_messages(self) -> None:
        """Events about messages to a device have its trace."""
        self.check(GapSkipped, _gap, gap_timeout=2.0)
        self.check(SlowDevice, _slow, write_timeout=5.0)

    def test_connections(self) -> None:
        """Events about the end of a connection have its trace; that of another connection of the device does not count."""
        self.check(DeviceDisconnected, _end)
        self.check(DeviceReplaced, _twice, replace=True)
