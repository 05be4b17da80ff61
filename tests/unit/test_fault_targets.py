"""Fault targets of the integration tests. They are strings, so a type checker does not notice when a method is renamed."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

INTEGRATION = Path(__file__).resolve().parents[1] / "integration"

TARGET = re.compile(r"owsla(\.\w+)*:\w+\.\w+")


def _targets() -> set[str]:
    """Return every `module:Class.method` string of the integration tests."""
    return {
        node.value
        for path in INTEGRATION.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TARGET.fullmatch(node.value)
    }


def _exists(target: str) -> bool:
    """Return whether the module can be imported, and has this class with this method."""
    module, path = target.split(":")
    owner, method = path.split(".")
    return callable(getattr(getattr(import_module(module), owner, None), method, None))


class FaultTargetsTest(SynchronousTestCase):
    def test_found(self) -> None:
        """The search finds the targets of the integration tests."""
        self.assertGreater(len(_targets()), 20)

    def test_exist(self) -> None:
        """Each target names a method that exists, so that a rename fails here rather than in an integration test."""
        self.assertEqual([target for target in sorted(_targets()) if not _exists(target)], [])
