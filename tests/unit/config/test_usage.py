"""The pid file of twistd."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from io import StringIO

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.usage import Options


class PidFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stderr = StringIO()
        self.patch(sys, "stderr", self.stderr)
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def pid_file(self, path: str, **others: str) -> str:
        """Return the pid file that twistd will write."""
        twistd = usage.Options()
        twistd.update({"pidfile": path, **others})
        options = Options()
        options.parent = twistd
        options.parseOptions(["--tls=no"])
        return str(twistd["pidfile"])

    def test_written(self) -> None:
        """A pid file that can be written is left to twistd."""
        self.assertEqual(self.pid_file("twistd.pid"), "twistd.pid")
        self.assertEqual(os.listdir(self.folder), [])

    def test_default(self) -> None:
        """The default one is left out where it cannot be written, with a warning."""
        os.mkdir("twistd.pid")
        self.assertEqual(self.pid_file("twistd.pid"), "")
        warning = "owsla: twistd.pid cannot be written: is a directory; no pid file is written (twistd --pidfile=)\n"
        self.assertEqual(self.stderr.getvalue(), warning)

    def test_requested(self) -> None:
        """Without one that was asked for there is no start."""
        self.assertRaises(SystemExit, self.pid_file, "missing/owsla.pid")
        self.assertEqual(self.stderr.getvalue(), "owsla: twistd --pidfile=missing/owsla.pid: no such file or directory\n")

    def test_rundir(self) -> None:
        """twistd writes the pid file after it has changed to the folder of --rundir."""
        os.mkdir("run")
        os.mkdir("owsla.pid")
        self.assertEqual(self.pid_file("owsla.pid", rundir="run"), "owsla.pid")
        self.assertRaises(SystemExit, self.pid_file, "other.pid", rundir="missing")

    def test_not_checked(self) -> None:
        """Without a pid file, or in a chroot, nothing is checked."""
        self.assertEqual(self.pid_file(""), "")
        self.assertEqual(self.pid_file("missing/owsla.pid", chroot="/srv"), "missing/owsla.pid")
