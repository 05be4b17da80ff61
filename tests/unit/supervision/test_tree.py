"""The picture of a tree."""

from __future__ import annotations

import json
from textwrap import dedent

from owsla.supervision import ChildSpec, DynamicSupervisor, Intensity, render

from .fakes import Boom, Connection, SupervisionTestCase, World, boom


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
        """Before the start it shows what there will be, and starts nothing."""
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
        self.assertEqual(self.world.book, [])
        self.assertEqual(json.loads(json.dumps(tree)), tree)

    def test_live(self) -> None:
        """Once started it shows how long each has run, how often it was restarted, and why."""
        self.root.startService()
        self.world.clock.advance(90)
        for _ in range(1234):
            self.endpoints.start_child(Connection())
        self.world.fail("producer")
        self.world.lives["consumers"].end()
        self.world.fail("events")
        self.world.lives["events"].end(Boom("now"))
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
        """The two largest units."""
        self.root.startService()
        for seconds, text in ((3599, "59 min 59 s"), (1, "1 h 0 min"), (90000, "1 d 2 h")):
            self.world.clock.advance(seconds)
            self.assertTrue(render(self.root.tree()).splitlines()[0].endswith(f"running {text}"), text)
        self.root.stopService()
        self.assertTrue(render(self.root.tree()).splitlines()[0].endswith(": stopped"))

    def test_unmade(self) -> None:
        """A supervisor that cannot be made is in the plan with the reason."""
        root = self.world.supervisor(ChildSpec("broken", lambda: boom(), type="supervisor"))  # type: ignore[arg-type,return-value]
        self.assertEqual(root.tree()["children"][0]["failure"], "Boom: as told")

    def test_paths(self) -> None:
        """A supervisor's path is made of the ids down to it."""
        self.root.startService()
        self.assertEqual(self.root.getServiceNamed("broker").path, "owsla/broker")

    def test_restarted_often(self) -> None:
        """How often is counted for each that was restarted, also for a sibling's sake."""
        root = self.world.supervisor("a", "b", strategy="one_for_all")
        root.startService()
        self.world.fail("a")
        self.world.lives["a"].end()
        self.world.clock.advance(0)
        self.world.clock.advance(5)
        self.assertEqual([child["restarts"] for child in root.tree()["children"]], [2, 2])
        self.assertIn("restarted 2 times", render(root.tree()))
        self.booms()
