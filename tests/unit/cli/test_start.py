"""The start of the commands: those for a running gateway, and errors, load neither Twisted nor cryptography."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

HEAVY = ("twisted", "OpenSSL", "cryptography", "prometheus_client", "owsla.config", "owsla.device")
"""Packages that take tenths of a second to import."""

PROGRAM = """\
import sys
from contextlib import suppress
from owsla.cli import main
for command in sys.argv[1:]:
    with suppress(SystemExit):
        main([*command.split(), *(["--control=/nowhere"] if command != "completion bash" else [])])
loaded = [name for name in sys.modules if name.startswith(HEAVY)]
sys.exit(" ".join(loaded) or 0)
"""


class StartTests(SynchronousTestCase):
    def test_imports(self) -> None:
        """A command for a running gateway takes a tenth of a second, and is called from scripts and at each Tab key."""
        asking = ("devices", "device x", "top", "trace x", "events", "kick x", "reload", "drain", "tree", "health")
        commands = (*asking, "completion bash", "no-command")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("HEAVY", repr(HEAVY)), *commands],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr.count("no such socket"), len(asking), done.stderr)
