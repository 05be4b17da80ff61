"""The settings that the Debian package installs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.sources import load_settings

_SETTINGS: Final = Path(__file__).parents[3] / "packaging" / "debian" / "owsla.toml"


class SettingsTests(SynchronousTestCase):
    def _load(self, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "owsla.toml")
            path.write_text(text)
            load_settings(["--config", str(path)], {}, self.fail, certificates="left")

    def test_as_installed(self) -> None:
        """The file sets nothing, and can be used."""
        text = _SETTINGS.read_text()
        self.assertEqual([line for line in text.splitlines() if line and not line.startswith("#")], [])
        self._load(text)

    def test_examples(self) -> None:
        """Each line that is commented out can be used: all options exist, with such values."""
        examples, count = re.subn(r"^#(?=[a-z-]+ = )", "", _SETTINGS.read_text(), flags=re.MULTILINE)
        self.assertGreater(count, 5)
        with tempfile.NamedTemporaryFile("w") as password:
            password.write("password\n")
            password.flush()
            self._load(examples.replace("/etc/owsla/broker-password", password.name))
