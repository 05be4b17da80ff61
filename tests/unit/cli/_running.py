"""Runs commands in this process."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli._arguments import parse

from ._fake_gateway import FakeGateway, Route


class CommandTestCase(SynchronousTestCase):
    """Runs commands against a fake gateway."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.socket = str(self.folder / "owsla.sock")

    def gateway(self, routes: Mapping[str, Route] | None = None) -> FakeGateway:
        """Return a fake gateway at `self.socket`."""
        gateway = FakeGateway(self.socket, routes)
        self.addCleanup(gateway.close)
        return gateway

    def run_it(self, *arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Run a command and return its status, standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = parse(arguments, {"OWSLA_CONTROL": self.socket} if environ is None else environ)()
            except SystemExit as end:
                status = int(str(end.code))
        return status, out.getvalue(), err.getvalue()

    def output(self, *arguments: str) -> str:
        """Return the standard output of a command that has nothing to complain of."""
        status, out, err = self.run_it(*arguments)
        self.assertEqual((status, err), (0, ""), out)
        return out

    def refused(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Return the error of a command: one line, with status 1 and without output."""
        status, out, err = self.run_it(*arguments, environ=environ)
        self.assertEqual((status, out, err.count("\n"), err[-1:]), (1, "", 1, "\n"), err)
        return err.rstrip()

    def in_folder(self, folder: Path) -> None:
        """Make a folder the working folder for this test."""
        before = os.getcwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, before)
