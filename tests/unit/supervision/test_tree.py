"""Snapshot of a tree, and its rendering."""

from __future__ import annotations

import json
from textwrap import dedent

from owsla.supervision import ChildSpec, DynamicSupervisor, Intensity, render

from .fakes import Boom, SupervisionTestCase, World, boom


class Connection:
    """Child of a dynamic supervisor."""

    def stop(self) -> None: ...


class TreeTests(SupervisionTestCase):
    def setUp(self) -> None:
        super().setUp()
        world: World = self.world
        self.endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(world.clock)
        self.root = world.supervisor(
            "events",
            ChildSpec(
                "broker", lambda: world.inner("producer", world.spec("consumers", restart="transient")), type="supervisor"
            ),
            ChildSpec(
                "listener",
                lambda: world.inner(
                    ChildSpec("endpoints", lambda: self.endpoints, type="supervisor"),
                    "port",
                    strategy="rest_for_one",
                    intensity=Intensity(1, 5),
                ),
                type="supervisor",
            ),
            name="owsla",
        )

    def test_planned(self) -> None:
        """Before the start the tree shows what is planned, and starts nothing."""
        tree = self.root.tree()
        self.assertEqual(
            render(tree),
            dedent(
                """\
                owsla (one_for_one, 3 restarts in 60 s)
                ├── events (permanent)
                ├── broker (permanent, one_for_one, 3 restarts in 60 s)
                │   ├── producer (permanent)
                │   └── consumers (transient)
                └── listener (permanent, rest_for_one, 1 restart in 5 s)
                    ├── endpoints (permanent, simple_one_for_one)
                    └── port (permanent)"""
            ),
        )
        self.assertEqual(self.world.journal, [])
        self.assertEqual(json.loads(json.dumps(tree)), tree)

    def test_live(self) -> None:
        """After the start the tree shows uptime, number of restarts and last failure of each child."""
        self.root.startService()
        self.world.clock.advance(90)
        for _ in range(1234):
            self.endpoints.start_child(Connection())
        self.world.fail("producer")
        self.world.services["consumers"].end()
        self.world.fail("events")
        self.world.services["events"].end(Boom("now"))
        self.world.turn()
        tree = self.root.tree()
        self.assertEqual(
            render(tree),
            dedent(
                """\
                owsla (one_for_one, 3 restarts in 60 s): running 1 min 30 s
                ├── events (permanent): restarting, restarted once, last: Boom: now
                ├── broker (permanent, one_for_one, 3 restarts in 60 s): running 1 min 30 s
                │   ├── producer (permanent): running 0.0 s, restarted once, last: Boom: of producer
                │   └── consumers (transient): stopped
                └── listener (permanent, rest_for_one, 1 restart in 5 s): running 1 min 30 s
                    ├── endpoints (permanent, simple_one_for_one): running 1 min 30 s, 1,234 children
                    └── port (permanent): running 1 min 30 s"""
            ),
        )
        self.assertEqual(json.loads(json.dumps(tree)), tree)
        self.booms()

    def test_durations(self) -> None:
        """A duration is shown in its two largest units."""
        self.root.startService()
        for seconds, text in ((3599, "59 min 59 s"), (1, "1 h 0 min"), (90000, "1 d 2 h")):
            self.world.clock.advance(seconds)
            self.assertTrue(render(self.root.tree()).splitlines()[0].endswith(f"running {text}"), text)
        self.root.stopService()
        self.assertTrue(render(self.root.tree()).splitlines()[0].endswith(": stopped"))

    def test_unmade(self) -> None:
        """A planned supervisor whose factory fails is shown with the failure."""
        root = self.world.supervisor(ChildSpec("broken", lambda: boom(), type="supervisor"))  # type: ignore[arg-type,return-value]
        self.assertEqual(root.tree()["children"][0]["failure"], "Boom: on demand")

    def test_paths(self) -> None:
        """The path of a supervisor is made of the ids from the root."""
        self.root.startService()
        self.assertEqual(self.root.getServiceNamed("broker").path, "owsla/broker")

    def test_restarted_often(self) -> None:
        """A restart for the sake of a sibling counts for each child."""
        root = self.world.supervisor("a", "b", strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        self.world.services["a"].end()
        self.world.clock.advance(0)
        self.world.clock.advance(5)
        self.assertEqual([child["restarts"] for child in root.tree()["children"]], [2, 2])
        self.assertIn("restarted 2 times", render(root.tree()))
        self.booms()
