"""The manual pages owsla(1) and twistd-owsla(8), which packaging/man/make.py writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.options import OPTIONS
from tests import is_required

_ROOT: Final = Path(__file__).parents[2]
_FOLDER: Final = _ROOT / "packaging" / "man"
_REQUIRED: Final = is_required("MANDOC")


class ManualPageTests(SynchronousTestCase):
    def test_lint(self) -> None:
        """mandoc finds no fault in the pages."""
        mandoc = shutil.which("mandoc")
        if mandoc is None:
            if _REQUIRED:
                self.fail("OWSLA_REQUIRE_MANDOC=1, and no mandoc is installed")
            raise SkipTest("no mandoc is installed")
        for page in ("owsla.1", "twistd-owsla.8"):
            ended = subprocess.run(
                [mandoc, "-Tlint", "-Wstyle", str(_FOLDER / page)], capture_output=True, text=True, timeout=60, check=False
            )
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "", ""))

    def test_shown(self) -> None:
        """A reader of the page for the gateway sees each option with its metavariable, its help and its default."""
        mandoc = shutil.which("mandoc")
        if mandoc is None:
            raise SkipTest("no mandoc is installed")
        command = [mandoc, "-Tascii", "-Owidth=200", str(_FOLDER / "twistd-owsla.8")]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        flat = " ".join(re.sub(".\b", "", text).split())  # bold is a character printed twice, in the same place
        for option in OPTIONS:
            self.assertIn(f" --{option.name} {option.metavar} {' '.join(option.help.split())} Default: ", flat)
            self.assertIn(f" Default: {option.default_text}. Reload: {option.reload}.", flat)
