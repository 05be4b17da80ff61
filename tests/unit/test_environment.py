"""The environment that tests run in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import variable

_ROOT = Path(__file__).parents[2]

_PRINT = """
import os, tests
print([name for name in os.environ if "OWSLA" in name], tests.is_required("X"), tests.variable("PORT"))
"""


class EnvironmentTests(SynchronousTestCase):
    def test_settings(self) -> None:
        """No setting of the person who runs the tests is one of a gateway that a test makes. Tests, and the processes of
        pytest-xdist, can ask for the variable."""
        environment = {name: text for name, text in os.environ.items() if "OWSLA" not in name}
        environment |= {"OWSLA_REQUIRE_X": "1", "OWSLA_PORT": "7"}
        for _ in range(2):
            command = [sys.executable, "-c", _PRINT]
            printed = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=True).stdout
            self.assertEqual(printed, "['TESTS_OF_OWSLA_REQUIRE_X', 'TESTS_OF_OWSLA_PORT'] True 7\n")
            environment = {name.replace("OWSLA", "TESTS_OF_OWSLA", 1): text for name, text in environment.items()}

    def test_unknown(self) -> None:
        """A variable that is not set is an empty text."""
        self.assertEqual(variable("NOBODY_SETS_THIS"), "")
