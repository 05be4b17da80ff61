"""Contents of the files of one load of the settings."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError
from owsla.runtime.files import Files


class FilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_a_file_is_read_once(self) -> None:
        """A file that changes after it was read keeps its content for this load; the next load reads it again."""
        (self.folder / "a").write_bytes(b"one")
        files = Files(self.folder)
        self.assertEqual(files.read(Path("a")), b"one")
        (self.folder / "a").write_bytes(b"two")
        self.assertEqual(files.read(Path("a")), b"one")
        again = files.again()
        self.assertEqual(again.read(Path("a")), b"two")
        self.assertFalse(files.same_as(again))

    def test_relative_to_the_first_folder(self) -> None:
        """Relative paths stay relative to the working folder of the start, wherever twistd changes to."""
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)
        Path("a").write_bytes(b"here")
        files = Files()
        os.chdir("/")
        self.assertEqual(files.read(Path("a")), b"here")
        self.assertEqual(files.again().read(Path("a")), b"here")

    def test_an_error_names_the_path_as_it_was_given(self) -> None:
        error = self.assertRaises(ConfigError, Files(self.folder).read, Path("missing"))
        self.assertEqual(str(error), "missing: no such file or directory")

    def test_an_endless_file(self) -> None:
        """A device that never ends, or files that are too large, are an error, and not the end of the memory."""
        error = self.assertRaises(ConfigError, Files(self.folder).read, Path("/dev/zero"))
        self.assertEqual(str(error), "/dev/zero: the files of the settings have more than 16 MiB together")

    def test_a_folder(self) -> None:
        """A folder in the place of a file is a fault, and costs no file descriptor."""
        again = Files(self.folder).again()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            error = self.assertRaises(ConfigError, again.again().read, self.folder)
            self.assertEqual(str(error), f"{self.folder}: is a directory")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_pipe_keeps_its_content(self) -> None:
        """A pipe can be read once: its content is kept for later loads, where a regular file is read again."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.write(writing, b"settings")
        os.close(writing)
        pipe = Path(f"/dev/fd/{reading}")
        files = Files(self.folder)
        self.assertEqual(files.read(pipe), b"settings")
        self.assertEqual(files.again().again().read(pipe), b"settings")
        again = files.again()
        again.read_all_of(files)
        self.assertTrue(again.same_as(files))

    def test_a_file_that_has_become_a_pipe(self) -> None:
        """A file in whose place is a pipe now, which nobody may ever write to, is a fault at once."""
        (self.folder / "a").write_bytes(b"one")
        files = Files(self.folder)
        files.read(Path("a"))
        (self.folder / "a").unlink()
        os.mkfifo(self.folder / "a")
        again = files.again()
        error = self.assertRaises(ConfigError, again.read, Path("a"))
        self.assertEqual(str(error), "a: not a regular file")
        self.assertFalse(again.same_as(files))

    def test_a_worker_has_the_contents_of_its_parent(self) -> None:
        """Contents survive JSON, whatever their bytes, and are not read again."""
        (self.folder / "a").write_bytes(bytes(range(256)))
        files = Files(self.folder)
        files.read(self.folder / "a")
        (self.folder / "a").unlink()
        received = Files.from_wire(json.loads(json.dumps(files.to_wire())))
        self.assertEqual(received.read(self.folder / "a"), bytes(range(256)))
        self.assertEqual(list(received.paths), [self.folder / "a"])
        self.assertTrue(received.same_as(files))
