"""The identity of a node: which changes reach the registrar and back ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.own_queue import NodeMembership
from owsla.broker.queues import node_queue
from owsla.cluster.identity import NodeIdentity
from owsla.routing import ConnectionIds


class Registrar:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def here(self) -> None:
        self.calls.append("here")

    def away(self) -> None:
        self.calls.append("away")

    def moved(self, node: str) -> None:
        self.calls.append(f"moved from {node}")

    def probe(self, queue: str, text: str, arrived: Callable[[], None]) -> None:
        self.calls.append(f"{text} to {queue}")


class NodeIdentityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.random = [b"\x01\x23\xab\xcd", b"\x89\xab\xcd\xef", b"\x99\x99\x99\x99"]
        self.ids = ConnectionIds(lambda size: self.random.pop(0))
        self.registrar = Registrar()
        self.announced: list[bool] = []
        self.receiving: list[bool] = []
        self.renamed: list[tuple[str, str, bytes]] = []
        self.place: NodeMembership = NodeIdentity(
            self.ids,
            cast(Any, self.registrar),
            queue=lambda node: node_queue("to_device", node),
            announce=lambda: self.announced.append(True),
            receiving=self.receiving.append,
            renamed=lambda before, reason: self.renamed.append((before, reason, self.ids.node)),
        )

    def test_another_name(self) -> None:
        """Another name is used only after `rename`; then the registrar and the owner are told."""
        self.assertEqual(self.place.queue().name, "to_device.0123abcd")
        self.assertEqual(self.place.other().name, "to_device.89abcdef")
        self.assertEqual(self.place.other().name, "to_device.99999999")
        self.assertEqual((self.place.queue().name, self.renamed), ("to_device.0123abcd", []))
        self.place.rename("why")
        self.assertEqual(self.place.queue().name, "to_device.99999999")
        self.assertEqual(self.renamed, [("0123abcd", "why", b"99999999")])
        self.assertEqual(self.registrar.calls, ["moved from 0123abcd"])

    def test_here(self) -> None:
        """The registrar announces this node; connections are announced again if that was missed."""
        self.place.here(missed=False)
        self.assertEqual((self.registrar.calls, self.announced), (["here"], []))
        self.place.here(missed=True)
        self.place.lost()
        self.assertEqual((self.registrar.calls, self.announced), (["here", "here"], [True, True]))
        self.assertEqual(self.receiving, [True, True])

    def test_away(self) -> None:
        """A node whose queue is not consumed is away."""
        self.place.away()
        self.assertEqual((self.registrar.calls, self.receiving), (["away"], [False]))

    def test_a_probe(self) -> None:
        """A probe is published by the registrar."""
        self.place.probe("q", "probe 1", lambda: None)
        self.assertEqual(self.registrar.calls, ["probe 1 to q"])
