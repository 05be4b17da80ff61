"""Tests of the queues that a check looks at: those that a gateway declares."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.checking.plan import planned_queues
from owsla.config.sources import load_settings


class PlanTests(SynchronousTestCase):
    def plan(self, *argv: str) -> dict[str, tuple[str, bool]]:
        """Return the names of the queues, and whether Owsla consumes them, by the names for people."""
        plans = planned_queues(load_settings(argv, {}), "0123abcd")
        for plan in plans:
            self.assertEqual(plan.queue.consumed, plan.consumed, "a stream is refused where Owsla would consume it")
        return {plan.shown: (plan.queue.name, plan.consumed) for plan in plans}

    def test_queues(self) -> None:
        """Queues in the order in which people think of them. Only those that Owsla consumes need permission to read."""
        self.assertEqual(
            list(self.plan().items()),
            [
                ("from_device", ("from_device", False)),
                ("to_device", ("to_device", True)),
                ("to_device.<node>", ("to_device.0123abcd", True)),
                ("to_device.nodes", ("to_device.nodes", True)),
                ("to_device.undeliverable", ("to_device.undeliverable", False)),
            ],
        )

    def test_names(self) -> None:
        """The names follow the settings; with an exchange there is no from_device, and with --events amqp one queue more."""
        self.assertEqual(
            list(self.plan("--publish-exchange=lines", "--to-device=down", "--events=amqp")),
            ["down", "down.<node>", "down.nodes", "down.undeliverable", "connection_events"],
        )

    def test_doors(self) -> None:
        """There is a line for the queue of each door that has another one."""
        doors = ["tls:1:from-device=meters", "tls:2", "tls:3:publish-exchange=lines", "tls:4:from-device=meters"]
        plan = self.plan(*(f"--listen={door}" for door in doors))
        self.assertEqual(list(plan)[:3], ["from_device", "meters", "to_device"])

    def test_arguments(self) -> None:
        """The arguments are those with which a gateway declares the queues."""
        settings = load_settings(
            [
                "--from-device-argument=x-max-length=5",
                "--to-device-argument=x-queue-type=quorum",
                "--node-queue-argument=x-queue-type=quorum",
                "--undeliverable-limit=7",
            ],
            {},
        )
        arguments = {plan.shown: dict(plan.queue.arguments) for plan in planned_queues(settings, "0123abcd")}
        self.assertEqual(arguments["from_device"], {"x-max-length": 5})
        self.assertEqual(arguments["to_device"], {"x-queue-type": "quorum"})
        self.assertEqual(arguments["to_device.nodes"], {"x-single-active-consumer": True, "x-queue-type": "quorum"})
        self.assertEqual(arguments["to_device.undeliverable"], {"x-max-length": 7, "x-overflow": "reject-publish"})
        self.assertEqual(arguments["to_device.<node>"]["x-single-active-consumer"], True)
