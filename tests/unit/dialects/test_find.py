"""Lookup of the dialect class for `--dialect`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.sources import load_settings
from owsla.dialects import Dialect, IDialect, find_dialect
from owsla.dialects.login import Login
from owsla.dialects.turnstile import Turnstile
from owsla.errors import ConfigError


class Shout(Dialect):
    """A dialect of a user."""

    def line(self, line: bytes) -> None:
        self.conversation.publish(line.upper())


class FindTests(SynchronousTestCase):
    def refused(self, text: str) -> str:
        message = str(self.assertRaises(ConfigError, find_dialect, text))
        self.assertNotIn("\n", message)
        return message

    def test_by_name(self) -> None:
        """Owsla's own dialects are found by name, as Twisted plugins."""
        self.assertIs(find_dialect("login"), Login)
        self.assertIs(find_dialect("turnstile"), Turnstile)

    def test_plugins(self) -> None:
        """Each plugin has a unique name, a description and an importable dialect."""
        plugins = list(getPlugins(IDialect))
        names = [plugin.name for plugin in plugins]
        self.assertEqual(len(set(names)), len(names))
        for plugin in plugins:
            self.assertTrue(plugin.description)
            self.assertTrue(issubclass(find_dialect(plugin.reference), Dialect))

    def test_by_reference(self) -> None:
        """Any subclass of `Dialect` is found by its module and name."""
        self.assertIs(find_dialect(f"{__name__}:Shout"), Shout)

    def test_refused(self) -> None:
        """Anything else is an error of one line with the reason."""
        for text, reason in [
            ("turnstil", "'turnstil': there is no such dialect; did you mean turnstile?"),
            ("qqqq", "(login, turnstile, or package.module:Name)"),
            ("no_such_module:Name", "'no_such_module:Name': there is no module no_such_module"),
            ("owsla.nothing:Name", "there is no module owsla.nothing"),
            ("owsla.dialects:Nothing", "there is no Nothing in owsla.dialects"),
            ("owsla.routing:Registry", "'owsla.routing:Registry' is not a dialect: a subclass of owsla.dialects.Dialect"),
            ("owsla.dialects:find_dialect", "is not a dialect"),
            (":Name", "not of the form package.module:Name"),
            ("owsla.dialects:", "not of the form"),
            (".login:Login", "not of the form"),
            ("a b:c", "not of the form"),
        ]:
            self.assertIn(reason, self.refused(text))

    def test_broken_module(self) -> None:
        """An error at the import of a module is quoted, and so is the name of a missing module."""
        folder = tempfile.mkdtemp()
        self.addCleanup(rmtree, folder)
        self.patch(sys, "path", [*sys.path, folder])
        Path(folder, "owsla_test_broken.py").write_text("1 / 0\n")
        Path(folder, "owsla_test_lacking.py").write_text("import owsla_test_lacked\n")
        self.assertIn("cannot be imported: ZeroDivisionError: division by zero", self.refused("owsla_test_broken:Name"))
        self.assertIn("there is no module owsla_test_lacked", self.refused("owsla_test_lacking:Name"))

    def test_option(self) -> None:
        """--dialect is read in this way. The default, lines, is no dialect."""
        self.assertIsNone(load_settings([], {}).dialect)
        self.assertIsNone(load_settings(["--dialect", "lines"], {}).dialect)
        self.assertIs(load_settings(["--dialect", "turnstile"], {}).dialect, Turnstile)
        error = self.assertRaises(ConfigError, load_settings, [], {"OWSLA_DIALECT": "qqqq"})
        self.assertTrue(str(error).startswith("OWSLA_DIALECT: 'qqqq': there is no such dialect"), error)
