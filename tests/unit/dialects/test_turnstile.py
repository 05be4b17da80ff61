"""Tests of the turnstile in docs/dialects.md."""

from __future__ import annotations

import re
from pathlib import Path

from automat import NoTransition
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.dialects import turnstile
from owsla.dialects.turnstile import PATIENCE, Machine, Turnstile

from ..device._fakes import Source
from ._fakes import DialectWorld


class TurnstileTests(SynchronousTestCase):
    def test_a_day(self) -> None:
        """Coins, pushes, and a coin without a push."""
        world = DialectWorld(Turnstile)
        endpoint, wire = world.speak()
        endpoint.dataReceived(b"PUSH\nCOIN\nCOIN\nPUSH\nHELP\n")
        self.assertEqual(world.heard(wire), [b"LOCKED", b"UNLOCKED", b"RETURN", b"LOCKED", b"WHAT"])
        self.assertEqual(world.sink.of(endpoint), [b"pushed", b"paid", b"passed"])
        endpoint.dataReceived(b"COIN\n")
        world.later(PATIENCE - 1)
        self.assertEqual(world.heard(wire), [b"UNLOCKED"])
        world.later(2.0)
        self.assertEqual(world.heard(wire), [b"LOCKED"])
        self.assertEqual(world.sink.of(endpoint)[3:], [b"paid", b"expired"])

    def test_back_end(self) -> None:
        """UNLOCK from a back end unlocks the arm; any other message is refused."""
        world = DialectWorld(Turnstile)
        endpoint, wire = world.speak()
        source = Source()
        for body in (b"UNLOCK", b"UNLOCK", b"hello"):
            world.send(endpoint, source, body)
        endpoint.dataReceived(b"PUSH\n")
        self.assertEqual(world.heard(wire), [b"UNLOCKED", b"LOCKED"])
        self.assertEqual((world.sink.of(endpoint), world.courier.reasons), ([b"passed"], [(b"hello", "refused-by-dialect")]))
        self.assertEqual(source.outstanding, 0)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.sampled_from(["COIN", "PUSH", "UNLOCK", "wait", "wait long"]), max_size=30))
    def test_any_day(self, steps: list[str]) -> None:
        """After any sequence the arm is in the right state, and the device was told."""
        world = DialectWorld(Turnstile)
        endpoint, wire = world.speak()
        until: float | None = None
        for step in steps:
            now = world.clock.seconds()
            if until is not None and until <= now:
                until = None
            if step.startswith("wait"):
                world.later(PATIENCE + 1 if step == "wait long" else 7.0)
                if until is not None and until <= world.clock.seconds() - 0.2:
                    until = None
                    self.assertEqual(world.heard(wire), [b"LOCKED"])
                elif until is not None and until <= world.clock.seconds() + 0.2:
                    return  # to the tenth of a second it is ambiguous
                continue
            if step == "UNLOCK":
                world.send(endpoint, Source(), b"UNLOCK")
                expected = [b"UNLOCKED"] if until is None else []
            else:
                endpoint.dataReceived(step.encode() + b"\n")
                expected = {
                    ("COIN", False): [b"UNLOCKED"],
                    ("COIN", True): [b"RETURN"],
                    ("PUSH", False): [b"LOCKED"],
                    ("PUSH", True): [b"LOCKED"],
                }[step, until is not None]
            self.assertEqual(world.heard(wire), expected)
            if step == "PUSH":
                until = None
            elif until is None:
                until = now + PATIENCE
        published = world.sink.of(endpoint)
        self.assertLessEqual(published.count(b"paid"), published.count(b"passed") + published.count(b"expired") + 1)

    def test_impossible(self) -> None:
        """A locked turnstile has no timeout."""
        machine = Machine(Turnstile(None))  # type: ignore[arg-type]
        self.assertRaises(NoTransition, machine.too_late)

    def test_documented(self) -> None:
        """The code in docs/dialects.md is that of the module."""
        page = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text()
        source = Path(turnstile.__file__).read_text()
        blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        shown = [block for block in blocks if block.startswith("# owsla/dialects/turnstile.py")]
        self.assertTrue(shown)
        for block in shown:
            body = block.partition("\n")[2].strip("\n")
            self.assertIn(body, source)
